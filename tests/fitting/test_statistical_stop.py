"""How far a fit is from the optimum, in standard errors, and that it stops by that."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import FitResult, InputError, fit
from nlsq_dask._errors import Status
from nlsq_dask.fitting.prepare import STAT_TOL
from tests.support.problems import computed

#: Criteria at which a fit stands at the optimum, for all that these tests ask.
CONVERGED: dict[str, Any] = {"stat_tol": 1e-7, "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
P0 = {"line": [1.0, 1.0], "gauss": [4, 5, 0.5, 0.7], "decay": [3.4, 0.9, 0.7]}


def line(x, a, b):
    return a * x + b


def gauss(x, a, m, s, c):
    return a * jnp.exp(-0.5 * ((x - m) / s) ** 2) + c


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


MODELS = {"line": line, "gauss": gauss, "decay": decay}
TRUTH = {"line": [2.0, -0.5], "gauss": [3, 4, 0.7, 0.5], "decay": [2.5, 1.3, 0.5]}


@cache
def derivative(model):
    """Compiled once for all data of one shape."""
    return jax.jit(jax.jacfwd(lambda q, x: model(x, *q)))


def jacobian(model, x, params):
    """Dense derivatives (n, p)."""
    with jax.enable_x64(True):
        return np.asarray(derivative(model)(np.asarray(params, np.float64), x))


def data(name, rows, noise=0.1, seed=0):
    x = np.linspace(0, 10 if name == "gauss" else 4, rows)
    noises = noise * np.random.default_rng(seed).normal(size=rows)
    with jax.enable_x64(True):  # not compiled: whether fits to the last digit end rests on the bits
        exact = np.asarray(MODELS[name](x, *TRUTH[name]))
    return x, exact + noises


def streamed(name, x, y, p0=None, **options):
    chunk = -(-x.size // 20)
    x, y = da.from_array(x, chunks=chunk), da.from_array(y, chunks=chunk)
    return fit(MODELS[name], x, y, P0[name] if p0 is None else p0, **options)


def dense_distance(model, x, y, params, sigma=1.0, variance=None):
    """``√(gᵀ (JᵀJ)⁻¹ g / s²)`` by its definition, over all rows at once."""
    weighted = jacobian(model, x, params) / np.reshape(sigma, (-1, 1))
    residuals = (computed(model, x, *params) - y) / sigma
    if variance is None:
        variance = residuals @ residuals / (y.size - len(params))
    gradient = weighted.T @ residuals
    return math.sqrt(gradient @ np.linalg.solve(weighted.T @ weighted, gradient) / variance)


def stopped_early(name, x, y, passes, **options):
    """The best point after so many evaluations, by the user's own will."""

    def enough(intermediate_result):
        if intermediate_result["nfev"] >= passes:
            raise StopIteration

    with pytest.warns(match="callback"):
        return fit(MODELS[name], x, y, P0[name], callback=enough, **options)


# What it is


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
@pytest.mark.parametrize("name", MODELS)
def test_the_formula_anywhere(name, strategy):
    x, y = data(name, 800)
    for passes in (1, 2, 3) if name != "line" else (1,):
        result = stopped_early(name, x, y, passes, strategy=strategy)
        expected = dense_distance(MODELS[name], x, y, result.popt)
        assert expected > 1e-3
        np.testing.assert_allclose(result.distance_to_optimum_sigma, expected, rtol=1e-6)
        assert result.history[-1].distance == result.distance_to_optimum_sigma


