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

from nlsq_dask._errors import Status
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

#: Least ratio of the actual to the predicted reduction at which a small one means convergence: the
#: model must have been right (the value of ``scipy.optimize.least_squares``).
TRUSTED_RATIO = 0.25


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
        """Scale and judge a new point: `scale_inv`, `optimality`, and perhaps `status`."""
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

    def criterion(
        self,
        before: SolverState,
        after: SolverState,
        trial: Trial,
        actual: float,
        options: SolverOptions,
    ) -> Status | None:
        """Check the criteria on the cost and on the step of a trial."""
        ...


def moved(
    state: SolverState, params: FloatArray, sums: NormalEquations, basis: Basis, box: Box
) -> SolverState:
    """Stand at another point, which has been evaluated."""
    linear = factorize(sums, basis)
    return replace(
        state,
        params=params,
        linearization=linear,
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
        moments=sums.moments,
        left=remainder(linear, params, box, sums.n_points),
        njev=state.njev + 1,
    )


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


def distance(state: SolverState, options: SolverOptions) -> float:
    """Distance of the best point so far from the optimum, in standard errors."""
    variance = options.residual_variance
    if variance is None:
        variance = estimated_variance(state.cost, state.n_points, state.params.size)
    return distance_to_optimum_sigma(state.left, variance)


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

    def criterion(
        self,
        before: SolverState,
        after: SolverState,  # noqa: ARG002 (of the protocol)
        trial: Trial,
        actual: float,
        options: SolverOptions,
    ) -> Status | None:
        """Compare the reduction with the cost, and the step with the parameters."""
        ftol, xtol = options.ftol or 0.0, options.xtol or 0.0
        ratio = reduction_ratio(actual, trial.predicted)
        by_cost = actual < ftol * before.cost and ratio > TRUSTED_RATIO
        by_step = trial.step_norm < xtol * (xtol + float(np.linalg.norm(before.params)))
        return both(by_cost, by_step)


def both(by_cost: bool, by_step: bool) -> Status | None:
    """Name the criteria that are met."""
    if by_cost and by_step:
        return Status.COST_AND_STEP
    if by_cost:
        return Status.COST
    return Status.STEP if by_step else None
