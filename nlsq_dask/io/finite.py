"""Values that make a sum of squares infinite or NaN: NaN, infinities, and sigma of zero or less.

An infinite sigma is refused as well: its row would have no weight, but would count as a row.

The search for such values reads the data. It runs only after a sum was not finite, so good data are
not read for it. Rows that are left out do not count. The findings of blocks add, as sums do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import Block


@dataclass(frozen=True, slots=True)
class Place:
    """Position of a row.

    Attributes
    ----------
    index : tuple of int
        Index of the row in ``y``.
    block : tuple of int or None
        Index of the block; None if the data have no chunks.
    box : tuple of slice
        Part of ``y`` that the block holds.
    """

    index: tuple[int, ...]
    block: tuple[int, ...] | None
    box: Box

    def __str__(self) -> str:
        if self.block is None:
            return f"at index {self.index}"
        slices = ", ".join(f"{s.start}:{s.stop}" for s in self.box)
        return f"at index {self.index}, in block {self.block}, which is y[{slices}]"


@dataclass(frozen=True, slots=True)
class Affected:
    """Number of rows with unusable values in one array, the first such row, and its value."""

    count: int = 0
    first: Place | None = None
    value: float = 0.0

    def __add__(self, other: Affected) -> Affected:
        leading = self if self.count else other
        return Affected(self.count + other.count, leading.first, leading.value)


@dataclass(frozen=True, slots=True)
class Findings:
    """Unusable values in some rows.

    Attributes
    ----------
    not_finite : tuple of Affected
        NaN and infinities in y, in each coordinate, and in sigma if there is one.
    no_deviation : Affected
        Values of sigma that are not positive and finite; NaN counts.
    n_affected, n_nan : int
        Rows with NaN or infinities in some array, and rows with NaN in some array.
    """

    not_finite: tuple[Affected, ...]
    no_deviation: Affected
    n_affected: int
    n_nan: int

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            tuple(map(add, self.not_finite, other.not_finite)),
            self.no_deviation + other.no_deviation,
            self.n_affected + other.n_affected,
            self.n_nan + other.n_nan,
        )

    def error(self, names: Iterable[str], marks: Iterable[str]) -> _errors.InputError | None:
        """The error that names the first array; None if all values can be used.

        `marks` holds, for each array, the attributes that make NaN of stored numbers, or "".
        """
        for name, mark, found in zip(names, marks, self.not_finite, strict=True):
            if found.count:
                place = f", the first {found.first}"
                return _errors.not_finite(
                    name, found.count, place, self.n_affected, self.n_nan, mark
                )
        found = self.no_deviation
        if found.count:
            place = f", the first {found.first}"
            return _errors.sigma_no_deviation(found.count, found.value, place)
        return None


def is_deviation(sigma: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which values can be standard deviations: positive and finite ones."""
    return np.asarray(np.greater(sigma, 0) & np.isfinite(sigma))


def scan_in_memory(data: Observations) -> Findings:
    """Search all rows of data in memory."""
    return reduce(add, (scan(block, None, box) for box, block in data.pieces()))


def scan(block: Block, index: tuple[int, ...] | None, box: Box) -> Findings:
    """Search the rows of a block that are not left out."""
    shape = block.y.shape
    counts = np.broadcast_to(True, shape)
    if block.selects:
        counts = ~block.left_out()
    affected, with_nan = np.zeros((2, *shape), np.bool_)

    def locate(bad: NDArray[np.bool_], array: NDArray[np.generic]) -> Affected:
        return affected_rows(bad & counts, array, index, box)

    not_finite = []
    for array in block.arrays:
        bad = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros_like(array, np.bool_)
        not_finite.append(locate(bad, array))
        if not_finite[-1].count:
            np.logical_or(affected, bad, out=affected, where=counts)
            np.logical_or(with_nan, np.isnan(array), out=with_nan, where=counts)
    no_deviation = Affected()
    if block.sigma is not None:
        no_deviation = locate(~is_deviation(block.sigma), block.sigma)
    n_affected, n_nan = (int(np.count_nonzero(flags)) for flags in (affected, with_nan))
    return Findings(tuple(not_finite), no_deviation, n_affected, n_nan)


def affected_rows(
    rows: NDArray[np.bool_],
    array: NDArray[np.generic],
    index: tuple[int, ...] | None,
    box: Box,
) -> Affected:
    """Number of flagged rows of a block, the first of them, and the value of the array there."""
    count = int(np.count_nonzero(rows))
    if not count:
        return Affected()
    first = np.unravel_index(int(np.argmax(rows)), rows.shape)
    place = tuple(int(i) + s.start for i, s in zip(first, box, strict=True))
    return Affected(
        count, Place(place, index, box), float(np.broadcast_to(array, rows.shape)[first])
    )
