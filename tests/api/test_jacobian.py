"""Fits with derivatives of one's own: used as they are, and equal to the automatic ones."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nlsq_dask import ModelError, curve_fit, fit

X = np.linspace(0, 4, 400)
SIGMA = 0.05 * (1 + X)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + SIGMA * np.random.default_rng(2).normal(size=X.size)
P0 = [1.0, 1.0, 0.0]
STRATEGIES = ["standard", "chunked", "streaming"]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def jax_style(x, a, b, c):
    e = jnp.exp(-b * x)
    return jnp.stack([e, -a * x * e, jnp.ones_like(x)], axis=1)


def numpy_style(x, a, b, c):
    e = np.exp(-b * x)
    return np.vstack((e, -a * x * e, np.ones_like(x))).T


def columns(x, a, b, c):
    e = np.exp(-b * x)
    return np.column_stack([e, -a * x * e, np.ones_like(x)])


STYLES = {"jax": jax_style, "NumPy": numpy_style, "columns": columns}


def data_for(strategy):
    if strategy == "streaming":
        x, y, sigma = (da.from_array(a, chunks=n) for a, n in ((X, 99), (Y, 150), (SIGMA, 77)))
        return dict(x=x, y=y, sigma=sigma)
    return dict(x=X, y=Y, sigma=SIGMA)


@pytest.mark.quick(3)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("style", STYLES)
def test_the_answer_is_scipy_s(style, strategy):
    result = fit(
        decay, **data_for(strategy), p0=P0, jac=STYLES[style], strategy=strategy, ftol=1e-12
    )
    popt, pcov = optimize.curve_fit(
        lambda x, a, b, c: a * np.exp(-b * x) + c, X, Y, P0, SIGMA, jac=columns, ftol=1e-12
    )
    np.testing.assert_allclose(result.popt, popt, rtol=1e-7)
    np.testing.assert_allclose(result.pcov, pcov, rtol=1e-5)
    automatic = fit(decay, **data_for(strategy), p0=P0, strategy=strategy, ftol=1e-12)
    assert result.nfev == automatic.nfev
    np.testing.assert_allclose(result.pcov, automatic.pcov, rtol=1e-9)


@pytest.mark.parametrize("word", ["2-point", "3-point", "cs", None])
def test_scipy_s_words_mean_automatic_derivatives(word):
    result, automatic = fit(decay, X, Y, P0, jac=word), fit(decay, X, Y, P0)
    np.testing.assert_array_equal(result.popt, automatic.popt)
    np.testing.assert_array_equal(result.pcov, automatic.pcov)


def test_it_is_used():
    """Columns twice as long are parameters known twice as well."""
    doubled = fit(decay, X, Y, P0, sigma=SIGMA, jac=lambda *args: 2 * jax_style(*args))
    plain = fit(decay, X, Y, P0, sigma=SIGMA)
    np.testing.assert_allclose(doubled.popt, plain.popt, rtol=1e-5)
    np.testing.assert_allclose(doubled.perr, plain.perr / 2, rtol=1e-5)


def test_a_model_without_derivatives_can_be_fitted_with_given_ones():
    """The rounding to a display's digits, whose own slope is zero everywhere."""

    def displayed(x, a, b, c):
        return jnp.round(decay(x, a, b, c), 4)

    result = fit(displayed, X, Y, P0, sigma=SIGMA, jac=jax_style)
    exact = fit(decay, X, Y, P0, sigma=SIGMA)
    np.testing.assert_array_less(np.abs(result.popt - exact.popt), 0.05 * exact.perr)


@pytest.mark.parametrize("structure", ["stacked", "tuple"])
def test_it_gets_coordinates_as_the_model_does(structure):
    u, v = X, np.cos(X)
    y = 2 * u + 3 * v
    x = (u, v) if structure == "tuple" else np.stack([u, v])

    def plane(x, a, b):
        return a * x[0] + b * x[1]

    def jac(x, a, b):
        assert isinstance(x, tuple) == (structure == "tuple")
        return jnp.stack([x[0], x[1]], axis=1)

    np.testing.assert_allclose(fit(plane, x, y, jac=jac).popt, [2, 3], rtol=1e-12)


@pytest.mark.slow
def test_all_rows_at_once():
    """Where the model is not row-wise, its derivatives are not either."""

    def centred(x, a, b):
        return a * (x - x.mean()) + b

    def jac(x, a, b):
        return jnp.stack([x - x.mean(), jnp.ones_like(x)], axis=1)

    result, automatic = fit(centred, X, Y, jac=jac), fit(centred, X, Y)
    np.testing.assert_allclose(result.popt, automatic.popt, rtol=1e-10)


@pytest.mark.parametrize("method", ["lm", "trf", "dogbox"])
def test_curve_fit_takes_the_same(method):
    popt, pcov = curve_fit(decay, X, Y, P0, SIGMA, jac=numpy_style, method=method)
    expected = fit(decay, X, Y, P0, sigma=SIGMA)
    np.testing.assert_allclose(popt, expected.popt, rtol=1e-5)
    np.testing.assert_allclose(pcov, expected.pcov, rtol=1e-3)


def of_wrong_shape(x, a, b, c):
    return jax_style(x, a, b, c).T


def of_two_columns(x, a, b, c):
    return jax_style(x, a, b, c)[:, :2]


def of_one_row_less(x, a, b, c):
    return jax_style(x, a, b, c)[1:]


def of_one_column(x, a, b, c):
    return x


def complex_numbers(x, a, b, c):
    return 1j * jax_style(x, a, b, c)


def fails(x, a, b, c):
    raise KeyError("slopes")


def nothing(x, a, b, c):
    pass


def branches(x, a, b, c):
    return jax_style(x, a, b, c) if a > 0 else None


@pytest.mark.parametrize(
    ("jac", "text"),
    [
        (of_wrong_shape, "jac = of_wrong_shape returned shape (3, 1009) for 1009 rows and 3"),
        (of_two_columns, "jac = of_two_columns returned shape (1009, 2)"),
        (of_one_row_less, "jac = of_one_row_less returned shape (1008, 3)"),
        (of_one_column, "shape (1009, 3), one column a parameter"),
        (complex_numbers, "jac = complex_numbers returned complex numbers"),
        (fails, "jac = fails raised KeyError"),
        (nothing, "jac = nothing returned None"),
        (branches, "jac = branches decides in Python"),
        (lambda x, a: x, "jac = lambda does not take the model's arguments by position"),
        (lambda x, a, b, c, d: x, "write it as jac(x, a, b, c)"),
    ],
)
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_what_is_no_jacobian_is_refused(jac, text, strategy):
    with pytest.raises(ModelError) as raised:
        fit(decay, **data_for(strategy), p0=P0, jac=jac)
    assert text in str(raised.value)
