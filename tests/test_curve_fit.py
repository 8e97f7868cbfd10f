"""The face of scipy.optimize.curve_fit, held against SciPy's own."""

from __future__ import annotations

import inspect
import logging
import math
import os
import warnings

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from nlsq_dask import (
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    FitError,
    InputError,
    InputTypeError,
    ModelError,
    curve_fit,
    fit,
)
from tests.scipy_problems import PROBLEMS

SCIPY = scipy.optimize.curve_fit

X = np.linspace(0, 4, 100)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(31 * X)
P0 = [1, 1, 0]
BOUNDS = ([0, 0, 0], [9, 1, 9])
METHODS = ["lm", "trf", "dogbox"]
# Far below the tolerances of the comparisons.
TIGHT = dict(ftol=1e-13, xtol=1e-13)


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def slopes(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def line(x, a, b):
    return a * x + b


def with_value(array, value):
    changed = array.copy()
    changed[7] = value
    return changed


def lazy(array):
    return da.from_array(array, chunks=30)


def assert_agrees(ours, scipys, rtol=1e-6):
    np.testing.assert_allclose(ours[0], scipys[0], rtol=rtol)
    tiny = 1e-9 * np.abs(scipys[1]).max()
    np.testing.assert_allclose(ours[1], scipys[1], rtol=100 * rtol, atol=tiny)


def test_the_signature_is_scipy_s():
    ours, scipys = (inspect.signature(f).parameters for f in (curve_fit, SCIPY))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in scipys.values()
    ]


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("name", ["decay", "sigma a row", "loose bounds", "wave"])
def test_the_call_of_scipy_gives_the_answer_of_scipy(name, absolute_sigma):
    problem = PROBLEMS[name]
    popt, pcov = curve_fit(
        problem.model,
        problem.x,
        problem.y,
        problem.p0,
        problem.sigma,
        absolute_sigma,
        True,
        problem.bounds,
    )
    assert_agrees((popt, pcov), problem.scipy_fit(absolute_sigma))


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), BOUNDS, scipy.optimize.Bounds(*BOUNDS)])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_every_method_finds_scipy_s_answer(method, bounds):
    if method == "lm" and bounds != (-np.inf, np.inf):
        pytest.skip("refused by both")
    arguments = dict(p0=[1, 0.5, 0.1], bounds=bounds, method=method)
    popt, pcov = curve_fit(decay, X, Y, **arguments)
    expected = SCIPY(decay, X, Y, **arguments, **TIGHT)
    np.testing.assert_allclose(popt, expected[0], rtol=1e-6)
    if bounds == (-np.inf, np.inf):
        np.testing.assert_allclose(pcov, expected[1], rtol=1e-4)


@pytest.mark.parametrize(("bounds", "method"), [((-np.inf, np.inf), "lm"), (BOUNDS, "trf")])
def test_bounds_choose_the_method(bounds, method):
    default, chosen = (
        curve_fit(decay, X, Y, [1, 0.5, 0.1], bounds=bounds, method=m, full_output=True)
        for m in (None, method)
    )
    np.testing.assert_array_equal(default[0], chosen[0])
    assert default[2].keys() == chosen[2].keys()
    assert ("fjac" in default[2]) == (method == "lm")


def test_trf_is_fit():
    popt, pcov = curve_fit(decay, X, Y, P0, method="trf")
    result = fit(decay, X, Y, p0=P0, method="trf")
    np.testing.assert_array_equal(popt, result.popt)
    np.testing.assert_array_equal(pcov, result.pcov)


@pytest.mark.parametrize("chunks", [None, 30])
def test_method_auto_is_the_workflow(chunks, caplog):
    x, y = (X, Y) if chunks is None else (da.from_array(a, chunks=chunks) for a in (X, Y))
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        popt, pcov = curve_fit(decay, x, y, p0=P0, method="auto")
    (line,) = caplog.messages
    assert "workflow auto" in line
    result = fit(decay, x, y, p0=P0, workflow="auto")
    np.testing.assert_array_equal(popt, result.popt)
    np.testing.assert_array_equal(pcov, result.pcov)


def test_a_workflow_that_is_named_wins_over_auto():
    popt, _ = curve_fit(decay, X, Y, p0=P0, method="auto", workflow="fast")
    expected = fit(decay, X, Y, p0=P0, workflow="fast").popt
    np.testing.assert_array_equal(popt, expected)


# What the full output says


