"""The values of a model on rows, and their standard errors, in JAX.

For coordinates x_i and parameters θ (p,) with covariance C (p, p), the value f(x_i; θ) has, to
first order, the variance

    j_i C j_iᵀ = Σ_k (j_i · s_k)²,    C = S Sᵀ,

where j_i is the row of ∂f/∂θ and s_k (p,) are the columns of a square root S of C: the delta
method (Seber & Wild, "Nonlinear Regression", 1989, section 5.1). Each j_i · s_k is a directional
derivative by forward mode, so that ∂f/∂θ itself is never made. The exception is a buffer in which
some derivatives are not finite (:mod:`nlsq_dask.kernels.derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.kernels.compiled import CompiledKernel, compilations, kept_kernel
from nlsq_dask.kernels.derivatives import can_be_differenced, with_differences
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.tiles import cut_tile, tile_rows
from nlsq_dask.user_model.model_spec import ModelSpec, call_jacobian, call_model


class RowKernel(CompiledKernel):
    """Values of a model row by row, and their standard errors.

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
        self._values = self._jitted(self._values_of_tiles)
        self._errors = self._jitted(self._errors_of_tiles)
        self._differenced_errors = self._jitted(partial(self._errors_of_tiles, differenced=True))

    def values(self, params: FloatArray, coords: tuple[FloatArray, ...]) -> FloatArray:
        """Values of the model.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        coords : tuple of ndarray, each (n,), float64

        Returns
        -------
        ndarray, shape (n,), float64
            Returned only when the kernel no longer reads the buffers.
        """
        return self._run(self._values, (params,), coords, coords[0].shape)

    def standard_errors(
        self, params: FloatArray, root: FloatArray, coords: tuple[FloatArray, ...]
    ) -> FloatArray:
        """Standard errors of the model's values.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        root : ndarray, shape (p, q), float64
            Square root S of the covariance of the parameters, ``C = S Sᵀ``.
        coords : tuple of ndarray, each (n,), float64

        Returns
        -------
        ndarray, shape (n,), float64
            In the units of the model's values. Not finite in rows where the model is not finite, or
            where both a derivative and the difference in its place are not.
        """
        errors = self._run(self._errors, (params, root), coords, coords[0].shape)
        lost = ~np.isfinite(errors)
        # A coordinate may be NaN, as in a masked row. Then the value is NaN as well.
        is_spoilt = np.logical_and.reduce([lost, *map(np.isfinite, coords)]).any()
        if not (is_spoilt and can_be_differenced(self._spec, coords[0].shape[0])):
            return errors
        return self._run(self._differenced_errors, (params, root), coords, coords[0].shape)

    def _values_of_tiles(self, params: jax.Array, coords: tuple[jax.Array, ...]) -> jax.Array:
        return self._over_tiles(lambda tile: call_model(self._spec, tile, params), 1, coords)

    def _errors_of_tiles(
        self,
        params: jax.Array,
        root: jax.Array,
        coords: tuple[jax.Array, ...],
        differenced: bool = False,
    ) -> jax.Array:
        def errors(tile: tuple[jax.Array, ...]) -> jax.Array:
            along = self._along(params, root, tile, differenced)
            return jnp.sqrt(jnp.sum(along**2, axis=0))

        return self._over_tiles(errors, root.shape[1] + 1, coords)

    def _along(
        self,
        params: jax.Array,
        root: jax.Array,
        coords: tuple[jax.Array, ...],
        differenced: bool,
    ) -> jax.Array:
        """Derivatives of the values along the columns of ``root``, (q, n)."""
        if differenced:
            every = jnp.ones(coords[0].shape, bool)
            return with_differences(self._spec, coords, params, root, every).along
        if self._spec.jacobian is not None:
            return (call_jacobian(self._spec, coords, params) @ root).T
        _, derivative = jax.linearize(lambda theta: call_model(self._spec, coords, theta), params)
        along: jax.Array = jax.vmap(derivative, in_axes=1)(root)
        return along

    def _over_tiles(
        self,
        function: Callable[[tuple[jax.Array, ...]], jax.Array],
        size: int,
        coords: tuple[jax.Array, ...],
    ) -> jax.Array:
        """Join a function's values on all tiles; the function uses ``size`` numbers a row."""
        self._count_compilation()
        n = coords[0].shape[0]
        tile = n
        if self._tile_bytes is not None:
            tile = min(n, tile_rows(self._tile_bytes, size, self._spec.series_rows))
        if tile == n:
            return function(coords)

        def do_tile(i: jax.Array, out: jax.Array) -> jax.Array:
            rows = tuple(cut_tile(c, i, tile) for c in coords)
            return jax.lax.dynamic_update_slice_in_dim(out, function(rows), i * tile, 0)

        # A last tile that reaches beyond the end is moved back. Its first rows are computed twice,
        # with the same result.
        result: jax.Array = jax.lax.fori_loop(0, -(-n // tile), do_tile, jnp.zeros(n))
        return result


def row_kernel(spec: ModelSpec, device: DeviceChoice = None, whole: bool = False) -> RowKernel:
    """Row kernel of a model; parameters and errors as for :func:`kept_kernel`."""
    return kept_kernel(RowKernel, spec.row_key, spec, device, whole)


def covariance_root(pcov: FloatArray) -> FloatArray:
    """A square root of a covariance matrix.

    Parameters
    ----------
    pcov : ndarray, shape (p, p), float64
        Symmetric, finite, positive semidefinite to rounding. Rows and columns of fixed parameters
        are zero.

    Returns
    -------
    ndarray, shape (p, q), float64
        S with ``S Sᵀ = pcov``; q is the number of parameters that are not fixed.

    Notes
    -----
    ``S = D V √Λ`` from the eigenvalues of the correlation matrix ``D⁻¹ C D⁻¹ = V Λ Vᵀ``, with D
    the standard errors: parameters of any units keep their relative accuracy, and a matrix that
    rounding made slightly indefinite is no error.
    """
    errors = np.sqrt(np.diagonal(pcov))
    free = errors > 0
    scale = errors[free]
    correlation = pcov[np.ix_(free, free)] / np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(correlation)
    root = np.zeros((len(pcov), scale.size))
    root[free] = scale[:, None] * vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return root


def row_compilations(spec: ModelSpec) -> int:
    """Number of compilations of a model's row kernel in this process."""
    return compilations(RowKernel, spec)
