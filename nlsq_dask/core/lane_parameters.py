"""Parameters of many series: bounds, values and covariances of all from those of the free ones.

Sums are written out, so that their order does not depend on the number of series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.normal_equations import FloatArray


def free_bounds(
    reduction: Reduction, offset: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Bounds (q, n) of the free parameters of each series.

    Parameters
    ----------
    reduction : Reduction
    offset, lower, upper : ndarray, shape (p, n), float64
        Fixed values and bounds of all parameters.

    Returns
    -------
    low, high : ndarray, shape (q, n), float64
    bad : ndarray, shape (n,), bool
        Series whose numbers exclude each other.
    """
    size, n = reduction.matrix.shape[1], offset.shape[1]
    low, high = np.full((size, n), -np.inf), np.full((size, n), np.inf)
    bad = ~np.isfinite(offset).all(axis=0) | np.isnan(lower).any(axis=0)
    bad |= np.isnan(upper).any(axis=0)
    with np.errstate(invalid="ignore"):
        for i, row in enumerate(reduction.matrix):
            columns = np.flatnonzero(row)
            if columns.size == 0:
                bad |= ~((lower[i] <= offset[i]) & (offset[i] <= upper[i]))
            if columns.size != 1:
                continue
            k, factor = int(columns[0]), row[columns[0]]
            ends = np.sort([(lower[i] - offset[i]) / factor, (upper[i] - offset[i]) / factor], 0)
            low[k], high[k] = np.maximum(low[k], ends[0]), np.minimum(high[k], ends[1])
        bad |= ~((low < high).all(axis=0))
    return np.where(bad, -np.inf, low), np.where(bad, np.inf, high), np.asarray(bad)


def expanded_covariance(matrix: FloatArray, packed: FloatArray) -> FloatArray:
    """Covariance of all parameters (p (p + 1) / 2, n), from that of the free ones."""

    def element(k: int, j: int) -> FloatArray:
        k, j = max(k, j), min(k, j)
        return np.asarray(packed[k * (k + 1) // 2 + j])

    rows = []
    for a in range(len(matrix)):
        for b in range(a + 1):
            found = np.zeros(packed.shape[1])
            for k in np.flatnonzero(matrix[a]):
                for j in np.flatnonzero(matrix[b]):
                    found = found + matrix[a, k] * matrix[b, j] * element(int(k), int(j))
            # Without success there is no error, of a fixed parameter either.
            rows.append(np.where(np.isnan(packed[0]), np.nan, found))
    return np.stack(rows)


def along(matrix: FloatArray, free: FloatArray) -> FloatArray:
    """``matrix φ`` for each series: sums whose order does not depend on the number of series."""
    rows = []
    for row in matrix:
        found = np.zeros(free.shape[1])
        for k in np.flatnonzero(row):
            found = found + row[k] * free[k]
        rows.append(found)
    return np.stack(rows)


def bits_of(reduction: Reduction, at_bound: NDArray[np.bool_]) -> FloatArray:
    """A number for each series, whose bit i says that parameter i lies on a bound."""
    found = np.zeros(at_bound.shape[1])
    for i, row in enumerate(reduction.matrix[:52]):
        columns = np.flatnonzero(row)
        if columns.size == 1:
            found += np.where(at_bound[columns[0]], 2.0**i, 0.0)
    return found


def free_part(reduction: Reduction, params: FloatArray, offset: FloatArray) -> FloatArray:
    """Free parameters (q, n) of all parameters (p, n)."""
    if reduction.leaders is not None:
        return params[list(reduction.leaders)]
    inverse = np.asarray(np.linalg.pinv(reduction.matrix), np.float64)
    return along(inverse, params - offset)
