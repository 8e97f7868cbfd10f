"""What a model gets: the forms of x, and the series that it takes whole.

There are three forms of x: one array, one array of several coordinates, or a tuple of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

#: "single": one array (n,); "stacked": one array (k, n); "tuple": k arrays (n,).
Structure = Literal["single", "stacked", "tuple"]

CoordT = TypeVar("CoordT")


@dataclass(frozen=True, slots=True)
class Series:
    """The series that a model takes whole.

    Attributes
    ----------
    rows : int
        Rows of a series.
    axes : tuple of int
        Axes of y along which a series runs, in the order in which its rows run.
    """

    rows: int
    axes: tuple[int, ...]

    def order(self, ndim: int) -> tuple[int, ...]:
        """All axes, such that the rows of each series are neighbours."""
        return series_order(self.axes, ndim)


def series_order(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """All of `ndim` axes, with those of a series last."""
    return (*(d for d in range(ndim) if d not in axes), *axes)


def whole_series(rows: int, series_rows: int) -> int:
    """Rows of a buffer of whole series: of a power of two of them, in at most ``rows``, or of one.

    The same as ``rows`` for a power of two and series of one row.
    """
    return series_rows << max(rows // series_rows, 1).bit_length() - 1


def model_input(
    structure: Structure,
    coords: Sequence[CoordT],
    stack: Callable[[Sequence[CoordT]], Any],
) -> Any:
    """The x that a model gets.

    Parameters
    ----------
    structure : {"single", "stacked", "tuple"}
    coords : sequence, length k
        One array for each coordinate.
    stack : callable
        Stacks arrays along a new first axis.
    """
    if structure == "single":
        return coords[0]
    return stack(coords) if structure == "stacked" else tuple(coords)


def coordinate_names(structure: Structure, count: int) -> list[str]:
    """Names of the coordinates in messages."""
    return ["x"] if structure == "single" else [f"x[{i}]" for i in range(count)]


def argument_name(structure: Structure, coordinate: str) -> str:
    """Name of the argument that holds an array: stacked coordinates are one argument."""
    return "x" if structure == "stacked" and coordinate.startswith("x[") else coordinate
