"""Derivatives that are not finite although the value is: differences take their place."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES

from nlsq_dask.io.stage import aligned_empty
from nlsq_dask.kernels.sums import block_compilations, block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.kernels.values import covariance_root, row_compilations, row_kernel
from nlsq_dask.user_model.model import prepare_jacobian, prepare_loss, prepare_model
from nlsq_dask.user_model.model_spec import trace_model
from nlsq_dask.user_model.traces import coarsest_epsilon

ROWS = np.arange(0.0, 300.0)
ROOT_EPS32 = float(np.finfo(np.float32).eps) ** 0.5


def stretched(t, a, tau, b):
    return a * jnp.exp(-((t / tau) ** b))


def stretched_slopes(t, a, tau, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (t / tau) ** b
        decay = np.exp(-u)
        slopes = decay, a * decay * u * b / tau, -a * decay * u * np.log(t / tau)
    return np.where(t > 0, np.array(slopes), [[1.0], [0.0], [0.0]])


def stretched_in_float32(t, a, tau, b):
    u = (t.astype(jnp.float32) / jnp.float32(tau)) ** jnp.float32(b)
    return jnp.float32(a) * jnp.exp(-u)


def spot(x, a, x0, w):
    return a * jnp.exp(-jnp.sqrt((x - x0) ** 2) / w)


def spot_slopes(x, a, x0, w):
    r = np.abs(x - x0)
    f = np.exp(-r / w)
    # By x0 the slopes of both sides cancel on the summit.
    return np.array([f, a * f * np.sign(x - x0) / w, a * f * r / w**2])


def clipped(x, a, x0, n):
    return a * jnp.clip(x - x0, 0.0) ** n


def clipped_slopes(x, a, x0, n):
    u = np.where(x > x0, x - x0, 1.0)
    return np.where(x > x0, np.array([u**n, -a * n * u ** (n - 1), a * u**n * np.log(u)]), 0.0)


def masked_root(x, a, x0, c):
    return a * jnp.sqrt(jnp.where(x > x0, x - x0, 0.0)) + c


def masked_root_slopes(x, a, x0, c):
    del c
    u = np.where(x > x0, x - x0, 1.0)
    return np.array(
        [np.where(x > x0, u**0.5, 0.0), np.where(x > x0, -0.5 * a / u**0.5, 0.0), np.ones_like(x)]
    )


def saturating(x, a, b, c):
    return a * jnp.tanh(b * x) ** c


def saturating_slopes(x, a, b, c):
    u = np.where(x > 0, np.tanh(b * x), 1.0)
    slopes = u**c, a * c * u ** (c - 1) * x * (1 - u**2), a * u**c * np.log(u)
    return np.where(x > 0, np.array(slopes), 0.0)


# Model, its derivatives (p, n), parameters, and the rows whose automatic derivative is no number.
MODELS = {
    "stretched": (stretched, stretched_slopes, [2.0, 40.0, 0.6], ROWS == 0),
    "spot": (spot, spot_slopes, [3.0, 150.0, 20.0], ROWS == 150),
    "clipped": (clipped, clipped_slopes, [2.0, 99.5, 0.7], ROWS < 100),
    "masked root": (masked_root, masked_root_slopes, [2.0, 99.5, 1.0], ROWS < 100),
    "saturating": (saturating, saturating_slopes, [2.0, 0.01, 0.7], ROWS == 0),
}
TABLE = pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)


def staged(x, y, weights=None, capacity=512, filler=0.0):
    """Rows in front of others that must not count."""
    buffers = []
    for array in (x, y, x if weights is None else weights):
        buffer = aligned_empty(capacity)
        buffer[: len(x)], buffer[len(x) :] = array, filler
        buffers.append(buffer)
    return Rows((buffers[0],), buffers[1], None if weights is None else buffers[2], len(x))


def random_basis(seed, p, q=None):
    return np.random.default_rng(seed).normal(size=(p, q or p))


def assert_sums(sums, jacobian, residuals, rtol=1e-9):
    """Compare with dense sums of J (n, q) and r, in units of the columns' lengths."""
    lengths = np.linalg.norm(jacobian, axis=0)
    error = (sums.gram - jacobian.T @ jacobian) / np.outer(lengths, lengths)
    np.testing.assert_allclose(error, 0.0, atol=rtol)
    scale = lengths * np.linalg.norm(residuals)
    np.testing.assert_allclose((sums.gradient - jacobian.T @ residuals) / scale, 0.0, atol=rtol)
    np.testing.assert_allclose(sums.chi2, residuals @ residuals, rtol=max(rtol, 1e-12))


