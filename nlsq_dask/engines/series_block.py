"""One fit for each series of a block: arrays of a block in, a packed answer out.

Observations of a block have axes along which the model is fitted, and axes of the map, along which
each element is a series of its own. The other arrays of a block have the same axes, of length 1
where they do not vary. A block is turned into tiles of series, whose rows are float64 with NaN
where a row is left out. Each series gets its start and its bounds, and the searches run
(:mod:`nlsq_dask.engines.lane_search`). The answer is one array (k, ...) of float64 with the axes of
the map; :class:`~nlsq_dask.engines.series.Field` says which of its planes is what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import default_start
from nlsq_dask.core.lane_answer import SeriesAnswers, answers_of
from nlsq_dask.core.lane_certify import certified
from nlsq_dask.core.lane_parameters import (
    along,
    bits_of,
    expanded_covariance,
    free_bounds,
    free_part,
)
from nlsq_dask.core.lane_step import Lanes
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import vector_bits
from nlsq_dask.engines.lane_search import InBasis, LaneSearch, to_tiles
from nlsq_dask.engines.series import Role, SeriesProblem
from nlsq_dask.kernels.lanes import (
    ConstantRows,
    LaneData,
    LaneKernel,
    TileShape,
    constant_rows,
    fresh_states,
    lane_kernel,
    n_state_rows,
    unpacked_state,
)
from nlsq_dask.models.lane_guess import lane_guess

# Largest power of two by which observations are scaled.
MOST_POWER = 1000


@dataclass
class SeriesBlock:
    """The series of one block, with the rows first: each table is (m, n), or has 1 for m or n.

    Attributes
    ----------
    problem : SeriesProblem
    tables : dict of (str, int) to ndarray
        Arrays of the block by kind and index.
    n_rows, n_series : int
    map_shape : tuple of int
    shape : TileShape
    """

    problem: SeriesProblem
    tables: Mapping[tuple[str, int], NDArray[Any]]
    n_rows: int
    n_series: int
    map_shape: tuple[int, ...]
    shape: TileShape
    where: ConstantRows = field(init=False)
    roles: Mapping[tuple[str, int], Role] = field(init=False)

    def __post_init__(self) -> None:
        n_params, size = self.problem.reduction.matrix.shape
        self.where = constant_rows(n_params, size)
        self.roles = {role.key: role for role in self.problem.roles}

    @classmethod
    def of(cls, problem: SeriesProblem, arrays: Sequence[NDArray[Any]]) -> SeriesBlock:
        """The tables of a block."""
        full = np.shape(arrays[0])
        fit_shape = tuple(full[d] for d in problem.fit_axes)
        map_shape = tuple(full[d] for d in problem.map_axes)
        order = problem.fit_axes + problem.map_axes
        tables = {
            role.key: as_table(
                array.transpose(order),
                fit_shape if role.along else (1,) * len(fit_shape),
                map_shape if role.varies else (1,) * len(map_shape),
            )
            for role, array in zip(problem.roles, arrays, strict=True)
        }
        n_rows, n_series = math.prod(fit_shape), math.prod(map_shape)
        shape = TileShape.of(problem.model(n_rows))
        return cls(problem, tables, n_rows, n_series, map_shape, shape)

    def parts(self, count: int) -> list[SeriesBlock]:
        """Up to so many blocks of about equally many series, each of whole calls."""
        width = self.shape.tiles * self.shape.lanes
        size = -(-self.n_series // (max(count, 1) * width)) * width
        found = []
        for first in range(0, self.n_series, size):
            last = min(first + size, self.n_series)
            tables = {
                key: table[:, first:last] if self.roles[key].varies else table
                for key, table in self.tables.items()
            }
            n = last - first
            found.append(SeriesBlock(self.problem, tables, self.n_rows, n, (n,), self.shape))
        return found

    def fitted(self) -> FloatArray:
        """The packed answer (k, n)."""
        # Series of any size and any values are fitted: what overflows shows in their status.
        with np.errstate(all="ignore"):
            answers, constants, _ = self.searched()
            return self.packed(answers, constants)

    def searched(self) -> tuple[SeriesAnswers, FloatArray, FloatArray]:
        """Answers of all series, their constants (c, n), and their starts (q, n)."""
        problem = self.problem
        size = len(problem.reduction.names)
        width = min(problem.vector_bits, vector_bits())
        model, eps = problem.model(self.n_rows), problem.eps
        finals = np.zeros((n_state_rows(size), self.n_series))
        constants = np.zeros((self.where.height(based=False), self.n_series))
        starts = np.zeros((size, self.n_series))

        def kernel_of(*, differenced: bool, based: bool) -> LaneKernel:
            own = replace(model, differenced=differenced, based=based)
            return lane_kernel(own, problem.device, eps, width)

        search = LaneSearch(
            kernel_of,
            self.shape,
            problem.stat_tol,
            problem.max_nfev,
            finals,
            self.where,
            size,
        )
        search.run(self._batches(constants, starts))
        answers = answers_of(unpacked_state(finals, size), self.lanes(constants), starts)
        for part in search.again:
            answers = self._certified(answers, part, constants, starts)
        return answers, constants, starts

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

    def width(self, part: slice) -> int:
        """Lanes of the tiles that some series take."""
        n: int = part.stop - part.start
        return -(-n // self.shape.lanes) * self.shape.lanes

    def counted(self, rows: BlockRows, constants: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Rows that count (B L,), and the sum of their squared weighted observations."""
        n_points, square, scale = _sizes(rows.y, rows.weights)
        return n_points, square * (constants[self.where.scale] / scale) ** 2

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
        constants = np.zeros((self.where.height(based=False), y.shape[1]))
        variance = np.full(y.shape[1], 1.0 if self.problem.absolute_sigma else np.nan)
        if rows.sigma is not None and weights is None:  # one number for a series: a factor of χ²
            variance *= np.broadcast_to(rows.sigma[0], variance.shape) ** 2
        n_points, square, scale = _sizes(y, weights)
        constants[self.where.n_points] = n_points
        constants[self.where.square] = square
        constants[self.where.scale] = scale
        constants[self.where.variance] = variance * scale**2
        start, refused = self._parameters(part, y, coords, constants)
        bad |= refused
        status = np.where(n_points < len(start), float(Status.TOO_FEW_ROWS), 0.0)
        status = np.where(bad, float(Status.BAD_INPUT), status)
        states = fresh_states(start, status == 0.0, status)
        return _Batch(rows, constants, start, states)

    def rows(self, part: slice) -> BlockRows:
        """The rows of some series, of the width of their tiles."""
        y = self._cut(("y", 0), part, np.nan)
        coords = self._coords(part)
        has_sigma = ("sigma", 0) in self.tables
        sigma = self._cut(("sigma", 0), part, 1.0) if has_sigma else None
        bad = self._mark_missing(part, y, coords, sigma)
        weights = None
        if sigma is not None and self.roles["sigma", 0].along:
            with np.errstate(all="ignore"):
                weights = np.where(np.isfinite(sigma) & (sigma > 0), 1.0 / sigma, 0.0)
        return BlockRows(y, coords, sigma, weights, bad)

    def _cut(self, key: tuple[str, int], part: slice, fill: float) -> FloatArray:
        """Rows of a table for a batch of tiles; one column where it is the same for all series."""
        table, role = self.tables[key], self.roles[key]
        columns = table[:, part] if role.varies else table
        width = self.width(part) if role.varies else 1
        found = np.full((self.shape.rows if role.along else 1, width), fill)
        found[: len(columns), : columns.shape[1]] = np.ma.getdata(columns)
        return found

    def _coords(self, part: slice) -> list[FloatArray]:
        """Coordinates (m, 1) or (m, B L); the padding repeats the last row and the last series."""
        found = []
        for index in range(self.problem.spec.n_coords):
            table, varies = self.tables["x", index], self.roles["x", index].varies
            columns = table[:, part] if varies else table
            full = np.broadcast_to(np.asarray(columns, np.float64), (self.n_rows, columns.shape[1]))
            width = self.width(part) if varies else 1
            more = ((0, self.shape.rows - self.n_rows), (0, width - full.shape[1]))
            found.append(np.pad(full, more, mode="edge"))
        return found

    def _mark_missing(
        self,
        part: slice,
        y: FloatArray,
        coords: Sequence[FloatArray],
        sigma: FloatArray | None,
    ) -> NDArray[np.bool_]:
        """Set y to NaN in rows that are left out; flags (B L,) of series that cannot be fitted."""
        others = [*coords, *([] if sigma is None else [sigma])]
        self._leave_out(part, y)
        bad = np.zeros(y.shape[1], np.bool_)
        if not self.problem.rule.omit_nan:
            bad[: part.stop - part.start] = self._has_nan(part)
        for array in others:
            missing = np.isnan(array)
            if missing.any():
                y[np.broadcast_to(missing, y.shape)] = np.nan
        bad |= np.isinf(y).any(axis=0)
        usable = [np.isfinite(array) for array in coords]
        if sigma is not None:
            usable.append((sigma > 0.0) & (sigma < np.inf))
        for flags in usable:
            if not flags.all():
                bad |= (~flags & ~np.isnan(y)).any(axis=0)
        return bad

    def _has_nan(self, part: slice) -> NDArray[np.bool_]:
        """Which series have NaN in a row that no mask leaves out, or NaN in x or sigma."""
        left = np.zeros((self.n_rows, part.stop - part.start), np.bool_)
        for _, flags in self._masks(part):
            left |= flags
        found = np.zeros(left.shape[1], np.bool_)
        for (kind, _), table in self.tables.items():
            if kind in ("y", "x", "sigma"):
                columns = table if table.shape[1] == 1 else table[:, part]
                found |= (np.isnan(np.ma.getdata(columns)) & ~left).any(axis=0)
        return found

    def _masks(self, part: slice) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Flags (m or 1, n or 1) of rows that masks leave out."""
        for (kind, _), table in self.tables.items():
            if kind == "mask":
                flags = np.asarray(table)
            elif kind in ("y", "x", "sigma") and isinstance(table, np.ma.MaskedArray):
                flags = np.ma.getmaskarray(table)
            else:
                continue
            yield kind, flags if flags.shape[1] == 1 else flags[:, part]

    def _leave_out(self, part: slice, y: FloatArray) -> None:
        """Set y to NaN in rows that a mask or the fill value leaves out."""
        rows = y[: self.n_rows, : part.stop - part.start]
        fill = self.problem.rule.fill_value
        if fill is not None and not np.isnan(fill):
            rows[rows == np.float64(fill)] = np.nan
        for _, flags in self._masks(part):
            rows[np.broadcast_to(flags, rows.shape)] = np.nan

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
        reduction, width = self.problem.reduction, y.shape[1]
        lower = self._by_parameter("lower", self.problem.lower, part, width)
        upper = self._by_parameter("upper", self.problem.upper, part, width)
        offset = self._offsets(part, width)
        low, high, bad = free_bounds(reduction, *np.broadcast_arrays(offset, lower, upper))
        start = self._by_parameter("p0", self.problem.start, part, width)
        given = free_part(reduction, *np.broadcast_arrays(start, offset))
        with np.errstate(invalid="ignore"):
            bad = bad | ((given < low) | (given > high)).any(axis=0)
        constants[self.where.lower] = low
        constants[self.where.upper] = high
        constants[self.where.offset] = offset
        given = np.broadcast_to(given, (len(given), width))
        if np.isnan(given[:, 0]).any() or np.isnan(given).any():
            given = self._guessed(given, y, coords, offset, low, high)
        return given, bad

    def _guessed(
        self,
        given: FloatArray,
        y: FloatArray,
        coords: Sequence[FloatArray],
        offset: FloatArray,
        low: FloatArray,
        high: FloatArray,
    ) -> FloatArray:
        """Starts with guesses in place of NaN, or else with ones or numbers inside the bounds."""
        if self.problem.guess is not None:
            guesses = free_part(self.problem.reduction, self._guesses(y, coords), offset)
            guesses = np.clip(guesses, low, high)
            given = np.where(np.isnan(given), guesses, given)
        otherwise = default_start(low, high)
        found: FloatArray = np.where(np.isnan(given), otherwise, given)
        return found

    def _guesses(self, y: FloatArray, coords: Sequence[FloatArray]) -> FloatArray:
        """Guesses (p, B L) of the model for each series, tile by tile."""
        assert self.problem.guess is not None
        lanes = self.shape.lanes
        found = []
        for first in range(0, y.shape[1], lanes):
            part = slice(first, first + lanes)
            if np.isnan(y[:, part]).all():
                found.append(np.full((len(self.problem.start), lanes), np.nan))
                continue
            own = tuple(c if c.shape[1] == 1 else c[:, part] for c in coords)
            found.append(lane_guess(self.problem.guess, own, y[:, part]))
        return np.concatenate(found, axis=1)

    def _offsets(self, part: slice, width: int) -> FloatArray:
        """Offsets (p, B L) of all parameters: fixed values, and what is tied to them."""
        none = np.zeros_like(self.problem.reduction.offset)
        maps = self._by_parameter("fixed", none, part, width)
        return self.problem.reduction.offset[:, None] + along(self.problem.carried, maps)

    def _by_parameter(self, kind: str, numbers: FloatArray, part: slice, width: int) -> FloatArray:
        """Values (p, B L) of the parameters, or (p, 1) where all are numbers."""
        if all(name != kind for name, _ in self.tables):
            return numbers[:, None]
        found = np.repeat(numbers[:, None], width, axis=1)
        for (name, index), table in self.tables.items():
            if name == kind:
                columns = table[0] if table.shape[1] == 1 else table[0, part]
                found[index, : part.stop - part.start] = np.ma.filled(
                    np.ma.asarray(columns, np.float64), np.nan
                )
        return found

    def packed(self, answers: SeriesAnswers, constants: FloatArray) -> FloatArray:
        """The packed answer (k, n) of the block."""
        problem, reduction = self.problem, self.problem.reduction
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
                chi2 = chi2 / self._variance_of_series()
            dof = n_points - len(answers.params)
            reduced = np.where(dof > 0, chi2 / dof, np.nan)
            errors = np.sqrt(variances)
        planes: dict[str, Any] = {
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
        packed = np.empty((problem.n_planes, self.n_series))
        for f in problem.fields:
            packed[f.planes] = planes[f.name]
        return packed

    def _variance_of_series(self) -> FloatArray | float:
        """Squares of the standard deviations that are one number a series."""
        table = self.tables.get(("sigma", 0))
        if table is None or table.shape[0] > 1:
            return 1.0
        sigma: FloatArray = np.ma.filled(np.ma.asarray(table[0], np.float64), np.nan)
        return sigma**2


@dataclass(frozen=True)
class BlockRows:
    """Rows of a batch of series, with padding.

    Attributes
    ----------
    y : ndarray, shape (m, B L), float64
        NaN where a row is left out.
    coords : list of ndarray, each (m, 1) or (m, B L)
    sigma, weights : ndarray or None
        Standard deviations, and their reciprocals if they vary along the rows; 1 for an axis along
        which they do not vary.
    bad : ndarray, shape (B L,), bool
        Series that cannot be fitted.
    """

    y: FloatArray
    coords: list[FloatArray]
    sigma: FloatArray | None
    weights: FloatArray | None
    bad: NDArray[np.bool_]


@dataclass(frozen=True)
class _Batch:
    """Series for one call: rows, constants (c, B L), starts and packed states."""

    rows: BlockRows
    constants: FloatArray
    start: FloatArray
    states: FloatArray


def as_table(
    turned: NDArray[Any], fit_shape: tuple[int, ...], map_shape: tuple[int, ...]
) -> NDArray[Any]:
    """An array with the fitted axes first as a table (m, n) of arrays of these shapes."""
    if turned.shape != fit_shape + map_shape:
        mask = np.ma.getmask(turned)
        turned = np.broadcast_to(turned, fit_shape + map_shape)
        if mask is not np.ma.nomask:
            turned = np.ma.masked_array(turned, np.broadcast_to(mask, turned.shape))
    return turned.reshape(math.prod(fit_shape), math.prod(map_shape))


def _sizes(y: FloatArray, weights: FloatArray | None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows that count, sum of squared weighted observations in the lanes' units, and scale."""
    counted = ~np.isnan(y)
    values = np.where(counted, y if weights is None else y * weights, 0.0)
    largest = np.maximum(values.max(axis=0), -values.min(axis=0))
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1]
    scale = np.ldexp(1.0, -np.clip(exponent, -MOST_POWER, MOST_POWER))
    with np.errstate(all="ignore"):
        values *= scale
        square = np.einsum("ij,ij->j", values, values)
    return counted.sum(axis=0).astype(np.float64), square, scale
