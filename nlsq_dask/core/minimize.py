"""The search for the least sum of squares, by any of the methods.

An iteration costs one evaluation, which yields both the cost and the linearisation at a trial. The
evaluation uses the basis that whitens the last linearisation, so that the Gram matrix keeps its
digits. Between two evaluations a search is a :class:`~nlsq_dask.core.solver_state.SolverState`.
:func:`start` makes the first state, :func:`advance` tries one point, and :func:`finish` makes the
result. The steps that differ between methods are in :class:`~nlsq_dask.core.search.Method`, the
criteria of an end in :mod:`nlsq_dask.core.convergence`, and the checks before an end in
:mod:`nlsq_dask.core.ending`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import START_MARGIN, active_bounds, off_bounds, stopped_at_bounds
from nlsq_dask.core.convergence import FINAL_RESOLUTION, Outcome, judged, undetermined
from nlsq_dask.core.ending import (
    METHODS,
    confirmed,
    record,
    refined,
    rescaled,
    restarted,
    restated,
)
from nlsq_dask.core.factor import EPS, Basis, factorize
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import RowsLostError, Search, SumsAt
from nlsq_dask.core.records import with_changes
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Trial,
    actual_reduction,
    distance,
    is_finite,
    may_be_last,
    moved_to,
    rounding_of_cost,
    standard_deviation,
    values_at,
)
from nlsq_dask.core.solver_state import BestPoint, Solution, SolverOptions, SolverState
from nlsq_dask.core.vectors import length

#: A start whose Gram matrix has a smaller eigenvalue ratio is evaluated again in its own basis. If
#: columns are linearly dependent there, the start is displaced along the unresolved directions, by
#: this fraction of its length in units of x_scale.
START_RESOLUTION = 1e3 * EPS
DISPLACEMENT = 1e-2
WORST_DISPLACED_COST = 2.0

#: Distance from the bound 0 at which a start on this bound is evaluated first, while its size is
#: unknown: zero for all practical purposes.
TINY = 1e-300

#: The same distance if the model is not finite at the first one: the value of
#: ``scipy.optimize.least_squares``.
START_DISTANCE = 1e-10

#: A bound is active if the parameter is nearer to the bound than this part of ``s / ‖J_j‖``, the
#: standard error of the parameter in a fit of this parameter alone.
ACTIVE_REACH = 1e-3


#: Names of the fields that a solution takes from the last state.
OF_BEST_POINT = tuple(field.name for field in fields(BestPoint))


@dataclass(frozen=True, slots=True)
class PriorKnowledge:
    """Knowledge about the start and the rows before a search begins.

    Attributes
    ----------
    basis : Basis, optional
        Basis for the first evaluation, which whitens the Jacobian at the start approximately.
    sums : NormalEquations, optional
        Sums at the start in `basis`, in place of the first evaluation.
    moments : Moments, optional
        Moments of y, in place of computing them.
    sizes : ndarray, shape (p,), float64, optional
        Sizes of the parameters, 0 for unknown; by default the start.
    """

    basis: Basis | None = None
    sums: NormalEquations | None = None
    moments: Moments | None = None
    sizes: FloatArray | None = None


NOTHING_KNOWN = PriorKnowledge()


def minimize(
    p0: FloatArray,
    box: Box,
    options: SolverOptions,
    observer: Callable[[SolverState], None] | None = None,
    *,
    state: SolverState | None = None,
    known: PriorKnowledge = NOTHING_KNOWN,
) -> Search[Solution]:
    """Minimise a sum of squares within bounds.

    Parameters
    ----------
    p0 : ndarray, shape (p,), float64
        Start, within or on the bounds.
    box : Box
        The bounds; infinite for no bound. "lm" takes no bounds.
    options : SolverOptions
    observer : callable, optional
        Called with the state after every evaluation. If it raises StopIteration the search ends
        there, with the best point so far.
    state : SolverState, optional
        State of an earlier search, from which this search goes on with the same bits.
    known : PriorKnowledge
        Knowledge about the start and the rows.

    Returns
    -------
    Solution
        Returned by the generator, which yields questions and is sent their answers.

    Raises
    ------
    InputError
        If the cost or its derivatives are not finite at `p0`, ``options.x_scale`` does not fit, or
        "lm" is given bounds.
    InputTypeError
        If there are fewer rows than parameters.
    """
    lost = False
    while True:
        try:
            if state is None:
                state = yield from start(p0, box, options, known)
                state = _observed(state, observer)
            elif lost:
                state = yield from restated(state, box, options)
                state = yield from confirmed(judged(state, box, options), box, options)
                state = _observed(state, observer)
            lost = False
            while state.status is None:
                state = yield from advance(state, box, options)
                state = _observed(state, observer)
            return (yield from finish(state, box, options))
        except RowsLostError:
            # What is known of the start has the lost rows, too.
            lost, known = True, replace(known, sums=None, moments=None)


def first_point(p0: FloatArray, box: Box, options: SolverOptions) -> FloatArray:
    """The point that a search from p0 evaluates first: moved off the bounds if it must be."""
    interior = METHODS[options.method].interior and not box.is_open
    return off_bounds(p0, box.lower, box.upper, TINY) if interior else p0


def start(
    p0: FloatArray, box: Box, options: SolverOptions, known: PriorKnowledge = NOTHING_KNOWN
) -> Search[SolverState]:
    """Evaluate the starting point.

    Parameters and errors as for :func:`minimize`.
    """
    if not isinstance(options.x_scale, str) and np.shape(options.x_scale) not in ((), p0.shape):
        raise _errors.x_scale_shape(np.shape(options.x_scale), p0.size)
    if options.method == "lm" and (np.isfinite(box.lower) | np.isfinite(box.upper)).any():
        raise _errors.lm_bounded()
    basis = known.basis or Basis.identity(p0.size)
    params, sums, n_more = yield from _first_sums(p0, box, options, basis, known)
    sizes = np.abs(p0 if known.sizes is None else known.sizes)
    moments = sums.moments.with_y_of(known.moments or sums.moments)
    state = SolverState(
        **values_at(params, sums, basis, box, options, moments, sizes),
        sizes=sizes,
        n_differenced=sums.n_differenced,
        scale_inv=np.zeros(params.size),
        radius=0.0,
        alpha=0.0,
        optimality=np.inf,
        nfev=1,
        njev=1,
        n_refined=n_more,
        status=None,
        history=(),
    )
    if state.linearization.resolution < START_RESOLUTION:
        state = yield from refined(state, box, options)
    state = restarted(state, box, options)
    state = record(state, options, cost=state.cost, accepted=True)
    return (yield from confirmed(judged(state, box, options), box, options))


def advance(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Try one point by one evaluation, and run the checks before an end.

    Parameters
    ----------
    state : SolverState
        With ``status`` None.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        At the new point if the trial was accepted, else with a smaller radius; with a status if the
        search is over.
    """
    displacement = _displacement(state, box) if state.nfev == 1 else None
    trial = displacement or METHODS[options.method].propose(state, box)
    if trial.params.tolist() == state.params.tolist():  # the step is lost in rounding
        outcome = Outcome(before=state, trial=trial, actual=-np.inf, accepted=False, slope=np.nan)
        return (yield from confirmed(judged(state, box, options, outcome), box, options))
    basis = state.linearization.whitening
    scores = options.scores and may_be_last(state, trial, options)
    try:
        sums = yield SumsAt(trial.params, basis.forward, scores=scores)
    except RowsLostError as error:
        # The cost at the trial is comparable with that of the same rows at the present point.
        sums = error.answer
        state = yield from restated(state, box, options)
    tried = with_changes(state, nfev=state.nfev + 1, alpha=trial.alpha)
    respond = _accept_displacement if displacement else _accept_or_reject
    after = respond(tried, trial, sums, basis, box, options)
    after = record(
        after,
        options,
        cost=sums.cost,
        step_norm=trial.step_norm,
        radius=state.radius,
        accepted=after.njev > state.njev,
    )
    return (yield from confirmed(after, box, options))


