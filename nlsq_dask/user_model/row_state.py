"""What is known of how an array depends on the rows of a model's inputs.

SAME      the same at every row; an axis of the rows' number repeats one value
ROW       slice i along one axis is a function of row i alone
ELEMENT   inside a loop over rows: a function of the current row alone
POSITION  slice i along one axis depends on i, as an index does
UNSURE    not known; trials with numbers have to decide
COUPLED   a value depends on several rows, or on the number or the position of rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """How an array depends on rows."""

    SAME = 0
    ROW = 1
    ELEMENT = 2
    POSITION = 3
    UNSURE = 4
    COUPLED = 5


@dataclass(frozen=True)
class State:
    """What is known of one array; ``axis`` is that of the rows for ROW and POSITION."""

    kind: Kind
    axis: int | None = None
    reason: str = ""

    def at(self, axis: int | None) -> State:
        """The same dependence along another axis."""
        return State(self.kind, axis, self.reason)

    @property
    def has_axis(self) -> bool:
        """Whether an axis of the array carries rows."""
        return self.kind in (Kind.ROW, Kind.POSITION)


SAME = State(Kind.SAME)
ELEMENT = State(Kind.ELEMENT)


def row(axis: int) -> State:
    """State of an array whose slices along an axis belong to the rows."""
    return State(Kind.ROW, axis)


def position(axis: int) -> State:
    """State of an array that counts rows along an axis."""
    return State(Kind.POSITION, axis)


def unsure(reason: str) -> State:
    """State of an array that numbers have to decide about."""
    return State(Kind.UNSURE, None, reason)


def coupled(reason: str) -> State:
    """State of an array that mixes rows."""
    return State(Kind.COUPLED, None, reason)


def join(states: Sequence[State]) -> State:
    """State of an array whose elements are made of elements of others at the same place."""
    worst = max(states, key=lambda state: state.kind, default=SAME)
    if worst.kind >= Kind.UNSURE:
        return worst
    kinds = {state.kind for state in states}
    axes = {state.axis for state in states if state.has_axis}
    if len(axes) > 1 or (axes and Kind.ELEMENT in kinds):
        return coupled("combines each row with all rows")
    return worst
