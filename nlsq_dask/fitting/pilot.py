"""The pilot: a fit of a sample, so that few passes over all rows are left.

The cost of a fit is the number of passes, and a search from a poor start takes a dozen. The fit of
a sample of a few per cent, in memory, ends within some standard errors of the optimum at little
cost. One or two steps on all rows do the rest.

The sample never decides. The first pass over all rows also computes the cost of the user's own
start, and of the other basins that several starts end in. The fit goes on from the point of least
cost. A sample is not trusted, and the fit starts at p0, in three cases:

- The sample says next to nothing about a parameter that all rows determine.
- The sample does not show a parameter at the user's start, or where the pilot ends. A peak may have
  been lost on the way.
- All rows contradict the answer. The gaps between the sampled chunks make minima that all rows do
  not have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.constraints import in_free
from nlsq_dask.core.distance import estimated_variance, remainder
from nlsq_dask.core.factor import Basis, Linearization, factorize
from nlsq_dask.core.minimize import PriorKnowledge, first_point, minimize
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import CostsAt, Search, Several, SumsAt, answered
from nlsq_dask.core.solver_state import Solution, SolverOptions
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.multi_start import best_end, draw_starts, ranked, run_starts
from nlsq_dask.fitting.open_engine import sample_engine
from nlsq_dask.io.observations import Observations
from nlsq_dask.results.record import PilotRecord, Start, n_basins

# A large sample is fitted in two stages: first so many of its rows, then all of them if there are
# at least MANY_TIMES as many.
FIRST_ROWS = 20_000
MANY_TIMES = 4

# The pilot's answer is uncertain by its own standard errors. A tenth of a standard error is
# accurate enough.
PILOT_STAT_TOL = 0.1
PILOT_FTOL = 1e-6

# How much a row of the sample tells of a direction, over how much a row of all data tells. Below
# this ratio the sample has missed the place that shows the direction. If the sample has only the
# edge of a peak, in one chunk, the ratio is still ten times as large.
LEAST_INFORMATION = 1e-4

# A sample shows a parameter if setting the parameter to zero changes the model by this many
# standard deviations of the noise, at the user's start and where the pilot ends. Noise alone
# changes less at the places that a peak can move to. A parameter that the sample does not show may
# move anywhere, to a local minimum of less cost than the start: 13 of 192 fits of a spot in a cube
# ended so without this rule, and none of 436 with the rule.
SEEN = 5.0

# A direction is undetermined if the ratio of the smallest to the largest eigenvalue of the
# equilibrated Gram matrix is less than this. Rounding limits the ratio of a factor to its square
# root.
LEAST_RESOLUTION = 1e-12

# All rows contradict a sample if two things hold: the distance from its answer to their optimum is
# FARTHEST times what the sample's standard errors explain, and the cost can still fall by
# LARGEST_PART of the gain. The gain is the difference of the costs at p0 and at the answer. In 200
# fits of sinusoids from poor starts, samples that ended in a minimum of all rows were at most 2.5
# times as far, and samples in minima of their own 5 to 28 times. The second condition is for models
# that do not fit to the noise: their samples are farther off, but reach nearly all of the gain, and
# still save passes.
FARTHEST = 5.0
LARGEST_PART = 2e-2


@dataclass(frozen=True)
class Pilot:
    """Where the fit of a sample ended.

    Attributes
    ----------
    n_rows : int
        Rows of the sample.
    ends : ndarray, shape (k, q), float64
        The best end of each basin, the best first; one for a single start.
    linearization : Linearization
        Of the sample, at the best end.
    starts : tuple of Start
        What several starts led to; empty for one.
    sees : bool
        Whether the sample shows every parameter, where the user starts and at the best end.
    """

    n_rows: int
    ends: FloatArray
    linearization: Linearization
    starts: tuple[Start, ...] = ()
    sees: bool = True


def run_pilot(job: Job, sample: Observations) -> Pilot | None:
    """Fit a sample in memory, from one start or several.

    Parameters
    ----------
    job : Job
    sample : Observations
        In memory.

    Returns
    -------
    Pilot or None
        None if the model is not finite on the sample at any start, or the sample has too few rows:
        then all rows have to tell what is wrong. Or if the sample does not show a parameter of a
        single start; several starts are compared on all rows even so.
    """
    if sample.n_rows < len(job.reduction.names):
        return None
    try:
        if job.plan.n_starts == 1:
            return _of_one_start(job, sample)
        with sample_engine(job, sample) as engine:
            return answered(in_free(_of_starts(job, sample), job.reduction), engine.ask)
    except _errors.StartNotFiniteError:
        return None


def first_pass(
    job: Job, pilot: Pilot
) -> Search[tuple[FloatArray, PriorKnowledge, Pilot, PilotRecord]]:
    """Evaluate the pilot's answer, and the other possible starts, on all rows.

    Returns
    -------
    point : ndarray, shape (q,), float64
        Where to go on.
    known : PriorKnowledge
        The moments of y, and the sums at the point if these were computed.
    pilot : Pilot
        With the costs of all rows.
    record : PilotRecord
    """
    basis = pilot.linearization.whitening
    best = first_point(pilot.ends[0], job.box, job.options)
    candidates = np.vstack([pilot.ends[1:], job.start])
    asked = Several((SumsAt(best, basis.forward, observe=True), CostsAt(candidates)))
    sums, others = yield asked
    costs = np.nan_to_num([sums.cost, *others], nan=np.inf)
    points = np.vstack([best, candidates])
    choice = int(np.argmin(costs))
    if not pilot.sees and np.isfinite(costs[-1]):
        choice = len(points) - 1
    elif choice == 0 and not _is_trusted(pilot, sums):
        logger.info("the pilot's rows do not determine all parameters: going on from p0")
        choice = len(points) - 1
    elif (
        choice == 0
        and not pilot.starts
        and _is_contradicted(job, pilot, sums, best, costs[-1] - costs[0])
    ):
        logger.info("all rows contradict the pilot's answer: going on from p0")
        choice = len(points) - 1
    elif choice == len(points) - 1:
        logger.info(
            "the pilot's answer costs %.6g on all rows, p0 %.6g: going on from p0",
            costs[0],
            costs[-1],
        )
    else:
        logger.info("going on from the pilot's answer, found on %d rows", pilot.n_rows)
    if pilot.starts:
        pilot = replace(pilot, starts=ranked(pilot.starts, costs[:-1]))
    record = PilotRecord(
        pilot.n_rows,
        job.reduction.expand(pilot.ends[0]),
        float(costs[0]),
        float(costs[-1]),
        choice < len(points) - 1,
    )
    known = PriorKnowledge(moments=sums.moments, sizes=job.start)
    if choice == 0:
        known = replace(known, basis=basis, sums=sums)
    return points[choice], known, pilot, record


def _of_one_start(job: Job, sample: Observations) -> Pilot | None:
    """Fit the sample from the user's start; a large sample in two stages."""
    few = sample.thinned(FIRST_ROWS) if sample.n_rows > FIRST_ROWS else sample
    point, seen = job.start, True
    for rows in (few, sample) if sample.n_rows >= MANY_TIMES * few.n_rows else (sample,):
        with sample_engine(job, rows) as engine:
            end, linear, seen = answered(in_free(_one_end(job, point), job.reduction), engine.ask)
        point = end if seen else job.start
    if not seen:
        _log_unseen(sample)
        return None
    return Pilot(sample.n_rows, point[None], linear)


