"""Fits of many series whose rows come in frames: a few rows of all series at a time.

The rows of all series do not fit in memory, and each frame is read several times. One reading gives
the sums of all series at their trials (:mod:`nlsq_dask.kernels.frame_sums`), and each series takes
one step (:mod:`nlsq_dask.core.lane_step`), as where its rows are in memory. What is held does not
grow with the number of rows.

1. A few rows of each series, spread over the frames, are fitted in memory. The fit of all rows
   starts at this answer.
2. Up to MOST_EVALUATIONS readings follow, until all series have ended.
3. The rows of series without a success are gathered and fitted in memory, from their own starts;
   so are those of series with few digits in some pivot. Where the rows of all series that are left
   fit in memory, they are gathered in the reading before.

What becomes of a series follows from its own rows alone, and its sums add row after row: it has the
same answer in any frames, next to any other series, and with any memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.lane_answer import SeriesAnswers, answers_of
from nlsq_dask.core.lane_certify import doubtful
from nlsq_dask.core.lane_step import RUNNING, LaneOptions, LaneState, LaneSums, next_state
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.series_memory import PILOT_ROWS
from nlsq_dask.engines.frame_rows import Frames, IntArray, Tables, Varying, WholeSeries
from nlsq_dask.engines.frame_totals import CALL_ROWS, RowCounts, SlabSums
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_block import SeriesBlock
from nlsq_dask.kernels.lanes import TileShape, fresh_states, state_rows, unpacked_state

# Evaluations of all rows before the rows of a series are gathered. A fit that starts from that of
# the pilot needs three to five.
MOST_EVALUATIONS = 6

# Distance from the optimum, in standard errors of the pilot's few rows, at which its fits end.
PILOT_TOL = 1e-2

# Damping of the first step from the pilot's answer: nearly a Gauss-Newton step.
PILOT_DAMPING = 1e-6

# Series whose steps are computed together: their temporary arrays are some 50 MB.
STEP_SERIES = 1 << 16

# Seed of the places of the pilot's rows.
PLACES_SEED = 20261

# Statuses that follow from the rows alone.
FROM_ROWS = (Status.TOO_FEW_ROWS, Status.BAD_INPUT)


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

    Rows at equal distances would turn an oscillation into that of another frequency.
    """
    if n_rows <= PILOT_ROWS:
        return np.arange(n_rows)
    edges = np.arange(PILOT_ROWS + 1) * n_rows // PILOT_ROWS
    found: IntArray = np.random.default_rng(PLACES_SEED).integers(edges[:-1], edges[1:])
    return found


