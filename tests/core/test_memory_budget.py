"""Budgets, the selector and workers: tables and properties, numbers only."""

import dataclasses
import math
import sys

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask._errors import InputError, in_units
from nlsq_dask.core import resources
from nlsq_dask.core.memory_budget import GB, MAX_ROWS, MAX_ROWS_SMALL
from nlsq_dask.core.worker_memory import (
    CHUNKS_A_THREAD,
    WorkerMemory,
    check_chunk_fits,
    fitting_chunks,
    size_stage,
)
from nlsq_dask.core.workflow import (
    Machine,
    MemoryBudget,
    MemoryBudgetSelector,
    OptimizationGoal,
    Problem,
    plan_workflow,
)

RANK = {"standard": 0, "chunked": 1, "streaming": 2}
GOALS = (None, *OptimizationGoal)

counts = st.integers(1, 10**13)
small_counts = st.integers(1, 200)
limits = st.floats(0.05, 1e5)
goals = st.sampled_from(GOALS)


def budget_of(data, jacobian, peak):
    return MemoryBudget(
        available_gb=4.0, threshold_gb=3.0, data_gb=data, jacobian_gb=jacobian, peak_gb=peak
    )


# MemoryBudget


def test_budget_of_the_documented_example():
    budget = MemoryBudget.compute(n_points=10_000_000, n_params=10, memory_limit_gb=16.0)
    assert budget.available_gb == 16.0
    assert budget.threshold_gb == 12.0
    assert budget.data_gb == 0.16
    assert budget.jacobian_gb == 0.80
    assert budget.peak_gb == pytest.approx(0.16 + 1.3 * 0.80 + 100 * 8e-9 + 0.1, rel=1e-14)
    assert [f.name for f in dataclasses.fields(MemoryBudget)] == [
        "available_gb",
        "threshold_gb",
        "data_gb",
        "jacobian_gb",
        "peak_gb",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.data_gb = 0.0


@given(n=counts, p=small_counts, f=small_counts, d=st.sampled_from([4, 8]), limit=limits)
def test_budget_follows_its_formulas(n, p, f, d, limit):
    budget = MemoryBudget.compute(n, p, f, d, 0.5, limit)
    assert budget.threshold_gb == limit / 2
    assert budget.data_gb == pytest.approx(n * (f + 1) * d / 1e9, rel=1e-14)
    assert budget.jacobian_gb == pytest.approx(n * p * d / 1e9, rel=1e-14)
    peak = budget.data_gb + 1.3 * budget.jacobian_gb + 8e-9 * p * p + 0.1
    assert budget.peak_gb == pytest.approx(peak, rel=1e-13)
    assert budget.fits_in_memory == (budget.peak_gb <= budget.threshold_gb)
    assert budget.data_fits == (budget.data_gb <= budget.threshold_gb)


@pytest.mark.parametrize("n", [10_000_000, 1e7, np.int32(10_000_000), np.float64(1e7)])
def test_whole_numbers_of_any_type_count(n):
    assert MemoryBudget.compute(n, 10, memory_limit_gb=16).data_gb == 0.16


@pytest.mark.parametrize("name", ["n_points", "n_params", "n_features", "dtype_bytes"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, math.nan, math.inf, 2**63, True, np.True_, "7", None, [3]]
)
def test_budget_refuses_what_is_no_count(name, value):
    arguments = {"n_points": 10, "n_params": 2, "memory_limit_gb": 1.0, name: value}
    with pytest.raises(ValueError, match=f"^{name} = ") as caught:
        MemoryBudget.compute(**arguments)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -0.5, 1.0000001, math.nan, math.inf, "a", None, True])
def test_safety_factor_is_a_share(value):
    for call in (
        lambda: MemoryBudget.compute(10, 2, safety_factor=value),
        lambda: MemoryBudgetSelector(safety_factor=value),
    ):
        with pytest.raises(ValueError, match=r"^safety_factor = ") as caught:
            call()
        assert repr(value) in str(caught.value)