@pytest.mark.parametrize("sigma", [None, 0.1, 0.1 + 0.05 * X, np.diag(0.1 + 0.05 * X)])
@pytest.mark.parametrize("method", METHODS)
def test_full_output(method, sigma):
    arguments = dict(p0=P0, sigma=sigma, method=method, full_output=True)
    popt, pcov, infodict, mesg, ier = curve_fit(decay, X, Y, **arguments)
    scipys = SCIPY(decay, X, Y, **arguments)
    assert infodict.keys() == scipys[2].keys()
    np.testing.assert_allclose(infodict["fvec"], scipys[2]["fvec"], atol=1e-6)
    assert infodict["fvec"].shape == X.shape
    assert 3 <= infodict["nfev"] < 50
    assert isinstance(mesg, str)
    assert type(ier) is int
    assert ier in (1, 2, 3, 4)
    plain = curve_fit(decay, X, Y, **{**arguments, "full_output": False})
    np.testing.assert_array_equal(plain[0], popt)
    np.testing.assert_array_equal(plain[1], pcov)


def test_the_factorisation_of_lm_is_that_of_the_jacobian():
    """As MINPACK documents it: the Jacobian with its columns in the order of ipvt is Q R."""
    popt, _, infodict, _, _ = curve_fit(decay, X, Y, P0, full_output=True)
    jacobian, residuals = slopes(X, *popt), decay(X, *popt) - Y
    r_factor, order = np.triu(infodict["fjac"].T[:3]), infodict["ipvt"]
    gram = jacobian.T @ jacobian
    np.testing.assert_allclose(r_factor.T @ r_factor, gram[np.ix_(order, order)], rtol=1e-9)
    assert (np.diff(np.abs(np.diag(r_factor))) <= 0).all()
    np.testing.assert_allclose(
        r_factor.T @ infodict["qtf"], (jacobian.T @ residuals)[order], atol=1e-9
    )


@pytest.mark.parametrize(
    ("tolerances", "ier", "words"),
    [
        (dict(ftol=1e-4, xtol=0.0), 1, "relative reductions in the sum of squares"),
        (dict(ftol=0.0, xtol=1e-2), 2, "relative error between two consecutive iterates"),
    ],
)
def test_ends_of_lm_are_numbered_as_minpack_s(tolerances, ier, words):
    *_, mesg, number = curve_fit(decay, X, Y, P0, full_output=True, **tolerances)
    *_, scipys_mesg, scipys_number = SCIPY(decay, X, Y, P0, full_output=True, **tolerances)
    assert number == scipys_number == ier
    assert words in mesg
    assert words in " ".join(scipys_mesg.split())


@pytest.mark.parametrize("sigma", [None, 0.1, 0.1 + 0.05 * X])
@pytest.mark.parametrize("method", METHODS)
def test_lazy_residuals_stay_lazy(method, sigma):
    deviations = lazy(sigma) if np.ndim(sigma) else sigma
    popt, _, infodict, _, ier = curve_fit(
        decay, lazy(X), lazy(Y), P0, sigma=deviations, method=method, full_output=True
    )
    assert isinstance(infodict["fvec"], da.Array)
    expected = (decay(X, *popt) - Y) / (1 if sigma is None else sigma)
    np.testing.assert_allclose(infodict["fvec"], expected, atol=1e-12)
    assert ier in (1, 2, 3, 4)


# What is refused, in SciPy's words

