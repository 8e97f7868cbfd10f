"""A success is at the optimum: in any units, from any start, by every method, streamed or not."""

from __future__ import annotations

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from nlsq_dask import (
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    FitResult,
    curve_fit,
    fit,
    fit_models,
)
from nlsq_dask._errors import Status
from nlsq_dask.models import Gaussian

X = np.linspace(0, 10, 1000)
NOISE = np.random.default_rng(0).normal(0, 0.05, 1000)
Y = 2 * np.exp(-X / 1.7) + 0.4 + NOISE
FAR = 1.7e9
METHODS = ("trf", "lm", "dogbox")


def decay(t, a, tau, b):
    return a * jnp.exp(-t / tau) + b


def peak(t, a, centre, width):
    return a * jnp.exp(-0.5 * ((t - centre) / width) ** 2)


def line(t, a, b):
    return a * t + b


def step(t, a, edge):
    return a * jnp.where(t > edge, 1.0, 0.0)


def rounded(t, a, b):
    return a * jnp.exp(-t) + jnp.round(b)


def hidden(t, a, b):
    return a * jnp.exp(-t) + jax.lax.stop_gradient(b)


def level(t, a):
    return a + 0 * t


def tent(t, a, edge):
    return a * jnp.abs(t - edge)


def single(t, a, tau, b):
    t = t.astype(jnp.float32)
    return (a.astype(jnp.float32) * jnp.exp(-t / tau.astype(jnp.float32))).astype(float) + b


