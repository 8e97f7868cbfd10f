"""The kernel: one block of rows to its share of the normal equations.

For rows (x_i, y_i, w_i), parameters θ (p,) and a basis S (p, q), with r_i = w_i (f(x_i; θ) - y_i)
and J = ∂r/∂θ (n, p), the kernel returns the symmetric matrix

    A Aᵀ (q + 1, q + 1)   of   A = [(J S)ᵀ; rᵀ] (q + 1, n)

whose parts are the Gram matrix (J S)ᵀ(J S), the gradient (J S)ᵀr and Σ r². A robust loss gives
weights to the rows of these sums. Where it is concave in some residuals it adds its share of the
curvature, a second (q, q) matrix (:mod:`nlsq_dask.kernels.products`). If asked to, it adds the
products of the rows' scores, of which the covariance of its estimates is made: a third matrix, for
which a branch at run time costs nothing where nobody asks.

The rows are swept tile by tile, so that A of one tile stays in the CPU's cache and the memory of a
block does not depend on p. The columns of (J S)ᵀ are directional derivatives along the columns of
S, by forward mode: ``jax.linearize`` once a tile, and a ``vmap`` over the columns.

Where the sums of a buffer are not finite although the residuals are, a derivative is not: a second
kernel, which is compiled for that alone, takes the same rows with differences in its place
(:mod:`nlsq_dask.kernels.derivatives`). The choice rests on the rows of one buffer and on nothing
else, so that it is the same wherever they are summed.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask._errors import no_such_device
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.kernels.agreement import check_agreement
from nlsq_dask.kernels.derivatives import can_be_differenced, with_differences
from nlsq_dask.kernels.moments import largest_of, moments_of_y, solved
from nlsq_dask.kernels.products import (
    computed_once,
    no_products,
    products_for,
    products_of_scores,
)
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, Rows, Sums, Tile, sum_over_tiles
from nlsq_dask.user_model.loss import HALF_OF_ROWS
from nlsq_dask.user_model.model import ModelSpec, call_jacobian, call_model, check_trace

# Kernels kept ready in one process. Each holds its compiled code, some hundred kilobytes.
MAX_KERNELS = 64

_compilations: Counter[str] = Counter()
_kernels: OrderedDict[tuple[object, ...], BlockKernel] = OrderedDict()
_lock = threading.Lock()


class BlockKernel:
    """The compiled kernel of one model.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    tile_bytes : int or None
        Bytes of A in a tile. None evaluates a buffer whole, in one call of the model, as a model
        whose rows depend on each other needs it.
    device : jax.Device
        Where it runs.
    whole : bool
        Whether a buffer holds all rows, since the model needs them all.
    """

    def __init__(
        self, spec: ModelSpec, tile_bytes: int | None, device: jax.Device, whole: bool
    ) -> None:
        self._spec = spec
        self._tile_bytes = tile_bytes
        self._device = device
        self._is_whole = whole
        self._sums = jax.jit(self._sums_of_tiles)
        self._costs = jax.jit(self._costs_of_tiles)
        self._score_products = jax.jit(self._score_products_of_tiles)
        self._differenced_sums = jax.jit(partial(self._sums_of_tiles, differenced=True))
        self._differenced_score_products = jax.jit(
            partial(self._score_products_of_tiles, differenced=True)
        )
        self._compiled: set[tuple[object, ...]] = set()
        self._compiling = threading.Lock()
        self._is_compared = False
        self._comparing = threading.Lock()

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
            Whether to compute the moments of y and the sizes of all values, which are the same in
            every pass.
        scores : bool
            Whether to sum the products of the scores, where the loss is robust.

        Returns
        -------
        NormalEquations
            Returned only when the kernel no longer reads the buffers.
        """
        if not self._is_compared:
            self._compare(params, basis, rows)
        return self._evaluate(params, basis, rows, observe_y, scores)

    def _compare(self, params: FloatArray, basis: FloatArray, rows: Rows) -> None:
        with self._comparing:  # a user's model need not run in several threads at a time
            if not self._is_compared:
                check_agreement(self._evaluate, self._spec, params, basis, rows, self._is_whole)
            self._is_compared = True

    def _evaluate(
        self,
        params: FloatArray,
        basis: FloatArray,
        rows: Rows,
        observe_y: bool = False,
        scores: bool = False,
    ) -> NormalEquations:
        q, loss = basis.shape[1], self._spec.loss
        at = (params, basis, np.bool_(scores))
        sums, n_differenced = self._run(self._sums, at, rows), 0
        # The gradient, and Σ r², which is finite where all values of the model are.
        last_row = sums[q * (q + 1) : (q + 1) ** 2].tolist()
        chi2 = last_row[-1]
        is_spoilt = not math.isfinite(sum(last_row)) and math.isfinite(chi2)
        if is_spoilt and can_be_differenced(self._spec, rows.y.shape[0]):
            found = self._run(self._differenced_sums, at, rows)
            sums, n_differenced = found[:-1], int(found[-1])
        products, rest = _taken(sums, q + 1)
        concave = products_of_scores = None
        if loss.is_concave:
            concave, rest = _taken(rest, q)
        if not loss.is_linear:
            products_of_scores, rest = _taken(rest, q)
        abs_errors, *extra = rest
        # What is the same for linear loss, or without weights, is not summed twice.
        cost, n_small = 0.5 * chi2, 0.0
        if not loss.is_linear:
            cost, chi2, n_small, *extra = map(float, extra)
        sq_errors = float(extra[0]) if extra else chi2
        largest = None
        moments = Moments(float(abs_errors), sq_errors, n_small=n_small)
        if observe_y:
            of_y = moments_of_y(rows, self._spec.cholesky)
            moments, largest = replace(moments, **of_y), largest_of(rows)
        return NormalEquations(
            products[:-1, :-1],
            products[:-1, -1],
            cost,
            chi2,
            rows.n,
            0,
            moments,
            concave,
            largest,
            n_differenced,
            scores=products_of_scores if scores else None,
        )

    def costs(self, candidates: FloatArray, rows: Rows) -> FloatArray:
        """Half the sum of squared residuals of several candidates at once.

        Parameters
        ----------
        candidates : ndarray, shape (k, p), float64
        rows : Rows

        Returns
        -------
        ndarray, shape (k,), float64
            Not finite for a candidate at which the model is not.
        """
        return 0.5 * self._run(self._costs, (candidates,), rows)

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
        products = self._run(self._score_products, (params,), rows)
        if np.isfinite(products).all() or not can_be_differenced(self._spec, rows.y.shape[0]):
            return products
        return self._run(self._differenced_score_products, (params,), rows)

    def _run(
        self, function: Callable[..., jax.Array], at: tuple[FloatArray | np.bool_, ...], rows: Rows
    ) -> FloatArray:
        shapes = (function, *(a.shape for a in at), rows.y.shape, rows.weights is None)
        if shapes in self._compiled:
            return self._fetch(function, at, rows)
        with self._compiling:  # one thread compiles, the others wait for its code
            check_trace(self._spec)
            sums = self._fetch(function, at, rows)
            self._compiled.add(shapes)
        return sums

    def _fetch(
        self, function: Callable[..., jax.Array], at: tuple[FloatArray | np.bool_, ...], rows: Rows
    ) -> FloatArray:
        with jax.enable_x64(True), jax.default_device(self._device):
            # Fetching the result waits for the kernel, after which the buffers may be refilled.
            return np.asarray(function(*at, rows.coords, rows.y, rows.weights, np.int64(rows.n)))

    def _sums_of_tiles(
        self,
        params: jax.Array,
        basis: jax.Array,
        scores: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
        differenced: bool = False,
    ) -> jax.Array:
        if not self._spec.loss.is_linear:
            return self._robust_sums(params, basis, scores, coords, y, weights, n, differenced)
        weighted = weights is not None or self._spec.cholesky is not None

        def sums(rows: Tile) -> tuple[jax.Array, ...]:
            directions, replaced = self._augmented(params, basis, rows, differenced)
            residuals = self._weighted(directions, rows)
            errors = jnp.where(rows.valid, directions[-1], 0.0)
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
        return jnp.concatenate(
            [s.ravel() for s in self._over_tiles(sums, zero, coords, y, weights, n)]
        )

    def _robust_sums(
        self,
        params: jax.Array,
        basis: jax.Array,
        scores: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
        differenced: bool,
    ) -> jax.Array:
        """The same sums of a robust loss, with its matrices, flat as `_evaluate` takes them."""
        q, loss = basis.shape[1], self._spec.loss
        weighted = weights is not None or self._spec.cholesky is not None
        products = products_for(q, 1 + loss.is_concave, y.shape[0], self._tile_bytes)

        def tile(rows: Tile) -> tuple[jax.Array, list[jax.Array]]:
            directions, replaced = self._augmented(params, basis, rows, differenced)
            errors = [jnp.where(rows.valid, directions[-1], 0.0)] if weighted else []
            return self._weighted(directions, rows), [*errors, *replaced]

        def sums(rows: Tile) -> tuple[tuple[jax.Array, ...], jax.Array, tuple[jax.Array, ...]]:
            directions, rest = self._once(tile, rows, n > 0)
            columns, residuals = directions[:-1], directions[-1]
            costs, of_scores, row_weights = self._once(
                lambda rows: loss.of_rows(residuals, rows.valid, _call_loss), rows, n > 0
            )
            small = rows.valid & (jnp.abs(residuals) <= HALF_OF_ROWS * loss.f_scale)
            extra = [costs, residuals**2, jnp.where(small, 1.0, 0.0)]
            errors, replaced = rest[0] if weighted else residuals, rest[weighted:]
            extra = [jnp.abs(errors), *extra, *[errors**2] * weighted, *replaced]
            asked = jax.lax.cond(scores, products_of_scores, no_products, columns, of_scores)
            return (
                products.of_tile(columns, row_weights, of_scores),
                asked,
                tuple(products.total(e) for e in extra),
            )

        n_extra = 4 + weighted + differenced
        zero = products.zero(), jnp.zeros((q, q)), (products.no_row,) * n_extra
        found, asked, extras = self._over_tiles(sums, zero, coords, y, weights, n, products.tile)
        (gram, *concave), gradient = products.finish(found)
        totals = jnp.stack([jnp.sum(e) for e in extras])
        above = jnp.concatenate([gram, gradient[:, None]], axis=1)
        last = jnp.concatenate([gradient, totals[2:3]])  # Σ r²
        return jnp.concatenate([m.ravel() for m in (above, last, *concave, asked, totals)])

    def _once(self, function: Callable[[Tile], Sums], rows: Tile, has_rows: jax.Array) -> Sums:
        """What a function returns of a tile, computed once; where there are tiles."""
        if self._tile_bytes is None:
            return function(rows)
        return computed_once(has_rows, function, rows)

    def _weighted(self, values: jax.Array, rows: Tile) -> jax.Array:
        """Values of rows (k, tile) in units of their standard deviations; 0 behind the last."""
        if rows.weights is not None:
            values = values * rows.weights
        if self._spec.cholesky is not None:
            factor = jnp.asarray(self._spec.cholesky)
            values = solved(factor, values.T).T
        # A select, not a product: rows behind the last may hold NaN, and NaN * 0 is NaN.
        return jnp.where(rows.valid, values, 0.0)

    def _costs_of_tiles(
        self,
        candidates: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
    ) -> jax.Array:
        def costs(rows: Tile) -> jax.Array:
            errors = jax.vmap(lambda params: self._error(params, rows))(candidates)
            residuals = self._weighted(errors, rows)
            if self._spec.loss.is_linear:
                return jnp.sum(residuals**2, axis=1)
            # Row by row of the candidates: a user's loss is a function of a 1-D array.
            values = [self._spec.loss.terms(r, _call_loss)[0] for r in residuals]
            return jnp.stack([jnp.sum(jnp.where(rows.valid, v, 0.0)) for v in values])

        return self._over_tiles(costs, jnp.zeros(candidates.shape[0]), coords, y, weights, n)

    def _score_products_of_tiles(
        self,
        params: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
        differenced: bool = False,
    ) -> jax.Array:
        p = params.shape[0]

        def products_of(rows: Tile) -> jax.Array:
            directions = self._augmented(params, jnp.eye(p), rows, differenced)[0]
            directions = self._weighted(directions, rows)
            residuals = directions[-1]
            if not self._spec.loss.is_linear:
                first = self._spec.loss.terms(residuals, _call_loss)[1]
                residuals = jnp.where(rows.valid, residuals * first, 0.0)
            scores = directions[:-1] * residuals
            return scores @ scores.T

        return self._over_tiles(products_of, jnp.zeros((p, p)), coords, y, weights, n)

    def _over_tiles(
        self,
        function: Callable[[Tile], Sums],
        zero: Sums,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
        tile: int | None = None,
    ) -> Sums:
        """Sum a function of a tile over all tiles; the zero's first axis is its values a row."""
        _compilations[self._spec.token] += 1  # runs when JAX traces, once a compilation
        return sum_over_tiles(function, zero, self._tile_bytes, coords, y, weights, n, tile)

    def _augmented(
        self, params: jax.Array, basis: jax.Array, rows: Tile, differenced: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """``[(J S)ᵀ; eᵀ]`` of one tile, (q + 1, tile), with the errors e = f - y not weighted.

        Beside it, with differences, the flags (tile,) of the rows that have them.
        """
        if differenced:
            values, along, replaced = with_differences(
                self._spec, rows.coords, params, basis, rows.valid
            )
            return jnp.concatenate([along, (values - rows.y)[None]]), [replaced]
        if self._spec.jacobian is not None:
            jacobian = call_jacobian(self._spec, rows.coords, params)
            return jnp.concatenate([(jacobian @ basis).T, self._error(params, rows)[None]]), []
        e, derivative = jax.linearize(lambda theta: self._error(theta, rows), params)
        along = jax.vmap(derivative, in_axes=1)(basis)
        return jnp.concatenate([along, e[None]]), []

    def _error(self, params: jax.Array, rows: Tile) -> jax.Array:
        return call_model(self._spec, rows.coords, params) - rows.y


def _taken(sums: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """A matrix (size, size) at the front of flat sums, and the rest."""
    return sums[: size**2].reshape(size, size), sums[size**2 :]


def _call_loss(function: ModelSpec, z: jax.Array) -> jax.Array:
    return call_model(function, (z,), jnp.zeros(0))


def block_kernel(spec: ModelSpec, device: str | None = None, whole: bool = False) -> BlockKernel:
    """Kernel of a model in this process, made once and compiled once for each shape of buffer.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    device : {"cpu", "gpu"} or None
        Platform; None takes JAX's default.
    whole : bool
        Evaluate each buffer in one call of the model, without tiles.

    Raises
    ------
    InputError
        If JAX has no such device.
    """
    target = find_device(device)
    tile_bytes = None if whole or target.platform != "cpu" else CPU_TILE_BYTES
    key = (spec.key, tile_bytes, target, whole)
    with _lock:
        kernel = _kernels.get(key)
        if kernel is None:
            kernel = _kernels[key] = BlockKernel(spec, tile_bytes, target, whole)
            if len(_kernels) > MAX_KERNELS:
                _kernels.popitem(last=False)
        else:
            _kernels.move_to_end(key)
    return kernel


def find_device(platform: str | None) -> jax.Device:
    """First local device of a platform, or JAX's default device.

    Raises
    ------
    InputError
        If the platform is not "cpu" or "gpu", or JAX has no such device.
    """
    if platform is None:
        return jax.local_devices()[0]
    if platform not in ("cpu", "gpu"):
        raise no_such_device(platform, jax.default_backend())
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError as error:
        raise no_such_device(platform, jax.default_backend()) from error


def compilations(spec: ModelSpec) -> int:
    """How often a kernel of this model was compiled in this process."""
    return _compilations[spec.token]
