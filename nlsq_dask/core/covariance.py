"""Covariance of the estimates, from the triangular factor of the Jacobian.

At the optimum the covariance is approximately ``s² (Jᵀ J)⁻¹ = s² (Rᵀ R)⁻¹``. ``s²`` is 1 for
absolute σ, and else ``2 cost / (n - p)``: the reduced chi-square (Seber & Wild, "Nonlinear
Regression", 1989, section 2.1.2; Press et al., "Numerical Recipes", 15.6), or for a robust loss the
same quotient of the robust cost, as in ``scipy.optimize.curve_fit``.

The estimates of a robust loss have another covariance, the sandwich ``H⁻¹ (Σ ψ² j jᵀ) H⁻¹`` of
:func:`~nlsq_dask.core.factor.sandwich`, times ``n / (n - p)`` as in HC1 (MacKinnon & White,
J. Econometrics 29, 1985). It is valid for many independent rows with any noise, and needs no scale
of the residuals.
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.decompositions import svd
from nlsq_dask.core.distance import estimated_variance
from nlsq_dask.core.factor import rank_tolerance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import Solution
from nlsq_dask.core.vectors import column_norms, nonzero


def covariance(
    r_factor: FloatArray, cost: float, n_points: int, *, absolute_sigma: bool
) -> tuple[FloatArray, bool]:
    """Estimate the covariance of the parameters.

    Parameters
    ----------
    r_factor : ndarray, shape (p, p), float64
        Factor of the weighted Jacobian at the optimum.
    cost : float
        At the optimum: half the sum of squared weighted residuals, or of their robust loss.
    n_points : int
        Rows that entered the fit.
    absolute_sigma : bool
        Whether the weights are true standard deviations (no scaling by the residuals), as in
        ``scipy.optimize.curve_fit``.

    Returns
    -------
    pcov : ndarray, shape (p, p), float64
        Infinite everywhere if undetermined.
    determined : bool
        False if the columns of ``J`` are linearly dependent, after scaling each to unit length so
        that the units of the parameters do not matter. Also False if there are too few rows to
        estimate ``s²``.
    """
    size = r_factor.shape[1]
    undetermined = np.full((size, size), np.inf)
    if n_points < size or (n_points == size and not absolute_sigma):
        return undetermined, False
    norms = nonzero(column_norms(r_factor))
    _, singular, v_transposed = svd(r_factor / norms)
    if not singular[-1] > rank_tolerance(n_points, size) * singular[0]:
        return undetermined, False
    root = v_transposed.T / singular / norms[:, None]
    with np.errstate(over="ignore"):  # an infinite variance says so itself
        pcov = root @ root.T
        if not absolute_sigma:
            pcov *= estimated_variance(cost, n_points, size)
    return pcov, True


def robust_covariance(solution: Solution) -> tuple[FloatArray, bool]:
    """The sandwich covariance of the estimates of a robust loss.

    Parameters
    ----------
    solution : Solution
        With a sandwich.

    Returns
    -------
    pcov : ndarray, shape (p, p), float64
        Infinite everywhere if undetermined.
    determined : bool
        As in :func:`covariance`. Also False if the second derivatives of the cost are not positive
        definite, so that the solution is no minimum.
    """
    assert solution.sandwich is not None, "minimize with options.scores"
    n, size = solution.n_points, solution.params.size
    _, determined = covariance(solution.r_factor, solution.cost, n, absolute_sigma=False)
    if not (determined and np.isfinite(solution.sandwich).all()):
        return np.full((size, size), np.inf), False
    return solution.sandwich * (n / (n - size)), True