@pytest.mark.every(3)
@pytest.mark.slow
@TABLE
@pytest.mark.parametrize("filler", [0.0, np.nan])
def test_sums_are_those_of_the_true_derivatives(case, filler):
    model, slopes, params, bad = case
    y = np.random.default_rng(1).normal(size=ROWS.size)
    weights = np.linspace(0.5, 1.5, ROWS.size)
    spec, basis = prepare_model(model), random_basis(2, 3)
    kernel = block_kernel(spec, "cpu")
    sums = kernel(np.array(params), basis, staged(ROWS, y, weights, filler=filler))
    residuals = weights * (np.asarray(row_kernel(spec).values(np.array(params), (ROWS,))) - y)
    assert_sums(sums, (weights * slopes(ROWS, *params)).T @ basis, residuals)
    assert sums.n_differenced == np.count_nonzero(bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stretched", "clipped"])
def test_bands_and_scores_take_the_same_differences(name):
    model, slopes, params, _ = MODELS[name]
    params, spec = np.array(params), prepare_model(model)
    root = covariance_root(np.diag((0.01 * params) ** 2))
    errors = row_kernel(spec).standard_errors(params, root, (ROWS,))
    expected = np.sqrt(np.sum((root.T @ slopes(ROWS, *params)) ** 2, axis=0))
    np.testing.assert_allclose(errors, expected, rtol=1e-6, atol=1e-9 * expected.max())

    y = np.random.default_rng(1).normal(size=ROWS.size)
    residuals = row_kernel(spec).values(params, (ROWS,)) - y
    scores = slopes(ROWS, *params) * residuals
    meat = block_kernel(spec, "cpu").score_products(params, staged(ROWS, y))
    lengths = np.linalg.norm(scores, axis=1)
    np.testing.assert_allclose(
        (meat - scores @ scores.T) / np.outer(lengths, lengths), 0.0, atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["huber", "cauchy"])
def test_with_a_robust_loss(loss):
    y = np.random.default_rng(3).normal(size=ROWS.size)
    params = np.array([2.0, 40.0, 0.6])
    spec = replace(prepare_model(stretched), loss=prepare_loss(loss, 0.5))
    sums = block_kernel(spec, "cpu")(params, np.eye(3), staged(ROWS, y))
    residuals = row_kernel(spec).values(params, (ROWS,)) - y
    rho = np.empty((3, ROWS.size))
    IMPLEMENTED_LOSSES[loss]((residuals / 0.5) ** 2, rho, cost_only=False)
    expected = stretched_slopes(ROWS, *params) @ (rho[1] * residuals)
    np.testing.assert_allclose(sums.gradient, expected, rtol=1e-4)
    assert np.isfinite(sums.gram).all()
    assert sums.n_differenced == 1
    assert sums.concave is None or np.isfinite(sums.concave).all()


@pytest.mark.slow
def test_derivatives_of_the_user_that_are_not_finite():
    def slopes(t, a, tau, b):
        u = (t / tau) ** b
        decay = jnp.exp(-u)
        return jnp.stack([decay, a * decay * u * b / tau, -a * decay * u * jnp.log(t / tau)], 1)

    spec = prepare_model(stretched)
    spec = replace(spec, jacobian=prepare_jacobian(slopes, spec))
    y, params = np.zeros(ROWS.size), np.array([2.0, 40.0, 0.6])
    sums = block_kernel(spec, "cpu")(params, np.eye(3), staged(ROWS, y))
    values = row_kernel(spec).values(params, (ROWS,))
    assert_sums(sums, stretched_slopes(ROWS, *params).T, values)
    assert sums.n_differenced == 1


@pytest.mark.slow
def test_a_model_in_float32_takes_longer_steps():
    spec, params = prepare_model(stretched_in_float32), np.array([2.0, 40.0, 0.6])
    assert coarsest_epsilon(trace_model(spec, 8)) == float(np.finfo(np.float32).eps)
    assert coarsest_epsilon(trace_model(prepare_model(stretched), 8)) == np.finfo(np.float64).eps
    sums = block_kernel(spec, "cpu")(params, np.eye(3), staged(ROWS, 0 * ROWS))
    values = row_kernel(spec).values(params, (ROWS,))
    assert_sums(sums, stretched_slopes(ROWS, *params).T, values, rtol=ROOT_EPS32)
    assert sums.n_differenced == 1


def between(x, a, x0, x1):
    return a * jnp.sqrt((x - x0) ** 2 + jnp.abs(1.0 - x1)) + jnp.sqrt(1.0 - x1)


@pytest.mark.slow
def test_a_fixed_parameter_is_not_moved():
    # Beyond x1 = 1 there is no value, and before it another one.
    spec = replace(prepare_model(between), constant=(2,))
    params, basis = np.array([3.0, 150.0, 1.0]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    sums = block_kernel(spec, "cpu")(params, basis, staged(ROWS, 0 * ROWS))
    slopes = np.array([np.abs(ROWS - 150.0), -3.0 * np.sign(ROWS - 150.0)])
    assert_sums(sums, slopes.T, 3.0 * np.abs(ROWS - 150.0))
    assert sums.n_differenced == 1


def ends_at_zero(x, a, c):
    return jnp.sqrt(a * x) + c


def ends_at_one(x, b):
    return jnp.arcsin(b * x / ROWS[-1])


@pytest.mark.slow
def test_an_infinite_slope_becomes_a_large_finite_number_on_the_side_where_the_model_is():
    kernel = block_kernel(prepare_model(ends_at_zero), "cpu")
    sums = kernel(np.array([0.0, 1.0]), np.eye(2), staged(ROWS, 0 * ROWS))
    assert sums.n_differenced == ROWS.size  # where x is zero, 0 · ∞
    step = np.finfo(float).eps ** (1 / 3)
    np.testing.assert_allclose(sums.gram[0, 0], np.sum(ROWS) / step, rtol=1e-6)
    np.testing.assert_allclose(sums.gram[1, 1], ROWS.size, rtol=1e-9)

    kernel = block_kernel(prepare_model(ends_at_one), "cpu")
    sums = kernel(np.array([1.0]), np.eye(1), staged(ROWS, 0 * ROWS))
    assert sums.n_differenced == 1
    others = np.sum((ROWS[:-1] / ROWS[-1]) ** 2 / (1 - (ROWS[:-1] / ROWS[-1]) ** 2))
    assert 1e4 < sums.gram[0, 0] - others < 1e7


def island(x, a, b):
    return a * x + jnp.where(x == 7.0, jnp.sqrt(-((b - 1.0) ** 2)), b)


@pytest.mark.slow
def test_where_no_difference_can_be_taken_the_sums_are_not_finite():
    kernel = block_kernel(prepare_model(island), "cpu")
    sums = kernel(np.array([1.0, 1.0]), np.eye(2), staged(ROWS, 0 * ROWS))
    assert np.isfinite(sums.cost)
    assert not np.isfinite(sums.gradient).all()
    assert sums.n_differenced == 1  # the derivative by a
    errors = row_kernel(prepare_model(island)).standard_errors(
        np.array([1.0, 1.0]), np.eye(2), (ROWS,)
    )
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(errors)), [7])


