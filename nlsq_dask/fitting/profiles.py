"""The fits that make profiles, in lock-step on the same readings of the data.

Each point of a profile is a fit of all parameters but one. All points of a round are searched for
at the same time, for all parameters that are asked for. So a pass over the data serves all of them.
Each search starts where the covariance, or the points found so far, place the other parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.constraints import Reduction, in_free
from nlsq_dask.core.convergence import FINAL_RESOLUTION
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.factor import EPS, Basis
from nlsq_dask.core.minimize import PriorKnowledge, minimize
from nlsq_dask.core.normal_equations import FloatArray, Moments
from nlsq_dask.core.questions import CostsAt, Search
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.lock_step import answered_together, together
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.prepare import STAT_TOL
from nlsq_dask.results.profile import Curve, Point, Profile
from nlsq_dask.results.record import FitRecord

# Rounds of points. Each round may treble the reach. If the sum of squares has not risen enough
# after all rounds, 3⁵ times as far as a linear model needs, it is flat.
MAX_ROUNDS = 6
# A τ² below this is a lower minimum: the error of a search that ends within STAT_TOL of its optimum
# is smaller.
LOWER_MINIMUM = -0.1

# A standard error of fewer units of rounding than this does not hold the points of a profile apart.
RESOLVED = 100.0
# A search ends without a further step at this distance from its optimum, in standard deviations:
# its linearisation tells where the optimum is. If the model is a tenth off linear there, τ² is off
# by 0.1 · 0.1².
TOLD_AHEAD = 0.1

# Frames between a warning and the caller of a method of the result.
WARNING_LEVEL = 5


# Ends of a search that is as low as it can be: nearer than the last step, or on a flat floor.
SETTLED = (Status.CALLBACK, Status.UNDETERMINED)


@dataclass(frozen=True)
class _Ground:
    """A fit in its free coordinates φ (q,): what all points start from."""

    job: Job
    params: FloatArray
    r_factor: FloatArray
    variance: float


def profiles(
    job: Job, record: FitRecord, names: Sequence[str], quantile: float
) -> dict[str, Profile]:
    """Profile parameters as far as the quantile, all on the same readings of the data.

    Parameters
    ----------
    job : Job
        How the fit was made.
    record : FitRecord
        The fit.
    names : sequence of str
        Parameters.
    quantile : float
        Positive and finite.

    Returns
    -------
    dict of Profile
        By name.

    Raises
    ------
    InputError
        If the fit has no profiles, or a parameter has none.

    Warns
    -----
    ConvergenceWarning
        If a search for the other parameters ends before it has arrived.
    """
    _refuse_without_likelihood(record)
    columns = {name: _column(job, name) for name in names}
    variance = 1.0 if record.absolute_sigma else record.reduced_chi2
    ground = _Ground(job.running(), _free(record, job), record.r_factor, variance)
    curves = {k: _curve(record, ground, k) for k in sorted(set(columns.values()))}
    n_passes = _draw(ground, curves, quantile, record.moments)
    made = {name: _profile_of(job, name, curves[k], k, n_passes) for name, k in columns.items()}
    for name, k in columns.items():
        _check(job, name, curves[k])
    return made


def _refuse_without_likelihood(record: FitRecord) -> None:
    """Refuse a fit whose sum of squares is no likelihood, or not at its minimum."""
    if record.loss != "linear":
        raise _errors.profile_of_loss(record.loss)
    if not record.success:
        raise _errors.profile_without_success(record.message)
    if record.dof <= 0 and not record.absolute_sigma:
        raise _errors.profile_without_freedom(record.n_points, record.n_free)
    if not np.isfinite(record.pcov).all():
        raise _errors.profile_without_success(record.message)
    if record.cost == 0.0 and not record.absolute_sigma:
        raise _errors.profile_without_noise()


def _column(job: Job, name: str) -> int:
    """The free coordinate that a parameter follows from."""
    if name not in job.spec.names:
        raise _errors.unknown_parameter_names("name", [str(name)], job.spec.names)
    columns = np.flatnonzero(_row(job, name))
    if not columns.size:
        raise _errors.profile_of_fixed(name)
    if columns.size > 1:
        raise _errors.profile_of_combination(name)
    return int(columns[0])


def _row(job: Job, name: str) -> FloatArray:
    row: FloatArray = job.reduction.matrix[job.spec.names.index(name)]
    return row


def _free(record: FitRecord, job: Job) -> FloatArray:
    """The fit's free coordinates (q,)."""
    reduction = job.reduction
    if reduction.leaders is None:
        free = np.linalg.lstsq(reduction.matrix, record.popt - reduction.offset)[0]
    else:
        free = record.popt[list(reduction.leaders)]
    return np.clip(free, job.lower, job.upper)


def _curve(record: FitRecord, ground: _Ground, column: int) -> Curve:
    """The estimate of a coordinate, and what a linear model says of its profile."""
    job, known = ground.job, record.absolute_sigma
    pcov, _ = covariance(record.r_factor, record.cost, record.n_points, absolute_sigma=known)
    value, error = float(ground.params[column]), math.sqrt(pcov[column, column])
    if error <= RESOLVED * EPS * abs(value):
        raise _errors.profile_without_noise()
    return Curve(
        Point(value, ground.params, record.cost),
        pcov[:, column] / pcov[column, column],
        error,
        ground.variance,
        (float(job.lower[column]), float(job.upper[column])),
    )


