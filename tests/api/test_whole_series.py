"""Fits of models that take whole series: against SciPy with the model called series by series."""

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.optimize import least_squares

from nlsq_dask import InputError, NotRowWiseError, fit, fit_models, plan

ROWS = 12
SHAPE = (5, 4)
T = np.linspace(0.1, 3.0, ROWS)
START = (1.0, 1.0, 0.0)
TRUTH = (2.0, 0.8, 0.5)
GRID = (5, 2, 3)  # chunks in series, and across them


def piled(t, height, lifetime, offset):
    """Each value depends on all earlier rows of its series."""
    return height * jnp.cumsum(jnp.exp(-t / lifetime)) / t.shape[0] + offset


def piled_in_numpy(t, height, lifetime, offset):
    """Of whole arrays, with the series along the first axis."""
    return height * np.cumsum(np.exp(-t / lifetime), axis=0) / len(t) + offset


def line(t, slope, offset):
    return slope * t + offset


def observed(t=T[:, None, None], missing=0.0):
    draw = np.random.default_rng(3)
    y = piled_in_numpy(t, *TRUTH) + 0.02 * draw.normal(size=(ROWS, *SHAPE))
    y[draw.random(y.shape) < missing] = np.nan
    return y


def by_scipy(y, t=T[:, None, None], sigma=1.0, **options):
    """Estimates, standard errors and cost."""
    rows = ~np.isnan(y)

    def residuals(params):
        return ((piled_in_numpy(t, *params) - y) / sigma)[rows]

    found = least_squares(residuals, START, **options, xtol=1e-13, ftol=1e-13, gtol=1e-13)
    variance = 2 * found.cost / (rows.sum() - 3)
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)) * variance)
    return found.x, errors, found.cost


def agrees(result, expected, close=1e-4):
    popt, errors, cost = expected
    assert result.success
    assert np.max(np.abs(result.popt - popt) / errors) < close
    assert result.cost == pytest.approx(cost, rel=1e-9)
    if not result.sandwich:
        np.testing.assert_allclose(result.perr, errors, rtol=1e-4)
    return True


Y = observed()
GAPS = observed(missing=0.1)
SIGMA = np.random.default_rng(1).uniform(0.5, 2.0, Y.shape)
CUBE = by_scipy(Y)

WAYS = {
    "standard": {"strategy": "standard", "collapse": False},
    "chunked": {"strategy": "chunked", "collapse": False},
    "collapsed": {},
    "streaming": {"collapse": False, "stat_tol": None},
}


def data_for(way, y):
    return da.from_array(y, chunks=GRID) if way == "streaming" else y


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_series_is_evaluated_whole(way):
    result = fit(piled, T, data_for(way, Y), START, dim=0, **WAYS[way])
    assert agrees(result, CUBE)
    assert result.n_points == Y.size
    model = np.broadcast_to(piled_in_numpy(T[:, None, None], *result.popt), Y.shape)
    np.testing.assert_allclose(np.asarray(result.predict()), model, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(result.residuals()), Y - model, atol=1e-12)


@pytest.mark.quick(3)
@pytest.mark.parametrize("way", WAYS)
def test_rows_that_are_left_out_keep_their_places(way):
    options = {"sigma": SIGMA, "nan_policy": "omit", **WAYS[way]}
    result = fit(piled, T, data_for(way, GAPS), START, dim=0, **options)
    assert agrees(result, by_scipy(GAPS, sigma=SIGMA))
    assert (result.n_points, result.n_skipped) == (
        np.count_nonzero(~np.isnan(GAPS)),
        np.count_nonzero(np.isnan(GAPS)),
    )
    left_out = np.isnan(np.asarray(result.residuals()))
    np.testing.assert_array_equal(left_out, np.isnan(GAPS))


def test_masks_leave_out_series_and_rows():
    series = np.zeros(SHAPE, bool)
    series[1, 2] = True
    rows = np.zeros(ROWS, bool)
    rows[[0, 7]] = True
    y = Y.copy()
    y[:, 1, 2] = y[rows] = np.nan
    expected = by_scipy(y)
    full = np.isnan(y)
    assert agrees(fit(piled, T, Y, START, dim=0, mask=full), expected)
    assert agrees(fit(piled, T, np.ma.array(Y, mask=full), START, dim=0, collapse=False), expected)
    one = by_scipy(np.where(series, np.nan, Y))
    assert agrees(fit(piled, T, Y, START, dim=0, mask=series, collapse=False), one)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "loss"), [("chunked", "huber"), ("streaming", "cauchy")])
