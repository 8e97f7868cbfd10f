"""How far a point is from the optimum, measured as statistics measure it.

Around a point with the factor ``J = Q R`` the cost is ``cost* + ½ ‖R (θ - θ*)‖²``, and
``‖R (θ - θ*)‖ = ‖Qᵀ r‖``: the gradient in the coordinates in which the Jacobian has orthonormal
columns. Half its square is the reduction of the cost that is still attainable; over the residual
variance s² it is half the squared distance ``gᵀ (s² (JᵀJ)⁻¹) g / s⁴`` from the optimum in standard
errors, whatever the units and correlations of the parameters (the relative offset of Bates & Watts,
"A relative offset orthogonality convergence criterion for nonlinear least squares", Technometrics
23, 1981, is the same length in other units).

Neither is a difference of costs, so both keep their digits where the cost has none left to tell two
points apart.
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.factor import Linearization, nonzero, rank_tolerance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box


def attainable_reduction(
    linear: Linearization, params: FloatArray, box: Box, n_points: int
) -> float:
    """Reduction of the cost that a linearisation promises within the bounds.

    A parameter is held if the negative gradient points at a bound that its own Newton step,
    ``-g_i / ‖J_i‖²``, would pass: it can gain no more than ``|g_i|`` times its distance to the
    bound, nothing on it. The others gain ``½ g_Fᵀ (J_Fᵀ J_F)⁻¹ g_F``.

    Parameters
    ----------
    linear : Linearization
    params : ndarray, shape (p,), float64
    box : Box
    n_points : int
        Rows that entered the linearisation.

    Returns
    -------
    float
        In the units of the cost, at least zero; directions that the data do not determine promise
        nothing.
    """
    room, towards = box.distance_along_descent(params, linear.gradient)
    norms = linear.norms
    slopes = np.abs(linear.gradient)
    # Products of numbers that are far out of range decide for "not held".
    with np.errstate(over="ignore", invalid="ignore"):
        held = (towards != 0.0) & (slopes >= norms**2 * room)
    gain = float(slopes[held] @ room[held])
    if held.all():
        return gain
    if held.any():
        free = linear.r_factor[:, ~held] / nonzero(norms[~held])
        u, singular, _ = np.linalg.svd(free, full_matrices=False)
    else:
        u, singular, _ = linear.equilibrated_svd
    known = singular > rank_tolerance(n_points, params.size) * singular[0]
    whitened = (u.T @ linear.qtr)[known]
    return gain + 0.5 * float(whitened @ whitened)


def estimated_variance(cost: float, n_points: int, size: int) -> float:
    """Residual variance ``s² = 2 cost / (n - p)``; 1 where no rows are left to estimate it from."""
    return 2.0 * cost / (n_points - size) if n_points > size else 1.0


def distance_to_optimum_sigma(attainable: float, variance: float) -> float:
    """Distance from the optimum in standard errors.

    Parameters
    ----------
    attainable : float
        What :func:`attainable_reduction` returned.
    variance : float
        s²: 1 for absolute weights, else :func:`estimated_variance`.

    Returns
    -------
    float
        ``√(2 attainable / s²)``; infinite for an exact fit that could still be improved.
    """
    if attainable == 0.0:
        return 0.0
    return float((2.0 * attainable / variance) ** 0.5) if variance > 0.0 else float(np.inf)
