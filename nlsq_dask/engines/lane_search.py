"""The searches of many series, tile by tile.

Series are put into tiles of one shape, in their order. When few lanes of a tile still run, these
lanes go to a pool, with their rows and the state of their searches. The pool is then fitted tile by
tile in the same way. Without the pool, each tile would take as many evaluations as its slowest
series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.lane_certify import basis_of, doubtful
from nlsq_dask.core.lane_step import NO_SLOPE, RUNNING
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.reused_memory import memory_of_thread
from nlsq_dask.kernels.lanes import (
    ConstantRows,
    LaneData,
    LaneKernel,
    TileShape,
    fresh_states,
    state_rows,
    unpacked_state,
)

# A tile is left when less than this part of its lanes run. A part of 0.1 to 0.2 is equally fast.
LEFT = 0.15


class Columns(NamedTuple):
    """Series with the states of their searches; n series, one a row of each table.

    Attributes
    ----------
    number : ndarray, shape (n,)
        Which series of the block each one is.
    tables : tuple of ndarray, each (n, ...)
        States, observations and constants; then the coordinates and the weights that vary from
        series to series.
    """

    number: NDArray[np.int64]
    tables: tuple[FloatArray, ...]

    def part(self, chosen: slice) -> Columns:
        """Some of the series."""
        return Columns(self.number[chosen], tuple(t[chosen] for t in self.tables))

    @classmethod
    def joined(cls, parts: list[Columns]) -> Columns:
        """The series of all parts."""
        if len(parts) == 1:
            return parts[0]
        tables = zip(*(part.tables for part in parts), strict=True)
        number = np.concatenate([part.number for part in parts])
        return cls(number, tuple(np.concatenate(own) for own in tables))


class InBasis(NamedTuple):
    """Series that were fitted again in a basis.

    Attributes
    ----------
    number : ndarray, shape (n,)
        Which series of the block each one is.
    state : ndarray, shape (s, n)
        Packed states in the coordinates of the basis, where the searches ended.
    constants : ndarray, shape (c, n)
        With origin and basis.
    """

    number: NDArray[np.int64]
    state: FloatArray
    constants: FloatArray


@dataclass
class LaneSearch:
    """Fits batches of tiles with one compiled program.

    Parameters
    ----------
    kernel_of : callable
        ``kernel_of(differenced=..., based=...)`` makes the program, see LaneModel.
    shape : TileShape
    stat_tol : float
    max_nfev : int
    finals : ndarray, shape (s, n), float64
        Packed states of the series where their searches ended, to be filled.
    where : ConstantRows
    size : int
        Number of free parameters.
    """

    kernel_of: Callable[..., LaneKernel]
    shape: TileShape
    stat_tol: float
    max_nfev: int
    finals: FloatArray
    where: ConstantRows
    size: int
    again: list[InBasis] = field(default_factory=list)
    _pool: list[Columns] = field(default_factory=list)
    _without_slope: list[Columns] = field(default_factory=list)
    _doubtful: list[Columns] = field(default_factory=list)
    _phase: Literal["all", "differenced", "based"] = "all"
    _kernel: LaneKernel | None = None
    _shared: LaneData | None = None

    @property
    def batch(self) -> int:
        """Series of one call."""
        return self.shape.tiles * self.shape.lanes

    def run(self, batches: Iterator[tuple[NDArray[np.int64], FloatArray, LaneData]]) -> None:
        """Fit all batches: the numbers (n,) of the series, states and data of tiles."""
        for number, states, data in batches:
            # The lanes of a single tile would meet again in one tile of the pool.
            is_single = number.size == self.shape.lanes
            self._advance(number, states, data, 0 if is_single else int(LEFT * self.shape.lanes))
            while self._pooled() >= self.batch:
                self._advance_pool(int(LEFT * self.shape.lanes))
        while self._pooled():
            self._advance_pool(0)
        if self._without_slope:
            columns = Columns.joined(self._without_slope)
            start = columns.tables[0][:, state_rows(self.size)[0]]
            self._run_again("differenced", self._fresh(columns, start.T))
        if self._doubtful:
            self._run_again("based", self._in_bases(Columns.joined(self._doubtful)))

    def _run_again(self, phase: Literal["differenced", "based"], columns: Columns) -> None:
        """Fit some series once more, by another program."""
        self._phase, self._pool, self._kernel = phase, [columns], None
        while self._pooled():
            self._advance_pool(0)

    def _fresh(self, columns: Columns, start: FloatArray) -> Columns:
        """The series at their starts (q, n)."""
        n = len(columns.number)
        fresh = fresh_states(start, np.ones(n, np.bool_), np.zeros(n))
        return Columns(columns.number, (np.ascontiguousarray(fresh.T), *columns.tables[1:]))

    def _in_bases(self, columns: Columns) -> Columns:
        """The series in coordinates along a basis, with the basis among the constants."""
        states, y, constants, *rest = columns.tables
        state = unpacked_state(states.T, self.size)
        basis, params = basis_of(state), np.asarray(state.params)
        unbounded = constants.copy()
        unbounded[:, self.where.lower], unbounded[:, self.where.upper] = -np.inf, np.inf
        wider = np.concatenate([unbounded, params.T, basis.T], axis=1)
        origin = np.zeros_like(params)
        return self._fresh(Columns(columns.number, (states, y, wider, *rest)), origin)

    def _pooled(self) -> int:
        return sum(len(part.number) for part in self._pool)

    def _advance(
        self, number: NDArray[np.int64], states: FloatArray, data: LaneData, least: int
    ) -> None:
        """Run tiles until few lanes run. Lanes that are done are final, the others go to the pool.

        `number` (T L,) is -1 for lanes of the first T tiles without a series; the other tiles have
        none.
        """
        if self._kernel is None:
            made = {"differenced": self._phase == "differenced", "based": self._phase == "based"}
            self._kernel = self.kernel_of(**made)
        tiles = number.size // self.shape.lanes
        found = self._kernel(states, data, self.stat_tol, self.max_nfev, least, tiles)
        flat, constants = _lanes_of(found, tiles), _lanes_of(data.constants, tiles)
        status = flat[-1]  # the last field of a state
        done = (number >= 0) & (status != RUNNING)
        if self._phase == "based":
            self.again.append(InBasis(number[done], flat[:, done], constants[:, done]))
        else:
            self._finish(number, flat, done)
        if self._phase == "all":
            self._set_aside(number, flat, data, constants, done)
        rest = np.flatnonzero((number >= 0) & ~done)
        if rest.size:
            self._pool.append(self._columns(number, flat, data, rest))
        self._shared = data

    def _finish(self, number: NDArray[np.int64], flat: FloatArray, done: NDArray[np.bool_]) -> None:
        """Keep the states of the series that are done."""
        n = int(np.count_nonzero(number >= 0))
        neighbours = slice(int(number[0]), int(number[0]) + n)
        if np.array_equal(number[:n], np.arange(neighbours.start, neighbours.stop)):
            # Those that still run are overwritten when they are done, too.
            self.finals[:, neighbours] = flat[:, :n]
            return
        ended = number[done]
        for own, values in zip(self.finals, flat, strict=True):
            own[ended] = values[done]

    def _set_aside(
        self,
        number: NDArray[np.int64],
        flat: FloatArray,
        data: LaneData,
        constants: FloatArray,
        done: NDArray[np.bool_],
    ) -> None:
        """Keep the rows of series that are fitted again by another program."""
        lost = np.flatnonzero(done & (flat[-1] == NO_SLOPE))
        if lost.size:
            self._without_slope.append(self._columns(number, flat, data, lost))
        state = unpacked_state(flat, self.size)
        flags = done & doubtful(state, constants[self.where.lower], constants[self.where.upper])
        if flags.any():
            self._doubtful.append(self._columns(number, flat, data, np.flatnonzero(flags)))

    def _columns(
        self, number: NDArray[np.int64], flat: FloatArray, data: LaneData, rest: NDArray[np.int64]
    ) -> Columns:
        tile, lane = np.divmod(rest, self.shape.lanes)

        def taken(array: FloatArray) -> FloatArray:
            return np.asarray(array[tile, :, lane])  # (n, rows)

        own = [c for c in data.coords if c.ndim == 3]
        if data.weights is not None and data.weights.ndim == 3:
            own.append(data.weights)
        tables = (taken(data.y), taken(data.constants), *map(taken, own))
        return Columns(number[rest], (np.ascontiguousarray(flat[:, rest].T), *tables))

    def _advance_pool(self, least: int) -> None:
        """Run one batch of the pool."""
        columns = Columns.joined(self._pool)
        n = min(len(columns.number), self.batch)
        self._pool = [columns.part(slice(n, None))] if n < len(columns.number) else []
        first = columns.part(slice(0, n))
        number = np.full(-(-n // self.shape.lanes) * self.shape.lanes, -1, np.int64)
        number[:n] = first.number
        assert self._shared is not None
        states, y, constants, *rest = first.tables
        own = map(self._tiles, rest)
        coords = tuple(next(own) if c.ndim == 3 else c for c in self._shared.coords)
        weights = next(own, self._shared.weights)
        data = LaneData(self._tiles(y), coords, weights, self._tiles(constants))
        self._advance(number, self._tiles(states, 0.0), data, least)

    def _tiles(self, columns: FloatArray, fill: float | None = None) -> FloatArray:
        """Tiles (B, rows, L) of series (n, rows); empty lanes repeat the last series.

        An empty lane then has the coordinates of a series: a model may loop until all lanes have
        converged.
        """
        width = -(-len(columns) // self.shape.lanes) * self.shape.lanes
        full = np.empty((width, columns.shape[1]))
        full[: len(columns)] = columns
        full[len(columns) :] = columns[-1] if fill is None else fill
        return to_tiles(full.T, self.shape)


def to_tiles(rows: FloatArray, shape: TileShape) -> FloatArray:
    """Tiles (B, rows, L) of rows (rows, T L), in aligned memory; the other tiles hold zeros.

    JAX uses aligned memory without a copy.
    """
    used = rows.shape[1] // shape.lanes
    whole = (shape.tiles, len(rows), shape.lanes)
    tiles = memory_of_thread().empty(whole, np.dtype(np.float64))
    tiles[:used] = rows.reshape(len(rows), used, shape.lanes).transpose(1, 0, 2)
    tiles[used:] = 0.0
    return tiles


def _lanes_of(tiles: FloatArray, used: int) -> FloatArray:
    """Rows (rows, T L) of the first T of tiles (B, rows, L)."""
    rows = tiles.shape[1]
    whole = memory_of_thread().empty((rows, used, tiles.shape[2]), tiles.dtype)
    whole[...] = np.moveaxis(tiles[:used], 1, 0)
    return whole.reshape(rows, -1)
