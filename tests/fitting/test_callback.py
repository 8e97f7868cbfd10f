"""What a fit shows while it runs: callbacks, printed tables; and how it is stopped."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nlsq_dask import (
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    Status,
    curve_fit,
    fit,
)
from tests.support.same_result import assert_same_result

X = np.linspace(0, 4, 300)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)
# From here some trials are rejected.
P0 = [1.0, 5.0, 1.0]
STRATEGIES = ["standard", "chunked", "streaming"]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def residuals(p):
    return p[0] * np.exp(-p[1] * X) + p[2] - Y


def fit_decay(strategy="standard", **options):
    x, y = X, Y
    if strategy == "streaming":
        x, y = da.from_array(X, chunks=77), da.from_array(Y, chunks=50)
    return fit(decay, x, y, **{"p0": P0, "strategy": strategy, **options})


class Recorder:
    """A callback that keeps what it is shown, and ends the fit after so many steps."""

    def __init__(self, stop_after=np.inf):
        self.seen = []
        self.stop_after = stop_after

    def __call__(self, intermediate_result):
        self.seen.append(intermediate_result)
        if len(self.seen) >= self.stop_after:
            raise StopIteration


# Callbacks


@pytest.mark.quick(4)
@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_callback_is_shown_every_step_that_is_taken(strategy, method):
    record = Recorder()
    result = fit_decay(strategy, callback=record, method=method)
    steps = [r for r in result.history[1:] if r.accepted]
    assert len(record.seen) == result.nit == len(steps)
    assert len(steps) < len(result.history) - 1 or method != "trf" or strategy == "streaming"
    for number, (shown, step) in enumerate(zip(record.seen, steps, strict=True), start=1):
        assert shown.nit == number
        assert (shown.cost, shown.nfev) == (step.cost, step.nfev)
        assert shown.optimality == step.optimality
        assert shown.chi2 == pytest.approx(2 * shown.cost)
        assert shown.params == dict(zip("abc", shown.x, strict=True))
        assert shown.cost == pytest.approx(0.5 * np.sum(residuals(shown.x) ** 2), rel=1e-9)
    np.testing.assert_array_equal(record.seen[-1].x, result.popt)
    assert_same_result(result, fit_decay(strategy, method=method))  # to look changes nothing


def test_a_callback_sees_what_scipy_s_sees():
    ours, theirs = Recorder(), Recorder()
    fit_decay(callback=ours)
    optimize.least_squares(residuals, P0, x_scale="jac", callback=theirs)
    assert [(s.nit, s.nfev) for s in ours.seen] == [(s.nit, s.nfev) for s in theirs.seen]
    for mine, reference in zip(ours.seen, theirs.seen, strict=True):
        assert mine.cost == pytest.approx(reference.cost, rel=1e-6)
        np.testing.assert_allclose(mine.x, reference.x, rtol=1e-4)


def test_the_name_of_the_parameter_decides_as_in_scipy():
    seen = []
    fit_decay(callback=lambda x: seen.append(x))
    fit_decay(callback=lambda intermediate_result: seen.append(intermediate_result.x))
    fit_decay(callback=seen.append)  # a method of a builtin
    assert len(seen) % 3 == 0
    for by_x, by_result, builtin in zip(*np.array_split(seen, 3), strict=True):
        np.testing.assert_array_equal(by_x, by_result)
        np.testing.assert_array_equal(by_x, builtin)


def test_what_a_callback_does_to_its_arguments_is_of_no_account():
    def vandal(intermediate_result):
        intermediate_result.x[:] = np.nan
        intermediate_result.params.clear()
        intermediate_result.cost = -1

    assert_same_result(fit_decay(callback=vandal), fit_decay())


def test_a_callback_is_shown_all_parameters():
    record = Recorder()
    fit_decay(callback=record, fixed={"c": 0.5}, p0={"a": 1, "b": 2})
    assert all(shown.params["c"] == 0.5 and shown.x.shape == (3,) for shown in record.seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopiteration_ends_a_fit_at_the_best_point(strategy):
    record = Recorder(stop_after=1)
    with pytest.warns(ConvergenceWarning, match="`callback` raised StopIteration"):
        result = fit_decay(strategy, callback=record)
    assert (result.status, result.status.value, result.success) == (Status.CALLBACK, -2, False)
    assert "best point so far" in result.message
    (shown,) = record.seen
    np.testing.assert_array_equal(result.popt, shown.x)
    assert (result.cost, result.nfev, result.nit) == (shown.cost, shown.nfev, 1)
    assert np.isfinite(result.pcov).all()
    # SciPy ends with the same status after the same step.
    if strategy != "streaming":
        reference = optimize.least_squares(
            residuals, P0, x_scale="jac", callback=Recorder(stop_after=1)
        )
        assert (reference.status, reference.nfev) == (-2, result.nfev)
    assert fit_decay(strategy, p0=result.popt).success


def test_stopiteration_ends_curve_fit_with_an_error():
    with pytest.raises(ConvergenceError, match="Optimal parameters not found: `callback` raised"):
        curve_fit(decay, X, Y, P0, method="trf", callback=Recorder(stop_after=2))


def test_a_fit_that_converged_is_not_undone_by_its_callback():
    """StopIteration after the step that met a criterion: what would be stopped is over."""
    plain = fit_decay()
    assert_same_result(fit_decay(callback=Recorder(stop_after=plain.nit)), plain)


def test_any_other_error_is_the_caller_s():
    def fail(intermediate_result):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fit_decay(callback=fail)


@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_a_fit_that_was_stopped_goes_on_from_its_checkpoint(tmp_path, strategy):
    with pytest.warns(ConvergenceWarning):
        fit_decay(strategy, callback=Recorder(stop_after=1), checkpoint=tmp_path)
    record = Recorder()
    resumed = fit_decay(strategy, checkpoint=tmp_path, resume=True, callback=record)
    whole = fit_decay(strategy)
    assert_same_result(resumed, whole)
    assert [shown.nit for shown in record.seen] == list(range(2, whole.nit + 1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_starts_are_not_shown(strategy):
    record = Recorder()
    result = fit_decay(strategy, callback=record, n_starts=5)
    assert len(record.seen) == result.nit


# Evaluations


@pytest.mark.parametrize("strategy", ["standard", "streaming"])
@pytest.mark.parametrize("max_nfev", [1, 2, 5])
def test_max_nfev(strategy, max_nfev):
    with pytest.warns(ConvergenceWarning, match="raise max_nfev"):
        result = fit_decay(strategy, max_nfev=max_nfev, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    assert (result.nfev, result.status.value, result.success) == (max_nfev, 0, False)
    assert len(result.history) == max_nfev
    if strategy == "standard":
        reference = optimize.least_squares(residuals, P0, x_scale="jac", max_nfev=max_nfev)
        assert reference.status == 0
        assert result.cost == pytest.approx(reference.cost, rel=1e-6)


# Printing


def printed(capsys, **options):
    result = fit_decay(**options)
    captured = capsys.readouterr()
    assert captured.err == ""
    return result, captured.out.splitlines()


@pytest.mark.parametrize("options", [{}, {"verbose": 0}, {"verbose": False}], ids=str)
def test_nothing_is_printed_unasked(capsys, options):
    assert printed(capsys, **options)[1] == []


@pytest.mark.parametrize("verbose", [1, True, np.int64(1)], ids=repr)
def test_the_end_is_printed_as_scipy_does(capsys, verbose):
    result, lines = printed(capsys, verbose=verbose, p0=[1, 1, 0])
    assert lines[0] == result.message
    optimize.least_squares(residuals, [1, 1, 0], x_scale="jac", verbose=1)
    theirs = capsys.readouterr().out.splitlines()
    # But for the first-order optimality, which is rounding at the end.
    assert [line.split(", first-order")[0] for line in lines] == [
        line.split(", first-order")[0] for line in theirs
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_evaluation_is_printed(capsys, strategy):
    result, (header, *rows, _, _) = printed(capsys, verbose=2, strategy=strategy)
    assert header.split() == ["Iteration", "nfev", "Cost", "Reduction", "Step", "Optimality"]
    assert len(rows) == result.nfev
    for row, record in zip(rows, result.history, strict=True):
        cells = row.split()
        assert (int(cells[0]), int(cells[1])) == (record.iteration, record.nfev)
        assert float(cells[2]) == pytest.approx(record.cost, rel=1e-7)
        assert ("rejected" in cells) is (not record.accepted)
        assert float(cells[-1]) == pytest.approx(record.optimality, rel=1e-2)
    # The columns stand below their names.
    assert len({len(line) for line in (header, *rows)}) == 1
    costs = [r.cost for r in result.history]
    falls = [float(row.split()[3]) for row in rows[1:]]
    best = np.minimum.accumulate(costs)[:-1]
    np.testing.assert_allclose(falls, best - costs[1:], rtol=0.01, atol=1e-15)


def test_the_end_of_a_failed_fit_is_printed(capsys):
    with pytest.warns(ConvergenceWarning):
        result, lines = printed(capsys, verbose=1, max_nfev=2)
    assert lines[0] == result.message
    assert lines[1].startswith("Function evaluations 2, initial cost ")


def test_what_is_tried_before_the_end_is_shown_once(capsys):
    """A fit that tries undetermined directions makes several evaluations in one turn."""

    def flat(x, a, b):
        return a + 0.0 * b * x

    steps = []
    with pytest.warns(CovarianceWarning):
        result = fit(flat, X, Y, p0=[9, 1], verbose=2, callback=lambda x: steps.append(x))
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in lines]
    numbers = [int(row[1]) for row in cells if row[0].isdigit()]
    assert numbers == list(range(1, result.nfev + 1))
    assert len(steps) == result.nit