@pytest.mark.slow
@given(rows=st.integers(4, 300), seed=st.integers(0, 1000), noise=st.floats(1e-3, 1e3))
def test_a_linear_problem_is_as_far_as_it_says(rows, seed, noise):
    # max_nfev=1 leaves p0, from which the optimum is as far as the linear solution.
    x, y = data("line", rows, noise, seed)
    with pytest.warns(match="maximum number"):
        result = fit(line, x, y, P0["line"], max_nfev=1)
    design = np.stack([x, np.ones_like(x)], axis=1)
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    at_start = np.sum((design @ P0["line"] - y) ** 2) / (rows - 2)
    expected = np.linalg.norm(design @ (P0["line"] - solution)) / math.sqrt(at_start)
    np.testing.assert_allclose(result.distance_to_optimum_sigma, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_true_distance_near_the_optimum(name):
    x, y = data(name, 5000)
    there = fit(MODELS[name], x, y, P0[name], **CONVERGED)
    direction = np.linalg.solve(there.r_factor, np.ones(there.popt.size))
    for distance in (1.0, 0.1, 0.01):
        step = direction * (distance / math.sqrt(there.popt.size / there.reduced_chi2))
        with pytest.warns(match="maximum number"):
            result = fit(MODELS[name], x, y, there.popt + step, max_nfev=1, gtol=None)
        np.testing.assert_allclose(result.distance_to_optimum_sigma, distance, rtol=0.05)


@pytest.mark.slow
def test_it_is_in_units_of_sigma_where_these_are_absolute():
    x, y = data("gauss", 2000, noise=0.2)
    for absolute, variance in ((True, 1.0), (False, None)):
        options = {"sigma": np.full(x.size, 0.05), "absolute_sigma": absolute}
        result = stopped_early("gauss", x, y, 3, **options)
        expected = dense_distance(gauss, x, y, result.popt, 0.05, variance)
        np.testing.assert_allclose(result.distance_to_optimum_sigma, expected, rtol=1e-6)


@pytest.mark.slow
def test_what_a_bound_holds_is_no_distance():
    x, y = data("gauss", 2000)
    bounds = ([0, 0, 0, 0], [2.5, 10, 10, 10])
    for method in ("trf", "dogbox"):
        options: dict[str, Any] = {"bounds": bounds, "method": method}
        result = fit(gauss, x, y, [2, 5, 0.5, 0.7], **options, **CONVERGED)
        assert result.active_mask.tolist() == [1, 0, 0, 0]
        assert result.distance_to_optimum_sigma < 1e-3
        # Without bounds the same point would be far from its optimum.
        assert dense_distance(gauss, x, y, result.popt) > 10


@pytest.mark.slow
def test_fixed_parameters_have_no_distance():
    x, y = data("gauss", 2000)
    result = fit(gauss, x, y, P0["gauss"], fixed={"a": 2.0}, **CONVERGED)
    assert result.distance_to_optimum_sigma < 1e-6
    assert dense_distance(gauss, x, y, result.popt) > 10


def test_a_fit_to_the_last_digits_ends():
    # The residuals are large, so that a step halves the distance at best, and the last steps change
    # the cost by less than its rounding errors.
    for seed in (1, 13, 16, 20):
        x, y = data("gauss", 2000, seed=seed)
        result = fit(gauss, x, y, P0["gauss"], fixed={"a": 2.0}, **CONVERGED)
        assert result.success
        assert result.nfev < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_exact_fit_ends(name):
    # Its standard errors are those of rounding, within which no pass can come.
    x, y = data(name, 2000, noise=0.0)
    pure = streamed(name, x, y, stat_tol=None)
    result = streamed(name, x, y)
    assert result.success
    assert result.n_passes <= pure.n_passes + 2
    np.testing.assert_allclose(result.popt, TRUTH[name], rtol=1e-9)


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("trf", "linear"),
        ("lm", "linear"),
        ("dogbox", "linear"),
        ("trf", "huber"),
        ("dogbox", "cauchy"),
    ],
)
def test_every_fit_has_one(method, loss):
    x, y = data("gauss", 2000)
    for strategy in ("standard", "chunked", "streaming"):
        result = fit(gauss, x, y, P0["gauss"], strategy=strategy, method=method, loss=loss)
        assert 0 <= result.distance_to_optimum_sigma < 0.1
        assert len(result.history) == result.nfev
        assert all(record.distance >= 0 for record in result.history)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_the_distance_is_that_along_what_the_data_determine(strategy):
    x, y = data("decay", 2000)
    with pytest.warns(match="infinite"):
        result = fit(lambda x, a, b, c: a * b * jnp.exp(-c * x), x, y, [1, 2, 1], strategy=strategy)
    assert np.isinf(result.pcov).all()
    assert result.undetermined == ("a", "b")
    assert result.distance_to_optimum_sigma < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_without_standard_errors_there_is_no_distance_in_them(strategy, tmp_path):
    x, y = data("decay", 2000)
    few = slice(None, None, 700)  # as many rows as parameters
    with pytest.warns(match="infinite"):
        result = fit(
            lambda x, a, b, c: a * jnp.exp(-b * x) + c, x[few], y[few], [1, 2, 1], strategy=strategy
        )
    assert result.n_points == 3
    assert np.isinf(result.pcov).all()
    assert math.isnan(result.distance_to_optimum_sigma)
    assert "distance    not known" in result.summary()
    result.save(tmp_path / "fit.json")
    assert math.isnan(FitResult.load(tmp_path / "fit.json").distance_to_optimum_sigma)