@dataclass
class FrameFit:
    """The fits of the n series of a block; see :func:`fit_frames`."""

    problem: SeriesProblem
    frames: Frames
    n_series: int
    room: float
    size: int = field(init=False)
    n_rows: int = field(init=False)
    varying: Varying = field(init=False)
    states: FloatArray = field(init=False)
    constants: FloatArray = field(init=False)
    starts: FloatArray = field(init=False)
    whole: WholeSeries | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.size = len(self.problem.reduction.names)
        self.n_rows = sum(map(len, self.frames.rows))
        self.varying = Varying.of(self.problem)

    def fitted(self) -> FloatArray:
        """The packed answer (k, n)."""
        block = self._start()
        for number in range(MOST_EVALUATIONS):
            # The rows of all series are counted.
            running = np.flatnonzero((self.states[-1] == RUNNING) | (number == 0))
            if not running.size:
                break
            self._evaluate(block, running, is_first=number == 0)
        self.states[-1][self.states[-1] == RUNNING] = Status.MAX_EVALUATIONS
        answers = answers_of(self._state(), block.lanes(self.constants), self.starts)
        packed = block.packed(answers, self.constants)
        for series in self._parts(np.flatnonzero(self._left(block, answers))):
            packed[:, series] = self._in_memory(series)
        return packed

    def _state(self) -> LaneState:
        return unpacked_state(self.states, self.size)

    def _start(self) -> SeriesBlock:
        """Fit the pilot, and start the fits of all rows at its answers.

        Returns a block of what does not vary along the rows.
        """
        wanted = pilot_rows(self.n_rows)
        inside = [np.flatnonzero(np.isin(own, wanted)) for own in self.frames.rows]
        chosen = [i for i, own in enumerate(inside) if own.size]
        frames = zip(chosen, self.frames.read(chosen), strict=True)
        parts = [self.varying.part(self._tables(arrays), inside[i]) for i, arrays in frames]
        problem = replace(self.problem, stat_tol=max(PILOT_TOL, self.problem.stat_tol))
        pilot = self._block(problem, self.varying.joined(parts), len(wanted), self.n_series)
        answers, self.constants, self.starts = pilot.searched()
        bad, ended = answers.status == Status.BAD_INPUT, answers.status > 0
        start = np.where(ended, answers.params, self.starts)
        self.states = fresh_states(start, ~bad, np.where(bad, float(Status.BAD_INPUT), 0.0))
        damping = self._state().damping
        damping[...] = np.where(ended, PILOT_DAMPING, damping)
        fixed = {key: t for key, t in pilot.tables.items() if not self.varying.along[key]}
        return self._block(self.problem, fixed, 1, self.n_series)

    def _block(self, problem: SeriesProblem, tables: Tables, n_rows: int, n: int) -> SeriesBlock:
        shape = TileShape.of(problem.model(n_rows))
        return SeriesBlock(problem, tables, n_rows, n, (n,), shape)

    def _tables(self, arrays: Sequence[NDArray[Any]]) -> Tables:
        return SeriesBlock.of(self.problem, arrays).tables

    def _evaluate(self, block: SeriesBlock, running: IntArray, *, is_first: bool) -> None:
        """One evaluation of all rows of the series that run, and a step of each."""
        trials = self.states[state_rows(self.size)[1]][:, running]
        counts = RowCounts.none(running.size) if is_first else None
        sums = SlabSums(self.problem, trials, self.constants[:, running], counts)
        if self.whole is not None and self.whole.holds(running):
            source: Iterable[Tables] = [self.whole.of(running, self.varying)]
        else:
            source = self._read(running, None if is_first else np.flatnonzero(self._left(block)))
        for tables in self.varying.slabs(source, CALL_ROWS):
            sums.add(tables)
        if counts is not None:
            self._note(block, running, counts)
        found = sums.found()
        for begin in range(0, running.size, STEP_SERIES):
            part = slice(begin, begin + STEP_SERIES)
            self._step(block, running[part], _part_of(found, part))

    def _note(self, block: SeriesBlock, running: IntArray, counts: RowCounts) -> None:
        """Keep what the first reading counted."""
        self.constants[block.where.n_points, running] = counts.n_points
        self.constants[block.where.square, running] = counts.square
        status = self.states[-1]
        status[running[counts.n_points < self.size]] = Status.TOO_FEW_ROWS
        status[running[counts.bad]] = Status.BAD_INPUT

    def _step(self, block: SeriesBlock, series: IntArray, sums: LaneSums) -> None:
        """Judge the trials of some series by their sums, and choose the next ones."""
        packed = self.states[:, series]
        lanes = block.lanes(self.constants[:, series])
        options = LaneOptions(self.problem.stat_tol, self.problem.max_nfev, self.problem.eps)
        after = next_state(np, unpacked_state(packed, self.size), sums, lanes, options)
        found = np.empty_like(packed)
        for rows, values in zip(state_rows(self.size), after, strict=True):
            found[rows] = np.asarray(values)
        self.states[:, series] = found

    def _left(self, block: SeriesBlock, answers: SeriesAnswers | None = None) -> NDArray[np.bool_]:
        """Flags (n,) of series without a success so far, or with few digits in some pivot."""
        status = self.states[-1] if answers is None else answers.status
        lanes, state = block.lanes(self.constants), self._state()
        few = doubtful(state, np.asarray(lanes.lower), np.asarray(lanes.upper))
        without = (status <= 0) | (status >= RUNNING)
        left: NDArray[np.bool_] = (without & ~np.isin(status, FROM_ROWS)) | few
        return left

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
        """Most series whose rows are gathered at one time: as read, and as a fit takes them."""
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


def _part_of(sums: LaneSums, part: slice) -> LaneSums:
    """The sums of some series, each a tuple of arrays."""
    gram, gradient = ([row[part] for row in rows] for rows in (sums.gram, sums.gradient))
    return LaneSums(gram, gradient, sums.chi2[part])
