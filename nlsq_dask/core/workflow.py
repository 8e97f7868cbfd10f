"""The workflow of a fit: from a preset, a goal and the sizes of a problem to one printable plan.

A *preset* (``workflow=``) names a strategy, tolerances and a number of starts; a *goal*
(``goal=``) moves them; the *memory budget* decides where the preset leaves it open. What the
caller writes explicitly always wins. Nothing here touches data: :func:`plan_workflow` takes
numbers, refuses what cannot work, and returns a :class:`WorkflowPlan`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeGuard, get_args

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count, checked_gigabytes
from nlsq_dask.core.goals import (
    GOAL_RULES,
    TOLERANCE_TIERS,
    OptimizationGoal,
    calculate_adaptive_tolerances,
    fixed_tolerances,
)
from nlsq_dask.core.memory_budget import (
    GB,
    SOLVER_BYTES,
    BlockConfig,
    MemoryBudget,
    MemoryBudgetSelector,
    Strategy,
    WorkerMemory,
    blocks_for,
    check_chunk_fits,
    check_held_fit,
    choose_strategy,
    size_stage,
)
from nlsq_dask.core.resources import available_cores

__all__ = [
    "WORKFLOW_PRESETS",
    "BlockConfig",
    "Machine",
    "MemoryBudget",
    "MemoryBudgetSelector",
    "OptimizationGoal",
    "Problem",
    "WorkerMemory",
    "WorkflowPlan",
    "WorkflowPreset",
    "calculate_adaptive_tolerances",
    "create_checkpoint_directory",
    "goal_table",
    "plan_workflow",
    "tolerance_table",
    "workflow_table",
]

#: Starting points of a goal that asks for several, where the preset does not name more.
MULTI_STARTS = 10

#: Where checkpoint directories are made, below the current directory.
CHECKPOINT_BASE = "nlsq_checkpoints"


@dataclass(frozen=True, slots=True)
class WorkflowPreset:
    """One row of the table of workflows.

    Attributes
    ----------
    name : str
        What is passed as ``workflow=``.
    strategy : {"auto", "standard", "chunked", "streaming"}
        "auto" leaves it to the memory budget.
    tolerance : float or None
        ftol, xtol and gtol; None adapts them to the number of rows.
    n_starts : int
        Starting points.
    checkpoint : bool
        Whether the solver's state is written after every pass.
    summary : str
        What it is for.
    """

    name: str
    strategy: Literal["auto", "standard", "chunked", "streaming"]
    tolerance: float | None
    n_starts: int
    checkpoint: bool
    summary: str


_PRESETS = (
    WorkflowPreset("auto", "auto", None, 1, False, "any data; strategy from the memory budget"),
    WorkflowPreset("standard", "standard", 1e-8, 1, False, "data that fit in memory"),
    WorkflowPreset("quality", "standard", 1e-10, 20, False, "the best of many starts, in memory"),
    WorkflowPreset("fast", "standard", 1e-6, 1, False, "a quick answer, in memory"),
    WorkflowPreset("large_robust", "chunked", 1e-8, 10, False, "large arrays, several starts"),
    WorkflowPreset("streaming", "streaming", 1e-7, 1, False, "data larger than memory"),
    WorkflowPreset(
        "hpc_distributed",
        "streaming",
        1e-6,
        1,
        True,
        "long fits on all workers and GPUs of a cluster, with checkpoints",
    ),
)

# What holds without ``workflow=``: the tolerances of scipy.optimize.least_squares.
_NO_PRESET = WorkflowPreset("none", "auto", 1e-8, 1, False, "SciPy's tolerances")

#: The workflows by name.
WORKFLOW_PRESETS: Mapping[str, WorkflowPreset] = MappingProxyType({p.name: p for p in _PRESETS})


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of a fit.

    Attributes
    ----------
    n_points, n_params, n_features : int
        Rows, parameters, and coordinates of a row.
    lazy : bool
        Whether any of the data is a Dask or Zarr array, which are always streamed.
    row_wise : bool
        Whether the model may be evaluated block by block. If not, "auto" keeps all rows together
        for as long as they fit.
    broadcasts : bool
        Whether coordinates are smaller than the observations. "auto" then prepares them block by
        block, since *standard* would expand them.
    chunks : tuple of int, or None
        Shape of the largest chunk of Dask arrays.
    chunk_bytes : int
        Its decoded bytes, of all arrays together; 0 where there are no chunks.
    held_bytes : int
        Decoded bytes of chunks that are kept through the fit.
    """

    n_points: int
    n_params: int
    n_features: int = 1
    lazy: bool = False
    row_wise: bool = True
    broadcasts: bool = False
    chunks: tuple[int, ...] | None = None
    chunk_bytes: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a fit may use.

    Attributes
    ----------
    memory_limit_gb : float or None
        Limit that the caller names, in GB. For lazy data it is one worker's, and can lower what
        the cluster allows but not raise it.
    use_gpu : bool
        Whether the kernel runs on a GPU.
    threads : int or None
        Most threads of this process; None takes its cores.
    worker : WorkerMemory or None
        Smallest worker of the cluster that streams lazy data; None is this process.
    """

    memory_limit_gb: float | None = None
    use_gpu: bool = False
    threads: int | None = None
    worker: WorkerMemory | None = None


@dataclass(frozen=True, slots=True)
class WorkflowPlan:
    """What a fit will do, and why.

    Attributes
    ----------
    workflow : str or None
        Name of the preset.
    goal : OptimizationGoal or None
    strategy : {"standard", "chunked", "streaming"}
    reason : str
        Why this strategy, with the numbers that decided.
    config : BlockConfig or None
        Blocks and threads; None for standard.
    budget : MemoryBudget
        Of this process, or for Dask and Zarr arrays of one worker.
    tolerances : dict
        "gtol", "ftol" and "xtol"; None disables one.
    n_starts : int
    checkpoint : bool
        Whether the preset asks for checkpoints.
    """

    workflow: str | None
    goal: OptimizationGoal | None
    strategy: Strategy
    reason: str
    config: BlockConfig | None
    budget: MemoryBudget
    tolerances: dict[str, float | None]
    n_starts: int
    checkpoint: bool

    @property
    def summary(self) -> str:
        """One line for a log."""
        budget, config = self.budget, self.config
        memory = (
            f"{budget.threshold_gb:.4g} of {budget.available_gb:.4g} GB for data of "
            f"{budget.data_gb:.4g}, Jacobian {budget.jacobian_gb:.4g}, peak {budget.peak_gb:.4g} GB"
        )
        parts = [
            f"strategy {self.strategy} ({self.reason})",
            memory,
            ", ".join(f"{name} {value}" for name, value in self.tolerances.items()),
        ]
        if config is not None:
            parts.insert(1, f"blocks of {config.block_rows} rows on {config.threads} threads")
        if self.n_starts > 1:
            parts.append(f"{self.n_starts} starts")
        if self.checkpoint:
            parts.append("with checkpoints")
        goal = "" if self.goal is None else f", goal {self.goal.value}"
        return f"workflow {self.workflow}{goal}: " + "; ".join(parts)


def plan_workflow(
    problem: Problem,
    machine: Machine,
    workflow: str | None = "auto",
    goal: OptimizationGoal | str | None = None,
    *,
    strategy: str | None = None,
    n_starts: int | None = None,
    tolerances: Mapping[str, float | None] | None = None,
) -> WorkflowPlan:
    """Decide how a problem is fitted, and refuse what cannot work, before anything runs.

    Parameters
    ----------
    problem : Problem
    machine : Machine
    workflow : str or None
        Name of a preset; see :func:`workflow_table`. None: strategy from the memory budget, and
        SciPy's tolerances.
    goal : OptimizationGoal, str or None
        Moves the preset's tolerances, starts and memory; see :func:`goal_table`.
    strategy : {"auto", "standard", "chunked", "streaming"} or None
        Strategy that the caller names; wins over preset and goal. "auto" and None name none.
    n_starts : int, optional
        Starts that the caller names; wins over preset and goal.
    tolerances : mapping, optional
        Those of "ftol", "xtol" and "gtol" that the caller names; they win.

    Raises
    ------
    InputError
        If there is no such workflow, goal or strategy, if a number is out of its range, if the
        strategy cannot hold the data, or if a chunk is too large for a worker.
    """
    preset = _preset(workflow)
    wanted = OptimizationGoal.parse(goal)
    named = _named_strategy(strategy)
    starts = _n_starts(n_starts, preset, wanted)
    if problem.lazy:
        _refuse_in_memory(preset, named)
        chosen: Strategy = "streaming"
        reason = "Dask and Zarr arrays are always streamed"
        config: BlockConfig | None
        budget, config = _plan_worker(problem, machine, wanted)
    else:
        budget = _budget(problem, machine.memory_limit_gb, machine.use_gpu)
        chosen, reason = _choose(problem, budget, preset, wanted, named)
        config = blocks_for(
            chosen,
            budget,
            problem.n_params,
            problem.n_features,
            goal=wanted,
            threads=machine.threads,
            use_gpu=machine.use_gpu,
        )
    adapted = (
        calculate_adaptive_tolerances(problem.n_points, wanted)
        if preset.tolerance is None
        else fixed_tolerances(preset.tolerance, wanted)
    )
    return WorkflowPlan(
        workflow=workflow,
        goal=wanted,
        strategy=chosen,
        reason=reason,
        config=config,
        budget=budget,
        tolerances={**adapted, **(tolerances or {})},
        n_starts=starts,
        checkpoint=preset.checkpoint,
    )


def create_checkpoint_directory(base_dir: str | Path | None = None) -> str:
    """Make a new directory for checkpoints, named for the time (UTC).

    Parameters
    ----------
    base_dir : str or Path, optional
        Directory to make it in, which is made too if there is none; by default
        ``./nlsq_checkpoints``.

    Returns
    -------
    str
        Absolute path of the directory, which no other call returns, in this or another process.

    Raises
    ------
    OSError
        If the directory cannot be made.
    """
    base = Path(CHECKPOINT_BASE if base_dir is None else base_dir).absolute()
    base.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("checkpoint_%Y%m%d_%H%M%S")
    for number in itertools.count(1):
        directory = base / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            directory.mkdir()  # fails where another process was faster
        except FileExistsError:
            continue
        break
    return str(directory)


def workflow_table() -> str:
    """The workflows as a Markdown table."""
    header = ("workflow", "strategy", "tolerances", "starts", "checkpoints", "for")
    return _markdown(
        header,
        (
            (
                f"`{p.name}`",
                "from the memory budget" if p.strategy == "auto" else p.strategy,
                "by number of rows" if p.tolerance is None else f"{p.tolerance:.0e}",
                str(p.n_starts),
                "yes" if p.checkpoint else "no",
                p.summary,
            )
            for p in WORKFLOW_PRESETS.values()
        ),
    )


def goal_table() -> str:
    """The goals as a Markdown table."""
    rows = ((f"`{goal.name}`", GOAL_RULES[goal].summary) for goal in OptimizationGoal)
    return _markdown(("goal", "means"), rows)


def tolerance_table() -> str:
    """The tolerances by number of rows as a Markdown table, with those of FAST and QUALITY."""
    names = [f"fewer than {below:.0e}" for below, _ in TOLERANCE_TIERS[:-1]]
    header = ("rows", "ftol, xtol, gtol", "`FAST`", "`QUALITY`")
    goals = (None, OptimizationGoal.FAST, OptimizationGoal.QUALITY)
    rows = (
        (name, *(f"{fixed_tolerances(tolerance, goal)['ftol']:.0e}" for goal in goals))
        for name, (_, tolerance) in zip([*names, "more"], TOLERANCE_TIERS, strict=True)
    )
    return _markdown(header, rows)


def _preset(workflow: str | None) -> WorkflowPreset:
    if workflow is None:
        return _NO_PRESET
    if not isinstance(workflow, str) or workflow not in WORKFLOW_PRESETS:
        raise _errors.unknown_choice("workflow", workflow, list(WORKFLOW_PRESETS))
    return WORKFLOW_PRESETS[workflow]


def _named_strategy(strategy: str | None) -> Strategy | None:
    if strategy is None or strategy == "auto":
        return None
    if not _is_strategy(strategy):
        raise _errors.unknown_choice("strategy", strategy, ("auto", *get_args(Strategy)))
    return strategy


def _is_strategy(value: str) -> TypeGuard[Strategy]:
    return value in get_args(Strategy)


def _refuse_in_memory(preset: WorkflowPreset, named: Strategy | None) -> None:
    """Refuse to keep lazy data in memory."""
    if named is not None:
        if named != "streaming":
            raise _errors.lazy_data_in_memory(named)
    elif preset.strategy not in ("auto", "streaming"):
        choices = [p.name for p in _PRESETS if p.strategy in ("auto", "streaming")]
        raise _errors.workflow_for_lazy_data(preset.name, preset.strategy, choices)


def _n_starts(explicit: int | None, preset: WorkflowPreset, goal: OptimizationGoal | None) -> int:
    if explicit is not None:
        return checked_count("n_starts", explicit)
    several = GOAL_RULES[goal].multi_start
    if several is None:
        return preset.n_starts
    return max(preset.n_starts, MULTI_STARTS) if several else 1


def _budget(problem: Problem, memory_limit_gb: float | None, use_gpu: bool) -> MemoryBudget:
    return MemoryBudget.compute(
        problem.n_points,
        problem.n_params,
        problem.n_features,
        memory_limit_gb=memory_limit_gb,
        use_gpu=use_gpu,
    )


def _plan_worker(
    problem: Problem, machine: Machine, goal: OptimizationGoal | None
) -> tuple[MemoryBudget, BlockConfig]:
    """Budget of one worker and the buffers that it passes chunks through, if its chunks fit."""
    worker, limit_gb = machine.worker, machine.memory_limit_gb
    if worker is None:
        budget = _budget(problem, limit_gb, use_gpu=False)
        # What this process holds already is no part of what it can still take.
        available, threads = int(budget.available_gb * GB), machine.threads or available_cores()
        worker = WorkerMemory(available, threads, base_bytes=SOLVER_BYTES)
    else:
        if limit_gb is not None:
            limit = int(checked_gigabytes("memory_limit_gb", limit_gb) * GB)
            worker = replace(worker, memory_bytes=min(worker.memory_bytes, limit))
        budget = _budget(problem, worker.memory_bytes / GB, use_gpu=False)
    config = _stage(problem, machine, goal, worker)
    if problem.held_bytes:
        check_held_fit(worker, problem.held_bytes)
        worker = replace(worker, base_bytes=worker.base_bytes + problem.held_bytes)
        config = _stage(problem, machine, goal, worker)
    return budget, config


def _stage(
    problem: Problem, machine: Machine, goal: OptimizationGoal | None, worker: WorkerMemory
) -> BlockConfig:
    """Buffers of a worker whose chunks fit."""
    config = size_stage(
        worker,
        problem.n_params,
        problem.n_features,
        use_gpu=machine.use_gpu,
        small_memory=GOAL_RULES[goal].small_memory,
    )
    if problem.chunks is not None:
        check_chunk_fits(worker, problem.chunk_bytes, problem.chunks, config)
    return config


def _choose(
    problem: Problem,
    budget: MemoryBudget,
    preset: WorkflowPreset,
    goal: OptimizationGoal | None,
    named: Strategy | None,
) -> tuple[Strategy, str]:
    """Strategy for data in memory, and why."""
    small = GOAL_RULES[goal].small_memory
    chosen: Strategy
    if named is not None:
        chosen, reason = named, "named by the caller"
    elif preset.strategy != "auto":
        chosen, reason = preset.strategy, "named by the workflow"
        if chosen == "standard" and small and problem.row_wise:
            chosen, reason = "chunked", "the goal rules out a copy of all rows"
    else:
        chosen = choose_strategy(budget, goal)
        reason = _budget_reason(chosen, budget)
        if chosen == "chunked" and not problem.row_wise:
            chosen, reason = "standard", "the model needs all rows at once"
        elif chosen == "standard" and problem.broadcasts and problem.row_wise:
            chosen, reason = "chunked", "coordinates broadcast"
    if chosen == "standard" and not budget.data_fits:
        argument, value = ("workflow", preset.name) if named is None else ("strategy", named)
        raise _errors.data_exceed_memory(
            argument, value, budget.data_gb, budget.threshold_gb, ("auto", "streaming")
        )
    return chosen, reason


def _budget_reason(chosen: Strategy, budget: MemoryBudget) -> str:
    if chosen == "streaming":
        return f"data {budget.data_gb:.4g} GB > {budget.threshold_gb:.4g} GB"
    if chosen == "standard":
        return f"peak {budget.peak_gb:.4g} GB <= {budget.threshold_gb:.4g} GB"
    if budget.fits_in_memory:
        return "the goal rules out a copy of all rows"
    return f"peak {budget.peak_gb:.4g} GB > {budget.threshold_gb:.4g} GB"


def _markdown(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table with columns of even width."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
