"""The kernel: one block of rows to its share of the normal equations.

For rows (x_i, y_i, w_i), parameters θ (p,) and a basis S (p, q), with r_i = w_i (f(x_i; θ) - y_i)
and J = ∂r/∂θ (n, p), the kernel returns the symmetric matrix

    A Aᵀ (q + 1, q + 1)   of   A = [(J S)ᵀ; rᵀ] (q + 1, n)

whose parts are the Gram matrix (J S)ᵀ(J S), the gradient (J S)ᵀr and Σ r².

The rows are swept tile by tile, so that A of one tile stays in the CPU's cache and the memory of a
block does not depend on p. The columns of (J S)ᵀ are directional derivatives along the columns of
S, by forward mode: ``jax.linearize`` once a tile, and a ``vmap`` over the columns.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask._errors import no_such_device
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.kernels.model import ModelSpec, call_model

# Bytes of the matrix A of one tile on a CPU. Speed is flat within 20 % from 32 KiB to 1 MiB, the
# caches' sizes. But the matrix product packs A into memory of its own, twice, and under the
# MALLOC_TRIM_THRESHOLD_=65536 that Dask's nannies set for their workers larger pieces go back to
# the system after every tile: measured 4 to 5 times slower, by 33 page faults a tile.
CPU_TILE_BYTES = 1 << 16

# Kernels kept ready in one process. Each holds its compiled code, some hundred kilobytes.
MAX_KERNELS = 64

_compilations: Counter[str] = Counter()
_kernels: OrderedDict[tuple[object, ...], BlockKernel] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as the kernel takes them: 1-D float64 buffers, of which the first ``n`` rows count."""

    coords: tuple[jax.Array | FloatArray, ...]
    y: jax.Array | FloatArray
    weights: jax.Array | FloatArray | None
    n: int


class _Tile(NamedTuple):
    """Rows of one tile inside the kernel, and which of them count."""

    coords: tuple[jax.Array, ...]
    y: jax.Array
    weights: jax.Array | None
    valid: jax.Array


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
    """

    def __init__(self, spec: ModelSpec, tile_bytes: int | None, device: jax.Device) -> None:
        self._spec = spec
        self._tile_bytes = tile_bytes
        self._device = device
        self._sums = jax.jit(self._sums_of_tiles)
        self._costs = jax.jit(self._costs_of_tiles)
        self._compiled: set[tuple[object, ...]] = set()
        self._compiling = threading.Lock()

    def __call__(self, params: FloatArray, basis: FloatArray, rows: Rows) -> NormalEquations:
        """Sum over the rows of one buffer.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        basis : ndarray, shape (p, q), float64
        rows : Rows

        Returns
        -------
        NormalEquations
            Returned only when the kernel no longer reads the buffers.
        """
        sums = self._run(self._sums, (params, basis), rows)
        q = sums.shape[0] - 1
        chi2 = float(sums[q, q])
        return NormalEquations(sums[:q, :q], sums[:q, q], 0.5 * chi2, chi2, rows.n)

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

    def put(self, rows: Rows) -> Rows:
        """Place rows on the device, where they stay between passes.

        On a CPU the aligned buffers are there already, and must not be written to any more.
        """
        if self._device.platform == "cpu":
            return rows
        with jax.enable_x64(True):
            coords, y, weights = jax.device_put((rows.coords, rows.y, rows.weights), self._device)
        return Rows(coords, y, weights, rows.n)

    def _run(
        self, function: Callable[..., jax.Array], at: tuple[FloatArray, ...], rows: Rows
    ) -> FloatArray:
        shapes = (function, *(a.shape for a in at), rows.y.shape, rows.weights is None)
        if shapes in self._compiled:
            return self._fetch(function, at, rows)
        with self._compiling:  # one thread compiles, the others wait for its code
            sums = self._fetch(function, at, rows)
            self._compiled.add(shapes)
        return sums

    def _fetch(
        self, function: Callable[..., jax.Array], at: tuple[FloatArray, ...], rows: Rows
    ) -> FloatArray:
        with jax.enable_x64(True), jax.default_device(self._device):
            # Fetching the result waits for the kernel, after which the buffers may be refilled.
            return np.asarray(function(*at, rows.coords, rows.y, rows.weights, np.int64(rows.n)))

    def _sums_of_tiles(
        self,
        params: jax.Array,
        basis: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
    ) -> jax.Array:
        size = basis.shape[1] + 1

        def products(rows: _Tile) -> jax.Array:
            directions = self._augmented(params, basis, rows)
            # A select, not a product: rows behind the last may hold NaN, and NaN * 0 is NaN.
            directions = jnp.where(rows.valid, directions, 0.0)
            return directions @ directions.T

        return self._over_tiles(products, (size, size), coords, y, weights, n)

    def _costs_of_tiles(
        self,
        candidates: jax.Array,
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
    ) -> jax.Array:
        def squares(rows: _Tile) -> jax.Array:
            residuals = jax.vmap(lambda params: self._residual(params, rows))(candidates)
            return jnp.sum(jnp.where(rows.valid, residuals, 0.0) ** 2, axis=1)

        return self._over_tiles(squares, (candidates.shape[0],), coords, y, weights, n)

    def _over_tiles(
        self,
        function: Callable[[_Tile], jax.Array],
        shape: tuple[int, ...],
        coords: tuple[jax.Array, ...],
        y: jax.Array,
        weights: jax.Array | None,
        n: jax.Array,
    ) -> jax.Array:
        """Sum a function of a tile, whose value has a shape (k, ...), over all tiles."""
        _compilations[self._spec.token] += 1  # runs when JAX traces, once a compilation
        tile = y.shape[0]
        if self._tile_bytes is not None:
            tile = min(tile, tile_rows(self._tile_bytes, shape[0]))

        def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
            def cut(rows: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(rows, i * tile, tile)

            valid = i * tile + jnp.arange(tile) < n
            w = None if weights is None else cut(weights)
            return total + function(_Tile(tuple(cut(c) for c in coords), cut(y), w, valid))

        start = jnp.zeros(shape)
        total: jax.Array = jax.lax.fori_loop(0, (n + tile - 1) // tile, add_tile, start)
        return total

    def _augmented(self, params: jax.Array, basis: jax.Array, rows: _Tile) -> jax.Array:
        """``[(J S)ᵀ; rᵀ]`` of one tile, (q + 1, tile)."""
        r, derivative = jax.linearize(lambda theta: self._residual(theta, rows), params)
        along = jax.vmap(derivative, in_axes=1)(basis)
        return jnp.concatenate([along, r[None]])

    def _residual(self, params: jax.Array, rows: _Tile) -> jax.Array:
        r = call_model(self._spec, rows.coords, params) - rows.y
        return r if rows.weights is None else r * rows.weights


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
    key = (spec.token, tile_bytes, target)
    with _lock:
        kernel = _kernels.get(key)
        if kernel is None:
            kernel = _kernels[key] = BlockKernel(spec, tile_bytes, target)
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


def tile_rows(tile_bytes: int, size: int) -> int:
    """Rows of a tile of ``size`` float64 values a row: a power of two, as buffers' lengths are."""
    return 1 << max(tile_bytes // (8 * size), 1).bit_length() - 1


def compilations(spec: ModelSpec) -> int:
    """How often a kernel of this model was compiled in this process."""
    return _compilations[spec.token]