def finish(state: SolverState, box: Box, options: SolverOptions) -> Search[Solution]:
    """Make the result of a search that is over, with its linearisation in full accuracy."""
    lacks_scores = options.scores and state.linearization.sandwich is None
    lacks_digits = state.linearization.resolution < FINAL_RESOLUTION and not state.refined
    if lacks_digits or lacks_scores:
        state = yield from refined(state, box, options)
    assert state.status is not None, "advance() until the state has a status"
    linear = state.linearization
    reach = ACTIVE_REACH * standard_deviation(state, options) / linear.lengths
    best = {name: getattr(state, name) for name in OF_BEST_POINT}
    return Solution(
        **best | {"optimality": METHODS[options.method].optimality(state, box)},
        status=state.status,
        r_factor=linear.r_factor,
        gradient=linear.gradient,
        distance=distance(state, options),
        active_mask=active_bounds(state.params, box, linear.gradient, reach),
        undetermined=undetermined(state)[1],
        sandwich=linear.sandwich,
    )


def _first_sums(
    p0: FloatArray, box: Box, options: SolverOptions, basis: Basis, known: PriorKnowledge
) -> Search[tuple[FloatArray, NormalEquations, int]]:
    """The start moved off the bounds, the sums at the start, and the number of extra evaluations.

    The size of a parameter that starts on the bound 0 is known only after an evaluation. The first
    one is next to the bound; if the model is not finite there, the second is at SciPy's distance.
    """
    interior = METHODS[options.method].interior
    point, n_more = first_point(p0, box, options), 0
    observe = known.moments is None
    sums = known.sums
    if sums is None:
        sums = yield SumsAt(point, basis.forward, observe, options.scores)
    if interior and not is_finite(sums):
        further = off_bounds(p0, box.lower, box.upper, START_DISTANCE)
        if not np.array_equal(further, point):
            point, n_more = further, 1
            sums = yield SumsAt(point, basis.forward, observe, options.scores)
    if sums.n_points < point.size:
        raise _errors.too_few_rows(point.size, sums.n_points, sums.n_skipped)
    if not np.isfinite(sums.cost):
        raise _errors.start_not_finite(point)
    if not is_finite(sums):
        raise _errors.start_derivative_not_finite(point)
    if interior and not n_more and not np.array_equal(point, p0):
        linear = factorize(sums, basis)
        steps = np.abs(linear.gradient / linear.lengths) / linear.lengths
        point = np.where(
            point == p0, p0, off_bounds(p0, box.lower, box.upper, START_MARGIN * steps)
        )
    return point, sums, n_more


