"""What a fit is run for, and the tolerances that follow from the goal and the number of rows.

The statistical error of an estimate shrinks as one over the square root of the number of rows, but
the sum of squares of more rows costs more to evaluate and its rounding grows: so the more rows,
the looser the tolerances, in tiers of a factor of ten rows. A goal moves a fit by one tier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count

#: Rows below which a tier holds, and its tolerance, for ftol, xtol and gtol alike.
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
    """What matters most in a fit; see :data:`GOAL_RULES` for what each means."""

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


@dataclass(frozen=True, slots=True)
class GoalRule:
    """What a goal changes.

    Attributes
    ----------
    tier_shift : int
        Tiers by which tolerances are looser (positive) or tighter (negative).
    multi_start : bool or None
        Whether several starting points are tried; None leaves it to the workflow.
    small_memory : bool
        Whether memory is kept smallest: no copy of all rows, small blocks.
    summary : str
        For documentation.
    """

    tier_shift: int
    multi_start: bool | None
    small_memory: bool
    summary: str


_ROBUST = GoalRule(0, True, False, "the tier's tolerances, several starts")

#: What each goal changes; None stands for no goal.
GOAL_RULES = MappingProxyType(
    {
        None: GoalRule(0, None, False, "the workflow as it is"),
        OptimizationGoal.FAST: GoalRule(1, False, False, "tolerances one tier looser, one start"),
        OptimizationGoal.ROBUST: _ROBUST,
        OptimizationGoal.GLOBAL: _ROBUST,
        OptimizationGoal.MEMORY_EFFICIENT: GoalRule(
            0, None, True, "the tier's tolerances, the smallest memory: small blocks, no copy"
        ),
        OptimizationGoal.QUALITY: GoalRule(
            -1, True, False, "tolerances one tier tighter, several starts"
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
        FAST takes the next looser tier, QUALITY the next tighter one; the ends stay where they
        are.

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
    """Tolerances of the tier that has a given tolerance, moved by a goal as any tier is.

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