def shifted_spot(x, a, x0, w):
    return a * jnp.exp(-jnp.sqrt((x - x0) ** 2) / w) + 0.25 * a


@pytest.mark.slow
@settings(max_examples=30)
@given(
    unit=st.integers(-18, 18),
    offset=st.sampled_from([0.0, 1e3, 1e6, -1e9]),
    height=st.integers(-18, 18),
)
def test_steps_follow_the_units_and_the_offset_of_a_parameter(unit, offset, height):
    width = 2.0**unit
    x = np.ldexp(np.arange(-150.0, 150.0) + offset, unit)
    a, x0, w = 2.0**height, offset * width, 16.0 * width
    kernel = block_kernel(prepare_model(shifted_spot), "cpu")
    sums = kernel(np.array([a, x0, w]), np.eye(3), staged(x, 0 * x))
    slopes = spot_slopes(x, a, x0, w)
    slopes[0] += 0.25
    values = a * (np.exp(-np.abs(x - x0) / w) + 0.25)
    assert_sums(sums, slopes.T, values, rtol=1e-7)
    assert sums.n_differenced == 1


def own_stretched(t, a, tau, b):  # that no other test compiles
    return a * jnp.exp(-((t / tau) ** b)) + 0.0


@pytest.mark.slow
def test_rows_without_such_a_derivative_compile_nothing_more_and_keep_their_bits():
    spec, params = prepare_model(own_stretched), np.array([2.0, 40.0, 0.6])
    kernel, y = block_kernel(spec, "cpu"), np.ones(ROWS.size - 1)
    first = kernel(params, np.eye(3), staged(ROWS[1:], y))
    assert block_compilations(spec) == 1
    assert first.n_differenced == 0
    kernel(params, np.eye(3), staged(ROWS, np.ones(ROWS.size)))
    assert block_compilations(spec) == 2
    again = kernel(params, np.eye(3), staged(ROWS[1:], y))
    assert (again.gram.tobytes(), again.gradient.tobytes(), again.cost) == (
        first.gram.tobytes(),
        first.gradient.tobytes(),
        first.cost,
    )
    assert block_compilations(spec) == 2


