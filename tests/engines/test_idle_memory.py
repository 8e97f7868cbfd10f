"""Memory that a worker holds between the tasks of passes and fits, and gives back."""

from __future__ import annotations

import time
import weakref

import dask.array as da
import numpy as np
import pytest
import zarr

from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.idle_memory import IDLE_SECONDS, IdleMemory
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_process
from nlsq_dask.io.sources import observe
from tests.support.engines import dask_engine
from tests.support.problems import plain_problem

F8 = np.dtype("f8")


def filled(n=1000):
    memory = ReusedMemory()
    memory.empty((n,), F8)
    return memory


def until(happens, seconds=20.0):
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.01)
    return happens()


def test_memory_is_held_until_nobody_has_used_it_for_a_while():
    idle, memory = IdleMemory(0.2), filled()
    held = weakref.ref(memory)
    idle.hold(memory, most=1e9)
    del memory
    assert held() is not None
    assert until(lambda: held() is None)


def test_each_use_begins_the_time_anew():
    idle, memory = IdleMemory(3600.0), filled()
    idle.hold(memory, most=1e9)
    ends = idle._ends
    idle.hold(memory, most=1e9)
    assert idle._ends > ends
    assert idle._memory is memory


def test_memory_that_is_too_large_is_not_held():
    idle, memory = IdleMemory(3600.0), filled()
    idle.hold(memory, most=1e9)
    memory.empty((10_000,), F8)
    large = memory.empty((100_000,), F8)
    idle.hold(memory, most=large.nbytes)
    held = weakref.ref(memory)
    del memory, large
    assert held() is None


def test_memory_is_held_again_after_its_time_was_over():
    idle = IdleMemory(0.05)
    for _ in range(3):
        memory = filled()
        idle.hold(memory, most=1e9)
        held = weakref.ref(memory)
        del memory
        assert until(lambda held=held: held() is None)


class CountedFreed:
    """Stands for what the C library keeps."""

    def __init__(self):
        self.kept = False

    def keep(self):
        self.kept = True

    def give_back(self):
        self.kept = False


def test_freed_memory_is_kept_while_a_task_reads_and_some_time_behind_it():
    freed = CountedFreed()
    idle = IdleMemory(0.05, freed)
    with idle.keeping_freed():
        with idle.keeping_freed():
            pass
        time.sleep(0.2)  # the time of the inner task is over
        assert freed.kept
    assert until(lambda: not freed.kept)
    with idle.keeping_freed():
        assert freed.kept


def test_freed_memory_is_given_back_where_no_other_memory_is_held():
    freed, memory = CountedFreed(), filled()
    idle = IdleMemory(0.05, freed)
    with idle.keeping_freed():
        pass
    idle.hold(memory, most=0)
    assert until(lambda: not freed.kept)


@pytest.mark.cluster
def test_a_worker_holds_the_memory_of_its_blocks_behind_a_fit(client, tmp_path):
    problem = plain_problem(400_000)
    arrays = zip("xy", (problem.x, problem.y), strict=True)
    stores = [zarr.create_array(tmp_path / n, data=a, chunks=(100_000,)) for n, a in arrays]
    data = observe(*map(da.from_zarr, stores))
    earlier = client.run(_tasks)  # of fits of other tests, which nobody has collected
    client.run(_hold_for, 60.0)
    try:
        with dask_engine(data, problem.spec, client=client) as engine:
            engine.ask(SumsAt(problem.params, problem.basis))
        assert until(lambda: all(own <= earlier[w] for w, own in client.run(_tasks).items()))
        bytes_held = client.run(lambda: memory_of_process().n_bytes)
    finally:
        client.run(_hold_for, IDLE_SECONDS)
    assert sum(bytes_held.values()) >= 2 * 8 * 100_000


def _hold_for(seconds):
    from nlsq_dask.engines.dask import idle_memory

    idle_memory._idle = IdleMemory(seconds)


def _tasks(dask_worker):
    return set(dask_worker.state.tasks)
