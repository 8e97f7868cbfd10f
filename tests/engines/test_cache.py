"""Rows that are kept between passes: read once, with the same bits, within their budget."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from typing import ClassVar

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask.core.questions import CostsAt, Several, SumsAt
from nlsq_dask.core.worker_memory import WORKER_BASE_BYTES
from nlsq_dask.engines.dask import cache
from nlsq_dask.engines.dask.cache import KeptGroup, WorkerRoom, choose_keeping
from nlsq_dask.engines.dask.cluster import worker_rooms
from nlsq_dask.engines.dask.groups import Stream, make_stream
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.engines.dask.reading import Retries
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.io.sources import observe
from nlsq_dask.questions.scores import ScoresAt
from tests.engines.conformance import EngineConformance
from tests.engines.test_dask import in_dask_arrays
from tests.support.counting_store import stored
from tests.support.engines import dask_engine
from tests.support.problems import exact_sums, plain_problem

N_ROWS = 16_000
STAGE_ROWS = 512
#: Bytes of all rows, staged: 16 groups of 1,000 rows in two buffers each, of x and y.
ALL_BYTES = 16 * 2 * STAGE_ROWS * 2 * 8


def identity(block):
    return block


class TestKept(EngineConformance):
    """Everything that holds for passes that read holds for passes that do not."""

    many_rows: ClassVar = 100_001

    def engine(self, spec, x, y, sigma=None, layout=0):
        data = in_dask_arrays(x, y, sigma, layout)
        made = data.y.map_blocks(identity, dtype=data.y.dtype, meta=data.y._meta)
        data = observe(x, made, sigma)
        return dask_engine(data, spec, stage_rows=4096, cache=True, cache_bytes=10**9)


@pytest.fixture
def problem():
    return plain_problem(N_ROWS, p=2, sigma=False)


@pytest.fixture
def zarrs(tmp_path, problem):
    return stored(tmp_path / "x", problem.x, (500,)), stored(tmp_path / "y", problem.y, (500,))


def kept_engine(problem, zarrs, choice=True, n_bytes=ALL_BYTES, **options):
    options = {"stage_rows": STAGE_ROWS, "cache": choice, "cache_bytes": n_bytes} | options
    return dask_engine(observe(*zarrs), problem.spec, **options)


def chunk_reads(*arrays):
    return sum(sum(array.store.reads.values()) for array in arrays)


def bits(sums):
    return sums.gram.tobytes(), sums.gradient.tobytes(), sums.cost, sums.n_points


def read_by_each_pass(engine, problem, zarrs, n_passes=3):
    """Chunks read by each of some passes, and the bits of each."""
    reads, found = [], []
    for _ in range(n_passes):
        before = chunk_reads(*zarrs)
        found.append(bits(engine.ask(SumsAt(problem.params, problem.basis))))
        reads.append(chunk_reads(*zarrs) - before)
    assert engine.n_passes == n_passes
    return reads, found


@pytest.mark.every(9)
@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize(
    ("choice", "n_bytes", "share"),
    [
        pytest.param(True, ALL_BYTES, 1.0, id="all"),
        pytest.param("auto", ALL_BYTES, 1.0, id="auto, all"),
        pytest.param(True, ALL_BYTES // 2, 0.5, id="half"),
        pytest.param("auto", ALL_BYTES // 4, 0.25, id="auto, a quarter"),
        pytest.param("auto", ALL_BYTES // 4 - 1, 0.0, id="auto, less"),
        pytest.param(True, ALL_BYTES // 16, 0.0625, id="a group"),
        pytest.param(True, ALL_BYTES // 16 - 1, 0.0, id="less than a group"),
        pytest.param(False, ALL_BYTES, 0.0, id="none"),
    ],
)
def test_what_is_kept_is_read_once(problem, zarrs, scheduler, choice, n_bytes, share):
    with dask_engine(observe(*zarrs), problem.spec, stage_rows=STAGE_ROWS) as plain:
        expected = bits(plain.ask(SumsAt(problem.params, problem.basis)))
    with (
        dask.config.set(scheduler=scheduler),
        kept_engine(problem, zarrs, choice, n_bytes) as engine,
    ):
        assert len(engine.stream.groups) == 16
        assert engine.keeping.share == share
        reads, found = read_by_each_pass(engine, problem, zarrs)
    assert reads == [64, 64 * (1 - share), 64 * (1 - share)]
    assert found == [expected] * 3


@pytest.mark.slow
def test_passes_of_all_kinds_use_the_same_rows(problem, zarrs):
    candidates = problem.params * np.linspace(0.5, 2, 3)[:, None]

    def results(engine):
        both = (SumsAt(problem.params, problem.basis), CostsAt(candidates))
        sums, costs = engine.ask(Several(both))
        return [
            engine.ask(CostsAt(candidates)).tobytes(),
            bits(engine.ask(SumsAt(problem.params, problem.basis))),
            (bits(sums), costs.tobytes()),
            engine.ask(ScoresAt(problem.params)).tobytes(),
        ]

    with kept_engine(problem, zarrs, choice=False) as engine:
        expected = results(engine)
    before = chunk_reads(*zarrs)
    with kept_engine(problem, zarrs) as engine:
        assert results(engine) == expected
    assert chunk_reads(*zarrs) - before == 64


@pytest.mark.slow
def test_rows_that_are_left_out_stay_so(problem, zarrs):
    mask = np.arange(N_ROWS) % 7 == 0
    mask[1000:3000] = True  # a group without rows
    data = observe(*zarrs, mask=mask)
    found = []
    for choice in (False, True):
        with dask_engine(
            data, problem.spec, stage_rows=STAGE_ROWS, cache=choice, cache_bytes=ALL_BYTES
        ) as engine:
            for _ in range(2):
                sums = engine.ask(SumsAt(problem.params, problem.basis))
                assert sums.n_skipped == mask.sum()
                found.append((bits(sums), sums.moments))
    assert len(set(found)) == 1


@pytest.mark.slow
def test_the_budget_is_that_of_the_process(problem, zarrs):
    """Two engines at a time do not keep twice as much; one after the other does."""
    with kept_engine(problem, zarrs) as first:
        assert read_by_each_pass(first, problem, zarrs)[0] == [64, 0, 0]
        with kept_engine(problem, zarrs) as second:
            assert read_by_each_pass(second, problem, zarrs)[0] == [64, 64, 64]
        assert read_by_each_pass_again(first, problem, zarrs) == 0
    with kept_engine(problem, zarrs) as third:
        assert read_by_each_pass(third, problem, zarrs)[0] == [64, 0, 0]


def read_by_each_pass_again(engine, problem, zarrs):
    before = chunk_reads(*zarrs)
    engine.ask(SumsAt(problem.params, problem.basis))
    return chunk_reads(*zarrs) - before


@pytest.mark.slow
def test_an_evaluator_that_is_forgotten_gives_its_room_back(problem, zarrs):
    engine = kept_engine(problem, zarrs)
    engine.ask(SumsAt(problem.params, problem.basis))
    del engine
    gc.collect()
    with kept_engine(problem, zarrs) as after:
        assert read_by_each_pass(after, problem, zarrs)[0] == [64, 0, 0]


def test_a_reading_that_fails_keeps_nothing(problem, zarrs):
    failing = [True]

    def sometimes(block):
        if failing[0]:
            raise OSError("connection reset")
        return block

    y = da.from_array(zarrs[1], chunks=500).map_blocks(sometimes, dtype=float, meta=np.empty(0))
    data = observe(zarrs[0], y)
    with dask_engine(
        data,
        problem.spec,
        stage_rows=STAGE_ROWS,
        cache=True,
        cache_bytes=ALL_BYTES,
        retries=Retries(0),
    ) as engine:
        with pytest.raises(OSError, match="connection reset"):
            engine.ask(SumsAt(problem.params, problem.basis))
        failing[0] = False
        sums = engine.ask(SumsAt(problem.params, problem.basis))
        exact_sums(problem).assert_equal(sums, N_ROWS)
        assert read_by_each_pass_again(engine, problem, zarrs) == 0


def test_arrays_in_memory_are_not_kept_twice(problem):
    data = observe(problem.x, da.from_array(problem.y, chunks=500))
    with dask_engine(data, problem.spec, cache=True) as engine:
        assert engine.keeping.share == 0


def test_other_processes_get_the_plan_without_rows(problem, zarrs):
    with kept_engine(problem, zarrs) as engine:
        engine.ask(SumsAt(problem.params, problem.basis))
        group = engine.keeping.groups[0]
        assert len(pickle.dumps(group)) < group.n_bytes
        copy = pickle.loads(pickle.dumps(group))
    assert (copy.n_bytes, copy.limit) == (group.n_bytes, group.limit)
    assert sys.getsizeof(copy) >= group.n_bytes  # what Dask takes it to weigh


def group_of(n_rows):
    y = da.ones(n_rows, chunks=n_rows).map_blocks(identity, dtype=float, meta=np.empty(0))
    return make_stream(observe(np.ones(n_rows), y)).groups[0]


GROUP = group_of(10)


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    rooms=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 300_000)), min_size=1, max_size=5),
)
def test_no_worker_is_given_more_than_it_has_room_for(sizes, rooms):
    groups = tuple(Group(GROUP.steps, (), n) for n in sizes)
    plan = Stream(groups, {}, (), ((sum(sizes),),), 1, 1, 0)
    workers = [WorkerRoom(f"w{i}", *room) for i, room in enumerate(rooms)]
    keeping = choose_keeping(plan, True, 2, STAGE_ROWS, workers)
    taken = dict.fromkeys((w.address for w in workers), 0)
    for group, kept, worker, n_rows in zip(
        groups, keeping.groups, keeping.workers, sizes, strict=True
    ):
        if worker is None:
            assert kept is group
            continue
        assert kept.group is group
        assert kept.n_bytes >= n_rows * 16
        taken[worker] += kept.n_bytes
        assert kept.limit == next(w.n_bytes for w in workers if w.address == worker)
    assert all(taken[w.address] <= w.n_bytes for w in workers)
    left_out = [n for n, worker in zip(sizes, keeping.workers, strict=True) if worker is None]
    assert keeping.share == pytest.approx(1 - sum(left_out) / sum(sizes))
    # Nothing that would have fitted is left out.
    smallest = min((-(-n // STAGE_ROWS) * STAGE_ROWS * 16 for n in left_out), default=None)
    if smallest is not None:
        assert all(w.n_bytes - taken[w.address] < smallest for w in workers)


def test_workers_get_groups_by_their_threads():
    plan = Stream((GROUP,) * 12, {}, (), ((120,),), 1, 1, 0)
    rooms = [WorkerRoom("a", 2, 10**6), WorkerRoom("b", 1, 10**6)]
    keeping = choose_keeping(plan, "auto", 2, STAGE_ROWS, rooms)
    assert (keeping.workers.count("a"), keeping.workers.count("b")) == (8, 4)


@pytest.mark.parametrize("dtype", ["f4", "f2", "i2"])
def test_blocks_arrive_in_the_dtype_they_are_stored_in(tmp_path, dtype):
    rng = np.random.default_rng(1)
    x, y = (np.asarray(rng.uniform(0, 4, 4000), dtype) for _ in range(2))
    zarrs = (
        stored(tmp_path / "x", x, (500,), fill_value=0),
        stored(tmp_path / "y", y, (500,), fill_value=0),
    )
    data = observe(*map(da.from_zarr, zarrs))
    for group in make_stream(data).groups:
        for block in read_blocks(group, {}, data.layout):
            assert {a.dtype for a in block.arrays} == {np.dtype(dtype)}
    for array in zarrs:
        assert array.store.bytes_read == 4000 * np.dtype(dtype).itemsize
    problem = type(plain_problem(10))(x, y, None, np.array([0.3, 0.8]), np.eye(2))
    with dask_engine(data, problem.spec) as engine:
        sums = engine.ask(SumsAt(problem.params, problem.basis))
    exact_sums(problem).assert_equal(sums, 4000)  # to 1e-12, as only float64 sums are


@pytest.fixture
def quiet_client(client):
    """A client of two workers that keep nothing, and between which nothing is moved."""
    stealing = client.cluster.scheduler.extensions["stealing"]
    wait_for_release(client)
    client.sync(stealing.stop)
    yield client
    client.sync(stealing.start)


@pytest.fixture
def own_client():
    """A client of two workers, of which a test may kill any."""
    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def kept_bytes():
    """Bytes of kept rows in this process."""
    gc.collect()
    return sum(cache._kept_bytes.values()) - sum(n for _, n in cache._returned)


@pytest.mark.every(2)
@pytest.mark.cluster
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_workers_read_once_and_forget_in_the_end(quiet_client, problem, zarrs, share):
    with dask_engine(observe(*zarrs), problem.spec, stage_rows=STAGE_ROWS) as plain:
        expected = bits(plain.ask(SumsAt(problem.params, problem.basis)))
    n_bytes = int(ALL_BYTES * share / 2)  # on each of two workers
    with kept_engine(problem, zarrs, True, n_bytes, client=quiet_client) as engine:
        reads, found = read_by_each_pass(engine, problem, zarrs)
        assert engine.keeping.share == share
        assert set(quiet_client.run(kept_bytes).values()) == {n_bytes}
    assert reads == [64, 64 * (1 - share), 64 * (1 - share)]
    assert found == [expected] * 3
    wait_for_release(quiet_client)


def wait_for_release(client):
    for _ in range(200):
        if not any(client.run(kept_bytes).values()):
            return
    pytest.fail("workers still keep rows")


@pytest.mark.thorough
@pytest.mark.cluster
def test_a_client_that_is_gone_takes_its_rows_along(quiet_client, problem, zarrs):
    with Client(quiet_client.scheduler.address, set_as_default=False) as other:
        engine = kept_engine(problem, zarrs, client=other)
        engine.ask(SumsAt(problem.params, problem.basis))
        assert any(quiet_client.run(kept_bytes).values())
    wait_for_release(quiet_client)


@pytest.mark.thorough
@pytest.mark.cluster
def test_a_worker_that_is_killed_costs_a_reading_of_its_rows(own_client, problem, zarrs):
    with kept_engine(problem, zarrs, client=own_client) as engine:
        (first, second), (expected, _) = read_by_each_pass(engine, problem, zarrs, 2)
        assert (first, second) == (64, 0)
        victim = next(iter(own_client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        before = chunk_reads(*zarrs)
        assert bits(engine.ask(SumsAt(problem.params, problem.basis))) == expected
        again = chunk_reads(*zarrs) - before
        assert 32 <= again <= 64
        assert bits(engine.ask(SumsAt(problem.params, problem.basis))) == expected
        # The one that is left, or the new one, keeps them if it has room, which it has here.
        assert chunk_reads(*zarrs) - before - again <= 32


@pytest.mark.cluster
def test_room_for_rows_is_what_a_worker_may_hold_less_what_it_does(quiet_client):
    rooms = worker_rooms(quiet_client, read_bytes=1_000_000)
    limits = {a: w.memory_limit for a, w in quiet_client.cluster.scheduler.workers.items()}
    assert [room.address for room in rooms] == sorted(limits)
    for room in rooms:
        assert room.n_bytes <= max(0, 0.6 * limits[room.address] - WORKER_BASE_BYTES - 100e6 - 3e6)
        assert room.threads == 1
    # A block as large as a worker leaves no room.
    assert {r.n_bytes for r in worker_rooms(quiet_client, max(limits.values()))} == {0}
    assert {r.n_bytes for r in worker_rooms(quiet_client, 1, 77)} == {77}


def test_a_group_that_runs_twice_at_a_time_is_kept_once():
    group = KeptGroup(GROUP, 100, 1000)
    assert group._claim(None)
    assert not group._claim(None)
    group.forget()
    assert group._claim(None)
    group.forget()
