"""Sums over the rows of many series at once, one series a lane.

For a tile of observations y (m, L), with the rows first and one series in each lane, and free
parameters φ (q,) of arrays (L,), the sums of each lane are

    H = JᵀJ, g = Jᵀr and Σ r²   of   r = w (f(x; θ(φ)) - y) and J = ∂r/∂φ, shape (m, q).

The lanes come last, so that one vector instruction works on eight series, and each sum over rows
is a sum of vectors. The loop over rows holds the sums alone: no value of a row is stored, and the
compiler shares what the model and its derivatives have in common. Where the derivatives of all rows
are computed first, and then summed, a pass takes two to five times as long. Rows with NaN in y are
left out. They are selected after the model, as NaN times 0 is NaN.

A row-wise model is called with one row, mapped over the lanes. Any other model is called with the
whole series of a lane, and the derivatives of all rows are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.factor import EPS
from nlsq_dask.core.lane_algebra import total
from nlsq_dask.core.lane_step import LaneSums
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.model_spec import ModelSpec, call_with_scalars

# Rows of one turn of the loop over rows. One row a turn takes 1.5 times as long, as all sums are
# then loaded and stored for each row; eight rows are hardly faster than four, and compile for twice
# as long.
UNROLLED = 4


class LaneRows(NamedTuple):
    """Rows of a tile, or one row of it, as arrays that JAX traces.

    Attributes
    ----------
    y : array (m, L) or (L,)
        NaN where a row is left out.
    coords : tuple of array
        Coordinates that all lanes share, (m,) or (), or of each lane, (m, L) or (L,).
    weights : array or None
        As a coordinate.
    scale : array (L,)
        Power of two that brings the weighted observations of a lane to a size of 1.
    offset : tuple of array (L,), length p
        Values of the fixed parameters; 0 elsewhere.
    base : tuple of array (L,), length q
        Origin of the free parameters, in a basis; else empty.
    basis : tuple of array (L,), length q (q + 1) / 2
        Columns of the basis, an upper triangle.
    """

    y: jax.Array
    coords: tuple[jax.Array, ...]
    weights: jax.Array | None
    scale: jax.Array
    offset: tuple[jax.Array, ...]
    base: tuple[jax.Array, ...] = ()
    basis: tuple[jax.Array, ...] = ()


@dataclass(frozen=True)
class LaneModel:
    """A model of the free parameters of many series.

    Attributes
    ----------
    spec : ModelSpec
    matrix : ndarray, shape (p, q), float64
        How the parameters follow from the free parameters: ``θ = offset + matrix φ``.
    has_offset : tuple of bool, length p
        Whether a parameter has an offset. Where it has none, no zero is added: the compiler would
        add it for each row again, and not move what depends on it out of the loop.
    row_wise : bool
    n_rows : int
        Rows of a series, without padding.
    differenced : bool
        Whether differences replace derivatives that are not finite. They cost two more values for
        each parameter, and are taken for those series alone that start at such a derivative.
    based : bool
        Whether each lane has a basis for its free parameters.
    """

    spec: ModelSpec
    matrix: FloatArray
    has_offset: tuple[bool, ...]
    row_wise: bool
    n_rows: int
    differenced: bool = False
    based: bool = False

    @classmethod
    def of(cls, spec: ModelSpec, reduction: Reduction, row_wise: bool, n_rows: int) -> LaneModel:
        """The model of the free parameters of a reduction."""
        leaders = reduction.leaders
        offsets = tuple(leaders is not None and i not in leaders for i in range(len(spec.names)))
        return cls(spec, reduction.matrix, offsets, row_wise, n_rows)

    def values(self, rows: LaneRows, free: Sequence[jax.Array]) -> jax.Array:
        """Values of the model at free parameters (L,): (L,) for one row, else (m, L)."""
        if rows.base:
            free = _in_basis(rows, free)
        params = self._params(rows.offset, free)
        if rows.y.ndim == 1:
            return self._of_row(rows.coords, params)
        if not self.row_wise:
            return self._whole(rows, params)
        values: jax.Array = jax.vmap(self._of_row, in_axes=(0, None))(rows.coords, params)
        return values

    def _params(self, offset: Sequence[jax.Array], free: Sequence[jax.Array]) -> list[jax.Array]:
        """All parameters, each (L,)."""
        found = []
        for i, row in enumerate(self.matrix):
            terms = [offset[i]] if self.has_offset[i] else []
            terms += [
                free[k] if row[k] == 1.0 else float(row[k]) * free[k]
                for k in np.flatnonzero(row).tolist()
            ]
            found.append(total(terms))
        return found

    def _of_row(self, coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
        """Values (L,) at coordinates that are numbers, or arrays (L,)."""

        def of_lane(coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
            row = tuple(jnp.reshape(c, (1,)) for c in coords)
            return jnp.reshape(call_with_scalars(self.spec, row, params), ())

        lanes = tuple(None if c.ndim == 0 else 0 for c in coords)
        values: jax.Array = jax.vmap(of_lane, in_axes=(lanes, 0))(coords, params)
        return values

    def _whole(self, rows: LaneRows, params: list[jax.Array]) -> jax.Array:
        """Values (m, L) of whole series; the padding of a tile is not part of a series."""
        coords = tuple(c[: self.n_rows] for c in rows.coords)
        lanes = tuple(None if c.ndim == 1 else 1 for c in coords)

        def of_series(coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
            return call_with_scalars(self.spec, coords, params)

        values = jax.vmap(of_series, in_axes=(lanes, 0), out_axes=1)(coords, params)
        return jnp.pad(values, ((0, rows.y.shape[0] - self.n_rows), (0, 0)))

    def sums(self, rows: LaneRows, free: Sequence[jax.Array]) -> LaneSums:
        """Sums of each lane at free parameters (L,); the rows are a multiple of UNROLLED."""
        size = len(free)
        stored = None if self.row_wise else self._columns(rows, free)

        def add_rows(turn: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            for step in range(UNROLLED):
                at = turn * UNROLLED + step
                row = _row(rows, at)
                own = self._columns(row, free) if stored is None else [c[at] for c in stored]
                totals = tuple(map(jnp.add, totals, _products(row, own)))
            return totals

        zero = jnp.zeros(rows.y.shape[1])
        nothing = (zero,) * ((size + 1) * (size + 2) // 2)
        turns = rows.y.shape[0] // UNROLLED
        totals: tuple[jax.Array, ...] = jax.lax.fori_loop(0, turns, add_rows, nothing)
        n_products = size * (size + 1) // 2
        return LaneSums(totals[:n_products], totals[n_products:-1], totals[-1])

    def added(
        self,
        rows: LaneRows,
        free: Sequence[jax.Array],
        n_rows: jax.Array,
        totals: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, ...]:
        """Totals of each lane with the products of the first rows added, row after row.

        A row-wise model alone has such totals. Each row is one turn of a loop, so the totals have
        the same bits wherever the rows are cut.
        """

        def add_row(at: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            row = _row(rows, at)
            return tuple(map(jnp.add, totals, _products(row, self._columns(row, free))))

        found: tuple[jax.Array, ...] = jax.lax.fori_loop(0, n_rows, add_row, totals)
        return found

    def _columns(self, rows: LaneRows, free: Sequence[jax.Array]) -> list[jax.Array]:
        """Derivatives by the free parameters, and errors ``f - y``, of one row or of all rows.

        Each derivative is by one parameter alone: the zeros of a vector of tangents would be
        multiplied, as zero times infinity is NaN.
        """
        columns, values = [], self.values(rows, free)
        for k in range(len(free)):

            def along(value: jax.Array, k: int = k) -> jax.Array:
                return self.values(rows, [*free[:k], value, *free[k + 1 :]])

            column = jax.jvp(along, (free[k],), (jnp.ones_like(free[k]),))[1]
            columns.append(_mended(along, values, column, free[k]) if self.differenced else column)
        return [*columns, values - rows.y]


def _in_basis(rows: LaneRows, free: Sequence[jax.Array]) -> list[jax.Array]:
    """Free parameters at coordinates along the basis."""
    return [
        total(
            [
                rows.base[j],
                *(rows.basis[k * (k + 1) // 2 + j] * free[k] for k in range(j, len(free))),
            ]
        )
        for j in range(len(free))
    ]


def _mended(
    along: Callable[[jax.Array], jax.Array],
    values: jax.Array,
    column: jax.Array,
    at: jax.Array,
) -> jax.Array:
    """A derivative, with differences in the rows where it is not finite and the value is.

    As in :mod:`nlsq_dask.kernels.derivatives`, with steps of the size of the parameter.
    """
    step = EPS ** (1.0 / 3.0) * jnp.where(at == 0.0, 1.0, jnp.abs(at))
    ends = at + step, at - step
    above, below = along(ends[0]), along(ends[1])
    forward, backward = (above - values) / (ends[0] - at), (below - values) / (ends[1] - at)
    one_sided = jnp.where(jnp.isfinite(above), forward, backward)
    both = jnp.isfinite(above) & jnp.isfinite(below)
    difference = jnp.where(both, (above - below) / (ends[0] - ends[1]), one_sided)
    return jnp.where(jnp.isfinite(values) & ~jnp.isfinite(column), difference, column)


def _row(rows: LaneRows, at: jax.Array) -> LaneRows:
    """One row of each lane."""
    weights = None if rows.weights is None else rows.weights[at]
    return rows._replace(y=rows.y[at], coords=tuple(c[at] for c in rows.coords), weights=weights)


def _products(row: LaneRows, columns: Sequence[jax.Array]) -> list[jax.Array]:
    """Products of the weighted columns of one row, lower triangle; 0 where it is left out."""
    weights = row.scale if row.weights is None else row.scale * row.weights
    counts = ~jnp.isnan(row.y)
    weighted = [jnp.where(counts, column * weights, 0.0) for column in columns]
    return [a * b for i, a in enumerate(weighted) for b in weighted[: i + 1]]
