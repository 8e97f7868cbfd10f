"""Products of the columns of a Jacobian, summed over the rows of a tile.

Linear loss needs ``A Aᵀ`` alone (:mod:`nlsq_dask.kernels.square`). A robust loss needs
``Jᵀ diag(w) J`` for two weights w of its rows, of either sign, and ``Jᵀ u``:

- :class:`Multiplied` makes a matrix product for each weight;
- :class:`Laned` adds ``w J_j J_k`` for each pair of columns, row after row, into a vector of lanes,
  which a processor does without moving J into another order first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# Most columns for lanes, in large and in small buffers. Measured for "cauchy" (Xeon at 2.8 GHz,
# vectors of 256 bits), lanes and matrix products, in units of a pass of linear loss: 1.4 and 1.8
# for 3 columns, 1.4 and 1.6 for 10, 1.6 and 1.5 for 14. XLA compiles every pair by itself: for 10
# columns the compilation takes three times as long as for products. Only a fit of many rows earns
# these seconds back.
MOST_LANED_COLUMNS = 10
MOST_LANED_COLUMNS_SMALL = 4

# Most columns of a Jacobian that lanes read from one matrix. For 3 columns a pass is a tenth faster
# than with separate arrays.
MOST_COLUMNS_OF_A_MATRIX = 4

# Rows of a large buffer. Only data of about a million rows have such buffers.
LARGE_BUFFER = 1 << 17

# Rows of a tile and lanes of a sum. Eight rows a lane are unrolled: 1024/128 and 2048/256 are
# equally fast, other ratios and 4096/512 up to twice as slow.
LANES = 128
LANED_ROWS = 8 * LANES

# Columns of a Jacobian over the rows of a tile: a matrix (q, n), or separate arrays (n,).
Columns = jax.Array | tuple[jax.Array, ...]

Values = TypeVar("Values")
P = ParamSpec("P")


@dataclass(frozen=True)
class Multiplied:
    """Sums by matrix products, each of as many rows as the Jacobian and the residuals have.

    Attributes
    ----------
    columns : int
        Columns q of J.
    weights : int
        Weights of the rows.
    """

    columns: int
    weights: int

    @property
    def tile(self) -> int | None:
        """Rows of a tile; None computes them from its bytes."""
        return None

    @property
    def no_row(self) -> jax.Array:
        """The total of no rows."""
        return jnp.zeros(())

    def total(self, rows: jax.Array) -> jax.Array:
        """Sum of the rows of a tile (n,), to be added over tiles."""
        return jnp.sum(rows)

    def held(self, columns: jax.Array) -> Columns:
        """Columns (q, n) as they lie in memory."""
        return columns

    def zero(self) -> tuple[jax.Array, ...]:
        """Sums over no rows."""
        q = self.columns
        return (jnp.zeros((q + 1, q)), *[jnp.zeros((q, q))] * (self.weights - 1))

    def of_tile(
        self, columns: Columns, weights: list[jax.Array], other: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Sums over the rows of a tile: columns (q, n), weights and another column (n,)."""
        matrix = _as_matrix(columns)
        first, *more = [matrix * weight for weight in weights]
        weighted = [jnp.concatenate([first, other[None]]), *more]
        return tuple(rows @ matrix.T for rows in weighted)

    def finish(self, sums: tuple[jax.Array, ...]) -> tuple[list[jax.Array], jax.Array]:
        """A symmetric matrix (q, q) for each weight, and the products with the other column."""
        matrices = [sums[0][:-1], *sums[1:]]
        # The two halves of a matrix have different rounding errors.
        return [0.5 * (matrix + matrix.T) for matrix in matrices], sums[0][-1]


