"""The streaming tier on Dask's local schedulers."""

from __future__ import annotations

import threading
from typing import ClassVar

import dask
import dask.array as da
import numpy as np
import pytest
from dask.callbacks import Callback

from nlsq_dask import fit
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.reading import Retries
from nlsq_dask.engines.dask.scheduler import active_client
from nlsq_dask.io.sources import observe
from nlsq_dask.user_model.model import prepare_model
from tests.engines.conformance import EngineConformance
from tests.support.engines import dask_engine, sample_of
from tests.support.problems import exact_sums, plain_problem, random_chunks


def in_dask_arrays(x, y, sigma, layout):
    """Observations in Dask arrays of unrelated chunkings; some arrays stay in memory."""
    rng = np.random.default_rng(layout)

    def wrap(array, always=False):
        if not isinstance(array, np.ndarray) or (rng.random() < 0.2 and not always):
            return array
        return da.from_array(array, chunks=random_chunks(rng, array.shape))

    coords = tuple(map(wrap, x)) if isinstance(x, tuple) else wrap(x)
    return observe(coords, wrap(y, always=True), wrap(sigma))


class TestSynchronous(EngineConformance):
    def engine(self, spec, x, y, sigma=None, layout=0):
        return dask_engine(in_dask_arrays(x, y, sigma, layout), spec)

    @pytest.fixture(autouse=True)
    def scheduler(self):
        with dask.config.set(scheduler="synchronous"):
            yield


class TestThreads(EngineConformance):
    def engine(self, spec, x, y, sigma=None, layout=0):
        return dask_engine(in_dask_arrays(x, y, sigma, layout), spec)


def chunked_problem(n_rows=60_000, chunks=1000):
    problem = plain_problem(n_rows, p=2)
    arrays = (da.from_array(a, chunks=chunks) for a in (problem.x, problem.y, problem.sigma))
    return problem, observe(*arrays)


class TestSmallStages(EngineConformance):
    """Buffers of which blocks fill many, and that are full in the middle of a block."""

    many_rows: ClassVar = 100_001

    def engine(self, spec, x, y, sigma=None, layout=0):
        return dask_engine(in_dask_arrays(x, y, sigma, layout), spec, stage_rows=512)


@pytest.mark.cluster
def test_processes_scheduler():
    problem, data = chunked_problem(4000)
    with dask.config.set(scheduler="processes", num_workers=1):
        engine = dask_engine(data, problem.spec)
        sums = engine.ask(SumsAt(problem.params, problem.basis))
    exact_sums(problem).assert_equal(sums, 4000)


def test_progress_counts_every_block_of_a_pass_once():
    problem, data = chunked_problem()
    calls = []
    engine = dask_engine(data, problem.spec, progress=lambda *args: calls.append(args))
    for _ in range(2):
        engine.ask(SumsAt(problem.params, problem.basis))

    for number in (1, 2):
        done = [d for n, d, total in calls if n == number]
        assert done == sorted(set(done))
        assert done[-1] == 60
        assert len(done) == len(engine.stream.groups)
    assert {total for *_, total in calls} == {60}


@pytest.mark.slow
def test_fits_in_several_threads_do_not_mix():
    """Neither their sums nor their progress; and nothing is left in Dask's list of callbacks."""
    finished = {}

    def one(n_rows):
        problem, data = chunked_problem(n_rows)
        last = []
        engine = dask_engine(data, problem.spec, progress=lambda *args: last.append(args))
        sums = [engine.ask(SumsAt(problem.params, problem.basis)) for _ in range(5)]
        finished[n_rows] = (problem, sums, last)

    sizes = [20_000 + 1000 * i for i in range(6)]
    threads = [threading.Thread(target=one, args=(n,)) for n in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(finished) == sizes
    for n_rows, (problem, sums, last) in finished.items():
        for each in sums:
            exact_sums(problem).assert_equal(each, n_rows)
        assert [done for _, done, total in last if done == total] == [n_rows // 1000] * 5
    assert not Callback.active


def test_callbacks_of_the_user_still_run():
    problem, data = chunked_problem(4000)
    keys = []
    with Callback(pretask=lambda key, *_: keys.append(key)):
        dask_engine(data, problem.spec).ask(SumsAt(problem.params, problem.basis))
    assert keys
    assert all(str(key[0]).startswith("nlsq ") for key in keys)


@pytest.mark.slow
def test_a_block_that_is_itself_the_result_of_a_fit():
    """The fit upstream runs in the middle of staging, in the same thread."""
    slopes = np.arange(1.0, 41.0)  # in groups of more than one block
    x = np.arange(300.0)

    def slopes_of(block):
        return np.array(
            [fit(lambda x, a: a * x, x, a * x, strategy="chunked").popt[0] for a in block]
        )

    y = da.from_array(slopes, chunks=1).map_blocks(slopes_of, dtype=float, meta=np.empty(0))
    result = fit(lambda x, a, b: a * x + b, np.arange(40.0), y)
    np.testing.assert_allclose(result.popt, [1.0, 1.0], rtol=1e-9)


def test_a_sample_holds_whole_rows_of_a_few_chunks():
    shape = (40, 50, 60)
    y = da.arange(40 * 50 * 60, chunks=-1).reshape(shape).rechunk((4, 10, 60))
    x = (np.arange(40.0)[:, None, None], np.arange(50.0)[:, None], da.arange(60, chunks=7))
    data = observe(x, y, sigma=da.arange(1, 41, chunks=3)[:, None, None])
    problem = plain_problem(10, p=1)
    engine = dask_engine(data, problem.spec)
    sample = sample_of(engine, data)

    assert engine.n_passes == 0
    assert sample.flat
    assert not sample.lazy
    t, row, column = (c.astype(int) for c in sample.coords)
    np.testing.assert_array_equal(sample.y, (t * 50 + row) * 60 + column)
    np.testing.assert_array_equal(sample.sigma, t + 1)
    # Few of the rows, from all over the cube.
    assert 0 < sample.n_rows < 0.3 * y.size
    assert (np.ptp(t) >= 28, np.ptp(row) >= 30, np.ptp(column) >= 30) == (True, True, True)


def test_no_client_no_cluster():
    assert active_client() is None


def test_a_model_that_cannot_be_pickled_runs_in_this_process():
    lock = threading.Lock()

    def model(x, a):
        with lock:
            return a * x

    x = np.linspace(0, 1, 500)
    data = observe(da.from_array(x, chunks=50), da.from_array(3 * x, chunks=70))
    sums = dask_engine(data, prepare_model(model, 1, "single", 1)).ask(
        SumsAt(np.array([1.0]), np.eye(1))
    )
    assert sums.chi2 == pytest.approx(4 * float(x @ x), rel=1e-12)


def test_an_error_upstream_reaches_the_user():
    def fail(block):
        raise OSError("the disk is gone")

    y = da.from_array(np.ones(100), chunks=10).map_blocks(fail, dtype=float, meta=np.empty(0))
    problem = plain_problem(100, p=1, sigma=False)
    engine = dask_engine(observe(problem.x, y), problem.spec, retries=Retries(0))
    with pytest.raises(OSError, match="the disk is gone"):
        engine.ask(SumsAt(problem.params, problem.basis))
