"""What a fit returns, and how it reads."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import ConvergenceWarning, Parameter, Status, fit
from nlsq_dask._result import format_uncertain

X = np.linspace(0, 4, 200)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(37 * X)


def decay(x, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * x) + offset


@pytest.fixture(scope="module")
def result():
    return fit(decay, X, Y, p0=[1, 1, 0], sigma=0.05)


def test_it_unpacks_as_in_scipy(result):
    popt, pcov = result
    assert popt is result.popt
    assert pcov is result.pcov
    assert (popt.shape, pcov.shape) == ((3,), (3, 3))


def test_parameters_by_name(result):
    assert list(result.params) == ["amplitude", "rate", "offset"] == list(result.names)
    for i, name in enumerate(result.names):
        parameter = result.params[name]
        assert isinstance(parameter, Parameter)
        assert parameter.value == result.popt[i]
        assert parameter.stderr == result.perr[i] == math.sqrt(result.pcov[i, i])


def test_numbers_belong_together(result):
    residuals = (np.asarray(decay(X, *result.popt)) - Y) / 0.05
    assert result.chi2 == pytest.approx(float(residuals @ residuals), rel=1e-5)
    assert result.cost == 0.5 * result.chi2
    assert result.n_points == 200
    assert result.dof == 197
    assert result.reduced_chi2 == result.chi2 / 197
    assert result.nit == result.njev - 1 <= result.nfev - 1
    assert len(result.history) == result.nfev
    assert result.history[-1].cost == result.cost
    assert [record.nfev for record in result.history] == list(range(1, result.nfev + 1))
    assert result.optimality < 1e-2
    assert result.popt.dtype == result.pcov.dtype == np.float64
    np.testing.assert_array_equal(result.pcov, result.pcov.T)
    np.testing.assert_array_equal(result.active_mask, [0, 0, 0])


def test_the_report_names_what_was_found(result):
    report = str(result)
    assert report.startswith("Fit converged: ")
    for name, parameter in result.params.items():
        assert f"  {name:<9} = {parameter}" in report.splitlines()
        assert " ± " in str(parameter)
    for words in (
        f"{result.chi2:.8g}",
        f"{result.reduced_chi2:.6g}",
        "197 degrees of freedom",
        result.strategy,
        f"{result.n_passes}  ({result.nfev} evaluations, {result.nit} steps)",
        f"{int(result.status)} ({result.status.name})",
    ):
        assert words in report


def test_the_report_of_a_streaming_fit_with_an_active_bound():
    result = fit(
        decay,
        da.from_array(X, chunks=30),
        da.from_array(Y, chunks=40),
        bounds={"amplitude": (0, 2), "rate": (0, None)},
    )
    report = str(result)
    assert "streaming" in report
    line = next(line for line in report.splitlines() if "amplitude" in line)
    assert line.endswith("(at its upper bound)")
    assert result.params["amplitude"].value == pytest.approx(2, abs=1e-6)


def test_a_fit_that_was_stopped_says_so():
    with pytest.warns(ConvergenceWarning, match="raise max_nfev"):
        result = fit(decay, X, Y, p0=[1, 1, 0], max_nfev=3)
    assert result.success is False
    assert result.status is Status.MAX_EVALUATIONS
    assert result.nfev == 3
    assert str(result).startswith("Fit DID NOT converge: ")
    assert result.message in str(result)
    assert np.isfinite(result.pcov).all()


def test_the_warning_points_at_the_caller():
    with pytest.warns(ConvergenceWarning) as caught:
        fit(decay, X, Y, p0=[1, 1, 0], max_nfev=2)
    assert caught[0].filename == __file__


def test_no_degrees_of_freedom():
    with pytest.warns(match="could not be estimated"):
        result = fit(decay, X[::80], Y[::80], p0=[2, 1, 0.5])
    assert result.dof == 0
    assert math.isnan(result.reduced_chi2)
    assert "inf" in str(result)


def test_it_can_be_kept_but_not_changed(result):
    copy = pickle.loads(pickle.dumps(result))
    assert str(copy) == str(result)
    with pytest.raises(FrozenInstanceError):
        result.cost = 0.0


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (-1.23456, 0.0123, "-1.235 ± 0.012"),
        (1234.5678, 1.5, "1234.6 ± 1.5"),
        (0.0, 0.25, "0.00 ± 0.25"),
        (1.0, 0.0998, "1.000 ± 0.100"),
        (123456.0, 4321.0, "(1.235 ± 0.043)e+05"),
        (1.5e-9, 2.5e-11, "(1.500 ± 0.025)e-09"),
        (1.5e12, 2.5e10, "(1.500 ± 0.025)e+12"),
        (1e-3, 5.0, "0.0 ± 5.0"),
        (2.0, math.inf, "2 ± inf"),
        (2.0, 0.0, "2 ± 0"),
        (math.pi, math.nan, "3.1415927 ± nan"),
    ],
)
def test_two_digits_of_the_error(value, error, expected):
    assert format_uncertain(value, error) == expected
