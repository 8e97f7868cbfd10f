"""Sums over rows that do not depend on parameters: moments of y, and largest values."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.tiles import Rows

# Rows whose sums are added at once, so that rounding errors grow with the number of pieces.
MOMENT_ROWS = 1 << 15

# Pieces at a time, 1 MiB. After each call of NumPy a thread waits for the interpreter lock. One
# piece at a time takes two threads 1.6 times as long, and eight pieces take no less than four.
MOMENT_PIECES = 4

# Rows of a product that BLAS computes in one thread, since the kernel has a thread on every core.
# OpenBLAS takes several threads from 10,000 rows on.
DOT_ROWS = 1 << 13

# One value of each array in so many is summed in every pass, to notice data that change. The sums
# take less than 1 % of the time of the kernel.
SAMPLED = 512

# Values between 1/ORDINARY and ORDINARY neither overflow nor lose integers: from 2**53 on float64
# does not hold every integer.
ORDINARY = 2.0**53

# Smaller sums of squared weights have lost digits.
LEAST_WEIGHT = float(np.finfo(np.float64).tiny)

_local = threading.local()


def moments_of_y(rows: Rows, factor: FloatArray | None) -> dict[str, float]:
    """The fields of ``Moments`` that do not depend on parameters.

    Computed in NumPy, since they are needed once: compiling a kernel for every size of buffer would
    take longer than the kernel saves.

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
    # NaN is expected here for infinite values and weights: the cost is not finite either.
    with np.errstate(invalid="ignore", over="ignore"):
        variance = _sum_of_variances(y.size, weights, factor)
        if factor is None:
            weight, linear, square = _sums(y, first, weights)
        else:
            weight, linear, square = _sums_of_correlated(y, first, weights, factor)
    # The squares of such weights are outside of float64.
    if not LEAST_WEIGHT < weight < np.inf:
        return {"weight": weight, "mean": np.nan, "scatter": np.nan}
    shift = linear / weight
    scatter = max(square - shift * linear, 0.0)
    return {"weight": weight, "mean": first + shift, "scatter": scatter, "variance": variance}


def sample_of_y(rows: Rows) -> float:
    """Sum of a few values of y, the same in every pass over the same rows.

    0 for rows on a GPU, where rows stay that never change.
    """
    if not isinstance(rows.y, np.ndarray):
        return 0.0
    values = rows.y[: rows.n : SAMPLED]
    if values.size == 1:
        return float(values[0])
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values.sum())


def sample_of_columns(rows: Rows) -> FloatArray | None:
    """Sums of the magnitudes of a few values of each coordinate, and of the weights if there are.

    None for no rows, and for rows on a GPU.
    """
    if not rows.n or not isinstance(rows.y, np.ndarray):
        return None
    columns = rows.coords if rows.weights is None else (*rows.coords, rows.weights)
    if rows.n <= SAMPLED:  # a call of NumPy takes longer
        return np.array([abs(float(column[0])) for column in columns])
    with np.errstate(over="ignore"):
        return np.array([np.abs(column[: rows.n : SAMPLED]).sum() for column in columns])


