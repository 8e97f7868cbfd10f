"""Rows of a tile: errors, derivatives along a basis, and both in units of standard deviations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nlsq_dask.kernels.compiled import CompiledKernel
from nlsq_dask.kernels.derivatives import with_differences
from nlsq_dask.kernels.moments import solved
from nlsq_dask.kernels.square import calls_or_loops
from nlsq_dask.kernels.tiles import Rows, Sums, Tile, sum_over_tiles
from nlsq_dask.user_model.elementary import in_memory
from nlsq_dask.user_model.model_spec import ModelSpec, call_jacobian, call_model


class TileKernel(CompiledKernel):
    """What functions of the rows of a tile share; parameters as for :class:`CompiledKernel`."""

    def _is_weighted(self, rows: Rows) -> bool:
        return rows.weights is not None or self._spec.cholesky is not None

    def _weighted(self, values: jax.Array, tile: Tile) -> jax.Array:
        """Values of rows (k, tile) in units of their standard deviations; 0 behind the last row."""
        if tile.weights is not None:
            values = values * tile.weights
        if self._spec.cholesky is not None:
            factor = jnp.asarray(self._spec.cholesky)
            values = solved(factor, values.T).T
        # A select, not a product: the rows behind the last row may hold NaN, and NaN * 0 is NaN.
        return jnp.where(tile.valid, values, 0.0)

    def _over_tiles(
        self,
        function: Callable[[Tile], Sums | list[Sums]],
        zero: Sums,
        rows: Rows,
        size: int | None = None,
    ) -> Sums:
        """Sum a function of a tile over all tiles; see :func:`sum_over_tiles`."""
        self._count_compilation()
        return sum_over_tiles(
            function,
            zero,
            self._tile_bytes,
            rows,
            size,
            series_rows=self._spec.series_rows,
            # Outside a loop XLA calls Python in any order, and an error may come before the values.
            loops=not self._spec.loss.is_linear or calls_or_loops(self._spec),
        )

    def _augmented(
        self, params: jax.Array, basis: jax.Array, tile: Tile, differenced: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """``[(J S)ᵀ; eᵀ]`` of one tile, (q + 1, tile), and the list of :meth:`_derived`."""
        along, error, replaced = self._derived(params, basis, tile, differenced)
        # Without the barrier XLA joins rows to a matrix and multiplies by weights in one loop. A
        # pass takes 2 to 3.5 times as long (docs/kernel.md).
        return in_memory(jnp.concatenate([along, error[None]])), replaced

    def _derived(
        self, params: jax.Array, basis: jax.Array, tile: Tile, differenced: bool
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """``(J S)ᵀ`` of one tile, (q, tile), and the unweighted errors e = f - y, (tile,).

        The list holds the flags (tile,) of rows with differences, if `differenced`.
        """
        if differenced:
            values, along, replaced = with_differences(
                self._spec, tile.coords, params, basis, tile.valid
            )
            return along, values - tile.y, [replaced]
        if self._spec.jacobian is not None:
            jacobian = call_jacobian(self._spec, tile.coords, params)
            return (jacobian @ basis).T, self._error(params, tile), []
        error, derivative = jax.linearize(lambda theta: self._error(theta, tile), params)
        return jax.vmap(derivative, in_axes=1)(basis), error, []

    def _error(self, params: jax.Array, tile: Tile) -> jax.Array:
        return call_model(self._spec, tile.coords, params) - tile.y


def call_loss(function: ModelSpec, z: jax.Array) -> jax.Array:
    """ρ, ρ' and ρ'' of a user's loss, (3, n)."""
    return call_model(function, (z,), jnp.zeros(0))
