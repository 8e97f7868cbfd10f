"""The arrays of a block as tables of series, and the rows of some of the series.

A table has the rows first: it is (m, n), or has 1 for m or n where its array does not vary. The
rows of a batch of series are float64, with NaN where a row is left out. They are as wide as the
tiles that the series take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.lane_parameters import along, free_bounds
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.series import Role, SeriesProblem
from nlsq_dask.io.reused_memory import memory_of_thread
from nlsq_dask.kernels.lanes import ConstantRows, TileShape, constant_rows
from nlsq_dask.models.lane_limits import Limits

# Largest power of two by which observations are scaled.
MOST_POWER = 1000


@dataclass
class SeriesTables:
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
    def of(cls, problem: SeriesProblem, arrays: Sequence[NDArray[Any]]) -> Self:
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

    def part(self, part: slice | NDArray[np.int64]) -> Self:
        """Some of the series."""
        tables = {
            key: table[:, part] if self.roles[key].varies else table
            for key, table in self.tables.items()
        }
        n = len(np.arange(self.n_series)[part])
        return type(self)(self.problem, tables, self.n_rows, n, (n,), self.shape)

    def started(self, start: FloatArray) -> Self:
        """The same series with other starts (p, n) of all parameters."""
        tables = {key: table for key, table in self.tables.items() if key[0] != "p0"}
        tables |= {("p0", i): values[None, :] for i, values in enumerate(start)}
        others = tuple(role for role in self.problem.roles if role.kind != "p0")
        own = tuple(Role("p0", i, along=False) for i in range(len(start)))
        return replace(self, problem=replace(self.problem, roles=others + own), tables=tables)

    def width(self, part: slice) -> int:
        """Lanes of the tiles that some series take."""
        n: int = part.stop - part.start
        return -(-n // self.shape.lanes) * self.shape.lanes

    def counted(self, rows: BlockRows, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Rows that count (w,), and the sum of their squared weighted observations at a scale."""
        n_points, square, own = sizes_of(rows.y, rows.weights)
        return n_points, square * (scale / own) ** 2

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
        whole = (self.shape.rows if role.along else 1, width)
        found = memory_of_thread().empty(whole, np.dtype(np.float64))
        rows, n = columns.shape
        found[:rows, :n] = np.ma.getdata(columns)
        found[rows:] = fill
        found[:rows, n:] = fill
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
        bad |= np.isinf(y, out=_flags_like(y)).any(axis=0)
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

    def free_limits(
        self, part: slice, width: int
    ) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_]]:
        """Offsets (p, w), bounds (q, w) of free parameters, and flags of series without any.

        What is the same for all series may have 1 for the width w.
        """
        offset, lower, upper = self._bounds(part, width)
        full = np.broadcast_arrays(offset, lower, upper)
        low, high, bad = free_bounds(self.problem.reduction, *full)
        return offset, low, high, bad

    def limits(self, part: slice, width: int) -> Limits:
        """Bounds of all parameters, and the values of those that are fixed."""
        is_fixed = self.problem.reduction.is_fixed[:, None]
        offset, *bounds = self._bounds(part, width)
        lower, upper = np.broadcast_arrays(*(np.where(is_fixed, offset, side) for side in bounds))
        return Limits(*(np.broadcast_to(side, (len(side), width)) for side in (lower, upper)))

    def _bounds(self, part: slice, width: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Offsets, lower and upper bounds of all parameters, each (p, w) or (p, 1)."""
        lower = self.by_parameter("lower", self.problem.lower, part, width)
        upper = self.by_parameter("upper", self.problem.upper, part, width)
        return self.offsets(part, width), lower, upper

    def offsets(self, part: slice, width: int) -> FloatArray:
        """Offsets (p, B L) of all parameters: fixed values, and what is tied to them."""
        none = np.zeros_like(self.problem.reduction.offset)
        maps = self.by_parameter("fixed", none, part, width)
        return self.problem.reduction.offset[:, None] + along(self.problem.carried, maps)

    def by_parameter(self, kind: str, numbers: FloatArray, part: slice, width: int) -> FloatArray:
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

    def variance(self, part: slice, scale: FloatArray) -> FloatArray:
        """Variances (w,) of a row in the lanes' units; NaN where they are estimated."""
        found = np.full(len(scale), 1.0 if self.problem.absolute_sigma else np.nan)
        if ("sigma", 0) in self.tables and not self.roles["sigma", 0].along:
            # One number for a series: a factor of χ².
            sigma = self._cut(("sigma", 0), part, 1.0)[0, : len(scale)]
            found *= np.broadcast_to(sigma, found.shape) ** 2
        return found * scale**2


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


def sizes_of(
    y: FloatArray, weights: FloatArray | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows that count, sum of squared weighted observations in the lanes' units, and scale."""
    missing = np.isnan(y, out=_flags_like(y))
    values = memory_of_thread().empty(y.shape, np.dtype(np.float64))
    np.multiply(y, 1.0 if weights is None else weights, out=values)
    np.copyto(values, 0.0, where=missing)
    largest = np.maximum(values.max(axis=0), -values.min(axis=0))
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1]
    scale = np.ldexp(1.0, -np.clip(exponent, -MOST_POWER, MOST_POWER))
    with np.errstate(all="ignore"):
        values *= scale
        square = np.einsum("ij,ij->j", values, values)
    # Bytes are added without a cast, many at one time.
    kind = np.min_scalar_type(len(y))
    n_missing = missing.view(np.uint8).sum(axis=0, dtype=kind)
    return len(y) - n_missing.astype(np.float64), square, scale


def _flags_like(values: FloatArray) -> NDArray[np.bool_]:
    """Flags without initial values, in memory that is used again."""
    return memory_of_thread().empty(values.shape, np.dtype(np.bool_))
