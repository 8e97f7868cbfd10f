"""Rows of many series that come in frames: tables of frames, parts of them, and whole series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.engines.series import SeriesProblem

IntArray: TypeAlias = NDArray[np.int64]

#: Arrays of a block by kind and index, each (m, n), or with 1 for m or n.
Tables: TypeAlias = Mapping[tuple[str, int], NDArray[Any]]


class Frames(Protocol):
    """A block of series whose rows come in frames."""

    @property
    def rows(self) -> Sequence[IntArray]:
        """Numbers of the rows of each frame."""
        ...

    def read(self, frames: Sequence[int]) -> Iterator[Sequence[NDArray[Any]]]:
        """The arrays of some frames, in ascending order, each with the axes of y."""
        ...


@dataclass(frozen=True)
class Varying:
    """Which tables vary along the rows, and which from series to series."""

    along: Mapping[tuple[str, int], bool]
    varies: Mapping[tuple[str, int], bool]

    @classmethod
    def of(cls, problem: SeriesProblem) -> Varying:
        """The tables of a problem."""
        return cls(
            {role.key: role.along for role in problem.roles},
            {role.key: role.varies for role in problem.roles},
        )

    @property
    def n_full(self) -> int:
        """Number of tables that vary along both."""
        return sum(self.along[key] and self.varies[key] for key in self.along)

    def series(self, tables: Tables, chosen: IntArray | slice) -> Tables:
        """The tables of some series."""
        return {key: t[:, chosen] if self.varies[key] else t for key, t in tables.items()}

    def part(self, tables: Tables, rows: IntArray | slice) -> Tables:
        """Some rows of the tables."""
        return {key: t[rows] if self.along[key] else t for key, t in tables.items()}

    def joined(self, parts: Sequence[Tables]) -> Tables:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        found = {}
        for key, first in parts[0].items():
            own = [part[key] for part in parts]
            join: Any = np.ma.concatenate if any(map(np.ma.isMA, own)) else np.concatenate
            found[key] = join(own) if self.along[key] else first
        return found

    def slabs(self, source: Iterable[Tables], size: int) -> Iterator[Tables]:
        """Tables of so many rows, wherever the frames are cut; the last may be shorter."""
        pending: list[Tables] = []
        n = 0
        for tables in source:
            pending.append(tables)
            n += len(tables["y", 0])
            if n >= size:
                joined, whole = self.joined(pending), n - n % size
                for begin in range(0, whole, size):
                    yield self.part(joined, slice(begin, begin + size))
                pending, n = [self.part(joined, slice(whole, n))] if n > whole else [], n - whole
        if pending:
            yield self.joined(pending)


@dataclass(frozen=True)
class WholeSeries:
    """All rows of some series in memory.

    Attributes
    ----------
    number : ndarray of int64, shape (n,)
        Which series of the block each one is, ascending.
    tables : mapping
    """

    number: IntArray
    tables: Tables

    def holds(self, wanted: IntArray) -> bool:
        """Whether all of some series are here."""
        return bool(np.isin(wanted, self.number, assume_unique=True).all())

    def of(self, wanted: IntArray, varying: Varying) -> Tables:
        """The tables of some of the series."""
        return varying.series(self.tables, np.searchsorted(self.number, wanted))