REFUSED = {
    "no data": dict(xdata=[], ydata=[]),
    "no rows": dict(xdata=[1], ydata=[], bounds=(1, 2)),
    "no parameters": dict(f=lambda x: x),
    "open parameters": dict(f=lambda x, *p: x),
    "lm with bounds": dict(method="lm", bounds=(0, 9)),
    "lm with few rows": dict(xdata=[1, 2], ydata=[3, 4], method="lm"),
    "few rows": dict(xdata=[1, 2], ydata=[3, 4]),
    "NaN in y": dict(ydata=with_value(Y, np.nan)),
    "NaN in x": dict(xdata=with_value(X, np.nan)),
    "infinite x": dict(xdata=with_value(X, np.inf)),
    "checked in spite of a policy": dict(
        ydata=with_value(Y, np.nan), nan_policy="omit", check_finite=True
    ),
    "NaN forbidden": dict(ydata=with_value(Y, np.nan), nan_policy="raise"),
    "NaN in x forbidden": dict(xdata=with_value(X, np.nan), nan_policy="raise"),
    "NaN propagated": dict(nan_policy="propagate"),
    "sigma too short": dict(sigma=np.ones(99)),
    "sigma of two columns": dict(sigma=np.ones((100, 2))),
    "sigma not positive definite": dict(sigma=-np.eye(100)),
    "p0 outside": dict(bounds=([0, 0, 0], [1, 1, 1]), p0=[2, 0.5, 0.5]),
    "bounds crossed": dict(bounds=([0, 2, 0], [1, 1, 1]), p0=[0.5, 1.5, 0.5]),
    "args": dict(args=(1,)),
    "too few evaluations of lm": dict(maxfev=3),
    "too few evaluations of trf": dict(method="trf", max_nfev=2),
    "too few evaluations with bounds": dict(bounds=(0, 9), maxfev=2),
    "text": dict(ydata=["one"] * 100),
    "unknown argument": dict(fltol=1e-3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_scipy_refuses_is_refused_in_its_words(name):
    arguments = {"f": decay, "xdata": X, "ydata": Y, **REFUSED[name]}
    with pytest.raises((ValueError, TypeError, RuntimeError)) as scipys:
        SCIPY(**arguments)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as ours:
        curve_fit(**arguments)
    assert isinstance(ours.value, type(scipys.value))
    if name not in ("text", "unknown argument"):
        assert isinstance(ours.value, FitError)
        assert str(scipys.value) in str(ours.value)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(method="unknown"),
        dict(method=""),
        dict(method=3),
        dict(jac="4-point"),
        dict(bounds=([0, 0], [1, 1])),
        dict(bounds=(0, 1, 2)),
        dict(nan_policy="hi"),
    ],
)
def test_what_scipy_refuses_is_refused(arguments):
    with pytest.raises((ValueError, TypeError)):
        SCIPY(decay, X, Y, **arguments)
    with pytest.raises((InputError, InputTypeError)):
        curve_fit(decay, X, Y, **arguments)


def test_a_fit_that_did_not_converge_is_an_error_and_no_warning():
    with pytest.raises(ConvergenceError, match="Optimal parameters not found: .*maxfev = 2") as e:
        curve_fit(decay, X, Y, p0=P0, max_nfev=2)
    assert isinstance(e.value, RuntimeError)


def test_a_fit_that_is_stopped_is_an_error():
    def stop(intermediate_result):
        raise StopIteration

    with pytest.raises(ConvergenceError, match="Optimal parameters not found: .*StopIteration"):
        curve_fit(decay, X, Y, p0=P0, callback=stop)


def test_where_fit_warns():
    with pytest.warns(ConvergenceWarning, match="raise max_nfev"):
        result = fit(decay, X, Y, p0=P0, max_nfev=2)
    assert not result.success


@pytest.mark.parametrize("method", METHODS)
def test_a_covariance_that_is_not_determined(method):
    def sum_of_two(x, a, b):
        return (a + b) * x

    with pytest.warns(scipy.optimize.OptimizeWarning, match="could not be estimated") as caught:
        _, pcov = curve_fit(sum_of_two, X, Y, method=method)
    assert np.isinf(pcov).all()
    (warning,) = caught
    assert issubclass(warning.category, CovarianceWarning)
    assert warning.filename == __file__


@pytest.mark.parametrize("category", [CovarianceWarning, scipy.optimize.OptimizeWarning])
def test_the_warning_is_silenced_under_both_names(category):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        _, pcov = curve_fit(line, [1, 2], [3, 4], method="trf")
    assert np.isinf(pcov).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(sigma=with_value(X + 1, 0.0)), ValueError, "sigma has 1 values"),
        (dict(sigma=with_value(X + 1, -2.0)), ValueError, "sigma has 1 values"),
        (dict(ydata=Y + 1j), TypeError, "y has dtype complex128"),
        (dict(p0=[1, 1]), ValueError, "takes 3 parameters, but 2 were given"),
        (dict(ydata=with_value(Y, np.nan), check_finite=False), ValueError, "y has 1 values"),
    ],
)
def test_what_only_this_package_refuses(arguments, error, words):
    with pytest.raises(error, match=words) as raised:
        curve_fit(**{"f": decay, "xdata": X, "ydata": Y, **arguments})
    assert isinstance(raised.value, FitError)


def test_masked_rows_are_left_out():
    y = np.ma.masked_equal(with_value(Y, 1e6), 1e6)
    keep = np.arange(100) != 7
    assert_agrees(curve_fit(decay, X, y, P0), SCIPY(decay, X[keep], Y[keep], P0, **TIGHT))


# Forms of x


class Table(dict):
    """Columns by name."""


COLUMNS = np.stack([X, np.cos(3 * X)])
PLANE = 2 * COLUMNS[0] - COLUMNS[1] + 0.01 * np.sin(17 * X)

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


def by_math(x, a, b, c):
    return np.array([a * math.exp(-b * t) + c for t in x])


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
    assert "calls math.exp" in caplog.messages[0]


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