def _draw(ground: _Ground, curves: dict[int, Curve], quantile: float, moments: Moments) -> int:
    """Add points to all curves until they reach the quantile; returns the number of readings."""
    with engine_of(ground.job, lambda *_: None) as engine:
        for _ in range(MAX_ROUNDS):
            asked = [(k, value) for k in curves for value in curves[k].wanted(quantile)]
            if not asked:
                break
            searches = [_search(ground, curves[k], k, value, moments) for k, value in asked]
            ask = together([engine] * len(asked), [0] * len(asked))
            points = answered_together(searches, ask)
            for (k, _), point in zip(asked, points, strict=True):
                curves[k].add(point)
            if any(curve.rises.min() < LOWER_MINIMUM for curve in curves.values()):
                break
    return engine.n_passes


def _search(
    ground: _Ground, curve: Curve, column: int, value: float, moments: Moments
) -> Search[Point]:
    """The best fit with the coordinate held at a value."""
    job = ground.job
    others = np.delete(np.arange(ground.params.size), column)
    held = _held(job.reduction, column, value)
    options = replace(job.options, stat_tol=STAT_TOL, arrival_tol=STAT_TOL)
    if isinstance(options.x_scale, np.ndarray) and options.x_scale.ndim:
        options = replace(options, x_scale=options.x_scale[others])
    box = Box(job.lower[others], job.upper[others])
    guesses = curve.guess(value), curve.nearest(value)
    starts = [np.clip(at[others], box.lower, box.upper) for at in guesses]
    whole = ground.params.copy()
    whole[column] = value
    if not others.size:
        costs = yield CostsAt(held.expand(starts[0])[None])
        return Point(value, whole, float(costs[0]))
    triangle = np.asarray(np.linalg.qr(ground.r_factor[:, others], mode="r"))
    known = PriorKnowledge(Basis(np.linalg.inv(triangle), triangle), moments=moments)
    for start in starts:
        last = _LastStep(box, ground.variance)
        try:
            found = yield from in_free(minimize(start, box, options, last, known=known), held)
        except _errors.StartNotFiniteError:
            continue
        whole[others] = found.params if last.params is None else last.params
        arrived = found.status.success or found.status in SETTLED
        return Point(value, whole, found.cost - last.gain, arrived)
    return Point(value, whole, math.inf)


class _LastStep:
    """Ends a search so near to its optimum that the step to it need not be tried.

    Attributes
    ----------
    params : ndarray, shape (q - 1,), float64, or None
        Where the step leads; None as long as the search is too far away.
    gain : float
        By how much it lowers the cost.
    """

    def __init__(self, box: Box, variance: float) -> None:
        self._box = box
        self._most = TOLD_AHEAD**2 * variance
        self.params: FloatArray | None = None
        self.gain = 0.0

    def __call__(self, state: SolverState) -> None:
        """See how far the optimum is by the linearisation that a search has come to."""
        linear = state.linearization
        decrease = float(linear.qtr @ linear.qtr)
        determined = linear.resolution >= FINAL_RESOLUTION and np.diagonal(linear.r_factor).all()
        if decrease > self._most or not determined:
            return
        params = state.params - np.linalg.solve(linear.r_factor, linear.qtr)
        if (params > self._box.lower).all() and (params < self._box.upper).all():
            self.params, self.gain = params, decrease / 2.0
            raise StopIteration


def _held(reduction: Reduction, column: int, value: float) -> Reduction:
    """The same parameters with one free coordinate held."""
    names = reduction.names[:column] + reduction.names[column + 1 :]
    offset = reduction.offset + reduction.matrix[:, column] * value
    return Reduction(np.delete(reduction.matrix, column, axis=1), offset, names, None)


def _profile_of(job: Job, name: str, curve: Curve, column: int, n_passes: int) -> Profile:
    """The profile of a parameter that follows from a free coordinate, from its points."""
    i, factor = job.spec.names.index(name), _row(job, name)[column]
    side = 1 if factor > 0.0 else -1
    params = job.reduction.expand(curve.params)[::side]
    low, high = sorted(float(job.reduction.offset[i] + factor * end) for end in curve.limits)
    return Profile(
        name, params[:, i].copy(), side * curve.tau[::side], params, n_passes, (low, high)
    )


def _check(job: Job, name: str, curve: Curve) -> None:
    """Refuse a profile around what is no minimum, and warn of points that are not the best."""
    lowest = int(np.argmin(curve.rises))
    if curve.rises[lowest] < LOWER_MINIMUM:
        params = job.reduction.expand(curve.params[lowest])
        raise _errors.profile_below_fit(name, curve.points[lowest].cost, curve.centre.cost, params)
    n_short = sum(not point.arrived for point in curve.points)
    if n_short:
        problem = _errors.profile_not_converged(name, n_short, len(curve.points))
        warnings.warn(problem, stacklevel=WARNING_LEVEL)