@dataclass(frozen=True)
class Laned:
    """The same sums by lanes, of a number of rows that :data:`LANES` divides."""

    columns: int
    weights: int

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return LANED_ROWS

    @property
    def no_row(self) -> jax.Array:
        """The total of no rows."""
        return jnp.zeros(LANES)

    def total(self, rows: jax.Array) -> jax.Array:
        """Sums of every :data:`LANES`-th of the rows of a tile (n,)."""
        return jnp.sum(rows.reshape(-1, LANES), axis=0)

    def held(self, columns: jax.Array) -> Columns:
        """Columns (q, n) as they lie in memory.

        If the columns are separate arrays, the loops over pairs of columns differ in their
        arguments only, and XLA compiles a loop once: for 11 columns in half the time.
        """
        return columns if self.columns <= MOST_COLUMNS_OF_A_MATRIX else tuple(columns)

    def zero(self) -> tuple[jax.Array, ...]:
        """Sums over no rows, as separate arrays: XLA copies an array if only a part changes."""
        pairs = self.columns * (self.columns + 1) // 2
        return tuple(jnp.zeros(LANES) for _ in range(pairs * self.weights + self.columns))

    def of_tile(
        self, columns: Columns, weights: list[jax.Array], other: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Sums over the rows of a tile: columns (q, n), weights and another column (n,)."""
        q = self.columns
        pairs = [columns[j] * columns[k] for j in range(q) for k in range(j, q)]
        weighted = [pair * w for w in weights for pair in pairs]
        others = [columns[j] * other for j in range(q)]
        return tuple(self.total(rows) for rows in (*weighted, *others))

    def finish(self, sums: tuple[jax.Array, ...]) -> tuple[list[jax.Array], jax.Array]:
        """A symmetric matrix (q, q) for each weight, and the products with the other column."""
        totals = jnp.sum(jnp.stack(sums), axis=1)
        halves = totals[: -self.columns].reshape(self.weights, -1)
        place = np.zeros((self.columns, self.columns), int)
        upper = np.triu_indices(self.columns)
        place[upper] = place.T[upper] = np.arange(upper[0].size)
        return [half[place] for half in halves], totals[-self.columns :]


def products_for(
    columns: int, weights: int, *, capacity: int, tile_bytes: int | None
) -> Multiplied | Laned:
    """The faster kind of products for a number of columns.

    Parameters
    ----------
    columns, weights : int
    capacity : int
        Rows of a buffer.
    tile_bytes : int or None
        As in :func:`nlsq_dask.kernels.tiles.sum_over_tiles`.
    """
    most = MOST_LANED_COLUMNS if capacity >= LARGE_BUFFER else MOST_LANED_COLUMNS_SMALL
    kind = Laned if _fits(capacity, tile_bytes) and columns <= most else Multiplied
    return kind(columns, weights)


def _fits(capacity: int, tile_bytes: int | None) -> bool:
    """Whether a buffer is a number of whole tiles of lanes."""
    return tile_bytes is not None and capacity % LANED_ROWS == 0


def computed_once(
    condition: jax.Array | bool, function: Callable[P, Values], *args: P.args, **kwargs: P.kwargs
) -> Values:
    """Value of a function if the condition holds, as arrays in memory; else zeros.

    XLA computes cheap values again in every loop that reads them, even with an
    ``optimization_barrier``. The value of a branch is computed once.
    """
    shapes = jax.eval_shape(function, *args, **kwargs)

    def zeros() -> Values:
        made: Values = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return made

    chosen: Values = jax.lax.cond(condition, lambda: function(*args, **kwargs), zeros)
    return chosen


def products_of_scores(columns: Columns, scores: jax.Array) -> jax.Array:
    """``Σ ψ² j jᵀ`` of the rows j of J and the derivatives ψ of their loss."""
    weighted = _as_matrix(columns) * scores
    return weighted @ weighted.T


def no_products(columns: Columns, _: jax.Array) -> jax.Array:
    """Zeros in place of the products of scores."""
    return jnp.zeros((len(columns),) * 2)


def _as_matrix(columns: Columns) -> jax.Array:
    return columns if isinstance(columns, jax.Array) else jnp.stack(columns)
