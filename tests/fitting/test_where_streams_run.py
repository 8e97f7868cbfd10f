"""Where a streaming fit runs, on how many threads, and what that says of its chunks."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import InputError, fit
from nlsq_dask.engines.dask import cluster_executor
from nlsq_dask.engines.dask.cluster import smallest_worker
from nlsq_dask.engines.dask.scheduler import local_threads

X = np.linspace(0, 4, 3000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def fit_decay(x=X, y=Y, **kwargs):
    return fit(decay, x, y, p0=[1, 1, 0], progress=False, **kwargs)


class Chunks:
    """A Dask array whose chunks are counted as they are made, and while they are being made."""

    def __init__(self, rows, chunk):
        self.made, self.at_once, self._running = 0, 0, 0
        self._lock, self._together = threading.Lock(), threading.Barrier(2)
        chunks = da.core.normalize_chunks(chunk, (rows,))
        self.x = da.map_blocks(self._make, chunks=chunks, dtype=float, meta=np.empty(0))
        self.y = 2.5 * da.exp(-1.3 * self.x) + 0.5

    def _make(self, block_info=None):
        with self._lock:
            self.made += 1
            self._running += 1
            self.at_once = max(self.at_once, self._running)
        try:  # two threads meet here, if there are two
            self._together.wait(timeout=0.02)
        except threading.BrokenBarrierError:
            self._together.reset()
        with self._lock:
            self._running -= 1
        return np.linspace(0, 4, block_info[None]["chunk-shape"][0])


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_as_dask_is_set_to(threads):
    chunks = Chunks(1000, 200)
    with dask.config.set(num_workers=threads):
        assert local_threads() == threads
        fit_decay(chunks.x, chunks.y)
    assert chunks.at_once == threads


def test_the_threads_of_dask_s_local_schedulers():
    assert local_threads() == dask.system.CPU_COUNT
    with dask.config.set(scheduler="synchronous"):
        assert local_threads() == 1
    with ThreadPoolExecutor(5) as pool:
        with dask.config.set(pool=pool):
            assert local_threads() == 5
        with dask.config.set(scheduler=pool):
            assert local_threads() == 5
            # One of the user's own is called as it is, whatever number of threads was planned.
            assert fit_decay(memory_limit_gb=1e-5).strategy == "streaming"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_a_chunk_for_every_thread_has_to_fit(threads):
    chunks = Chunks(10**7, 10**7)
    with dask.config.set(num_workers=threads), pytest.raises(InputError) as caught:
        fit_decay(chunks.x, chunks.y, memory_limit_gb=0.3)
    assert chunks.made == 0
    plural = "1 thread" if threads == 1 else f"{threads} threads"
    assert f"300 MB of memory and {plural}" in str(caught.value)
    rows = int(re.search(r"y\.rechunk\(\((\d+),\)\)", str(caught.value))[1])
    # Room for chunks, three copies of each, and for buffers is 0.75 * 0.3 - 0.1 GB.
    assert 0.5 * 0.125e9 < threads * 3 * 16 * rows < 0.125e9
    fitting = Chunks(2 * rows, rows)
    with dask.config.set(num_workers=threads):
        assert fit_decay(fitting.x, fitting.y, memory_limit_gb=0.3).success


def test_the_largest_chunk_of_any_array_counts():
    # Blocks have 10**5 rows, but each is cut from a chunk of 10**7.
    chunks = Chunks(10**7, 10**7)
    y = da.zeros(10**7, chunks=10**5)
    with pytest.raises(InputError, match=r"^a chunk of shape \(10000000,\) takes 80\.8 MB"):
        fit_decay(chunks.x, y, memory_limit_gb=0.2)
    assert chunks.made == 0


@pytest.mark.cluster
def test_a_limit_lowers_what_a_worker_has_but_does_not_raise_it(client):
    x, y = (da.from_array(a, chunks=1000) for a in (X, Y))
    unlimited = fit_decay(x, y, client=client).budget.available_gb
    lowered, raised = (
        fit_decay(x, y, client=client, memory_limit_gb=limit).budget.available_gb
        for limit in (0.5, 2 * unlimited)
    )
    assert (lowered, raised) == (0.5, unlimited)


@pytest.mark.cluster
def test_arrays_in_memory_are_not_sent_to_a_cluster_that_was_not_named(client, monkeypatch):
    used = []
    runner = cluster_executor.ClusterRunner

    def noted(*args):
        used.append(args)
        return runner(*args)

    monkeypatch.setattr(cluster_executor, "ClusterRunner", noted)
    with client.as_current():
        here = fit_decay(strategy="streaming")
    assert not used
    there = fit_decay(strategy="streaming", client=client)
    assert used
    assert here.popt.tobytes() == there.popt.tobytes()


@pytest.mark.cluster
def test_workers_are_found_whatever_the_client_asks_for_in_between(client, monkeypatch):
    # As it does every other second: an answer without workers, just before the caller looks.
    async def forget(*_, **__):
        client._scheduler_identity = {"workers": {}}

    monkeypatch.setattr(client, "_update_scheduler_info", forget)
    worker = smallest_worker(client)
    assert worker.threads == 1
    assert worker.memory_bytes > 0
