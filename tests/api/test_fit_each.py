"""One fit for each series: against SciPy series by series, xarray's curvefit, and closed forms."""

import html
import pickle
import warnings

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import (
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    InputError,
    InputTypeError,
    Status,
    curve_fit,
    fit,
    fit_each,
    models,
)
from nlsq_dask.fitting.series_parameters import series_parameters
from nlsq_dask.io.series import SeriesAxes
from nlsq_dask.kernels.lanes import LaneKernel
from tests.support.series import (
    NAMES,
    ROWS,
    START,
    T,
    by_scipy,
    cube,
    decay,
    decay_in_numpy,
)

CUBE = cube()
FLAT = CUBE.y.reshape(ROWS, -1)
TURNED = CUBE.y.transpose(1, 2, 0)
LABELLED = xr.DataArray(
    CUBE.y,
    {"t": ("t", T, {"units": "s"}), "row": np.arange(5), "column": np.arange(7)},
    ("t", "row", "column"),
    "signal",
)


@pytest.fixture(scope="module")
def maps():
    return fit_each(decay, T, CUBE.y, START, covariance=True)


def same(a, b, order=slice(None)):
    """Whether all maps have the same bits, those of `a` in another order of the series."""
    for name, array in a.fields.items():
        leading = array.shape[: array.ndim - len(a.shape)]
        expected, found = (f.reshape(*leading, -1) for f in (array, b.fields[name]))
        np.testing.assert_array_equal(expected[..., order], found)
    return True


