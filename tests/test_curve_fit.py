"""The face of scipy.optimize.curve_fit."""

from __future__ import annotations

import inspect
import logging

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlsq_dask import ConvergenceError, ConvergenceWarning, InputError, curve_fit, fit
from tests.scipy_problems import PROBLEMS

X = np.linspace(0, 4, 100)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(31 * X)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


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
    scipy_popt, scipy_pcov = problem.scipy_fit(absolute_sigma)
    np.testing.assert_allclose(popt, scipy_popt, rtol=1e-6)
    np.testing.assert_allclose(pcov, scipy_pcov, rtol=1e-4)


def test_leading_arguments_are_in_scipy_s_order():
    ours, scipys = (list(inspect.signature(f).parameters) for f in (curve_fit, SCIPY))
    assert ours[:9] == scipys[:9]


SCIPY = scipy.optimize.curve_fit


def test_it_is_fit():
    result = fit(decay, X, Y, p0=[1, 1, 0])
    popt, pcov = curve_fit(decay, X, Y, p0=[1, 1, 0])
    np.testing.assert_array_equal(popt, result.popt)
    np.testing.assert_array_equal(pcov, result.pcov)


@pytest.mark.parametrize("method", [None, "trf"])
def test_the_method_is_trf(method):
    popt, pcov = curve_fit(decay, X, Y, [1, 1, 0], method=method)
    result = fit(decay, X, Y, p0=[1, 1, 0])
    np.testing.assert_array_equal(popt, result.popt)
    np.testing.assert_array_equal(pcov, result.pcov)


@pytest.mark.parametrize("chunks", [None, 30])
def test_method_auto_is_the_workflow(chunks, caplog):
    x, y = (X, Y) if chunks is None else (da.from_array(a, chunks=chunks) for a in (X, Y))
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        popt, pcov = curve_fit(decay, x, y, p0=[1, 1, 0], method="auto")
    (line,) = caplog.messages
    assert "workflow auto" in line
    result = fit(decay, x, y, p0=[1, 1, 0], workflow="auto")
    np.testing.assert_array_equal(popt, result.popt)
    np.testing.assert_array_equal(pcov, result.pcov)


def test_a_workflow_that_is_named_wins_over_auto():
    popt, _ = curve_fit(decay, X, Y, p0=[1, 1, 0], method="auto", workflow="fast")
    expected = fit(decay, X, Y, p0=[1, 1, 0], workflow="fast").popt
    np.testing.assert_array_equal(popt, expected)


@pytest.mark.parametrize("method", ["lm", "dogbox", "AUTO", "", 3])
def test_there_is_no_other_method(method):
    with pytest.raises(InputError, match=f"^method = {method!r} is unknown: .*'trf' and 'auto'"):
        curve_fit(decay, X, Y, p0=[1, 1, 0], method=method)


def test_dask_arrays_and_further_arguments():
    popt, _ = curve_fit(
        decay,
        da.from_array(X, chunks=30),
        da.from_array(Y, chunks=30),
        p0=[1, 1, 0],
        ftol=1e-10,
        strategy="streaming",
    )
    np.testing.assert_allclose(popt, SCIPY(np_decay, X, Y, p0=[1, 1, 0])[0], rtol=1e-5)


def np_decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def test_a_model_in_numpy():
    popt, pcov = curve_fit(np_decay, X, Y, p0=[1, 1, 0])
    scipy_popt, scipy_pcov = SCIPY(np_decay, X, Y, p0=[1, 1, 0], xtol=1e-13, ftol=1e-13)
    np.testing.assert_allclose(popt, scipy_popt, rtol=1e-6)
    np.testing.assert_allclose(pcov, scipy_pcov, rtol=1e-4)


def test_a_fit_that_did_not_converge_is_an_error_and_no_warning():
    with pytest.raises(ConvergenceError, match="Optimal parameters not found: .*max_nfev") as error:
        curve_fit(decay, X, Y, p0=[1, 1, 0], max_nfev=2)
    assert isinstance(error.value, RuntimeError)


def test_where_fit_warns():
    with pytest.warns(ConvergenceWarning, match="raise max_nfev"):
        result = fit(decay, X, Y, p0=[1, 1, 0], max_nfev=2)
    assert not result.success
