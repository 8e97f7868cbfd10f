"""The workflow of a fit: a printable plan from a preset, a goal and the sizes of a problem.

A *preset* (``workflow=``) names a strategy, tolerances and a number of starts. A *goal* (``goal=``)
moves them. If the preset names no strategy, the *memory budget* decides. Explicit arguments always
win. Nothing here touches data: :func:`plan_workflow` takes numbers, refuses a fit that cannot work,
and returns a :class:`WorkflowPlan`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count, checked_gigabytes
from nlsq_dask.core.goals import (
    GOAL_RULES,
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
    blocks_for,
    choose_strategy,
    room_for_blocks,
)
from nlsq_dask.core.presets import (
    NO_PRESET,
    WORKFLOW_PRESETS,
    WorkflowPreset,
    goal_table,
    tolerance_table,
    workflow_table,
)
from nlsq_dask.core.resources import available_cores
from nlsq_dask.core.worker_memory import (
    WorkerMemory,
    check_chunk_fits,
    check_held_fit,
    size_stage,
)

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

#: Starting points of a goal with several starts, unless the preset names more.
MULTI_STARTS = 10

#: Directory of the checkpoint directories, below the current directory.
CHECKPOINT_BASE = "nlsq_checkpoints"


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of a fit.

    Attributes
    ----------
    n_points, n_params, n_features : int
        Rows, parameters, and coordinates of a row.
    lazy : bool
        Whether any array is a Dask or Zarr array. Such data are always streamed.
    row_wise : bool
        Whether the model may be evaluated block by block. If not, "auto" keeps all rows together
        if they fit.
    broadcasts : bool
        Whether coordinates are smaller than the observations. "auto" then prepares the coordinates
        block by block, since *standard* would expand them.
    chunks : tuple of int, or None
        Shape of the largest chunk of Dask arrays.
    chunk_bytes : int
        Decoded bytes of this chunk, of all arrays together; 0 without chunks.
    held_bytes : int
        Decoded bytes of the chunks that stay in memory during the fit.
    series_rows : int
        Rows of a series that a model takes whole; 1 for a model of single rows.
    series_axes : tuple of int
        Axes of a series.
    """

    n_points: int
    n_params: int
    n_features: int = 1
    _: KW_ONLY
    lazy: bool = False
    row_wise: bool = True
    broadcasts: bool = False
    chunks: tuple[int, ...] | None = None
    chunk_bytes: int = 0
    held_bytes: int = 0
    series_rows: int = 1
    series_axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of a fit.

    Attributes
    ----------
    memory_limit_gb : float or None
        The caller's limit, in GB. For lazy data the limit of one worker, which can lower the
        cluster's limit but not raise it.
    use_gpu : bool
        Whether the kernel runs on a GPU.
    gpu_memory_gb : float or None
        Memory of the GPUs of the fit, in GB; None takes the free memory of JAX's first GPU.
    threads : int or None
        Most threads of this process; None takes the number of cores.
    worker : WorkerMemory or None
        Smallest worker of the cluster that streams lazy data; None for this process.
    """

    memory_limit_gb: float | None = None
    _: KW_ONLY
    use_gpu: bool = False
    gpu_memory_gb: float | None = None
    threads: int | None = None
    worker: WorkerMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowPlan:
    """The decisions about a fit, with reasons.

    Attributes
    ----------
    workflow : str or None
        Name of the preset.
    goal : OptimizationGoal or None
    strategy : {"standard", "chunked", "streaming"}
    reason : str
        Reason for the strategy, with the numbers that decided.
    config : BlockConfig or None
        Blocks and threads; None for standard.
    budget : MemoryBudget
        Budget of this process; for Dask and Zarr arrays the budget of one worker.
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
        known = f"{budget.threshold_gb:.4g} of {budget.available_gb:.4g} GB"
        memory = (
            f"{'any memory' if math.isinf(budget.available_gb) else known} for data of "
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
    """Decide how to fit a problem, and refuse a fit that cannot work, before anything runs.

    Parameters
    ----------
    problem : Problem
    machine : Machine
    workflow : str or None
        Name of a preset; see :func:`workflow_table`. None takes the strategy from the memory
        budget, and SciPy's tolerances.
    goal : OptimizationGoal, str or None
        Moves the preset's tolerances, starts and memory; see :func:`goal_table`.
    strategy : {"auto", "standard", "chunked", "streaming"} or None
        The caller's strategy, which wins over preset and goal. "auto" and None name no strategy.
    n_starts : int, optional
        The caller's number of starts, which wins over preset and goal.
    tolerances : mapping, optional
        The caller's "ftol", "xtol" and "gtol", which win over preset and goal.

    Raises
    ------
    InputError
        If there is no such workflow, goal or strategy, if a number is out of its range, if the
        strategy cannot hold the data, or if a chunk is too large for a worker.
    """
    if workflow is not None and (not isinstance(workflow, str) or workflow not in WORKFLOW_PRESETS):
        raise _errors.unknown_choice("workflow", workflow, list(WORKFLOW_PRESETS))
    preset = NO_PRESET if workflow is None else WORKFLOW_PRESETS[workflow]
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
        budget = MemoryBudget.compute(
            problem.n_points,
            problem.n_params,
            problem.n_features,
            memory_limit_gb=machine.memory_limit_gb,
            use_gpu=machine.use_gpu,
            gpu_memory_gb=machine.gpu_memory_gb,
            few_rows_fit=not _has_blocks(problem, preset, wanted, named),
        )
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
        if config is not None and problem.series_axes:
            room = room_for_blocks(budget.threshold_gb * GB)
            config = _in_series(config, problem).with_fewer_threads(room)
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
        Parent directory, made if it does not exist; by default ``./nlsq_checkpoints``.

    Returns
    -------
    str
        Absolute path of the directory, unique among all processes.

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
            directory.mkdir()  # fails if another process was faster
        except FileExistsError:
            continue
        break
    return str(directory)


def _named_strategy(strategy: str | None) -> Strategy | None:
    if strategy is None or (isinstance(strategy, str) and strategy == "auto"):
        return None
    if not isinstance(strategy, str) or strategy not in get_args(Strategy):
        raise _errors.unknown_choice("strategy", strategy, ("auto", *get_args(Strategy)))
    return strategy  # type: ignore[return-value]


def _refuse_in_memory(preset: WorkflowPreset, named: Strategy | None) -> None:
    """Refuse to keep lazy data in memory."""
    if named is not None:
        if named != "streaming":
            raise _errors.lazy_data_in_memory(named)
    elif preset.strategy not in ("auto", "streaming"):
        choices = [p.name for p in WORKFLOW_PRESETS.values() if p.strategy in ("auto", "streaming")]
        raise _errors.workflow_for_lazy_data(preset.name, preset.strategy, choices)


def _n_starts(explicit: int | None, preset: WorkflowPreset, goal: OptimizationGoal | None) -> int:
    if explicit is not None:
        return checked_count("n_starts", explicit)
    several = GOAL_RULES[goal].multi_start
    if several is None:
        return preset.n_starts
    return max(preset.n_starts, MULTI_STARTS) if several else 1


def _has_blocks(
    problem: Problem,
    preset: WorkflowPreset,
    goal: OptimizationGoal | None,
    named: Strategy | None,
) -> bool:
    """Whether few rows in memory are cut into blocks, whose size rests on the free memory."""
    strategy = named or preset.strategy
    cuts = strategy == "auto" and problem.broadcasts and problem.row_wise
    return cuts or strategy in ("chunked", "streaming") or GOAL_RULES[goal].small_memory


def _plan_worker(
    problem: Problem, machine: Machine, goal: OptimizationGoal | None
) -> tuple[MemoryBudget, BlockConfig]:
    """Budget of one worker, and the buffers for its chunks, if the chunks fit."""
    worker, limit_gb = machine.worker, machine.memory_limit_gb
    sizes = problem.n_points, problem.n_params, problem.n_features
    if worker is None:
        budget = MemoryBudget.compute(*sizes, memory_limit_gb=limit_gb)
        # The available memory does not include the memory that this process holds already.
        available, threads = int(budget.available_gb * GB), machine.threads or available_cores()
        worker = WorkerMemory(available, threads, base_bytes=SOLVER_BYTES)
    else:
        if limit_gb is not None:
            limit = int(checked_gigabytes("memory_limit_gb", limit_gb) * GB)
            worker = replace(worker, memory_bytes=min(worker.memory_bytes, limit))
        budget = MemoryBudget.compute(*sizes, memory_limit_gb=worker.memory_bytes / GB)
    config = _stage(problem, machine, goal, worker)
    if problem.held_bytes:
        check_held_fit(worker, problem.held_bytes)
        worker = replace(worker, base_bytes=worker.base_bytes + problem.held_bytes)
        config = _stage(problem, machine, goal, worker)
    return budget, config


def _stage(
    problem: Problem, machine: Machine, goal: OptimizationGoal | None, worker: WorkerMemory
) -> BlockConfig:
    """Buffers of a worker, if its chunks fit."""
    config = size_stage(
        worker,
        problem.n_params,
        problem.n_features,
        use_gpu=machine.use_gpu,
        small_memory=GOAL_RULES[goal].small_memory,
    )
    if problem.series_axes:
        config = _in_series(config, problem)
    if problem.chunks is not None:
        uncut = problem.series_axes
        check_chunk_fits(worker, problem.chunk_bytes, problem.chunks, config, uncut=uncut)
    return config


def _in_series(config: BlockConfig, problem: Problem) -> BlockConfig:
    return config.in_series(problem.series_rows, problem.n_params, problem.n_features)


def _choose(
    problem: Problem,
    budget: MemoryBudget,
    preset: WorkflowPreset,
    goal: OptimizationGoal | None,
    named: Strategy | None,
) -> tuple[Strategy, str]:
    """Strategy for data in memory, and the reason."""
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
        raise _errors.data_exceed_memory(argument, value, budget.data_gb, budget.threshold_gb)
    return chosen, reason


def _budget_reason(chosen: Strategy, budget: MemoryBudget) -> str:
    if chosen == "streaming":
        return f"data {budget.data_gb:.4g} GB > {budget.threshold_gb:.4g} GB"
    if math.isinf(budget.threshold_gb):
        return "so few rows fit any memory"
    if chosen == "standard":
        return f"peak {budget.peak_gb:.4g} GB <= {budget.threshold_gb:.4g} GB"
    if budget.fits_in_memory:
        return "the goal rules out a copy of all rows"
    return f"peak {budget.peak_gb:.4g} GB > {budget.threshold_gb:.4g} GB"
