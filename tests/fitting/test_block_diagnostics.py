"""The table of the blocks of a fit, against sums over dense rows."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import InputError, fit
from nlsq_dask.core.influence import steps_without
from nlsq_dask.fitting import block_sums

FRAMES, PIXELS = 40, 25
T = np.linspace(0, 4, FRAMES)[:, None]
RNG = np.random.default_rng(5)
NOISE = 0.05 * RNG.standard_normal((FRAMES, PIXELS))
SIGMA = RNG.uniform(0.03, 0.08, (FRAMES, PIXELS))
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + NOISE
P0 = {"a": 1, "b": 1, "c": 0}


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def fitted(y=Y, chunks=(1, PIXELS), **options):
    arguments = {"p0": P0, "diagnostics": True, "pilot": False} | options
    x = np.broadcast_to(T, Y.shape)
    return fit(decay, x, da.from_array(y, chunks=chunks), **arguments)


def jacobian(params, sigma=1.0):
    """Rows of the weighted Jacobian and the weighted residuals, by frame."""
    a, b, _ = params
    decayed = np.exp(-b * T) + np.zeros((1, PIXELS))
    columns = [decayed, -a * T * decayed, np.ones_like(decayed)]
    return np.stack(columns, axis=-1) / np.asarray(sigma * np.ones_like(Y))[..., None]


def residuals(params, y=Y, sigma=1.0):
    a, b, c = params
    return (a * np.exp(-b * T) + c - y) / sigma


def estimate(params, jac, errors):
    """One step of Gauss-Newton on dense rows."""
    return params - np.linalg.lstsq(jac.reshape(-1, 3), errors.ravel(), rcond=None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [None, SIGMA])
def test_the_table_is_that_of_dense_rows(sigma):
    result = fitted(sigma=sigma)
    table = result.block_diagnostics()
    weights = 1.0 if sigma is None else sigma
    jac, errors = jacobian(result.popt, weights), residuals(result.popt, sigma=weights)
    whole = estimate(result.popt, jac, errors)
    assert len(table) == FRAMES
    for frame in range(FRAMES):
        others = np.arange(FRAMES) != frame
        moved = estimate(result.popt, jac[others], errors[others]) - whole
        np.testing.assert_allclose(table.shift[frame], moved / result.perr, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table.chi2_per_row, (errors**2).mean(axis=1), rtol=1e-12)
    plain = np.abs(residuals(result.popt))
    np.testing.assert_allclose(table.mean_abs_residual, plain.mean(axis=1), rtol=1e-12)
    assert table.n_points.tolist() == [PIXELS] * FRAMES
    assert table.n_skipped.tolist() == [0] * FRAMES
    assert table.rows(3) == f"[3:4, 0:{PIXELS}]"


def test_one_bad_frame_is_found():
    y = Y.copy()
    y[17] += 1.0
    mask = np.zeros_like(y, bool)
    mask[3, :5] = True
    table = fitted(y, mask=mask, method="trf").block_diagnostics()
    assert table.order[0] == 17
    assert np.argmax(table.chi2_per_row) == np.argmax(table.mean_abs_residual) == 17
    first = str(table).splitlines()[2]
    assert first.startswith(f"[17:18, 0:{PIXELS}]")
    assert str(table).startswith("40 blocks, the 10 that move the answer most")
    assert table.n_skipped[3] == 5
    assert "<table>" in table._repr_html_()


def test_with_checkpoints_a_block_is_a_group_of_chunks(tmp_path):
    result = fitted(diagnostics=False, checkpoint=tmp_path)
    plain = fitted(diagnostics=False)
    assert result.popt.tobytes() == plain.popt.tobytes()
    table = result.block_diagnostics()
    assert len(table) == 16
    assert table.n_chunks.sum() == FRAMES
    assert table.n_points.sum() == Y.size
    assert (table.stops[:-1] == table.starts[1:])[:, 0].all()
    with pytest.raises(InputError, match=r"fit with diagnostics=True, or with checkpoint"):
        plain.block_diagnostics()
    finished = fitted(diagnostics=False, checkpoint=tmp_path, resume=True)
    with pytest.raises(InputError, match="makes no pass"):
        finished.block_diagnostics()


@pytest.mark.slow
def test_fixed_parameters_and_parameters_at_a_bound_stay():
    table = fitted(fixed={"b": 1.3}, bounds={"c": (0.6, 2)}, p0=[1, 1, 1]).block_diagnostics()
    assert (table.shift[:, 1:] == 0.0).all()
    assert (table.shift[:, 0] != 0.0).all()


@pytest.mark.slow
def test_no_parameter_is_free_where_all_are_at_bounds(tmp_path):
    """The only parameter that is not fixed ends at its bound."""
    fixed, bounds = {"b": 1.3, "c": 0.5}, {"a": (0, 2)}
    result = fitted(fixed=fixed, bounds=bounds, p0=[1, 1.3, 0.5], checkpoint=tmp_path)
    assert result.active_mask[0] == 1
    assert (result.block_diagnostics().shift == 0.0).all()


def test_a_block_that_alone_determines_a_parameter():
    y, x = np.ones(90), np.zeros(90)
    x[:30] = np.linspace(0, 1, 30)
    y[:30] += x[:30] + 0.01 * NOISE[:2].ravel()[:30]
    y[30:] += 0.01 * NOISE[2:5].ravel()[:60]
    result = fit(
        lambda x, a, b: a + b * x, x, da.from_array(y, chunks=30), p0=[1, 0], diagnostics=True
    )
    shift = result.block_diagnostics().shift
    assert np.isnan(shift[0]).all()
    assert np.isfinite(shift[1:]).all()


def test_the_table_for_xarray():
    dataset = fitted().block_diagnostics().to_dataset()
    assert dataset.sizes == {"block": FRAMES, "axis": 2, "param": 3}
    frame = dataset["shift"].to_pandas()
    assert list(frame.columns) == ["a", "b", "c"]


def test_data_in_memory_have_no_blocks():
    result = fit(decay, T.ravel(), Y[:, 0], p0=P0, diagnostics=True)
    with pytest.raises(InputError, match="strategy = 'standard'"):
        result.block_diagnostics()


def test_sums_that_take_too_much_memory_are_not_kept(monkeypatch):
    monkeypatch.setattr(block_sums, "MOST_SUMS_BYTES", FRAMES * 9 * 8 - 1)
    with pytest.raises(InputError, match="needs the sums"):
        fitted().block_diagnostics()


def test_steps_of_one_block_alone():
    assert np.isnan(steps_without(np.eye(2)[None], np.ones((1, 2)))).all()
