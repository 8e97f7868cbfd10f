"""What curve_fit takes for x and for a model, held against SciPy's."""

from __future__ import annotations

import logging
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlsq_dask import InputError, ModelError, curve_fit
from tests.api.curve_fit_data import (
    COLUMNS,
    METHODS,
    P0,
    PLANE,
    SCIPY,
    TIGHT,
    X,
    Y,
    assert_agrees,
    by_math,
    decay,
    lazy,
    line,
    with_nan,
)

# Forms of x


class Table(dict):
    """Columns by name."""


FORMS = {
    "lists": (decay, X.tolist(), Y.tolist()),
    "a range": (line, range(5), [1, 3, 4, 8, 9]),
    "integers": (line, np.arange(5), np.array([1, 3, 4, 8, 9])),
    "float32": (decay, X.astype(np.float32), Y.astype(np.float32)),
    "numbers as objects": (decay, X.astype(object), Y.astype(object)),
    "(k, n)": (lambda x, a, b: a * x[0] + b * x[1], COLUMNS, PLANE),
    "(k, n) indexed": (lambda x, a, b: a * x[0, :] + b * x[1, :], COLUMNS, PLANE),
    "(k, n) taken apart": (lambda x, a, b: a * x[0] + b * x[1], list(COLUMNS), PLANE),
    "a tuple": (lambda x, a, b: a * x[0, :] + b * x[1, :], tuple(COLUMNS), PLANE),
    "(n, k)": (lambda x, a, b: a * x[:, 0] + b * x[:, 1], COLUMNS.T, PLANE),
    "(1, k, n)": (lambda x, a, b: a * x[0, 0] + b * x[0, 1], COLUMNS[None], PLANE),
    "None": (lambda _, a, b: a * COLUMNS[0] + b * COLUMNS[1], None, PLANE),
    "a table": (lambda x, a, b: a * x["u"] + b * x["v"], Table(u=X, v=COLUMNS[1]), PLANE),
    "a number": (lambda x, a, b: a * X + b * x, 3.0, Y),
    "of no rows": (lambda x, a, b: a * X + b * x.sum(), np.ones(7), Y),
    "None, y a number": (lambda _, a, b: a * X + b - Y, None, 0),
    "y a number": (lambda x, a, b: a * x + b - Y, X, 0),
    "y of one": (lambda x, a, b: a * x + b - Y, X, [0.0]),
    "the whole x": (lambda x, a, b: a * (x - x.mean()) + b, X, Y),
    "a constant model": (lambda x, a: a, X, Y),
}


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("method", ["lm", "trf"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_x(name, method):
    model, x, y = FORMS[name]
    if name == "a constant model":
        popt, pcov = curve_fit(model, x, y, method=method)
        np.testing.assert_allclose(popt, [Y.mean()], rtol=1e-7)
        np.testing.assert_allclose(pcov, [[Y.var(ddof=1) / 100]], rtol=1e-7)
        return
    rtol = 1e-5 if name == "float32" else 1e-6
    assert_agrees(curve_fit(model, x, y, method=method), SCIPY(model, x, y, method=method), rtol)


@pytest.mark.parametrize("name", ["(k, n)", "(n, k)", "(1, k, n)"])
def test_x_with_rows_is_spread_over_blocks(name):
    model, x, y = FORMS[name]
    assert_agrees(curve_fit(model, x, y, strategy="chunked"), SCIPY(model, x, y))


def test_x_without_rows_is_not():
    with pytest.raises(ModelError, match="row-wise"):
        curve_fit(*FORMS["None"], strategy="chunked")


@pytest.mark.slow
def test_a_column_of_a_table_is_rows():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"x": X, "y": Y})
    assert_agrees(curve_fit(decay, table["x"], table["y"], P0), SCIPY(decay, X, Y, P0))
    by_name = curve_fit(lambda t, a, b, c: decay(t["x"], a, b, c), table, table["y"], P0)
    assert_agrees(by_name, SCIPY(decay, X, Y, P0))


def test_lengths_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"x has shape \(100,\) but y has shape \(99,\)"):
        curve_fit(decay, X, Y[:99])


# Forms of the model


class Instrument:
    """A model with a setting."""

    offset = 0.5

    def measure(self, x, a, b):
        return a * np.exp(-b * x) + self.offset

    def __call__(self, x, a, b):
        return self.measure(x, a, b)


def by_branches(x, a, b, c):
    if a < 0:
        a = -a
    return decay(x, a, b, c)


def by_assignment(x, a, b, c):
    out = np.empty(len(x))
    for i in range(len(x)):
        out[i] = a * np.exp(-b * x[i]) + c
    return out


def by_matrix(x, a, b, c):
    return np.eye(len(x)).dot(decay(x, a, b, c))


def by_root_finding(x, a, b, c):
    """Parameter b through an equation that SciPy solves."""
    root = scipy.optimize.brentq(lambda u: u**3 - float(b), -9, 9)
    return decay(x, a, root**3, c)


