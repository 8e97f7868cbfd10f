"""The product ``A Aᵀ`` of linear loss, summed over the rows of a tile by lanes.

A tile of A (k, n) is read as (k, 8, L): eight turns of L rows, a row in each of L lanes. The sums
of a lane are

    G[j, k, l] = Σ_t A[j, t, l] A[k, t, l],    t = 1 ... 8,

and the lanes are added once, at the end of a buffer. This is a loop over all j, k and l whose body
is eight products: XLA makes one vectorised loop of it, without moving A into another order first,
as a library for matrix products does. G is symmetric: the loop takes some columns j at a time, and
only k from the first of them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nlsq_dask.kernels.products import LARGE_BUFFER
from nlsq_dask.user_model.model_spec import ModelSpec, operations_of

# Lanes and turns of a tile. A of a tile of 256 rows and eleven columns fits the first-level cache.
# Tiles of 512 or 1024 rows take a tenth to a quarter longer in JAX 0.10 (docs/kernel.md).
LANES = 32
TURNS = 8
TILE = LANES * TURNS

# Columns of one loop. Each loop costs compilation; all columns in one loop compute each product
# twice, and take up to a tenth longer for eleven columns.
LOOP_COLUMNS = 6

# Most columns of A. For 32 a matrix product is faster (docs/kernel.md).
MOST_COLUMNS = 26

# Operations that cost as much for a few rows as for many: a larger tile has fewer of them.
LOOPS = frozenset(["while", "scan"])


@dataclass(frozen=True)
class LanedSquare:
    """Sums of ``A Aᵀ`` over tiles of :data:`TILE` rows.

    Attributes
    ----------
    columns : int
        Rows k of A, which are the columns of a Jacobian and the residuals.
    """

    columns: int

    def held(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Parts (k, TILE) joined to one array (all k, TURNS, LANES) in memory.

        XLA computes an array in each loop that reads it, unless there is a barrier before all
        readers. After a change of shape behind the barrier it computes the array twice.
        """
        joined = jnp.concatenate([part.reshape(-1, TURNS, LANES) for part in parts])
        in_memory: jax.Array = jax.lax.optimization_barrier(joined)  # type: ignore[no-untyped-call]
        return in_memory

    def zero(self) -> tuple[jax.Array, ...]:
        """Sums over no rows."""
        return tuple(
            jnp.zeros((cut.stop - cut.start, self.columns - cut.start, LANES)) for cut in self._cuts
        )

    def of_tile(self, matrix: jax.Array) -> tuple[jax.Array, ...]:
        """Sums of each lane of A (k, TURNS, LANES)."""
        return tuple(
            added_turns(
                [matrix[cut, None, turn] * matrix[None, cut.start :, turn] for turn in range(TURNS)]
            )
            for cut in self._cuts
        )

    def finish(self, sums: tuple[jax.Array, ...]) -> jax.Array:
        """The symmetric matrix (k, k)."""
        rows = [
            jnp.pad(jnp.sum(part, axis=2), ((0, 0), (cut.start, 0)))
            for cut, part in zip(self._cuts, sums, strict=True)
        ]
        upper = jnp.triu(jnp.concatenate(rows))
        return upper + jnp.triu(upper, 1).T

    @property
    def _cuts(self) -> list[slice]:
        """Columns j of each loop."""
        starts = range(0, self.columns, LOOP_COLUMNS)
        return [slice(start, min(start + LOOP_COLUMNS, self.columns)) for start in starts]


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
    return fits and spec.series is None and not _loops(spec)


def _loops(spec: ModelSpec) -> bool:
    """Whether a model or its Jacobian calls Python, or has loops of its own."""
    models = (model for model in (spec, spec.jacobian) if model is not None)
    return any(
        eqn.primitive.name in LOOPS or "callback" in eqn.primitive.name
        for eqn in operations_of(models)
    )
