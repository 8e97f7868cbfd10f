"""The common parts of the trust-region methods for least squares.

A method proposes a trial. One evaluation yields both the cost and the linearisation there. The
trial is accepted or rejected by comparing the actual reduction of the cost with the predicted
reduction. An accepted trial is not evaluated again. A rejected trial costs one pass.

Near the optimum the predicted reduction becomes smaller than the rounding errors of the cost, so
that the difference of two costs is noise. There the reduction is taken from the whitened gradients
(:mod:`nlsq_dask.core.distance`): to the order of the model, ``½ ‖Qᵀr‖²`` falls by as much as the
cost does, and is no small difference of large numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.distance import distance_to_optimum_sigma, estimated_variance, remainder
from nlsq_dask.core.factor import EPS, Basis, factorize
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.records import with_changes
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import SolverOptions, SolverState
from nlsq_dask.core.trust_region import reduction_ratio, update_radius
from nlsq_dask.core.vectors import all_finite, largest_size, length, nonzero

#: Keeps the radius of a search that cannot move from underflowing.
LEAST_RADIUS = 1e-100

# Effect of a parameter on the residuals whose square has few digits, or none, in float64. Data that
# are zero leave no rounding errors to compare effects with.
LEAST_EFFECT = float(np.sqrt(np.finfo(np.float64).tiny))

#: Rounding errors of a difference of two costs, in units of the rounding of its parts: two sums,
#: and a model's value after some operations, as exp multiplies the rounding of its argument by the
#: argument. Differences at one point of Gaussians on a background come to 20 units of the cost
#: alone. A smaller number lets a search compare costs that consist of rounding errors.
COST_ROUNDING = 16.0

#: Rounding errors of a residual, in units of the rounding of its largest term: a model's value
#: takes some operations.
RESIDUAL_ROUNDING = 4.0

#: The most that a column of rounding errors explains of the residuals by chance, in standard
#: deviations of a residual.
CHANCE = 5.0

#: A start is zero in the data's units if it is shorter than this part of the residuals. Its length
#: then says nothing about the distance to the optimum.
LEAST_START = 0.1

#: A trial may be the last one if it promises to lower the cost by at most this part. Searches end
#: at parts of 1e-8 and less, and the last trial but one promises about the square root of the part
#: that the last trial promises.
LAST_REDUCTION = 1e-2


@dataclass(frozen=True, slots=True)
class Trial:
    """A point to try, and the predictions of the quadratic model for it.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    step_norm : float
        Length of the step, in the parameters' units.
    scaled_step_norm : float
        Its length in the norm of the trust region.
    predicted : float
        Predicted reduction of the cost.
    slope : float
        ``gᵀ s``, the slope of the cost along the step at its start.
    alpha : float
        Levenberg-Marquardt parameter of the step; 0 for none.
    """

    params: FloatArray
    step_norm: float
    scaled_step_norm: float
    predicted: float
    slope: float
    alpha: float


class Method(Protocol):
    """The steps of the search that differ between methods."""

    @property
    def interior(self) -> bool:
        """Whether all iterates lie strictly between the bounds."""
        ...

    def optimality(self, state: SolverState, box: Box) -> float:
        """Infinity norm of the scaled gradient."""
        ...

    def first_radius(self, state: SolverState, box: Box) -> float:
        """Trust-region radius of the first step."""
        ...

    def propose(self, state: SolverState, box: Box) -> Trial:
        """Compute the next trial by p × p arithmetic alone."""
        ...

    def resized(self, state: SolverState, trial: Trial, actual: float) -> tuple[float, float]:
        """Radius and first guess of α after a trial that lowered the cost by `actual`."""
        ...

    def accepts(self, trial: Trial, actual: float) -> bool:
        """Whether to move to the trial."""
        ...


def moved_to(
    state: SolverState,
    params: FloatArray,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
    idle: NDArray[np.bool_] | None = None,
) -> SolverState:
    """The state at another point that has been evaluated; `idle` as for :func:`values_at`."""
    moments = sums.moments.with_y_of(state.moments)
    values = values_at(params, sums, basis, box, options, moments, state.sizes, idle)
    n_differenced = max(state.n_differenced, sums.n_differenced)
    return with_changes(state, n_differenced=n_differenced, **values)


def values_at(
    params: FloatArray,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
    moments: Moments,
    sizes: FloatArray,
    idle: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """The fields of a state that a point tells which has been evaluated, by name.

    A parameter has no effect there if ``‖J_j‖`` times the larger of its value and its size is
    within the rounding errors of the residuals. The exception is a column that explains more of the
    residuals than chance does, as where a start is far too small. Parameters that are `idle` (p,)
    have no effect either.
    """
    linear = factorize(sums, basis)
    effects = linear.norms * np.maximum(np.abs(params), sizes)
    rounding = rounding_length(params, moments, linear.norms, options.model_eps)
    without = effects <= max(rounding, LEAST_EFFECT)
    if True in without.tolist():
        explained = np.abs(linear.gradient) / linear.lengths
        chance = CHANCE * estimated_variance(sums.cost, sums.n_points, params.size) ** 0.5
        # A start of 0 tells no size, and at an optimum of 0 every effect is small.
        # Residuals that are rounding errors themselves show nothing, whatever their pattern.
        by_chance = explained <= max(chance, rounding, LEAST_EFFECT)
        linear = linear.without((sizes > 0.0) & without & by_chance)
    if idle is not None:
        linear = linear.without(idle)
    return {
        "params": params,
        "cost": sums.cost,
        "chi2": sums.chi2,
        "n_points": sums.n_points,
        "n_skipped": sums.n_skipped,
        "moments": moments,
        "linearization": linear,
        "left": remainder(linear, params, box, sums.n_points),
    }


def rounding_length(params: FloatArray, moments: Moments, norms: FloatArray, eps: float) -> float:
    """Length of the rounding errors of the weighted residuals.

    ``4 ε √(Σ_j (‖J_j‖ θ_j)² + ‖w y‖²)``: a value of the model is rounded relative to its terms, of
    sizes ``‖J_j‖ θ_j``, and relative to y where the terms cancel.

    Parameters
    ----------
    params : ndarray, shape (p,), float64
    moments : Moments
    norms : ndarray, shape (p,), float64
        ``‖J_j‖``.
    eps : float
        Relative precision ε of the model's values.
    """
    terms = length(norms * params)
    values = float(np.hypot(moments.scatter**0.5, moments.weight**0.5 * moments.mean))
    return RESIDUAL_ROUNDING * eps * float(np.hypot(terms, values))


def residual_length(state: SolverState) -> float:
    """``‖r‖``; with a robust loss, the root of twice the cost."""
    return float((2.0 * state.cost) ** 0.5)


def relative_gradient(state: SolverState, box: Box) -> float:
    """Largest cosine of the angle between the residuals and a column of the Jacobian.

    If the negative gradient points at a bound, the cosine is limited by the part of the cost that
    the way to the bound can gain.
    """
    gradient, residuals = state.linearization.gradient, residual_length(state)
    if residuals == 0.0:
        return 0.0
    cosines = np.abs(gradient) / state.linearization.lengths / residuals
    if box.is_open:
        return largest_size(cosines)
    room, towards = box.distance_along_descent(state.params, gradient)
    gains = np.where(towards == 0.0, np.inf, np.abs(gradient) / residuals * (room / residuals))
    return float(np.minimum(cosines, gains).max())


def first_radius(state: SolverState, length: float) -> float:
    """The length of the start in the norm of the trust region.

    For a start that is zero in the data's units, the length of the step to the optimum of its
    linearisation.
    """
    least = LEAST_START * state.left.length
    return length if length > least else state.left.length or 1.0


def is_finite(sums: NormalEquations) -> bool:
    """Whether a step can be computed from the sums."""
    return bool(
        math.isfinite(sums.cost)
        and all_finite(sums.gram)
        and all_finite(sums.gradient)
        and (sums.concave is None or all_finite(sums.concave))
    )


def actual_reduction(state: SolverState, there: SolverState, predicted: float) -> float:
    """Reduction of the cost by a trial.

    Parameters
    ----------
    state, there : SolverState
        At the best point so far, and at the trial.
    predicted : float

    Returns
    -------
    float
        The difference of the costs. If the difference and `predicted` are both within the rounding
        errors of the cost, the difference of the reductions still attainable.
    """
    difference = state.cost - there.cost
    if max(abs(difference), predicted) > rounding_of_cost(state):
        return difference
    return state.left.reduction - there.left.reduction


def rounding_of_cost(state: SolverState) -> float:
    """Size of the rounding errors in a difference of two costs.

    A model's value is rounded relative to itself, ``δf_i ~ EPS |f_i|``, and so is each residual:
    ``δcost ~ √Σ (r_i δr_i)²``, about ``EPS ‖r‖ ‖f‖ / √n`` for errors that are not correlated. The
    weighted norm of y stands for the norm of f. If the residuals are far below y, the cost has far
    fewer digits than its own rounding suggests.
    """
    moments = state.moments
    values = (moments.scatter + moments.weight * moments.mean**2) / max(state.n_points, 1)
    return COST_ROUNDING * EPS * (state.cost + float((2.0 * state.cost) ** 0.5 * values**0.5))


def may_be_last(state: SolverState, trial: Trial, options: SolverOptions) -> bool:
    """Whether the search is expected to end at a trial."""
    is_small = trial.predicted <= LAST_REDUCTION * state.cost
    return is_small or state.nfev + 1 >= options.evaluations(state.params.size)


def distance(state: SolverState, options: SolverOptions) -> float:
    """Distance of the best point so far from the optimum, in standard errors."""
    return distance_to_optimum_sigma(state.left, standard_deviation(state, options) ** 2)


def standard_deviation(state: SolverState, options: SolverOptions) -> float:
    """Standard deviation of the weighted residuals: 1 where the weights are absolute."""
    variance = options.residual_variance
    if variance is None:
        variance = estimated_variance(state.cost, state.n_points, state.params.size)
    return float(variance**0.5)


def scales(state: SolverState, options: SolverOptions) -> FloatArray:
    """Inverse characteristic sizes of the parameters for a new linearisation, shape (p,)."""
    if not isinstance(options.x_scale, str):
        return np.ones_like(state.params) / options.x_scale
    return nonzero(np.maximum(state.linearization.quadratic.norms, state.scale_inv))


class SimpleDecrease:
    """Acceptance and radius of "trf" and "dogbox", as in ``scipy.optimize.least_squares``."""

    def resized(self, state: SolverState, trial: Trial, actual: float) -> tuple[float, float]:
        """Grow or shrink the radius by fixed factors; see :func:`update_radius`."""
        ratio = reduction_ratio(actual, trial.predicted)
        radius = max(update_radius(state.radius, ratio, trial.scaled_step_norm), LEAST_RADIUS)
        # α grows as the radius shrinks (Moré 1978, section 5).
        return radius, state.alpha * state.radius / radius

    def accepts(self, trial: Trial, actual: float) -> bool:  # noqa: ARG002 (of the protocol)
        """Accept every point that lowers the cost."""
        return actual > 0.0
