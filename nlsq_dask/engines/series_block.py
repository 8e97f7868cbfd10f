"""One fit for each series of a block: arrays of a block in, a packed answer out.

Observations of a block have axes along which the model is fitted, and axes of the map, along which
each element is a series of its own. The other arrays of a block have the same axes, of length 1
where they do not vary. A block is turned into tiles of series, whose rows are float64 with NaN
where a row is left out. Each series gets its start and its bounds, and the searches run
(:mod:`nlsq_dask.engines.lane_search`). The answer is one array (k, ...) of float64 with the axes of
the map; :class:`~nlsq_dask.engines.series.Field` says which of its planes is what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import default_start
from nlsq_dask.core.lane_answer import SeriesAnswers, answers_of, steps_of_rounding
from nlsq_dask.core.lane_certify import certified
from nlsq_dask.core.lane_parameters import (
    along,
    bits_of,
    expanded_covariance,
    free_part,
)
from nlsq_dask.core.lane_step import FIRST_DAMPING, LINEAR_DAMPING, Lanes
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import vector_bits
from nlsq_dask.engines.lane_search import InBasis, LaneSearch, to_tiles
from nlsq_dask.engines.series_tables import BlockRows, SeriesTables, sizes_of
from nlsq_dask.io.reused_memory import memory_of_thread
from nlsq_dask.kernels.lanes import (
    LaneData,
    LaneKernel,
    fresh_states,
    lane_kernel,
    n_state_rows,
    unpacked_state,
)
from nlsq_dask.models.lane_guess import lane_guess
from nlsq_dask.models.peaks import exchanges

# Series whose answers are computed at one time. Arrays of so many numbers stay in a cache, and are
# smaller than the 128 kB from which malloc takes fresh pages for each array.
ANSWERED = 2048

_FLOAT = np.dtype(np.float64)

# Why series without an answer are searched again from their starts.
SEARCHED_AGAIN = (Status.STALLED, Status.UNDETERMINED)

# What differs in these searches. Short steps stay where the model has effect. The best linear
# parameters give a lifetime an effect that starts with an amplitude near zero, or of the wrong
# sign. A step of nearly Gauss and Newton's leaves a start with the wrong sign.
OTHER_SEARCHES: Sequence[dict[str, Any]] = (
    {"damping": 1.0},
    {"linear_first": True},
    {"damping": 1e-3},
)

# Statuses that follow from the rows alone.
FROM_ROWS = (Status.TOO_FEW_ROWS, Status.BAD_INPUT)

# A sum of squares that is smaller by less than this factor is that of the same minimum. Two
# searches that end 1e-4 standard errors from it differ by 1e-8 of s².
SAME_CHI2 = 1.0 - 1e-6


@dataclass
class SeriesBlock(SeriesTables):
    """The series of one block, and their fits.

    Attributes
    ----------
    damping : float
        First damping of the searches.
    used : ndarray, shape (n,), float64, or None
        Evaluations of earlier searches; None if there were none.
    exchanged : pair of int, or None
        Two peaks of the model that exchange their places and widths in a guess.
    held : ndarray, shape (q,), bool, or None
        Free parameters that stay at their starts; None if all of them move.
    """

    damping: float = FIRST_DAMPING
    used: FloatArray | None = None
    exchanged: tuple[int, int] | None = None
    held: NDArray[np.bool_] | None = None

    def parts(self, count: int) -> list[SeriesBlock]:
        """Up to so many blocks of about equally many series, each of whole calls."""
        width = self.shape.tiles * self.shape.lanes
        size = -(-self.n_series // (max(count, 1) * width)) * width
        return [self.part(slice(i, i + size)) for i in range(0, self.n_series, size)]

    def fitted(self) -> FloatArray:
        """The packed answer (k, n).

        A search may lead where a parameter has lost its effect, and end there. Series without an
        answer are searched again: with other first dampings, and from the best linear parameters at
        the starts of the others. Where a guess has peaks of two kinds, all series are searched
        again with the places of two peaks exchanged.
        """
        at_status = next(f for f in self.problem.fields if f.name == "status").planes.start
        # Series of any size and any values are fitted: what overflows shows in their status.
        with np.errstate(all="ignore"):
            packed = self.fitted_once()
            status = packed[at_status]
            for changes in OTHER_SEARCHES:
                left = np.isin(status, SEARCHED_AGAIN)
                self._search_again(packed, left, **changes)
            for pair in self.exchanges():
                self._search_again(packed, ~np.isin(status, FROM_ROWS), exchanged=pair)
        return packed

    def exchanges(self) -> list[tuple[int, int]]:
        """Pairs of terms whose shapes are exchanged for a further start, if starts are guessed."""
        problem = self.problem
        if problem.guess is None or not self._has_guesses():
            return []
        return exchanges(problem.guess.terms)

    def _has_guesses(self) -> bool:
        """Whether p0 leaves out a parameter of some series."""
        given = self.by_parameter("p0", self.problem.start, slice(0, self.n_series), self.n_series)
        return bool(np.isnan(given[~self.problem.reduction.is_fixed]).any())

    def _search_again(
        self,
        packed: FloatArray,
        chosen: NDArray[np.bool_],
        *,
        linear_first: bool = False,
        **changes: Any,
    ) -> None:
        """Search for the answers of some series once more, and keep the better answers.

        Parameters
        ----------
        packed : ndarray, shape (k, n)
            The answers so far; filled.
        chosen : ndarray, shape (n,), bool
            Series, of which those with evaluations left are searched for again.
        linear_first : bool
            Start from :meth:`from_linear`, where the model allows this.
        **changes : object
            Fields of the block of these series.
        """
        at = {field.name: field.planes.start for field in self.problem.fields}
        nfev = packed[at["nfev"]]
        # Two searches may run, and each takes an evaluation at least.
        again = np.flatnonzero(chosen & (nfev < self.problem.max_nfev - 1))
        if not again.size:
            return
        searched = replace(self.part(again), used=nfev[again], **changes)
        block = searched.from_linear() if linear_first else searched
        if block is None:
            return
        found = block.fitted_once()
        before, after = (
            np.where(p[at["status"]] > 0, p[at["chi2"]], np.inf) for p in (packed[:, again], found)
        )
        good = after < before * SAME_CHI2
        packed[:, again[good]] = found[:, good]
        nfev[again] = found[at["nfev"]]

    def from_linear(self) -> SeriesBlock | None:
        """The series with the best linear parameters at the starts of the others.

        None where the model is linear in no parameter or in all.
        """
        problem, held = self.problem, self._kernel().nonlinear
        if held.all() or not held.any():
            return None
        kept = self._kept()
        limited = replace(problem, max_nfev=problem.max_nfev - 1)
        linear = replace(self, problem=limited, held=held, damping=LINEAR_DAMPING)
        linear.run(kept)
        state = unpacked_state(kept.finals, len(held))
        offset = kept.constants[self.where.offset]
        params = offset + along(problem.reduction.matrix, np.asarray(state.params))
        return replace(self.started(params), used=np.asarray(state.nfev))

    def fitted_once(self) -> FloatArray:
        """The packed answer (k, n) after one search."""
        whole = memory_of_thread().empty((sum(self._heights), self.n_series), _FLOAT)
        kept = _Kept(*np.split(whole, np.cumsum(self._heights[:-1])))
        again = self.run(kept)
        if again:
            return self.packed(self._answers(kept, again), kept.constants)
        packed = np.empty((self.problem.n_planes, self.n_series))
        for part in self._slices():
            constants = kept.constants[:, part]
            answers = self._without_flat(self._answers_of(kept, part), constants, part.start)
            self._pack(answers, constants, part, packed)
        return packed

    def searched(self) -> tuple[SeriesAnswers, FloatArray, FloatArray]:
        """Answers of all series, their constants (c, n), and their starts (q, n)."""
        kept = self._kept()
        return self._answers(kept, self.run(kept)), kept.constants, kept.starts

    def _kept(self) -> _Kept:
        return _Kept(*(np.empty((height, self.n_series)) for height in self._heights))

    @property
    def _heights(self) -> tuple[int, int, int]:
        """Numbers of a series in the arrays of `_Kept`."""
        size = len(self.problem.reduction.names)
        return n_state_rows(size), self.where.height(based=False), size

    def run(self, kept: _Kept) -> list[InBasis]:
        """Fill in where the searches end; the series that were fitted again in a basis."""
        problem = self.problem
        search = LaneSearch(
            self._kernel,
            self.shape,
            problem.stat_tol,
            problem.max_nfev,
            kept.finals,
            self.where,
            len(problem.reduction.names),
        )
        search.run(self._batches(kept.constants, kept.starts))
        return search.again

    def _kernel(self, *, differenced: bool = False, based: bool = False) -> LaneKernel:
        """The program that fits the series."""
        problem = self.problem
        model = replace(problem.model(self.n_rows), differenced=differenced, based=based)
        width = min(problem.vector_bits, vector_bits())
        return lane_kernel(model, problem.device, problem.eps, width)

    def _answers(self, kept: _Kept, again: Sequence[InBasis]) -> SeriesAnswers:
        """Answers of all series, with those of the series that were fitted again."""
        answers = SeriesAnswers.joined([self._answers_of(kept, p) for p in self._slices()])
        for part in again:
            answers = self._certified(answers, part, kept.constants, kept.starts)
        return self._without_flat(answers, kept.constants, 0)

    def _without_flat(
        self, answers: SeriesAnswers, constants: FloatArray, first: int
    ) -> SeriesAnswers:
        """Answers without error bars of exact fits that stay exact over some errors by rounding.

        Parameters
        ----------
        answers : SeriesAnswers
            Of n series.
        constants : ndarray, shape (c, n)
        first : int
            Place of the first of them in the block.
        """
        trials = steps_of_rounding(answers, self.lanes(constants))
        if trials is None:
            return answers
        own = self.part(first + trials.number)
        offset = constants[self.where.offset][:, trials.number]
        params, chi2 = answers.params[:, trials.number], answers.chi2[trials.number]
        flat = np.zeros(answers.status.shape, np.bool_)
        for step in (*trials.steps, *-trials.steps):
            there = own.started(offset + along(self.problem.reduction.matrix, params + step))
            flat[trials.number] |= there.chi2_of_starts() - chi2 < trials.rise
        return answers.undetermined(flat)

    def chi2_of_starts(self) -> FloatArray:
        """χ² (n,) at the starts, in the units of the lanes; infinite where it is not finite."""
        kept = self._kept()
        replace(self, problem=replace(self.problem, max_nfev=1)).run(kept)
        state = unpacked_state(kept.finals, len(self.problem.reduction.names))
        return np.asarray(state.chi2)

    def _answers_of(self, kept: _Kept, part: slice) -> SeriesAnswers:
        """Answers of some series, from where their searches ended."""
        return answers_of(
            unpacked_state(kept.finals[:, part], len(self.problem.reduction.names)),
            self.lanes(kept.constants[:, part]),
            kept.starts[:, part],
        )

    def _slices(self) -> Iterator[slice]:
        """Parts of the series for answers; one empty part of no series."""
        for first in range(0, max(self.n_series, 1), ANSWERED):
            yield slice(first, min(first + ANSWERED, self.n_series))

    def lanes(self, constants: FloatArray) -> Lanes:
        """What stays the same in the searches of n series, from their constants (c, n)."""
        return Lanes(
            constants[self.where.lower],  # type: ignore[arg-type]
            constants[self.where.upper],  # type: ignore[arg-type]
            constants[self.where.n_points],
            constants[self.where.variance],
            constants[self.where.square],
        )

    def _certified(
        self, answers: SeriesAnswers, part: InBasis, constants: FloatArray, starts: FloatArray
    ) -> SeriesAnswers:
        """Answers with those of the series that were fitted again in a basis."""
        state = unpacked_state(part.state, len(self.problem.reduction.names))
        basis, free = part.constants[self.where.basis], np.asarray(state.params)
        params = part.constants[self.where.base].copy()
        for k in range(len(free)):
            for j in range(k + 1):
                params[j] += basis[k * (k + 1) // 2 + j] * free[k]
        lanes = self.lanes(constants[:, part.number])
        return certified(answers, part.number, state, lanes, params, basis, starts[:, part.number])

    def _batches(
        self, constants: FloatArray, starts: FloatArray
    ) -> Iterator[tuple[NDArray[np.int64], FloatArray, LaneData]]:
        """States and data of batches of tiles; fills `constants` (c, n) and `starts` (q, n)."""
        width = self.shape.tiles * self.shape.lanes
        for first in range(0, self.n_series, width):
            part = slice(first, min(first + width, self.n_series))
            n = part.stop - part.start
            batch = self._batch(part)
            constants[:, part] = batch.constants[:, :n]
            starts[:, part] = batch.start[:, :n]
            number = np.full(self.width(part), -1, np.int64)
            number[:n] = np.arange(part.start, part.stop)
            yield (
                number,
                to_tiles(batch.states, self.shape),
                self.tiles(batch.rows, batch.constants),
            )

    def tiles(self, rows: BlockRows, constants: FloatArray) -> LaneData:
        """Rows and constants of a batch as tiles."""

        def placed(values: FloatArray, varies: bool) -> FloatArray:
            return to_tiles(values, self.shape) if varies else values[:, 0]

        return LaneData(
            to_tiles(rows.y, self.shape),
            tuple(placed(c, self.roles["x", i].varies) for i, c in enumerate(rows.coords)),
            None if rows.weights is None else placed(rows.weights, self.roles["sigma", 0].varies),
            to_tiles(constants, self.shape),
        )

    def _batch(self, part: slice) -> _Batch:
        """The rows and the constants of some series, of the width of their tiles."""
        rows = self.rows(part)
        y, coords, weights, bad = rows.y, rows.coords, rows.weights, rows.bad
        height = self.where.height(based=False)
        constants = memory_of_thread().empty((height, y.shape[1]), _FLOAT)  # all of it is filled
        n_points, square, scale = sizes_of(y, weights)
        constants[self.where.n_points] = n_points
        constants[self.where.square] = square
        constants[self.where.scale] = scale
        constants[self.where.variance] = self.variance(part, scale)
        start, refused = self._parameters(part, y, coords, constants)
        bad |= refused
        status = np.where(n_points < len(start), float(Status.TOO_FEW_ROWS), 0.0)
        status = np.where(bad, float(Status.BAD_INPUT), status)
        states = memory_of_thread().empty((n_state_rows(len(start)), y.shape[1]), _FLOAT)
        fresh_states(start, status == 0.0, status, states)
        searches = unpacked_state(states, len(start))
        searches.damping[...] = self.damping
        if self.used is not None:
            searches.nfev[: len(self.used[part])] = self.used[part]
        return _Batch(rows, constants, start, states)

    def _parameters(
        self,
        part: slice,
        y: FloatArray,
        coords: Sequence[FloatArray],
        constants: FloatArray,
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Starts (q, B L) of the free parameters, and flags of series with unusable numbers.

        Fills bounds and fixed values into `constants`.
        """
        width = y.shape[1]
        offset, low, high, bad = self.free_limits(part, width)
        given = self._given(part, width, offset)
        with np.errstate(invalid="ignore"):
            bad = bad | ((given < low) | (given > high) | np.isinf(given)).any(axis=0)
        if np.isnan(given[:, 0]).any() or np.isnan(given).any():
            guesses = None if self.problem.guess is None else self._guesses(part, y, coords)
            given = self._filled(given, guesses, offset=offset, low=low, high=high)
        if self.held is not None:
            low, high = (np.where(self.held[:, None], given, side) for side in (low, high))
        constants[self.where.lower] = low
        constants[self.where.upper] = high
        constants[self.where.offset] = offset
        return given, bad

    def starts(self) -> FloatArray:
        """Starts (q, n), of a problem whose starts do not follow from the rows."""
        everything, n = slice(0, self.n_series), self.n_series
        offset, low, high, _ = self.free_limits(everything, n)
        given = self._given(everything, n, offset)
        return self._filled(given, None, offset=offset, low=low, high=high)

    def _given(self, part: slice, width: int, offset: FloatArray) -> FloatArray:
        """Starts (q, w) of the free parameters that p0 gives; NaN where there is none."""
        start = self.by_parameter("p0", self.problem.start, part, width)
        given = free_part(self.problem.reduction, *np.broadcast_arrays(start, offset))
        return np.broadcast_to(given, (len(given), width))

    def _filled(
        self,
        given: FloatArray,
        guesses: FloatArray | None,
        *,
        offset: FloatArray,
        low: FloatArray,
        high: FloatArray,
    ) -> FloatArray:
        """Starts with guesses in place of NaN, or else with ones or numbers inside the bounds."""
        if guesses is not None:
            free = np.clip(free_part(self.problem.reduction, guesses, offset), low, high)
            given = np.where(np.isnan(given), free, given)
        found: FloatArray = np.where(np.isnan(given), default_start(low, high), given)
        return found

    def _guesses(self, part: slice, y: FloatArray, coords: Sequence[FloatArray]) -> FloatArray:
        """Guesses (p, B L) of the model for each series, tile by tile."""
        assert self.problem.guess is not None
        limits = self.limits(part, y.shape[1])
        lanes = self.shape.lanes
        found = []
        for first in range(0, y.shape[1], lanes):
            tile = slice(first, first + lanes)
            if np.isnan(y[:, tile]).all():
                found.append(np.full((len(self.problem.start), lanes), np.nan))
                continue
            own = tuple(c if c.shape[1] == 1 else c[:, tile] for c in coords)
            found.append(
                lane_guess(self.problem.guess, own, y[:, tile], limits.part(tile), self.exchanged)
            )
        return np.concatenate(found, axis=1)

    def packed(self, answers: SeriesAnswers, constants: FloatArray) -> FloatArray:
        """The packed answer (k, n) of the block."""
        packed = np.empty((self.problem.n_planes, self.n_series))
        for part in self._slices():
            self._pack(answers.part(part), constants[:, part], part, packed)
        return packed

    def _pack(
        self, answers: SeriesAnswers, constants: FloatArray, part: slice, packed: FloatArray
    ) -> None:
        """Fill some series of the packed answer."""
        planes = self._planes(answers, constants, part)
        for f in self.problem.fields:
            packed[f.planes, part] = planes[f.name]

    def _planes(
        self, answers: SeriesAnswers, constants: FloatArray, part: slice
    ) -> dict[str, NDArray[Any]]:
        """The fields of the answers of some series."""
        reduction = self.problem.reduction
        scale = constants[self.where.scale]
        params = constants[self.where.offset] + along(reduction.matrix, answers.params)
        params = np.where(np.isnan(answers.params).any(axis=0), np.nan, params)
        products = expanded_covariance(reduction.matrix, answers.covariance)
        p = len(params)
        variances = products[[i * (i + 3) // 2 for i in range(p)]]
        n_points = constants[self.where.n_points]
        with np.errstate(all="ignore"):
            chi2 = answers.chi2 / scale**2
            if not np.isnan(answers.chi2).all():
                chi2 = chi2 / self._variance_of_series(part)
            dof = n_points - len(answers.params)
            reduced = np.where(dof > 0, chi2 / dof, np.nan)
            errors = np.sqrt(variances)
        return {
            "popt": params,
            "perr": errors,
            "chi2": chi2,
            "reduced_chi2": reduced,
            "n_points": n_points,
            "nfev": answers.nfev,
            "status": answers.status,
            "distance_to_optimum_sigma": answers.distance,
            "at_bound": bits_of(reduction, answers.at_bound),
            "pcov": products,
        }

    def _variance_of_series(self, part: slice) -> FloatArray | float:
        """Squares of the standard deviations that are one number a series, of some series."""
        table = self.tables.get(("sigma", 0))
        if table is None or table.shape[0] > 1:
            return 1.0
        own = table[0] if table.shape[1] == 1 else table[0, part]
        sigma: FloatArray = np.ma.filled(np.ma.asarray(own, np.float64), np.nan)
        return sigma**2


class _Kept(NamedTuple):
    """What is kept of all series until their answers are packed.

    Attributes
    ----------
    finals : ndarray, shape (s, n), float64
        Packed states where the searches ended.
    constants : ndarray, shape (c, n), float64
    starts : ndarray, shape (q, n), float64
    """

    finals: FloatArray
    constants: FloatArray
    starts: FloatArray


@dataclass(frozen=True)
class _Batch:
    """Series for one call: rows, constants (c, B L), starts and packed states."""

    rows: BlockRows
    constants: FloatArray
    start: FloatArray
    states: FloatArray
