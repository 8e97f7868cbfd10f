"""Fits of many series whose rows come in frames: a few rows of all series at a time.

The rows of all series do not fit in memory, and each frame is read several times. One reading gives
the sums of all series at their trials (:mod:`nlsq_dask.kernels.frame_sums`), and each series takes
one step (:mod:`nlsq_dask.core.lane_step`), as where its rows are in memory. The memory does not
grow with the number of rows.

1. A few rows of each series, spread over the frames, are fitted in memory. The fit of all rows
   starts at this answer.
2. Up to MOST_EVALUATIONS readings follow, until all series have ended.
3. If a series has no success, or few digits in some pivot, its rows are gathered and fitted in
   memory, from its own start. If the rows of all these series fit in memory, they are gathered in
   the last reading of step 2.

The answer of a series follows from its own rows alone, and its sums add row after row. So the
series has the same answer in any frames, next to any other series, and with any memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.lane_answer import answers_of
from nlsq_dask.core.lane_certify import doubtful
from nlsq_dask.core.lane_step import (
    RUNNING,
    LaneOptions,
    Lanes,
    LaneState,
    LaneSums,
    next_state,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.series_memory import PILOT_ROWS
from nlsq_dask.engines.frame_rows import Frames, IntArray, Tables, Varying, WholeSeries
from nlsq_dask.engines.frame_totals import SLAB_ROWS, RowCounts, SlabSums
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_block import FROM_ROWS, SeriesBlock
from nlsq_dask.kernels.lanes import (
    TileShape,
    fresh_states,
    n_state_rows,
    state_rows,
    unpacked_state,
)

# Evaluations of all rows before the rows of a series are gathered. A fit that starts at the pilot's
# answer needs three to five.
MOST_EVALUATIONS = 6

# Fits of the pilot end at this distance from the optimum, in standard errors of the pilot's few
# rows.
PILOT_TOL = 1e-2

# Damping of the first step from the pilot's answer: nearly a Gauss-Newton step.
PILOT_DAMPING = 1e-6

# Series whose pilots and answers are computed together: their temporary arrays are some 10 MB.
SOME_SERIES = 1 << 14

# Seed of the places of the pilot's rows.
PLACES_SEED = 20261


def fit_frames(
    problem: SeriesProblem, frames: Frames, map_shape: tuple[int, ...], room: float
) -> FloatArray:
    """Fit all series of a block whose rows come in frames.

    Parameters
    ----------
    problem : SeriesProblem
        Of a row-wise model.
    frames : Frames
    map_shape : tuple of int
        Lengths of the block along the axes of the map.
    room : float
        Bytes for the rows of series that are gathered.

    Returns
    -------
    ndarray, shape (k, ...), float64
        The packed answer, with the axes of the map.
    """
    # Series of any size and any values are fitted: what overflows shows in their status.
    with np.errstate(all="ignore"):
        found = FrameFit(problem, frames, math.prod(map_shape), room).fitted()
    return found.reshape(problem.n_planes, *map_shape)


def pilot_rows(n_rows: int) -> IntArray:
    """Numbers of the rows of the pilot, ascending: a random row of each part of the series.

    In rows at equal distances an oscillation may look like a slower oscillation.
    """
    if n_rows <= PILOT_ROWS:
        return np.arange(n_rows)
    edges = np.arange(PILOT_ROWS + 1) * n_rows // PILOT_ROWS
    found: IntArray = np.random.default_rng(PLACES_SEED).integers(edges[:-1], edges[1:])
    return found


@dataclass
class FrameFit:
    """The fits of the n series of a block; see :func:`fit_frames`.

    From one reading to the next, a series has the state of its search, the number of its rows, the
    sum of their squares, and the scale of its units. All else follows from the arguments, and is
    made for some series at a time. So is the answer.
    """

    problem: SeriesProblem
    frames: Frames
    n_series: int
    room: float
    size: int = field(init=False)
    n_rows: int = field(init=False)
    varying: Varying = field(init=False)
    states: FloatArray = field(init=False)
    counted: RowCounts = field(init=False)
    scale: FloatArray = field(init=False)
    guesses: FloatArray | None = field(init=False, default=None)
    tables: Tables = field(init=False)
    whole: WholeSeries | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.size = len(self.problem.reduction.names)
        self.n_rows = sum(map(len, self.frames.rows))
        self.varying = Varying.of(self.problem)
        n = self.n_series
        self.states = np.empty((n_state_rows(self.size), n))
        self.counted, self.scale = RowCounts.none(n), np.empty(n)
        if self.problem.guess is not None:
            self.guesses = np.empty((self.size, n))

    def fitted(self) -> FloatArray:
        """The packed answer (k, n)."""
        self._start()
        for number in range(MOST_EVALUATIONS):
            # The rows of all series are counted.
            running = np.flatnonzero((self.states[-1] == RUNNING) | (number == 0))
            if not running.size:
                break
            self._evaluate(running, is_first=number == 0)
        self.states[-1][self.states[-1] == RUNNING] = Status.MAX_EVALUATIONS
        packed = np.empty((self.problem.n_planes, self.n_series))
        left = np.zeros(self.n_series, np.bool_)
        for part in self._slices():
            packed[:, part], left[part] = self._answered(part)
        for series in self._parts(np.flatnonzero(left)):
            packed[:, series] = self._in_memory(series)
        return packed

    def _slices(self) -> Iterator[slice]:
        """All series, some at a time."""
        for begin in range(0, self.n_series, SOME_SERIES):
            yield slice(begin, min(begin + SOME_SERIES, self.n_series))

    def _start(self) -> None:
        """Fit the pilot, and start the fits of all rows at its answers."""
        wanted = pilot_rows(self.n_rows)
        inside = [np.flatnonzero(np.isin(own, wanted)) for own in self.frames.rows]
        chosen = [i for i, own in enumerate(inside) if own.size]
        frames = zip(chosen, self.frames.read(chosen), strict=True)
        rows = [self.varying.part(self._tables(arrays), inside[i]) for i, arrays in frames]
        self.tables = {key: t for key, t in rows[0].items() if not self.varying.along[key]}
        for part in self._slices():
            own = self.varying.joined([self.varying.series(tables, part) for tables in rows])
            self._start_at(part, own, len(wanted))

    def _start_at(self, part: slice, tables: Tables, n_rows: int) -> None:
        """Start the fits of some series at the answers of their pilot."""
        problem = replace(self.problem, stat_tol=max(PILOT_TOL, self.problem.stat_tol))
        pilot = self._block(problem, tables, n_rows, part.stop - part.start)
        answers, constants, starts = pilot.searched()
        for pair in pilot.exchanges():
            other, _, _ = replace(pilot, exchanged=pair).searched()
            answers = answers.replaced(other, other.chi2_of_success < answers.chi2_of_success)
        bad, ended = answers.status == Status.BAD_INPUT, answers.status > 0
        start = np.where(ended, answers.params, starts)
        states = fresh_states(start, ~bad, np.where(bad, float(Status.BAD_INPUT), 0.0))
        damping = unpacked_state(states, self.size).damping
        damping[...] = np.where(ended, PILOT_DAMPING, damping)
        self.states[:, part] = states
        self.scale[part] = constants[pilot.where.scale]
        if self.guesses is not None:
            self.guesses[:, part] = starts

    def _block(self, problem: SeriesProblem, tables: Tables, n_rows: int, n: int) -> SeriesBlock:
        shape = TileShape.of(problem.model(n_rows))
        return SeriesBlock(problem, tables, n_rows, n, (n,), shape)

    def _tables(self, arrays: Sequence[NDArray[Any]]) -> Tables:
        return SeriesBlock.of(self.problem, arrays).tables

    def _some(self, series: IntArray | slice) -> Some:
        """What stays the same in the fits of some series."""
        scale, counted = self.scale[series], self.counted
        n = len(scale)
        block = self._block(self.problem, self.varying.series(self.tables, series), 1, n)
        offset, low, high, _ = block.free_limits(slice(0, n), n)
        constants = np.empty((block.where.height(based=False), n))
        constants[block.where.offset] = offset
        constants[block.where.lower], constants[block.where.upper] = low, high
        constants[block.where.n_points] = counted.n_points[series]
        constants[block.where.square] = counted.square[series]
        constants[block.where.scale] = scale
        constants[block.where.variance] = block.variance(slice(0, n), scale)
        return Some(block, constants, block.lanes(constants))

    def _evaluate(self, running: IntArray, *, is_first: bool) -> None:
        """One evaluation of all rows of the series that run, and a step of each."""
        trials = self.states[state_rows(self.size)[1]]
        scale = self.scale
        if running.size < self.n_series:
            trials, scale = trials[:, running], scale[running]
        counts = self.counted if is_first else None
        sums = SlabSums(self.problem, trials, self._offsets(running), scale, counts)
        if self.whole is not None and self.whole.holds(running):
            source: Iterable[Tables] = [self.whole.of(running, self.varying)]
        else:
            source = self._read(running, None if is_first else self._left())
        for tables in self.varying.slabs(source, SLAB_ROWS):
            sums.add(tables)
        if is_first:
            self._note()
        for part, found in sums.found():
            self._step(running[part], found)

    def _offsets(self, series: IntArray) -> FloatArray:
        """Offsets (p, n) of the parameters of some series; (p, 1) if they are the same for all."""
        fixed = {key: t for key, t in self.tables.items() if key[0] == "fixed"}
        block = self._block(self.problem, self.varying.series(fixed, series), 1, series.size)
        return block.offsets(slice(0, series.size), series.size if fixed else 1)

    def _note(self) -> None:
        """Keep what the first reading tells of the rows."""
        status = self.states[-1]
        status[self.counted.n_points < self.size] = Status.TOO_FEW_ROWS
        status[self.counted.bad] = Status.BAD_INPUT

    def _step(self, series: IntArray, sums: LaneSums) -> None:
        """Judge the trials of some series by their sums, and choose the next ones."""
        packed = self.states[:, series]
        options = LaneOptions(self.problem.stat_tol, self.problem.max_nfev, self.problem.eps)
        state, lanes = unpacked_state(packed, self.size), self._some(series).lanes
        found = np.empty_like(packed)
        after = next_state(np, state, sums, lanes, options)
        for rows, values in zip(state_rows(self.size), after, strict=True):
            found[rows] = np.asarray(values)
        self.states[:, series] = found

    def _answered(self, part: slice) -> tuple[FloatArray, NDArray[np.bool_]]:
        """The packed answer (k, n) of some series, and flags (n,) of those that are left."""
        some, state = self._some(part), unpacked_state(self.states[:, part], self.size)
        starts = self.guesses
        starts = some.block.starts() if starts is None else starts[:, part]
        answers = answers_of(state, some.lanes, starts)
        left = _without_success(answers.status, state, some.lanes)
        return some.block.packed(answers, some.constants), left

    def _left(self) -> IntArray:
        """Series without a success so far, or with few digits in some pivot."""
        found = []
        for part in self._slices():
            state = unpacked_state(self.states[:, part], self.size)
            flags = _without_success(np.asarray(state.status), state, self._some(part).lanes)
            found.append(part.start + np.flatnonzero(flags))
        return np.concatenate(found)

    def _read(self, running: IntArray, left: IntArray | None) -> Iterator[Tables]:
        """The tables of some series, frame by frame.

        If the rows of those that are left fit in memory, they are gathered meanwhile.
        """
        gathers = left is not None and left.size <= self._most
        kept: list[Tables] = []
        for arrays in self.frames.read(range(len(self.frames.rows))):
            tables = self._tables(arrays)
            if gathers and left is not None:
                kept.append(self.varying.series(tables, left))
            yield tables if running.size == self.n_series else self.varying.series(tables, running)
        if gathers and left is not None:
            self.whole = WholeSeries(left, self.varying.joined(kept))

    @property
    def _most(self) -> int:
        """Most series with rows in memory at one time: rows as they are read, and as fitted."""
        return max(int(self.room // (16 * self.n_rows * self.varying.n_full)), 1)

    def _parts(self, left: IntArray) -> Iterator[IntArray]:
        """Some series, in parts whose rows fit in memory."""
        n = left.size if self.whole is not None and self.whole.holds(left) else self._most
        for begin in range(0, left.size, max(n, 1)):
            yield left[begin : begin + n]

    def _in_memory(self, series: IntArray) -> FloatArray:
        """The packed answer (k, n) of some series, from all their rows in memory."""
        if self.whole is None or not self.whole.holds(series):
            self.whole = None
            for _ in self._read(series[:0], series):
                pass
        assert self.whole is not None
        tables = self.whole.of(series, self.varying)
        return self._block(self.problem, tables, self.n_rows, series.size).fitted()


class Some(NamedTuple):
    """What stays the same in the fits of some series.

    Attributes
    ----------
    block : SeriesBlock
        Of the arrays that do not vary along the rows.
    constants : ndarray, shape (c, n), float64
    lanes : Lanes
    """

    block: SeriesBlock
    constants: FloatArray
    lanes: Lanes


def _without_success(status: NDArray[Any], state: LaneState, lanes: Lanes) -> NDArray[np.bool_]:
    """Flags (n,) of series without a success so far, or with few digits in some pivot."""
    few = doubtful(state, np.asarray(lanes.lower), np.asarray(lanes.upper))
    without = (status <= 0) | (status >= RUNNING)
    left: NDArray[np.bool_] = (without & ~np.isin(status, FROM_ROWS)) | few
    return left
