"""The trust-region-reflective method, on normal equations.

Minimises ``½ Σ r_i(θ)²`` (or a robust cost that the evaluator sums instead) subject to
``lower ≤ θ ≤ upper`` after Branch, Coleman & Li (SIAM J. Sci. Comput. 21, 1999) and Coleman & Li
(SIAM J. Optim. 6, 1996), with the subproblem solved exactly after Moré (Lecture Notes in
Mathematics 630, 1978). Options, termination criteria and their numbers have the meaning of
``scipy.optimize.least_squares(method="trf")``.

The method needs the Jacobian ``J = Q R`` through ``R`` and ``Qᵀ r`` alone
(:mod:`nlsq_dask.core.factor`): the singular value decomposition of ``R D`` has the singular values
and right vectors of ``J D``. So a whole iteration costs one evaluation, which yields the cost of a
trial point and its linearisation together: an accepted trial is never evaluated again, and a
rejected one costs its own pass alone.

Between two evaluations all that the method knows is a :class:`TrfState`. :func:`start` makes the
first one, :func:`advance` tries one point, :func:`finish` states the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.bounds import active_bounds, strictly_feasible
from nlsq_dask.core.factor import (
    EPS,
    Basis,
    column_norms,
    factorize,
    nonzero,
    rank_tolerance,
)
from nlsq_dask.core.normal_equations import Evaluator, FloatArray, NormalEquations
from nlsq_dask.core.reflective import LEAST_STEP_BACK, Box, QuadraticModel, choose_step
from nlsq_dask.core.trf_state import IterationRecord, TrfOptions, TrfSolution, TrfState
from nlsq_dask.core.trust_region import (
    SHRINK,
    Spectrum,
    reduction_ratio,
    solve,
    update_radius,
)

__all__ = [
    "IterationRecord",
    "TrfOptions",
    "TrfSolution",
    "TrfState",
    "advance",
    "finish",
    "minimize",
    "start",
]

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

#: Keeps the radius of a search that cannot move from underflowing.
LEAST_RADIUS = 1e-100


@dataclass(frozen=True, slots=True)
class _Trial:
    """A point to try, and what the model says of it."""

    params: FloatArray
    step_norm: float
    scaled_step_norm: float
    predicted: float
    alpha: float


def minimize(
    evaluator: Evaluator,
    p0: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    options: TrfOptions,
    observer: Callable[[TrfState], None] | None = None,
    state: TrfState | None = None,
) -> TrfSolution:
    """Minimise a sum of squares within bounds.

    Parameters
    ----------
    evaluator : Evaluator
    p0 : ndarray, shape (p,), float64
        Start, within or on the bounds.
    lower, upper : ndarray, shape (p,), float64
        ``lower < upper``; infinite where there is no bound.
    options : TrfOptions
    observer : callable, optional
        Called with the state after every evaluation.
    state : TrfState, optional
        Where an earlier search was, to go on from there with the same bits.

    Returns
    -------
    TrfSolution

    Raises
    ------
    InputError
        If the cost or its derivatives are not finite at `p0`, or ``options.x_scale`` does not fit.
    """
    box = Box(lower, upper)
    if state is None:
        state = start(evaluator, p0, box, options)
        if observer is not None:
            observer(state)
    while state.status is None:
        state = advance(evaluator, state, box, options)
        if observer is not None:
            observer(state)
    return finish(evaluator, state, box, options)


def start(evaluator: Evaluator, p0: FloatArray, box: Box, options: TrfOptions) -> TrfState:
    """Evaluate the starting point.

    Parameters and errors as for :func:`minimize`.
    """
    if not isinstance(options.x_scale, str) and np.shape(options.x_scale) not in ((), p0.shape):
        raise _errors.x_scale_shape(np.shape(options.x_scale), p0.size)
    params = strictly_feasible(p0, box.lower, box.upper)
    basis = Basis.identity(params.size)
    sums = evaluator.evaluate(params, basis.forward)
    if not np.isfinite(sums.cost):
        raise _errors.start_not_finite(params)
    if not _is_finite(sums):
        raise _errors.start_derivative_not_finite(params)
    state = TrfState(
        params=params,
        linearization=factorize(sums, basis),
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
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
    state = _with_first_radius(_judge(_rescale(state, options), box, options), box)
    record = IterationRecord(0, 1, state.cost, 0.0, state.optimality, 0.0, accepted=True)
    return replace(state, history=(record,))


def advance(evaluator: Evaluator, state: TrfState, box: Box, options: TrfOptions) -> TrfState:
    """Try one point, by one evaluation.

    Parameters
    ----------
    evaluator : Evaluator
    state : TrfState
        With ``status`` None.
    box : Box
    options : TrfOptions

    Returns
    -------
    TrfState
        With one more record. If the trial was accepted it stands at the new point, if not it has a
        smaller radius; if a criterion was met it has a status.
    """
    displaces = state.nfev == 1 and state.linearization.resolution < START_RESOLUTION
    # A model that overflows makes a trial that is not finite, which is rejected: no news.
    with np.errstate(over="ignore", invalid="ignore"):
        trial = _displacement(state, box) if displaces else _propose(state, box)
    basis = Basis.whitening(state.linearization.r_factor)
    sums = evaluator.evaluate(trial.params, basis.forward)
    tried = replace(state, nfev=state.nfev + 1, alpha=trial.alpha)
    if displaces:
        after = _displaced(tried, trial, sums, basis, box, options)
    elif _is_finite(sums):
        after = _weigh(tried, trial, sums, basis, box, options)
    else:
        radius = max(SHRINK * trial.scaled_step_norm, LEAST_RADIUS)
        after = _stop_if_spent(replace(tried, radius=radius), options)
    record = IterationRecord(
        iteration=after.njev - 1,
        nfev=after.nfev,
        cost=sums.cost,
        step_norm=trial.step_norm,
        optimality=after.optimality,
        radius=state.radius,
        accepted=after.njev > state.njev,
    )
    return replace(after, history=(*state.history, record))


def finish(evaluator: Evaluator, state: TrfState, box: Box, options: TrfOptions) -> TrfSolution:
    """State the result of a search that is over, its linearisation known to full accuracy."""
    state = _refined(evaluator, state, FINAL_RESOLUTION)
    v, _ = box.distance_along_descent(state.params, state.linearization.gradient)
    assert state.status is not None, "advance() until the state has a status"
    return TrfSolution(
        params=state.params,
        cost=state.cost,
        chi2=state.chi2,
        r_factor=state.linearization.r_factor,
        gradient=state.linearization.gradient,
        optimality=float(np.max(np.abs(state.linearization.gradient * v))),
        active_mask=active_bounds(state.params, box.lower, box.upper, options.xtol or 0.0),
        nfev=state.nfev,
        njev=state.njev,
        nit=state.njev - 1,
        n_refined=state.n_refined,
        status=state.status,
        n_points=state.n_points,
        n_skipped=state.n_skipped,
        history=state.history,
    )


def _displacement(state: TrfState, box: Box) -> _Trial:
    """Compute where to leave a start at which the columns of the Jacobian are linearly dependent.

    At such a point (say, two exponentials that start with equal rates) the gradient and every step
    lie in the span of the columns, so that the iteration would keep the symmetry for ever, and end
    at a saddle point. A small displacement within the null space changes the cost to second order
    alone. Its direction is the projection of a fixed vector that has no symmetry.
    """
    r_factor = state.linearization.r_factor
    norms = nonzero(column_norms(r_factor))
    _, singular, v_transposed = np.linalg.svd(r_factor / norms)
    weak = v_transposed[singular**2 < START_RESOLUTION * singular[0] ** 2]
    direction = weak.T @ (weak @ np.cos(np.arange(1.0, norms.size + 1.0)))
    # A parameter without any effect stays where the user put it.
    direction[column_norms(r_factor) == 0.0] = 0.0
    length = DISPLACEMENT * (float(np.linalg.norm(state.params * norms)) or 1.0)
    scaled_step = direction * (length / (float(np.linalg.norm(direction)) or 1.0))
    params = strictly_feasible(state.params + scaled_step / norms, box.lower, box.upper)
    return _Trial(
        params=params,
        step_norm=float(np.linalg.norm(params - state.params)),
        scaled_step_norm=length,
        predicted=0.0,
        alpha=0.0,
    )


def _displaced(
    state: TrfState,
    trial: _Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: TrfOptions,
) -> TrfState:
    """Start from the displaced point instead, unless it is far worse."""
    if not (_is_finite(sums) and sums.cost <= WORST_DISPLACED_COST * state.cost):
        return _stop_if_spent(state, options)
    moved = _rescale(_moved(state, trial.params, sums, basis), options)
    return _with_first_radius(_judge(moved, box, options), box)


def _propose(state: TrfState, box: Box) -> _Trial:
    """Compute the point to try next: p × p arithmetic alone."""
    linear = state.linearization
    root_v, curvature = _coleman_li(state, box)
    scale = root_v / state.scale_inv
    model = QuadraticModel(linear.r_factor * scale, scale * linear.gradient, curvature, scale)
    spectrum = Spectrum.of(
        np.vstack([model.factor, np.diag(np.sqrt(curvature))]),
        np.concatenate([linear.qtr, np.zeros_like(linear.qtr)]),
        rank_tolerance(state.n_points, linear.qtr.size),
    )
    newton, alpha = solve(spectrum, state.radius, state.alpha)
    step_back = max(LEAST_STEP_BACK, 1.0 - state.optimality)
    scaled_step, predicted = choose_step(model, state.params, newton, state.radius, box, step_back)
    step = scale * scaled_step
    return _Trial(
        strictly_feasible(state.params + step, box.lower, box.upper, 0.0),
        float(np.linalg.norm(step)),
        float(np.linalg.norm(scaled_step)),
        predicted,
        alpha,
    )


def _weigh(
    state: TrfState,
    trial: _Trial,
    sums: NormalEquations,
    basis: Basis,
    box: Box,
    options: TrfOptions,
) -> TrfState:
    """Accept or reject a trial by its cost, and choose the next radius."""
    actual = state.cost - sums.cost
    ratio = reduction_ratio(actual, trial.predicted)
    status = _convergence(state, actual, ratio, trial.step_norm, options)
    if status is None:
        radius = max(update_radius(state.radius, ratio, trial.scaled_step_norm), LEAST_RADIUS)
        # α grows as the radius shrinks (Moré 1978, section 5).
        state = replace(state, radius=radius, alpha=state.alpha * state.radius / radius)
    if actual > 0.0:
        accepted = _moved(replace(state, status=status), trial.params, sums, basis)
        return _judge(_rescale(accepted, options), box, options)
    return _stop_if_spent(replace(state, status=status), options)


def _moved(state: TrfState, params: FloatArray, sums: NormalEquations, basis: Basis) -> TrfState:
    """Stand at another point, which has been evaluated."""
    return replace(
        state,
        params=params,
        linearization=factorize(sums, basis),
        cost=sums.cost,
        chi2=sums.chi2,
        n_points=sums.n_points,
        n_skipped=sums.n_skipped,
        njev=state.njev + 1,
    )


def _convergence(
    state: TrfState, actual: float, ratio: float, step_norm: float, options: TrfOptions
) -> Status | None:
    """Check the criteria on the cost and on the step."""
    ftol, xtol = options.ftol or 0.0, options.xtol or 0.0
    by_cost = actual < ftol * state.cost and ratio > 0.25
    by_step = step_norm < xtol * (xtol + float(np.linalg.norm(state.params)))
    if by_cost and by_step:
        return Status.COST_AND_STEP
    if by_cost:
        return Status.COST
    return Status.STEP if by_step else None


def _judge(state: TrfState, box: Box, options: TrfOptions) -> TrfState:
    """Compute the optimality of a new point, and stop if it is small enough."""
    v, _ = box.distance_along_descent(state.params, state.linearization.gradient)
    optimality = float(np.max(np.abs(state.linearization.gradient * v)))
    status = Status.GRADIENT if optimality < (options.gtol or 0.0) else state.status
    return _stop_if_spent(replace(state, optimality=optimality, status=status), options)


def _stop_if_spent(state: TrfState, options: TrfOptions) -> TrfState:
    if state.status is None and state.nfev >= options.evaluations(state.params.size):
        return replace(state, status=Status.MAX_EVALUATIONS)
    return state


def _rescale(state: TrfState, options: TrfOptions) -> TrfState:
    """Update the characteristic sizes of the parameters for a new linearisation."""
    if not isinstance(options.x_scale, str):
        return replace(state, scale_inv=np.ones_like(state.params) / options.x_scale)
    largest = np.maximum(column_norms(state.linearization.r_factor), state.scale_inv)
    return replace(state, scale_inv=nonzero(largest))


def _with_first_radius(state: TrfState, box: Box) -> TrfState:
    """Choose the radius of the first step: the length of the start, in the scaled variables."""
    root_v, _ = _coleman_li(state, box)
    length = float(np.linalg.norm(state.params * state.scale_inv / root_v))
    return replace(state, radius=length or 1.0)


def _coleman_li(state: TrfState, box: Box) -> tuple[FloatArray, FloatArray]:
    """Square root of the scaling vector in units of x_scale, and the diagonal of C."""
    gradient = state.linearization.gradient
    v, derivative = box.distance_along_descent(state.params, gradient)
    v = np.where(derivative == 0.0, v, v * state.scale_inv)
    return np.sqrt(v), gradient * derivative / state.scale_inv


def _refined(evaluator: Evaluator, state: TrfState, resolution: float) -> TrfState:
    """Evaluate a known point again in its own basis, if digits of its factor were lost."""
    if state.linearization.resolution >= resolution:
        return state
    basis = Basis.whitening(state.linearization.r_factor)
    sums = evaluator.evaluate(state.params, basis.forward)
    state = replace(state, n_refined=state.n_refined + 1)
    # A model on the verge of overflow may not bear the basis: what is known must do.
    return replace(state, linearization=factorize(sums, basis)) if _is_finite(sums) else state


def _is_finite(sums: NormalEquations) -> bool:
    return bool(
        np.isfinite(sums.cost) and np.isfinite(sums.gram).all() and np.isfinite(sums.gradient).all()
    )