def _one_end(job: Job, point: FloatArray) -> Search[tuple[FloatArray, Linearization, bool]]:
    """End of a search, linearisation there, and whether the rows show every parameter."""
    end = yield from _descend(job, point)
    linear, noise = yield from _linearize(job, end.params)
    seen = _sees(job, linear, end.params, noise)
    if seen:
        at_start, _ = yield from _linearize(job, job.start)
        seen = _sees(job, at_start, job.start, noise)
    return end.params, linear, seen


def _of_starts(job: Job, sample: Observations) -> Search[Pilot]:
    """Fit the sample from several starts."""
    points = draw_starts(job.start, job.lower, job.upper, job.plan.n_starts, job.seed)
    starts = yield from run_starts(points, job.box, job.options)
    basins = range(n_basins(starts))
    ends = [best_end([s for s in starts if s.basin == b]) for b in basins] or [best_end(starts)]
    linear, noise = yield from _linearize(job, ends[0])
    sees = _sees(job, linear, ends[0], noise)
    if starts[0].params is not None:  # else the fit cannot start at p0, whatever the sample shows
        at_start, _ = yield from _linearize(job, job.start)
        sees &= _sees(job, at_start, job.start, noise)
    if not sees:
        _log_unseen(sample)
    return Pilot(sample.n_rows, np.vstack(ends), linear, tuple(starts), sees)


