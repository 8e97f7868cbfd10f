"""Limits of the shapes that a first guess looks at: bounds, and values of fixed parameters.

A grid of shapes has no shape within narrow limits, or at a fixed value. So the shapes next to the
limits count as well: those farther outside by at most half a step of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.models.search import FloatArray

# Reach of a shape, in steps of the grid: half a step, and a tenth more for rounding and for grids
# whose steps grow.
_HALF_STEP = 0.55


@dataclass(frozen=True)
class Limits:
    """Bounds of parameters; those of a fixed parameter are its value.

    Attributes
    ----------
    lower, upper : ndarray, shape (p, 1) or (p, L), float64
        Common to L series, or of each series.
    """

    lower: FloatArray
    upper: FloatArray

    def of(self, places: Sequence[int]) -> Limits:
        """Those of some parameters."""
        return Limits(self.lower[list(places)], self.upper[list(places)])

    def clipped(self, values: FloatArray) -> FloatArray:
        """Values (p, L) inside the limits."""
        found: FloatArray = np.clip(values, self.lower, self.upper)
        return found

    def part(self, lanes: slice | NDArray[np.int64]) -> Limits:
        """Those of some series."""
        common = self.lower.shape[1] == 1
        return self if common else Limits(self.lower[:, lanes], self.upper[:, lanes])

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())


def near_shapes(
    shapes: FloatArray, reach: FloatArray, limits: Limits
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:  # (g, L) each
    """Shapes within the limits or next to them, all where there is none; and those outside.

    Parameters
    ----------
    shapes, reach : ndarray, shape (g, s), float64
        Shapes of a grid, and how far outside the limits each may lie.
    limits : Limits
        Of the shape.
    """
    near = np.ones((len(shapes), limits.lower.shape[1]), np.bool_)
    outside = np.zeros_like(near)
    for values, far, low, high in zip(
        shapes.T[:, :, None], reach.T[:, :, None], limits.lower, limits.upper, strict=True
    ):
        near &= (values + far >= low) & (values - far <= high)
        outside |= (values < low) | (values > high)
    return near | ~near.any(axis=0), outside


def of_allowed_sign(
    near: NDArray[np.bool_], coefficient: FloatArray, low: FloatArray, high: FloatArray
) -> NDArray[np.bool_]:  # (g, L)
    """Near shapes whose coefficient has an allowed sign; all near shapes where there is none.

    Parameters
    ----------
    near : ndarray, shape (g, L), bool
    coefficient : ndarray, shape (g, L), float64
        Numbers of the sign of the coefficient.
    low, high : ndarray, shape (L,) or (1,), float64
        Bounds of the coefficient.
    """
    found = near & ~((low >= 0.0) & (coefficient < 0.0)) & ~((high <= 0.0) & (coefficient > 0.0))
    return found | (near & ~found.any(axis=0))


def reach_of(shapes: FloatArray) -> FloatArray:  # (g, s)
    """Half of the larger step to the next shapes of a grid on either side, and a tenth more.

    A step is taken between shapes that differ in one number, or else between the numbers that a
    grid has.
    """
    reach = np.zeros_like(shapes)
    for j, values in enumerate(shapes.T):
        others = np.delete(shapes, j, axis=1)
        group = np.unique(others, axis=0, return_inverse=True)[1].reshape(-1)
        level = np.unique(values, return_inverse=True)[1].reshape(-1)
        levels = _larger_steps(np.unique(values), np.zeros(level.max() + 1))[level]
        order = np.lexsort((values, group))
        steps = np.empty_like(values)
        steps[order] = _larger_steps(values[order], group[order])
        reach[:, j] = _HALF_STEP * np.where(steps > 0.0, steps, levels)
    return reach


def _larger_steps(values: FloatArray, group: NDArray[Any]) -> FloatArray:
    """The larger of the steps to both neighbours in ascending values, within each group."""
    steps = np.where(np.diff(group) == 0, np.diff(values), 0.0)
    larger: FloatArray = np.maximum(np.append(0.0, steps), np.append(steps, 0.0))
    return larger