def largest_of(rows: Rows) -> FloatArray | None:
    """Largest magnitudes of y, the coordinates and the weights; NaN for a NaN among the values.

    A model may hide a NaN in its coordinates, and a robust loss may hide a NaN in y. Between ``1 /
    ORDINARY`` and ``ORDINARY`` the magnitudes are upper bounds. None for no rows.
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
        size = math.sqrt(_sum_of_squares(values))
        # A comparison takes twice as long as the squares by BLAS.
        if 1.0 / ORDINARY < size < ORDINARY:
            return size
        return float(np.maximum(values.max(), -values.min()))


def _sum_of_squares(values: FloatArray) -> float:
    """Sum of the squares of values (n,) by BLAS, in pieces of :data:`DOT_ROWS`.

    All whole pieces are one call. After each call a thread waits for the interpreter lock: a call
    for each piece takes the threads of a pass four times as long.
    """
    whole = values.size // DOT_ROWS * DOT_ROWS
    pieces = values[:whole].reshape(-1, DOT_ROWS)
    squares: list[float] = np.vecdot(pieces, pieces).tolist() if whole else []
    if rest := values[whole:].size:
        squares.append(float(np.dot(values[-rest:], values[-rest:])))
    return sum(squares)


@jax.jit
def _largest_on_device(buffer: jax.Array, n: jax.Array) -> jax.Array:
    sizes = jnp.where(jnp.arange(buffer.shape[0]) < n, jnp.abs(buffer), 0.0)
    # XLA's maximum may ignore NaN.
    return jnp.where(jnp.any(jnp.isnan(sizes)), jnp.nan, jnp.max(sizes))


def solved(factor: jax.Array | FloatArray, columns: jax.Array | FloatArray) -> jax.Array:
    """Columns (n, k) whitened by a lower Cholesky factor (n, n)."""
    return jax.scipy.linalg.solve_triangular(jnp.asarray(factor), jnp.asarray(columns), lower=True)


def _sums(y: FloatArray, first: float, weights: FloatArray | None) -> tuple[float, float, float]:
    """``Σ w²``, ``Σ w² d`` and ``Σ w² d²`` of the distances d = y - first.

    The distances avoid a difference of large squares of y.
    """
    weight, linear, square = 0.0, 0.0, 0.0
    for pieces in _in_pieces(y) if weights is None else _in_pieces(y, weights):
        distances = np.subtract(pieces[0], first, out=_buffer(pieces[0].shape))
        if weights is None:
            linear = _added(linear, np.add.reduce(distances, axis=1))
        else:
            distances *= pieces[1]
            weight = _added(weight, _dots(pieces[1], pieces[1]))
            linear = _added(linear, _dots(pieces[1], distances))
        square = _added(square, _dots(distances, distances))
    return float(y.size) if weights is None else weight, linear, square


def _in_pieces(*arrays: FloatArray) -> Iterator[tuple[FloatArray, ...]]:
    """Arrays (n,) as pieces (k, MOMENT_ROWS), k up to MOMENT_PIECES, and the rest as (1, m)."""
    size = arrays[0].size
    whole = size // MOMENT_ROWS * MOMENT_ROWS
    starts = [*range(0, whole, MOMENT_PIECES * MOMENT_ROWS), whole]
    for start, stop in pairwise(starts):
        yield tuple(a[start:stop].reshape(-1, MOMENT_ROWS) for a in arrays)
    if whole < size:
        yield tuple(a[None, whole:] for a in arrays)


def _added(total: float, terms: FloatArray) -> float:
    """A sum with more terms, in their order. Python's ``sum`` rounds otherwise from 3.12 on."""
    for term in terms.tolist():
        total += term
    return total


def _buffer(shape: tuple[int, ...]) -> FloatArray:
    """Memory of this thread for pieces of this shape, the same at every call.

    On Dask's workers, whose nanny sets ``MALLOC_TRIM_THRESHOLD_``, fresh memory for each stage took
    half of all page faults of a fit.
    """
    size = math.prod(shape)
    buffer: FloatArray | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(size)
    return buffer[:size].reshape(shape)


def _sum_of_variances(n: int, weights: FloatArray | None, factor: FloatArray | None) -> float:
    """``Σ σ²``: the trace of the covariance of the rows."""
    if weights is None:
        return float(n) if factor is None else float(np.einsum("ij,ij->", factor, factor))
    with np.errstate(divide="ignore", over="ignore"):
        if factor is not None:
            return float(np.sum(np.einsum("ij,ij->i", factor, factor) / weights**2))
        total = 0.0
        for (piece,) in _in_pieces(weights):
            # NumPy takes fifteen times as long for the power -2.
            deviations = np.reciprocal(piece, out=_buffer(piece.shape))
            total = _added(total, _dots(deviations, deviations))
    return total


def _dots(a: FloatArray, b: FloatArray) -> FloatArray:
    """Dot products (k,) of pieces (k, m).

    Not by BLAS, which splits a long product between all cores, and whose last bits depend on the
    processor.
    """
    products: FloatArray = np.einsum("ij,ij->i", a, b)
    return products


def _sums_of_correlated(
    y: FloatArray, first: float, weights: FloatArray | None, factor: FloatArray
) -> tuple[float, float, float]:
    """The same sums of whitened rows."""
    columns = np.stack([np.ones_like(y), y - first], axis=1)
    if weights is not None:
        columns *= weights[:, None]
    with jax.enable_x64(True):
        unit, distances = np.asarray(solved(factor, columns)).T
    pairs = ((unit, unit), (unit, distances), (distances, distances))
    weight, linear, square = (float(_dots(a[None], b[None])[0]) for a, b in pairs)
    return weight, linear, square
