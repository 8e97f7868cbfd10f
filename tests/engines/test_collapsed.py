"""Sums of all rows from the means at their distinct coordinates."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask.core.questions import CostsAt, Several, SumsAt
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.bad_values import BadValues
from nlsq_dask.questions.spread import TILE_ROWS, Spread, spread_of_all
from tests.engines.conformance import CostlyEngineConformance, seeds
from tests.engines.test_dask import in_dask_arrays
from tests.engines.test_missing import check_sums
from tests.support.engines import chunked_engine, dask_engine
from tests.support.missing_problems import gappy_problems
from tests.support.problems import (
    DTYPES,
    Problem,
    exact_sums,
    plain_problem,
    random_chunks,
    values,
)


def collapsed(rows, data, spec):
    return CollapsedEngine(rows, data, Kernels((spec,)))


def in_memory(data, spec):
    return collapsed(chunked_engine(data, spec), data, spec)


def streamed(data, spec, client=None):
    return collapsed(dask_engine(data, spec, client=client), data, spec)


class TestCollapsed(CostlyEngineConformance):
    many_rows = 100_001

    def engine(self, spec, x, y, sigma=None, layout=0):
        if layout % 2:
            return streamed(in_dask_arrays(x, y, sigma, layout), spec)
        return in_memory(observe(x, y, sigma), spec)

    def test_passes_are_counted(self):
        problem = plain_problem()
        with self.engine(problem.spec, problem.x, problem.y) as engine:
            assert engine.n_passes == 0
            for _ in range(3):
                engine.ask(SumsAt(problem.params, problem.basis))
                assert engine.n_passes == 1
            # What is no function of the means is asked of the rows.
            engine.ask(BadValues(2))
            assert engine.n_passes == 2


@pytest.mark.slow
@settings(max_examples=20)
@given(case=gappy_problems(sizes=(1,)), layout=seeds)
def test_sums_equal_dense_numpy_on_the_rows_that_remain(case, layout):
    def make(case, layout):
        if layout % 2:
            return streamed(case.in_dask(layout), case.problem.spec)
        return in_memory(case.in_memory(), case.problem.spec)

    check_sums(make, case, layout)


def cube(shape=(30, 40, 50), dtype="f4", *, sigma=True):
    """Three dimensions, of which the coordinates vary along the first and the last."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 4, (shape[0], 1, 1)), rng.uniform(0, 4, shape[2])
    y = rng.normal(1, 1, shape).astype(dtype)
    weights = rng.uniform(0.5, 2, shape) if sigma else None
    return Problem(x, y, weights, np.array([0.3]), np.eye(1))


def bits(sums):
    moments = sums.moments
    return (
        sums.gram.tobytes(),
        sums.gradient.tobytes(),
        sums.chi2,
        moments.mean,
        moments.scatter,
        moments.sq_residuals,
    )


@pytest.mark.slow
def test_statistics_are_those_of_all_rows():
    problem = cube()
    data = observe(problem.x, problem.y, problem.sigma)
    question = SumsAt(problem.params, problem.basis, observe=True)
    with chunked_engine(data, problem.spec) as rows, in_memory(data, problem.spec) as engine:
        expected, sums = rows.ask(question), engine.ask(question)
        both, costs = engine.ask(Several((question, CostsAt(problem.params[None]))))
    assert (sums.n_points, sums.n_skipped) == (problem.y.size, 0)
    for name in ("sq_residuals", "weight", "mean", "scatter", "variance", "n_small"):
        assert getattr(sums.moments, name) == pytest.approx(
            getattr(expected.moments, name), rel=1e-12
        )
    assert np.isnan(sums.moments.abs_residuals)  # no function of the means
    np.testing.assert_allclose(sums.largest, expected.largest, rtol=1)  # bounds
    assert sums.largest[0] >= np.abs(problem.y).max()
    assert bits(both) == bits(sums)
    assert costs[0] == pytest.approx(sums.cost, rel=1e-14)


