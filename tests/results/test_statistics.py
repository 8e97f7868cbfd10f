"""Statistics of a fit against closed forms, likelihoods and simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nlsq_dask import InputError, fit
from nlsq_dask.core import statistics
from nlsq_dask.results.record import interval_quantile
from tests.results.linear_result import linear_result

RNG = np.random.default_rng(20)
X = np.linspace(0.0, 3.0, 40)
DESIGN = np.column_stack([np.ones_like(X), X, X**2])
SIGMA = 0.2 + 0.3 * X
Y = DESIGN @ [1.0, -2.0, 0.7] + SIGMA * RNG.normal(size=X.size)
DOF = 37

UNWEIGHTED = linear_result(DESIGN, Y)
WEIGHTED = linear_result(DESIGN, Y, SIGMA)
ABSOLUTE = linear_result(DESIGN, Y, SIGMA, absolute_sigma=True)


def test_r_squared_is_the_squared_correlation_of_data_and_fit():
    fitted = UNWEIGHTED.predict()
    assert UNWEIGHTED.r_squared == pytest.approx(np.corrcoef(Y, fitted)[0, 1] ** 2, rel=1e-12)


def test_weighted_r_squared_is_that_of_rows_repeated_by_their_weights():
    counts = RNG.integers(1, 5, X.size)
    weighted = linear_result(DESIGN, Y, counts**-0.5)
    repeated = linear_result(np.repeat(DESIGN, counts, axis=0), np.repeat(Y, counts))
    assert weighted.r_squared == pytest.approx(repeated.r_squared, rel=1e-12)


def test_adjusted_r_squared_compares_variances():
    residuals = UNWEIGHTED.residuals()
    expected = 1.0 - (residuals @ residuals / DOF) / np.var(Y, ddof=1)
    assert UNWEIGHTED.adj_r_squared == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("result", [UNWEIGHTED, WEIGHTED, ABSOLUTE])
def test_errors_of_rows_are_in_the_units_of_y(result):
    residuals = Y - result.predict()
    assert result.rmse == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-12)
    assert result.mae == pytest.approx(np.mean(np.abs(residuals)), rel=1e-12)


@pytest.mark.parametrize("penalty", ["aic", "bic"])
def test_criteria_are_likelihoods_with_a_penalty(penalty):
    per_parameter = {"aic": 2.0, "bic": math.log(X.size)}[penalty]
    # Scale estimated: the likelihood is largest at s² = chi2 / n. Constants of n are left out.
    scale = math.sqrt(WEIGHTED.chi2 / X.size)
    likelihood = stats.norm.logpdf(Y, WEIGHTED.predict(), scale * SIGMA).sum()
    constant = X.size * (1 + math.log(2 * math.pi)) + 2 * np.log(SIGMA).sum()
    expected = -2 * likelihood - constant + 3 * per_parameter
    assert getattr(WEIGHTED, penalty) == pytest.approx(expected, rel=1e-12)
    # Scale known.
    likelihood = stats.norm.logpdf(Y, ABSOLUTE.predict(), SIGMA).sum()
    constant = np.log(2 * math.pi * SIGMA**2).sum()
    expected = -2 * likelihood - constant + 3 * per_parameter
    assert getattr(ABSOLUTE, penalty) == pytest.approx(expected, rel=1e-12)


def test_what_a_perfect_fit_and_constant_data_leave():
    perfect = replace(UNWEIGHTED, chi2=0.0)
    assert perfect.aic == perfect.bic == -math.inf
    assert replace(perfect, absolute_sigma=True).aic == 6.0
    assert perfect.r_squared == 1.0
    constant = replace(UNWEIGHTED, moments=replace(UNWEIGHTED.moments, scatter=0.0))
    assert math.isnan(constant.r_squared)
    assert math.isnan(constant.adj_r_squared)
    none_left = replace(UNWEIGHTED, n_points=3)
    assert none_left.dof == 0
    assert math.isnan(none_left.reduced_chi2)
    assert math.isnan(none_left.adj_r_squared)
    np.testing.assert_array_equal(none_left.robust_pcov(), np.full((3, 3), np.inf))


def test_the_p_value_of_known_errors():
    expected = stats.chi2.sf(ABSOLUTE.chi2, DOF)
    assert ABSOLUTE.chi2_p_value == pytest.approx(expected, rel=1e-10)
    many = replace(ABSOLUTE, chi2=1e12 + 2e6, n_points=10**12 + 3)
    assert many.chi2_p_value == pytest.approx(stats.norm.sf(2**0.5), rel=1e-4)
    assert math.isnan(WEIGHTED.chi2_p_value)  # a scale that is estimated explains any chi2
    assert math.isnan(replace(ABSOLUTE, n_points=3).chi2_p_value)


@pytest.mark.parametrize("side", [-1, 1])
def test_intervals_end_at_active_bounds(side):
    free = ABSOLUTE.confidence_intervals()
    bounds = np.tile([-math.inf, math.inf], (3, 1))
    end = (1 + side) // 2
    bounds[1, end] = ABSOLUTE.popt[1] + side * 1e-9  # where an interior search stops
    bounds[2, end] = ABSOLUTE.popt[2] + side * 1e-3  # near, and not active
    active = np.array([0, side, 0])
    ends = replace(ABSOLUTE, bounds=bounds, active_mask=active).confidence_intervals()
    assert ends[1, end] == bounds[1, end]
    assert ends[1, 1 - end] == free[1, 1 - end]
    np.testing.assert_array_equal(ends[[0, 2]], free[[0, 2]])
    # A file of an earlier release does not tell the bound.
    ends = replace(ABSOLUTE, active_mask=active).confidence_intervals()
    assert ends[1, end] == ABSOLUTE.popt[1]
    # Rounding may put the estimate beyond the bound.
    beyond = bounds.copy()
    beyond[1, end] = ABSOLUTE.popt[1] - side * 1e-9
    ends = replace(ABSOLUTE, bounds=beyond, active_mask=active).confidence_intervals()
    assert ends[1, end] == ABSOLUTE.popt[1]


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True])
def test_bounds_of_a_fit_are_those_of_all_parameters(lazy):
    x, y = (da.from_array(v, chunks=11) if lazy else v for v in (X, -1.0 - X))
    bounds = {"a": (None, 9), "c": (-4, 1)}
    options = dict(bounds=bounds, fixed={"e": 2.0}, ties={"b": {"c": -2.0}, "d": {"a": 1, "c": 1}})
    result = fit(five, x, y, p0=[0, 0, 0, 0, 0], **options)
    expected = [(-math.inf, 9), (-2, 8), (-4, 1), (-math.inf, math.inf), (-math.inf, math.inf)]
    np.testing.assert_array_equal(result.bounds, expected)


def five(x, a, b, c, d, e):
    return a + b * x + c * x**2 + (d - 2.0) * jnp.exp(-e * x)


def test_an_interval_at_a_bound_covers_what_the_bound_allows():
    result = fit(decay, X, np.exp(-X) - 2e-3 * X, p0=[1, 2], bounds={"rate": (1.2, None)})
    assert result.active_mask.tolist() == [0, -1]
    low, high = result.confidence_intervals()[1]
    assert low == 1.2 < high
    lines = [line for line in result.summary().splitlines() if "  rate" in line]
    assert "[1.2" in lines[0]
    assert lines[-1] == "  rate is at its lower bound: its interval ends there, and is one-sided"


def test_fixed_parameters_leave_degrees_of_freedom():
    fixed = replace(UNWEIGHTED, n_free=2, fixed=("b",))
    assert fixed.dof == DOF + 1
    assert fixed.aic == UNWEIGHTED.aic - 2.0
    assert fixed.bic == pytest.approx(UNWEIGHTED.bic - math.log(X.size))
    assert fixed.reduced_chi2 == UNWEIGHTED.chi2 / (DOF + 1)


@given(
    level=st.floats(1e-3, 1 - 1e-12, exclude_max=True),
    dof=st.integers(1, 10**13),
)
def test_quantiles_cover_with_the_level(level, dof):
    outside = 2.0 * stats.t.sf(interval_quantile(level, dof, known_scale=False), dof)
    assert outside == pytest.approx(1.0 - level, rel=1e-6)
    outside = 2.0 * stats.norm.sf(interval_quantile(level, dof, known_scale=True))
    assert outside == pytest.approx(1.0 - level, rel=1e-6)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, math.nan, "0.95", None])
def test_a_level_that_is_no_probability(level):
    for method in ("confidence_intervals", "confidence_band", "prediction_interval"):
        with pytest.raises(InputError, match="level = .* strictly between 0 and 1"):
            getattr(UNWEIGHTED, method)(level=level)


@pytest.mark.parametrize("result", [WEIGHTED, ABSOLUTE], ids=["estimated", "known"])
@pytest.mark.parametrize("level", [0.5, 0.95, 1 - 1e-9])
def test_intervals_in_closed_form(level, result):
    tail = (1 - level) / 2
    quantile = stats.norm.isf(tail) if result is ABSOLUTE else stats.t.isf(tail, DOF)
    ends = result.confidence_intervals(level)
    assert ends.shape == (3, 2)
    np.testing.assert_allclose(ends.mean(axis=1), result.popt, rtol=1e-12)
    np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * quantile * result.perr, rtol=1e-6)

    at = DESIGN[::7]
    variance = np.diagonal(at @ result.pcov @ at.T)
    scatter = np.sum((Y - result.predict()) ** 2) / DOF
    if result is ABSOLUTE:
        scatter = np.mean(SIGMA**2)
    for method, added in (("confidence_band", 0.0), ("prediction_interval", scatter)):
        low, high = getattr(result, method)(at, level)
        np.testing.assert_allclose((low + high) / 2, at @ result.popt, rtol=1e-8)
        half = quantile * np.sqrt(variance + added)
        np.testing.assert_allclose((high - low) / 2, half, rtol=1e-6)


def test_intervals_of_parameters_that_are_fixed_or_undetermined():
    pcov = UNWEIGHTED.pcov.copy()
    pcov[1] = pcov[:, 1] = 0.0
    fixed = replace(UNWEIGHTED, pcov=pcov, n_free=2, fixed=("b",))
    ends = fixed.confidence_intervals()
    assert ends[1].tolist() == [fixed.popt[1]] * 2
    assert (ends[[0, 2], 0] < ends[[0, 2], 1]).all()
    # No degrees of freedom: nothing is known of the free ones, all of the fixed.
    ends = replace(fixed, n_points=2).confidence_intervals()
    assert ends[1].tolist() == [fixed.popt[1]] * 2
    assert ends[[0, 2]].tolist() == [[-math.inf, math.inf]] * 2
    undetermined = replace(UNWEIGHTED, pcov=np.full((3, 3), np.inf))
    assert undetermined.confidence_intervals().tolist() == [[-math.inf, math.inf]] * 3


def test_correlation():
    matrix = WEIGHTED.correlation()
    expected = np.corrcoef(RNG.multivariate_normal(WEIGHTED.popt, WEIGHTED.pcov, 100_000).T)
    np.testing.assert_allclose(matrix, expected, atol=0.01)
    np.testing.assert_array_equal(np.diagonal(matrix), 1.0)
    np.testing.assert_array_equal(matrix, matrix.T)
    # The units of the parameters do not matter, however small.
    units = np.diag([1e-140, 1.0, 1e140])
    np.testing.assert_allclose(statistics.correlation(units @ WEIGHTED.pcov @ units), matrix)


def test_correlation_where_nothing_is_known():
    pcov = WEIGHTED.pcov.copy()
    pcov[1] = pcov[:, 1] = 0.0
    nan = math.nan
    known = WEIGHTED.correlation()[0, 2]
    np.testing.assert_allclose(
        replace(WEIGHTED, pcov=pcov).correlation(),
        [[1, nan, known], [nan, 1, nan], [known, nan, 1]],
    )
    undetermined = replace(WEIGHTED, pcov=np.full((2, 2), np.inf)).correlation()
    np.testing.assert_array_equal(undetermined, [[1, nan], [nan, 1]])


@pytest.mark.parametrize("result", [UNWEIGHTED, WEIGHTED, ABSOLUTE])
def test_the_sandwich_in_closed_form(result):
    sigma = np.ones_like(X) if result is UNWEIGHTED else SIGMA
    whitened = DESIGN / sigma[:, None]
    pseudo_inverse = np.linalg.pinv(whitened)
    squares = ((Y - DESIGN @ result.popt) / sigma) ** 2
    expected = pseudo_inverse @ np.diag(squares) @ pseudo_inverse.T * X.size / DOF
    robust = result.robust_pcov()
    np.testing.assert_allclose(robust, expected, rtol=1e-9)
    np.testing.assert_array_equal(robust, robust.T)


def test_the_sandwich_of_a_perfect_fit_and_of_a_file_of_an_earlier_release():
    exact = replace(
        linear_result(DESIGN, DESIGN @ [1.0, 2.0, 4.0]), chi2=0.0, pcov=np.zeros((3, 3))
    )
    np.testing.assert_array_equal(exact.robust_pcov(), np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"loss = 'huber'.*fit again"):
        replace(UNWEIGHTED, loss="huber").robust_pcov()
    of_loss = replace(UNWEIGHTED, loss="huber", sandwich=True, fitted=None)
    np.testing.assert_array_equal(of_loss.robust_pcov(), UNWEIGHTED.pcov)


def decay(x, amplitude, rate):
    return amplitude * jnp.exp(-rate * x)


TRUTH = np.array([5.0, 1.2])
REPLICATES = 400


def simulate(x, scatter, seed, **known):
    """Results of fits to as many draws of data as are asked for, with new data for each."""
    rng = np.random.default_rng(seed)
    exact = np.asarray(decay(x, *TRUTH), np.float64)
    for _ in range(REPLICATES):
        y, again = exact + scatter * rng.normal(size=(2, x.size))
        yield fit(decay, x, y, p0=TRUTH, **known), again


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "known"),
    [(6, {}), (3, {"sigma": 0.05, "absolute_sigma": True})],
    ids=["estimated", "known"],
)
def test_intervals_cover_as_often_as_they_say(rows, known):
    # With 4 degrees of freedom the normal quantile covers 82.5 %, 5 deviations short. With 1,
    # Student's quantile covers 100 % where sigma is known.
    x, level, at = np.linspace(0.0, 2.0, rows), 0.9, 1
    hits = np.zeros(4)
    exact = float(decay(x[at], *TRUTH))
    for result, again in simulate(x, 0.05, seed=1, **known):
        ends = result.confidence_intervals(level)
        hits[:2] += (ends[:, 0] < TRUTH) & (ends[:, 1] > TRUTH)
        low, high = result.confidence_band(x[[at]], level)
        hits[2] += low[0] < exact < high[0]
        low, high = result.prediction_interval(x[[at]], level)
        hits[3] += low[0] < again[at] < high[0]
    deviation = math.sqrt(REPLICATES * level * (1 - level))
    np.testing.assert_allclose(hits, REPLICATES * level, atol=3 * deviation)


@pytest.mark.thorough
def test_the_sandwich_is_the_scatter_of_estimates_from_rows_of_unequal_variance():
    x = np.linspace(0.0, 3.0, 200)
    estimates, robust, plain = [], [], []
    for result, _ in simulate(x, 0.5 * np.exp(-2.0 * x), seed=2):
        estimates.append(result.popt)
        robust.append(np.diagonal(result.robust_pcov()))
        plain.append(np.diagonal(result.pcov))
    scatter = np.var(estimates, axis=0, ddof=1)
    # A variance of m normal draws has the relative standard deviation sqrt(2 / m).
    allowed = 3 * math.sqrt(2 / REPLICATES)
    np.testing.assert_allclose(np.mean(robust, axis=0), scatter, rtol=allowed)
    assert (np.abs(np.mean(plain, axis=0) / scatter - 1) > 2 * allowed).any()


@pytest.mark.slow
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_fit_has_the_statistics_of_all_its_rows(absolute_sigma, lazy):
    def line(x, a, b, c):
        return a + b * x + c * x**2

    data = [da.from_array(v, chunks=11) if lazy else v for v in (X, Y, SIGMA)]
    result = fit(line, *data[:2], sigma=data[2], absolute_sigma=absolute_sigma)
    expected = ABSOLUTE if absolute_sigma else WEIGHTED
    for name in ("rmse", "mae", "r_squared", "adj_r_squared", "aic", "bic", "reduced_chi2"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-7), name
    np.testing.assert_allclose(result.robust_pcov(), expected.robust_pcov(), rtol=1e-6)
    np.testing.assert_allclose(result.correlation(), expected.correlation(), rtol=1e-6)
    np.testing.assert_allclose(
        result.confidence_intervals(), expected.confidence_intervals(), rtol=1e-6
    )
    for method in ("confidence_band", "prediction_interval"):
        ends = getattr(result, method)(data[0])
        assert all(isinstance(end, da.Array if lazy else np.ndarray) for end in ends)
        np.testing.assert_allclose(ends, getattr(expected, method)(), rtol=1e-6)
    assert isinstance(result.residuals(), da.Array if lazy else np.ndarray)
    np.testing.assert_allclose(result.residuals(), expected.residuals(), atol=1e-6)
    np.testing.assert_allclose(result.predict(), expected.predict(), rtol=1e-6)
