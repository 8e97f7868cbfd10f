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

With a robust loss that is concave in some rows, the cost around the optimum is flatter than
``½ ‖R (θ - θ*)‖²``, of which standard errors are made: the step to the optimum is that of the
quadratic model, and its length ``‖R (θ - θ*)‖`` is no longer ``‖Qᵀ r‖``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlsq_dask.core.factor import Linearization, nonzero, rank_tolerance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box


@dataclass(frozen=True, slots=True)
class Remainder:
    """What lies between a point and the optimum of its quadratic model within the bounds.

    Attributes
    ----------
    reduction : float
        What the cost can still fall by, at least zero.
    length : float
        ``‖J s‖`` of the step s to the optimum: ``√(2 reduction)``, unless the loss is concave in
        some rows.
    """

    reduction: float
    length: float


def remainder(linear: Linearization, params: FloatArray, box: Box, n_points: int) -> Remainder:
    """How far the quadratic model's optimum within the bounds is.

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
    Remainder
        Directions that the data do not determine promise nothing.
    """
    quadratic = linear.quadratic
    room, towards = box.distance_along_descent(params, linear.gradient)
    norms = quadratic.norms
    slopes = np.abs(linear.gradient)
    # Products of numbers that are far out of range decide for "not held".
    with np.errstate(over="ignore", invalid="ignore"):
        held = (towards != 0.0) & (slopes >= norms**2 * room)
    gain = float(slopes[held] @ room[held])
    if held.all():
        return Remainder(gain, (2.0 * gain) ** 0.5)
    if held.any():
        free = quadratic.r_factor[:, ~held] / nonzero(norms[~held])
        u, singular, v_transposed = np.linalg.svd(free, full_matrices=False)
    else:
        u, singular, v_transposed = quadratic.equilibrated_svd
    known = singular > rank_tolerance(n_points, params.size) * singular[0]
    whitened = (u.T @ quadratic.qtr)[known]
    reduction = gain + 0.5 * float(whitened @ whitened)
    if linear.curved is None:
        return Remainder(reduction, (2.0 * reduction) ** 0.5)
    scaled_step = v_transposed[known].T @ (whitened / singular[known])
    image = linear.r_factor[:, ~held] @ (scaled_step / nonzero(norms[~held]))
    return Remainder(reduction, (2.0 * gain + float(image @ image)) ** 0.5)


def estimated_variance(cost: float, n_points: int, size: int) -> float:
    """Residual variance ``s² = 2 cost / (n - p)``; 1 where no rows are left to estimate it from."""
    return 2.0 * cost / (n_points - size) if n_points > size else 1.0


def distance_to_optimum_sigma(left: Remainder, variance: float) -> float:
    """Distance from the optimum in standard errors.

    Parameters
    ----------
    left : Remainder
    variance : float
        s²: 1 for absolute weights, else :func:`estimated_variance`.

    Returns
    -------
    float
        ``length / s``; infinite for an exact fit that could still be improved.
    """
    if left.length == 0.0:
        return 0.0
    return left.length / float(variance**0.5) if variance > 0.0 else float(np.inf)
