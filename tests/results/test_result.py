"""What a fit returns, and how it reads."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nlsq_dask import ConvergenceWarning, Parameter, Status, fit
from nlsq_dask.results.record import format_uncertain
from tests.results.linear_result import linear_result

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
        assert float(parameter) == parameter.value


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
    assert (result.n_skipped, result.n_free, result.fixed) == (0, 3, ())
    assert (result.method, result.loss, result.absolute_sigma) == ("trf", "linear", False)
    assert (result.structure, result.n_coords) == ("single", 1)
    whitened = (
        np.stack(
            [
                np.exp(-result.popt[1] * X),
                -result.popt[0] * X * np.exp(-result.popt[1] * X),
                np.ones_like(X),
            ],
            1,
        )
        / 0.05
    )
    np.testing.assert_allclose(
        result.r_factor.T @ result.r_factor, whitened.T @ whitened, rtol=1e-6
    )
    np.testing.assert_allclose(result.grad, whitened.T @ residuals, atol=1e-2)


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
        f"{result.n_passes}  ({result.nfev} evaluations, {result.nit} step",
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


def test_results_are_told_apart_as_objects(result):
    assert result == result
    assert result != replace(result)
    assert len({result, replace(result)}) == 2


DESIGN = np.stack([np.ones_like(X), X, X**2], axis=1)
LINEAR = linear_result(DESIGN, 1.0 + 3.0 * X + 0.4 * X**2 + 0.3 * np.sin(37 * X))


def sections(summary):
    """Lines below each title of a summary."""
    _, *parts = summary.split("\n\n")
    return {part.splitlines()[0]: part.splitlines()[1:] for part in parts}


def test_the_summary_holds_all_that_was_found():
    summary = LINEAR.summary()
    assert summary.startswith("Fit converged: ")
    assert all(line == line.rstrip() for line in summary.splitlines())
    found = sections(summary)
    _, *rows = found["Parameters"]
    ends = LINEAR.confidence_intervals()
    for row, (name, parameter), (low, high) in zip(rows, LINEAR.params.items(), ends, strict=True):
        assert row.split()[0] == name
        assert str(parameter) in row
        shown = [float(number) for number in re.search(r"\[(.*), (.*)\]", row).groups()]
        # Half a unit of the last of two digits is a twentieth of the standard error at most.
        np.testing.assert_allclose(shown, [low, high], rtol=0, atol=0.05 * parameter.stderr)
    statistics = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in found["Statistics"])
    assert statistics["rows"] == "200"
    assert statistics["parameters"] == "3 free"
    assert statistics["degrees of freedom"] == "197"
    assert statistics["covariance"] == "scaled by the reduced chi2"
    for label, value in {
        "chi2": LINEAR.chi2,
        "reduced chi2": LINEAR.reduced_chi2,
        "RMSE": LINEAR.rmse,
        "MAE": LINEAR.mae,
        "AIC": LINEAR.aic,
        "BIC": LINEAR.bic,
    }.items():
        assert float(statistics[label]) == pytest.approx(value, rel=1e-5), label
    r2 = [float(number) for number in re.findall(r"[\d.]+", statistics["R²"])]
    assert r2 == pytest.approx([LINEAR.r_squared, LINEAR.adj_r_squared], rel=1e-7)
    solver = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in found["Solver"])
    assert (solver["method"], solver["loss"]) == ("trf", "linear")
    assert solver["strategy"] == "standard"
    assert solver["passes"] == "2  (2 evaluations, 1 step)"
    assert solver["tolerances"] == "ftol 1e-08, xtol None, gtol 1e-08"
    assert solver["status"] == "1 (GRADIENT)"


def test_the_summary_names_the_strong_correlations_only():
    matrix = LINEAR.correlation()
    title = "Correlations above 0.5 in absolute value"
    lines = sections(LINEAR.summary())[title]
    shown = {tuple(re.findall(r"[abc]", line)): float(line.split()[-1]) for line in lines}
    expected = {
        (first, second): matrix[i, j]
        for i, first in enumerate("abc")
        for j, second in enumerate("abc")
        if i < j and abs(matrix[i, j]) > 0.5
    }
    assert shown == pytest.approx(expected, abs=1e-4)
    assert list(shown.values()) == sorted(shown.values(), key=abs, reverse=True)
    assert title not in replace(LINEAR, pcov=np.diag([1.0, 2.0, 3.0])).summary()
    assert title not in replace(LINEAR, pcov=np.full((3, 3), np.inf)).summary()
    # A model of many parameters has too many pairs to list.
    eight = linear_result(np.stack([X**k for k in range(8)], axis=1), np.sin(X))
    lines = sections(eight.summary())[title]
    strong = np.sum(np.abs(np.triu(eight.correlation(), 1)) > 0.5)
    assert len(lines) == 11
    assert lines[-1] == f"  and {strong - 10} weaker ones"


def test_the_summary_names_parameters_that_are_hardly_told_apart():
    title = "Remarks"
    assert title not in LINEAR.summary()
    pcov = np.array([[1.0, 0.99, 0.1], [0.99, 1.0, -0.2], [0.1, -0.2, 4.0]])
    lines = sections(replace(LINEAR, pcov=pcov).summary())[title]
    assert lines[0].startswith("  a and b have a correlation of +0.9900: the data hardly tell")
    assert lines[-1] == "  to tell two apart, fix one, choose other parameters, or add data"
    assert len(lines) == 2
    pcov[0, 1] = pcov[1, 0] = 0.989
    assert title not in replace(LINEAR, pcov=pcov).summary()
    assert title not in replace(LINEAR, pcov=np.full((3, 3), np.inf)).summary()
    eight = linear_result(np.stack([X**k for k in range(8)], axis=1), np.sin(X))
    strong = int(np.sum(np.abs(np.triu(eight.correlation(), 1)) >= 0.99))
    lines = sections(eight.summary())[title]
    named = [line for line in lines if "hardly" in line]
    assert len(named) == min(strong, 10)
    assert (f"  and {strong - 10} other pair" in "\n".join(lines)) == (strong > 10)


def test_the_summary_says_how_likely_chi2_is():
    assert "p-value" not in LINEAR.summary()
    known = replace(LINEAR, absolute_sigma=True, chi2=230.0)
    (line,) = (line for line in known.summary().splitlines() if "p-value of chi2" in line)
    assert float(line.split()[-1]) == pytest.approx(stats.chi2.sf(230.0, 197), rel=5e-3)


def test_reports_of_what_was_fixed_bounded_or_left_out():
    pcov = LINEAR.pcov.copy()
    pcov[1] = pcov[:, 1] = 0.0
    result = replace(
        LINEAR,
        pcov=pcov,
        n_free=2,
        fixed=("b",),
        active_mask=np.array([-1, 0, 1]),
        n_skipped=1234,
        absolute_sigma=True,
        workflow="quality",
        checkpoint="saved/here",
    )
    short, summary = str(result), result.summary()
    _, a, b, c = sections(summary)["Parameters"]
    for text in (short, summary, result._repr_html_()):
        for words in ("fixed", "at its lower bound", "at its upper bound", "saved/here"):
            assert words in text
    for text in (short, summary):
        assert "(1,234 left out)" in text
    assert a.endswith("(at its lower bound)")
    assert b.endswith("(fixed)")
    assert "±" not in b
    assert "[" not in b
    assert c.endswith("(at its upper bound)")
    for words in ("2 free, 1 fixed or tied", "sigma are absolute", "workflow 'quality'"):
        assert words in summary


def test_reports_of_what_the_data_do_not_determine():
    result = replace(LINEAR, pcov=np.full((3, 3), np.inf), n_points=3)
    assert "[-inf, inf]" in result.summary()
    assert "± inf" in str(result)
    assert "[-inf, inf]" in result._repr_html_()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.attributes = set(), []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs


def test_the_table_of_a_notebook():
    name = "<b>&\"'</b>"
    result = replace(LINEAR, names=("a", name, "c"))
    text = result._repr_html_()
    table, statistics = ET.fromstring(text).findall("table")
    assert table.find("caption").text == f"Fit converged: {result.message}"
    assert statistics.find("caption").text == "Statistics"
    titles = [cell.text for cell in table.findall("thead/tr/th")]
    assert titles == ["Parameter", "Estimate", "Standard error", "95% interval"]
    rows = table.findall("tbody/tr")
    assert [row.find("th").text for row in rows] == ["a", name, "c"]
    for row, value, error in zip(rows, result.popt, result.perr, strict=True):
        cells = [cell.text for cell in row.findall("td")]
        assert float(cells[0]) == pytest.approx(value, rel=1e-6)
        assert float(cells[1]) == pytest.approx(error, rel=1e-2)
    # Read aloud, each cell has the titles of its row and column.
    assert {cell.get("scope") for cell in table.findall("thead//th")} == {"col"}
    assert {cell.get("scope") for cell in table.findall("tbody//th")} == {"row"}
    tags = Tags()
    tags.feed(text)
    assert tags.names == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert {attribute for attribute, _ in tags.attributes} == {"style", "scope"}
    # Colours would suit one theme of a notebook only.
    assert "color" not in text
    assert "background" not in text
    assert len(text) < 10_000


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (-1.23456, 0.0123, "-1.235 ± 0.012"),
        (1234.5678, 1.5, "1234.6 ± 1.5"),
        (0.0, 0.25, "0.00 ± 0.25"),
        (1.0, 0.0998, "1.000 ± 0.100"),
        (-1e-9, 0.25, "0.00 ± 0.25"),
        (1.000283, 9.9e-6, "1.0002830 ± 0.0000099"),
        (-652.4, 2.5e-6, "-652.4000000 ± 0.0000025"),
        (0.004131, 5.9e-5, "0.004131 ± 0.000059"),
        (0.0, 2.5e-6, "(0.0 ± 2.5)e-06"),
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
