"""Robust losses: their terms, against the formulas that SciPy documents, and their derivatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES

from nlsq_dask import InputError, ModelError
from nlsq_dask.user_model.elementary import arctan, log1p, total_arctan, total_log1p
from nlsq_dask.user_model.loss import LEAST_SQUARED_SCALE, LINEAR, NAMES, ROWS, Loss
from nlsq_dask.user_model.model import prepare_loss
from nlsq_dask.user_model.model_spec import call_model

# Where 1 + z keeps the digits of z, and away from the kink of huber's second derivative.
ordinary = st.floats(1e-3, 1e6).filter(lambda z: abs(z - 1) > 1e-6)


def call(function, z):
    return call_model(function, (z,), jnp.zeros(0))


def of_scipy(loss, residuals):
    """Costs, scores and curvatures by the functions of ``scipy.optimize.least_squares``."""
    z = (residuals / loss.f_scale) ** 2
    rho = np.empty((3, z.size))
    IMPLEMENTED_LOSSES[loss.name](z, rho, cost_only=False)
    value, first, second = rho
    return 0.5 * loss.f_scale**2 * value, first * residuals, first + 2.0 * z * second


def of_rows(loss, residuals):
    """Costs, scores and weights of rows that all count."""
    with jax.enable_x64(True):
        costs, scores, weights = loss.of_rows(jnp.asarray(residuals), jnp.asarray(True), call)
        return np.asarray(costs), np.asarray(scores), [np.asarray(w) for w in weights]


def test_the_losses_are_scipy_s():
    assert set(NAMES) == set(IMPLEMENTED_LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@given(z=st.lists(ordinary, min_size=8, max_size=8), f_scale=st.floats(0.01, 100))
def test_the_terms_of_rows_are_scipy_s(name, z, f_scale):
    loss = Loss(name, f_scale)
    residuals = f_scale * np.sqrt(z) * np.tile([1, -1], 4)
    costs, scores, weights = of_rows(loss, residuals)
    expected_costs, expected_scores, expected = of_scipy(loss, residuals)
    np.testing.assert_allclose(costs, expected_costs, rtol=1e-11)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-14)
    # The sum of two terms loses digits where they cancel: their size is that of the slope.
    rounding = 1e-14 * np.abs(scores / residuals) + 1e-300
    limits = [np.maximum(expected, LEAST_SQUARED_SCALE), np.minimum(expected, 0.0)]
    assert len(weights) == 1 + loss.is_concave
    for found, limited in zip(weights, limits, strict=False):
        np.testing.assert_array_less(np.abs(found - limited), rounding)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@given(residual=st.floats(1e-150, 1e-5))
def test_small_residuals_count_as_in_least_squares(name, residual):
    """To the last digits, where the documented formulas lose them all."""
    costs, scores, (weights, *_) = of_rows(Loss(name), np.array([residual]))
    np.testing.assert_allclose(costs, 0.5 * residual**2, rtol=1e-9)
    np.testing.assert_allclose(scores, residual, rtol=1e-9)
    np.testing.assert_allclose(weights, 1, rtol=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_terms_are_finite_where_residuals_are(name):
    costs, scores, weights = of_rows(Loss(name), np.array([0.0, 1.0, -1.0, 1e100]))
    assert np.isfinite([costs, scores, *weights]).all()
    assert not (np.array(weights[0]) < LEAST_SQUARED_SCALE).any()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("residual", [np.nan, np.inf])
def test_a_residual_that_is_not_finite_shows_in_the_sums(name, residual):
    """In the cost, or for arctan, whose limit is finite, in the gradient."""
    costs, scores, _ = of_rows(Loss(name), np.array([residual]))
    assert not np.isfinite([costs, scores]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_loss_is_known_to_be_concave_where_it_is(name):
    """The second derivative by r of ρ(r²), halved, is ρ' + 2 z ρ''."""
    residuals = np.linspace(-30, 30, 1001)
    assert Loss(name).is_concave == (of_scipy(Loss(name), residuals)[2].min() < -1e-3)


# Numbers of z in eight arrays: of one size, and of sizes whose product overflows.
eight = st.lists(st.floats(0, 1e9) | st.floats(1e-300, 1e30), min_size=8, max_size=8)


@functools.partial(jax.jit, static_argnums=0)
def compiled_total(total, z):
    return total(list(z))


@pytest.mark.slow
@pytest.mark.parametrize(("total", "exact"), [(total_log1p, np.log1p), (total_arctan, np.arctan)])
@given(z=eight)
def test_a_total_of_eight_rows_is_the_sum_of_rows(total, exact, z):
    """To the last digits of the sum, also of small numbers and where half turns are counted."""
    with jax.enable_x64(True):
        found = float(compiled_total(total, np.array(z)[:, None])[0])
    expected = exact(np.array(z, np.longdouble)).sum()
    assert abs(found - expected) <= 2e-15 * expected + 1e-320


