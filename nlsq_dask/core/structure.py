"""The three forms of x: one array, one array of several coordinates, or a tuple of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

#: "single": one array (n,); "stacked": one array (k, n); "tuple": k arrays (n,).
Structure = Literal["single", "stacked", "tuple"]

CoordT = TypeVar("CoordT")


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
