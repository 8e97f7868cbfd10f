"""A sweep over rows tile by tile: what is computed of a tile stays in the CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nlsq_dask.core.normal_equations import FloatArray

# Bytes of the values of one tile on a CPU; in the kernel, of the matrix A. Speed is flat within
# 20 % from 32 KiB to 1 MiB, the caches' sizes. But the matrix product packs A into memory of its
# own, twice, and under the MALLOC_TRIM_THRESHOLD_=65536 that Dask's nannies set for their workers
# larger pieces go back to the system after every tile: measured 4 to 5 times slower, by 33 page
# faults a tile.
CPU_TILE_BYTES = 1 << 16

# A pytree of sums over rows.
Sums = TypeVar("Sums")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as the kernel takes them: 1-D float64 buffers, of which the first ``n`` rows count."""

    coords: tuple[jax.Array | FloatArray, ...]
    y: jax.Array | FloatArray
    weights: jax.Array | FloatArray | None
    n: int


class Tile(NamedTuple):
    """Rows of one tile inside the kernel, and which of them count."""

    coords: tuple[jax.Array, ...]
    y: jax.Array
    weights: jax.Array | None
    valid: jax.Array


def sum_over_tiles(
    function: Callable[[Tile], Sums],
    zero: Sums,
    tile_bytes: int | None,
    coords: tuple[jax.Array, ...],
    y: jax.Array,
    weights: jax.Array | None,
    n: jax.Array,
    rows: int | None = None,
) -> Sums:
    """Sum a function of a tile over all tiles, while JAX traces.

    Parameters
    ----------
    function : callable
        Rows of a tile to their share.
    zero : pytree of jax.Array
        The sum over no rows; the first axis of its first leaf is as long as the function has values
        a row.
    tile_bytes : int or None
        Bytes of those values in a tile; None takes all rows at once.
    coords, y, weights, n
        As in :class:`Rows`, all of one capacity.
    rows : int or None
        Rows of a tile, where they do not follow from its bytes.
    """
    tile = rows or y.shape[0]
    if rows is None and tile_bytes is not None:
        tile = min(tile, tile_rows(tile_bytes, jax.tree.leaves(zero)[0].shape[0]))

    def add_tile(i: jax.Array, total: Sums) -> Sums:
        def cut(rows: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(rows, i * tile, tile)

        valid = i * tile + jnp.arange(tile) < n
        w = None if weights is None else cut(weights)
        one = function(Tile(tuple(cut(c) for c in coords), cut(y), w, valid))
        added: Sums = jax.tree.map(jnp.add, total, one)
        return added

    total: Sums = jax.lax.fori_loop(0, (n + tile - 1) // tile, add_tile, zero)
    return total


def tile_rows(tile_bytes: int, size: int) -> int:
    """Rows of a tile of ``size`` float64 values a row: a power of two, as buffers' lengths are."""
    return 1 << max(tile_bytes // (8 * size), 1).bit_length() - 1