def _observed(state: SolverState, observer: Callable[[SolverState], None] | None) -> SolverState:
    """Show a state to the observer, which may end the search by StopIteration."""
    if observer is not None:
        try:
            observer(state)
        except StopIteration:
            return with_changes(
                state, status=Status.CALLBACK if state.status is None else state.status
            )
    return state


def _displacement(state: SolverState, box: Box) -> Trial | None:
    """Trial that leaves a start at which the columns of the Jacobian are linearly dependent.

    At such a start (say, two exponentials with equal rates) the gradient and every step lie in the
    span of the columns, so that the search keeps the symmetry and ends at a saddle point. A small
    displacement within the null space changes the cost to second order alone. Its direction is the
    projection of a fixed vector without symmetry. None if the columns are independent.
    """
    linear = state.linearization
    if linear.is_determined(state.n_points):
        return None
    norms = linear.lengths
    _, singular, v_transposed = linear.equilibrated_svd
    weak = v_transposed[~(singular > linear.rank_rtol(state.n_points) * singular[0])]
    direction = weak.T @ (weak @ np.cos(np.arange(1.0, norms.size + 1.0)))
    # A parameter without any effect keeps its start.
    direction[linear.norms == 0.0] = 0.0
    longest = length(direction)
    if longest < np.sqrt(EPS):
        return None
    displacement = DISPLACEMENT * (length(state.params * norms) or 1.0)
    step = direction * (displacement / longest) / norms
    params = stopped_at_bounds(state.params, step, box)
    return Trial(
        params=params,
        step_norm=length(params - state.params),
        scaled_step_norm=displacement,
        predicted=0.0,
        slope=0.0,
        alpha=0.0,
    )


def _accept_displacement(
    state: SolverState,
    trial: Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Restart from the displaced point, unless it is far worse."""
    if is_finite(sums) and sums.cost <= WORST_DISPLACED_COST * state.cost:
        moved = with_changes(state, njev=state.njev + 1, refined=False)
        state = restarted(moved_to(moved, trial.params, sums, basis, box, options), box, options)
    return judged(state, box, options)


def _accept_or_reject(
    state: SolverState,
    trial: Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Accept or reject a trial, choose the next radius, and judge whether the search is over."""
    method = METHODS[options.method]
    there, actual, slope = None, -np.inf, np.nan
    if is_finite(sums):
        there = moved_to(state, trial.params, sums, basis, box, options)
        actual = actual_reduction(state, there, trial.predicted)
        slope = float(there.linearization.gradient @ (trial.params - state.params))
    radius, alpha = method.resized(state, trial, actual)
    accepted = there is not None and method.accepts(trial, actual)
    outcome = Outcome(before=state, trial=trial, actual=actual, accepted=accepted, slope=slope)
    if there is None or not accepted:
        after = with_changes(
            state,
            radius=radius,
            alpha=alpha,
            n_rejected=state.n_rejected + 1,
            n_contradicted=state.n_contradicted + outcome.contradicts,
        )
    else:
        after = rescaled(
            there,
            box,
            options,
            radius=radius,
            alpha=alpha,
            njev=state.njev + 1,
            n_rejected=0,
            # A decrease within rounding does not clear earlier contradictions.
            n_contradicted=state.n_contradicted * (actual <= rounding_of_cost(state)),
            refined=False,
        )
    return judged(after, box, options, outcome)
