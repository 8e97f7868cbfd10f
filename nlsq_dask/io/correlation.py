"""Correlated observations: their covariance matrix, factored."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.labels import in_order_of
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.refusals import to_numpy
from nlsq_dask.io.sources import as_array, is_dask, is_zarr
from nlsq_dask.io.stored import StoredArray

# Largest difference between a covariance matrix and its transpose that passes as rounding, in units
# of the largest value.
SYMMETRY_RTOL = 1e-8


def split_sigma(sigma: Any, y: Any) -> tuple[Any, Any]:
    """Tell standard deviations from a covariance matrix.

    Parameters
    ----------
    sigma, y : array_like
        As the user passed them.

    Returns
    -------
    deviations, covariance : array_like or None
        One of the two, or none. `sigma` with two dimensions is a covariance matrix, shape (n, n),
        if `y` has one dimension.

    Raises
    ------
    InputError
        If the matrix has another shape, or if the matrix or `y` is lazy.
    """
    if sigma is None or _ndim(sigma, "sigma") != 2 or _ndim(y, "y") > 1:
        return sigma, None
    n_rows = int(np.prod(np.shape(y)))
    if np.shape(sigma) != (n_rows, n_rows):
        raise _errors.sigma_shape(np.shape(sigma), n_rows)
    if any(is_dask(a) or is_zarr(a) or isinstance(a, StoredArray) for a in (sigma, y)):
        raise _errors.covariance_in_parts()
    return None, in_order_of(y, sigma, "sigma")


def _ndim(value: Any, name: str) -> int:
    """Number of dimensions of an array, or of a list that may be ragged."""
    ndim = getattr(value, "ndim", None)
    return ndim if isinstance(ndim, int) else to_numpy(value, name).ndim


def factor_covariance(covariance: Any, data: Observations) -> FloatArray:
    """Lower-triangular Cholesky factor of the covariance of the rows that count.

    Parameters
    ----------
    covariance : array_like, shape (n, n)
    data : Observations
        In memory, of n rows.

    Returns
    -------
    ndarray, shape (m, m), float64
        Factor for the m rows that are not left out.

    Raises
    ------
    InputError
        If the matrix is not symmetric or not positive definite, or the data are lazy.
    """
    given = as_array(covariance, "sigma")
    if data.lazy or is_dask(given):
        raise _errors.covariance_in_parts()
    matrix = np.asarray(given, np.float64)
    if data.selects:
        kept = np.concatenate([~block.left_out().ravel() for _, block in data.pieces()])
        matrix = matrix[np.ix_(kept, kept)]
    if not np.isfinite(matrix).all():
        raise _errors.covariance_not_finite(int((~np.isfinite(matrix)).sum()))
    asymmetry = np.abs(matrix - matrix.T)
    if asymmetry.max(initial=0.0) > SYMMETRY_RTOL * np.abs(matrix).max(initial=0.0):
        i, j = sorted(map(int, np.unravel_index(asymmetry.argmax(), matrix.shape)))
        raise _errors.covariance_not_symmetric(i, j, matrix[i, j], matrix[j, i])
    try:
        factor = np.asarray(np.linalg.cholesky(matrix), np.float64)
    except np.linalg.LinAlgError:
        raise _errors.sigma_not_positive_definite() from None
    return factor