def test_safety_factor_may_be_one():
    budget = MemoryBudget.compute(10, 2, safety_factor=1, memory_limit_gb=3)
    assert budget.threshold_gb == budget.available_gb == 3.0


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, "8 GB", False])
def test_memory_limit_is_positive(value):
    for call in (
        lambda: MemoryBudget.compute(10, 2, memory_limit_gb=value),
        lambda: MemoryBudgetSelector().select(10, 2, memory_limit_gb=value),
        lambda: plan_workflow(Problem(10, 2), Machine(value)),
        lambda: plan_workflow(
            Problem(10, 2, lazy=True), Machine(value, worker=WorkerMemory(GB, 1))
        ),
    ):
        with pytest.raises(ValueError, match=r"^memory_limit_gb = ") as caught:
            call()
        assert repr(value) in str(caught.value)


def test_memory_is_what_the_process_can_take(monkeypatch):
    monkeypatch.setattr("nlsq_dask.core.memory_budget.available_memory", lambda: 5_000_000_000)
    assert MemoryBudget.compute(1_000_000, 2).available_gb == 5.0
    assert MemoryBudget.compute(1_000_000, 2, memory_limit_gb=7).available_gb == 7.0


@pytest.mark.parametrize(
    ("sizes", "machine", "options", "n_readings"),
    [
        (Problem(100, 3), Machine(), {}, 0),
        (Problem(100, 3), Machine(), {"strategy": "standard"}, 0),
        (Problem(100, 3, broadcasts=True, row_wise=False), Machine(), {}, 0),
        (Problem(100, 3), Machine(memory_limit_gb=2.0), {}, 0),
        (Problem(25_000, 3), Machine(), {}, 0),
        (Problem(25_001, 3), Machine(), {}, 1),
        (Problem(100, 3), Machine(), {"strategy": "chunked"}, 1),
        (Problem(100, 3), Machine(), {"goal": "memory_efficient"}, 1),
        (Problem(100, 3, broadcasts=True), Machine(), {}, 1),
        (Problem(100, 3, lazy=True), Machine(), {}, 1),
    ],
)
def test_the_memory_is_read_only_where_it_decides(monkeypatch, sizes, machine, options, n_readings):
    readings = []

    def read() -> int:
        readings.append(None)
        return 4_000_000_000

    monkeypatch.setattr("nlsq_dask.core.memory_budget.available_memory", read)
    plan = plan_workflow(sizes, machine, **options)
    assert len(readings) == n_readings
    limit = machine.memory_limit_gb or (4.0 if n_readings else math.inf)
    assert plan.budget.available_gb == limit
    assert ("any memory" in plan.summary) == math.isinf(limit)
    assert "inf" not in plan.summary


def test_memory_of_this_process_is_a_part_of_the_machine():
    available = MemoryBudget.compute(10, 2).available_gb
    assert 0 < available <= psutil.virtual_memory().total / 1e9


# The GPU's memory


@pytest.mark.parametrize("given", [24.0, lambda: 24.0])
def test_gpu_memory_given(given):
    def budget(**kwargs):
        return MemoryBudget.compute(10, 2, gpu_memory_gb=given, **kwargs).available_gb

    assert budget(use_gpu=True) == 24.0
    assert budget(use_gpu=True, memory_limit_gb=3.0) == 3.0
    assert budget() != 24.0


@pytest.mark.parametrize("given", [0, math.nan, lambda: -1.0])
def test_gpu_memory_is_positive(given):
    with pytest.raises(ValueError, match=r"^gpu_memory_gb = "):
        MemoryBudget.compute(10, 2, use_gpu=True, gpu_memory_gb=given)


class FakeJax:
    def __init__(self, stats):
        self._stats = stats

    def local_devices(self, backend):
        assert backend == "gpu"
        if self._stats == "none":
            raise RuntimeError("Unknown backend gpu")
        return [self]

    def memory_stats(self):
        return self._stats


