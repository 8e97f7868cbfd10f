"""Statistics of a fit, from the sums over its rows.

With the weighted sum of squared residuals ``chi2`` of n rows and k free parameters:

    R²       = 1 - chi2 / Σ w² (y - ȳ)²,   ȳ the weighted mean of y
    adjusted = 1 - (1 - R²) (n - 1) / (n - k)
    AIC      = -2 ln L + 2 k,   BIC = -2 ln L + k ln n

where, up to a constant, ``-2 ln L`` is ``n ln(chi2 / n)`` if the variance of the rows is estimated
by the fit, and ``chi2`` if it is known (Burnham & Anderson, "Model Selection and Multimodel
Inference", 2nd ed. 2002, sections 2.2 and 6.9.5; Schwarz, Ann. Stat. 6, 1978).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray


def r_squared(chi2: float, scatter: float) -> float:
    """Part of the weighted scatter of y about its mean that the model explains.

    Parameters
    ----------
    chi2 : float
        Sum of squared weighted residuals.
    scatter : float
        Weighted total sum of squares about the weighted mean.

    Returns
    -------
    float
        At most 1; negative for a model worse than the mean; NaN if y does not vary.
    """
    return 1.0 - chi2 / scatter if scatter > 0.0 else math.nan


def adjusted_r_squared(r2: float, n_points: int, dof: int) -> float:
    """R² with both sums of squares divided by their degrees of freedom (Theil 1961).

    NaN without degrees of freedom.
    """
    return 1.0 - (1.0 - r2) * (n_points - 1) / dof if dof > 0 else math.nan


def deviance(chi2: float, n_points: int, *, known_scale: bool) -> float:
    """Minus twice the logarithm of the largest likelihood, up to a constant of the data.

    Parameters
    ----------
    chi2 : float
        Sum of squared weighted residuals.
    n_points : int
        Rows that entered the fit.
    known_scale : bool
        Whether the weights are true standard deviations.

    Returns
    -------
    float
        ``chi2`` for a known scale, else ``n ln(chi2 / n)``, which is -inf for a perfect fit.
    """
    if known_scale:
        return chi2
    of_row = mean(chi2, n_points)
    # A NaN passes through the logarithm.
    return -math.inf if of_row == 0.0 else n_points * math.log(of_row)


def mean(total: float, n_points: int) -> float:
    """A sum over rows by their number; NaN without rows."""
    return total / n_points if n_points else math.nan


def correlation(pcov: FloatArray) -> FloatArray:
    """Correlation of the estimates.

    Parameters
    ----------
    pcov : ndarray, shape (p, p), float64
        Their covariance.

    Returns
    -------
    ndarray, shape (p, p), float64
        Ones on the diagonal. NaN off the diagonal for a fixed parameter, and for a parameter that
        the data do not determine, whose variance is not finite.
    """
    variances = np.diagonal(pcov)
    usable = np.isfinite(variances) & (variances > 0.0)
    errors = np.sqrt(np.where(usable, variances, np.nan))
    # Two divisions, since the product of two small errors may underflow.
    scaled = np.clip(pcov / errors / errors[:, None], -1.0, 1.0)
    matrix: FloatArray = (scaled + scaled.T) / 2.0  # symmetric despite rounding
    np.fill_diagonal(matrix, 1.0)
    return matrix


def clipped(
    ends: FloatArray, popt: FloatArray, active: NDArray[np.int64], bounds: FloatArray | None
) -> FloatArray:
    """Intervals that end at the active bounds.

    Parameters
    ----------
    ends : ndarray, shape (p, 2), float64
    popt : ndarray, shape (p,), float64
    active : ndarray, shape (p,), int
        -1 where the lower bound is active, 1 where the upper one is, 0 elsewhere.
    bounds : ndarray, shape (p, 2), float64, or None
        None takes the estimate at an active bound as the bound.

    Returns
    -------
    ndarray, shape (p, 2), float64
        Each interval contains its estimate, even if rounding has moved the bound.
    """
    lower, upper = (popt, popt) if bounds is None else bounds.T
    low = np.where(active < 0, np.maximum(ends[:, 0], np.minimum(lower, popt)), ends[:, 0])
    high = np.where(active > 0, np.minimum(ends[:, 1], np.maximum(upper, popt)), ends[:, 1])
    return np.column_stack([low, high])


def noise_by_small_rows(n_small: float, n_points: int, small: float) -> float:
    """Standard deviation of normal residuals, from the number of small ones.

    A robust measure like the median of absolute residuals: the size of an outlier does not matter.

    Parameters
    ----------
    n_small : float
        Rows with an absolute residual of at most `small`.
    n_points : int
    small : float

    Returns
    -------
    float
        0 if all rows are small. No small row counts as one small row.
    """
    share = max(n_small, 1.0) / n_points
    return 0.0 if share >= 1.0 else small / NormalDist().inv_cdf((1.0 + share) / 2.0)


def fewer_than_chance(n_small: float, n_points: int, probability: float) -> bool:
    """Whether a number of small rows is more than two standard deviations below its mean."""
    expected = n_points * probability
    return n_small < expected - 2.0 * math.sqrt(expected * (1.0 - probability))


def intervals(popt: FloatArray, perr: FloatArray, quantile: float) -> FloatArray:
    """Symmetric intervals ``popt ± quantile * perr``.

    Parameters
    ----------
    popt, perr : ndarray, shape (p,), float64
    quantile : float
        May be infinite.

    Returns
    -------
    ndarray, shape (p, 2), float64
        Of length zero where the error is zero, for any quantile.
    """
    half = np.zeros_like(perr)
    np.multiply(quantile, perr, out=half, where=perr != 0.0)
    return np.column_stack([popt - half, popt + half])


def sandwich(bread: FloatArray, score_products: FloatArray, n_points: int, dof: int) -> FloatArray:
    """Covariance that is valid for any variances of the rows.

    The estimator of Eicker, Huber and White with the correction HC1 for degrees of freedom
    (MacKinnon & White, J. Econometrics 29, 1985, section 2).

    Parameters
    ----------
    bread : ndarray, shape (p, p), float64
        ``(JᵀJ)⁻¹``.
    score_products : ndarray, shape (p, p), float64
        ``Σ r_i² J_i J_iᵀ``.
    n_points, dof : int
        Rows, and rows less free parameters.

    Returns
    -------
    ndarray, shape (p, p), float64
        ``n / dof · (JᵀJ)⁻¹ score_products (JᵀJ)⁻¹``, symmetric; infinite if `bread` is not finite
        or there are no degrees of freedom.
    """
    if dof <= 0 or not np.isfinite(bread).all():
        return np.full_like(bread, np.inf)
    product = bread @ score_products @ bread * (n_points / dof)
    symmetric: FloatArray = (product + product.T) / 2.0
    return symmetric
