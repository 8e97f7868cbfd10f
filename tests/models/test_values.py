"""What the models compute, against SciPy and closed forms, and their derivatives."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.differentiate import jacobian

from nlsq_dask import models
from nlsq_dask.models.faddeeva import faddeeva_real

X = np.linspace(0.3, 7.0, 41)
XY = (X, 5 - 0.5 * X**1.2)

VALUES = {
    models.Gaussian: (
        [2.5, 3.0, 0.7],
        lambda x, a, c, s: a * s * math.sqrt(2 * math.pi) * stats.norm.pdf(x, c, s),
    ),
    models.Lorentzian: (
        [2.5, 3.0, 0.7],
        lambda x, a, c, g: a * math.pi * g * stats.cauchy.pdf(x, c, g),
    ),
    models.Voigt: (
        [2.5, 3.0, 0.7, 0.4],
        lambda x, a, c, s, g: (
            a * special.voigt_profile(x - c, s, g) / special.voigt_profile(0, s, g)
        ),
    ),
    models.Gaussian2D: (
        [2.5, 3.0, 2.0, 0.7, 1.3, -0.4],
        lambda xy, a, cx, cy, sx, sy, r: (
            a
            * (2 * math.pi * sx * sy * math.sqrt(1 - r * r))
            * stats.multivariate_normal.pdf(
                np.stack(xy, -1), [cx, cy], [[sx**2, r * sx * sy], [r * sx * sy, sy**2]]
            )
        ),
    ),
    models.ExponentialDecay: (
        [2.5, 1.3],
        lambda x, a, tau: a * tau * stats.expon.pdf(x, scale=tau),
    ),
    models.BiexponentialDecay: (
        [2.5, 0.4, -1.0, 3.0],
        lambda x, a, t, b, u: (
            a * t * stats.expon.pdf(x, scale=t) + b * u * stats.expon.pdf(x, scale=u)
        ),
    ),
    models.PowerLaw: ([2.5, -1.7], lambda x, a, k: a * np.exp(k * np.log(x))),
    models.Sinusoid: (
        [2.5, 0.8, 0.4],
        lambda x, a, f, p: np.imag(a * np.exp(1j * (2 * np.pi * f * x + p))),
    ),
    models.Logistic: ([2.5, 3.0, 1.9], lambda x, a, c, k: a * special.expit(k * (x - c))),
    models.Constant: ([2.5], lambda x, c: np.full(x.shape, c)),
    models.Linear: ([2.5, -1.0], lambda x, m, b: np.polyval([m, b], x)),
}
ALL = [cls() for cls in VALUES] + [
    models.Gaussian() + models.Voigt() + models.Linear(),
    models.Gaussian2D() + models.Constant(),
]


def params_of(model):
    return [value for term in model.terms for value in VALUES[type(term)][0]]


def x_of(model):
    return XY if model.n_coords == 2 else X


def test_every_model_is_tested():
    assert {cls.__name__ for cls in VALUES} == set(models.__all__) - {"Sum"}


@pytest.mark.parametrize("cls", VALUES)
def test_value_is_the_reference(cls):
    params, reference = VALUES[cls]
    x = x_of(cls())
    np.testing.assert_allclose(cls()(x, *params), reference(x, *params), rtol=1e-12, atol=1e-15)


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_numpy_gives_float64_numpy_and_jax_gives_the_same_in_jax(model):
    params = params_of(model)
    by_numpy = model(x_of(model), *params)
    assert type(by_numpy) is np.ndarray
    assert by_numpy.dtype == np.float64
    with jax.enable_x64(True):
        by_jax = jax.jit(model)(x_of(model), *params)
        assert isinstance(by_jax, jax.Array)
        np.testing.assert_allclose(by_jax, by_numpy, rtol=1e-12, atol=1e-15)
    by_float32 = jax.jit(model)(jax.tree.map(jnp.asarray, x_of(model)), *params)
    assert by_float32.dtype == jnp.float32
    np.testing.assert_allclose(by_float32, by_numpy, rtol=2e-4, atol=2e-5)


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_forward_derivatives_are_those_of_finite_differences(model):
    params = np.array(params_of(model))
    x = x_of(model)
    with jax.enable_x64(True):
        columns = jax.jit(jax.jacfwd(lambda p: model(x, *p)))(jnp.asarray(params))
        backward = jax.jit(jax.jacrev(lambda p: model(x, *p)))(jnp.asarray(params))
    np.testing.assert_allclose(backward, columns, rtol=1e-10, atol=1e-13)
    # SciPy asks for many points (p, ...) at once.
    reference = jacobian(
        lambda points: np.apply_along_axis(lambda p: model(x, *p), 0, points), params
    )
    np.testing.assert_allclose(columns, reference.df, rtol=1e-7, atol=1e-8)


def test_sum_is_the_sum_of_its_parts():
    parts = [models.Gaussian(), models.Voigt(), models.Linear()]
    total = sum(parts[1:], parts[0])
    expected = sum(part(X, *params_of(part)) for part in parts)
    np.testing.assert_array_equal(total(X, *params_of(total)), expected)


@pytest.mark.parametrize("shape", [(), (1,), (3, 4)])
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_value_has_the_shape_of_x(model, shape):
    x = np.full(shape, 1.5)
    assert model((x, x) if model.n_coords == 2 else x, *params_of(model)).shape == shape


def test_lists_and_integers_are_taken_as_numbers():
    assert models.Linear()([1, 2], 2, 1).tolist() == [3.0, 5.0]
    assert models.Gaussian2D()([[0, 1], [0, 0]], 2, 0, 0, 1, 1, 0).tolist()[0] == 2.0


# The Faddeeva function and the Voigt line -------------------------------------------------------


def plane(n=20_000):
    """Points of the upper half plane, near and far, close to the real axis and on it."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-9, 9, n), 10 ** rng.uniform(-3, 8, n)])
    y = np.concatenate([10 ** rng.uniform(-12, 1.2, n), 10 ** rng.uniform(-6, 8, n)])
    y[::50] = 0
    return x, y