def test_gpu_memory_is_asked_of_jax_where_it_is_loaded(monkeypatch):
    stats = {"bytes_limit": 60_000_000_000, "bytes_in_use": 10_000_000_000}
    monkeypatch.setitem(sys.modules, "jax", FakeJax(stats))
    assert MemoryBudget.compute(10, 2, use_gpu=True).available_gb == 50.0


@pytest.mark.parametrize("jax", [None, FakeJax("none"), FakeJax(None)])
def test_no_gpu_is_an_error(monkeypatch, jax):
    monkeypatch.setitem(sys.modules, "jax", jax)
    with pytest.raises(ValueError, match=r"use_gpu = True.*gpu_memory_gb"):
        MemoryBudget.compute(10, 2, use_gpu=True)


# The selector


def select(n, p, limit, goal=None, f=1, **kwargs):
    return MemoryBudgetSelector().select(n, p, f, limit, goal, **kwargs)


@pytest.mark.parametrize(
    ("limit", "strategy"), [(16.0, "standard"), (1.0, "chunked"), (0.2, "streaming")]
)
def test_selector_table(limit, strategy):
    chosen, config = select(10_000_000, 10, limit)
    assert chosen == strategy
    assert (config is None) == (strategy == "standard")


@given(n=counts, more=counts, p=small_counts, limit=limits, goal=goals)
def test_selector_is_monotone_in_the_rows(n, more, p, limit, goal):
    few, many = select(n, p, limit, goal)[0], select(n + more, p, limit, goal)[0]
    assert RANK[few] <= RANK[many]


@given(n=counts, p=small_counts, limit=limits, factor=st.floats(1, 1e4), goal=goals)
def test_selector_is_monotone_in_the_limit(n, p, limit, factor, goal):
    less, more = select(n, p, limit, goal), select(n, p, limit * factor, goal)
    assert RANK[less[0]] >= RANK[more[0]]
    if less[0] == more[0] != "standard":
        assert less[1].block_rows <= more[1].block_rows


@pytest.mark.parametrize(
    ("data", "peak", "goal", "strategy"),
    [
        (2.0, 3.0, None, "standard"),
        (2.0, math.nextafter(3.0, 4), None, "chunked"),
        (3.0, 9.0, None, "chunked"),
        (math.nextafter(3.0, 4), 9.0, None, "streaming"),
        (2.0, 3.0, "memory_efficient", "chunked"),
        (3.1, 9.0, "memory_efficient", "streaming"),
        (2.0, 3.0, "quality", "standard"),
    ],
)
def test_exactly_at_the_threshold_fits(data, peak, goal, strategy):
    budget = budget_of(data, 1.0, peak)
    assert MemoryBudgetSelector().select(10, 2, goal=goal, budget=budget)[0] == strategy


@given(n=counts, p=small_counts, limit=limits)
def test_memory_efficient_is_never_standard_and_never_larger(n, p, limit):
    usual, blocks = select(n, p, limit, None, threads=4)
    strategy, small = select(n, p, limit, OptimizationGoal.MEMORY_EFFICIENT, threads=4)
    assert strategy == {"standard": "chunked"}.get(usual, usual)
    assert small.block_rows <= MAX_ROWS_SMALL
    if blocks is not None:
        assert small.block_rows <= blocks.block_rows
        assert small.bytes_in_flight <= blocks.bytes_in_flight


