"""The checks before a search ends.

A point that meets the criteria of an end may still not be the optimum. Three checks follow each
other:

1. Digits. If the factor of the Jacobian has lost digits to an ill-fitting basis, the point is
   evaluated again in its own basis and judged again.
2. Saddles. A robust loss that is concave in some rows may have a saddle or a maximum there. The
   search is displaced along the direction of the most negative curvature and goes on.
3. Undetermined directions. A peak that starts far from its data has no slope, although another
   place fits better. One trial is made along each undetermined direction, by one per cent of the
   parameter's size. The search goes on from the first trial that lowers the cost. If no trial does,
   the parameters are undetermined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import stopped_at_bounds
from nlsq_dask.core.convergence import FINAL_RESOLUTION, NEAR_TOL, judged, undetermined
from nlsq_dask.core.dogbox import Dogbox
from nlsq_dask.core.lm import LevenbergMarquardt
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import Search, SumsAt
from nlsq_dask.core.records import with_changes
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Method,
    distance,
    is_finite,
    moved_to,
    residual_length,
    rounding_length,
    rounding_of_cost,
    scales,
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

#: Most displacements of a search. The limit ends searches along a direction that falls for ever.
MOST_DISPLACEMENTS = 3

#: Ends without these checks.
ENDS_AT_ONCE = (Status.CALLBACK, Status.MAX_EVALUATIONS)


def confirmed(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Check a point at which a search would end.

    Parameters
    ----------
    state : SolverState
        Returned unchanged if the search is not at an end.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        With a status; without a status if the search has to go on.
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
    if True not in involved.tolist():
        return state
    state = yield from _displaced(state, PROBE * directions, box, options)
    if not _is_end(state.status):
        return state
    return with_changes(state, status=Status.UNDETERMINED) if success else state


def _is_end(status: Status | None) -> bool:
    return status is not None and status not in ENDS_AT_ONCE


def rescaled(state: SolverState, box: Box, options: SolverOptions, **changes: Any) -> SolverState:
    """The state with the scales and the optimality of its point, and with other changes."""
    optimality = METHODS[options.method].optimality(state, box)
    return with_changes(state, scale_inv=scales(state, options), optimality=optimality, **changes)


def restarted(state: SolverState, box: Box, options: SolverOptions) -> SolverState:
    """Scale the parameters at a starting point, and choose the first radius there."""
    state = rescaled(state, box, options, alpha=0.0, n_rejected=0, n_contradicted=0)
    return with_changes(state, radius=METHODS[options.method].first_radius(state, box))


def refined(
    state: SolverState, box: Box, options: SolverOptions, *, observe: bool = False
) -> Search[SolverState]:
    """Evaluate the best point again in its own basis, to regain lost digits of its factor.

    With `observe` the moments of y are computed again, too.
    """
    basis = state.linearization.whitening
    sums = yield SumsAt(state.params, basis.forward, observe, options.scores)
    again = with_changes(state, n_refined=state.n_refined + 1, refined=True)
    # In another basis a model near overflow may overflow. Then the earlier sums stay.
    if not is_finite(sums):
        return again
    if observe:
        again = with_changes(again, moments=sums.moments)
    # A column without an effect comes back from another basis as rounding errors of the others.
    idle = state.linearization.norms == 0.0
    return moved_to(again, state.params, sums, basis, box, options, idle)


def restated(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Evaluate the best point again, without rows that were lost."""
    again = with_changes(state, nfev=state.nfev + 1, status=None)
    again = yield from refined(again, box, options, observe=True)
    return rescaled(again, box, options)


def record(
    state: SolverState,
    options: SolverOptions,
    *,
    cost: float,
    step_norm: float = 0.0,
    radius: float = 0.0,
    accepted: bool,
) -> SolverState:
    """Add an evaluation to the history."""
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
    return with_changes(state, history=(*state.history, entry))


def _judged_again(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Judge a point again, with all digits of its factor: confirm the end, or go on."""
    status = state.status
    state = yield from refined(state, box, options)
    state = with_changes(state, status=None)
    length, deviation = state.left.length, standard_deviation(state, options)
    here = judged(state, box, options)
    if here.status is not None and here.status.success:
        return here
    rounding = rounding_length(
        state.params, state.moments, state.linearization.norms, options.model_eps
    )
    is_near, has_arrived = (length <= tol * deviation for tol in (NEAR_TOL, options.arrival_tol))
    if (
        status is Status.KINK
        or (status in (Status.NEAR, Status.STALLED) and is_near)
        or (status is Status.ROUNDING and length <= rounding)
        or (status not in (Status.STALLED, Status.INCONSISTENT) and has_arrived)
    ):
        return with_changes(here, status=Status.NEAR if status is Status.STALLED else status)
    return here if here.status is not None else restarted(here, box, options)


def _displaced(
    state: SolverState, steps: Iterable[FloatArray], box: Box, options: SolverOptions
) -> Search[SolverState]:
    """Restart without a status from the first step that lowers the cost, if any step does."""
    if state.n_probed >= MOST_DISPLACEMENTS:
        return state
    state = with_changes(state, n_probed=state.n_probed + 1)
    basis = state.linearization.whitening
    for step in steps:
        if state.nfev >= options.evaluations(state.params.size):
            break
        params = stopped_at_bounds(state.params, step, box)
        sums = yield SumsAt(params, basis.forward)
        state = with_changes(state, nfev=state.nfev + 1)
        length = float(np.linalg.norm(params - state.params))
        if is_finite(sums) and state.cost - sums.cost > rounding_of_cost(state):
            moved = with_changes(state, njev=state.njev + 1, refined=False, status=None)
            there = moved_to(moved, params, sums, basis, box, options)
            there = restarted(there, box, options)
            there = record(there, options, cost=sums.cost, step_norm=length, accepted=True)
            if there.nfev >= options.evaluations(state.params.size):
                return with_changes(there, status=Status.MAX_EVALUATIONS)
            return there
        state = record(state, options, cost=sums.cost, step_norm=length, accepted=False)
    return state
