"""The presets of ``workflow=``, and the tables of presets, goals and tolerances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Literal

from nlsq_dask.core.goals import GOAL_RULES, TOLERANCE_TIERS, OptimizationGoal, fixed_tolerances


@dataclass(frozen=True, slots=True)
class WorkflowPreset:
    """One row of the table of workflows.

    Attributes
    ----------
    name : str
        Value of ``workflow=``.
    strategy : {"auto", "standard", "chunked", "streaming"}
        "auto" takes the strategy from the memory budget.
    tolerance : float or None
        ftol, xtol and gtol; None adapts them to the number of rows.
    n_starts : int
        Starting points.
    checkpoint : bool
        Whether the solver's state is written after every pass.
    summary : str
        Purpose, for documentation.
    """

    name: str
    strategy: Literal["auto", "standard", "chunked", "streaming"]
    _: KW_ONLY
    tolerance: float | None = None
    n_starts: int = 1
    checkpoint: bool = False
    summary: str


_PRESETS = (
    WorkflowPreset("auto", "auto", summary="any data; strategy from the memory budget"),
    WorkflowPreset("standard", "standard", tolerance=1e-8, summary="data that fit in memory"),
    WorkflowPreset(
        "quality",
        "standard",
        tolerance=1e-10,
        n_starts=20,
        summary="the best of many starts, in memory",
    ),
    WorkflowPreset("fast", "standard", tolerance=1e-6, summary="a quick answer, in memory"),
    WorkflowPreset(
        "large_robust",
        "chunked",
        tolerance=1e-8,
        n_starts=10,
        summary="large arrays, several starts",
    ),
    WorkflowPreset("streaming", "streaming", tolerance=1e-7, summary="data larger than memory"),
    WorkflowPreset(
        "hpc_distributed",
        "streaming",
        tolerance=1e-6,
        checkpoint=True,
        summary="long fits on all workers and GPUs of a cluster, with checkpoints",
    ),
)

#: Without ``workflow=``: the tolerances of scipy.optimize.least_squares.
NO_PRESET = WorkflowPreset("none", "auto", tolerance=1e-8, summary="SciPy's tolerances")

#: The workflows by name.
WORKFLOW_PRESETS: Mapping[str, WorkflowPreset] = MappingProxyType({p.name: p for p in _PRESETS})


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


def _markdown(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table with columns of even width."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