# Derivatives and options


@pytest.mark.parametrize("sigma", [None, 2.0, 0.1 + X, np.diag((0.1 + X) ** 2)])
@pytest.mark.parametrize("method", METHODS)
def test_a_jacobian(method, sigma):
    arguments = dict(p0=P0, sigma=sigma, method=method)
    expected = SCIPY(decay, X, Y, **arguments, **TIGHT)
    assert_agrees(curve_fit(decay, X, Y, jac=slopes, **arguments), expected)


def test_a_jacobian_of_reshaped_x():
    def model(x, a, b):
        return a * x[0, 0] + b * x[0, 1]

    def jac(x, a, b):
        return x[0].T

    expected = SCIPY(model, COLUMNS[None], PLANE)
    assert_agrees(curve_fit(model, COLUMNS[None], PLANE, jac=jac), expected)


def test_a_jacobian_by_columns():
    popt = curve_fit(decay, X, Y, P0, jac=lambda *args: slopes(*args).T, col_deriv=True)[0]
    expected = SCIPY(decay, X, Y, P0, jac=lambda *args: slopes(*args).T, col_deriv=True)[0]
    np.testing.assert_allclose(popt, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("lm", dict(ftol=1e-10, xtol=1e-10, gtol=1e-10)),
        ("lm", dict(maxfev=500)),
        ("lm", dict(maxfev=0)),
        ("lm", dict(epsfcn=1e-12, factor=10)),
        ("lm", dict(diag=[1.0, 2.0, 3.0])),
        ("trf", dict(max_nfev=500)),
        ("trf", dict(maxfev=500)),
        ("dogbox", dict(maxfev=500)),
        ("trf", dict(x_scale=[1.0, 2.0, 3.0])),
        ("trf", dict(x_scale="jac", ftol=1e-10, xtol=None)),
        ("trf", dict(jac="3-point", diff_step=1e-6)),
        ("trf", dict(tr_solver="exact")),
        ("trf", dict(tr_solver="lsmr", tr_options={"damp": 0.0})),
        ("trf", dict(loss="soft_l1", f_scale=0.005)),
        ("dogbox", dict(loss="cauchy", f_scale=0.1)),
    ],
)
def test_options_of_scipy_s_solvers(method, option):
    arguments = {"p0": P0, "method": method, **option}
    scipys = {**TIGHT, **arguments} if "loss" in option else arguments
    expected = SCIPY(decay, X, Y, **scipys)
    assert_agrees(curve_fit(decay, X, Y, **arguments), expected, rtol=1e-5)


def test_options_of_fit():
    popt, _ = curve_fit(decay, lazy(X), lazy(Y), p0=P0, ftol=1e-10, strategy="streaming")
    np.testing.assert_allclose(popt, SCIPY(decay, X, Y, p0=P0)[0], rtol=1e-5)
    popt, _ = curve_fit(decay, X, Y, p0={"a": 1, "b": 1, "c": 0}, bounds={"a": (0, 9)})
    np.testing.assert_allclose(popt, SCIPY(decay, X, Y, p0=P0)[0], rtol=1e-5)


# Missing rows


def with_nan(array, *index):
    changed = array.copy()
    changed[..., list(index)] = np.nan
    return changed


SIGMA = 0.1 + X
COVARIANCE = scipy.linalg.toeplitz(0.5 ** np.arange(100.0)) * np.outer(SIGMA, SIGMA)


@pytest.mark.parametrize("sigma", [None, 2.0, SIGMA, COVARIANCE])
@pytest.mark.parametrize("model", [decay, by_math])
def test_rows_with_nan_are_left_out(model, sigma):
    arguments = dict(p0=P0, sigma=sigma, nan_policy="omit", absolute_sigma=True)
    x, y = with_nan(X, 3, 50), with_nan(Y, 3, 99)
    expected = SCIPY(decay, x, y, **arguments, **TIGHT)
    popt, pcov, infodict, _, _ = curve_fit(model, x, y, full_output=True, **arguments)
    assert_agrees((popt, pcov), expected)
    assert infodict["fvec"].shape == (97,)


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


def test_lazy_rows_with_nan_are_left_out():
    x, y = with_nan(X, 3, 50), with_nan(Y, 3, 99)
    popt, _ = curve_fit(decay, lazy(x), lazy(y), P0, nan_policy="omit")
    expected = SCIPY(decay, x, y, P0, nan_policy="omit", **TIGHT)[0]
    np.testing.assert_allclose(popt, expected, rtol=1e-6)
