"""The search for the least sum of squares, by any of the methods.

An iteration costs one evaluation, which yields the cost of a trial point and its linearisation
together. It is taken in the basis that whitens the last linearisation, so that the Gram matrix
keeps its digits. Between two evaluations all that is known is a
:class:`~nlsq_dask.core.solver_state.SolverState`. :func:`start` makes the first one,
:func:`advance` tries one point, :func:`finish` states the result; what a method does in its own
way is a :class:`~nlsq_dask.core.search.Method`, when a search is over says
:mod:`nlsq_dask.core.convergence`, and what is tried before it ends :mod:`nlsq_dask.core.ending`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import active_bounds, off_bounds, stopped_at_bounds
from nlsq_dask.core.convergence import FINAL_RESOLUTION, Outcome, judged, undetermined
from nlsq_dask.core.distance import Remainder
from nlsq_dask.core.ending import METHODS, confirmed, record, refined, settled_first
from nlsq_dask.core.factor import EPS, Basis, factorize, nonzero
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import Search, SumsAt
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Trial,
    actual_reduction,
    distance,
    is_finite,
    may_be_last,
    rounding_of_cost,
    stand_at,
    standard_deviation,
)
from nlsq_dask.core.solver_state import Solution, SolverOptions, SolverState

#: A start whose Gram matrix has a smaller eigenvalue ratio than this is evaluated once more in a
#: fitting basis; where that shows columns that are linearly dependent, it is displaced along the
#: directions that are not resolved, by this fraction of its length in units of x_scale.
START_RESOLUTION = 1e3 * EPS
DISPLACEMENT = 1e-2
WORST_DISPLACED_COST = 2.0

#: Distance from the bound 0 at which a start on it is evaluated, where nothing tells its size: next
#: to zero for all practical purposes.
TINY = 1e-300

#: The same where the model is not finite so near to the bound: the distance of
#: ``scipy.optimize.least_squares``.
START_DISTANCE = 1e-10

#: Distance of a start from a bound, as a part of the bound, or of the step to the minimum along the
#: parameter: the relative distance of ``scipy.optimize.least_squares``.
START_MARGIN = 1e-10

#: A bound is active where a parameter is nearer to it than this part of what its standard error
#: would be alone, ``s / ‖J_j‖``.
ACTIVE_REACH = 1e-3


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before a search begins.

    Attributes
    ----------
    basis : Basis, optional
        To evaluate the start in: the basis that whitens its Jacobian, where that is known roughly.
    sums : NormalEquations, optional
        At the start, in `basis`; then the start is not evaluated again.
    moments : Moments, optional
        Moments of y, which need not be computed again.
    sizes : ndarray, shape (p,), float64, optional
        Values that tell the sizes of the parameters, 0 where they do not; by default the start.
    """

    basis: Basis | None = None
    sums: NormalEquations | None = None
    moments: Moments | None = None
    sizes: FloatArray | None = None


NOTHING_KNOWN = Known()


def minimize(
    p0: FloatArray,
    box: Box,
    options: SolverOptions,
    observer: Callable[[SolverState], None] | None = None,
    *,
    state: SolverState | None = None,
    known: Known = NOTHING_KNOWN,
) -> Search[Solution]:
    """Minimise a sum of squares within bounds.

    Parameters
    ----------
    p0 : ndarray, shape (p,), float64
        Start, within or on the bounds.
    box : Box
        The bounds; infinite where there is no bound, as everywhere for "lm".
    options : SolverOptions
    observer : callable, optional
        Called with the state after every evaluation. If it raises StopIteration the search ends
        there, with the best point so far.
    state : SolverState, optional
        Where an earlier search was, to go on from there with the same bits.
    known : Known
        What is known of the start and of the rows before.

    Returns
    -------
    Solution
        Of the generator, which yields questions and is sent their answers.

    Raises
    ------
    InputError
        If the cost or its derivatives are not finite at `p0`, ``options.x_scale`` does not fit, or
        "lm" is given bounds.
    InputTypeError
        If there are fewer rows than parameters.
    """
    if state is None:
        state = yield from start(p0, box, options, known)
        state = _observed(state, observer)
    while state.status is None:
        state = yield from advance(state, box, options)
        state = _observed(state, observer)
    return (yield from finish(state, box, options))


