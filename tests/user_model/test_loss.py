"""Robust losses: their terms, against the formulas that SciPy documents, and their derivatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import InputError, ModelError
from nlsq_dask.user_model.elementary import arctan, log1p
from nlsq_dask.user_model.loss import (
    LEAST_SQUARED_SCALE,
    LINEAR,
    LOSSES,
    ROWS,
    Loss,
)
from nlsq_dask.user_model.model import prepare_loss
from nlsq_dask.user_model.model_spec import call_model

# rho(z) as documented for scipy.optimize.least_squares.
DOCUMENTED = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * ((1 + z) ** 0.5 - 1),
    "huber": lambda z: jnp.where(z <= 1, z, 2 * z**0.5 - 1),
    "cauchy": lambda z: jnp.log(1 + z),
    "arctan": lambda z: jnp.arctan(z),
}

# Where 1 + z keeps the digits of z, and away from the kink of huber's second derivative.
ordinary = st.floats(1e-3, 1e6).filter(lambda z: abs(z - 1) > 1e-6)


@functools.partial(jax.jit, static_argnums=0)
def compiled_terms(name, z):
    rho = DOCUMENTED[name]
    slope = jax.grad(rho)
    return [jax.vmap(f)(z) for f in (rho, slope, jax.grad(slope))]


def documented_terms(name, z):
    with jax.enable_x64(True):
        return compiled_terms(name, jnp.asarray(z))


def call(function, z):
    return call_model(function, (z,), jnp.zeros(0))


def terms(loss, residuals):
    with jax.enable_x64(True):
        return [np.asarray(t) for t in loss.terms(jnp.asarray(residuals), call)]


def test_the_losses_are_scipy_s():
    assert set(LOSSES) == set(DOCUMENTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTED)
@given(z=st.lists(ordinary, min_size=8, max_size=8), f_scale=st.floats(0.01, 100))
def test_terms_are_the_documented_loss_and_its_derivatives(name, z, f_scale):
    z = np.array(z)
    value, first, second = terms(Loss(name, f_scale), f_scale * np.sqrt(z))
    expected = [np.asarray(t) for t in documented_terms(name, z)]
    np.testing.assert_allclose(value, f_scale**2 * expected[0], rtol=1e-11)
    np.testing.assert_allclose(first, expected[1], rtol=1e-11)
    np.testing.assert_allclose(second, z * expected[2], rtol=1e-11, atol=1e-300)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTED)
@given(residual=st.floats(1e-150, 1e-5))
def test_small_residuals_count_as_in_least_squares(name, residual):
    """To the last digits, where the documented formulas lose them all."""
    value, first, second = terms(Loss(name), np.array([residual]))
    np.testing.assert_allclose(value, residual**2, rtol=1e-9)
    np.testing.assert_allclose(first, 1, rtol=1e-9)
    assert abs(second[0]) <= residual**2


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("residual", [0.0, 1.0, -1.0, 1e100])
def test_terms_are_finite_where_residuals_are(name, residual):
    assert np.isfinite(terms(Loss(name), np.array([residual]))).all()


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("residual", [np.nan, np.inf])
def test_a_residual_that_is_not_finite_shows_in_the_sums(name, residual):
    """In the cost, or for arctan, whose limit is finite, in the gradient."""
    value, first, _ = terms(Loss(name), np.array([residual]))
    with np.errstate(invalid="ignore"):
        assert not np.isfinite([value, residual * first]).all()


def of_rows(loss, residuals):
    """Costs, scores and weights of rows that all count."""
    with jax.enable_x64(True):
        costs, scores, weights = loss.of_rows(jnp.asarray(residuals), jnp.asarray(True), call)
        return np.asarray(costs), np.asarray(scores), [np.asarray(w) for w in weights]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@given(sizes=st.lists(st.floats(1e-9, 1e9), min_size=8, max_size=8), f_scale=st.floats(0.01, 100))
def test_the_terms_of_rows_are_those_of_the_loss(name, sizes, f_scale):
    loss = Loss(name, f_scale)
    residuals = f_scale * np.array(sizes) * np.tile([1, -1], 4)
    value, first, second = terms(loss, residuals)
    curvatures = first + 2 * second
    costs, scores, (weights, *concave) = of_rows(loss, residuals)
    np.testing.assert_allclose(costs, 0.5 * value, rtol=4e-15)
    np.testing.assert_allclose(scores, first * residuals, rtol=4e-15)
    # The sum of the two terms has lost digits where they cancel.
    rounding = 1e-15 * np.abs(first)
    expected = np.maximum(curvatures, LEAST_SQUARED_SCALE)
    np.testing.assert_array_less(np.abs(weights - expected), 4 * rounding + 1e-300)
    assert len(concave) == loss.is_concave
    for below in concave:
        np.testing.assert_array_less(
            np.abs(below - np.minimum(curvatures, 0)), 4 * rounding + 1e-300
        )


@pytest.mark.parametrize("name", ROWS)
def test_the_terms_of_rows_are_finite_where_residuals_are(name):
    costs, scores, weights = of_rows(Loss(name), np.array([0.0, 1.0, -1.0, 1e100]))
    assert np.isfinite([costs, scores, *weights]).all()
    assert not (np.array(weights[0]) < LEAST_SQUARED_SCALE).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_loss_is_known_to_be_concave_where_it_is(name):
    """The second derivative by r of ρ(r²), halved, is ρ' + 2 z ρ''."""
    _, first, second = terms(Loss(name), np.linspace(-30, 30, 1001))
    assert Loss(name).is_concave == ((first + 2 * second).min() < -1e-3)


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
    for own, built_in in zip(
        terms(loss, residuals), terms(Loss("cauchy", 0.7), residuals), strict=True
    ):
        np.testing.assert_allclose(own, built_in, rtol=1e-14)


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
