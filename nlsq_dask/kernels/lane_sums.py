"""Sums over the rows of many series at once, one series a lane.

For a tile of observations y (m, L), with the rows first and one series in each lane, and free
parameters φ (q,) of arrays (L,), the sums of each lane are

    H = JᵀJ, g = Jᵀr and Σ r²   of   r = w (f(x; θ(φ)) - y) and J = ∂r/∂φ, shape (m, q).

The lanes come last, so that one vector instruction works on eight series, and each sum over rows
is a sum of vectors. The rows are taken in slices whose values stay in the CPU's cache. Rows with
NaN in y are left out. They are selected after the model, as NaN times 0 is NaN.

A row-wise model is called with one row, mapped over lanes and rows. Any other model is called with
the whole series of a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nlsq_dask.core.lane_step import LaneSums
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.model_spec import ModelSpec, call_with_scalars

# Bytes of the values and derivatives of one slice of rows. They are written and read once or twice,
# and fit a core's second-level cache.
SLICE_BYTES = 1 << 19


class LaneRows(NamedTuple):
    """Rows of a tile, as arrays that JAX traces.

    Attributes
    ----------
    y : array (m, L)
        NaN where a row is left out.
    coords : tuple of array (m,) or (m, L)
        Coordinates that all lanes share, or of each lane.
    weights : array (m,), (m, L) or None
    scale : array (L,)
        Power of two that brings the weighted observations of a lane to a size of 1.
    offset : tuple of array (L,), length p
        Values of the fixed parameters; 0 elsewhere.
    """

    y: jax.Array
    coords: tuple[jax.Array, ...]
    weights: jax.Array | None
    scale: jax.Array
    offset: tuple[jax.Array, ...]


@dataclass(frozen=True)
class LaneModel:
    """A model of the free parameters of many series.

    Attributes
    ----------
    spec : ModelSpec
    matrix : ndarray, shape (p, q), float64
        How the parameters follow from the free parameters: ``θ = offset + matrix φ``.
    row_wise : bool
    """

    spec: ModelSpec
    matrix: FloatArray
    row_wise: bool

    def values(self, rows: LaneRows, free: Sequence[jax.Array]) -> jax.Array:  # (m, L)
        """Values of the model, at free parameters (L,)."""
        params = self._params(rows.offset, free)
        shape = rows.y.shape
        if not self.row_wise:
            return self._whole(rows.coords, params)

        def of_row(coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
            row = tuple(jnp.reshape(c, (1,)) for c in coords)
            return jnp.reshape(call_with_scalars(self.spec, row, params), ())

        lanes = tuple(None if c.ndim == 1 else 0 for c in rows.coords)
        over_lanes = jax.vmap(of_row, in_axes=(lanes, 0), axis_size=shape[1])
        value: jax.Array = jax.vmap(over_lanes, in_axes=(0, None))(rows.coords, params)
        return value

    def _params(self, offset: Sequence[jax.Array], free: Sequence[jax.Array]) -> list[jax.Array]:
        """All parameters, each (L,)."""
        found = []
        for i, row in enumerate(self.matrix):
            value = offset[i]
            for k, factor in enumerate(row):
                if factor == 1.0:
                    value = value + free[k]
                elif factor != 0.0:
                    value = value + float(factor) * free[k]
            found.append(value)
        return found

    def _whole(self, coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
        lanes = tuple(None if c.ndim == 1 else 1 for c in coords)

        def of_series(coords: tuple[jax.Array, ...], params: list[jax.Array]) -> jax.Array:
            return call_with_scalars(self.spec, coords, params)

        value: jax.Array = jax.vmap(of_series, in_axes=(lanes, 0), out_axes=1)(coords, params)
        return value

    def sums(self, rows: LaneRows, free: Sequence[jax.Array]) -> LaneSums:
        """Sums of each lane at free parameters (L,)."""
        m, size = rows.y.shape[0], len(free)
        height = self.slice_rows(m, size, rows.y.shape[1])
        if height == m:
            return self._sums_of_slice(rows, free)

        def cut(array: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, height)

        def add_slice(i: jax.Array, sums: LaneSums) -> LaneSums:
            start = i * height
            part = rows._replace(
                y=cut(rows.y, start),
                coords=tuple(cut(c, start) for c in rows.coords),
                weights=None if rows.weights is None else cut(rows.weights, start),
            )
            share = self._sums_of_slice(part, free)
            added: LaneSums = jax.tree.map(jnp.add, sums, share)
            return added

        zero = jnp.zeros(rows.y.shape[1])
        n_products = size * (size + 1) // 2
        nothing = LaneSums((zero,) * n_products, (zero,) * size, zero)
        sums: LaneSums = jax.lax.fori_loop(0, m // height, add_slice, nothing)
        return sums

    def slice_rows(self, m: int, size: int, width: int) -> int:
        """Rows of a slice; all rows for a model that takes whole series."""
        most = max(SLICE_BYTES // (8 * width * (size + 1)), 1)
        return m if m <= most or not self.row_wise else -(-m // -(-m // most))

    def padded_rows(self, m: int, size: int, width: int) -> int:
        """Rows of a tile with room for whole slices."""
        height = self.slice_rows(m, size, width)
        return -(-m // height) * height

    def _sums_of_slice(self, rows: LaneRows, free: Sequence[jax.Array]) -> LaneSums:
        valid = ~jnp.isnan(rows.y)
        weights = rows.scale if rows.weights is None else self._weights(rows)

        def weighted(values: jax.Array) -> jax.Array:
            return jnp.where(valid, values * weights, 0.0)

        columns = []
        values = self.values(rows, free)
        for k in range(len(free)):

            def along(value: jax.Array, k: int = k) -> jax.Array:
                return self.values(rows, [*free[:k], value, *free[k + 1 :]])

            columns.append(weighted(jax.jvp(along, (free[k],), (jnp.ones_like(free[k]),))[1]))
        residuals = weighted(values - rows.y)
        gram = tuple(
            jnp.sum(columns[i] * columns[j], axis=0) for i in range(len(free)) for j in range(i + 1)
        )
        gradient = tuple(jnp.sum(column * residuals, axis=0) for column in columns)
        return LaneSums(gram, gradient, jnp.sum(residuals * residuals, axis=0))

    @staticmethod
    def _weights(rows: LaneRows) -> jax.Array:
        assert rows.weights is not None
        weights = rows.weights[:, None] if rows.weights.ndim == 1 else rows.weights
        return weights * rows.scale