def test_a_value_that_is_not_finite_compiles_nothing_more():
    def model(x, a):
        return a * jnp.sqrt(x - 3.25)

    spec = prepare_model(model)
    sums = block_kernel(spec, "cpu")(np.ones(1), np.eye(1), staged(ROWS, 0 * ROWS))
    assert not np.isfinite(sums.cost)
    assert block_compilations(spec) == 1


@pytest.mark.slow
def test_a_coordinate_that_is_infinite_is_not_hidden():
    x = np.append(ROWS, np.inf)
    sums = block_kernel(prepare_model(spot), "cpu")(
        np.array([3.0, 150.0, 20.0]), np.eye(3), staged(x, 0 * ROWS[:1].repeat(x.size))
    )
    assert np.isfinite(sums.cost)
    assert not np.isfinite(sums.gradient).all()
    assert sums.n_differenced == 1  # the summit


def test_a_band_where_a_coordinate_is_missing_compiles_nothing_more():
    def model(x, a):
        return a * jnp.exp(-0.75 * x)

    spec, x = prepare_model(model), ROWS.copy()
    x[5] = np.nan
    errors = row_kernel(spec).standard_errors(np.ones(1), np.eye(1), (x,))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(errors)), [5])
    assert row_compilations(spec) == 1


@pytest.mark.slow
def test_all_rows_at_once():
    spec, params = prepare_model(stretched), np.array([2.0, 40.0, 0.6])
    y = np.random.default_rng(1).normal(size=ROWS.size)
    sums = block_kernel(spec, "cpu", whole=True)(params, np.eye(3), staged(ROWS, y, capacity=300))
    residuals = row_kernel(spec).values(params, (ROWS,)) - y
    assert_sums(sums, stretched_slopes(ROWS, *params).T, residuals)