def in_natural_units(model, x, y, p0) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors of SciPy, run on to convergence with an exact Jacobian."""
    with jax.enable_x64(True):
        value = jax.jit(lambda p: model(jnp.asarray(x), *p) - jnp.asarray(y))
        slope = jax.jit(jax.jacfwd(value))
        found = least_squares(
            lambda p: np.asarray(value(p)),
            p0,
            lambda p: np.asarray(slope(p)),
            method="lm",
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
        )
    pcov = np.linalg.inv(found.jac.T @ found.jac) * 2 * found.cost / (x.size - len(p0))
    return found.x, np.sqrt(np.diag(pcov))


def assert_at(result: FitResult, popt, perr) -> None:
    """A success, within 0.01 standard errors, with the errors right to three digits."""
    assert result.success, result.message
    assert result.distance_to_optimum_sigma < 0.01 or result.status in (
        Status.ROUNDING,
        Status.NEAR,
    )
    assert np.max(np.abs(result.popt - popt) / perr) < 0.01
    assert result.perr == pytest.approx(perr, rel=1e-3)


@pytest.mark.quick(4)
@pytest.mark.parametrize("unit", [1e-18, 1e-12, 1e-3, 1e6, 1e18])
@pytest.mark.parametrize("method", METHODS)
def test_units_of_y_do_not_matter(method, unit):
    popt, perr = in_natural_units(decay, X, Y, [1, 1, 0])
    units = np.array([unit, 1, unit])
    natural = fit(decay, X, Y, p0=[1, 1, 0], method=method)
    result = fit(decay, X, unit * Y, p0=[unit, 1, 0], method=method)
    assert_at(result, popt * units, perr * units)
    assert result.nfev == natural.nfev


@pytest.mark.slow
@pytest.mark.parametrize("workflow", ["auto", "standard", "quality", "fast", "streaming"])
def test_units_do_not_matter_to_a_workflow(workflow):
    popt, perr = in_natural_units(decay, X, Y, [1, 1, 0])
    data = (X, 1e-12 * Y)
    if workflow == "streaming":
        data = tuple(da.from_array(a, 250) for a in data)
    result = fit(decay, *data, p0=[1e-12, 1, 0], workflow=workflow)
    assert result.success
    apart = result.popt / [1e-12, 1, 1e-12] - popt
    assert np.max(np.abs(apart / perr)) < 0.05


def test_a_start_on_bounds_is_left_in_few_evaluations():
    popt, perr = in_natural_units(decay, X, Y, [1, 1, 0])
    result = fit(decay, X, Y, p0=[0, 1, 0], bounds=(0, np.inf))
    assert_at(result, popt, perr)
    assert result.nfev <= 15
    assert result.active_mask.tolist() == [0, 0, 0]


def test_the_cost_of_a_bad_start_does_not_end_the_fit():
    popt, perr = in_natural_units(decay, X, (1e9 + Y) - 1e9, [1, 1, 0])
    assert_at(fit(decay, X, 1e9 + Y, p0=[1, 1, 0]), np.add(popt, [0, 0, 1e9]), perr)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_large_parameter_does_not_hide_the_others(method):
    t = (FAR + X) - FAR  # as rounded
    y = peak(t, 1.0, 5.0, 0.8) + NOISE
    popt, perr = in_natural_units(peak, t, y, [0.8, 4.5, 1])
    result = fit(peak, FAR + X, y, p0=[0.8, FAR + 4.5, 1], method=method)
    assert_at(result, np.add(popt, [0, FAR, 0]), perr)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [FAR, -2.46e6])
def test_columns_that_are_nearly_collinear_are_told_apart(method, offset):
    t = (offset + X) - offset
    y = 3 * t + 1 + NOISE
    popt, perr = in_natural_units(line, t, y, [1, 1])
    result = fit(line, offset + X, y, p0=[1, 1], method=method)
    assert result.success
    assert abs(result.popt[0] - popt[0]) < 0.01 * perr[0]
    assert result.perr[0] == pytest.approx(perr[0], rel=1e-3)
    middle = result.popt @ [offset + 5, 1]
    assert middle == pytest.approx(popt @ [5, 1], abs=0.01 * 0.05 / 30)


def test_a_lifetime_of_nanoseconds_is_not_at_its_bound():
    unit = 1e-9 / 1.7 * 8
    result = fit(decay, unit * X, Y, p0=[1, 6e-9, 0], bounds=([0, 0, -1], np.inf))
    assert result.popt[1] == pytest.approx(8e-9, rel=0.05)
    assert result.active_mask.tolist() == [0, 0, 0]


def test_a_narrow_box_is_searched():
    """A box far narrower than 1: what was moved off its bounds may not fill it."""
    start = np.array([2.0, 1.7, 0.4])
    result = fit(decay, X, Y, p0=start, bounds=(start - 1e-9, start + 1e-9), method="dogbox")
    assert result.success
    assert np.abs(result.active_mask).tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("model", [step, rounded, hidden])
def test_a_parameter_without_a_slope_is_undetermined(model):
    y = model(X, 2.0, 3.0) + NOISE
    with pytest.warns(CovarianceWarning, match="do not determine"):
        result = fit(model, X, np.asarray(y), p0=[1, 3.0])
    assert result.status is Status.UNDETERMINED
    assert not result.success
    assert len(result.undetermined) == 1
    assert result.undetermined[0] in ("edge", "b")
    assert np.isinf(result.pcov).all()
    assert result.distance_to_optimum_sigma < 0.01
    with pytest.raises(ConvergenceError, match=result.undetermined[0]):
        result.raise_for_status()


def opposite(t, a, tau, b):
    """Derivatives of `decay` with the wrong sign."""
    falls = jnp.exp(-t / tau)
    return -jnp.stack([falls, a * t / tau**2 * falls, jnp.ones_like(t)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_that_are_not_those_of_the_values_are_named(method):
    with pytest.warns(ConvergenceWarning, match="check `jac`"):
        result = fit(decay, X, Y, p0=[1, 1, 0], jac=opposite, method=method)
    assert result.status is Status.INCONSISTENT
    assert not result.success


def test_a_success_raises_nothing():
    fit(line, X, Y, p0=[1, 1]).raise_for_status()


def test_a_peak_that_starts_far_from_its_data_is_no_success():
    y = peak(X, 1.0, 5.0, 0.8) + NOISE
    with pytest.warns(CovarianceWarning):
        result = fit(peak, X, np.asarray(y), p0=[0.8, 400.0, 0.8])
    assert result.undetermined == ("a", "centre", "width")
    assert not result.success


@pytest.mark.slow
def test_curve_fit_returns_as_scipy_does_where_a_parameter_is_undetermined():
    with pytest.warns(CovarianceWarning):
        popt, pcov, _, _, ier = curve_fit(step, X, Y, p0=[1, 5.0], full_output=True)
    assert popt[1] == 5.0
    assert np.isinf(pcov).all()
    assert ier in (1, 2, 3, 4)


def test_curve_fit_warns_where_scipy_would_have_returned_too_early():
    """Where the criteria are loose and evaluations run out before the optimum is near."""
    with pytest.warns(ConvergenceWarning, match="maxfev"):
        _, _, _, _, ier = curve_fit(
            decay, X, Y, p0=[1.5, 1.0, 0.2], xtol=9.0, maxfev=2, full_output=True
        )
    assert ier in (1, 2, 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_a_maximum_is_no_minimum(method):
    """Between two clusters that pull alike the gradient vanishes."""
    y = np.repeat([-3.0, 3.0], 50)
    result = fit(level, X[:100], y, p0=[0.0], loss="cauchy", method=method)
    assert result.success
    assert abs(result.popt[0]) == pytest.approx(np.sqrt(8), rel=1e-6)  # where 2a² = 2 · 9 - 2


@pytest.mark.slow
def test_the_best_of_piecewise_lines_is_a_success():
    y = np.asarray(tent(X, 2.0, 4.5)) + NOISE
    result = fit(tent, X, y, p0=[1.0, 4.0])
    assert result.success
    costs = [np.sum((2.0 * np.abs(X - e) - y) ** 2) for e in np.linspace(4.4, 4.6, 401)]
    assert 2 * result.cost <= min(costs) * (1 + 1e-9)


@pytest.mark.slow
def test_a_model_in_float32_ends_at_its_rounding():
    result = fit(single, X, Y, p0=[1, 1, 0])
    popt, perr = in_natural_units(decay, X, Y, [1, 1, 0])
    assert result.success
    assert np.max(np.abs(result.popt - popt) / perr) < 0.1


def test_exact_data_end_at_rounding():
    exact = np.asarray(decay(X, 2.0, 1.7, 0.4))
    result = fit(decay, X, exact, p0=[1, 1, 0])
    assert result.success
    assert result.popt == pytest.approx([2.0, 1.7, 0.4], rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_optimum_takes_one_evaluation(method):
    popt, _ = in_natural_units(decay, X, Y, [1, 1, 0])
    result = fit(decay, X, Y, p0=popt, method=method)
    assert result.success
    assert result.nfev == result.n_passes == 1


@pytest.mark.slow
def test_guesses_in_other_units_lead_to_the_optimum():
    shape = Gaussian()
    y = np.asarray(peak(X, 3.0, 5.0, 0.8)) + NOISE
    natural = fit(shape, X, y)
    assert natural.success
    small = fit(shape, 1e-9 * X, 1e-9 * y)
    assert small.success
    assert small.r_squared == pytest.approx(natural.r_squared, rel=1e-6)


def test_models_are_ranked_in_any_units():
    comparison = fit_models(
        {"line": line, "decay": decay}, X, 1e-12 * Y, p0=[[0, 0], [1e-12, 1, 0]]
    )
    assert comparison.best_name == "decay"
    assert all(result.success for result in comparison)


def test_a_fit_that_is_no_success_is_not_ranked():
    with pytest.warns(ConvergenceWarning):
        comparison = fit_models(
            {"line": line, "decay": decay}, X, Y, p0=[[0, 0], [9, 9, 9]], max_nfev=3
        )
    assert comparison.best_name == "line"
    assert np.isnan(comparison.delta_aic[1])
    assert comparison.akaike_weights[0] == 1.0
    assert "best: line" in repr(comparison)
    with pytest.warns(ConvergenceWarning):
        lost = fit_models({"decay": decay}, X, Y, p0=[[9, 9, 9]], max_nfev=2)
    with pytest.raises(ConvergenceError, match="decay"):
        _ = lost.best
    assert "best: none" in repr(lost)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("height", [5.0, 1e-3, -7.7, 1e150])
def test_a_constant_says_nothing_of_a_lifetime(height, method):
    """The amplitude ends at rounding errors, the residuals at rounding errors or at 0."""
    with pytest.warns(CovarianceWarning):
        result = fit(decay, X[:40], np.full(40, height), p0=[1, 1, 0], method=method)
    assert result.status is Status.UNDETERMINED
    assert "tau" in result.undetermined


def test_zeros_say_nothing_of_a_lifetime():
    """The amplitude ends where squares of its effects have no float64."""
    with pytest.warns((CovarianceWarning, ConvergenceWarning)):
        result = fit(decay, X[:40], np.zeros(40), p0=[1, 1, 0])
    assert not result.success
    assert "tau" in result.undetermined  # which others, the last bits of the machine decide
    assert np.isinf(result.perr).all()