@pytest.mark.parametrize("sigma", [True, False])
def test_the_same_bits_on_every_scheduler_and_number_of_threads(sigma):
    problem = cube(sigma=sigma)
    arrays = [a if a is None else da.from_array(a, chunks=(11, 13, 17)) for a in problem.arrays[2:]]
    data = observe(problem.x, *arrays)
    found = []
    for scheduler, workers in (("synchronous", 1), ("threads", 1), ("threads", 7)):
        with dask.config.set(scheduler=scheduler, num_workers=workers):
            engine = streamed(data, problem.spec)
            found.append(bits(engine.ask(SumsAt(problem.params, problem.basis, observe=True))))
    assert found[0] == found[1] == found[2]


@pytest.mark.cluster
def test_the_same_bits_on_a_cluster(client):
    problem = cube()
    arrays = [da.from_array(a, chunks=(11, 13, 17)) for a in problem.arrays[2:]]
    data = observe(problem.x, *arrays)
    question = SumsAt(problem.params, problem.basis, observe=True)
    with streamed(data, problem.spec, client) as engine:
        there = engine.ask(question)
    assert bits(there) == bits(streamed(data, problem.spec).ask(question))


def test_weights_far_apart_and_weights_without_a_square():
    problem = cube(dtype="f8")
    sigma = problem.sigma * 10.0 ** np.random.default_rng(1).integers(-6, 6, problem.y.shape)
    sigma[3] = 1e200  # its weights squared are zero in float64
    problem = Problem(problem.x, problem.y, sigma, problem.params, problem.basis)
    with in_memory(observe(problem.x, problem.y, sigma), problem.spec) as engine:
        sums = engine.ask(SumsAt(problem.params, problem.basis))
    exact_sums(problem).assert_equal(sums, problem.y.size)


@given(data=st.data(), seed=seeds)
def test_means_and_scatters_equal_two_passes_of_numpy(data, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(data.draw(st.integers(1, n)) for n in (7, 40, 30))
    y = values(rng, shape, data.draw(st.sampled_from(DTYPES)))
    varies = [data.draw(st.booleans()) for _ in shape]
    kept = tuple(n if v else 1 for n, v in zip(shape, varies, strict=True))
    axes = tuple(axis for axis in range(3) if not varies[axis])
    total = Spread.zero(kept)
    cuts = random_chunks(rng, (shape[1],))[0]
    for start, size in zip(np.cumsum([0, *cuts]), cuts, strict=False):
        part = y[:, start : start + size]
        if size:
            own = tuple(n if v else 1 for n, v in zip(part.shape, varies, strict=True))
            box = tuple(slice(0, n) for n in own)
            if varies[1]:
                box = (box[0], slice(start, start + size), box[2])
            total.add_at(box, spread_of_all(part, own))
    wide = y.astype(np.float64)
    mean = wide.mean(axis=axes, keepdims=True)
    np.testing.assert_allclose(total.mean, mean, rtol=1e-13, atol=1e-14)
    scatter = ((wide - mean) ** 2).sum(axis=axes, keepdims=True)
    np.testing.assert_allclose(total.scatter, scatter, rtol=1e-12, atol=1e-12)
    assert (total.weight == y.size / mean.size).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_keeps_its_digits_far_from_zero_and_beside_an_outlier(axis):
    shape = (3, 2 * TILE_ROWS + 7) if axis else (2 * TILE_ROWS + 7, 3)
    # Integers around 1e9, whose sums and means NumPy's longer numbers hold.
    y = 1e9 + np.random.default_rng(0).integers(-9, 9, shape)
    y[(slice(None), 0) if axis else 0] += 1e6
    found = spread_of_all(y, tuple(1 if a == axis else n for a, n in enumerate(shape)))
    distances = (y - 1e9).astype(np.longdouble)
    mean = distances.mean(axis=axis, keepdims=True)
    scatter = ((distances - mean) ** 2).sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-12)
    np.testing.assert_allclose(found.mean, (mean + 1e9).astype(float), rtol=1e-15)
