"""Searches that read together, and the engines' answers to several models."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from nlsq_dask.core.questions import CostsAt, Several, SumsAt
from nlsq_dask.fitting.lock_step import answered_together, together
from nlsq_dask.io.sources import observe
from nlsq_dask.user_model.model import prepare_model
from tests.support.engines import chunked_engine, dask_engine, standard_engine
from tests.support.problems import plain_problem


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
        "standard": lambda *specs: standard_engine(data, *specs),
        "chunked": lambda *specs: chunked_engine(data, *specs, block_rows=4096),
        "streaming": lambda *specs: dask_engine(lazy, *specs, stage_rows=1024),
        "kept rows": lambda *specs: dask_engine(lazy, *specs, stage_rows=1024, cache=True),
    }


@pytest.mark.slow
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
        alone = [
            first.ask(SumsAt(at[0], basis, observe=True)),
            second.ask(SumsAt(at[1], np.eye(2), observe=True)),
            second.ask(CostsAt(candidates)),
        ]
    questions = (
        SumsAt(at[0], basis, observe=True, model=0),
        Several((SumsAt(at[1], np.eye(2), observe=True, model=1), CostsAt(candidates, model=1))),
    )
    with make(*SPECS) as both:
        both.ask(Several(questions))
        sums, (other, costs) = both.ask(Several(questions))
        assert both.n_passes == 2

    for mine, expected in ((sums, alone[0]), (other, alone[1])):
        assert mine.gram.tobytes() == expected.gram.tobytes()
        assert mine.gradient.tobytes() == expected.gradient.tobytes()
        assert (mine.cost, mine.chi2, mine.n_points, mine.n_skipped, mine.moments) == (
            expected.cost,
            expected.chi2,
            expected.n_points,
            expected.n_skipped,
            expected.moments,
        )
        assert mine.n_skipped == 10_001
    assert costs.tobytes() == alone[2].tobytes()


class Reading:
    """Answers questions of costs by the sums of the candidates, and counts."""

    def __init__(self):
        self.asked = []

    def __call__(self, questions):
        self.asked.append(list(questions))
        return {number: q.candidates.sum(axis=1) for number, q in questions.items()}


def search(n_readings, then=None):
    """A search that asks so many times, and adds up the answers; and then does something."""
    total = 0.0
    for i in range(n_readings):
        costs = yield CostsAt(np.full((1, 2), i + 1.0))
        total += costs[0]
    return then() if then else total


def test_as_many_readings_as_the_longest_fit_asks_for():
    read = Reading()
    found = answered_together([search(3), search(0), search(1), search(5)], read)

    assert found == [12.0, 0.0, 2.0, 30.0]
    assert read.asked == [[0, 2, 3], [0, 3], [0, 3], [3], [3]]


def test_searches_that_ask_nothing_read_nothing():
    read = Reading()
    assert answered_together([search(0), search(0)], read) == [0.0, 0.0]
    assert read.asked == []


def fail(error):
    def raise_it():
        raise error

    return raise_it


def test_a_failure_ends_the_others_before_another_reading():
    read = Reading()
    failing = search(2, fail(ArithmeticError("second")))
    with pytest.raises(ArithmeticError, match="second"):
        answered_together([search(9), failing, search(9)], read)
    assert read.asked == [[0, 1, 2]] * 2


def test_of_several_failures_the_first_model_has_the_word():
    searches = [search(4)] + [search(1, fail(ValueError(f"of {i}"))) for i in (1, 2)]
    with pytest.raises(ValueError, match="of 1"):
        answered_together(searches, Reading())


@pytest.mark.parametrize("error", [OSError("no such chunk"), KeyboardInterrupt()])
def test_a_failed_reading_ends_all_fits(error):
    def read(questions):
        raise error

    with pytest.raises(type(error)):
        answered_together([search(3), search(1)], read)


@pytest.mark.slow
def test_several_engines_answer_one_reading():
    problem = plain_problem(2000, p=2, sigma=False)
    data = observe(problem.x, problem.y)
    candidates = np.ones((1, 2))
    specs = [SPECS[1]] * 3
    with (
        standard_engine(data, *specs) as parts,
        standard_engine(data, *specs, whole=True) as whole,
    ):
        ask = together([parts, whole, parts], range(3))
        answers = ask({number: CostsAt(candidates * number) for number in (2, 1)})
        assert (parts.n_passes, whole.n_passes) == (1, 1)
        for number, answer in answers.items():
            expected = parts.ask(CostsAt(candidates * number))
            np.testing.assert_allclose(answer, expected, rtol=1e-12)