@pytest.mark.parametrize(("total", "exact"), [(total_log1p, np.log1p), (total_arctan, np.arctan)])
def test_a_total_that_overflows_is_not_finite(total, exact):
    """Never a wrong number: each product of large numbers is right, or not finite."""
    sizes = np.geomspace(1e30, 1e200, 171)
    z = np.vstack([sizes * part for part in (1.0, 1e-9, 1e9, 0.3, 0.0, 1e-30, 1.0, 2.0)])
    with jax.enable_x64(True):
        found = np.asarray(compiled_total(total, z))
    expected = exact(z.astype(np.longdouble)).sum(axis=0)
    finite = np.isfinite(found)
    assert finite[0]
    assert not finite[-1]
    np.testing.assert_allclose(found[finite], expected[finite].astype(float), rtol=2e-15)


@pytest.mark.parametrize("name", ROWS)
def test_the_total_cost_is_the_sum_of_costs(name):
    residuals = np.random.default_rng(0).normal(size=(8, 50)) * np.geomspace(1e-3, 1e3, 50)
    loss = Loss(name, 0.7)
    with jax.enable_x64(True):
        found = np.asarray(loss.total_cost([jnp.asarray(r) for r in residuals]))
    expected = of_scipy(loss, residuals.ravel())[0].reshape(8, 50).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def own_cauchy(z):
    return jnp.stack([jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])


def own_cauchy_in_numpy(z):
    return np.vstack([np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])


def own_cauchy_as_a_list(z):
    return [np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2]


@pytest.mark.slow
@pytest.mark.parametrize("function", [own_cauchy, own_cauchy_in_numpy, own_cauchy_as_a_list])
def test_a_function_of_one_s_own(function):
    loss = prepare_loss(function, 0.7)
    assert (loss.name, loss.f_scale, loss.is_linear) == (function.__name__, 0.7, False)
    residuals = np.linspace(-3, 3, 50)
    costs, scores, weights = of_rows(Loss("cauchy", 0.7), residuals)
    own_costs, own_scores, own_weights = of_rows(loss, residuals)
    np.testing.assert_allclose(own_costs, costs, rtol=1e-14)
    np.testing.assert_allclose(own_scores, scores, rtol=1e-14)
    np.testing.assert_allclose(own_weights, weights, rtol=1e-12, atol=1e-15)


def test_identity_across_processes():
    """Equal losses share a kernel and a checkpoint, others do not."""
    equal = [prepare_loss(own_cauchy, 0.7), prepare_loss(own_cauchy, np.float64(0.7))]
    assert equal[0].token == equal[1].token
    tokens = {
        loss.token
        for loss in (
            equal[0],
            prepare_loss(own_cauchy, 0.8),
            prepare_loss(lambda z: 2 * own_cauchy(z), 0.7),
            prepare_loss("cauchy", 0.7),
            prepare_loss("huber", 0.7),
            LINEAR,
        )
    }
    assert len(tokens) == 6


@pytest.mark.parametrize(
    ("loss", "f_scale", "error", "text"),
    [
        ("l1", 1.0, InputError, "loss = 'l1' is unknown"),
        (["huber"], 1.0, InputError, "loss = ['huber'] is unknown"),
        (None, 1.0, InputError, "loss = None is unknown"),
        ("huber", 0.0, InputError, "f_scale = 0.0: pass a positive"),
        ("huber", np.nan, InputError, "f_scale = nan: pass a positive"),
        ("huber", "1s", InputError, "f_scale = '1s': pass a positive"),
        ("huber", [1, 2], InputError, "f_scale = [1, 2]: pass a positive"),
        ("linear", -1, InputError, "f_scale = -1: pass a positive"),
        (jnp.log1p, 1.0, ModelError, "loss = log1p returned shape (1009,) for 1009 values of z"),
        (lambda z: 1 / 0, 1.0, ModelError, "loss = lambda raised ZeroDivisionError"),
        (lambda z: None, 1.0, ModelError, "loss = lambda returned None"),
    ],
)
def test_refusals(loss, f_scale, error, text):
    with pytest.raises(error) as raised:
        prepare_loss(loss, f_scale)
    assert text in str(raised.value)


# Over all magnitudes, closely where the series change, and where the tests of 0, π/4, π/2 do.
MAGNITUDES = np.concatenate([np.geomspace(1e-300, 1e300, 6001), np.linspace(0.0, 8.0, 8001)])


@pytest.mark.parametrize(("ours", "exact"), [(log1p, np.log1p), (arctan, np.arctan)])
def test_elementary_functions_are_right_to_the_last_bits(ours, exact):
    """Of the value, however small it is; in NumPy's long doubles, which have 11 bits more."""
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(ours)(MAGNITUDES))
        ends = np.asarray(jax.jit(ours)(np.array([0.0, np.inf, np.nan])))
    expected = exact(MAGNITUDES.astype(np.longdouble))
    np.testing.assert_array_less(np.abs(found - expected), 5e-16 * expected + 1e-320)
    np.testing.assert_array_equal(ends, exact(np.array([0.0, np.inf, np.nan])))
