"""How much of a fit is due to one block of rows.

Let H = JᵀJ and g = Jᵀr be the sums of all rows, and H_b and g_b those of block b. The rows without
the block have the one-step estimate ``θ - (H - H_b)⁻¹ (g - g_b)``, and all rows have ``θ - H⁻¹ g``.
The difference is how far the estimate moves if the block is left out (Cook & Weisberg, "Residuals
and Influence in Regression", 1982, sections 3.4 and 5.2, there for single rows).
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray

# Smallest over largest eigenvalue of an equilibrated matrix that still determines a step. The
# difference of two sums has the rounding errors of the sums.
LEAST_EIGENVALUE_RATIO = 1e-10


def steps_without(grams: FloatArray, gradients: FloatArray) -> FloatArray:
    """How the one-step estimate moves if a block is left out.

    Parameters
    ----------
    grams : ndarray, shape (n, q, q), float64
        ``J_bᵀ J_b`` of each block.
    gradients : ndarray, shape (n, q), float64
        ``J_bᵀ r_b``.

    Returns
    -------
    ndarray, shape (n, q), float64
        NaN for a block without which the data do not determine all parameters.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # NaN says what is not determined
        gram, gradient = grams.sum(axis=0), gradients.sum(axis=0)
        with_all = _steps(gram[None], gradient[None])
        return _steps(gram - grams, gradient - gradients) - with_all


def _steps(grams: FloatArray, gradients: FloatArray) -> FloatArray:
    """Steps ``-H⁻¹ g`` to the minima of quadratic costs; NaN where a minimum is not determined."""
    if not gradients.shape[1]:  # all parameters are held at bounds
        return np.zeros_like(gradients)
    sizes = np.sqrt(np.maximum(np.diagonal(grams, axis1=1, axis2=2), 0.0))
    known = np.logical_and(np.all(sizes > 0.0, axis=1), np.isfinite(grams).all(axis=(1, 2)))
    sizes[~known] = 1.0
    equal = np.where(known[:, None, None], grams / sizes[:, :, None] / sizes[:, None, :], 0.0)
    values, vectors = np.linalg.eigh(equal)
    known &= values[:, 0] > LEAST_EIGENVALUE_RATIO * values[:, -1]
    along = np.einsum("bij,bi->bj", vectors, gradients / sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps: FloatArray = -np.einsum("bij,bj->bi", vectors, along / values) / sizes
    steps[~known] = np.nan
    return steps
