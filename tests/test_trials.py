"""When derivatives wait for the cost, and that nothing but the passes differs."""

from __future__ import annotations

import itertools

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nlsq_dask import FitResult, _pilot, _trials, fit
from nlsq_dask._trials import accepted_share, choose_trials
from nlsq_dask.core.memory_budget import CALL_ROWS
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.solver_state import IterationRecord
from nlsq_dask.io.checkpoint import CheckpointStore
from tests.pilot_cases import computed, decay
from tests.same_result import EXACT

X = np.linspace(0, 4, 20_000)
Y = computed(decay, X, 2.5, 1.3, 0.5) + 0.1 * np.random.default_rng(3).normal(size=X.size)
SAME = set(EXACT) - {"n_passes", "history"}


def record(nfev, accepted, distance=1.0):
    return IterationRecord(0, nfev, 1.0, 1.0, 1.0, 1.0, accepted, distance)


def test_the_share_is_that_of_the_trials_of_all_searches():
    assert accepted_share([record(1, True)]) == 1
    way = [record(1, True), record(2, False), record(3, True)]
    assert accepted_share(way) == 0.5
    assert accepted_share([*way, record(1, True), record(2, True)]) == pytest.approx(2 / 3)


def test_near_the_optimum_the_share_is_that_of_the_trials_there():
    far = [record(1, True, 1e4), record(2, False, 1e4), record(3, True, 3), record(4, True, 0.1)]
    assert accepted_share(far) == pytest.approx(2 / 3)
    assert accepted_share(far, near=True) == 1
    assert accepted_share(far[:3], near=True) == 1  # there was none
    # Another search begins where the last has ended, but not from there.
    again = [record(1, True, 2), record(2, False, 2), record(3, True, 0.1)]
    assert accepted_share([*far, *again], near=True) == pytest.approx(2 / 3)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_fit_of_a_sample_says_what_trials_are_worth_where_the_fit_goes_on(monkeypatch, trusted):
    monkeypatch.setattr(_pilot, "_is_trusted", lambda *_: trusted)
    shares = []

    def choose(evaluator, point, n_rows, accepted, seconds):
        shares.append(accepted)
        return "fused"

    monkeypatch.setattr(_pilot, "choose_trials", choose)
    fit(decay, *(da.from_array(a, chunks=500) for a in (X, Y)), [1, 5, 1], pilot=True)
    (share,) = shares
    assert (share == 1) == trusted


class Clock:
    """An evaluator for which every call takes a known time, though the first of a kind longer."""

    def __init__(self, residual, derivative):
        self.now, self.residual, self.derivative = 0.0, residual, derivative
        self.delays = {"residual": [9.0, 2.0, 0.0, 1.0], "derivative": [9.0, 1.0, 2.0, 0.0]}

    def perf_counter(self):
        return self.now

    def evaluate(self, params, basis):
        assert basis.shape == (params.size, params.size)
        self.now += self.derivative + self.delays["derivative"].pop(0)
        return NormalEquations.zero(params.size)

    def costs(self, candidates):
        self.now += self.residual + self.delays["residual"].pop(0)
        return np.zeros(len(candidates))


times = st.floats(1e-3, 1e3)


@given(read=times, residual=times, more=times, accepted=st.floats(0, 1))
def test_the_cheaper_way_is_chosen(read, residual, more, accepted):
    derivative = residual + more
    fused = read + derivative
    cost_first = read + residual + accepted * (read + derivative)
    pays = cost_first < 0.9 * fused
    assume(abs(0.9 * fused - cost_first) > 1e-6 * fused)
    clock = Clock(residual * CALL_ROWS, derivative * CALL_ROWS)
    chosen = chosen_by(clock, accepted, read + derivative + residual)
    assert chosen == ("cost first" if pays else "fused")


def chosen_by(clock, accepted, seconds, n_rows=CALL_ROWS):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_trials, "time", clock)
        return choose_trials(clock, np.ones(2), n_rows, accepted, seconds)


@given(residual=times, derivative=times, seconds=times)
def test_where_all_trials_are_accepted_no_measured_time_makes_them_wait(
    residual, derivative, seconds
):
    """Not even one that cannot be, as of a machine that others use."""
    clock = Clock(residual * CALL_ROWS, derivative * CALL_ROWS)
    assert chosen_by(clock, 1.0, seconds) == "fused"


def test_of_few_rows_the_calls_would_be_timed():
    n = CALL_ROWS - 1
    assert chosen_by(Clock(1.0 * n, 10.0 * n), 0.0, 11.5, n) == "fused"
    assert chosen_by(Clock(1.0 * (n + 1), 10.0 * (n + 1)), 0.0, 11.5) == "cost first"


@pytest.fixture
def rejected_pilot(monkeypatch):
    """All searches go on from p0."""
    monkeypatch.setattr(_pilot, "_is_trusted", lambda *_: False)


def fit_trying(monkeypatch, trials, **options):
    monkeypatch.setattr(_pilot, "choose_trials", lambda *_: trials)
    x, y = (da.from_array(a, chunks=500) for a in (X, Y))
    return fit(decay, x, y, [1, 5, 1], pilot=True, **options)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0, [3, 6, 2])])
def test_only_the_passes_differ(rejected_pilot, monkeypatch, method, bounds):
    options = {"method": method, "bounds": bounds}
    fused = fit_trying(monkeypatch, "fused", **options)
    first = fit_trying(monkeypatch, "cost first", **options)
    for name in SAME:
        assert getattr(first, name) == getattr(fused, name), name
    assert first.popt.tobytes() == fused.popt.tobytes()
    assert first.pcov.tobytes() == fused.pcov.tobytes()
    assert (first.pilot.trials, fused.pilot.trials) == ("cost first", "fused")
    # The pass that compares the pilot's answer with p0; p0 itself; and what follows.
    assert fused.n_passes == 1 + fused.nfev
    accepted = sum(entry.accepted for entry in first.history) - 1
    if np.ndim(bounds[1]) == 0:
        assert accepted < first.nfev - 1
    assert first.n_passes == 1 + first.nfev + accepted


class KilledError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("passes", [1, 3, 5])
def test_a_resumed_fit_goes_on_in_the_same_way(rejected_pilot, monkeypatch, tmp_path, passes):
    expected = fit_trying(monkeypatch, "cost first")
    saved = itertools.count(1)

    def save_and_die(store, checkpoint):
        save(store, checkpoint)
        if next(saved) == passes:
            raise KilledError

    save = CheckpointStore.save
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(CheckpointStore, "save", save_and_die)
        fit_trying(monkeypatch, "cost first", checkpoint=tmp_path)
    result = fit_trying(monkeypatch, "never asked", checkpoint=tmp_path, resume=True)
    for name in EXACT:
        assert getattr(result, name) == getattr(expected, name), name
    assert result.pilot.trials == "cost first"


def test_a_saved_result_knows(monkeypatch, tmp_path):
    result = fit_trying(monkeypatch, "cost first")
    result.save(tmp_path / "result.json")
    assert FitResult.load(tmp_path / "result.json").pilot.trials == "cost first"


def test_the_radius_of_lm_needs_the_same_bits(rejected_pilot, monkeypatch):
    assert fit_trying(monkeypatch, "cost first", method="lm").pilot.trials == "fused"


def test_data_in_memory_are_not_read_twice(monkeypatch):
    monkeypatch.setattr(_pilot, "choose_trials", lambda *_: "cost first")
    assert fit(decay, X, Y, [1, 5, 1], pilot=True).pilot.trials == "fused"
