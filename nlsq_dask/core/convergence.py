"""When a search is over, and with which status.

A search has succeeded if its point is the optimum as far as the data or the arithmetic can tell.
``L = ‖J s‖`` is the length of the step s to the optimum of the quadratic model within the bounds
(:mod:`nlsq_dask.core.distance`), s_e the standard deviation of a row's residual, p the number of
parameters and n the number of rows. Success needs a criterion of ``scipy.optimize.least_squares``
(`ftol`, `xtol`, `gtol`) and one of these statements:

arrived     ``L ≤ tol s_e``: no parameter moves by more than `tol` standard errors
rounding    ``L ≤ u √(p/n)``, or ``L ≤ u`` if the last trial did not halve L: the arithmetic allows
            no nearer point. ``u = 4 ε √(Σ_j (‖J_j‖ θ_j)² + ‖w y‖²)`` is the length of the rounding
            errors of the residuals, ε the precision of the model's values
near        ``L ≤ 0.1 s_e`` and the search cannot go on
kink        the slope along a tiny step changes its sign: the optimum lies on a kink of the model,
            where no quadratic model holds

Rounding, near and kink need none of SciPy's criteria. The criteria have no units: `gtol` bounds the
cosine of the angle between the residuals and every column of J, as in MINPACK; `xtol` holds for
each parameter relative to its own size; `ftol` is relative to the present cost. A fit in nA ends
therefore at the same point as the fit in A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.factor import EPS
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.records import with_changes
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Trial,
    relative_gradient,
    rounding_length,
    rounding_of_cost,
    standard_deviation,
)
from nlsq_dask.core.solver_state import SolverOptions, SolverState
from nlsq_dask.core.trust_region import reduction_ratio
from nlsq_dask.core.vectors import length, nonzero

#: Largest distance from the optimum, in standard errors, at which a search that cannot go on is
#: still a success: a tenth of the uncertainty of the data.
NEAR_TOL = 0.1

#: After so many rejections in a row a search cannot go on: the radius has shrunk by 4³⁰, about
#: 10¹⁸, which is beyond the digits of a parameter.
MOST_REJECTIONS = 30

#: The last trial did not help if L is above this part of the earlier L.
HALVED = 0.5

#: Largest length ``‖J s‖`` of a step, in standard deviations of a residual, over which a change of
#: sign of the slope means a kink. A smooth model does not bend within such a step.
KINK_LENGTH = 1e-3

#: Rejections in a row, each of a step shorter by 4, before a change of sign means a kink: a smooth
#: slope keeps its sign along a short step.
KINK_REJECTIONS = 5

#: Largest distance from the optimum, in standard errors, at which a kink counts. The formula gives
#: 0.04 to 0.7 at true minima of piecewise lines, and any number in noise.
KINK_DISTANCE = 1.0

#: Rejections in a row with a higher cost and a slope that still falls, after which the derivatives
#: do not belong to the values. In a valley that bends the slope changes its sign instead.
CONTRADICTIONS = 5

#: Least ratio of the actual to the predicted reduction at which a small reduction means
#: convergence: the quadratic model must be right (the value of ``scipy.optimize.least_squares``).
TRUSTED_RATIO = 0.25

#: Least component, relative to the largest, with which a parameter takes part in a direction.
LEAST_PART = 0.1

#: Smallest eigenvalue ratio of the equilibrated Gram matrix at which the distance and the standard
#: errors are computed from its factor: the weakest direction has seven digits.
FINAL_RESOLUTION = 1e7 * EPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one trial.

    Attributes
    ----------
    before : SolverState
        State before the trial.
    trial : Trial
    actual : float
        Reduction of the cost; minus infinity if the trial is not finite.
    accepted : bool
    slope : float
        ``gᵀ s`` with the gradient at the trial; NaN if the gradient is not known.
    """

    before: SolverState
    trial: Trial
    actual: float
    accepted: bool
    slope: float

    @property
    def contradicts(self) -> bool:
        """Whether the trial costs more although the cost still falls along the step there."""
        return not self.accepted and self.slope < 0.0 and _rises(self)

    @property
    def step(self) -> FloatArray:
        """The step, shape (p,), as rounded."""
        return self.trial.params - self.before.params

    def is_small(self, xtol: float | None) -> bool:
        """Whether the step changes no parameter by more than this part; None is 0."""
        small = np.abs(self.step) <= (xtol or 0.0) * np.abs(self.before.params)
        return False not in small.tolist()