@given(
    n=st.integers(10**9, 10**13),
    p=small_counts,
    f=st.integers(1, 50),
    limit=limits,
    threads=st.integers(1, 256),
    goal=goals,
    gpu=st.booleans(),
)
def test_blocks_in_flight_stay_under_the_threshold(n, p, f, limit, threads, goal, gpu):
    strategy, config = select(n, p, limit, goal, f, threads=threads, use_gpu=gpu)
    if config is None:
        return
    assert config.block_rows & (config.block_rows - 1) == 0
    assert 1 <= config.block_rows <= MAX_ROWS[strategy]
    assert 1 <= config.threads <= threads
    # Decoded and staged coordinates, observations and sigma, as float64.
    assert config.thread_bytes > 2 * 8 * (f + 2) * config.block_rows
    assert config.bytes_in_flight <= limit * 0.75 * GB


@given(p=small_counts, f=st.integers(1, 50), limit=limits, threads=st.integers(1, 256))
def test_where_rows_are_cut_does_not_depend_on_the_cores(p, f, limit, threads):
    one, several = (select(10**13, p, limit, f=f, threads=t)[1] for t in (1, threads))
    assert one.block_rows == several.block_rows


def test_ample_memory_uses_all_threads_and_the_fastest_blocks():
    strategy, config = select(10**9, 10, 32.0, threads=64)
    assert (strategy, config.threads, config.block_rows) == ("chunked", 64, MAX_ROWS["chunked"])
    strategy, config = select(10**12, 10, 32.0, threads=64)
    assert (strategy, config.threads, config.block_rows) == ("streaming", 64, MAX_ROWS["streaming"])
    assert select(10**12, 10, 32.0)[1].threads == min(resources.available_cores(), 64)


@pytest.mark.parametrize("name", ["n_points", "n_params", "n_features"])
@pytest.mark.parametrize("budget", [None, budget_of(1.0, 1.0, 2.0)])
def test_selector_refuses_what_is_no_count(name, budget):
    arguments = {"n_points": 10, "n_params": 2, "budget": budget, name: 0}
    with pytest.raises(ValueError, match=f"^{name} = 0:"):
        MemoryBudgetSelector().select(**arguments)


# Workers of a cluster


def stage(worker, **kwargs):
    return size_stage(worker, 10, **kwargs)


@given(
    memory=st.integers(10**9, 10**12),
    threads=st.integers(1, 64),
    shape=st.lists(st.integers(1, 500), min_size=1, max_size=4).map(tuple),
    row_bytes=st.sampled_from([2, 4, 8, 16, 56]),
)
def test_the_chunks_that_an_error_names_do_fit(memory, threads, shape, row_bytes):
    worker = WorkerMemory(memory, threads)
    config = stage(worker)
    n_bytes = math.prod(shape) * row_bytes
    held = threads * (CHUNKS_A_THREAD * n_bytes + config.thread_bytes)
    if held <= worker.room:
        check_chunk_fits(worker, n_bytes, shape, config)
        return
    with pytest.raises(ValueError, match="rechunk") as caught:
        check_chunk_fits(worker, n_bytes, shape, config)
    named = str(caught.value).partition("y.rechunk(")[2].partition("))")[0] + ")"
    smaller = tuple(int(n) for n in named.strip("()").split(",") if n)
    assert len(smaller) == len(shape)
    assert all(1 <= small <= full for small, full in zip(smaller, shape, strict=True))
    check_chunk_fits(worker, math.prod(smaller) * row_bytes, smaller, config)


@given(
    memory=st.integers(1, 2 * 10**7),
    threads=st.integers(1, 64),
    chunk=st.integers(1, 10**6),
    base=st.sampled_from([10**8, 4 * 10**8]),
)
def test_the_memory_that_an_error_names_is_enough(memory, threads, chunk, base):
    """Where no chunk at all has room, smaller ones are no remedy."""
    worker = WorkerMemory(memory, threads, base)
    try:
        check_chunk_fits(worker, 8 * chunk, (chunk,), stage(worker))
    except InputError as error:
        message = str(error)
        if "rechunk" in message:
            rows = int(message.partition("y.rechunk((")[2].partition(",")[0])
            check_chunk_fits(worker, 8 * rows, (rows,), stage(worker))
            return
    else:
        return
    assert in_units(memory) in message
    enough = float(message.partition("memory_limit_gb to ")[2].partition(" ")[0])
    assert enough * 1e9 > memory
    worker = dataclasses.replace(worker, memory_bytes=round(enough * 1e9))
    check_chunk_fits(worker, 8 * chunk, (chunk,), stage(worker))


