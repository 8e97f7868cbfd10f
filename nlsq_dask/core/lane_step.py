"""One step of the fits of many series, one series a lane: projected Levenberg-Marquardt.

For each lane with the sums ``H = JᵀJ``, ``g = Jᵀr`` and χ² of its rows at θ, F is the set of
parameters that may move: not at a lower bound with g > 0, not at an upper bound with g < 0. The
step solves ``(H + λ D²) s = -g`` on F. D holds the largest norms so far of the columns of J, up to
10⁶ times the present ones (Moré, "The Levenberg-Marquardt algorithm: implementation and
theory", Lecture Notes in Mathematics 630, 1978). With the present norms, a parameter that loses its
effect on the way, as a lifetime does where its amplitude changes sign, would take any step. The
trial ``θ + s`` is clipped to the bounds (projected Levenberg-Marquardt: Kanzow, Yamashita &
Fukushima, J. Comput. Appl. Math. 172, 2004).

One evaluation of the model gives the χ² and the sums of the trial. The damping λ follows the ratio
of the actual to the predicted reduction (Nielsen, "Damping parameter in Marquardt's method",
1999).

A lane is done where ``L = √(gᵀ H⁻¹ g)`` on F is below `stat_tol` standard deviations of a row: the
distance to the optimum in standard errors (:mod:`nlsq_dask.core.distance`). The other ends are
those of :mod:`nlsq_dask.core.convergence`.

A fresh lane has an infinite χ², and its first trial is its start. The compiled program of a step
has therefore a single evaluation of the model: two evaluations in one program round differently.

All values of a lane are in units in which its largest observation is about 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from nlsq_dask._errors import Status
from nlsq_dask.core.convergence import FINAL_RESOLUTION, HALVED, MOST_REJECTIONS, NEAR_TOL
from nlsq_dask.core.factor import EPS
from nlsq_dask.core.lane_algebra import (
    Lane,
    LaneFactor,
    Triangle,
    backward,
    forward,
    lane_factor,
    total,
    triangle,
)

#: Status of a lane whose search goes on; no :class:`~nlsq_dask.Status` has this number.
RUNNING = 100

#: Status of a lane whose derivatives are not finite at its start, where its values are.
NO_SLOPE = 101

#: Status of a lane off its bounds whose JᵀJ has few digits, and that has not ended by itself.
NO_DIGITS = 102

#: Evaluations after which such a lane is left to a search in a basis
#: (:mod:`nlsq_dask.core.lane_certify`). A search with all digits takes some ten.
PATIENCE = 25

#: First damping, relative to the squared norms of the columns of J. A tenth of it takes 0.3
#: evaluations less from good starts, and misses up to twice as many optima from bad ones
#: (``benchmarks.each_starts``, with either number).
FIRST_DAMPING = 0.1

#: First damping of searches for the linear parameters alone, which are the optimum after one step
#: of Gauss and Newton. Damping leaves large values out that compensate each other.
LINEAR_DAMPING = 1e-3

#: Least damping: below, ``H + λ D²`` is H to rounding.
LEAST_DAMPING = 1e-15

#: Most by which D exceeds the present norms. With 1e3, a decay that starts with the wrong sign
#: loses its lifetime where the amplitude is zero. With 1e8, a decay that starts with an amplitude
#: 1e150 times too large takes hundreds of evaluations.
MOST_GROWTH = 1e6

#: Least ratio of the actual to the predicted reduction with which a trial is accepted.
LEAST_RATIO = 1e-3

#: Relative rounding of χ²: differences of costs below it say nothing.
ROUNDING_OF_COST = 64.0 * EPS

#: Residuals as small as the rounding of the observations count as rounding: s² is at least this
#: squared, times the mean square of the observations.
FLOOR = 8.0 * EPS


class LaneSums(NamedTuple):
    """Sums over the rows of each lane at one point.

    Attributes
    ----------
    gram : tuple of array (L,)
        Lower triangle of H, row after row.
    gradient : tuple of array (L,), length q
    chi2 : array (L,)
    """

    gram: Sequence[Lane]
    gradient: Sequence[Lane]
    chi2: Lane


class Lanes(NamedTuple):
    """What stays the same during the searches of the lanes.

    Attributes
    ----------
    lower, upper : tuple of array (L,), length q
        Bounds of the free parameters.
    n_points : array (L,)
        Rows that count.
    variance : array (L,)
        Variance of a row where it is known, NaN where it is estimated.
    square : array (L,)
        Sum of the squared weighted observations.
    """

    lower: Sequence[Lane]
    upper: Sequence[Lane]
    n_points: Lane
    variance: Lane
    square: Lane


class LaneState(NamedTuple):
    """The searches of the lanes between two evaluations.

    Attributes
    ----------
    params, trial : tuple of array (L,), length q
        Best point so far, and the point to evaluate next.
    gram, gradient, chi2
        Sums at the best point; χ² is infinite before the first evaluation.
    norms : tuple of array (L,), length q
        D, the largest norms of the columns of J so far.
    predicted : array (L,)
        Predicted reduction of χ² at the trial.
    damping, growth : array (L,)
        λ, and the factor by which it grows at the next rejection.
    length, distance : array (L,)
        L at the best point, and L in standard deviations of a row.
    n_rejected, nfev, status : array (L,)
        Rejections in a row, evaluations, and why the search ended, or RUNNING, NO_SLOPE or
        NO_DIGITS; whole numbers.
    """

    params: Sequence[Lane]
    trial: Sequence[Lane]
    gram: Sequence[Lane]
    gradient: Sequence[Lane]
    norms: Sequence[Lane]
    chi2: Lane
    predicted: Lane
    damping: Lane
    growth: Lane
    length: Lane
    distance: Lane
    n_rejected: Lane
    nfev: Lane
    status: Lane


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """When searches end.

    Attributes
    ----------
    stat_tol : float
        Distance from the optimum, in standard errors, that is negligible.
    max_nfev : int
        Most evaluations of a series.
    eps : float
        Precision of the model's values.
    """

    stat_tol: float
    max_nfev: int
    eps: float = EPS


def next_state(
    xp: ModuleType, state: LaneState, sums: LaneSums, lanes: Lanes, options: LaneOptions
) -> LaneState:
    """Judge the trial of each lane by its sums, and choose the next trial.

    Parameters
    ----------
    xp : module
        NumPy or ``jax.numpy``.
    state : LaneState
    sums : LaneSums
        At ``state.trial``.
    lanes : Lanes
    options : LaneOptions

    Returns
    -------
    LaneState
        Lanes that are not running stay as they are.
    """
    fresh = xp.isinf(state.chi2)
    finite = xp.isfinite(total([sums.chi2, *sums.gram, *sums.gradient]))
    actual = state.chi2 - sums.chi2
    accepted = finite & (fresh | _is_better(xp, state, actual))
    damping, growth = _damped(xp, state, actual, accepted, fresh)

    def chosen(new: Sequence[Lane], old: Sequence[Lane]) -> list[Lane]:
        return [xp.where(accepted, a, b) for a, b in zip(new, old, strict=True)]

    moved = state._replace(
        params=chosen(state.trial, state.params),
        gram=chosen(sums.gram, state.gram),
        gradient=chosen(sums.gradient, state.gradient),
        chi2=xp.where(accepted, sums.chi2, state.chi2),
        damping=damping,
        growth=growth,
        n_rejected=xp.where(accepted, 0.0, state.n_rejected + 1.0),
        nfev=state.nfev + 1.0,
    )
    there, has_few = _with_trial(xp, moved, lanes)
    judged = _judged(xp, state, there, lanes, options, accepted, fresh, sums.chi2)
    is_lost = (judged.status == RUNNING) & has_few & (judged.nfev >= PATIENCE)
    judged = judged._replace(status=xp.where(is_lost, float(NO_DIGITS), judged.status))
    running = state.status == RUNNING
    return LaneState(*(_where(xp, running, a, b) for a, b in zip(judged, state, strict=True)))


def _where(
    xp: ModuleType, running: Lane, new: Lane | Sequence[Lane], old: Lane | Sequence[Lane]
) -> Lane | tuple[Lane, ...]:
    if isinstance(new, list | tuple):
        return tuple(xp.where(running, a, b) for a, b in zip(new, old, strict=True))
    return xp.where(running, new, old)


def _is_better(xp: ModuleType, state: LaneState, actual: Lane) -> Lane:
    """Whether χ² falls as predicted, or does not rise where rounding hides the change."""
    rounding = ROUNDING_OF_COST * state.chi2
    falls = (actual > 0.0) & (actual > LEAST_RATIO * state.predicted)
    return falls | ((xp.abs(state.predicted) <= rounding) & (actual >= -rounding))


def _damped(
    xp: ModuleType, state: LaneState, actual: Lane, accepted: Lane, fresh: Lane
) -> tuple[Lane, Lane]:
    """The damping of the next step, and its growth at the next rejection."""
    predicted = state.predicted
    ratio = actual / xp.where(predicted > 0.0, predicted, 1.0)
    ratio = xp.where((predicted > 0.0) & ~fresh, xp.clip(ratio, 0.0, 1.0), 1.0)
    shrink = xp.maximum(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
    shrink = xp.where(ratio > 0.9, 0.1, shrink)
    smaller = xp.maximum(state.damping * xp.where(fresh, 1.0, shrink), LEAST_DAMPING)
    larger = state.damping * state.growth
    return xp.where(accepted, smaller, larger), xp.where(accepted, 2.0, 2.0 * state.growth)


def _with_trial(xp: ModuleType, state: LaneState, lanes: Lanes) -> tuple[LaneState, Lane]:
    """The next trial, its predicted reduction, and the length L at the best point.

    Also whether the best point is off its bounds and has few digits in some pivot.
    """
    size = len(state.params)
    gram = triangle(state.gram, size)
    norms = [xp.sqrt(gram[i][i]) for i in range(size)]
    known = [norm > 0.0 for norm in norms]
    inverse = [
        xp.where(k, 1.0 / xp.where(k, n, 1.0), 0.0) for k, n in zip(known, norms, strict=True)
    ]
    free = [
        ~(((p <= low) & (g > 0.0)) | ((p >= high) & (g < 0.0)))
        for p, low, high, g in zip(
            state.params, lanes.lower, lanes.upper, state.gradient, strict=True
        )
    ]
    slopes = [
        xp.where(f, g * i, 0.0) for f, g, i in zip(free, state.gradient, inverse, strict=True)
    ]
    scaled = _equilibrated(xp, gram, inverse, known, free)
    exact = lane_factor(xp, scaled, least_pivot(size))
    length = xp.sqrt(total([z * z for z in forward(exact, slopes)]))
    longest = [xp.maximum(a, b) for a, b in zip(state.norms, norms, strict=True)]
    for i in range(size):
        ratio = xp.where(known[i], xp.minimum(longest[i] * inverse[i], MOST_GROWTH), 1.0)
        scaled[i][i] = scaled[i][i] + state.damping * ratio * ratio
    damped = lane_factor(xp, scaled, 0.0)
    solution = backward(damped, forward(damped, slopes))
    trial, step = [], []
    for i in range(size):
        point = state.params[i] - solution[i] * inverse[i]
        trial.append(xp.clip(point, lanes.lower[i], lanes.upper[i]))
        step.append(trial[i] - state.params[i])
    has_few = _has_few_digits(xp, state, lanes, exact)
    predicted = _predicted(gram, state.gradient, step)
    moved = state._replace(trial=trial, norms=longest, predicted=predicted, length=length)
    return moved, has_few


def _has_few_digits(xp: ModuleType, state: LaneState, lanes: Lanes, exact: LaneFactor) -> Lane:
    """Whether a point is off its bounds and has few digits in some pivot."""
    smallest = exact.pivots[0]
    for pivot in exact.pivots[1:]:
        smallest = xp.minimum(smallest, pivot)
    found = ~(smallest > FINAL_RESOLUTION)
    for value, low, high in zip(state.params, lanes.lower, lanes.upper, strict=True):
        found = found & (value > low) & (value < high)
    return found


def least_pivot(size: int) -> float:
    """Pivot of an equilibrated matrix (q, q) up to which a direction is lost in rounding."""
    return 8.0 * size * EPS


def _equilibrated(
    xp: ModuleType,
    gram: Triangle,
    inverse: Sequence[Lane],
    known: Sequence[Lane],
    free: Sequence[Lane],
) -> list[list[Lane]]:
    """H on the free parameters, with a diagonal of ones; the identity on the others."""
    rows = []
    for i, row in enumerate(gram):
        own = [xp.where(free[i] & free[j], row[j] * inverse[i] * inverse[j], 0.0) for j in range(i)]
        rows.append([*own, xp.where(known[i], 1.0, 0.0)])
    return rows


def _predicted(gram: Triangle, gradient: Sequence[Lane], step: Sequence[Lane]) -> Lane:
    """Reduction of χ² that the linearised model promises for a step: ``-(2 gᵀs + sᵀH s)``."""
    terms = []
    for i, row in enumerate(gram):
        rest = 2.0 * gradient[i] + row[i] * step[i]
        for j in range(i):
            rest = rest + 2.0 * row[j] * step[j]
        terms.append(-step[i] * rest)
    return total(terms)


def variance_of_rows(xp: ModuleType, chi2: Lane, lanes: Lanes, size: int) -> Lane:
    """s² of each lane: as known, or estimated, and at least that of rounding errors."""
    dof = xp.maximum(lanes.n_points - size, 1.0)
    least = FLOOR**2 * lanes.square / xp.maximum(lanes.n_points, 1.0)
    return xp.where(xp.isnan(lanes.variance), xp.maximum(chi2 / dof, least), lanes.variance)


def _judged(
    xp: ModuleType,
    before: LaneState,
    state: LaneState,
    lanes: Lanes,
    options: LaneOptions,
    accepted: Lane,
    fresh: Lane,
    trial_chi2: Lane,
) -> LaneState:
    """The status and the distance of each lane."""
    size = len(state.params)
    deviation = xp.sqrt(variance_of_rows(xp, state.chi2, lanes, size))
    positive = deviation > 0.0
    length = state.length
    distance = xp.where(positive, length / xp.where(positive, deviation, 1.0), xp.inf)
    distance = xp.where(length == 0.0, 0.0, distance)
    diagonal = [state.gram[i * (i + 3) // 2] for i in range(size)]
    sizes = [h * p * p for h, p in zip(diagonal, state.params, strict=True)]
    rounding = 4.0 * options.eps * xp.sqrt(total([lanes.square, *sizes]))
    helped = accepted & (length <= HALVED * before.length)
    at_rounding = (length <= rounding * xp.sqrt(size / xp.maximum(lanes.n_points, 1.0))) | (
        (length <= rounding) & ~helped
    )
    still = [t == p for t, p in zip(state.trial, state.params, strict=True)]
    stuck = state.n_rejected >= MOST_REJECTIONS
    for same in still[1:]:
        still[0] = still[0] & same
    stuck = (stuck | still[0]) & ~fresh
    near = distance <= NEAR_TOL
    status = xp.where(state.nfev >= options.max_nfev, float(Status.MAX_EVALUATIONS), state.status)
    status = xp.where(stuck, xp.where(near, float(Status.NEAR), float(Status.STALLED)), status)
    status = xp.where(at_rounding, float(Status.ROUNDING), status)
    status = xp.where(distance < options.stat_tol, float(Status.STATISTICAL), status)
    status = xp.where(xp.isinf(state.chi2), float(Status.START_NOT_FINITE), status)
    status = xp.where(fresh & ~accepted & xp.isfinite(trial_chi2), float(NO_SLOPE), status)
    return state._replace(status=status, distance=distance)
