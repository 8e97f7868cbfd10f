"""What trust-region methods for least squares have in common.

Every method proposes a point, one evaluation yields the cost there and its linearisation together,
and the trial is accepted or rejected by what it lowers the cost by, compared with what the model
promised. An accepted trial is never evaluated again; a rejected one costs its own pass alone.

Near the optimum the promise becomes smaller than the rounding errors of the cost, and the
difference of two costs says nothing. There the reduction is taken from the whitened gradients
(:mod:`nlsq_dask.core.distance`): to the order of the model ``½ ‖Qᵀr‖²`` falls by what the cost
falls by, and it is not the small difference of large numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nlsq_dask.core.distance import distance_to_optimum_sigma, estimated_variance, remainder
from nlsq_dask.core.factor import EPS, Basis, factorize, nonzero
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import SolverOptions, SolverState
from nlsq_dask.core.trust_region import reduction_ratio, update_radius

#: Keeps the radius of a search that cannot move from underflowing.
LEAST_RADIUS = 1e-100

#: Rounding errors of a difference of two costs, in units of the rounding of its parts: two sums,
#: and a model whose value is rounded about twice.
NOISE_FACTOR = 4.0

#: Rounding errors of a residual, in units of the rounding of its largest term: the values of a
#: model take some operations.
NOISE = 4.0

#: Standard deviations of a residual by which a column of rounding errors explains the residuals by
#: chance, at most.
CHANCE = 5.0

#: A start that is shorter than this part of the residuals, in their units, says nothing of how far
#: the optimum is: in the data's units it is zero.
LEAST_START = 0.1

#: Part of the cost that a trial promises to lower it by, at most, where it may be the last one:
#: searches end at parts of 1e-8 and less, and the promise of the last trial but one is about the
#: square root of the last one's.
LAST_REDUCTION = 1e-2


@dataclass(frozen=True, slots=True)
class Trial:
    """A point to try, and what the model says of it.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    step_norm : float
        Length of the step, in the parameters' units.
    scaled_step_norm : float
        Its length in the norm of the trust region.
    predicted : float
        Reduction of the cost that the model promises.
    slope : float
        ``gᵀ s``, how steeply the cost falls along the step at first.
    alpha : float
        Levenberg-Marquardt parameter of the step; 0 where there is none.
    """

    params: FloatArray
    step_norm: float
    scaled_step_norm: float
    predicted: float
    slope: float
    alpha: float


class Method(Protocol):
    """What one method does in its own way."""

    @property
    def interior(self) -> bool:
        """Whether all iterates lie strictly between the bounds."""
        ...

    def settle(self, state: SolverState, box: Box, options: SolverOptions) -> SolverState:
        """Scale a new point: `scale_inv` and `optimality`."""
        ...

    def optimality(self, state: SolverState, box: Box) -> float:
        """Infinity norm of the scaled gradient."""
        ...

    def first_radius(self, state: SolverState, box: Box) -> float:
        """Trust-region radius of the first step."""
        ...

    def propose(self, state: SolverState, box: Box) -> Trial:
        """Compute the point to try next: p × p arithmetic alone."""
        ...

    def resize(self, state: SolverState, trial: Trial, actual: float) -> SolverState:
        """Choose the radius, and the first guess of α, by what a trial lowered the cost by."""
        ...

    def accepts(self, trial: Trial, actual: float) -> bool:
        """Whether to move to the trial."""
        ...


def stand_at(
    state: SolverState,
    params: FloatArray,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Stand at a point that has been evaluated.

    A parameter whose whole effect, ``‖J_j‖`` times the larger of its value and of its size, is
    within the rounding errors of the residuals has no effect there; unless its column explains more
    of the residuals than noise does by chance, as where a start is far too small.
    """
    here = replace(
        state,
        params=params,
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
        n_differenced=max(state.n_differenced, sums.n_differenced),
        moments=sums.moments.with_y_of(state.moments),
    )
    linear = factorize(sums, basis)
    with np.errstate(over="ignore"):
        effects = linear.norms * np.maximum(np.abs(params), state.sizes)
    # A start of 0 tells no size, and at an optimum of 0 every effect is small.
    rounding = rounding_length(here, linear.norms, options.model_eps)
    explained = np.abs(linear.gradient) / nonzero(linear.norms)
    chance = CHANCE * estimated_variance(sums.cost, sums.n_points, params.size) ** 0.5
    linear = linear.without((state.sizes > 0.0) & (effects <= rounding) & (explained <= chance))
    left = remainder(linear, params, box, sums.n_points)
    return replace(here, linearization=linear, left=left)


def rounding_length(state: SolverState, norms: FloatArray, eps: float) -> float:
    """Length of the rounding errors of the weighted residuals.

    ``4 ε √(Σ_j (‖J_j‖ θ_j)² + ‖w y‖²)``: a value of the model is rounded relative to its terms,
    whose sizes are those of ``‖J_j‖ θ_j``, and relative to y where the terms cancel.

    Parameters
    ----------
    state : SolverState
        With the point and the moments; its linearisation is not used.
    norms : ndarray, shape (p,), float64
        ``‖J_j‖``.
    eps : float
        Relative precision ε of the model's values.
    """
    moments = state.moments
    with np.errstate(over="ignore", invalid="ignore"):
        terms = float(np.linalg.norm(norms * state.params))
        values = float(np.hypot(moments.scatter**0.5, moments.weight**0.5 * moments.mean))
        return NOISE * eps * float(np.hypot(terms, values))


