"""The kernel: the part of the normal equations that one block of rows contributes.

For rows (x_i, y_i, w_i), parameters θ (p,) and a basis S (p, q), with r_i = w_i (f(x_i; θ) - y_i)
and J = ∂r/∂θ (n, p), the kernel returns the symmetric matrix

    A Aᵀ (q + 1, q + 1)   of   A = [(J S)ᵀ; rᵀ] (q + 1, n)

whose parts are the Gram matrix (J S)ᵀ(J S), the gradient (J S)ᵀr and Σ r². A robust loss gives
weights to the rows of these sums. A loss that is concave in some residuals adds its part of the
curvature, a second (q, q) matrix (:mod:`nlsq_dask.kernels.products`). On request a third matrix
holds the products of the rows' scores, for the covariance of the estimates. A branch at run time
skips this matrix at no cost.

The kernel goes through the rows tile by tile, so that A of one tile stays in the CPU's cache and
the memory of a block does not depend on p. The rows of (J S)ᵀ are directional derivatives along the
columns of S, by forward mode: ``jax.linearize`` once a tile, and a ``vmap`` over the columns.

If the sums of a buffer are not finite although the residuals are, some derivative is not finite.
Then a second kernel, compiled only for this case, takes the same rows with differences in place of
such derivatives (:mod:`nlsq_dask.kernels.derivatives`). The choice depends on the rows of this
buffer alone, so that every engine makes the same choice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.kernels.agreement import check_agreement
from nlsq_dask.kernels.compiled import compilations, kept_kernel
from nlsq_dask.kernels.derivatives import can_be_differenced
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.moments import (
    largest_of,
    moments_of_y,
    sample_of_columns,
    sample_of_y,
)
from nlsq_dask.kernels.products import (
    LARGE_BUFFER,
    Columns,
    Laned,
    Multiplied,
    computed_once,
    no_products,
    products_for,
    products_of_scores,
)
from nlsq_dask.kernels.square import (
    BLOCKS,
    FEW_COLUMNS,
    LANES,
    MOST_WEIGHTED_COLUMNS,
    TURNS,
    LanedSquare,
    WeightedSquare,
    added_turns,
    squares_by_lanes,
)
from nlsq_dask.kernels.tile_kernel import TileKernel, call_loss
from nlsq_dask.kernels.tiles import Rows, Sums, Tile
from nlsq_dask.user_model.loss import HALF_OF_ROWS
from nlsq_dask.user_model.model_spec import ModelSpec


class BlockKernel(TileKernel):
    """Sums over the rows of a buffer.

    Parameters as for :class:`CompiledKernel`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tile_bytes: int | None,
        devices: tuple[jax.Device, ...],
        whole: bool,
        vector_bits: int = XLA_VECTOR_BITS,
    ) -> None:
        super().__init__(spec, tile_bytes, devices, whole, vector_bits)
        self._sums = self._jitted(self._sums_of_tiles)
        self._small_sums = self._jitted(self._sums_of_tiles, multiplies=True)
        self._costs = self._jitted(self._costs_of_tiles)
        self._score_products = self._jitted(self._score_products_of_tiles)
        self._differenced_sums = self._jitted(partial(self._sums_of_tiles, differenced=True))
        self._differenced_score_products = self._jitted(
            partial(self._score_products_of_tiles, differenced=True)
        )
        self._is_compared = False
        self._is_comparing = False
        self._comparing = threading.RLock()

    def compare_anew(self) -> Self:
        """Compare the next rows with the model called as it is, as in each fit in memory."""
        self._is_compared = False
        return self

    def __call__(
        self,
        params: FloatArray,
        basis: FloatArray,
        rows: Rows,
        observe_y: bool = False,
        scores: bool = False,
    ) -> NormalEquations:
        """Sum over the rows of one buffer.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        basis : ndarray, shape (p, q), float64
        rows : Rows
        observe_y : bool
            Whether to compute the moments of y and the largest values, which are the same in every
            pass.
        scores : bool
            Whether to sum the products of the scores, if the loss is robust.

        Returns
        -------
        NormalEquations
            Returned only when the kernel no longer reads the buffers.
        """
        if not self._is_compared:
            self._compare(params, basis, rows)
        q, loss = basis.shape[1], self._spec.loss
        at = (params, basis, np.bool_(scores))
        multiplies = loss.is_linear and rows.capacity < LARGE_BUFFER
        sums = self._sum(self._small_sums if multiplies else self._sums, at, rows)
        n_differenced = 0
        # The gradient, and Σ r², which is finite where all values of the model are.
        last_row = sums[q * (q + 1) : (q + 1) ** 2].tolist()
        n_points = rows.n_counted
        chi2 = last_row[-1]
        is_spoilt = not math.isfinite(sum(last_row)) and math.isfinite(chi2)
        if is_spoilt and can_be_differenced(self._spec, rows.capacity):
            found = self._sum(self._differenced_sums, at, rows)
            sums, n_differenced = found[:-1], int(found[-1])
        products, rest = _taken(sums, q + 1)
        concave = score_products = None
        if loss.is_concave:
            concave, rest = _taken(rest, q)
        if not loss.is_linear:
            score_products, rest = _taken(rest, q)
            if scores and not n_differenced and self._weighs_by_lanes(q, rows):
                score_products = self._products_of_scores(params, basis, rows)
        abs_errors, *extra = rest
        # For linear loss, and without weights, some of the sums are equal and summed once.
        cost, n_small = 0.5 * chi2, 0.0
        if not loss.is_linear:
            cost, chi2, n_small, *extra = map(float, extra)
            if not math.isfinite(cost) and math.isfinite(chi2):
                # The product of the terms of eight rows may overflow where no term does.
                cost = float(self.costs(params[None], rows)[0])
        sq_errors = float(extra[0]) if extra else chi2
        largest = None
        moments = Moments(float(abs_errors), sq_errors, n_small=n_small)
        if observe_y:
            counted = rows.only_counted()
            of_y = moments_of_y(counted, self._spec.cholesky)
            moments, largest = replace(moments, **of_y), largest_of(counted)
        return NormalEquations(
            products[:-1, :-1].copy(),
            products[:-1, -1].copy(),
            cost=cost,
            chi2=chi2,
            n_points=n_points,
            moments=moments,
            concave=concave,
            largest=largest,
            n_differenced=n_differenced,
            sample_of_y=sample_of_y(rows),
            sample_of_columns=sample_of_columns(rows),
            scores=score_products if scores else None,
        )

    def _sum(
        self, function: Callable[..., jax.Array], at: tuple[FloatArray | np.bool_, ...], rows: Rows
    ) -> FloatArray:
        """Value of a jitted function ``function(*at, rows)``."""
        rows = rows.wide or rows
        layout = (rows.y.shape, rows.weights is None, rows.counted is None, rows.starts is None)
        # Scalars of NumPy are arguments of the kernel, not constants.
        starts = None if rows.starts is None else tuple(map(np.int64, rows.starts))
        given = rows._replace(n=np.int64(rows.n), starts=starts)  # type: ignore[arg-type]
        return self._run(function, at, given, layout)

    def _compare(self, params: FloatArray, basis: FloatArray, rows: Rows) -> None:
        """Compare the kernel with its model. The comparison calls this kernel again."""
        with self._comparing:  # a user's model need not run in several threads at a time
            if self._is_compared or self._is_comparing:
                return
            self._is_comparing = True
            try:
                check_agreement(self, self._spec, params, basis, rows, self._is_whole)
            finally:
                self._is_comparing = False
            self._is_compared = True

    def costs(self, candidates: FloatArray, rows: Rows) -> FloatArray:
        """Half the sum of squared residuals of several candidates at once.

        Parameters
        ----------
        candidates : ndarray, shape (k, p), float64
        rows : Rows

        Returns
        -------
        ndarray, shape (k,), float64
            Not finite for a candidate where the model is not finite.
        """
        sums = self._sum(self._costs, (candidates,), rows)
        return 0.5 * sums if self._spec.loss.is_linear else sums

    def score_products(self, params: FloatArray, rows: Rows) -> FloatArray:
        """Sum of outer products of the rows' scores, for a robust covariance.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        rows : Rows

        Returns
        -------
        ndarray, shape (p, p), float64
            ``Σ (ρ'_i r_i)² j_i j_iᵀ`` of the weighted residuals and the rows of their Jacobian;
            ρ' = 1 for linear loss.
        """
        return self._products_of_scores(params, np.eye(params.size), rows)

    def _products_of_scores(self, params: FloatArray, basis: FloatArray, rows: Rows) -> FloatArray:
        """The same along the columns of a basis (p, q)."""
        products = self._sum(self._score_products, (params, basis), rows)
        if np.isfinite(products).all() or not can_be_differenced(self._spec, rows.capacity):
            return products
        return self._sum(self._differenced_score_products, (params, basis), rows)

    def _sums_of_tiles(
        self,
        params: jax.Array,
        basis: jax.Array,
        scores: jax.Array,
        rows: Rows,
        differenced: bool = False,
    ) -> jax.Array:
        # Differences are rare: they are not worth the compilation of another order of sums.
        if not differenced and self._weighs_by_lanes(basis.shape[1], rows):
            return self._laned_robust_sums(params, basis, rows)
        if not self._spec.loss.is_linear:
            return self._robust_sums(params, basis, scores, rows, differenced)
        if not differenced and self._squares_by_lanes(basis.shape[1] + 1, rows):
            return self._laned_sums(params, basis, rows)
        weighted = self._is_weighted(rows)

        def sums(tile: Tile) -> tuple[jax.Array, ...]:
            directions, replaced = self._augmented(params, basis, tile, differenced)
            residuals = self._weighted(directions, tile)
            errors = jnp.where(tile.valid, directions[-1], 0.0)
            extra = [jnp.abs(errors)]
            if weighted:
                extra.append(errors**2)
            extra += replaced
            return residuals @ residuals.T, jnp.stack([jnp.sum(e) for e in extra])

        q = basis.shape[1]
        zero: tuple[jax.Array, ...] = (
            jnp.zeros((q + 1, q + 1)),
            jnp.zeros(1 + weighted + differenced),
        )
        return jnp.concatenate([s.ravel() for s in self._over_tiles(sums, zero, rows)])

    def _squares_by_lanes(self, columns: int, rows: Rows) -> bool:
        capacity = 0 if self._tile_bytes is None else rows.capacity
        return squares_by_lanes(self._spec, columns, capacity)

    def _laned_sums(self, params: jax.Array, basis: jax.Array, rows: Rows) -> jax.Array:
        """The same sums of linear loss by lanes."""
        blocks = 1 if self._is_wide else BLOCKS
        square, weighted = LanedSquare(basis.shape[1] + 1, blocks), rows.weights is not None
        # JAX 0.10 runs a tile of more than eight loops with queues: the sums of errors are one
        # array. Apart they are faster where there are few loops (docs/kernel.md).
        apart = weighted and basis.shape[1] <= FEW_COLUMNS

        def of_block(held: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            errors = [held[-1, turn] for turn in range(TURNS)]
            extra = [added_turns([jnp.abs(e) for e in errors])]
            if weighted:
                extra.append(added_turns([e**2 for e in errors]))
            return square.of_block(held[: square.columns]), extra if apart else [jnp.stack(extra)]

        def sums(tile: Tile) -> list[tuple[jax.Array, list[jax.Array]]]:
            along, error, _ = self._derived(params, basis, tile, differenced=False)
            parts = [self._weighted(along, tile), self._weighted(error[None], tile)]
            if weighted:
                parts.append(jnp.where(tile.valid, error, 0.0)[None])
            return [of_block(held) for held in square.cut(square.held(parts))]

        none = [jnp.zeros(LANES)] * 2 if apart else [jnp.zeros((1 + weighted, LANES))]
        zero = square.zero(), none
        found, extras = self._over_tiles(sums, zero, rows, square.tile)
        totals = [jnp.sum(extra, axis=-1).ravel() for extra in extras]
        return jnp.concatenate([square.finish(found).ravel(), *totals])

    def _weighs_by_lanes(self, columns: int, rows: Rows) -> bool:
        """Whether the sums of a robust loss are summed by lanes, and those of scores apart."""
        few = columns <= MOST_WEIGHTED_COLUMNS
        return self._spec.loss.is_named and few and self._squares_by_lanes(columns + 1, rows)

    def _laned_robust_sums(self, params: jax.Array, basis: jax.Array, rows: Rows) -> jax.Array:
        """The sums of a robust loss by lanes, with zeros in place of the products of the scores.

        A branch for these products in the loop over tiles takes as long as half a pass.
        """
        q, loss = basis.shape[1], self._spec.loss
        square = WeightedSquare(q, 1 + loss.is_concave)
        weighted = rows.weights is not None
        largest_small = (HALF_OF_ROWS * loss.f_scale) ** 2

        def sums(tile: Tile) -> tuple[jax.Array, jax.Array]:
            along, error, _ = self._derived(params, basis, tile, differenced=False)
            parts = [self._weighted(along, tile), self._weighted(error[None], tile)]
            if weighted:
                parts.append(jnp.where(tile.valid, error, 0.0)[None])
            held = square.held(parts)
            columns, valid = held[:q], tile.valid.reshape(TURNS, square.lanes)
            scores, row_weights = loss.of_named_rows(held[q])
            terms = square.held([scores, *row_weights])
            # By turns, which need no array of all residuals: JAX 0.10 runs a tile of more than
            # eight loops with queues (docs/kernel.md).
            residuals = [held[q, turn] for turn in range(TURNS)]
            errors = [held[-1, turn] for turn in range(TURNS)]
            squares = [r**2 for r in residuals]
            small = [v & (s <= largest_small) for v, s in zip(valid, squares, strict=True)]
            totals = [
                added_turns([jnp.abs(e) for e in errors]),
                loss.total_cost(residuals),
                added_turns(squares),
                added_turns([jnp.where(s, 1.0, 0.0) for s in small]),
            ]
            if weighted:
                totals.append(added_turns([e**2 for e in errors]))
            gradient = added_turns([columns[:, turn] * terms[0, turn] for turn in range(TURNS)])
            joined = jnp.concatenate([gradient, jnp.stack(totals)])
            return square.of_tile(columns, terms[1:]), joined

        zero = square.zero(), jnp.zeros((q + 4 + weighted, square.lanes))
        found, rest = self._over_tiles(sums, zero, rows, TURNS * square.lanes)
        gram, *concave = square.finish(found)
        gradient, totals = jnp.split(jnp.sum(rest, axis=1), [q])
        return _joined(gram, gradient, totals[2:3], *concave, jnp.zeros((q, q)), totals)

    @property
    def _tile_bytes_of_lanes(self) -> int | None:
        """The tiles of series have other lengths than lanes need."""
        return None if self._spec.series else self._tile_bytes

    def _weighted_rows(
        self,
        products: Multiplied | Laned,
        params: jax.Array,
        basis: jax.Array,
        differenced: bool,
        tile: Tile,
    ) -> tuple[Columns, jax.Array, list[jax.Array], list[jax.Array]]:
        """J S and the residuals of a tile, and lists of at most one array.

        The lists hold the errors, where they are not the residuals, and the flags of rows with
        differences.
        """
        along, error, replaced = self._derived(params, basis, tile, differenced)
        errors = []
        if tile.weights is not None or self._spec.cholesky is not None:
            errors = [jnp.where(tile.valid, error, 0.0)]
        # Not joined to one matrix, which XLA would write and read once more.
        columns, residuals = self._weighted(along, tile), self._weighted(error[None], tile)[0]
        return products.held(columns), residuals, errors, replaced

    def _robust_sums(
        self,
        params: jax.Array,
        basis: jax.Array,
        scores: jax.Array,
        rows: Rows,
        differenced: bool,
    ) -> jax.Array:
        """The same sums of a robust loss, with its matrices, in the order of `__call__`."""
        q, loss = basis.shape[1], self._spec.loss
        n_weights, capacity = 1 + loss.is_concave, rows.capacity
        products = products_for(
            q, n_weights, capacity=capacity, tile_bytes=self._tile_bytes_of_lanes
        )
        values = partial(self._weighted_rows, products, params, basis, differenced)

        def sums(tile: Tile) -> tuple[tuple[jax.Array, ...], jax.Array, tuple[jax.Array, ...]]:
            columns, residuals, errors, replaced = self._once(values, tile, rows.n > 0)
            costs, of_scores, row_weights = self._once(
                lambda tile: loss.of_rows(residuals, tile.valid, call_loss), tile, rows.n > 0
            )
            small = tile.valid & (jnp.abs(residuals) <= HALF_OF_ROWS * loss.f_scale)
            extra = [costs, residuals**2, jnp.where(small, 1.0, 0.0)]
            absolute = jnp.abs(errors[0] if errors else residuals)
            extra = [absolute, *extra, *[e**2 for e in errors], *replaced]
            asked = jax.lax.cond(scores, products_of_scores, no_products, columns, of_scores)
            return (
                products.of_tile(columns, row_weights, of_scores),
                asked,
                tuple(products.total(e) for e in extra),
            )

        n_extra = 4 + self._is_weighted(rows) + differenced
        zero = products.zero(), jnp.zeros((q, q)), (products.no_row,) * n_extra
        found, asked, extras = self._over_tiles(sums, zero, rows, products.tile)
        (gram, *concave), gradient = products.finish(found)
        totals = jnp.stack([jnp.sum(e) for e in extras])
        return _joined(gram, gradient, totals[2:3], *concave, asked, totals)

    def _once(
        self, function: Callable[[Tile], Sums], tile: Tile, has_rows: jax.Array | bool
    ) -> Sums:
        """Value of a function of a tile, computed once. Without tiles the value as it is."""
        if self._tile_bytes is None:
            return function(tile)
        return computed_once(has_rows, function, tile)

    def _costs_of_tiles(
        self,
        candidates: jax.Array,
        rows: Rows,
    ) -> jax.Array:
        def costs(tile: Tile) -> jax.Array:
            errors = jax.vmap(lambda params: self._error(params, tile))(candidates)
            residuals = self._weighted(errors, tile)
            if self._spec.loss.is_linear:
                return jnp.sum(residuals**2, axis=1)
            # One candidate at a time: a user's loss is a function of a 1-D array.
            values = [self._spec.loss.costs(r, call_loss) for r in residuals]
            return jnp.stack([jnp.sum(jnp.where(tile.valid, v, 0.0)) for v in values])

        return self._over_tiles(costs, jnp.zeros(candidates.shape[0]), rows)

    def _score_products_of_tiles(
        self,
        params: jax.Array,
        basis: jax.Array,
        rows: Rows,
        differenced: bool = False,
    ) -> jax.Array:
        q = basis.shape[1]
        if not differenced and self._weighs_by_lanes(q, rows):
            return self._laned_score_products(params, basis, rows)

        def products_of(tile: Tile) -> jax.Array:
            directions = self._augmented(params, basis, tile, differenced)[0]
            directions = self._weighted(directions, tile)
            residuals = directions[-1]
            if not self._spec.loss.is_linear:
                residuals = self._spec.loss.of_rows(residuals, tile.valid, call_loss)[1]
            scores = directions[:-1] * residuals
            return scores @ scores.T

        return self._over_tiles(products_of, jnp.zeros((q, q)), rows)

    def _laned_score_products(self, params: jax.Array, basis: jax.Array, rows: Rows) -> jax.Array:
        """The same products by lanes."""
        square = WeightedSquare(basis.shape[1], 1)

        def products_of(tile: Tile) -> jax.Array:
            along, error, _ = self._derived(params, basis, tile, differenced=False)
            held = square.held([self._weighted(along, tile), self._weighted(error[None], tile)])
            scores = self._spec.loss.of_named_rows(held[-1])[0]
            # XLA keeps an array of joined parts in memory, and computes a single part again for
            # each pair of columns.
            return square.of_tile(held[:-1], square.held([scores**2, scores])[:1])

        rows_per_tile = TURNS * square.lanes
        found = self._over_tiles(products_of, square.zero(), rows, rows_per_tile)
        return square.finish(found)[0]


def _joined(gram: jax.Array, gradient: jax.Array, square: jax.Array, *rest: jax.Array) -> jax.Array:
    """The augmented matrix of a Gram matrix, a gradient and Σ r² (1,), and the rest, flat."""
    above = jnp.concatenate([gram, gradient[:, None]], axis=1)
    last = jnp.concatenate([gradient, square])
    return jnp.concatenate([m.ravel() for m in (above, last, *rest)])


def _taken(sums: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """The matrix (size, size) at the front of flat sums, and the rest."""
    return sums[: size**2].reshape(size, size), sums[size**2 :]


def block_kernel(
    spec: ModelSpec,
    device: DeviceChoice = None,
    whole: bool = False,
    vector_bits: int = XLA_VECTOR_BITS,
) -> BlockKernel:
    """Kernel of a model; parameters and errors as for :func:`kept_kernel`."""
    return kept_kernel(BlockKernel, spec.key, spec, device, whole, vector_bits)


def block_compilations(spec: ModelSpec) -> int:
    """Number of compilations of a model's block kernel in this process."""
    return compilations(BlockKernel, spec)