def test_robust_losses(way, loss):
    y = GAPS.copy()
    y[3, 2, 1] += 4.0
    expected = by_scipy(y, sigma=0.02, loss=loss, f_scale=1.5)
    options = {"loss": loss, "f_scale": 1.5, "nan_policy": "omit", **WAYS[way]}
    result = fit(piled, T, data_for(way, y), START, dim=0, sigma=0.02, **options)
    assert agrees(result, expected, close=1e-3)


@pytest.mark.parametrize("axis", [1, -1])
def test_series_along_any_axis(axis):
    moved = np.moveaxis(Y, 0, axis)
    result = fit(piled, T, moved, START, dim=axis, collapse=False)
    assert agrees(result, CUBE)
    np.testing.assert_allclose(result.predict(T), piled_in_numpy(T, *result.popt), rtol=1e-12)
    other = np.linspace(0.5, 2.0, 7)
    expected = piled_in_numpy(other, *result.popt)
    np.testing.assert_allclose(result.predict(other), expected, rtol=1e-12)
    shape = [1, 1, 1]
    shape[axis] = -1
    several = other.reshape(shape) + np.moveaxis(np.zeros((1, 2, 1)), 0, axis)
    rows = np.moveaxis(result.predict(several), axis, 0)
    np.testing.assert_allclose(rows, np.broadcast_to(expected[:, None, None], rows.shape))
    with pytest.raises(InputError, match="does not tell the series apart"):
        result.predict(np.zeros((3, 7)))


def test_each_series_may_have_coordinates_of_its_own():
    t = T[:, None, None] * np.linspace(0.8, 1.3, 20).reshape(SHAPE)
    y = observed(t)
    expected = by_scipy(y, t)
    assert agrees(fit(piled, t, y, START, dim=0), expected)
    lazy = da.from_array(t, chunks=(4, 3, 4))
    assert agrees(fit(piled, lazy, data_for("streaming", y), START, dim=0, stat_tol=None), expected)


def test_series_along_several_axes():
    """The rows of a series run in the order in which its axes are named."""
    plane = Y.reshape(4, 3, *SHAPE)
    t = T.reshape(4, 3)
    assert agrees(fit(piled, t, plane, START, dim=(0, 1), collapse=False), CUBE)
    turned = plane.transpose(1, 2, 0, 3)
    result = fit(piled, t, turned, START, dim=(2, 0), collapse=False)
    assert agrees(result, CUBE)
    model = piled_in_numpy(T, *result.popt).reshape(4, 3).T[:, None, :, None]
    np.testing.assert_allclose(result.predict(), np.broadcast_to(model, turned.shape))


def test_labelled_series():
    y = xr.DataArray(Y, {"t": T}, ("t", "row", "column"), "signal").transpose("row", "t", "column")
    result = fit(piled, "t", y, START, dim="t", collapse=False)
    assert agrees(result, CUBE)
    assert result.predict().dims == result.residuals().dims == y.dims
    at = xr.DataArray(np.ones((2, 1)) * T[:5], dims=("other", "t"))
    expected = piled_in_numpy(T[:5], *result.popt)
    np.testing.assert_allclose(result.predict(at)[1], expected, rtol=1e-12)
    with pytest.raises(InputError, match="no dimension of y"):
        fit(piled, "t", y, START, dim="time")


@pytest.mark.slow
def test_fixed_ties_bounds_and_a_jacobian():
    def jacobian(t, height, lifetime, offset):
        first = jnp.cumsum(jnp.exp(-t / lifetime)) / t.shape[0]
        slope = jnp.cumsum(t / lifetime**2 * jnp.exp(-t / lifetime)) / t.shape[0]
        return jnp.stack([first, height * slope, jnp.ones_like(t)], axis=1)

    plain = fit(piled, T, Y, START, dim=0, fixed={"offset": 0.4}, bounds={"lifetime": (0.9, 2)})
    given = fit(
        piled,
        T,
        Y,
        START,
        dim=0,
        fixed={"offset": 0.4},
        bounds={"lifetime": (0.9, 2)},
        jac=jacobian,
        collapse=False,
    )
    np.testing.assert_allclose(given.popt, plain.popt, rtol=1e-7)
    np.testing.assert_allclose(given.perr, plain.perr, rtol=1e-5)


def test_a_model_of_single_rows_is_fitted_as_without_dim():
    named = fit(line, T, Y, (1.0, 0.0), dim=0)
    placed = fit(line, T[:, None, None], Y, (1.0, 0.0))
    np.testing.assert_array_equal(named.popt, placed.popt)