def residual_length(state: SolverState) -> float:
    """``‖r‖``; with a robust loss, the root of twice the cost."""
    return float((2.0 * state.cost) ** 0.5)


def relative_gradient(state: SolverState, box: Box) -> float:
    """Largest cosine of the angle between the residuals and a column of the Jacobian.

    A parameter that the negative gradient pushes towards a bound counts by the part of the cost
    that it can gain on the way, if that is less.
    """
    gradient, length = state.linearization.gradient, residual_length(state)
    if length == 0.0:
        return 0.0
    room, towards = box.distance_along_descent(state.params, gradient)
    cosines = np.abs(gradient) / nonzero(state.linearization.norms) / length
    with np.errstate(over="ignore", invalid="ignore"):
        gains = np.where(towards == 0.0, np.inf, np.abs(gradient) / length * (room / length))
    return float(np.max(np.minimum(cosines, gains)))


def first_radius(state: SolverState, length: float) -> float:
    """The length of the start in the norm of the trust region, where that says anything.

    A start that is zero in the data's units gets the length of the step to the optimum of its
    linearisation.
    """
    least = LEAST_START * state.left.length
    return length if length > least else state.left.length or 1.0


def is_finite(sums: NormalEquations) -> bool:
    """Whether a step can be computed from the sums."""
    return bool(
        np.isfinite(sums.cost)
        and np.isfinite(sums.gram).all()
        and np.isfinite(sums.gradient).all()
        and (sums.concave is None or np.isfinite(sums.concave).all())
    )


def actual_reduction(state: SolverState, there: SolverState, predicted: float) -> float:
    """What a trial lowers the cost by.

    Parameters
    ----------
    state, there : SolverState
        At the best point so far, and at the trial.
    predicted : float

    Returns
    -------
    float
        The difference of the costs; or of what is still attainable, where both the difference and
        the promise are within the rounding errors of the cost.
    """
    difference = state.cost - there.cost
    if max(abs(difference), predicted) > rounding_of_cost(state):
        return difference
    return state.left.reduction - there.left.reduction


def rounding_of_cost(state: SolverState) -> float:
    """Size of the rounding errors in a difference of two costs.

    A model's value is rounded relative to itself, ``δf_i ~ EPS |f_i|``, and so is each residual:
    ``δcost ~ √Σ (r_i δr_i)²``, about ``EPS ‖r‖ ‖f‖ / √n`` for errors that are not correlated. The
    weighted norm of f is taken for that of y. Residuals far below y, as of data with many digits,
    make the cost know far less than its own rounding.
    """
    moments = state.moments
    values = (moments.scatter + moments.weight * moments.mean**2) / max(state.n_points, 1)
    return NOISE_FACTOR * EPS * (state.cost + float((2.0 * state.cost) ** 0.5 * values**0.5))


def may_be_last(state: SolverState, trial: Trial, options: SolverOptions) -> bool:
    """Whether the search is expected to end at a trial."""
    near = trial.predicted <= LAST_REDUCTION * state.cost
    return near or state.nfev + 1 >= options.evaluations(state.params.size)


def distance(state: SolverState, options: SolverOptions) -> float:
    """Distance of the best point so far from the optimum, in standard errors."""
    return distance_to_optimum_sigma(state.left, standard_deviation(state, options) ** 2)


def standard_deviation(state: SolverState, options: SolverOptions) -> float:
    """Standard deviation of the weighted residuals: 1 where the weights are absolute."""
    variance = options.residual_variance
    if variance is None:
        variance = estimated_variance(state.cost, state.n_points, state.params.size)
    return float(variance**0.5)


def rescaled(state: SolverState, options: SolverOptions) -> SolverState:
    """Update the characteristic sizes of the parameters for a new linearisation."""
    if not isinstance(options.x_scale, str):
        return replace(state, scale_inv=np.ones_like(state.params) / options.x_scale)
    largest = np.maximum(state.linearization.quadratic.norms, state.scale_inv)
    return replace(state, scale_inv=nonzero(largest))


class SimpleDecrease:
    """How "trf" and "dogbox" weigh a trial, as ``scipy.optimize.least_squares`` does in both."""

    def resize(self, state: SolverState, trial: Trial, actual: float) -> SolverState:
        """Grow or shrink the radius by fixed factors; see :func:`update_radius`."""
        ratio = reduction_ratio(actual, trial.predicted)
        radius = max(update_radius(state.radius, ratio, trial.scaled_step_norm), LEAST_RADIUS)
        # α grows as the radius shrinks (Moré 1978, section 5).
        return replace(state, radius=radius, alpha=state.alpha * state.radius / radius)

    def accepts(self, trial: Trial, actual: float) -> bool:  # noqa: ARG002 (of the protocol)
        """Accept every point that lowers the cost."""
        return actual > 0.0
