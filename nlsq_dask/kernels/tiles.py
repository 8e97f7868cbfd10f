"""A loop over rows tile by tile: the values of one tile stay in the CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.elementary import in_memory

# Bytes of the values of one tile on a CPU; in the kernel, of the matrix A. Speed is flat within
# 20 % from 32 KiB to 1 MiB, the sizes of the caches. The matrix product packs A into temporary
# memory, twice. Dask's nannies set MALLOC_TRIM_THRESHOLD_=65536 for their workers, by which larger
# pieces go back to the system after every tile: 33 page faults a tile, 4 to 5 times slower.
CPU_TILE_BYTES = 1 << 16

# Rows that wide buffers have more than a part. XLA takes a NumPy array without a copy only from an
# address that is a multiple of 64 bytes: a part begins up to seven float64 values behind such an
# address.
MORE_ROWS = 8

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
    starts : tuple of int or None
        Of wide buffers, which have MORE_ROWS rows more: the place of the first row in `y`, in each
        coordinate, and in `weights` if there are any. None for buffers that begin with the rows.
    wide : Rows or None
        Aligned wide buffers that hold these rows, which the kernel takes in their place. The arrays
        above are then views (capacity,) of the wide buffers. None in a function that JAX traces.
    """

    coords: tuple[jax.Array | FloatArray, ...]
    y: jax.Array | FloatArray
    weights: jax.Array | FloatArray | None
    n: int
    counted: jax.Array | NDArray[np.bool_] | None = None
    starts: tuple[int, ...] | None = None
    wide: Rows | None = None

    @classmethod
    def inside(cls, wide: Rows) -> Rows:
        """The rows of wide buffers, as views of one capacity."""
        assert wide.starts is not None, "wide buffers"

        def view(buffer: jax.Array | FloatArray, start: int) -> jax.Array | FloatArray:
            return buffer[start : start + wide.capacity]

        y, *columns = map(view, wide.buffers, wide.starts)
        weights = None if wide.weights is None else columns.pop()
        return cls(tuple(columns), y, weights, wide.n, wide=wide)

    @property
    def buffers(self) -> tuple[jax.Array | FloatArray, ...]:
        """``y``, the coordinates, and the weights if there are any."""
        return (self.y, *self.coords) + (() if self.weights is None else (self.weights,))

    @property
    def capacity(self) -> int:
        """Most rows of the buffers."""
        length: int = self.y.shape[0]
        return length if self.starts is None else length - MORE_ROWS

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
    function: Callable[[Tile], Sums | list[Sums]],
    zero: Sums,
    tile_bytes: int | None,
    rows: Rows,
    size: int | None = None,
    series_rows: int = 1,
    loops: bool = True,
) -> Sums:
    """Sum a function of a tile over all tiles, while JAX traces.

    Parameters
    ----------
    function : callable
        Maps a tile to its part of the sum, or to a list of parts that are added in their order.
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
    loops : bool
        Whether a single tile is summed by a loop, too. XLA takes two fifths less time to compile
        the sums of linear loss without a loop. A robust loss then rounds otherwise, and XLA calls a
        model in Python in any order.
    """
    tile = size or rows.capacity
    if size is None and tile_bytes is not None:
        values = jax.tree.leaves(zero)[0].shape[0]
        tile = min(tile, tile_rows(tile_bytes, values, series_rows))

    # Without the array each loop over a column builds vectors of places number by number: a fifth
    # of a pass by lanes (docs/kernel.md).
    places = jnp.arange(tile) if size is None else in_memory(jnp.arange(tile))

    def has_rows(loop: tuple[jax.Array, Sums]) -> jax.Array:
        return loop[0] * tile < rows.n

    def add_tile(loop: tuple[jax.Array, Sums]) -> tuple[jax.Array, Sums]:
        i, total = loop
        valid = places < rows.n - i * tile
        if rows.counted is not None:
            valid &= cut_tile(rows.counted, i, tile)
        starts = rows.starts or (None,) * len(rows.buffers)
        y, *columns = (cut_tile(b, i, tile, at) for b, at in zip(rows.buffers, starts, strict=True))
        weights = None if rows.weights is None else columns.pop()
        share = function(Tile(tuple(columns), y, weights, valid))
        for part in share if isinstance(share, list) else [share]:
            total = jax.tree.map(jnp.add, total, part)
        return i + 1, total

    start = jnp.zeros((), jnp.int64), zero
    if tile == rows.capacity and not loops:
        return add_tile(start)[1]
    # XLA takes a seventh less time to compile this than a loop over a number of tiles, which it
    # would divide and round.
    total: Sums = jax.lax.while_loop(has_rows, add_tile, start)[1]
    return total


def cut_tile(
    values: jax.Array | FloatArray | NDArray[np.bool_],
    i: jax.Array,
    size: int,
    start: int | None = None,
) -> jax.Array:
    """Rows of tile i of a buffer, while JAX traces; a tile beyond the end is moved back.

    The first tile begins at `start`, by default at the first value.

    Indices are never negative. Otherwise every row computes the place of its tile, and JAX 0.12
    gathers the rows one by one in place of reading vectors.
    """
    first = i * size if start is None else i * size + start
    return jax.lax.dynamic_slice_in_dim(values, first, size, allow_negative_indices=False)


def tile_rows(tile_bytes: int, size: int, series_rows: int = 1) -> int:
    """Rows of a tile of ``size`` float64 values a row: a power of two, as buffers' lengths are.

    Of series the tile holds a power of two, so many or one.
    """
    return series_rows << max(tile_bytes // (8 * size * series_rows), 1).bit_length() - 1