def _log_unseen(sample: Observations) -> None:
    logger.info("the pilot's %d rows do not show all parameters: starting at p0", sample.n_rows)


def _descend(job: Job, point: FloatArray) -> Search[Solution]:
    options = SolverOptions(
        ftol=PILOT_FTOL,
        x_scale=job.options.x_scale,
        method=job.options.method,
        stat_tol=PILOT_STAT_TOL,
        model_eps=job.options.model_eps,
        residual_variance=job.options.residual_variance,
    )
    return (yield from minimize(point, job.box, options))


def _linearize(job: Job, point: FloatArray) -> Search[tuple[Linearization, float]]:
    """Linearize at a point, and estimate the standard deviation of the weighted residuals."""
    point = first_point(point, job.box, job.options)
    basis = Basis.identity(point.size)
    sums = yield SumsAt(point, basis.forward)
    if not (np.isfinite(sums.cost) and np.isfinite(sums.gram).all()):
        raise _errors.start_not_finite(point)
    variance = job.options.residual_variance
    if variance is None:
        variance = estimated_variance(sums.cost, sums.n_points, point.size)
    return factorize(sums, basis), float(np.sqrt(variance))


def _sees(job: Job, linear: Linearization, point: FloatArray, noise: float) -> bool:
    """Whether a sample shows every parameter whose start is not zero."""
    size = np.maximum(np.abs(point), np.abs(job.start))
    signal = linear.quadratic.norms * size
    return bool((signal >= SEEN * noise)[job.start != 0.0].all())


def _is_trusted(pilot: Pilot, sums: NormalEquations) -> bool:
    """Whether the sample determines every direction that all rows determine.

    The sums are of all rows. Their basis makes the sample's Gram matrix the identity.
    """
    if not np.isfinite(sums.gram).all():
        return False
    sample = pilot.linearization
    # What a row of all data tells over what a row of the sample tells, largest over directions.
    more = float(np.linalg.eigvalsh(sums.gram)[-1]) * pilot.n_rows / sums.n_points
    return sample.resolution > LEAST_RESOLUTION and more * LEAST_INFORMATION < 1.0


def _is_contradicted(
    job: Job, pilot: Pilot, sums: NormalEquations, point: FloatArray, gain: float
) -> bool:
    """Whether the optimum of all rows is farther off than the sample's errors explain.

    The sums are of all rows at the pilot's answer, in the basis of the sample. The gain is the cost
    at p0 less the cost at the answer, of all rows.
    """
    linear = factorize(sums, pilot.linearization.whitening)
    left = remainder(linear, point, job.box, sums.n_points)
    variance = estimated_variance(sums.cost, sums.n_points, point.size)
    explained = np.sqrt(variance * point.size * sums.n_points / pilot.n_rows)
    return bool(left.length > FARTHEST * explained and left.reduction > LARGEST_PART * gain)
