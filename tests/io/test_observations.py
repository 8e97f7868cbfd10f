"""Every k-th row of data in memory, against the same rows taken by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from nlsq_dask.io import observations
from nlsq_dask.io.sources import observe


@pytest.mark.parametrize("shape", [(1007,), (19, 53)])
@pytest.mark.parametrize("layout", ["flat", "float32", "strided", "broadcast", "masked"])
@pytest.mark.parametrize("most", [1, 90, 5000])
def test_every_kth_row(monkeypatch, shape, layout, most):
    monkeypatch.setattr(observations, "PIECE_ROWS", 100)
    rng = np.random.default_rng(0)
    y, x, sigma = rng.normal(size=(2, *shape)), rng.normal(size=shape), rng.uniform(1, 2, shape)
    y = y[0] if layout != "strided" else np.stack(y, axis=-1)[..., 0]
    if layout == "float32":
        y, x = y.astype(np.float32), x.astype(np.float32)
    if layout == "broadcast":
        x = x[..., :1]
    mask = rng.uniform(size=shape) < 0.5 if layout == "masked" else np.zeros(shape, bool)
    data = observe(x, y, sigma, mask=mask if mask.any() else None)
    found = data.thinned(most)
    kept = np.arange(0, y.size, -(-y.size // most))
    kept = kept[~mask.ravel()[kept]]
    if not kept.size:
        kept = np.flatnonzero(~mask)
    for array, whole in zip((found.y, *found.coords, found.sigma), (y, x, sigma), strict=True):
        expected = np.broadcast_to(whole, shape).ravel()[kept].astype(np.float64)
        np.testing.assert_array_equal(array, expected, strict=True)
