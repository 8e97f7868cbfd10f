"""Threads that share the series of a task where a map has fewer regions than threads."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest

from nlsq_dask import fit_each
from nlsq_dask.core.series_memory import CALL_SERIES, most_threads
from nlsq_dask.engines.dask import series_regions
from nlsq_dask.engines.dask.scheduler import threads_here

SIDE = 128
X = np.arange(1.0, 5.0)
SLOPES = np.linspace(1.0, 2.0, SIDE * SIDE).reshape(SIDE, SIDE)
Y = SLOPES * X[:, None, None]


def line(x, slope):
    return slope * x


@pytest.fixture(scope="module")
def expected():
    return fit_each(line, X, Y, [1.0])


@pytest.fixture
def threads(monkeypatch):
    """Threads of each task, in the order in which the tasks are run."""
    found, fit_in_threads = [], series_regions.fit_in_threads

    def noted(problem, arrays, count):
        found.append(count)
        return fit_in_threads(problem, arrays, count)

    monkeypatch.setattr(series_regions, "fit_in_threads", noted)
    return found


@pytest.mark.parametrize(
    ("chunk", "workers", "used"),
    [(SIDE, 2, [2]), (SIDE, 1, [1]), (SIDE // 2, 2, [1, 1]), (SIDE // 2, 4, [1, 1])],
    ids=["one chunk", "one thread", "two chunks", "room for one thread each"],
)
@pytest.mark.parametrize("in_store", [True, False], ids=["store", "lazy"])
def test_threads_share_the_series_of_few_chunks(
    chunk, workers, used, in_store, expected, threads, tmp_path
):
    y = da.from_array(Y, chunks=(-1, chunk, -1))
    store = tmp_path / "maps.zarr" if in_store else None
    with dask.config.set(num_workers=workers):
        maps = fit_each(line, X, y, [1.0], store=store).compute()
    assert threads == used
    for name, values in expected.fields.items():
        np.testing.assert_array_equal(maps.fields[name], values)


def test_each_further_thread_has_room_for_a_call():
    call = 3 * 8 * CALL_SERIES
    assert [most_threads(n, 1) for n in (0, call - 1, call, 3 * call)] == [1, 1, 2, 4]
    assert most_threads(3 * call, 2) == 2


@pytest.mark.cluster
def test_a_task_of_a_worker_knows_the_threads_of_the_worker(client):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    assert client.submit(threads_here, pure=False).result() in {
        worker["nthreads"] for worker in workers.values()
    }