@pytest.mark.slow
def test_each_series_has_the_answer_of_scipy(maps):
    popt, perr = by_scipy(FLAT)
    found, errors = maps.popt.array.reshape(3, -1), maps.perr.array.reshape(3, -1)
    assert maps.success.all()
    assert np.abs((found - popt) / perr).max() < 1e-3
    np.testing.assert_allclose(errors, perr, rtol=1e-3)
    np.testing.assert_array_equal(maps.n_points, (~np.isnan(CUBE.y)).sum(axis=0))
    residuals = FLAT - decay_in_numpy(T[:, None], *popt)
    np.testing.assert_allclose(maps.chi2.ravel(), np.nansum(residuals**2, axis=0), rtol=1e-9)
    np.testing.assert_allclose(maps.reduced_chi2, maps.chi2 / (maps.n_points - 3), rtol=1e-14)
    assert (maps.distance_to_optimum_sigma < 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("start", [(-1.0, 1.0, 0.0), (-2.0, 0.5, 1.0), (1.0, 0.05, 0.0)])
def test_starts_with_a_wrong_sign_or_size_lead_to_the_optimum(start):
    """With one search, one series in nine ended where the lifetime has no effect."""
    y = cube((20, 30), missing=0.0).y
    expected = fit_each(decay, T, y, START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = fit_each(decay, T, y, start)
    apart = np.abs(found.popt.array - expected.popt.array)
    right = found.success & (apart < 1e-3 * expected.perr.array).all(axis=0)
    assert right.sum() >= 0.995 * right.size


@pytest.mark.parametrize("is_fixed", [False, True])
def test_a_start_of_little_effect_leads_to_the_optimum(is_fixed):
    """Of an amplitude near zero, the lifetimes of three series in five ran off."""
    data = cube((20, 5), missing=0.0)
    options = {"fixed": {"offset": data.params[2]}} if is_fixed else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = fit_each(decay, T, data.y, START, **options)
        found = fit_each(decay, T, data.y, [0.1, 40.0, 0.2], **options)
    apart = np.abs(found.popt.array - expected.popt.array)
    right = found.success & (apart <= 1e-3 * expected.perr.array).all(axis=0)
    assert right.sum() >= 0.97 * right.size
    assert (right | ~found.success).all()


def test_later_searches_leave_the_series_and_the_limit_alone():
    """Of series without an answer; alone each has the bits that it has among others."""
    y = cube((20, 30), missing=0.0).y.reshape(ROWS, -1)[:, :200]
    with pytest.warns(ConvergenceWarning):
        maps = fit_each(decay, T, y, [0.1, 20.0, 0.0], max_nfev=70)
    assert maps.nfev.max() <= 2 * 70  # a search in a basis has a limit of its own
    later = np.flatnonzero((maps.nfev > 45) & maps.success)
    failed = np.flatnonzero(maps.status == Status.UNDETERMINED)
    for number in (later[-1], failed[-1]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            alone = fit_each(decay, T, y[:, [number]], [0.1, 20.0, 0.0], max_nfev=70)
        for name, values in alone.fields.items():
            np.testing.assert_array_equal(values[..., 0], maps.fields[name][..., number])


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [False, True])
def test_sigma_of_a_series_scales_chi2_and_errors_as_in_scipy(absolute):
    sigma = np.linspace(0.03, 0.07, 35).reshape(5, 7)
    found = fit_each(decay, T, CUBE.y, START, sigma=sigma, absolute_sigma=absolute)
    popt, perr = by_scipy(FLAT, sigma.reshape(1, -1), absolute)
    assert np.abs((found.popt.array.reshape(3, -1) - popt) / perr).max() < 1e-3
    np.testing.assert_allclose(found.perr.array.reshape(3, -1), perr, rtol=1e-3)


@pytest.mark.slow
def test_sigma_along_the_rows_weighs_as_in_scipy():
    sigma = np.linspace(0.02, 0.2, ROWS)
    popt, perr = by_scipy(FLAT, sigma[:, None], True)
    found = fit_each(decay, T, FLAT, START, sigma=sigma, absolute_sigma=True)
    assert np.abs((found.popt.array - popt) / perr).max() < 1e-3
    np.testing.assert_allclose(found.perr.array, perr, rtol=1e-3)
    residuals = (FLAT - decay_in_numpy(T[:, None], *popt)) / sigma[:, None]
    np.testing.assert_allclose(found.chi2, np.nansum(residuals**2, axis=0), rtol=1e-6)


def test_binding_bounds_are_no_worse_than_scipys():
    bounds = {"lifetime": (0.8, 1.5), "offset": (-0.1, None)}
    found = fit_each(decay, T, FLAT, START, bounds=bounds)
    popt, _ = by_scipy(FLAT, bounds=([-np.inf, 0.8, -0.1], [np.inf, 1.5, np.inf]))
    theirs = np.nansum((FLAT - decay_in_numpy(T[:, None], *popt)) ** 2, axis=0)
    assert found.success.all()
    assert (found.chi2 <= theirs * (1 + 1e-9)).all()
    on = (found["lifetime"] <= 0.8) | (found["lifetime"] >= 1.5)
    np.testing.assert_array_equal(found.at_bound & 2 > 0, on)
    assert on.any()


def test_to_curvefit_gives_the_variables_of_xarray(maps):
    labelled = fit_each(decay, LABELLED["t"], LABELLED, START, covariance=True)
    theirs = LABELLED.curvefit("t", decay_in_numpy, p0=dict(zip(NAMES, START, strict=True)))
    ours = labelled.to_curvefit()
    assert set(ours) == set(theirs)
    for name in theirs:
        assert ours[name].dims == theirs[name].dims
        xr.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=1e-7)
    assert same(maps, labelled)


def test_bits_do_not_depend_on_the_order_of_the_series(maps):
    order = np.random.default_rng(1).permutation(35)
    assert same(maps, fit_each(decay, T, FLAT[:, order], START, covariance=True), order)
    turned = fit_each(decay, T, np.moveaxis(CUBE.y, 0, -1), START, dim=-1, covariance=True)
    assert same(maps, turned)


@pytest.mark.slow
@settings(max_examples=3)
@given(st.integers(9, ROWS), st.integers(1, 5), st.integers(3, 7))
def test_bits_do_not_depend_on_the_chunks(maps, rows, height, width):
    lazy = fit_each(
        decay, T, da.from_array(CUBE.y, chunks=(rows, height, width)), START, covariance=True
    )
    assert lazy.lazy
    assert isinstance(lazy["lifetime"], da.Array)
    assert same(maps, lazy.compute(scheduler="synchronous"))


@pytest.mark.slow
def test_bits_do_not_depend_on_the_neighbours():
    # More series than one call takes, some of them slow: these are gathered from all tiles.
    slow = np.tile(FLAT, (1, 140))
    slow[:, ::7] = np.random.default_rng(3).normal(size=(ROWS, slow[:, ::7].shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        together = fit_each(decay, T, slow, START)
        apart = fit_each(decay, T, slow[:, 1900:1935], START)
    assert slow.shape[1] > 4096
    for name, array in together.fields.items():
        np.testing.assert_array_equal(array[..., 1900:1935], apart.fields[name])


@pytest.mark.slow
def test_maps_of_p0_bounds_fixed_and_sigma_are_those_of_each_series():
    low = np.linspace(0.1, 0.4, 5)[:, None]
    p0 = {
        "amplitude": CUBE.params[0],
        "lifetime": da.from_array(CUBE.params[1], chunks=(2, 3)),
        "offset": 0.0,
    }
    fixed = {"offset": np.linspace(-0.2, 0.2, 7)}
    sigma = np.linspace(0.03, 0.07, 35).reshape(5, 7)
    y = da.from_array(CUBE.y, chunks=(ROWS, 3, 4))
    found = fit_each(
        decay, T, y, p0, bounds={"lifetime": (low, 4.0)}, fixed=fixed, sigma=sigma
    ).compute()
    for i, j in ((0, 0), (2, 5), (4, 6)):
        alone = fit_each(
            decay,
            T,
            CUBE.y[:, i, j],
            [CUBE.params[0, i, j], CUBE.params[1, i, j], 0.0],
            bounds={"lifetime": (low[i, 0], 4.0)},
            fixed={"offset": fixed["offset"][j]},
            sigma=sigma[i, j],
        )
        for name in found.fields:
            np.testing.assert_array_equal(found.fields[name][..., i, j], alone.fields[name])
    np.testing.assert_array_equal(found["offset"][3], fixed["offset"])
    assert (found.perr["offset"] == 0).all()


def test_maps_with_labels_are_paired_by_their_names():
    start = xr.DataArray(CUBE.params[1].T, dims=("column", "row"))
    found = fit_each(decay, "t", LABELLED, {"amplitude": 1, "lifetime": start, "offset": 0})
    plain = fit_each(decay, T, CUBE.y, {"amplitude": 1, "lifetime": CUBE.params[1], "offset": 0})
    assert same(plain, found)
    assert found["lifetime"].dims == ("row", "column")
    assert list(found.status.coords) == ["row", "column"]
    assert found["lifetime"].name == "lifetime"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("label", [lambda v: xr.DataArray(v, dims="t"), pd.Series])
def test_labels_beside_y_without_labels_run_along_the_series(label, axis):
    """Such an array was paired with the last axis of y."""
    y, sigma = np.moveaxis(CUBE.y[..., :5], 0, axis), np.linspace(0.05, 0.1, ROWS)
    expected = fit_each(decay, T, y, START, dim=axis, sigma=sigma)
    found = fit_each(decay, label(T), y, START, dim=axis, sigma=label(sigma))
    assert same(expected, found)


def test_labels_beside_y_without_labels_that_leave_a_choice_are_refused():
    sigma = xr.DataArray(T[:5] + 1, dims="t")
    with pytest.raises(InputError, match=r"sigma has shape \(5,\), which is both that of a series"):
        fit_each(decay, T[:5], CUBE.y[:5, :, 0], START, sigma=sigma)


def test_labels_of_a_map_beside_y_without_labels_are_those_of_the_map():
    y, noise = np.moveaxis(CUBE.y[:, :, :5], 0, 1), 0.05 + np.arange(25.0).reshape(5, 5)
    expected = fit_each(decay, T, y, START, dim=1, sigma=noise)
    found = fit_each(decay, T, y, START, dim=1, sigma=xr.DataArray(noise, dims=("row", "column")))
    assert same(expected, found)
    start = xr.DataArray(np.ones((4, 5)), dims=("row", "column"))
    with pytest.raises(InputError, match=r"shape \(4, 5\) but the map has shape \(5, 5\)"):
        fit_each(decay, T, y, [1.0, start, 0.0], dim=1)


def test_a_fixed_map_reaches_the_parameters_tied_to_it():
    axes = SeriesAxes((ROWS, 5, 7), (0,))
    fixed = {"offset": CUBE.params[2], "lifetime": 2.0}
    ties = {"amplitude": {"offset": -3.0, "lifetime": 0.5}}
    with pytest.raises(InputError, match="nothing is left to fit"):
        series_parameters(decay, axes, CUBE.y, p0=START, bounds=None, fixed=fixed, ties=ties)
    del fixed["lifetime"]
    found = series_parameters(decay, axes, CUBE.y, p0=START, bounds=None, fixed=fixed, ties=ties)
    np.testing.assert_array_equal(found.carried[:, 2], [-3.0, 0.0, 1.0])
    np.testing.assert_array_equal(found.reduction.matrix, [[0.5], [1.0], [0.0]])
    np.testing.assert_array_equal(found.maps["fixed", 2], CUBE.params[2][None])


@pytest.mark.slow
def test_starts_without_p0_are_guessed_for_each_series():
    model = models.ExponentialDecay() + models.Constant()
    found = fit_each(model, T, CUBE.y)
    popt, perr = by_scipy(FLAT, start=CUBE.params.reshape(3, -1))
    assert np.abs((found.popt.array.reshape(3, -1) - popt) / perr).max() < 1e-3


SERIES = {
    "constant": (np.full(ROWS, 5.0), Status.UNDETERMINED),
    "zero": (np.zeros(ROWS), Status.UNDETERMINED),
    "straight": (T.copy(), Status.UNDETERMINED),
    "noise-free": (2 * np.exp(-T / 1.3) + 0.5, Status.ROUNDING),
    "missing": (np.full(ROWS, np.nan), Status.TOO_FEW_ROWS),
    "two rows": (np.r_[1.0, 0.5, np.full(ROWS - 2, np.nan)], Status.TOO_FEW_ROWS),
    "infinite": (np.r_[np.inf, FLAT[1:, 0]], Status.BAD_INPUT),
    "tiny": (1e-150 * FLAT[:, 0], Status.STATISTICAL),
    "good": (FLAT[:, 0], Status.STATISTICAL),
}


@pytest.fixture(scope="module")
def adversaries():
    y = np.stack([values for values, _ in SERIES.values()], axis=1)
    with pytest.warns(ConvergenceWarning, match="6 of 9 .* answer: 3 converged") as seen:
        found = fit_each(decay, T, y, START)
    assert len(seen) == 1
    return found


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", SERIES)
def test_a_series_that_cannot_be_fitted_has_a_status_and_no_error_bar(adversaries, name):
    k = list(SERIES).index(name)
    status = SERIES[name][1]
    assert Status(int(adversaries.status[k])) is status
    errors = adversaries.perr.array[:, k]
    assert np.isfinite(errors).all() == status.success
    assert np.isnan(errors).all() == (not status.success)


def test_at_agrees_on_the_status_of_an_exact_series(adversaries):
    assert adversaries.at(list(SERIES).index("noise-free")).success


def test_at_agrees_on_the_status_of_a_constant_series(adversaries):
    """Its amplitude is a rounding error, and the residuals say nothing of its lifetime."""
    with pytest.warns(CovarianceWarning):
        result = adversaries.at(list(SERIES).index("constant"))
    assert result.status is Status.UNDETERMINED
    assert "lifetime" in result.undetermined


@pytest.mark.filterwarnings("ignore::nlsq_dask.FitWarning")  # of fits that the map contradicts
@pytest.mark.parametrize("name", [n for n in SERIES if n not in ("good", "noise-free")])
def test_at_has_the_status_of_the_map_where_fit_refuses_a_series(adversaries, name):
    k = list(SERIES).index(name)
    result = adversaries.at(k)
    assert result.status is SERIES[name][1]
    assert result.n_points == adversaries.n_points[k]
    np.testing.assert_array_equal(
        np.isfinite(result.perr), np.isfinite(adversaries.perr.array[:, k])
    )
    for report in (str(result), result.summary(), result._repr_html_()):
        assert result.message.split(":")[0] in html.unescape(report)
    assert set(result.to_dict()) == set(adversaries.at(list(SERIES).index("good")).to_dict())


@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
def test_at_has_a_status_in_units_without_squares():
    """1e-155 has no square in float64, and 1e150 none of a sum."""
    powers = np.array([-160, -151, 150, 160])
    y = FLAT[:, [0]] * 10.0**powers
    start = {"amplitude": 10.0**powers, "lifetime": 1.0, "offset": np.zeros(len(powers))}
    found = fit_each(decay, T, y, start)
    one = fit_each(decay, T, FLAT[:, [0]], START, covariance=True)
    for k, power in enumerate(powers):
        result = found.at(k)
        assert result.status == found.status[k]
        if not result.success:
            continue
        scale = np.array([10.0**power, 1.0, 10.0**power])
        np.testing.assert_allclose(result.popt, scale * one.popt.array[:, 0], rtol=1e-4)
        correlation = result.pcov / np.outer(result.perr, result.perr)
        expected = one.pcov[..., 0] / np.outer(one.perr.array[:, 0], one.perr.array[:, 0])
        np.testing.assert_allclose(correlation, expected, rtol=1e-3)
    assert found.status[1] > 0


def test_counts_and_the_error_of_a_failed_map(adversaries):
    counts = adversaries.counts()
    assert counts[Status.UNDETERMINED] == 3
    assert counts[Status.TOO_FEW_ROWS] == 2
    with pytest.raises(ConvergenceError, match="3 with undetermined parameters"):
        adversaries.raise_for_status()
    assert "3 converged" in str(adversaries)


def test_scale_of_a_series_changes_nothing_but_its_unit(adversaries):
    tiny, good = list(SERIES).index("tiny"), list(SERIES).index("good")
    scales = np.array([1.0, 2.0**60])
    alike = fit_each(decay, T, FLAT[:, :1] * scales, [scales, 1, 0]).popt
    np.testing.assert_allclose(alike["lifetime"][0], alike["lifetime"][1], rtol=1e-12)
    np.testing.assert_allclose(
        adversaries["lifetime"][tiny], adversaries["lifetime"][good], atol=1e-2
    )


def test_unusable_numbers_of_one_series_leave_the_others_alone(maps):
    low, sigma, start = np.full((5, 7), 0.1), np.full((5, 7), 1.0), np.full((5, 7), 1.0)
    low[1, 2], sigma[3, 4], start[0, 6] = 9.0, -1.0, np.inf
    bounds = {"lifetime": (low, np.inf)}
    with pytest.warns(ConvergenceWarning, match="3 with infinite values or unusable"):
        found = fit_each(decay, T, CUBE.y, [1.0, start, 0.0], bounds=bounds, sigma=sigma)
    bad = found.status == Status.BAD_INPUT
    assert set(zip(*np.nonzero(bad), strict=True)) == {(1, 2), (3, 4), (0, 6)}
    assert np.abs(found["lifetime"] - maps["lifetime"])[~bad].max() < 1e-4


def test_evaluations_that_run_out_keep_the_estimates_without_errors():
    with pytest.warns(ConvergenceWarning, match="35 out of evaluations"):
        found = fit_each(decay, T, CUBE.y, START, max_nfev=2)
    assert (found.status == Status.MAX_EVALUATIONS).all()
    assert np.isfinite(found.popt.array).all()
    assert np.isnan(found.perr.array).all()
    assert (found.nfev == 2).all()


def test_at_is_an_ordinary_result_with_the_answer_of_the_map(maps):
    result = maps.at(2, -3)
    assert result.status is Status(int(maps.status[2, 4]))
    assert result.n_points == maps.n_points[2, 4]
    errors = maps.perr.array[:, 2, 4]
    assert np.abs((result.popt - maps.popt.array[:, 2, 4]) / errors).max() < 2e-4
    np.testing.assert_allclose(result.pcov, maps.pcov[..., 2, 4], rtol=1e-3)
    with pytest.raises(InputError, match="no series of the map"):
        maps.at(2)


def test_at_has_the_status_of_the_map():
    """Other criteria are met first by a fit that starts at the answer, and at bounds."""
    y = cube((3, 8)).y
    limits = {"bounds": {"lifetime": (0.9, 1.6), "amplitude": (0.0, 1.2)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kinds = [fit_each(decay, T, y, START, **options) for options in (limits, {"max_nfev": 4})]
    for found in kinds:
        for index in np.ndindex(found.shape):
            result = found.at(*index)
            assert result.status == found.status[index]
            errors, own = found.perr.array[:, *index], found.popt.array[:, *index]
            assert (np.isnan(errors) == np.isnan(result.perr)).all()
            assert (np.abs(result.popt - own) <= 2e-4 * np.nan_to_num(errors)).all()


def test_at_fits_the_series_of_a_block_of_lazy_maps_once():
    """Each field computed the block by itself."""
    read = []

    def noted(block):
        read.append(block.shape)
        return block

    y = da.from_array(CUBE.y, chunks=(ROWS, 5, 4)).map_blocks(noted, dtype=float, meta=CUBE.y)
    lazy = fit_each(decay, T, y, START)
    read.clear()
    assert lazy.at(2, 5).success
    assert len(read) == 2, "once for the answers of the block, and once for the rows of the series"


def test_at_by_names_says_which_names_there_are():
    maps = fit_each(decay, "t", LABELLED, START)
    assert maps.at(column=4, row=2).popt == pytest.approx(maps.at(2, 4).popt)
    with pytest.raises(InputError, match=r"at\(line=2, column=4\) .* each axis, row and column"):
        maps.at(line=2, column=4)


@pytest.mark.parametrize("status", [Status.BAD_INPUT, None])
def test_at_keeps_the_times_units_and_labels_of_all_data(status):
    """The result of a series is that of a fit of the labelled series."""
    times = np.datetime64("2020-01-01", "s") + (3600 * T).astype("m8[s]")
    y = LABELLED.assign_coords(t=("t", times, {"long_name": "elapsed time"})).isel(column=[3])
    y = y.assign_attrs(units="W")
    if status is Status.BAD_INPUT:
        y = y.copy(data=np.where(np.arange(ROWS)[:, None, None] == 2, np.inf, y.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        maps = fit_each(decay, "t", y, START, time_unit="h")
    result = maps.at(1, 0)
    axis = {"unit": "h", "origin": "2020-01-01T00:00:00", "calendar": None}
    assert [vars_of(found) for found in result.times] == [axis]
    assert result.data_units == {"y": "W", "x": "h since 2020-01-01T00:00:00"}
    if status is not None:
        assert result.status == status
        return
    assert "x in h since 2020-01-01" in str(result)
    alone = fit(decay, "t", y[:, 1, 0], START, time_unit="h", nan_policy="omit")
    np.testing.assert_allclose(result.predict(times[3:5]), alone.predict(times[3:5]), rtol=1e-4)
    xr.testing.assert_allclose(result.predict(), alone.predict(), rtol=1e-4)
    assert result.residuals().attrs == alone.residuals().attrs


def test_at_takes_dimensions_without_coordinates():
    result = fit_each(decay, "t", LABELLED.drop_vars(["row", "column"]), START).at(0, 1)
    assert result.predict().dims == ("t",)


def vars_of(axis):
    return {name: getattr(axis, name) for name in ("unit", "origin", "calendar")}


def test_pickled_maps_have_all_maps_and_no_model(maps):
    for before in (maps, fit_each(decay, LABELLED["t"], LABELLED.chunk(row=2), START)):
        after = pickle.loads(pickle.dumps(before))
        assert same(after.compute(), before.compute())
        assert str(after) == str(before)
        for call in (after.predict, after.residuals, lambda after=after: after.at(0, 0)):
            with pytest.raises(InputError, match="not kept with pickled maps"):
                call()


def test_the_report_for_notebooks_has_the_numbers_of_the_text(maps):
    text, page = str(maps), maps._repr_html_()
    for word in text.split():
        assert html.escape(word) in page
    lazy = fit_each(decay, LABELLED["t"], LABELLED.chunk(row=2), START)
    assert "not computed yet" in lazy._repr_html_()


def test_columns_of_a_table_are_series(maps):
    table = pd.DataFrame(FLAT, index=pd.Index(T, name="t"))
    found = fit_each(decay, table.index, table, START)
    np.testing.assert_array_equal(found["lifetime"], maps["lifetime"].ravel())
    shuffled = pd.Series(T, table.index).sample(frac=1.0, random_state=0)  # paired by the index
    for own in table, table.astype("Float64"):
        again = fit_each(decay, shuffled, own, START)
        np.testing.assert_array_equal(again.popt.array, found.popt.array)
    sigma = pd.Series(np.linspace(1.0, 2.0, ROWS), table.index)
    weighted = fit_each(decay, T, table, START, sigma=sigma[::-1])
    expected = fit_each(decay, T, FLAT, START, sigma=sigma.to_numpy())
    np.testing.assert_array_equal(weighted.popt.array, expected.popt.array)


def test_starts_with_names_are_taken_by_name():
    def first(t, a, b, c):
        return decay(t, a, b, c)

    y = LABELLED.isel(row=[0, 1])
    start = xr.DataArray([2.0, 0.5, 1.0], {"param": ["b", "c", "a"]}, ("param",))
    expected = fit_each(first, "t", y, {"a": 1.0, "b": 2.0, "c": 0.5}, covariance=True)
    found = fit_each(first, "t", y, start)
    np.testing.assert_array_equal(found.popt.array, expected.popt.array)
    assert fit(first, T, CUBE.y[:, 0, 0], start, nan_policy="omit").success
    # The coefficients of curvefit are starts of the next fit, whatever the order of dimensions.
    ends = expected.to_curvefit()["curvefit_coefficients"].sel(param=["c", "b", "a"])
    maps = {name: expected[name] for name in expected.names}
    on = fit_each(first, "t", y, maps)
    for start in ends, ends.transpose("param", ...), ends.assign_coords(row=["one", "two"]):
        named = y.assign_coords(row=start.row) if "row" in start.coords else y
        again = fit_each(first, "t", named, start)
        np.testing.assert_array_equal(again.popt.array, on.popt.array)
        assert (again.nfev <= 2).all()


@pytest.mark.parametrize("data", [CUBE.y, LABELLED], ids=["plain", "labelled"])
def test_the_answer_of_an_earlier_fit_is_a_start(data):
    earlier = fit_each(decay, T, data, START, covariance=True)
    expected = fit_each(decay, T, data, {name: earlier[name] for name in NAMES})
    for start in earlier, earlier.to_dataset(), earlier.to_curvefit():
        assert same(fit_each(decay, T, data, start), expected)
    one = earlier.at(0, 0)
    known = dict(zip(NAMES, one.popt.tolist(), strict=True))
    expected = fit_each(decay, T, data, known)
    for start in one, one.to_dataset():
        assert same(fit_each(decay, T, data, start), expected)
        again = fit(decay, T, CUBE.y[:, 0, 0], start, nan_policy="omit")
        np.testing.assert_array_equal(
            again.popt, fit(decay, T, CUBE.y[:, 0, 0], known, nan_policy="omit").popt
        )
        np.testing.assert_allclose(
            curve_fit(decay, T, CUBE.y[:, 0, 1], start, nan_policy="omit")[0],
            earlier.at(0, 1).popt,
            rtol=1e-5,
        )
    with pytest.raises(InputTypeError, match="a map with a value for each pixel, fit_each takes"):
        fit(decay, T, CUBE.y[:, 0, 0], earlier)


def test_a_dataset_of_maps_names_the_parameter_that_has_none():
    maps = fit_each(decay, T, CUBE.y, START).to_dataset()
    with pytest.raises(InputError, match="p0 has no value for lifetime"):
        fit_each(decay, T, CUBE.y, maps.drop_vars("lifetime"))
    with pytest.raises(InputError, match="p0 names other, but the model's parameters are"):
        fit_each(decay, T, CUBE.y, maps[["offset"]].rename(offset="other"))


def test_a_parameter_that_has_the_name_of_a_coordinate_is_a_start():
    """The dataset of the maps names the coordinate so, and the parameter fit_row."""

    def named(t, amplitude, row, offset):
        return decay(t, amplitude, row, offset)

    earlier = fit_each(named, "t", LABELLED, START)
    assert same(
        fit_each(named, "t", LABELLED, earlier.to_dataset()),
        fit_each(named, "t", LABELLED, earlier),
    )


def test_dataset_has_a_variable_for_each_parameter_and_named_flags():
    lazy = fit_each(decay, LABELLED["t"], LABELLED.chunk(row=2), START)
    dataset = lazy.to_dataset()
    assert dataset["lifetime_stderr"].dims == ("row", "column")
    assert dataset["lifetime"].chunks is not None
    status = dataset["status"]
    meanings = status.attrs["flag_meanings"].split()
    named = dict(zip(status.attrs["flag_values"], meanings, strict=True))
    assert status.dtype == np.int8
    assert named[5] == "statistical"
    assert dataset["at_bound"].attrs["flag_meanings"] == "amplitude lifetime offset"
    assert "not computed yet" in str(lazy)


def test_predictions_and_residuals_have_the_axes_of_y(maps):
    values = decay_in_numpy(T[:, None, None], *maps.popt.array)
    np.testing.assert_allclose(maps.predict(), values, rtol=1e-12)
    np.testing.assert_allclose(maps.residuals(), CUBE.y - values, rtol=0, atol=1e-12)
    lazy = fit_each(decay, LABELLED["t"], LABELLED.chunk(row=2, t=9), START)
    assert lazy.residuals().dims == LABELLED.dims
    np.testing.assert_array_equal(lazy.residuals().values, maps.residuals())
    assert maps.predict(np.array([0.0, 1.0])).shape == (2, 5, 7)
    np.testing.assert_array_equal(lazy.predict(T).compute(), maps.predict())


def test_masks_and_fill_values_leave_rows_out(maps):
    mask = np.isnan(CUBE.y)
    filled = np.where(mask, -999.0, CUBE.y)
    assert same(maps, fit_each(decay, T, filled, START, fill_value=-999.0, covariance=True))
    assert same(maps, fit_each(decay, T, filled, START, mask=mask, covariance=True))
    masked = np.ma.masked_array(filled, mask)
    assert same(maps, fit_each(decay, T, masked, START, covariance=True))
    with pytest.warns(ConvergenceWarning, match="with infinite values"):
        refused = fit_each(decay, T, CUBE.y, START, nan_policy="raise")
    np.testing.assert_array_equal(refused.status == Status.BAD_INPUT, mask.any(axis=0))


def plane(x, height, slope_x, slope_y):
    return height + slope_x * x[0] + slope_y * x[1]


@pytest.mark.slow
def test_two_fitted_dimensions_and_two_coordinates_meet_the_closed_form():
    draw = np.random.default_rng(2)
    rows, columns = np.arange(5.0), np.arange(8.0)
    y = draw.normal(size=(3, 5, 8))
    frames = xr.DataArray(y, {"row": rows, "column": columns}, ("frame", "row", "column"))
    found = fit_each(plane, ("row", "column"), frames, dim=("row", "column"))
    grid = np.meshgrid(rows, columns, indexing="ij")
    design = np.stack([np.ones(40), *(g.ravel() for g in grid)], axis=1)
    expected = np.linalg.lstsq(design, y.reshape(3, -1).T)[0]
    assert np.abs((found.popt.array - expected) / found.perr.array).max() < 1e-4
    assert found["height"].dims == ("frame",)


def smeared(t, amplitude, lifetime):
    """A decay convolved with the response of an instrument: rows mix along the series."""
    response = jnp.array([0.2, 0.5, 0.3])
    return jnp.convolve(amplitude * jnp.exp(-t / lifetime), response)[: t.shape[0]]


@pytest.mark.slow
def test_a_model_that_mixes_the_rows_of_a_series_gets_whole_series():
    t = np.linspace(0.0, 5.0, 41)
    lifetimes = np.array([[0.7, 1.1, 1.9]])
    y = np.array(
        [np.convolve(2 * np.exp(-t / tau), [0.2, 0.5, 0.3])[:41] for tau in lifetimes.ravel()]
    ).T.reshape(41, 1, 3)
    found = fit_each(smeared, t, y, [1.0, 1.0])
    np.testing.assert_allclose(found["lifetime"], lifetimes, rtol=1e-10)
    np.testing.assert_allclose(found.predict(), y, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": "z"}, "dim='z' is no dimension of y"),
        ({"dim": (0, 0)}, "name each dimension to fit along once"),
        ({"x": T[:-1]}, "x has shape"),
        # The series are the rows of the last axis, and the default is the first axis.
        ({"y": TURNED}, r"along axis 0, where x does not vary: pass dim=2 to"),
        ({"y": TURNED, "dim": 1}, "pass dim=2 to fit along axis 2"),
        (
            {"y": xr.DataArray(TURNED, dims=("row", "column", "t"))},
            "along axis 'row', where x does not vary: pass dim='t' to",
        ),
        (
            {"y": TURNED, "x": xr.DataArray(T, dims="t")},
            "pass dim=2 to fit along axis 2",
        ),
        (
            {"p0": {"amplitude": np.ones((7, 5)), "lifetime": 1, "offset": 0}},
            r"p0\['amplitude'\] has shape \(7, 5\), but the map has shape \(5, 7\)",
        ),
        (
            {"p0": xr.DataArray(np.ones((3, 2)), {"param": list(NAMES)}, ("param", "pixel"))},
            r"p0\['amplitude'\] has shape \(2,\) but the map has shape \(5, 7\): pass an array",
        ),
        (
            {"bounds": {"lifetime": (np.zeros((ROWS, 5)), 9.0)}},
            r"the map has shape \(5, 7\), .*; if the series run along axis 2, dim=2",
        ),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": np.ones(5)}, r"sigma has shape \(5,\), .* map has shape \(5, 7\), and y"),
        ({"p0": {"amplitude": 1, "lifetime": np.ones((7, 5)), "offset": 0}}, "p0"),
        ({"p0": [1.0, np.inf, 0.0]}, "NaN or infinite for lifetime"),
        ({"p0": [1.0, 1.0]}, "2"),
        ({"bounds": {"lifetime": (2.0, 1.0)}}, "lower bound"),
        ({"bounds": {"lifetim": (2.0, 1.0)}}, "lifetim"),
        ({"stat_tol": 0.0}, "stat_tol=0.0"),
        ({"max_nfev": 0}, "max_nfev"),
        ({"nan_policy": "drop"}, "nan_policy"),
    ],
)
def test_arguments_that_no_series_can_use_are_refused(change, message):
    arguments = {"x": T, "y": CUBE.y, "p0": START} | change
    with pytest.raises(ValueError, match=message):
        fit_each(decay, **arguments)


def test_a_coordinate_may_have_one_value_for_each_series():
    height = np.linspace(1.0, 2.0, 35).reshape(5, 7)
    x = (T, height[..., None])

    def scaled(x, lifetime, offset):
        return x[1] * jnp.exp(-x[0] / lifetime) + offset

    y = scaled(x, np.linspace(0.5, 2.0, 7)[:, None], 0.3)
    found = fit_each(scaled, x, y, dim=-1)
    np.testing.assert_allclose(found["lifetime"], np.tile(np.linspace(0.5, 2.0, 7), (5, 1)), 1e-6)
    constant = fit_each(lambda x, level: level + 0 * x, 0.0, TURNED, dim=-1)
    apart = np.abs(constant["level"] - np.nanmean(TURNED, axis=-1))
    assert (apart < 2e-4 * constant.perr["level"]).all()


def root(t, scale, offset):
    return jnp.sqrt(scale * t) + offset


@pytest.mark.slow
def test_a_derivative_that_is_not_finite_is_a_difference():
    # The slope of the root by its scale is 0/0 at t = 0, where the value is 0 for any scale.
    y = np.sqrt([1.0, 3.0] * T[:, None]) + 0.1 * np.random.default_rng(4).normal(size=(ROWS, 2))
    found = fit_each(root, T, y, [2.0, 0.0])
    design = np.stack([np.sqrt(T), np.ones(ROWS)], axis=1)
    slope, offset = np.linalg.lstsq(design, y)[0]
    assert found.success.all()
    errors = found.perr.array
    assert np.abs((found.popt.array - [slope**2, offset]) / errors).max() < 1e-3


@pytest.mark.slow
def test_plot_draws_each_map_and_the_median_and_worst_series(maps):
    figure = maps.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # as a notebook shows it
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == [*NAMES, "status"]
    (image,) = figure.axes[3].collections  # a colour for each status that occurs
    assert image.cmap.N == len(np.unique(maps.status)) == 1
    assert figure.axes[0].yaxis_inverted()  # the first row of a matrix is at the top
    assert image.get_clim() == (-0.5, 0.5)
    worst = np.unravel_index(np.argmax(maps.reduced_chi2), maps.shape)
    drawn = next(axes for axes in figure.axes if axes.get_title().startswith("worst"))
    data, line = drawn.lines
    np.testing.assert_array_equal(data.get_ydata(), CUBE.y[:, *worst])
    expected = decay_in_numpy(T, *maps.popt.array[:, *worst])
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    with pytest.raises(InputError, match="one or two dimensions"):
        fit_each(decay, T, CUBE.y.reshape(ROWS, 5, 7, 1), START).plot()


def test_plot_has_the_numbers_and_units_of_the_coordinates():
    days = np.array(
        ["2024-05-01", "2024-05-03", "2024-05-07", "2024-05-08", "2024-05-09"], "M8[ns]"
    )
    height = np.linspace(6.0, 0.0, 7) ** 2
    y = LABELLED.rename(row="day", column="height").assign_attrs(units="mV")
    y = y.assign_coords(day=days, height=("height", height, {"units": "km"}))
    picture = fit_each(decay, "t", y, START).plot().axes
    lifetime = picture[1]
    series = next(axes for axes in picture if axes.get_title().startswith("median"))
    edges = lifetime.collections[0].get_coordinates()  # (6, 8, 2): x and y of the corners
    middles = 0.5 * (height[1:] + height[:-1])
    np.testing.assert_allclose(edges[0, 1:-1, 0], middles)
    dates = days.astype("M8[D]").astype(float)
    np.testing.assert_allclose(edges[1:-1, 0, 1], 0.5 * (dates[1:] + dates[:-1]))
    assert (lifetime.get_xlabel(), lifetime.get_ylabel()) == ("height [km]", "day")
    assert (series.get_xlabel(), series.get_ylabel()) == ("t [s]", "signal [mV]")
    line = fit_each(decay, "t", y[:, 0], START).plot().axes[1]
    np.testing.assert_array_equal(line.lines[0].get_xdata(), height)
    assert line.get_xlabel() == "height [km]"


def cubic(x, a, b, c, d):
    return a + x * (b + x * (c + x * d))


@pytest.mark.slow
def test_series_with_nearly_exchangeable_parameters_keep_their_digits():
    # JᵀJ of a cubic of years has no digit of its weakest direction.
    years = np.linspace(2000.0, 2020.0, ROWS)
    scaled = (years - 2010.0) / 10.0
    design = np.vander(scaled, 4, increasing=True)
    noise = 0.1 * np.random.default_rng(6).normal(size=(ROWS, 3))
    y = design @ [[1.0], [2.0], [0.5], [0.3]] + noise
    found = fit_each(cubic, years, y, np.ones(4))
    coefficients, chi2, *_ = np.linalg.lstsq(design, y)
    deviation = np.sqrt(chi2 / (ROWS - 4) * np.linalg.inv(design.T @ design)[3, 3])
    assert found.success.all()
    np.testing.assert_allclose(found.chi2, chi2, rtol=1e-7)
    np.testing.assert_allclose(found.perr["d"], deviation * 1e-3, rtol=1e-6)
    assert np.abs((found["d"] - coefficients[3] * 1e-3) / found.perr["d"]).max() < 1e-3


def test_a_block_of_few_series_takes_one_call_and_one_task(monkeypatch):
    calls, call = [], LaneKernel.__call__

    def counted(self, states, *args):
        calls.append(states.shape)
        return call(self, states, *args)

    lazy = fit_each(decay, T, da.from_array(FLAT, chunks=(-1, 5)), START)
    tasks = []
    monkeypatch.setattr(LaneKernel, "__call__", counted)
    with Callback(posttask=lambda key, *_: tasks.append(key)):
        done = lazy.compute(scheduler="synchronous")
    assert len(calls) == FLAT.shape[1] // 5
    assert len(tasks) <= 3 * len(calls)  # its chunk, perhaps fused; its fits; joined
    assert same(done, fit_each(decay, T, FLAT, START))
