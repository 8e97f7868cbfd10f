"""What a newcomer adds: an engine and a question, each from outside of the package."""

from __future__ import annotations

import os
from typing import ClassVar

import numpy as np
import pytest

from nlsq_dask.core.questions import CostsAt, Several
from nlsq_dask.io.sources import observe
from nlsq_dask.questions.bad_values import BadValues
from tests.engines.conformance import CostlyEngineConformance
from tests.engines.cubes import CubesAt
from tests.engines.pool_engine import PoolEngine
from tests.engines.test_dask import in_dask_arrays
from tests.support.engines import chunked_engine, dask_engine, standard_engine
from tests.support.problems import exact_sums, plain_problem, problems


@pytest.mark.slow
class TestPool(CostlyEngineConformance):
    # Every number of parameters is one more compilation in each process.
    problems: ClassVar = problems(sizes=(1, 12))

    def engine(self, spec, x, y, sigma=None, layout=0):
        return PoolEngine(observe(x, y, sigma), [spec], 50_000 + layout % 1000)


def test_the_pool_answers_questions_of_blocks():
    y = np.ones(1000)
    y[777] = np.nan
    data = observe(np.arange(1000.0), y)
    with PoolEngine(data, [], 100) as engine:
        found = engine.ask(BadValues(2))
    assert str(found.not_finite[0].first) == "at index (777,), in block (7,), which is y[700:800]"
    assert engine.processes
    assert os.getpid() not in engine.processes


ENGINES = {
    "standard": lambda data, lazy, spec: standard_engine(data, spec),
    "chunked": lambda data, lazy, spec: chunked_engine(data, spec, block_rows=1000),
    "pool": lambda data, lazy, spec: PoolEngine(data, [spec], 1000),
    "streaming": lambda data, lazy, spec: dask_engine(lazy, spec),
    "kept rows": lambda data, lazy, spec: dask_engine(lazy, spec, cache=True),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_question_is_asked_of_every_engine(engine):
    problem = plain_problem(5000, p=3)
    arrays = problem.x, problem.y, problem.sigma
    data, lazy = observe(*arrays), in_dask_arrays(*arrays, layout=1)
    rates = problem.params * np.arange(1, 4) / 12  # of `decays`
    values = np.exp(-rates[:, None] * problem.x).sum(axis=0)
    expected = np.sum(np.abs((values - problem.y) / problem.sigma) ** 3)
    candidates = problem.params[None]
    with ENGINES[engine](data, lazy, problem.spec) as opened:
        alone = opened.ask(CubesAt(problem.params))
        cubes, costs = opened.ask(Several((CubesAt(problem.params), CostsAt(candidates))))
        assert opened.n_passes == 2
    assert alone == pytest.approx(expected, rel=1e-12)
    assert cubes == alone
    assert costs[0] == pytest.approx(0.5 * exact_sums(problem).chi2, rel=1e-12)
