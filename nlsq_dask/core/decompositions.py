"""Decompositions of p × p matrices by LAPACK.

``np.linalg`` checks the type and the shape of its argument in Python, sets what NumPy does on
errors, and makes a named tuple of the parts. For a matrix of few numbers the checks take two to
four times as long as LAPACK. A search decomposes four matrices a step, which are float64 and finite
by construction. The functions here call the same ufuncs of NumPy directly, and return the same
bits. NumPy does not document these ufuncs: a release without them gets the functions of
``np.linalg``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray

try:
    from numpy.linalg._umath_linalg import eigh_lo, qr_r_raw, qr_reduced, svd_s
except ImportError:
    HAS_UFUNCS = False
else:
    HAS_UFUNCS = True


def eigh(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues (p,), least first, and eigenvectors in columns of a symmetric matrix (p, p).

    Raises
    ------
    numpy.linalg.LinAlgError
        If LAPACK does not converge.
    """
    if HAS_UFUNCS:
        values, vectors = eigh_lo(matrix, signature="d->dd")
        if values[0] == values[0]:  # NaN where LAPACK does not converge
            return values, vectors
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def svd(matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``U`` (k, p), the singular values (p,), largest first, and ``Vᵀ`` of a matrix (k, p), k >= p.

    Raises
    ------
    numpy.linalg.LinAlgError
        If LAPACK does not converge.
    """
    if HAS_UFUNCS:
        u, singular, v_transposed = svd_s(matrix, signature="d->ddd")
        if singular[0] == singular[0]:  # NaN where LAPACK does not converge
            return u, singular, v_transposed
    u, singular, v_transposed = np.linalg.svd(matrix, full_matrices=False)
    return u, singular, v_transposed


def qr(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``Q`` and the upper triangle ``R`` of a square matrix (p, p)."""
    if not HAS_UFUNCS:
        q_factor, r_factor = np.linalg.qr(matrix)
        return q_factor, r_factor
    r_factor = matrix.copy()
    scales = qr_r_raw(r_factor, signature="d->d")  # leaves reflectors below the diagonal
    q_factor = qr_reduced(r_factor, scales, signature="dd->d")
    np.putmask(r_factor, _below_diagonal(len(r_factor)), 0.0)
    return q_factor, r_factor


@cache
def _below_diagonal(size: int) -> NDArray[np.bool_]:
    """Where a matrix (p, p) is below its diagonal."""
    return np.tri(size, k=-1, dtype=bool)
