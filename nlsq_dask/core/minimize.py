"""The search for the least sum of squares, by any of the methods.

An iteration costs one evaluation, which yields the cost of a trial point and its linearisation
together. It is taken in the basis that whitens the last linearisation, so that the Gram matrix
keeps its digits. Between two evaluations all that is known is a
:class:`~nlsq_dask.core.solver_state.SolverState`. :func:`start` makes the first one,
:func:`advance` tries one point, :func:`finish` states the result; what a method does in its own
way is a :class:`~nlsq_dask.core.search.Method`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import active_bounds, strictly_feasible
from nlsq_dask.core.distance import remainder
from nlsq_dask.core.dogbox import Dogbox
from nlsq_dask.core.factor import EPS, Basis, factorize, nonzero
from nlsq_dask.core.lm import LevenbergMarquardt
from nlsq_dask.core.normal_equations import Evaluator, FloatArray, NormalEquations
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import (
    Method,
    Trial,
    actual_reduction,
    distance,
    is_finite,
    moved,
)
from nlsq_dask.core.solver_state import IterationRecord, Solution, SolverOptions, SolverState
from nlsq_dask.core.trf import TrustRegionReflective

#: A linearisation whose Gram matrix has a smaller eigenvalue ratio than this at the end is
#: evaluated once more in a fitting basis, as standard errors are read off it: seven digits of its
#: weakest direction are left.
FINAL_RESOLUTION = 1e7 * EPS

#: A start whose Gram matrix has a smaller eigenvalue ratio than this is displaced along the
#: directions that its linearisation does not resolve, by this fraction of its length in units of
#: x_scale.
START_RESOLUTION = 1e3 * EPS
DISPLACEMENT = 1e-2
WORST_DISPLACED_COST = 2.0

METHODS: Mapping[str, Method] = {
    "trf": TrustRegionReflective(),
    "lm": LevenbergMarquardt(),
    "dogbox": Dogbox(),
}


def minimize(
    evaluator: Evaluator,
    p0: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    options: SolverOptions,
    observer: Callable[[SolverState], None] | None = None,
    state: SolverState | None = None,
    basis: Basis | None = None,
) -> Solution:
    """Minimise a sum of squares within bounds.

    Parameters
    ----------
    evaluator : Evaluator
    p0 : ndarray, shape (p,), float64
        Start, within or on the bounds.
    lower, upper : ndarray, shape (p,), float64
        ``lower < upper``; infinite where there is no bound, as everywhere for "lm".
    options : SolverOptions
    observer : callable, optional
        Called with the state after every evaluation. If it raises StopIteration the search ends
        there, with the best point so far.
    state : SolverState, optional
        Where an earlier search was, to go on from there with the same bits.
    basis : Basis, optional
        To evaluate the start in: the one that whitens its Jacobian, where that is known roughly.

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        If the cost or its derivatives are not finite at `p0`, ``options.x_scale`` does not fit, or
        "lm" is given bounds.
    InputTypeError
        If there are fewer rows than parameters.
    """
    box = Box(lower, upper)
    if state is None:
        state = _observed(start(evaluator, p0, box, options, basis), observer)
    while state.status is None:
        state = _observed(advance(evaluator, state, box, options), observer)
    return finish(evaluator, state, box, options)


def first_point(
    p0: FloatArray, lower: FloatArray, upper: FloatArray, options: SolverOptions
) -> FloatArray:
    """The point that a search from p0 evaluates first: moved off the bounds if it must be."""
    return strictly_feasible(p0, lower, upper) if METHODS[options.method].interior else p0


def start(
    evaluator: Evaluator,
    p0: FloatArray,
    box: Box,
    options: SolverOptions,
    basis: Basis | None = None,
) -> SolverState:
    """Evaluate the starting point.

    Parameters and errors as for :func:`minimize`.
    """
    method = METHODS[options.method]
    if not isinstance(options.x_scale, str) and np.shape(options.x_scale) not in ((), p0.shape):
        raise _errors.x_scale_shape(np.shape(options.x_scale), p0.size)
    if options.method == "lm" and (np.isfinite(box.lower) | np.isfinite(box.upper)).any():
        raise _errors.lm_bounded()
    params = first_point(p0, box.lower, box.upper, options)
    basis = basis or Basis.identity(params.size)
    sums = evaluator.evaluate(params, basis.forward)
    if sums.n_points < params.size:
        raise _errors.too_few_rows(params.size, sums.n_points, sums.n_skipped)
    if not np.isfinite(sums.cost):
        raise _errors.start_not_finite(params)
    if not is_finite(sums):
        raise _errors.start_derivative_not_finite(params)
    linear = factorize(sums, basis)
    state = SolverState(
        params=params,
        linearization=linear,
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
        moments=sums.moments,
        left=remainder(linear, params, box, sums.n_points),
        scale_inv=np.zeros(params.size),
        radius=0.0,
        alpha=0.0,
        optimality=np.inf,
        nfev=1,
        njev=1,
        n_refined=0,
        status=None,
        history=(),
    )
    state = _ended(_settled_first(state, method, box, options), options, moved=True)
    record = IterationRecord(
        iteration=0,
        nfev=1,
        cost=state.cost,
        step_norm=0.0,
        optimality=state.optimality,
        radius=0.0,
        accepted=True,
        distance=distance(state, options),
    )
    return replace(state, history=(record,))


def advance(
    evaluator: Evaluator, state: SolverState, box: Box, options: SolverOptions
) -> SolverState:
    """Try one point, by one evaluation.

    Parameters
    ----------
    evaluator : Evaluator
    state : SolverState
        With ``status`` None.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        With one more record. If the trial was accepted it stands at the new point, if not it has a
        smaller radius; if a criterion was met it has a status.
    """
    displaces = state.nfev == 1 and state.linearization.resolution < START_RESOLUTION
    # A model that overflows makes a trial that is not finite, which is rejected: no news.
    with np.errstate(over="ignore", invalid="ignore"):
        trial = (
            _displacement(state, box) if displaces else METHODS[options.method].propose(state, box)
        )
    basis = state.linearization.whitening
    sums = evaluator.evaluate(trial.params, basis.forward)
    tried = replace(state, nfev=state.nfev + 1, alpha=trial.alpha)
    weigh = _displaced if displaces else _weighed
    after = weigh(tried, trial, sums, basis, box, options)
    after = _ended(after, options, moved=after.njev > state.njev)
    record = IterationRecord(
        iteration=after.njev - 1,
        nfev=after.nfev,
        cost=sums.cost,
        step_norm=trial.step_norm,
        optimality=after.optimality,
        radius=state.radius,
        accepted=after.njev > state.njev,
        distance=distance(after, options),
    )
    return replace(after, history=(*state.history, record))


def finish(evaluator: Evaluator, state: SolverState, box: Box, options: SolverOptions) -> Solution:
    """State the result of a search that is over, its linearisation known to full accuracy."""
    method = METHODS[options.method]
    state = _refined(evaluator, state, box, FINAL_RESOLUTION)
    assert state.status is not None, "advance() until the state has a status"
    # Interior iterates never are on a bound.
    rtol = (options.xtol or 0.0) if method.interior else 0.0
    return Solution(
        params=state.params,
        cost=state.cost,
        chi2=state.chi2,
        r_factor=state.linearization.r_factor,
        gradient=state.linearization.gradient,
        optimality=method.optimality(state, box),
        distance=distance(state, options),
        active_mask=active_bounds(state.params, box.lower, box.upper, rtol),
        nfev=state.nfev,
        njev=state.njev,
        nit=state.njev - 1,
        n_refined=state.n_refined,
        status=state.status,
        n_points=state.n_points,
        n_skipped=state.n_skipped,
        moments=state.moments,
        history=state.history,
    )


def _observed(state: SolverState, observer: Callable[[SolverState], None] | None) -> SolverState:
    """Show a state; an observer that has seen enough ends the search."""
    if observer is not None:
        try:
            observer(state)
        except StopIteration:
            return replace(state, status=Status.CALLBACK if state.status is None else state.status)
    return state


def _settled_first(
    state: SolverState, method: Method, box: Box, options: SolverOptions
) -> SolverState:
    """Settle on a point to start from, and choose the first radius there."""
    state = method.settle(state, box, options)
    return replace(state, radius=method.first_radius(state, box))


def _displacement(state: SolverState, box: Box) -> Trial:
    """Compute where to leave a start at which the columns of the Jacobian are linearly dependent.

    At such a point (say, two exponentials that start with equal rates) the gradient and every step
    lie in the span of the columns, so that the iteration would keep the symmetry for ever, and end
    at a saddle point. A small displacement within the null space changes the cost to second order
    alone. Its direction is the projection of a fixed vector that has no symmetry.
    """
    norms = nonzero(state.linearization.norms)
    _, singular, v_transposed = state.linearization.equilibrated_svd
    weak = v_transposed[singular**2 < START_RESOLUTION * singular[0] ** 2]
    direction = weak.T @ (weak @ np.cos(np.arange(1.0, norms.size + 1.0)))
    # A parameter without any effect stays where the user put it.
    direction[state.linearization.norms == 0.0] = 0.0
    length = DISPLACEMENT * (float(np.linalg.norm(state.params * norms)) or 1.0)
    scaled_step = direction * (length / (float(np.linalg.norm(direction)) or 1.0))
    params = strictly_feasible(state.params + scaled_step / norms, box.lower, box.upper)
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
    if not (is_finite(sums) and sums.cost <= WORST_DISPLACED_COST * state.cost):
        return state
    there = moved(state, trial.params, sums, basis, box)
    return _settled_first(there, METHODS[options.method], box, options)


def _weighed(
    state: SolverState,
    trial: Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: SolverOptions,
) -> SolverState:
    """Accept or reject a trial, choose the next radius, and check the criteria."""
    method = METHODS[options.method]
    there = moved(state, trial.params, sums, basis, box) if is_finite(sums) else None
    actual = -np.inf if there is None else actual_reduction(state, there, trial.predicted)
    after = method.resize(state, trial, actual)
    accepted = there is not None and method.accepts(trial, actual)
    if there is not None and accepted:
        after = replace(there, radius=after.radius, alpha=after.alpha)
    status = None
    if actual > -np.inf:
        status = method.criterion(state, after, trial, actual, options)
    if status is not None and _is_near(after, trial, options):
        after = replace(after, status=status)
    return method.settle(after, box, options) if accepted else after


def _is_near(state: SolverState, trial: Trial, options: SolverOptions) -> bool:
    """Whether a criterion on a trial counts: near the optimum, or where nothing moves any more."""
    if options.stat_tol is None or distance(state, options) < options.stat_tol:
        return True
    return trial.step_norm <= EPS * float(np.linalg.norm(state.params))


def _ended(state: SolverState, options: SolverOptions, *, moved: bool) -> SolverState:
    """End a search that has arrived, or has used up its evaluations."""
    if state.status is not None:
        return state
    if moved and _has_arrived(state, options):
        return replace(state, status=Status.STATISTICAL)
    if state.nfev >= options.evaluations(state.params.size):
        return replace(state, status=Status.MAX_EVALUATIONS)
    return state


def _has_arrived(state: SolverState, options: SolverOptions) -> bool:
    """Whether the next pass could not change the answer by more than the tolerances allow."""
    return (
        options.stat_tol is not None
        and distance(state, options) < options.stat_tol
        and state.left.reduction < (options.ftol or 0.0) * state.cost
        # What a basis that does not fit has hidden might be the distance itself.
        and state.linearization.resolution >= FINAL_RESOLUTION
    )


def _refined(evaluator: Evaluator, state: SolverState, box: Box, resolution: float) -> SolverState:
    """Evaluate a known point again in its own basis, if digits of its factor were lost."""
    if state.linearization.resolution >= resolution:
        return state
    basis = state.linearization.whitening
    sums = evaluator.evaluate(state.params, basis.forward)
    refined = replace(state, n_refined=state.n_refined + 1)
    # A model on the verge of overflow may not bear the basis: what is known must do.
    if not is_finite(sums):
        return refined
    linear = factorize(sums, basis)
    left = remainder(linear, state.params, box, state.n_points)
    return replace(refined, linearization=linear, left=left)