MODELS = {
    "jax.numpy": (lambda x, a, b, c: a * jnp.exp(-b * x) + c, decay),
    "open parameters": (lambda x, *p: p[0] * np.exp(-p[1] * x) + p[2], None),
    "a default": (lambda x, a, b=1.0, c=0.0: decay(x, a, b, c), None),
    "a method": (Instrument().measure, None),
    "an object": (Instrument(), Instrument().measure),
    "math": (by_math, None),
    "branches": (by_branches, None),
    "assignment": (by_assignment, None),
    "a matrix": (by_matrix, None),
    "root finding": (by_root_finding, None),
}


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_forms_of_the_model(name, method):
    model, for_scipy = MODELS[name]
    p0 = P0[:2] if "method" in name or "object" in name else P0
    ours = curve_fit(model, X, Y, p0, method=method)
    assert_agrees(ours, SCIPY(for_scipy or model, X, Y, p0, method=method, **TIGHT))


@pytest.mark.parametrize("with_jac", [False, True])
def test_a_model_that_cannot_be_traced_keeps_to_its_bounds(with_jac):
    """The logarithm fails beyond the bound, on which the answer lies."""

    def model(x, a, b):
        return np.array([a * t + math.log(b) for t in x])

    def jac(x, a, b):
        return np.array([[t, 1 / float(b)] for t in x])

    y = 2 * X + math.log(0.2)
    popt, _ = curve_fit(model, X, y, p0=[1, 1], bounds=([0, 0.5], 9), jac=jac if with_jac else None)
    expected = (X @ (y - math.log(0.5))) / (X @ X)
    np.testing.assert_allclose(popt, [expected, 0.5], rtol=1e-6)


def test_a_model_that_cannot_be_traced_is_told_of(caplog):
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        curve_fit(by_math, X, Y, P0)
    assert "math.exp(-b * t)" in caplog.messages[0]


def test_a_model_that_cannot_be_traced_is_not_sent_to_workers():
    with pytest.raises(ModelError, match="JAX"):
        curve_fit(by_math, lazy(X), lazy(Y), P0)
    with pytest.raises(ModelError, match="JAX"):
        curve_fit(by_math, X, Y, P0, strategy="streaming")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_a_model_raises_on_the_way_is_raised():
    def model(x, a, b, c):
        if b > 1.1:
            raise ArithmeticError("too fast")
        return by_math(x, a, b, c)

    with pytest.raises(ArithmeticError, match="too fast"):
        curve_fit(model, X, Y, [1, 0.5, 0])


@pytest.mark.slow
def test_each_fit_hears_of_its_own_errors(monkeypatch):
    """The second fit is of the same model and data, and may not be served by the first's code."""

    def model(x, a):
        if "NLSQ_TEST_GONE" in os.environ and a != 1:
            raise ArithmeticError("gone")
        return np.array([float(a) * t for t in x])

    np.testing.assert_allclose(curve_fit(model, X, 2 * X)[0], [2], rtol=1e-8)
    monkeypatch.setenv("NLSQ_TEST_GONE", "1")
    with pytest.raises(ArithmeticError, match="gone"):
        curve_fit(model, X, 2 * X)


def test_a_trace_leaves_nothing_in_a_model():
    def model(x, a):
        model.last = a
        return np.array([float(a) * t for t in x])

    model.last = None
    popt, _ = curve_fit(model, X, 2 * X)
    np.testing.assert_allclose(popt, [2], rtol=1e-8)
    assert isinstance(model.last, float)


def test_what_a_model_raises_at_once_is_explained():
    def model(x, a):
        raise KeyError("coefficients")

    with pytest.raises(ModelError, match="model raised KeyError") as error:
        curve_fit(model, X, Y)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("rows", [99, 101])
def test_a_model_of_another_length_is_refused(rows):
    with pytest.raises(ValueError, match=f"{rows}"):
        curve_fit(lambda x, a: np.array([float(a)] * rows), X, Y)


# Rows left out of them


@pytest.mark.parametrize(
    "name", ["(k, n)", "(n, k)", "(1, k, n)", "(k, n) taken apart", "numbers as objects"]
)
def test_rows_with_nan_in_forms_of_x_are_left_out(name):
    model, x, y = FORMS[name]
    x = np.array(x, float)
    (x.T if name == "(n, k)" else x)[..., 7] = np.nan
    keep = np.arange(100) != 7
    plain = SCIPY(model, x[keep] if name == "(n, k)" else x[..., keep], y[keep])
    assert_agrees(curve_fit(model, x, y, nan_policy="omit"), plain)


def test_rows_cannot_be_left_out_of_nothing():
    model, x, _ = FORMS["None"]
    with pytest.raises(InputError, match="no axis of y's length"):
        curve_fit(model, x, with_nan(PLANE, 4), nan_policy="omit")
