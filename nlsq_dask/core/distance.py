"""Distance of a point from the optimum in standard errors.

Around a point with the factor ``J = Q R`` the cost is ``cost* + ½ ‖R (θ - θ*)‖²``, and
``‖R (θ - θ*)‖ = ‖Qᵀ r‖``: the gradient in the coordinates in which the Jacobian has orthonormal
columns. Half its square is the reduction of the cost that is still attainable; over the residual
variance s² it is half the squared distance ``gᵀ (s² (JᵀJ)⁻¹) g / s⁴`` from the optimum in standard
errors, for any units and correlations of the parameters (the relative offset of Bates & Watts,
"A relative offset orthogonality convergence criterion for nonlinear least squares", Technometrics
23, 1981, is the same length in other units).

Neither is a difference of costs. Both keep their digits when the costs of two points are equal to
rounding.

With a robust loss that is concave in some rows, the cost around the optimum is flatter than the
``½ ‖R (θ - θ*)‖²`` of the standard errors. The step to the optimum is the step of the quadratic
model, and its length ``‖R (θ - θ*)‖`` is no longer ``‖Qᵀ r‖``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nlsq_dask.core.bounded import bounded_minimum
from nlsq_dask.core.factor import Linearization, has_zero
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.vectors import length


@dataclass(frozen=True, slots=True)
class Remainder:
    """The step from a point to the optimum of its quadratic model within the bounds.

    Attributes
    ----------
    reduction : float
        Reduction of the cost that is still attainable, at least zero.
    length : float
        The larger of ``‖J s‖``, of the step s to the optimum, and ``√(2 reduction)``, which is
        larger on the way to a bound.
    """

    reduction: float
    length: float


def remainder(linear: Linearization, params: FloatArray, box: Box, n_points: int) -> Remainder:
    """Distance to the quadratic model's optimum within the bounds.

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
        Without the directions that the data do not determine.
    """
    step = step_to_optimum(linear, params, box, n_points)
    quadratic = linear.quadratic
    image = quadratic.r_factor @ step
    square = float(image @ image)
    reduction = max(-float(quadratic.qtr @ image) - 0.5 * square, 0.0)
    along = math.sqrt(square) if quadratic is linear else length(linear.r_factor @ step)
    return Remainder(reduction, max(along, (2.0 * reduction) ** 0.5))


def step_to_optimum(
    linear: Linearization, params: FloatArray, box: Box, n_points: int
) -> FloatArray:
    """The step to the quadratic model's optimum within the bounds.

    Parameters as for :func:`remainder`.

    Returns
    -------
    ndarray, shape (p,), float64
        The shortest of several steps, in units of the columns' lengths.
    """
    quadratic = linear.quadratic
    norms = quadratic.lengths
    rank_rtol = quadratic.rank_rtol(n_points)
    u, singular, v_transposed = quadratic.equilibrated_svd
    rotated = u.T @ quadratic.qtr
    if has_zero(singular, rank_rtol):
        known = singular > rank_rtol * singular[0]
        singular, v_transposed, rotated = singular[known], v_transposed[known], rotated[known]
    step = -v_transposed.T @ (rotated / singular)
    if box.is_open:
        return step / norms
    room = Box((box.lower - params) * norms, (box.upper - params) * norms)
    if not room.contains(step):
        factor = quadratic.r_factor / norms
        step = bounded_minimum(factor, -quadratic.qtr, room, rank_rtol)
    return np.asarray(step / norms, np.float64)


def estimated_variance(cost: float, n_points: int, size: int) -> float:
    """Residual variance ``s² = 2 cost / (n - p)``, with at least one degree of freedom."""
    return 2.0 * cost / max(n_points - size, 1)


def distance_to_optimum_sigma(rest: Remainder, variance: float) -> float:
    """Distance from the optimum in standard errors.

    Parameters
    ----------
    rest : Remainder
    variance : float
        s²: 1 for absolute weights, else :func:`estimated_variance`.

    Returns
    -------
    float
        ``length / s``; infinite for an exact fit that can still be improved.
    """
    if rest.length == 0.0:
        return 0.0
    return rest.length / float(variance**0.5) if variance > 0.0 else float(np.inf)