def test_a_chunk_too_large_for_a_worker_is_refused_with_both_sizes():
    worker = WorkerMemory(4_000_000_000, 2)
    problem = Problem(10**9, 3, lazy=True, chunks=(1000, 1000, 262), chunk_bytes=2_096_000_000)
    with pytest.raises(InputError) as caught:
        plan_workflow(problem, Machine(worker=worker))
    message = str(caught.value)
    room = (4e9 * 0.75 - 4e8) / 2 - stage(worker).thread_bytes
    rows = int(room / 3 / 8)
    for part in (
        "(1000, 1000, 262)",
        "2.1 GB",
        "4 GB",
        "2 threads",
        in_units(room / 3),
        f"y.rechunk(({rows // 262_000}, 1000, 262))",
    ):
        assert part in message
    fitting = dataclasses.replace(problem, chunks=(100, 1000, 262), chunk_bytes=209_600_000)
    assert plan_workflow(fitting, Machine(worker=worker)).strategy == "streaming"


@pytest.mark.parametrize(
    ("chunks", "rows", "expected"),
    [
        ((10, 20, 30), 6000, (10, 20, 30)),
        ((10, 20, 30), 5999, (9, 20, 30)),
        ((10, 20, 30), 599, (1, 19, 30)),
        ((10, 20, 30), 29, (1, 1, 29)),
        ((10, 20, 30), 0, (1, 1, 1)),
        ((1_000_000,), 1234, (1234,)),
    ],
)
def test_chunks_are_cut_along_the_first_dimensions(chunks, rows, expected):
    assert fitting_chunks(chunks, rows) == expected


@pytest.mark.parametrize("memory", [500_000_000, 10**9, 10**10])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_every_worker_has_room_for_some_chunk(memory, threads):
    worker = WorkerMemory(memory, threads)
    config = stage(worker)
    assert config.threads == threads
    assert config.bytes_in_flight <= worker.room / 2
    check_chunk_fits(worker, 8_000, (1000,), config)


def test_small_memory_makes_small_stages():
    worker = WorkerMemory(10**10, 2)
    assert stage(worker, small_memory=True).block_rows == MAX_ROWS_SMALL
    assert stage(worker).block_rows == MAX_ROWS["chunked"]


@pytest.mark.parametrize(("limit", "available"), [(None, 4.0), (2.0, 2.0), (4.0, 4.0), (9.0, 4.0)])
def test_the_budget_of_lazy_data_is_that_of_one_worker(limit, available):
    machine = Machine(memory_limit_gb=limit, worker=WorkerMemory(4_000_000_000, 2))
    plan = plan_workflow(Problem(10**9, 3, lazy=True), machine)
    assert plan.budget.available_gb == available
    assert plan.config.threads == 2


def test_without_a_cluster_this_process_is_the_worker(monkeypatch):
    monkeypatch.setattr("nlsq_dask.core.memory_budget.available_memory", lambda: 3 * GB)
    plan = plan_workflow(Problem(10**9, 3, lazy=True), Machine(threads=3))
    assert (plan.budget.available_gb, plan.config.threads) == (3.0, 3)
    large = Problem(10**9, 3, lazy=True, chunks=(10**8,), chunk_bytes=8 * 10**8)
    with pytest.raises(ValueError, match="3 GB of memory and 3 threads"):
        plan_workflow(large, Machine(threads=3))


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (1_500_000_000, "1.5 GB"),
        (123_456_000_000, "123 GB"),
    ],
)
def test_sizes_are_written_in_units(n_bytes, text):
    assert in_units(n_bytes) == text
