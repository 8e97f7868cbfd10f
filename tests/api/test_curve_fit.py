"""The face of scipy.optimize.curve_fit, held against SciPy's own."""

from __future__ import annotations

import inspect
import logging
import re
import warnings

import dask.array as da
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
    curve_fit,
    fit,
)
from tests.api.curve_fit_data import (
    BOUNDS,
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
    slopes,
    with_nan,
    with_value,
)
from tests.api.scipy_problems import PROBLEMS


def test_the_signature_is_scipy_s():
    ours, scipys = (inspect.signature(f).parameters for f in (curve_fit, SCIPY))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in scipys.values()
    ]


@pytest.mark.quick(3)
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


@pytest.mark.quick(3)
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
    ("tolerances", "ier"),
    [
        (dict(ftol=1e-4, xtol=0.0), 1),
        (dict(ftol=0.0, xtol=1e-2), 2),
        (dict(ftol=1e-4, xtol=1e-4), 3),
        (dict(ftol=0.0, xtol=0.0, gtol=1e-2), 4),
    ],
)
def test_ends_of_lm_are_numbered_and_named_as_minpack_s(tolerances, ier):
    *_, mesg, number = curve_fit(decay, X, Y, P0, full_output=True, **tolerances)
    *_, scipys_mesg, scipys_number = SCIPY(decay, X, Y, P0, full_output=True, **tolerances)
    assert number == scipys_number == ier
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", scipys_mesg)]
    assert re.sub(r"at most [\d.e-]+", "at most #", mesg) == re.sub(
        r"at most [\d.]+", "at most #", " ".join(scipys_mesg.split())
    )
    assert [float(n) for n in re.findall(r"at most ([\d.e-]+)", mesg)] == numbers


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
        (dict(sigma=with_value(X + 1, 0.0)), ValueError, "sigma has 1 value"),
        (dict(sigma=with_value(X + 1, -2.0)), ValueError, "sigma has 1 value"),
        (dict(ydata=Y + 1j), TypeError, "y has dtype complex128"),
        (dict(p0=[1, 1]), ValueError, "takes 3 parameters, but 2 were given"),
        (dict(ydata=with_value(Y, np.nan), check_finite=False), ValueError, "y has 1 value"),
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


# Derivatives and options


@pytest.mark.quick(3)
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


@pytest.mark.quick(3)
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


SIGMA = 0.1 + X
COVARIANCE = scipy.linalg.toeplitz(0.5 ** np.arange(100.0)) * np.outer(SIGMA, SIGMA)


@pytest.mark.every(2)
@pytest.mark.parametrize("sigma", [None, 2.0, SIGMA, COVARIANCE])
@pytest.mark.parametrize("model", [decay, by_math])
def test_rows_with_nan_are_left_out(model, sigma):
    arguments = dict(p0=P0, sigma=sigma, nan_policy="omit", absolute_sigma=True)
    x, y = with_nan(X, 3, 50), with_nan(Y, 3, 99)
    expected = SCIPY(decay, x, y, **arguments, **TIGHT)
    popt, pcov, infodict, _, _ = curve_fit(model, x, y, full_output=True, **arguments)
    assert_agrees((popt, pcov), expected)
    assert infodict["fvec"].shape == (97,)


def test_lazy_rows_with_nan_are_left_out():
    x, y = with_nan(X, 3, 50), with_nan(Y, 3, 99)
    popt, _ = curve_fit(decay, lazy(x), lazy(y), P0, nan_policy="omit")
    expected = SCIPY(decay, x, y, P0, nan_policy="omit", **TIGHT)[0]
    np.testing.assert_allclose(popt, expected, rtol=1e-6)
