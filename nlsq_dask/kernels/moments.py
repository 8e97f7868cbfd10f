"""What no parameter changes: moments of y, of which the total sum of squares is made, and sizes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.tiles import Rows

# Rows at a time, 256 KiB: few enough to stay in a core's cache and to cost next to no fresh pages
# (a stage's worth of temporary arrays took longer than the kernel), enough that threads do not wait
# for each other's interpreter lock.
PIECE_ROWS = 1 << 15

# Rows of a product that BLAS does not share between threads (OpenBLAS does from 10,000 on): the
# kernel has a thread on every core.
DOT_ROWS = 1 << 13

# Sizes of values between which nothing is rounded or overflows: from 2**53 on float64 does not hold
# every integer.
ORDINARY = 2.0**53

# Smaller sums of squared weights have lost digits.
LEAST_WEIGHT = float(np.finfo(np.float64).tiny)


def moments_of_y(rows: Rows, factor: FloatArray | None) -> dict[str, float]:
    """Those fields of ``Moments`` that do not depend on parameters.

    In NumPy: they are needed once, and a compiled kernel for every size of buffer takes longer to
    make than it saves.

    Parameters
    ----------
    rows : Rows
    factor : ndarray, shape (n, n), float64, or None
        Lower Cholesky factor of the covariance of all rows.
    """
    if not rows.n:
        return {}
    y = np.asarray(rows.y)[: rows.n]
    weights = None if rows.weights is None else np.asarray(rows.weights)[: rows.n]
    first = float(y[0])
    # Infinite values and weights make NaN here. The cost shows them: no news.
    with np.errstate(invalid="ignore", over="ignore"):
        variance = _sum_of_variances(y.size, weights, factor)
        if factor is None:
            weight, linear, square = _sums(y, first, weights)
        else:
            weight, linear, square = _sums_of_correlated(y, first, weights, factor)
    # Squares of such weights have no float64.
    if not LEAST_WEIGHT < weight < np.inf:
        return {"weight": weight, "mean": np.nan, "scatter": np.nan}
    shift = linear / weight
    scatter = max(square - shift * linear, 0.0)
    return {"weight": weight, "mean": first + shift, "scatter": scatter, "variance": variance}


def largest_of(rows: Rows) -> FloatArray | None:
    """Largest magnitudes of y, the coordinates and the weights; NaN where a value is NaN.

    Beside the sums, since a model may hide a NaN in its coordinates, and a robust loss one in y.
    Between ``1 / ORDINARY`` and ``ORDINARY`` they are bounds. None for no rows.
    """
    if not rows.n:
        return None
    weights = () if rows.weights is None else (rows.weights,)
    return np.array([_largest(buffer, rows.n) for buffer in (rows.y, *rows.coords, *weights)])


def _largest(buffer: jax.Array | FloatArray, n: int) -> float:
    if not isinstance(buffer, np.ndarray):
        with jax.enable_x64(True):
            return float(_largest_on_device(buffer, np.int64(n)))
    values = buffer[:n]
    with np.errstate(invalid="ignore", over="ignore"):
        pieces = (values[i : i + DOT_ROWS] for i in range(0, n, DOT_ROWS))
        size = math.sqrt(sum(float(np.dot(piece, piece)) for piece in pieces))
        # Half as many bytes a second are compared as BLAS adds squares of.
        if 1.0 / ORDINARY < size < ORDINARY:
            return size
        return float(np.maximum(values.max(), -values.min()))


@jax.jit
def _largest_on_device(buffer: jax.Array, n: jax.Array) -> jax.Array:
    sizes = jnp.where(jnp.arange(buffer.shape[0]) < n, jnp.abs(buffer), 0.0)
    # XLA's maximum may leave NaN out.
    return jnp.where(jnp.any(jnp.isnan(sizes)), jnp.nan, jnp.max(sizes))


def solved(factor: jax.Array | FloatArray, columns: jax.Array | FloatArray) -> jax.Array:
    """Columns (n, k) whitened by a lower Cholesky factor (n, n)."""
    return jax.scipy.linalg.solve_triangular(jnp.asarray(factor), jnp.asarray(columns), lower=True)


def _sums(y: FloatArray, first: float, weights: FloatArray | None) -> tuple[float, float, float]:
    """``Σ w²``, ``Σ w² d`` and ``Σ w² d²`` of the distances d = y - first.

    Large squares of y are not subtracted from each other: those of d are as large as they must be.
    """
    weight, linear, square = float(y.size), 0.0, 0.0
    if weights is not None:
        weight = 0.0
    apart_of = np.empty(min(PIECE_ROWS, y.size))
    for start in range(0, y.size, PIECE_ROWS):
        piece = slice(start, start + PIECE_ROWS)
        apart = np.subtract(y[piece], first, out=apart_of[: y[piece].size])
        if weights is None:
            linear += float(apart.sum())
        else:
            apart *= weights[piece]
            weight += _dot(weights[piece], weights[piece])
            linear += _dot(weights[piece], apart)
        square += _dot(apart, apart)
    return weight, linear, square


def _sum_of_variances(n: int, weights: FloatArray | None, factor: FloatArray | None) -> float:
    """``Σ σ²``: the trace of the covariance of the rows."""
    if weights is None:
        return float(n) if factor is None else float(np.einsum("ij,ij->", factor, factor))
    with np.errstate(divide="ignore", over="ignore"):
        if factor is not None:
            return float(np.sum(np.einsum("ij,ij->i", factor, factor) / weights**2))
        pieces = (weights[start : start + PIECE_ROWS] for start in range(0, n, PIECE_ROWS))
        return sum(float(np.sum(piece**-2.0)) for piece in pieces)


def _dot(a: FloatArray, b: FloatArray) -> float:
    # Not ``a @ b``: BLAS shares a long product between as many threads as there are cores, and
    # their number would be seen in the last bits.
    return float(np.einsum("i,i->", a, b))


def _sums_of_correlated(
    y: FloatArray, first: float, weights: FloatArray | None, factor: FloatArray
) -> tuple[float, float, float]:
    """The same sums of whitened rows."""
    columns = np.stack([np.ones_like(y), y - first], axis=1)
    if weights is not None:
        columns *= weights[:, None]
    with jax.enable_x64(True):
        unit, apart = np.asarray(solved(factor, columns)).T
    return _dot(unit, unit), _dot(unit, apart), _dot(apart, apart)
