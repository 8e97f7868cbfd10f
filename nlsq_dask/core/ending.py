"""What is tried before a search ends.

A point that looks like an end may be none. Three things are looked at, in this order:

1. Digits. Where the factor of the Jacobian was read off a basis that does not fit, the point is
   evaluated once more in its own basis, and judged by that.
2. Saddles. A robust loss that is concave in some rows may have a saddle or a maximum there: the
   search is displaced along the direction of the most negative curvature and goes on.
3. Directions that the data do not determine. A peak that starts far off its data has no slope, and
   yet another place fits better. One trial is made along each direction, of one per cent of the
   parameter's size. If one lowers the cost the search goes on from there; if none does, the
   parameters are undetermined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import stopped_at_bounds
from nlsq_dask.core.convergence import FINAL_RESOLUTION, NEAR_TOL, judged, undetermined
from nlsq_dask.core.dogbox import Dogbox
from nlsq_dask.core.lm import LevenbergMarquardt
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import Search, SumsAt
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Method,
    distance,
    is_finite,
    residual_length,
    rounding_length,
    rounding_of_cost,
    stand_at,
    standard_deviation,
)
from nlsq_dask.core.solver_state import IterationRecord, SolverOptions, SolverState
from nlsq_dask.core.trf import TrustRegionReflective

METHODS: Mapping[str, Method] = {
    "trf": TrustRegionReflective(),
    "lm": LevenbergMarquardt(),
    "dogbox": Dogbox(),
}

#: Length of a trial along an undetermined direction, as a part of the parameters' sizes.
PROBE = 1e-2

#: Length of a step down from a saddle, as a part of the length of the residuals.
DESCENT = 1e-2

#: Times that a search is displaced from where it would have ended. A flat direction that falls
#: for ever is not followed for ever.
MOST_DISPLACEMENTS = 3

#: Ends at which nothing is tried any more.
ENDS_AT_ONCE = (Status.CALLBACK, Status.MAX_EVALUATIONS)


def confirmed(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Look at a point at which a search would end.

    Parameters
    ----------
    state : SolverState
        Anything but an end is returned as it is.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        With a status, or without where the search has to go on.
    """
    if not _is_end(state.status):
        return state
    if state.linearization.resolution < FINAL_RESOLUTION and not state.refined:
        state = yield from _judged_again(state, box, options)
        if not _is_end(state.status):
            return state
    success = state.status is not None and state.status.success
    downhill = state.linearization.downhill
    if success and downhill is not None:
        step = DESCENT * residual_length(state) * downhill
        state = yield from _displaced(state, [step, -step], box, options)
        if not _is_end(state.status):
            return state
    directions, involved = undetermined(state)
    if not involved.any():
        return state
    state = yield from _displaced(state, PROBE * directions, box, options)
    if not _is_end(state.status):
        return state
    return replace(state, status=Status.UNDETERMINED) if success else state


def _is_end(status: Status | None) -> bool:
    return status is not None and status not in ENDS_AT_ONCE


def settled_first(state: SolverState, box: Box, options: SolverOptions) -> SolverState:
    """Settle on a point to start from, and choose the first radius there."""
    method = METHODS[options.method]
    state = method.settle(state, box, options)
    return replace(
        state, radius=method.first_radius(state, box), alpha=0.0, n_rejected=0, n_contradicted=0
    )


def refined(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Evaluate a known point again in its own basis, as digits of its factor were lost."""
    basis = state.linearization.whitening
    sums = yield SumsAt(state.params, basis.forward, scores=options.scores)
    again = replace(state, n_refined=state.n_refined + 1, refined=True)
    # A model on the verge of overflow may not bear the basis: what is known must do.
    return stand_at(again, state.params, sums, basis, box, options) if is_finite(sums) else again


def record(
    state: SolverState,
    options: SolverOptions,
    *,
    cost: float,
    step_norm: float = 0.0,
    radius: float = 0.0,
    accepted: bool,
) -> SolverState:
    """Add what an evaluation led to to the history."""
    entry = IterationRecord(
        iteration=state.njev - 1,
        nfev=state.nfev,
        cost=cost,
        step_norm=step_norm,
        optimality=state.optimality,
        radius=radius,
        accepted=accepted,
        distance=distance(state, options),
    )
    return replace(state, history=(*state.history, entry))


def _judged_again(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Judge a point by its factor in full digits: the end is one still, or the search goes on."""
    status = state.status
    state = yield from refined(state, box, options)
    state = replace(state, status=None)
    length, deviation = state.left.length, standard_deviation(state, options)
    here = judged(state, box, options)
    if here.status is not None and here.status.success:
        return here
    rounding = rounding_length(state, state.linearization.norms, options.model_eps)
    near, arrived = (length <= tol * deviation for tol in (NEAR_TOL, options.arrival_tol))
    if (
        status is Status.KINK
        or (status in (Status.NEAR, Status.STALLED) and near)
        or (status is Status.ROUNDING and length <= rounding)
        or (status not in (Status.STALLED, Status.INCONSISTENT) and arrived)
    ):
        return replace(here, status=Status.NEAR if status is Status.STALLED else status)
    return here if here.status is not None else settled_first(here, box, options)


def _displaced(
    state: SolverState, steps: Iterable[FloatArray], box: Box, options: SolverOptions
) -> Search[SolverState]:
    """Go on, without a status, from the first of some trials that lowers the cost, if any does."""
    if state.n_probed >= MOST_DISPLACEMENTS:
        return state
    state = replace(state, n_probed=state.n_probed + 1)
    basis = state.linearization.whitening
    for step in steps:
        if state.nfev >= options.evaluations(state.params.size):
            break
        params = stopped_at_bounds(state.params, step, box.lower, box.upper)
        sums = yield SumsAt(params, basis.forward)
        state = replace(state, nfev=state.nfev + 1)
        length = float(np.linalg.norm(params - state.params))
        if is_finite(sums) and state.cost - sums.cost > rounding_of_cost(state):
            there = stand_at(state, params, sums, basis, box, options)
            there = replace(there, njev=state.njev + 1, refined=False, status=None)
            there = settled_first(there, box, options)
            there = record(there, options, cost=sums.cost, step_norm=length, accepted=True)
            if there.nfev >= options.evaluations(state.params.size):
                return replace(there, status=Status.MAX_EVALUATIONS)
            return there
        state = record(state, options, cost=sums.cost, step_norm=length, accepted=False)
    return state
