"""Fits that read together: the table, and the engines' answers to many models."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

from nlsq_dask.engines.dask.engine import DaskEvaluator
from nlsq_dask.engines.in_memory import chunked_evaluator, standard_evaluator
from nlsq_dask.fitting.together import Seat, Table, read_by, run_together
from nlsq_dask.io.sources import observe
from nlsq_dask.questions.question import CostsRequest, SumsRequest, SurveyRequest
from nlsq_dask.user_model.model import prepare_model
from tests.engines.conformance import EvaluatorConformance
from tests.engines.test_dask import in_dask_arrays
from tests.support.problems import plain_problem


class OneSeat:
    """A fit alone at a table, whose readings are made as they are asked for."""

    def __init__(self, reader, data):
        self._reader = reader
        self._seat = Seat(SimpleNamespace(ask=self._ask), 0, data)

    def __enter__(self):
        self._reader.__enter__()
        return self._seat

    def __exit__(self, *error):
        self._reader.__exit__(*error)

    def _ask(self, request):
        (answer,) = self._reader.together([request])
        return answer


class TestStandard(EvaluatorConformance):
    def evaluator(self, spec, x, y, sigma=None, layout=0):
        data = observe(x, y, sigma)
        return OneSeat(standard_evaluator(data, spec, models=[spec]), data)


class TestChunked(EvaluatorConformance):
    def evaluator(self, spec, x, y, sigma=None, layout=0):
        data = observe(x, y, sigma)
        return OneSeat(chunked_evaluator(data, spec, block_rows=99_991, models=[spec]), data)


class TestStreaming(EvaluatorConformance):
    def evaluator(self, spec, x, y, sigma=None, layout=0):
        data = in_dask_arrays(x, y, sigma, layout)
        return OneSeat(DaskEvaluator(data, spec, models=[spec]), data)


def power(x, a, b, c):
    return a * x**2 + b * x + c


def line(x, a, b):
    return a * x + b


SPECS = [
    prepare_model(power, tuple("abc"), "single", 1),
    prepare_model(line, tuple("ab"), "single", 1),
]


def engines(data, lazy):
    """Each engine by what makes it: of one model alone, or of several."""
    return {
        "standard": lambda spec, models=(): standard_evaluator(data, spec, models=models),
        "chunked": lambda spec, models=(): chunked_evaluator(
            data, spec, block_rows=4096, models=models
        ),
        "streaming": lambda spec, models=(): DaskEvaluator(
            lazy, spec, stage_rows=1024, models=models
        ),
        "kept rows": lambda spec, models=(): DaskEvaluator(
            lazy, spec, stage_rows=1024, models=models, cache=True
        ),
    }


@pytest.mark.parametrize("engine", ["standard", "chunked", "streaming", "kept rows"])
def test_answers_to_many_have_the_bits_of_answers_to_one(engine):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 70_001))
    y[::7] = np.nan
    lazy = observe(da.from_array(x, chunks=3000), da.from_array(y, chunks=3000), nan_policy="omit")
    make = engines(observe(x, y, nan_policy="omit"), lazy)[engine]
    at, basis = [rng.normal(size=n) for n in (3, 2)], rng.normal(size=(3, 2))
    candidates = rng.normal(size=(4, 2))
    with make(SPECS[0]) as first, make(SPECS[1]) as second:
        sums = first.evaluate(at[0], basis)
        survey = second.survey(at[1], np.eye(2), candidates)
        costs = second.costs(candidates)
    with make(SPECS[0], SPECS) as both:
        requests = [
            SumsRequest(0, at[0], basis, True),
            SurveyRequest(1, at[1], np.eye(2), candidates, True),
            CostsRequest(1, candidates),
        ]
        both.together(requests)
        answers = both.together(requests)
        assert both.n_passes == 2

    for mine, alone in ((answers[0], sums), (answers[1].sums, survey.sums)):
        assert mine.gram.tobytes() == alone.gram.tobytes()
        assert mine.gradient.tobytes() == alone.gradient.tobytes()
        assert (mine.cost, mine.chi2, mine.n_points, mine.n_skipped, mine.moments) == (
            alone.cost,
            alone.chi2,
            alone.n_points,
            alone.n_skipped,
            alone.moments,
        )
        assert mine.n_skipped == 10_001
    assert answers[1].costs.tobytes() == survey.costs.tobytes()
    assert answers[2].tobytes() == costs.tobytes()


class Reading:
    """Answers a request of costs by the sum of its candidates, and counts."""

    def __init__(self):
        self.asked = []

    def __call__(self, requests):
        self.asked.append([request.model for request in requests])
        return [request.candidates.sum(axis=1) for request in requests]


def search(n_readings, then=None):
    """A fit that reads so many times, adding up what it is told; and then does something."""

    def run(seat):
        total = 0.0
        for i in range(n_readings):
            total += seat.costs(np.full((1, 2), i + 1.0))[0]
        assert seat.n_passes == n_readings
        return then() if then else total

    return run


def nothing_else_runs():
    return not [t for t in threading.enumerate() if t.name.startswith("nlsq-fit")]


DATA = observe(np.ones(3), np.ones(3))


def test_as_many_readings_as_the_longest_fit_asks_for():
    read = Reading()
    found = run_together([search(3), search(0), search(1), search(5)], read, DATA)

    assert found == [12.0, 0.0, 2.0, 30.0]
    assert read.asked == [[0, 2, 3], [0, 3], [0, 3], [3], [3]]
    assert nothing_else_runs()


def test_readings_are_made_where_the_fits_were_called():
    threads = []

    def read(requests):
        threads.append(threading.current_thread())
        return [np.zeros(1) for _ in requests]

    run_together([search(2), search(1)], read, DATA)
    assert threads == [threading.current_thread()] * 2


def test_fits_compute_by_turns():
    running = []

    def run(seat):
        for _ in range(20):
            running.append(threading.current_thread())
            others = {t for t in running if t is not running[-1]}
            assert not others
            running.clear()
            seat.costs(np.ones((1, 2)))

    run_together([run] * 6, Reading(), DATA)


def fail(error):
    def raise_it():
        raise error

    return raise_it


def test_a_failure_ends_the_others_before_another_reading():
    read = Reading()
    with pytest.raises(ArithmeticError, match="second"):
        run_together([search(9), search(2, fail(ArithmeticError("second"))), search(9)], read, DATA)
    assert read.asked == [[0, 1, 2]] * 2
    assert nothing_else_runs()


def test_of_several_failures_the_first_model_has_the_word():
    searches = [search(4)] + [search(1, fail(ValueError(f"of {i}"))) for i in (1, 2)]
    for _ in range(20):
        with pytest.raises(ValueError, match="of 1"):
            run_together(searches, Reading(), DATA)


@pytest.mark.parametrize("error", [OSError("no such chunk"), KeyboardInterrupt()])
def test_a_failed_reading_ends_all_fits(error):
    def read(requests):
        raise error

    with pytest.raises(type(error)):
        run_together([search(3), search(1)], read, DATA)
    assert nothing_else_runs()


def test_a_closed_table_takes_no_more_requests():
    table = Table(1)
    table.close()
    with table.turn, pytest.raises(Exception, match="^$"):
        table.ask(CostsRequest(0, np.ones((1, 2))))


def test_a_fit_whose_turn_comes_too_late_does_not_begin():
    table = Table(1)
    with table.turn:
        table.sit_down()
    table.close()
    with table.turn, pytest.raises(Exception, match="^$"):
        table.sit_down()


def test_several_engines_answer_one_reading():
    problem = plain_problem(2000, p=2, sigma=False)
    data = observe(problem.x, problem.y)
    candidates = np.ones((1, 2))
    models = [SPECS[1]] * 3
    with (
        standard_evaluator(data, SPECS[1], models=models) as parts,
        standard_evaluator(data, SPECS[1], row_wise=False, models=models) as whole,
    ):
        read = read_by([parts, whole, parts])
        answers = read([CostsRequest(model, candidates * model) for model in (2, 1)])
        assert (parts.n_passes, whole.n_passes) == (1, 1)
        for model, answer in zip((2, 1), answers, strict=True):
            np.testing.assert_allclose(answer, parts.costs(candidates * model), rtol=1e-12)
