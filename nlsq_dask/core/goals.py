"""The goals of a fit, and the tolerances by goal and number of rows.

With more rows the sum of squares costs more to evaluate, and its rounding grows. Therefore the
tolerances are looser for more rows, in tiers of a factor of ten rows. A goal moves a fit by one
tier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count

#: For each tier the rows that it ends at, and its tolerance for ftol, xtol and gtol.
TOLERANCE_TIERS = (
    (1e3, 1e-12),
    (1e4, 1e-10),
    (1e5, 1e-9),
    (1e6, 1e-8),
    (1e7, 1e-7),
    (1e8, 1e-6),
    (math.inf, 1e-5),
)


class OptimizationGoal(Enum):
    """The main goal of a fit; see :data:`GOAL_RULES` for the meaning of each."""

    FAST = "fast"
    ROBUST = "robust"
    GLOBAL = "global"
    MEMORY_EFFICIENT = "memory_efficient"
    QUALITY = "quality"

    @classmethod
    def parse(cls, value: Any) -> OptimizationGoal | None:
        """Read a goal as a user writes it.

        Parameters
        ----------
        value : OptimizationGoal, str or None
            A name in upper or lower case; None is no goal.

        Raises
        ------
        InputError
            If there is no such goal.
        """
        if value is None or isinstance(value, cls):
            return value
        name = value.upper() if isinstance(value, str) else ""
        if name not in cls.__members__:
            raise _errors.unknown_choice("goal", value, [goal.value for goal in cls])
        return cls[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalRule:
    """The changes that a goal makes.

    Attributes
    ----------
    tier_shift : int
        Tiers by which tolerances are looser (positive) or tighter (negative).
    multi_start : bool or None
        Whether to try several starting points; None leaves the choice to the workflow.
    small_memory : bool
        Whether to use the least memory: no copy of all rows, small blocks.
    summary : str
        For documentation.
    """

    tier_shift: int = 0
    multi_start: bool | None = None
    small_memory: bool = False
    summary: str


_ROBUST = GoalRule(multi_start=True, summary="the tier's tolerances, several starts")

#: The rule of each goal; None stands for no goal.
GOAL_RULES = MappingProxyType(
    {
        None: GoalRule(summary="the workflow as it is"),
        OptimizationGoal.FAST: GoalRule(
            tier_shift=1, multi_start=False, summary="tolerances one tier looser, one start"
        ),
        OptimizationGoal.ROBUST: _ROBUST,
        OptimizationGoal.GLOBAL: _ROBUST,
        OptimizationGoal.MEMORY_EFFICIENT: GoalRule(
            small_memory=True,
            summary="the tier's tolerances, the smallest memory: small blocks, no copy",
        ),
        OptimizationGoal.QUALITY: GoalRule(
            tier_shift=-1, multi_start=True, summary="tolerances one tier tighter, several starts"
        ),
    }
)


def calculate_adaptive_tolerances(
    n_points: int, goal: OptimizationGoal | str | None = None
) -> dict[str, float]:
    """Tolerances for a number of rows and a goal, from :data:`TOLERANCE_TIERS`.

    Parameters
    ----------
    n_points : int
        Number of rows.
    goal : OptimizationGoal, str or None
        FAST takes the next looser tier, QUALITY the next tighter tier, if there is one.

    Returns
    -------
    dict
        ``{"gtol": tolerance, "ftol": tolerance, "xtol": tolerance}``.

    Raises
    ------
    InputError
        If the number is not positive and whole, or there is no such goal.

    Examples
    --------
    >>> calculate_adaptive_tolerances(5_000_000, OptimizationGoal.QUALITY)
    {'gtol': 1e-08, 'ftol': 1e-08, 'xtol': 1e-08}
    """
    rows = checked_count("n_points", n_points)
    tier = next(i for i, (below, _) in enumerate(TOLERANCE_TIERS) if rows < below)
    return tier_tolerances(tier, OptimizationGoal.parse(goal))


def fixed_tolerances(tolerance: float, goal: OptimizationGoal | None) -> dict[str, float]:
    """Tolerances of the tier with a given tolerance, moved by a goal.

    Parameters
    ----------
    tolerance : float
        One of the tolerances of :data:`TOLERANCE_TIERS`.
    goal : OptimizationGoal or None
    """
    return tier_tolerances([value for _, value in TOLERANCE_TIERS].index(tolerance), goal)


def tier_tolerances(tier: int, goal: OptimizationGoal | None) -> dict[str, float]:
    """Tolerances of a tier, counted from the tightest, moved by a goal."""
    moved = tier + GOAL_RULES[goal].tier_shift
    _, tolerance = TOLERANCE_TIERS[min(max(moved, 0), len(TOLERANCE_TIERS) - 1)]
    return dict.fromkeys(("gtol", "ftol", "xtol"), tolerance)