def first_point(p0: FloatArray, box: Box, options: SolverOptions) -> FloatArray:
    """The point that a search from p0 evaluates first: moved off the bounds if it must be."""
    interior = METHODS[options.method].interior
    return off_bounds(p0, box.lower, box.upper, TINY) if interior else p0


def start(
    p0: FloatArray, box: Box, options: SolverOptions, known: Known = NOTHING_KNOWN
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
    state = SolverState(
        sizes=np.abs(p0 if known.sizes is None else known.sizes),
        params=params,
        linearization=factorize(sums, basis),
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
        n_differenced=sums.n_differenced,
        moments=known.moments or sums.moments,
        left=Remainder(np.inf, np.inf),
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
    state = stand_at(state, params, sums, basis, box, options)
    if state.linearization.resolution < START_RESOLUTION:
        state = yield from refined(state, box, options)
    state = settled_first(state, box, options)
    state = record(state, options, cost=state.cost, accepted=True)
    return (yield from confirmed(judged(state, box, options), box, options))


def advance(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Try one point, by one evaluation, and what has to be tried before the search ends.

    Parameters
    ----------
    state : SolverState
        With ``status`` None.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        If the trial was accepted it stands at the new point, if not it has a smaller radius; if the
        search is over it has a status.
    """
    away = _displacement(state, box) if state.nfev == 1 else None
    # A model that overflows makes a trial that is not finite, which is rejected without a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        trial = away or METHODS[options.method].propose(state, box)
    if np.array_equal(trial.params, state.params):  # the step is lost in rounding
        outcome = Outcome(state, trial, -np.inf, accepted=False, slope=np.nan)
        return (yield from confirmed(judged(state, box, options, outcome), box, options))
    basis = state.linearization.whitening
    scores = options.scores and may_be_last(state, trial, options)
    sums = yield SumsAt(trial.params, basis.forward, scores=scores)
    tried = replace(state, nfev=state.nfev + 1)
    weigh = _displaced if away else _weighed
    after = weigh(tried, trial, sums, basis, box, options)
    accepted = after.njev > state.njev
    after = record(
        after,
        options,
        cost=sums.cost,
        step_norm=trial.step_norm,
        radius=state.radius,
        accepted=accepted,
    )
    return (yield from confirmed(after, box, options))


def finish(state: SolverState, box: Box, options: SolverOptions) -> Search[Solution]:
    """State the result of a search that is over, its linearisation known to full accuracy."""
    known = state.linearization.sandwich is not None or not options.scores
    poor = state.linearization.resolution < FINAL_RESOLUTION and not state.refined
    if poor or not known:
        state = yield from refined(state, box, options)
    assert state.status is not None, "advance() until the state has a status"
    _, involved = undetermined(state)
    return Solution(
        params=state.params,
        cost=state.cost,
        chi2=state.chi2,
        r_factor=state.linearization.r_factor,
        gradient=state.linearization.gradient,
        optimality=METHODS[options.method].optimality(state, box),
        distance=distance(state, options),
        active_mask=_active_mask(state, box, options),
        nfev=state.nfev,
        njev=state.njev,
        nit=state.njev - 1,
        n_refined=state.n_refined,
        status=state.status,
        met=state.met,
        undetermined=involved,
        n_points=state.n_points,
        n_skipped=state.n_skipped,
        n_differenced=state.n_differenced,
        moments=state.moments,
        history=state.history,
        sandwich=state.linearization.sandwich,
    )


def _first_sums(
    p0: FloatArray, box: Box, options: SolverOptions, basis: Basis, known: Known
) -> Search[tuple[FloatArray, NormalEquations, int]]:
    """The sums at a start, the point to go on from, and how many evaluations more than one it took.

    What a start on the bound 0 has for a size is known once it is evaluated: it is evaluated next
    to the bound, or where the model is not finite there, at SciPy's distance.
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
        with np.errstate(over="ignore", under="ignore"):
            steps = np.abs(linear.gradient / nonzero(linear.norms)) / nonzero(linear.norms)
        point = np.where(
            point == p0, p0, off_bounds(p0, box.lower, box.upper, START_MARGIN * steps)
        )
    return point, sums, n_more


def _active_mask(state: SolverState, box: Box, options: SolverOptions) -> NDArray[np.int64]:
    """The bounds that keep the parameters from where the gradient would take them."""
    norms = state.linearization.norms
    reach = ACTIVE_REACH * standard_deviation(state, options) / nonzero(norms)
    return active_bounds(state.params, box.lower, box.upper, state.linearization.gradient, reach)


def _observed(state: SolverState, observer: Callable[[SolverState], None] | None) -> SolverState:
    """Show a state; an observer that has seen enough ends the search."""
    if observer is not None:
        try:
            observer(state)
        except StopIteration:
            return replace(state, status=Status.CALLBACK if state.status is None else state.status)
    return state


def _displacement(state: SolverState, box: Box) -> Trial | None:
    """Compute where to leave a start at which the columns of the Jacobian are linearly dependent.

    At such a point (say, two exponentials that start with equal rates) the gradient and every step
    lie in the span of the columns, so that the iteration would keep the symmetry for ever, and end
    at a saddle point. A small displacement within the null space changes the cost to second order
    alone. Its direction is the projection of a fixed vector that has no symmetry.
    """
    linear = state.linearization
    norms = nonzero(linear.norms)
    _, singular, v_transposed = linear.equilibrated_svd
    weak = v_transposed[~(singular > linear.rank_rtol(state.n_points) * singular[0])]
    direction = weak.T @ (weak @ np.cos(np.arange(1.0, norms.size + 1.0)))
    # A parameter without any effect stays where the user put it.
    direction[linear.norms == 0.0] = 0.0
    longest = float(np.linalg.norm(direction))
    if longest < np.sqrt(EPS):
        return None
    length = DISPLACEMENT * (float(np.linalg.norm(state.params * norms)) or 1.0)
    step = direction * (length / longest) / norms
    params = stopped_at_bounds(state.params, step, box.lower, box.upper)
    return Trial(
        params=params,
        step_norm=float(np.linalg.norm(params - state.params)),
        scaled_step_norm=length,
        predicted=0.0,
        slope=0.0,
        alpha=0.0,
    )


def _displaced(
    state: SolverState,
    trial: Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Start from the displaced point instead, unless it is far worse."""
    if is_finite(sums) and sums.cost <= WORST_DISPLACED_COST * state.cost:
        state = stand_at(state, trial.params, sums, basis, box, options)
        state = settled_first(replace(state, njev=state.njev + 1, refined=False), box, options)
    return judged(state, box, options)


def _weighed(
    state: SolverState,
    trial: Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Accept or reject a trial, choose the next radius, and see whether the search is over."""
    method = METHODS[options.method]
    state = replace(state, alpha=trial.alpha)
    there = None
    if is_finite(sums):
        there = stand_at(state, trial.params, sums, basis, box, options)
    actual = -np.inf if there is None else actual_reduction(state, there, trial.predicted)
    after = method.resize(state, trial, actual)
    accepted = there is not None and method.accepts(trial, actual)
    slope = np.nan
    if there is not None:
        slope = float(there.linearization.gradient @ (trial.params - state.params))
    outcome = Outcome(state, trial, actual, accepted, slope)
    if there is not None and accepted:
        after = replace(
            there,
            radius=after.radius,
            alpha=after.alpha,
            njev=state.njev + 1,
            n_rejected=0,
            # A step that rounding lets pass takes no contradiction back.
            n_contradicted=state.n_contradicted * (actual <= rounding_of_cost(state)),
            refined=False,
        )
        after = method.settle(after, box, options)
    else:
        after = replace(
            after,
            n_rejected=state.n_rejected + 1,
            n_contradicted=state.n_contradicted + outcome.contradicts,
        )
    return judged(after, box, options, outcome)