def test_faddeeva_function_is_scipys():
    x, y = plane()
    ours, reference = faddeeva_real(np, x, y), special.wofz(x + 1j * y).real
    np.testing.assert_allclose(ours, reference, rtol=0, atol=5e-15)
    sizeable = reference > 1e-4
    np.testing.assert_allclose(ours[sizeable], reference[sizeable], rtol=1e-11)
    wings = (np.hypot(x, y) > 8) & (y > 0)
    np.testing.assert_allclose(ours[wings], reference[wings], rtol=1e-12)


def test_faddeeva_function_goes_on_below_the_real_axis():
    x, y = np.meshgrid(np.linspace(-4, 4, 81), np.linspace(-3, 0, 61))
    reference = special.wofz(x + 1j * y).real
    error = np.abs(faddeeva_real(np, x, y) - reference)
    assert np.max(error / (1 + 2 * np.exp(y**2 - x**2))) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0)])
def test_faddeeva_derivative_is_its_differential_equation(direction):
    x, y = plane()
    near = np.hypot(x, y) < 30  # where the right-hand side does not cancel
    x, y = x[near], y[near]
    with jax.enable_x64(True):
        tangents = [np.full(x.shape, d) for d in direction]
        slopes = jax.jit(lambda *at: jax.jvp(partial(faddeeva_real, jnp), at, tuple(tangents)))
        _, slope = slopes(x, y)
    z = x + 1j * y
    derivative = -2 * z * special.wofz(z) + 2j / math.sqrt(math.pi)
    np.testing.assert_allclose(slope, (derivative * complex(*direction)).real, rtol=0, atol=2e-13)


@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 1e-2, 1.0, 1e2, 1e6])
def test_voigt_line_for_any_ratio_of_widths(ratio):
    width = 0.7 / max(1.0, ratio)
    x = np.linspace(-5, 5, 201)
    reference = special.voigt_profile(x, width, width * ratio)
    reference = reference / special.voigt_profile(0, width, width * ratio)
    line = models.Voigt()(x, 1.0, 0.0, width, width * ratio)
    np.testing.assert_allclose(line, reference, rtol=1e-10, atol=5e-15)


@pytest.mark.slow
def test_voigt_line_without_one_part_is_the_other():
    line = models.Voigt()
    gaussian = models.Gaussian()(X, 2.0, 3.0, 0.7)
    np.testing.assert_allclose(line(X, 2.0, 3.0, 0.7, 0.0), gaussian, rtol=0, atol=1e-14)
    lorentzian = models.Lorentzian()(X, 2.0, 3.0, 0.7)
    np.testing.assert_allclose(line(X, 2.0, 3.0, 0.0, 0.7), lorentzian, rtol=1e-13)
    assert np.isnan(line(X, 2.0, 3.0, 0.0, 0.0)).all()
    with jax.enable_x64(True):
        columns = jax.jit(jax.jacfwd(lambda p: line(X, *p)))(jnp.array([2.0, 3.0, 0.0, 0.7]))
        derivative = jax.jit(jax.jacfwd(lambda p: models.Lorentzian()(X, *p)))
        reference = derivative(jnp.array([2.0, 3.0, 0.7]))
    np.testing.assert_allclose(columns[:, [0, 1, 3]], reference, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(columns[:, 2], 0)


def test_widths_mean_the_same_with_either_sign():
    np.testing.assert_array_equal(
        models.Voigt()(X, 2.0, 3.0, -0.7, 0.4), models.Voigt()(X, 2.0, 3.0, 0.7, 0.4)
    )
    for cls in (models.Gaussian, models.Lorentzian):
        np.testing.assert_array_equal(cls()(X, 2.0, 3.0, -0.7), cls()(X, 2.0, 3.0, 0.7))


def test_voigt_line_is_smooth_where_gamma_changes_sign():
    gammas = np.linspace(-2e-3, 2e-3, 5)
    values = np.array([models.Voigt()(X, 1.0, 3.0, 0.7, gamma) for gamma in gammas])
    thirds = np.diff(values, n=3, axis=0)
    assert np.max(np.abs(thirds)) < 1e-7  # a kink would leave 1e-3


def test_logistic_is_accurate_far_down_its_tail():
    assert models.Logistic()(-100.0, 1.0, 0.0, 1.0) == pytest.approx(math.exp(-100), rel=1e-12)
    assert models.Logistic()(1e4, 2.0, 0.0, 1.0) == 2.0