def judged(
    state: SolverState, box: Box, options: SolverOptions, outcome: Outcome | None = None
) -> SolverState:
    """Set the status of a search that is over.

    Parameters
    ----------
    state : SolverState
        With ``status`` None.
    box : Box
    options : SolverOptions
    outcome : Outcome, optional
        Outcome of the trial before; None for a point that is judged by itself.

    Returns
    -------
    SolverState
        ``met`` holds the first of SciPy's criteria that was met.
    """
    met = _criterion(state, box, options, outcome)
    status = _success(state, met, options, outcome)
    # A short step in standard errors is no reason to stop: such steps follow a valley that bends.
    is_stuck = outcome is not None and (
        state.n_rejected >= MOST_REJECTIONS or not any(outcome.step.tolist())
    )
    if status is None and is_stuck:
        if state.left.length <= NEAR_TOL * standard_deviation(state, options):
            status = Status.NEAR
        elif state.n_contradicted >= CONTRADICTIONS:
            status = Status.INCONSISTENT
        else:
            status = Status.STALLED
    if status is None and state.nfev >= options.evaluations(state.params.size):
        status = Status.MAX_EVALUATIONS
    return with_changes(state, met=met if state.met is None else state.met, status=status)


def _criterion(
    state: SolverState, box: Box, options: SolverOptions, outcome: Outcome | None
) -> Status | None:
    """The criterion of SciPy that is met, or None."""
    by_cost = by_step = False
    if outcome is not None and math.isfinite(outcome.actual):
        least = (options.ftol or 0.0) * state.cost
        ratio = reduction_ratio(outcome.actual, outcome.trial.predicted)
        by_cost = outcome.actual <= least and ratio > TRUSTED_RATIO
        by_step = outcome.is_small(options.xtol)
    if by_cost or by_step:
        both = by_cost and by_step
        return Status.COST_AND_STEP if both else Status.COST if by_cost else Status.STEP
    steepest = relative_gradient(state, box)
    if steepest <= max(options.gtol or 0.0, EPS if options.method == "lm" else 0.0):
        return Status.GRADIENT
    return None


def _success(
    state: SolverState, met: Status | None, options: SolverOptions, outcome: Outcome | None
) -> Status | None:
    """The status of success at the optimum; None if the optimum is not shown."""
    left, deviation = state.left.length, standard_deviation(state, options)
    rounding = rounding_length(
        state.params, state.moments, state.linearization.norms, options.model_eps
    )
    if left <= rounding * (state.params.size / state.n_points) ** 0.5:
        return met or Status.ROUNDING
    if met is not None and left <= options.arrival_tol * deviation:
        return met
    if _ends_early(state, options, outcome):
        return Status.STATISTICAL
    if outcome is None:
        return None
    if left <= rounding and not (outcome.accepted and left <= HALVED * outcome.before.left.length):
        return Status.ROUNDING
    return Status.KINK if _at_kink(state, outcome, options) else None


def _ends_early(state: SolverState, options: SolverOptions, outcome: Outcome | None) -> bool:
    """Whether another pass could not change the answer by more than the tolerances allow."""
    moved = outcome is None or outcome.accepted
    return (
        moved
        and options.stat_tol is not None
        and state.left.length < options.stat_tol * standard_deviation(state, options)
        and state.left.reduction < (options.ftol or 0.0) * state.cost
        # With too few digits the distance itself may be wrong.
        and state.linearization.resolution >= FINAL_RESOLUTION
    )


def _at_kink(state: SolverState, outcome: Outcome, options: SolverOptions) -> bool:
    """Whether the slope changes its sign along tiny steps that are rejected."""
    if state.n_rejected < KINK_REJECTIONS:
        return False
    image = length(outcome.before.linearization.r_factor @ outcome.step)
    deviation = standard_deviation(state, options)
    return (
        state.left.length <= KINK_DISTANCE * deviation
        and outcome.is_small(options.xtol)
        and image <= KINK_LENGTH * deviation
        and outcome.trial.slope < 0.0 <= outcome.slope
        and _rises(outcome)
    )


def _rises(outcome: Outcome) -> bool:
    """Whether a trial costs more, by more than rounding."""
    return rounding_of_cost(outcome.before) < -outcome.actual < np.inf


def undetermined(state: SolverState) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Directions that the data do not determine.

    Parameters
    ----------
    state : SolverState

    Returns
    -------
    directions : ndarray, shape (k, p), float64
        In the parameters' units. The largest component of a direction is the size of its
        parameter: the larger of its value and of its size at the start, or 1 if both are 0.
    involved : ndarray, shape (p,), bool
        The parameters that take part in them.
    """
    linear = state.linearization
    if linear.is_determined(state.n_points):
        return np.zeros((0, state.params.size)), np.zeros(state.params.size, bool)
    _, singular, v_transposed = linear.equilibrated_svd
    weak = v_transposed[~(singular > linear.rank_rtol(state.n_points) * singular[0])]
    sizes = nonzero(np.maximum(np.abs(state.params), state.sizes))
    directions = weak / linear.lengths
    longest = np.max(np.abs(directions) / sizes, axis=1, initial=0.0, keepdims=True)
    parts = np.abs(weak) / np.max(np.abs(weak), axis=1, initial=EPS, keepdims=True)
    involved: NDArray[np.bool_] = (parts > LEAST_PART).any(axis=0)
    return directions / np.where(longest == 0.0, 1.0, longest), involved