# Stopping by it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gauss", "decay"])
def test_it_saves_passes_and_no_more_than_it_may(name):
    x, y = data(name, 50_000)
    there = streamed(name, x, y, pilot=False, **CONVERGED)
    pure = streamed(name, x, y, pilot=False, stat_tol=None)
    default = streamed(name, x, y, pilot=False)
    assert default.status == Status.STATISTICAL
    assert pure.status in (Status.COST, Status.STEP, Status.COST_AND_STEP, Status.GRADIENT)
    assert default.n_passes < pure.n_passes
    distance = np.linalg.norm(there.r_factor @ (default.popt - there.popt))
    assert distance / math.sqrt(there.reduced_chi2) < STAT_TOL
    assert default.distance_to_optimum_sigma < STAT_TOL
    assert default.tolerances["stat_tol"] == STAT_TOL
    assert pure.tolerances["stat_tol"] is None


def test_in_memory_it_is_scipy_that_decides():
    x, y = data("gauss", 5000)
    default, pure = (fit(gauss, x, y, P0["gauss"], **o) for o in ({}, {"stat_tol": None}))
    assert default.tolerances["stat_tol"] is None
    assert default.nfev == pure.nfev
    np.testing.assert_array_equal(default.popt, pure.popt)
    early = fit(gauss, x, y, P0["gauss"], stat_tol=0.01)
    assert early.status == Status.STATISTICAL
    assert early.nfev < pure.nfev


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tolerance", "pilot", "absolute"),
    [(1e-5, False, False), (1e-5, True, True), (1e-3, False, True), (1e-3, True, False)],
)
def test_a_loose_ftol_never_stops_standard_errors_short(tolerance, pilot, absolute):
    x, y = data("decay", 1_000_000, noise=0.5)
    options: dict[str, Any] = {"ftol": tolerance, "xtol": tolerance, "pilot": pilot}
    if absolute:
        options |= {"sigma": 0.5, "absolute_sigma": True}
    # Near enough for ftol, which lets go of √(1e-5 · 1e6) = 3 standard errors at least.
    start = [2.52, 1.31, 0.503]
    there = streamed("decay", x, y, start, pilot=False, **CONVERGED)
    result = streamed("decay", x, y, start, **options)
    distance = np.linalg.norm(there.r_factor @ (result.popt - there.popt))
    assert distance / math.sqrt(there.reduced_chi2) < 2 * STAT_TOL
    np.testing.assert_allclose(result.popt, there.popt, atol=2 * STAT_TOL * there.perr.max())
    assert result.distance_to_optimum_sigma < STAT_TOL


@pytest.mark.slow
def test_that_ftol_alone_would():
    # What the test above guards against is there.
    x, y = data("decay", 1_000_000, noise=0.5)
    start = [2.52, 1.31, 0.503]
    result = streamed("decay", x, y, start, ftol=1e-3, xtol=1e-3, stat_tol=None, pilot=False)
    assert result.distance_to_optimum_sigma > STAT_TOL


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-4])
def test_it_is_as_near_as_asked(tolerance):
    x, y = data("gauss", 50_000)
    there = streamed("gauss", x, y, pilot=False, **CONVERGED)
    result = streamed("gauss", x, y, pilot=False, stat_tol=tolerance, ftol=1e-4)
    assert result.distance_to_optimum_sigma < tolerance
    distance = np.linalg.norm(there.r_factor @ (result.popt - there.popt))
    assert distance / math.sqrt(there.reduced_chi2) < 2 * tolerance


@pytest.mark.slow
def test_it_ends_at_a_bound_too():
    x, y = data("gauss", 50_000)
    bounds = ([0, 0, 0, 0], [2.5, 10, 10, 10])
    there = streamed("gauss", x, y, [2, 5, 0.5, 0.7], bounds=bounds, pilot=False, **CONVERGED)
    result = streamed("gauss", x, y, [2, 5, 0.5, 0.7], bounds=bounds, pilot=False)
    assert result.success
    assert result.active_mask.tolist() == there.active_mask.tolist() == [1, 0, 0, 0]
    free = slice(1, None)
    moved = np.abs(result.popt - there.popt)[free] / there.perr[free]
    assert moved.max() < 2 * STAT_TOL
    assert result.n_passes <= there.n_passes


@pytest.mark.parametrize("wrong", [-1.0, math.nan, "tight"])
def test_a_tolerance_that_is_none(wrong):
    with pytest.raises(InputError, match="stat_tol"):
        fit(line, np.arange(5.0), np.arange(5.0), P0["line"], stat_tol=wrong)
