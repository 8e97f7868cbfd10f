"""A loop over rows tile by tile: the values of one tile stay in the CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray

# Bytes of the values of one tile on a CPU; in the kernel, of the matrix A. Speed is flat within
# 20 % from 32 KiB to 1 MiB, the sizes of the caches. The matrix product packs A into temporary
# memory, twice. Dask's nannies set MALLOC_TRIM_THRESHOLD_=65536 for their workers, by which larger
# pieces go back to the system after every tile: 33 page faults a tile, 4 to 5 times slower.
CPU_TILE_BYTES = 1 << 16

# A pytree of sums over rows.
Sums = TypeVar("Sums")


class Rows(NamedTuple):
    """Rows as a kernel takes them: 1-D float64 buffers; the first ``n`` rows are filled.

    In a function that JAX traces all parts are traced arrays.

    Attributes
    ----------
    coords : tuple of array, each (capacity,)
    y : array (capacity,)
    weights : array (capacity,) or None
    n : int
    counted : array of bool (capacity,) or None
        Which of the filled rows count, for rows in whole series; None if all do.
    """

    coords: tuple[jax.Array | FloatArray, ...]
    y: jax.Array | FloatArray
    weights: jax.Array | FloatArray | None
    n: int
    counted: jax.Array | NDArray[np.bool_] | None = None

    @property
    def n_counted(self) -> int:
        """Number of rows that count; for rows outside of JAX's traces."""
        if self.counted is None:
            return self.n
        return int(np.count_nonzero(np.asarray(self.counted)[: self.n]))

    def only_counted(self) -> Rows:
        """The rows that count, without gaps; for rows outside of JAX's traces."""
        if self.counted is None or self.n_counted == self.n:
            return self
        kept = np.flatnonzero(np.asarray(self.counted)[: self.n])
        coords = tuple(np.asarray(c)[kept] for c in self.coords)
        weights = None if self.weights is None else np.asarray(self.weights)[kept]
        return Rows(coords, np.asarray(self.y)[kept], weights, kept.size)


class Tile(NamedTuple):
    """Rows of one tile inside the kernel; `valid` marks the rows that count."""

    coords: tuple[jax.Array, ...]
    y: jax.Array
    weights: jax.Array | None
    valid: jax.Array


def sum_over_tiles(
    function: Callable[[Tile], Sums],
    zero: Sums,
    tile_bytes: int | None,
    rows: Rows,
    size: int | None = None,
    series_rows: int = 1,
) -> Sums:
    """Sum a function of a tile over all tiles, while JAX traces.

    Parameters
    ----------
    function : callable
        Maps a tile to its part of the sum.
    zero : pytree of jax.Array
        The sum over no rows. The length of the first axis of its first leaf is the number of values
        that the function has for each row.
    tile_bytes : int or None
        Bytes of those values in a tile; None takes all rows at once.
    rows : Rows
        Buffers of one capacity.
    size : int or None
        Rows of a tile of sums by lanes; None computes them from `tile_bytes`.
    series_rows : int
        Rows that are never cut.
    """
    tile = size or rows.y.shape[0]
    if size is None and tile_bytes is not None:
        values = jax.tree.leaves(zero)[0].shape[0]
        tile = min(tile, tile_rows(tile_bytes, values, series_rows))

    def add_tile(i: jax.Array, total: Sums) -> Sums:
        def cut(values: jax.Array | FloatArray | NDArray[np.bool_]) -> jax.Array:
            return cut_tile(values, i, tile)

        valid = i * tile + jnp.arange(tile) < rows.n
        if rows.counted is not None:
            valid &= cut(rows.counted)
        w = None if rows.weights is None else cut(rows.weights)
        share = function(Tile(tuple(cut(c) for c in rows.coords), cut(rows.y), w, valid))
        added: Sums = jax.tree.map(jnp.add, total, share)
        return added

    total: Sums = jax.lax.fori_loop(0, (rows.n + tile - 1) // tile, add_tile, zero)
    return total


def cut_tile(
    values: jax.Array | FloatArray | NDArray[np.bool_], i: jax.Array, size: int
) -> jax.Array:
    """Rows of tile i of a buffer, while JAX traces; a tile beyond the end is moved back.

    Indices are never negative. Otherwise every row computes the place of its tile, and JAX 0.12
    gathers the rows one by one in place of reading vectors.
    """
    return jax.lax.dynamic_slice_in_dim(values, i * size, size, allow_negative_indices=False)


def tile_rows(tile_bytes: int, size: int, series_rows: int = 1) -> int:
    """Rows of a tile of ``size`` float64 values a row: a power of two, as buffers' lengths are.

    Of series the tile holds a power of two, so many or one.
    """
    return series_rows << max(tile_bytes // (8 * size * series_rows), 1).bit_length() - 1
