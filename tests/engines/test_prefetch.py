"""Blocks that are read ahead: the same blocks, a bounded number of them, only where it pays."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from nlsq_dask import fit_each
from nlsq_dask._errors import ReadingError
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.dask.prefetch import (
    AHEAD_BYTES,
    FIRST_DEPTH,
    MOST_DEPTH,
    ReadAhead,
    prefetch_depth,
    read_ahead,
    read_blocks,
)
from nlsq_dask.engines.dask.reading import READ_ONCE, Retries
from nlsq_dask.io.sources import observe
from tests.engines.test_dask import in_dask_arrays
from tests.support.engines import dask_engine
from tests.support.problems import plain_problem, problems
from tests.support.series import START, T, decay


class FarStore(MemoryStore):
    """A store of which nothing is known."""


class BusyStore(MemoryStore):
    """A store that answers no request for a chunk before so many are under way."""

    wanted = 1

    def __init__(self):
        super().__init__()
        self.under_way = 0
        self.enough = asyncio.Event()

    async def get(self, key, prototype, byte_range=None):
        if "c/" in key:
            self.under_way += 1
            if self.under_way >= self.wanted:
                self.enough.set()
            try:
                await asyncio.wait_for(self.enough.wait(), 60)
            finally:
                self.under_way -= 1
        return await super().get(key, prototype, byte_range)


class BusyFolder(LocalStore):
    """A store of unknown kind that gives no process a chunk before three are asked for."""

    async def get(self, key, prototype, byte_range=None):
        if "c/" in key:
            asked = self.root.with_name("asked")
            asked.mkdir(exist_ok=True)
            (asked / key.replace("/", " ")).touch()
            async with asyncio.timeout(60):
                while len(list(asked.iterdir())) < 3:
                    await asyncio.sleep(0.01)
        return await super().get(key, prototype, byte_range)


def one_group(n_blocks, make):
    """A plan of a single group whose blocks a function makes."""
    y = da.map_blocks(make, chunks=((10,) * n_blocks,), dtype=float, meta=np.empty(0))
    data = observe(np.arange(10.0 * n_blocks), y)
    groups = make_stream(data).groups
    steps = tuple(step for group in groups for step in group.steps)
    assert len(steps) == n_blocks
    return type(groups[0])(steps, (), 10 * n_blocks), data.layout


@pytest.mark.slow
@given(problem=problems(sizes=(1,)), layout=st.integers(0, 2**32 - 1), depth=st.integers(0, 5))
def test_the_same_blocks_in_the_same_order(problem, layout, depth):
    data = in_dask_arrays(problem.x, problem.y, problem.sigma, layout)
    plan = make_stream(data)
    shared = {}
    for key, node in plan.shared.items():
        shared[key] = node(shared)
    for group in plan.groups:
        external = {key: shared[key] for key in group.external}
        ahead = read_ahead(group, external, data.layout, depth)
        for one, other in zip(ahead, read_blocks(group, external, data.layout), strict=True):
            for a, b in zip(one.arrays, other.arrays, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_so_many_are_read_ahead_and_no_more(depth):
    """All that may be made are under way at one time, which a barrier of as many shows."""
    barrier = threading.Barrier(depth, timeout=60)
    started = []

    def make(block_info=None):
        number = block_info[None]["chunk-location"][0]
        started.append(number)
        if number < depth:
            barrier.wait()
        return np.full(10, float(number))

    plan, layout = one_group(12, make)
    for taken, block in enumerate(read_ahead(plan, {}, layout, depth)):
        assert (block.y == taken).all()
        assert len(started) <= taken + 1 + depth
    assert sorted(started) == list(range(12))


def test_an_error_reaches_the_caller_in_its_turn():
    def make(block_info=None):
        number = block_info[None]["chunk-location"][0]
        if number == 3:
            raise OSError("connection reset")
        return np.full(10, float(number))

    plan, layout = one_group(12, make)
    blocks = read_ahead(plan, {}, layout, 4)
    assert [next(blocks).y[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="connection reset"):
        next(blocks)
    assert not [t for t in threading.enumerate() if t.name.startswith("nlsq-read")]


def zarr_array(store, chunks=100):
    array = zarr.create_array(store, shape=(1600,), chunks=(chunks,), dtype="f8")
    array[...] = np.arange(1600.0)
    return array


@pytest.mark.parametrize(
    ("wrap", "depth"),
    [
        pytest.param(lambda a: a, MOST_DEPTH, id="zarr.Array"),
        pytest.param(da.from_zarr, MOST_DEPTH, id="from_zarr"),
        pytest.param(lambda a: da.from_zarr(a) * 2 + 1, MOST_DEPTH, id="work upstream"),
    ],
)
def test_stores_that_are_not_local_are_read_ahead(wrap, depth):
    y = zarr_array(FarStore())
    assert prefetch_depth(make_stream(observe(np.ones(1600), wrap(y)))) == depth


@pytest.mark.parametrize("kind", ["memory", "disk", "fsspec", "wrapped", "no zarr"])
def test_local_ones_are_not(tmp_path, kind):
    if kind == "no zarr":
        y = da.ones(1600, chunks=100).map_blocks(np.sqrt)
    elif kind == "fsspec":
        zarr_array(LocalStore(tmp_path))
        y = da.from_zarr(f"file://{tmp_path}")
    else:
        store = MemoryStore() if kind == "memory" else LocalStore(tmp_path)
        y = da.from_zarr(zarr_array(WrapperStore(store) if kind == "wrapped" else store))
    assert prefetch_depth(make_stream(observe(np.ones(1600), y))) == 0


def test_large_blocks_are_not_read_ahead_in_number():
    y = zarr.create_array(
        FarStore(), shape=(AHEAD_BYTES // 2,), chunks=(AHEAD_BYTES // 16,), dtype="f8"
    )
    x = np.broadcast_to(1.0, y.shape)
    plan = make_stream(observe(x, y))  # 8 bytes of x and of y in each row
    assert plan.block_bytes == AHEAD_BYTES
    assert prefetch_depth(plan) == 1


@pytest.mark.parametrize("omits", [False, True])
def test_groups_of_one_block_are_read_ahead_together(omits):
    """More requests are under way than tasks, and the sums have the same bits."""
    problem = plain_problem(1600, p=2, sigma=False)
    sums = []
    for wanted in (1, FIRST_DEPTH + 1):
        store = BusyStore()
        data = observe(problem.x, zarr_array(store))
        store.wanted = wanted
        options = {"stage_rows": 64, "threads": 2, "retries": Retries(0), "omits": omits}
        with dask_engine(data, problem.spec, **options) as engine:
            assert all(len(group.steps) == 1 for group in engine.stream.groups)
            sums.append(engine.ask(SumsAt(problem.params, problem.basis)))
    assert sums[0].gram.tobytes() == sums[1].gram.tobytes()
    assert sums[0].gradient.tobytes() == sums[1].gradient.tobytes()


@pytest.mark.cluster
def test_a_worker_reads_for_several_tasks_at_one_time(client, tmp_path):
    """A task that waits leaves its thread: two threads ask for three blocks."""
    problem, sums = plain_problem(1600, p=2, sigma=False), []
    y = zarr_array(BusyFolder(tmp_path / "y"))
    options = {"stage_rows": 64, "retries": Retries(0)}
    for stored in (zarr.open_array(tmp_path / "y"), y):
        data = observe(problem.x, stored)
        with dask_engine(data, problem.spec, client=client, **options) as engine:
            assert all(len(group.steps) == 1 for group in engine.stream.groups)
            sums.append(engine.ask(SumsAt(problem.params, problem.basis)))
    assert sums[0].gram.tobytes() == sums[1].gram.tobytes()
    assert sums[0].gradient.tobytes() == sums[1].gradient.tobytes()


@pytest.mark.cluster
def test_a_worker_reads_for_several_regions_at_one_time(client, tmp_path):
    y = np.exp(-np.outer(T, np.linspace(0.5, 1.5, 8)))
    stored = zarr.create_array(BusyFolder(tmp_path / "y"), data=y, chunks=(T.size, 1))
    options = {"client": client, "retries": 0, "store": tmp_path / "maps"}
    found = fit_each(decay, T, stored, START, **options).compute()
    np.testing.assert_array_equal(found.popt, fit_each(decay, T, y, START).popt)


def test_no_more_blocks_wait_aside_than_there_is_room_for():
    """A group gets a place for each block, as far as there are any, and gives all back."""
    room = threading.Semaphore(3)
    started = []
    goes_on = threading.Event()

    def make(block_info=None):
        started.append(block_info[None]["chunk-location"][0])
        goes_on.wait(60)
        return np.ones(10)

    groups = [one_group(2, make) for _ in range(3)]
    readers = [read_ahead(group, {}, layout, 2, READ_ONCE, room) for group, layout in groups]
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(next, reader) for reader in readers]
        while len(started) < 4:  # two, one, and none: this group reads as its task runs
            assert not any(one.done() for one in first)
        goes_on.set()
        assert all((one.result().y == 1).all() for one in first)
    for reader in readers:
        assert len(list(reader)) == 1
    assert [room.acquire(blocking=False) for _ in range(4)] == [True] * 3 + [False]


class FailingStore(MemoryStore):
    """A store that never gives some chunks."""

    failing = ("y/c/5", "y/c/6", "y/c/40")

    async def get(self, key, prototype, byte_range=None):
        if key.endswith(self.failing):
            raise OSError("gone")
        return await super().get(key, prototype, byte_range)


@pytest.mark.filterwarnings("ignore::nlsq_dask.MissingDataWarning")
def test_blocks_that_cannot_be_read_are_left_out_of_what_is_read_ahead(monkeypatch):
    """What was read ahead of a group with such a block is given up; the other groups go on."""
    problem = plain_problem(1600, p=2, sigma=False)
    found = []
    for name in ("MemoryStore", "FarFailingStore"):
        store = type(name, (FailingStore,), {})()
        y = zarr.create_array(store, name="y", shape=(1600,), chunks=(25,), dtype="f8")
        y[...] = np.arange(1600.0)
        options = {"stage_rows": 64, "retries": Retries(0), "omits": True}
        with dask_engine(observe(problem.x, y), problem.spec, **options) as engine:
            assert bool(engine.streaming.read_ahead) == (name != "MemoryStore")
            for _ in range(2):
                sums = engine.ask(SumsAt(problem.params, problem.basis))
                found.append((sums.gram.tobytes(), sums.n_skipped, engine.omissions.lost))
    assert found[0][1:] == (75, {(5,), (6,), (40,)})
    assert found[1:] == found[:1] * 3


def test_what_was_read_ahead_of_a_group_that_failed_is_given_up():
    """Its blocks take no place of those of the next group, two of which wait for each other."""
    barrier = threading.Barrier(2, timeout=10)

    def failing(block_info=None):
        raise OSError("gone")

    def waiting(block_info=None):
        if block_info[None]["chunk-location"][0] < 2:
            barrier.wait()
        return np.ones(10)

    (bad, layout), (good, _) = one_group(4, failing), one_group(4, waiting)
    ahead = ReadAhead([(bad, {}), (good, {})], layout, 3, READ_ONCE)
    with pytest.raises(ReadingError):
        list(ahead.blocks(bad))
    assert len(list(ahead.blocks(good))) == 4
    ahead.close()


@pytest.mark.slow
def test_sums_have_the_same_bits():
    problem = plain_problem(1600, p=2, sigma=False)
    sums = []
    for store in (MemoryStore(), FarStore()):
        data = observe(problem.x, zarr_array(store))
        with dask_engine(data, problem.spec, stage_rows=64) as engine:
            sums.append(engine.ask(SumsAt(problem.params, problem.basis)))
    assert sums[0].gram.tobytes() == sums[1].gram.tobytes()
    assert sums[0].gradient.tobytes() == sums[1].gradient.tobytes()