@pytest.mark.slow
def test_several_models_share_the_readings():
    lazy = data_for("streaming", Y)
    options = {"dim": 0, "collapse": False}
    compared = fit_models([piled, line], T, lazy, {"piled": START, "line": (1, 0)}, **options)
    for name, model in (("piled", piled), ("line", line)):
        alone = fit(model, T, lazy, START[: len(compared[name].popt)], **options)
        np.testing.assert_allclose(compared[name].popt, alone.popt, rtol=1e-12)


def test_the_bits_do_not_depend_on_the_scheduler():
    lazy, options = data_for("streaming", GAPS), {"dim": 0, "nan_policy": "omit"}
    options |= {"collapse": False}
    with dask.config.set(scheduler="synchronous"):
        one = fit(piled, T, lazy, START, **options)
    several = fit(piled, T, lazy, START, **options)
    np.testing.assert_array_equal(one.popt, several.popt)
    other = fit(piled, T, da.from_array(GAPS, chunks=(12, 5, 1)), START, **options)
    np.testing.assert_allclose(other.popt, one.popt, rtol=1e-9)


@pytest.mark.cluster
def test_the_bits_do_not_depend_on_the_workers(client):
    lazy = data_for("streaming", Y)
    here = fit(piled, T, lazy, START, dim=0, collapse=False)
    there = fit(piled, T, lazy, START, dim=0, collapse=False, client=client)
    np.testing.assert_array_equal(here.popt, there.popt)
    np.testing.assert_array_equal(here.pcov, there.pcov)


@pytest.mark.slow
def test_a_guess_sees_one_series():
    class Guessing:
        seen: tuple[int, ...] = ()

        def __call__(self, t, height, lifetime, offset):
            return piled(t, height, lifetime, offset)

        def guess(self, t, y):
            type(self).seen = (*type(self).seen, len(t), len(y))
            return START

    model = Guessing()
    for y in (GAPS, data_for("streaming", GAPS)):
        result = fit(model, T, y, dim=0, nan_policy="omit", collapse=False, stat_tol=None)
        assert agrees(result, by_scipy(GAPS))
    assert set(Guessing.seen) == {ROWS}  # some series have no gap


def test_a_checkpoint_knows_the_series(tmp_path):
    lazy, options = data_for("streaming", Y), {"collapse": False, "checkpoint": tmp_path}
    first = fit(piled, T, lazy, START, dim=0, **options)
    again = fit(piled, T, lazy, START, dim=0, resume=True, **options)
    np.testing.assert_array_equal(first.popt, again.popt)


def test_without_dim_the_message_names_it():
    for y in (Y, data_for("streaming", Y)):
        with pytest.raises(NotRowWiseError, match="dim="):
            fit(piled, T[:, None, None], y, START)


def test_x_that_does_not_vary_along_the_series_is_refused():
    y = observed().transpose(1, 2, 0)
    with pytest.raises(InputError, match="pass dim=2 to fit along axis 2"):
        fit(piled, T, y, START, dim=0)


def test_x_must_be_finite_in_whole_series():
    t = np.where(T[4] == T, np.nan, T)
    with pytest.raises(InputError, match="check x: the model takes whole series"):
        fit(piled, t, Y, START, dim=0, nan_policy="omit")


def test_a_prediction_does_not_run_across_series():
    """A model that was fitted to one series is not evaluated across the ends of several."""
    result = fit(piled, T, Y[:, 0, 0], START)
    with pytest.raises(NotRowWiseError, match="dim="):
        result.predict(np.stack([T, T]))


def test_blocks_of_whole_series_that_do_not_fit_are_refused():
    frames = da.zeros((100, 4096, 4096), chunks=(1, 4096, 4096))
    with pytest.raises(InputError, match="whole series") as raised:
        fit(piled, np.arange(100.0), frames, START, dim=0, memory_limit_gb=2)
    assert "rechunk((100, " in str(raised.value)


def test_the_plan_counts_whole_series():
    long = da.zeros((1_000_000, 64), chunks=(100_000, 8))
    found = plan(piled, np.arange(1e6), long, START, dim=0, time=False, collapse=False)
    assert found.blocks == 8
    assert found.memory_bytes > 3 * 8 * 1_000_000 * 8  # a thread's chunks
    short = np.zeros((10, 1000))
    of_rows = plan(line, np.arange(10.0)[:, None], short, (1, 0), time=False)
    of_series = plan(piled, np.arange(10.0), short, START, dim=0, time=False, collapse=False)
    assert of_rows.blocks == of_series.blocks == 1
