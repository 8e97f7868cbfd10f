"""Presets, goals and budgets through ``fit``: what was decided is what is done."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
from pathlib import Path

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import fit, plan
from nlsq_dask.core import memory_budget
from nlsq_dask.core.workflow import (
    WORKFLOW_PRESETS,
    BlockConfig,
    MemoryBudget,
    MemoryBudgetSelector,
    OptimizationGoal,
    calculate_adaptive_tolerances,
)
from nlsq_dask.engines.dask.engine import DaskEngine
from nlsq_dask.fitting import choose_strategy, run
from nlsq_dask.fitting.prepare import STAT_TOL
from nlsq_dask.io.sources import observe
from tests.support.counting_store import stored
from tests.support.engines import sample_of

TOLERANCES = ("gtol", "ftol", "xtol")
N = 2000  # a tier of its own: 1e-10
START = (1.0, 1.0, 0.0)
TRUTH = (2.5, 1.3, 0.5)
BOUNDS = ([0.0, 0.1, -5.0], [10.0, 5.0, 5.0])


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def data_of(n, truth=TRUTH, seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 4, n)
    a, b, c = truth
    return x, a * np.exp(-b * x) + c + noise * rng.standard_normal(n)


X, Y = data_of(N)


def never_read(n=N, chunk=500):
    """A Dask array that cannot be computed."""

    def fail(*_, **__):
        raise AssertionError("data were read")

    return da.map_blocks(fail, chunks=da.core.normalize_chunks(chunk, (n,)), dtype=float, meta=X)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Presets with checkpoints write into the current directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def engines(monkeypatch):
    """Plans of fits and the engines that were made for them."""
    made = []
    original = run.engine_of

    def engine_of(job, progress, **options):
        made.append((job.plan, original(job, progress, **options)))
        return made[-1][1]

    monkeypatch.setattr(run, "engine_of", engine_of)
    return made


def assert_tolerances(result, tolerance):
    """All the same; and passes that change nothing are left out where they cost a reading."""
    stat_tol = STAT_TOL if result.strategy == "streaming" else None
    assert result.tolerances == dict.fromkeys(TOLERANCES, tolerance) | {"stat_tol": stat_tol}


# Presets and goals

PRESETS = [
    # name, strategy, tolerance, starts, checkpoints
    (None, "standard", 1e-8, 1, False),
    ("auto", "standard", 1e-10, 1, False),
    ("standard", "standard", 1e-8, 1, False),
    ("quality", "standard", 1e-10, 20, False),
    ("fast", "standard", 1e-6, 1, False),
    ("large_robust", "chunked", 1e-8, 10, False),
    ("streaming", "streaming", 1e-7, 1, False),
    ("hpc_distributed", "streaming", 1e-6, 1, True),
]


def test_every_preset_is_tested():
    assert [name for name, *_ in PRESETS[1:]] == list(WORKFLOW_PRESETS)


@pytest.mark.quick(3)
@pytest.mark.parametrize(("name", "strategy", "tolerance", "starts", "checkpoint"), PRESETS)
def test_presets(name, strategy, tolerance, starts, checkpoint, engines, tmp_path):
    result = fit(decay, X, Y, p0=START, bounds=BOUNDS, workflow=name)
    assert result.success
    assert result.workflow == name
    assert result.strategy == strategy
    assert_tolerances(result, tolerance)
    assert len(result.starts) == (0 if starts == 1 else starts)
    np.testing.assert_allclose(result.popt, TRUTH, atol=6 * result.perr.max())
    ((_, engine),) = engines
    assert isinstance(engine, DaskEngine) == (strategy == "streaming")
    base = tmp_path / "nlsq_checkpoints"
    if checkpoint:
        directory = Path(result.checkpoint)
        assert directory.is_absolute()
        assert directory.parent == base
        assert any(directory.iterdir())
    else:
        assert result.checkpoint is None
        assert not base.exists()


GOALS = [
    # goal, strategy, tolerance of "auto", of "standard", starts of both
    ("fast", "standard", 1e-9, 1e-7, 1),
    ("robust", "standard", 1e-10, 1e-8, 10),
    ("global", "standard", 1e-10, 1e-8, 10),
    ("memory_efficient", "chunked", 1e-10, 1e-8, 1),
    ("quality", "standard", 1e-12, 1e-9, 10),
]


def test_every_goal_is_tested():
    assert [name for name, *_ in GOALS] == [goal.value for goal in OptimizationGoal]


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "strategy", "adaptive", "fixed", "starts"), GOALS)
def test_goals(goal, strategy, adaptive, fixed, starts):
    spellings = [goal, goal.upper(), goal.title(), OptimizationGoal(goal)]
    for workflow, tolerance in (("auto", adaptive), ("standard", fixed), (None, fixed)):
        spelled = spellings.pop()
        result = fit(decay, X, Y, p0=START, bounds=BOUNDS, workflow=workflow, goal=spelled)
        assert result.success
        assert result.strategy == strategy
        assert_tolerances(result, tolerance)
        assert len(result.starts) == (0 if starts == 1 else starts)
    assert calculate_adaptive_tolerances(N, goal) == dict.fromkeys(TOLERANCES, adaptive)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("goal", "tolerance", "starts"),
    [("fast", 1e-9, 1), ("robust", 1e-10, 20), ("quality", 1e-12, 20)],
)
def test_goals_move_a_preset(goal, tolerance, starts):
    result = fit(decay, X, Y, p0=START, bounds=BOUNDS, workflow="quality", goal=goal)
    assert_tolerances(result, tolerance)
    assert len(result.starts) == (0 if starts == 1 else starts)


# What the caller writes


def test_explicit_tolerances_win():
    result = fit(decay, X, Y, p0=START, workflow="quality", n_starts=1, ftol=1e-3, xtol=None)
    assert result.tolerances == {"gtol": 1e-10, "ftol": 1e-3, "xtol": None, "stat_tol": None}
    tight = fit(decay, X, Y, p0=START, workflow="quality", n_starts=1)
    assert result.nfev < tight.nfev  # they are used, too


@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
@pytest.mark.parametrize("workflow", ["auto", "standard", "streaming", "hpc_distributed"])
def test_an_explicit_strategy_wins(workflow, strategy):
    result = fit(decay, X, Y, p0=START, workflow=workflow, strategy=strategy)
    assert result.strategy == strategy
    assert result.workflow == workflow


def test_an_explicit_strategy_wins_over_a_goal():
    result = fit(decay, X, Y, p0=START, strategy="standard", goal="memory_efficient")
    assert result.strategy == "standard"


@pytest.mark.parametrize(("workflow", "goal"), [("quality", None), ("auto", "global")])
@pytest.mark.parametrize("starts", [1, 3])
def test_an_explicit_number_of_starts_wins(workflow, goal, starts):
    result = fit(
        decay, X, Y, p0=START, bounds=BOUNDS, workflow=workflow, goal=goal, n_starts=starts
    )
    assert len(result.starts) == (0 if starts == 1 else starts)


# What is refused


@pytest.mark.parametrize("workflow", ["quick", "", "AUTO", 3])
def test_unknown_presets_are_refused(workflow):
    with pytest.raises(ValueError, match=r"^workflow = ") as caught:
        fit(decay, never_read(), never_read(), p0=START, workflow=workflow)
    assert all(repr(name) in str(caught.value) for name in (workflow, *WORKFLOW_PRESETS))


@pytest.mark.parametrize("goal", ["quickly", "", 3])
def test_unknown_goals_are_refused(goal):
    with pytest.raises(ValueError, match=r"^goal = ") as caught:
        fit(decay, never_read(), never_read(), p0=START, goal=goal)
    names = [known.value for known in OptimizationGoal]
    assert all(repr(name) in str(caught.value) for name in (goal, *names))


@pytest.mark.parametrize("workflow", ["standard", "quality", "fast", "large_robust"])
def test_presets_in_memory_say_what_to_use_for_dask_arrays(workflow):
    with pytest.raises(ValueError, match=f"^workflow = '{workflow}'") as caught:
        fit(decay, never_read(), never_read(), p0=START, workflow=workflow)
    message = str(caught.value)
    for name in ("auto", "streaming", "hpc_distributed"):
        assert repr(name) in message
    assert ".compute()" in message


def test_a_preset_in_memory_is_refused_beyond_the_limit():
    with pytest.raises(ValueError, match="'standard' keeps a copy of all rows") as caught:
        fit(decay, X, Y, p0=START, workflow="standard", memory_limit_gb=1e-5)
    assert "3.2e-05 GB" in str(caught.value)
    assert "7.5e-06 GB" in str(caught.value)
    assert "'streaming'" in str(caught.value)


@pytest.mark.cluster
def test_a_chunk_too_large_for_a_worker_is_refused_before_anything_is_read(tmp_path):
    from distributed import Client, LocalCluster

    n = 2_000_000
    x, y = (stored(tmp_path / name, np.ones(n), n) for name in "xy")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=500_000_000, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with pytest.raises(ValueError, match=r"^a chunk of shape \(2000000,\)") as caught:
            fit(decay, x, y, p0=START, client=client)
        message = str(caught.value)
        assert "32 MB" in message
        assert "500 MB" in message
        smaller = int(re.search(r"y\.rechunk\(\((\d+),\)\)", message)[1])
        assert f"da.from_zarr(store, chunks=({smaller},))" in message

        # The call that is named is enough, and one row more is too much.
        def prepare(rows):
            arrays = (da.from_zarr(a, chunks=rows) for a in (x, y))
            return plan(decay, *arrays, p0=START, client=client, time=False)

        assert prepare(smaller).strategy == "streaming"
        with pytest.raises(ValueError, match="^a chunk of shape"):
            prepare(smaller + 1)
    assert not x.store.reads
    assert not y.store.reads


def test_a_chunk_too_large_for_this_process_is_refused_before_anything_is_read():
    arrays = never_read(10**6, 10**6), never_read(10**6, 10**6)
    with pytest.raises(ValueError, match=r"^a chunk of shape \(1000000,\)") as caught:
        fit(decay, *arrays, p0=START, memory_limit_gb=0.05)
    for part in ("16 MB", "50 MB", "y.rechunk(("):
        assert part in str(caught.value)


# The budget


@pytest.fixture(scope="module")
def many():
    """Rows, and the answer that every strategy has to find."""
    x, y = data_of(30_000)
    return x, y, fit(decay, x, y, p0=START, strategy="standard", ftol=1e-12)


LIMITS = [
    # GB, strategy, threads of four cores
    (1e-4, "streaming", 1),
    (5e-4, "streaming", 1),
    (5e-3, "chunked", 1),
    (0.02, "chunked", 2),
    (0.1, "chunked", 4),
    (0.2, "standard", None),
]


@pytest.mark.quick(3)
@pytest.mark.parametrize(("limit", "strategy", "threads"), LIMITS)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_limit_chooses_strategy_blocks_and_threads(
    limit, strategy, threads, mapped, many, engines, monkeypatch, tmp_path
):
    monkeypatch.setattr(memory_budget, "available_cores", lambda: 4)
    x, y, expected = many
    if mapped:
        for name, array in (("x", x), ("y", y)):
            np.save(tmp_path / f"{name}.npy", array)
        x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    result = fit(decay, x, y, p0=START, ftol=1e-12, memory_limit_gb=limit)
    assert result.strategy == strategy
    assert result.budget == MemoryBudget.compute(y.size, 3, memory_limit_gb=limit)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-8)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-7)
    ((plan, engine),) = engines
    assert (strategy, plan.config) == MemoryBudgetSelector().select(
        y.size, 3, memory_limit_gb=limit
    )
    assert blocks_and_threads(engine) == (
        None if plan.config is None else (plan.config.block_rows, threads)
    )


def blocks_and_threads(engine):
    """Rows of the largest block and threads with which an engine really works."""
    if isinstance(engine, DaskEngine):
        ((*sizes,),) = engine.stream.chunks
        assert engine.streaming.stage_rows == max(sizes)
        return max(sizes), engine.streaming.threads
    if not hasattr(engine._parts[0], "sigma"):  # rows ready for the kernel
        return None
    threads = 1 if engine._pool is None else engine._pool._max_workers
    return max(part.y.size for part in engine._parts), threads


@pytest.mark.parametrize("lazy", [False, True])
def test_blocks_and_threads_of_the_plan_reach_the_engine(lazy, engines, monkeypatch):
    # Numbers that no default has.
    original = choose_strategy.plan_workflow

    def plan_workflow(*args, **kwargs):
        return dataclasses.replace(
            original(*args, **kwargs), config=BlockConfig(block_rows=256, threads=3, thread_bytes=1)
        )

    expected = fit(decay, X, Y, p0=START)
    engines.clear()
    monkeypatch.setattr(choose_strategy, "plan_workflow", plan_workflow)
    data = X, Y
    if lazy:
        data = tuple(da.from_array(a, chunks=700) for a in data)
    result = fit(decay, *data, p0=START, strategy="auto" if lazy else "chunked")
    ((_, engine),) = engines
    if lazy:
        assert (engine.streaming.stage_rows, engine.streaming.threads) == (256, 3)
        assert engine.stream.chunks == ((700, 700, 600),)
    else:
        assert blocks_and_threads(engine) == (256, 3)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-6)


def test_the_smallest_memory_takes_small_blocks(engines):
    x, y = data_of(100_000)
    result = fit(decay, x, y, p0=START, goal=OptimizationGoal.MEMORY_EFFICIENT)
    ((plan, engine),) = engines
    assert result.strategy == "chunked"
    rows, _ = blocks_and_threads(engine)
    assert rows == plan.config.block_rows == memory_budget.MAX_ROWS_SMALL
    assert len(engine._parts) == math.ceil(y.size / rows)


def test_the_budget_of_dask_arrays_is_the_memory_of_what_reads_them():
    x, y = (da.from_array(a, chunks=500) for a in (X, Y))
    result = fit(decay, x, y, p0=START, memory_limit_gb=4.0, workflow="auto")
    assert result.strategy == "streaming"
    assert result.budget == MemoryBudget.compute(N, 3, memory_limit_gb=4.0)


@pytest.mark.slow
def test_the_sample_that_starts_are_tried_on_obeys_the_limit(many, engines):
    x, y, expected = many
    result = fit(decay, x, y, p0=START, bounds=BOUNDS, ftol=1e-12, memory_limit_gb=1e-4, n_starts=4)
    ((plan, engine),) = engines
    assert result.strategy == "streaming"
    rows = memory_budget.size_sample(plan.budget.threshold_gb * memory_budget.GB)
    assert rows == memory_budget.MIN_SAMPLE_ROWS < y.size
    data = observe(*(da.from_array(a, chunks=1000) for a in (x, y)))
    assert rows / 2 < sample_of(engine, data, most=rows).n_rows <= rows
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-8)


@given(threshold=st.floats(1e3, 1e13), features=st.integers(1, 20))
def test_samples_take_no_more_than_their_room(threshold, features):
    rows = memory_budget.size_sample(threshold, features)
    assert memory_budget.MIN_SAMPLE_ROWS <= rows <= memory_budget.MOST_SAMPLE_ROWS
    if rows > memory_budget.MIN_SAMPLE_ROWS:
        taken = memory_budget.SAMPLE_COPIES * 8 * (features + 2) * rows
        assert taken <= memory_budget.room_for_blocks(threshold)


# One answer


@pytest.mark.slow
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(300, 3000),
    rate=st.floats(0.6, 2.5),
    noise=st.floats(0.01, 0.2),
    chunk=st.integers(50, 700),
)
def test_presets_find_the_same_parameters(tmp_path_factory, seed, n, rate, noise, chunk):
    x, y = data_of(n, (2.5, rate, 0.5), seed, noise)
    tight = dict.fromkeys(TOLERANCES, 1e-14)
    best = fit(decay, x, y, p0=START, bounds=BOUNDS, **tight)
    lazy = tuple(da.from_array(a, chunks=chunk) for a in (x, y))
    fits = [
        ("standard", (x, y)),
        ("large_robust", (x, y)),
        ("streaming", (x, y)),
        ("streaming", lazy),
        ("hpc_distributed", lazy),
    ]
    for workflow, data in fits:
        with contextlib.chdir(tmp_path_factory.mktemp("fit")):
            result = fit(decay, *data, p0=START, bounds=BOUNDS, workflow=workflow)
        assert result.success
        (tolerance,) = {result.tolerances[name] for name in TOLERANCES}
        assert result.cost <= best.cost * (1 + tolerance)
        # With a Hessian H, a cost that is higher by t F leaves (δ_i)² <= 2 t F (H⁻¹)_ii, and
        # 2 F H⁻¹ = (n - p) pcov; twice that for what is not quadratic.
        off = (result.popt - best.popt) ** 2
        assert np.all(off <= 2 * tolerance * (n - 3) * np.diag(best.pcov))


# What is said


def test_one_log_line_tells_the_numbers_of_the_decision(caplog):
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        result = fit(
            decay, X, Y, p0=START, bounds=BOUNDS, workflow="quality", goal="fast", n_starts=4,
            memory_limit_gb=2.0,
        )  # fmt: skip
    (record,) = [r for r in caplog.records if r.name == "nlsq_dask"]
    assert record.levelno == logging.INFO
    line = record.getMessage()
    assert "\n" not in line
    parts = ("2000 rows", "3 parameters", "workflow quality", "goal fast", "strategy standard")
    for part in (*parts, "1.5 of 2 GB", "4 starts", *(f"{name} 1e-09" for name in TOLERANCES)):
        assert part in line
    for number in (result.budget.data_gb, result.budget.jacobian_gb, result.budget.peak_gb):
        assert f"{number:.4g}" in line


def test_the_log_says_why_and_in_which_blocks(caplog):
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        fit(decay, X, Y, p0=START, memory_limit_gb=2e-5)
    (record,) = [r for r in caplog.records if r.name == "nlsq_dask"]
    line = record.getMessage()
    assert "strategy streaming (data 3.2e-05 GB > 1.5e-05 GB)" in line
    assert re.search(r"blocks of \d+ rows on 1 threads", line)


def test_the_log_names_the_checkpoints(caplog):
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        result = fit(decay, X, Y, p0=START, workflow="hpc_distributed")
    lines = [r.getMessage() for r in caplog.records if r.name == "nlsq_dask"]
    assert len(lines) == 2
    assert result.checkpoint in lines[1]


def test_the_users_logging_is_left_alone(capsys):
    root, ours = logging.getLogger(), logging.getLogger("nlsq_dask")

    def configuration():
        return [
            (log.level, list(log.handlers), log.propagate, log.disabled) for log in (root, ours)
        ]

    before = configuration()
    fit(decay, X, Y, p0=START, workflow="hpc_distributed", progress=False)
    assert configuration() == before
    assert before[1] == (logging.NOTSET, [], True, False)
    assert capsys.readouterr() == ("", "")
