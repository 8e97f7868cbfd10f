"""One axis of images: edges of the pixels in the numbers of a coordinate, or in indices."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.frame import Frame, Label

if TYPE_CHECKING:
    from matplotlib.axis import Axis as Side

# Largest ratio of the lengths of two axes of one kind that are drawn to the same scale.
MOST_RATIO = 3.0

# Kinds of an axis without the numbers of a coordinate, and of one with dates.
INDEX, DATE = "index", "date"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the images.

    Attributes
    ----------
    edges : ndarray, shape (n + 1,), float64
        Edges of the pixels.
    values : ndarray, float64
        The coordinate of each row; days since 1970 of dates, as matplotlib counts.
    title : str
    kind : str
        What the axis counts or measures: its unit, or else its name, `INDEX` or `DATE`.
    """

    edges: FloatArray
    values: FloatArray
    title: str
    kind: str

    @classmethod
    def of(
        cls,
        name: Hashable,
        n: int,
        found: tuple[Label, FloatArray] | None,
        pixels: int | None = None,
    ) -> Axis:
        """An axis in the numbers of its coordinate, if it has a monotone one, else in indices.

        Parameters
        ----------
        name : hashable
            Name of the dimension, or its number.
        n : int
            Number of rows along the dimension.
        found : tuple of Label and ndarray, optional
            The coordinate.
        pixels : int, optional
            Number of pixels; by default one for each row.
        """
        number = isinstance(name, int)
        title = f"index of dimension {name}" if number else f"index of {name}"
        kind, values = INDEX, np.arange(n, dtype=np.float64)
        if found is not None:
            label, numbers = found
            steps = np.diff(numbers)
            if numbers.shape == (n,) and (np.all(steps > 0) or np.all(steps < 0)):
                kind, values = label.unit or label.name, numbers
                title = label.name if kind == DATE else label.title(label.name)
        ends = np.concatenate([values[:1], 0.5 * (values[1:] + values[:-1]), values[-1:]])
        if n > 1:  # the outer half of the first and the last row
            ends[0] -= ends[1] - values[0]
            ends[-1] += values[-1] - ends[-2]
        else:
            ends += np.array([-0.5, 0.5])
        if pixels is None:
            return cls(ends, values, title, kind)
        # A row i is in pixel i * pixels // n: see `Images`.
        first = -(-np.arange(pixels + 1) * n // pixels)
        return cls(ends[first], values, title, kind)

    def describe(self, side: Side, size: str = "medium") -> None:
        """Write the title beside a side of a picture; an axis of dates has dates."""
        side.set_label_text(self.title, fontsize=size)
        if self.kind == DATE:
            from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

            locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
            side.set_major_locator(locator)
            side.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def coordinate_of(frame: Frame | None, dim: Hashable) -> tuple[Label, FloatArray] | None:
    """The coordinate of a dimension of labelled data, if it is one of numbers or dates."""
    if frame is None or dim not in frame.coords:
        return None
    coordinate = frame.coords[dim]
    label = Label.of(coordinate)
    label = replace(label, name=label.name or str(dim))
    if coordinate.dtype.kind == "M":
        days = (coordinate.values - np.datetime64(0, "D")) / np.timedelta64(1, "D")
        return replace(label, unit=DATE), days.astype(np.float64)
    if coordinate.dtype.kind not in "fiu":
        return None
    return label, np.asarray(coordinate.values, np.float64)


def date_of(days: float) -> np.datetime64:
    """The date of a number of days since 1970, to the second."""
    return np.datetime64(0, "s") + np.timedelta64(round(days * 86400), "s")


def same_scale(across: Axis, down: Axis) -> bool:
    """Whether both axes are of one kind, and not much longer than each other."""
    lengths = [float(np.ptp(axis.edges)) for axis in (across, down)]
    return across.kind == down.kind and max(lengths) <= MOST_RATIO * min(lengths)
