"""Fits of packed integers in Zarr: the values of the attributes are fitted, in one reading a pass.

The oracle is a fit of the same values in memory.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from nlsq_dask import FitResult, InputError, curve_fit, fit, fit_models, plan
from nlsq_dask.io.sources import observe
from tests.support.counting_store import stored

ROWS, CHUNK = 6_000, 1_000
RNG = np.random.default_rng(9)
X = np.linspace(0, 4, ROWS)
#: Values that the packing holds exactly, and 60 of them missing.
PACKED = np.round((1.7 * np.exp(-1.3 * X) + RNG.normal(0, 0.05, ROWS)) / 0.001).astype("i2")
PACKED[::100] = -32768
ATTRIBUTES = {"scale_factor": 0.001, "add_offset": 0.5, "_FillValue": -32768}
VALUES = np.where(PACKED == -32768, np.nan, PACKED * 0.001 + 0.5)
P0 = [1.0, 1.0, 0.0]
#: So tight that streamed fits and those in memory end at the same point.
TIGHT = dict(ftol=1e-14, xtol=1e-14, gtol=1e-14, stat_tol=None)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


@pytest.fixture
def y(tmp_path):
    array = stored(tmp_path / "y", PACKED, (CHUNK,), fill_value=0)
    array.attrs.update(ATTRIBUTES)
    return array


@pytest.fixture(scope="module")
def expected():
    return fit(decay, X, VALUES, P0, nan_policy="omit", **TIGHT)


def assert_same(result, expected):
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-7)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-5)
    assert result.n_points == expected.n_points == ROWS - 60


@pytest.mark.slow
def test_the_values_of_the_attributes_are_fitted(y, expected, tmp_path):
    """Each chunk is read and decoded once a pass, in one task with its sums."""
    result = fit(decay, X, y, P0, nan_policy="omit", cache=False, **TIGHT)
    assert_same(result, expected)
    assert set(y.store.reads.values()) == {result.n_passes}
    text = "y: int16, scale_factor = 0.001, add_offset = 0.5, _FillValue = -32768"
    assert result.decoded == (text,)
    assert text in result.summary()
    result.save(tmp_path / "fit.json")
    assert FitResult.load(tmp_path / "fit.json").decoded == result.decoded
    assert expected.decoded == ()


def test_the_plan_says_it_and_counts_the_stored_bytes(y):
    found = plan(decay, X, y, P0, nan_policy="omit")
    assert found.bytes_per_pass == 2 * ROWS
    assert found.decoded == (
        "y: int16, scale_factor = 0.001, add_offset = 0.5, _FillValue = -32768",
    )
    assert "scale_factor = 0.001" in str(found)


def test_missing_numbers_are_an_error_that_names_the_attribute(y):
    with pytest.raises(InputError, match=r"_FillValue = -32768.*become NaN.*nan_policy='omit'"):
        fit(decay, X, y, P0)


@pytest.mark.parametrize("attributes", [ATTRIBUTES, {"scale_factor": 0.001, "add_offset": 0.5}])
def test_fill_value_is_the_stored_number(y, expected, attributes):
    y.attrs.put(attributes)
    assert_same(fit(decay, X, y, P0, fill_value=-32768, **TIGHT), expected)
    with pytest.raises(InputError, match="fill_value = 40000"):
        fit(decay, X, y, P0, fill_value=40_000)


@pytest.mark.slow
def test_every_argument_is_decoded(tmp_path, expected):
    """Also the coordinates that ``predict`` gets later, and the curve_fit of SciPy's form."""
    x = stored(tmp_path / "x", np.arange(ROWS, dtype="i4"), (CHUNK,), fill_value=0)
    x.attrs["scale_factor"] = 4 / (ROWS - 1)
    sigma = stored(tmp_path / "s", np.full(ROWS, 50, "u1"), (CHUNK,), fill_value=0)
    sigma.attrs["scale_factor"] = 0.001
    y = np.nan_to_num(VALUES, nan=0.0)
    result = fit(decay, x, y, P0, sigma=sigma, mask=np.isnan(VALUES), **TIGHT)
    assert_same(result, expected)
    assert [line.split(":")[0] for line in result.decoded] == ["sigma", "x"]
    predicted = result.predict(x).compute(scheduler="sync")
    np.testing.assert_allclose(predicted, result.predict(X), rtol=1e-9)
    popt, _ = curve_fit(decay, x, VALUES, P0, nan_policy="omit")
    np.testing.assert_allclose(popt, expected.popt, rtol=1e-5)
    (also,) = fit_models([decay], x, VALUES, [P0], nan_policy="omit")
    np.testing.assert_allclose(also.popt, expected.popt, rtol=1e-5)


def test_decode_false_leaves_the_numbers(tmp_path):
    plain = np.round(1000 * np.nan_to_num(VALUES)).astype("i2")
    y = stored(tmp_path / "y", plain, (CHUNK,), fill_value=0)
    y.attrs.update(ATTRIBUTES)
    x = stored(tmp_path / "x", X, (CHUNK,))
    x.attrs["scale_factor"] = 10.0
    raw = fit(decay, x, y, [1000, 1, 0], decode=False)
    np.testing.assert_allclose(raw.popt, fit(decay, X, plain, [1000, 1, 0]).popt, rtol=1e-4)
    assert raw.decoded == ()
    predicted = raw.predict(x).compute(scheduler="sync")
    np.testing.assert_allclose(predicted, raw.predict(X), rtol=1e-9)


def test_a_checkpoint_of_another_packing_is_refused(y, tmp_path):
    options = dict(nan_policy="omit", checkpoint=tmp_path / "kept")
    fit(decay, X, y, P0, **options)
    y.attrs["scale_factor"] = 0.002
    with pytest.raises(InputError, match="decoded"):
        fit(decay, X, y, P0, resume=True, **options)


def test_advice_on_chunks_keeps_the_attributes(y):
    argument = observe(X, y).arguments["y"]
    calls = [argument.rechunked("y", (2000,)), argument.stored_again("y", (2000,))]
    for call in calls:
        assert call == (
            "da.from_zarr(y).rechunk((2000,)).to_zarr('y_rechunked.zarr'), then "
            "zarr.open_array('y_rechunked.zarr').attrs.update(y.attrs)"
        )


def test_xarray_that_was_told_not_to_decode_is_refused():
    raw = xr.DataArray(PACKED, dims="t", attrs=ATTRIBUTES)
    with pytest.raises(InputError, match="mask_and_scale=True"):
        fit(decay, X, raw, P0)
    assert fit(decay, X, raw, [1000, 1, 0], decode=False).n_points == ROWS
