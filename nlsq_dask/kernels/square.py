"""The product ``A Aᵀ`` of linear loss, summed over the rows of a tile by lanes.

A block of A (k, n) is read as (k, 8, L): eight turns of L rows, a row in each of L lanes. The sums
of the blocks of a tile are added one after the other. G = A Aᵀ is symmetric. Its diagonals,
continued at the first column behind the last, hold every pair of columns: pair (j, j + d) for all j
and d = 0 ... k / 2. The sums of a lane are

    S[j, d, l] = Σ_t A[j, t, l] A[j + d, t, l],    t = 1 ... 8,    j + d modulo k,

and the lanes are added once, at the end of a buffer. This is a loop over all j, d and l whose body
is eight products: XLA makes one vectorised loop of it, without moving A into another order first,
as a library for matrix products does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.kernels.compiled import MAX_KERNELS
from nlsq_dask.kernels.products import LARGE_BUFFER
from nlsq_dask.user_model.elementary import in_memory
from nlsq_dask.user_model.model_spec import ModelSpec, operations_of

# Lanes and turns of a block, whose products are added at once. More lanes or turns take a tenth to
# a quarter longer in JAX 0.10 (docs/kernel.md).
LANES = 32
TURNS = 8

# Most blocks of a tile of linear loss. XLA goes from loop to loop once a tile, which takes a tenth
# of a pass over four columns with tiles of one block. Four blocks gain no more than two
# (docs/kernel.md). With vectors of 512 bits two blocks were not measured.
BLOCKS = 2
TILE = BLOCKS * LANES * TURNS

# Lanes of the sums of a robust loss, which has more arrays and more loops a tile: for few columns
# 64 lanes take a tenth less than 32, and for ten columns a quarter more (docs/kernel.md).
FEW_COLUMNS = 4
FEW_COLUMNS_LANES = 64

# Most columns of A. For 32 a matrix product is faster (docs/kernel.md).
MOST_COLUMNS = 26

# Most columns of a Jacobian with a robust loss. For 13 and 19 a pass takes half the time of matrix
# products; more were not measured.
MOST_WEIGHTED_COLUMNS = 20

# Operations that cost as much for a few rows as for many: a larger tile has fewer of them.
LOOPS = frozenset(["while", "scan"])


@dataclass(frozen=True)
class LanedSquare:
    """Sums of ``A Aᵀ`` over tiles.

    Attributes
    ----------
    columns : int
        Rows k of A, which are the columns of a Jacobian and the residuals.
    blocks : int
        Blocks of a tile, at most :data:`BLOCKS`. The sums have the same bits for any number.
    """

    columns: int
    blocks: int = BLOCKS

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return self.blocks * TURNS * LANES

    def held(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Parts (k, tile) joined to one array (all k, blocks TURNS, LANES) in memory."""
        return held_turns(parts, self.blocks * TURNS, LANES)

    def cut(self, held: jax.Array) -> list[jax.Array]:
        """The blocks (k, TURNS, LANES) of an array of :meth:`held`."""
        return [held[:, first : first + TURNS] for first in range(0, self.blocks * TURNS, TURNS)]

    def zero(self) -> jax.Array:
        """Sums over no rows."""
        return jnp.zeros((self.columns, self._diagonals, LANES))

    def of_block(self, matrix: jax.Array) -> jax.Array:
        """Sums (k, diagonals, LANES) of each lane of a block of A (k, TURNS, LANES)."""
        turns = [matrix[:, turn] for turn in range(TURNS)]
        return added_turns([turn[:, None] * next_columns(turn) for turn in turns])

    def finish(self, sums: jax.Array) -> jax.Array:
        """The symmetric matrix (k, k)."""
        return symmetric(sums)

    @property
    def _diagonals(self) -> int:
        return self.columns // 2 + 1


@dataclass(frozen=True)
class WeightedSquare:
    """Sums of ``J diag(w) Jᵀ`` for some weights w of the rows of a tile.

    Attributes
    ----------
    columns : int
        Rows q of J, which are the columns of a Jacobian.
    weights : int
    """

    columns: int
    weights: int

    @property
    def lanes(self) -> int:
        """Lanes of a sum."""
        return FEW_COLUMNS_LANES if self.columns <= FEW_COLUMNS else LANES

    def held(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Parts (k, tile) joined to one array (all k, TURNS, lanes) in memory."""
        return held_turns(parts, TURNS, self.lanes)

    def zero(self) -> jax.Array:
        """Sums over no rows."""
        return jnp.zeros((self.weights, self.columns, self.columns // 2 + 1, self.lanes))

    def of_tile(self, matrix: jax.Array, weights: jax.Array) -> jax.Array:
        """Sums of each lane of J (q, TURNS, lanes) and w (weights, TURNS, lanes)."""
        products = []
        for turn in range(TURNS):
            columns = matrix[:, turn]
            weighted = weights[:, None, turn] * columns
            products.append(weighted[:, :, None] * next_columns(columns))
        return added_turns(products)

    def finish(self, sums: jax.Array) -> list[jax.Array]:
        """A symmetric matrix (q, q) for each weight."""
        return [symmetric(of_weight) for of_weight in sums]


def held_turns(parts: Sequence[jax.Array], turns: int, lanes: int) -> jax.Array:
    """Parts (k, tile) joined to one array (all k, turns, lanes) in memory.

    After a change of shape behind the barrier XLA computes the array twice.
    """
    return in_memory(jnp.concatenate([part.reshape(-1, turns, lanes) for part in parts]))


def next_columns(columns: jax.Array) -> jax.Array:
    """Columns j, j + 1, ... (k, diagonals, lanes) of columns (k, lanes), for each j.

    The columns again and again, in rows of k + 1, begin with column j in row j. Unlike a choice by
    indices this only changes shapes, which XLA turns into addresses.
    """
    k, lanes = columns.shape
    repeated = jnp.tile(columns, (k + 1, 1)).reshape(k, k + 1, lanes)
    return repeated[:, : k // 2 + 1]


def symmetric(sums: jax.Array) -> jax.Array:
    """The symmetric matrix (k, k) of sums (k, diagonals, lanes)."""
    size, diagonals = sums.shape[:2]
    place = np.zeros((size, size), int)
    for number, (j, d) in enumerate(np.ndindex(size, diagonals)):
        k = (j + d) % size
        # For an even size the last diagonal holds its pairs twice: the later is taken for both.
        place[j, k] = place[k, j] = number
    return jnp.sum(sums, axis=2).ravel()[place]


def added_turns(values: Sequence[jax.Array]) -> jax.Array:
    """Sum of arrays, in their order."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def squares_by_lanes(spec: ModelSpec, columns: int, capacity: int) -> bool:
    """Whether lanes are faster than a matrix product.

    Parameters
    ----------
    spec : ModelSpec
    columns : int
        Rows k of A.
    capacity : int
        Rows of a buffer; 0 for a buffer without tiles.
    """
    # In JAX 0.10 the loops take 0.2 s more to trace and compile. Small data do not earn that back.
    fits = capacity >= LARGE_BUFFER and capacity % TILE == 0 and columns <= MOST_COLUMNS
    return fits and spec.series is None and not calls_or_loops(spec)


@lru_cache(MAX_KERNELS)
def calls_or_loops(spec: ModelSpec) -> bool:
    """Whether a model or its Jacobian calls Python, or has loops of its own."""
    models = (model for model in (spec, spec.jacobian) if model is not None)
    return any(
        eqn.primitive.name in LOOPS or "callback" in eqn.primitive.name
        for eqn in operations_of(models)
    )
