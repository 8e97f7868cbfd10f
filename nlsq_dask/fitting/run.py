"""From a job to a result: starts, passes, checkpoints, and what is made of the solution."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, Self

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core import statistics
from nlsq_dask.core.constraints import in_free
from nlsq_dask.core.covariance import covariance, robust_covariance
from nlsq_dask.core.minimize import PriorKnowledge, minimize
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import Search, answered
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.core.workflow import create_checkpoint_directory
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.fitting.callback import IterationTable, NewRecords, wrap_callback
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.first_look import looked_at
from nlsq_dask.fitting.job import Job, logger, versions
from nlsq_dask.fitting.multi_start import best_end, draw_starts, run_starts
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.pilot import first_pass, run_pilot
from nlsq_dask.fitting.profiles import profiles
from nlsq_dask.fitting.progress import ProgressLine
from nlsq_dask.fitting.sample import LazySample, guessed_start
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.bad_values import BadValues
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.record import PilotRecord, Start
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.loss import HALF_OF_ROWS, Loss

# Frames between a warning and the caller of fit: this module's, and fit.
WARNING_LEVEL = 4

# Standard deviation of the residuals in units of f_scale that is not warned of: the measure of it
# is rough where rows are few, and a tenth of outliers raises it by an eighth.
TOLERATED_NOISE = 1.25


@dataclass(frozen=True)
class Reporting:
    """What the caller of ``fit`` wants to see and keep; see there."""

    checkpoint: str | os.PathLike[str] | None
    resume: bool
    progress: bool | None
    callback: Callable[..., Any] | None
    verbose: int


def run(job: Job, reporting: Reporting) -> FitResult:
    """Run a fit; see :func:`nlsq_dask.fit`."""
    table = IterationTable(reporting.verbose)
    callback = wrap_callback(reporting.callback, job.spec.names, job.reduction)
    streaming = job.plan.strategy == "streaming"
    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(reporting.progress if streaming else False))
        engine = engine_of(job, line.blocks)
        stack.enter_context(engine)
        sample = LazySample(job, engine)
        if job.guess is not None:
            job = replace(job, start=guessed_start(job, sample()))
        store = open_checkpoints(job, reporting.checkpoint)
        saved = store.load() if store is not None and reporting.resume else None
        new_records = NewRecords(0 if saved is None else len(saved.state.history))

        def observe_state(state: SolverState, before: Before) -> None:
            line.cost(state.cost)
            records = new_records.of(state)
            for record in records:
                table.row(record)
            save_state(store, state, before, engine.n_passes)
            callback(state, records)

        if saved is not None:
            engine.n_passes = saved.n_passes
        try:
            with naming_rows(job):
                search = solve(job, sample, saved, observe_state)
                found = Found(*answered(search, engine.ask), engine.n_passes)
        except _errors.StartNotFiniteError as error:
            raise start_problem(job, error) from None
    result = result_of(job, found, store)
    solution = found.solution
    costs = (solution.history[0].cost, solution.cost)
    table.end(result.message, result.nfev, costs, result.optimality)
    return result


def start_problem(job: Job, error: _errors.StartNotFiniteError) -> _errors.InputError:
    """What is wrong at the start: the data, or the model on a row that the error then names."""
    with open_engine(job.data, Kernels(()), job.client) as engine:
        found = engine.ask(BadValues(len(job.data.values))).error(job.data.names)
    if found is not None or error.params is None:
        return found or error
    fitted = FittedModel(job.spec, job.data, job.device, job.client, job.row_wise)
    rows = fitted.bad_rows(job.reduction.expand(np.array(error.params)))
    return rows.error(job.data.names[1 : 1 + len(job.data.coords)], error)


@contextmanager
def naming_rows(job: Job) -> Iterator[None]:
    """Where the derivatives are not finite at the start, say in which rows."""
    try:
        yield
    except _errors.StartSlopeError as error:
        model = FittedModel(job.spec, job.data, job.device, job.client, job.row_wise)
        params = job.reduction.expand(np.array(error.params, np.float64))
        found = model.without_derivatives(params)
        if not found.count:  # they are finite one by one, but their products are not
            raise
        raise _errors.no_difference(params, found.count, found.first) from None


def open_checkpoints(job: Job, directory: str | os.PathLike[str] | None) -> CheckpointStore | None:
    """Where checkpoints are kept: where the caller says, or a new directory if they are wanted."""
    if directory is None:
        if not job.plan.checkpoint:
            return None
        try:
            directory = create_checkpoint_directory()
        except OSError as error:
            warning = _errors.checkpoint_not_written("nlsq_checkpoints", error)
            warnings.warn(warning, stacklevel=WARNING_LEVEL)
            return None
    try:
        os.fspath(directory)
    except TypeError:
        raise _errors.checkpoint_not_a_path(directory) from None
    store = CheckpointStore(directory, job.description(), versions())
    logger.info("checkpoints in %s", store.directory)
    return store


@dataclass(frozen=True)
class Before:
    """What came before the search on all rows."""

    starts: tuple[Start, ...] = ()
    pilot: PilotRecord | None = None

    @classmethod
    def of(cls, saved: Checkpoint) -> Self:
        """What came before a search that is resumed."""
        pilot = None if saved.pilot is None else PilotRecord.from_dict(saved.pilot)
        return cls(tuple(map(Start.from_dict, saved.starts)), pilot)


def save_state(
    store: CheckpointStore | None, state: SolverState, before: Before, n_passes: int
) -> None:
    """Write a checkpoint, where they are kept."""
    if store is None:
        return
    starts = [_as_json(start.to_dict()) for start in before.starts]
    pilot = None if before.pilot is None else _as_json(before.pilot.to_dict())
    store.save(Checkpoint(state, n_passes, starts, pilot))


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: to_json(value) for name, value in fields.items()}


@dataclass(frozen=True)
class Found:
    """What a search found, and what it took."""

    solution: Solution
    before: Before
    n_passes: int


def solve(
    job: Job,
    sample: Callable[[], Observations],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Before], None],
) -> Search[tuple[Solution, Before]]:
    """From a checkpoint, the pilot's answer, or the best of the starts, to the optimum."""
    search = in_free(_solve(job, sample, saved, observer), job.reduction)
    return looked_at(search, job.data)


def _solve(
    job: Job,
    sample: Callable[[], Observations],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Before], None],
) -> Search[tuple[Solution, Before]]:
    """The search in the free parameters."""
    state: SolverState | None = None
    point, known, before = job.start, PriorKnowledge(sizes=job.start), Before()
    options = replace(job.options, scores=not job.spec.loss.is_linear)
    if saved is not None:
        state, before = saved.state, Before.of(saved)
        logger.info("going on from a checkpoint after pass %d", saved.n_passes)
    elif job.pilot and (pilot := run_pilot(job, sample())) is not None:
        point, known, pilot, record = yield from first_pass(job, pilot)
        before = Before(pilot.starts, record)
    elif job.plan.n_starts > 1:
        points = draw_starts(job.start, job.lower, job.upper, job.plan.n_starts, job.seed)
        starts = yield from run_starts(points, job.box, job.options)
        point, before = best_end(starts), Before(tuple(starts))

    def observe(state: SolverState) -> None:
        observer(state, before)

    solution = yield from minimize(point, job.box, options, observe, state=state, known=known)
    stopped = solution.status is _errors.Status.CALLBACK
    if not stopped and (better := _better_end(before, solution.cost)) is not None:
        point, before = better
        known = PriorKnowledge(moments=solution.moments, sizes=job.start)
        solution = yield from minimize(point, job.box, options, observe, known=known)
    return solution, before


def _better_end(before: Before, cost: float) -> tuple[FloatArray, Before] | None:
    """An end of several starts that costs less on all rows than the answer that p0 led to, if any.

    The fit goes on from p0 where the sample does not show all parameters; what the other starts
    found on it is not lost.
    """
    if before.pilot is None or before.pilot.used:
        return None
    least = min((s.cost for s in before.starts if s.cost is not None), default=np.inf)
    if least >= cost:
        return None
    logger.info("p0 led to a cost of %.6g, another start to %.6g: going on from there", cost, least)
    return best_end(before.starts), replace(before, pilot=replace(before.pilot, used=True))


def scale_problems(loss: Loss, solution: Solution) -> list[_errors.FitWarning]:
    """What is wrong with the scale of a robust loss: most rows are outliers to it."""
    small, n = HALF_OF_ROWS * loss.f_scale, solution.n_points
    n_small = solution.moments.n_small
    normal = NormalDist(sigma=TOLERATED_NOISE * loss.f_scale)
    if not statistics.fewer_than_chance(n_small, n, 2.0 * normal.cdf(small) - 1.0):
        return []
    noise = statistics.noise_by_small_rows(n_small, n, small)
    return [_errors.f_scale_below_noise(loss.name, loss.f_scale, noise)]


def result_of(
    job: Job, found: Found, store: CheckpointStore | None, model: str | None = None
) -> FitResult:
    """State the solution by all parameters, and warn of what is wrong with it.

    `model` is its name in the warnings, where there are several.
    """
    solution = found.solution
    problems: list[_errors.FitWarning] = []
    reduction, spec = job.reduction, job.spec
    names = np.array(spec.names, object)
    undetermined = tuple(np.array(reduction.names, object)[solution.undetermined].tolist())
    if not solution.status.success and solution.status is not _errors.Status.UNDETERMINED:
        message = _errors.end_of_fit(solution.status, undetermined)
        problems.append(_errors.not_converged(message))
    variance_known = job.absolute_sigma or solution.n_points > solution.params.size
    robust = not job.spec.loss.is_linear
    if robust:
        pcov, determined = robust_covariance(solution)
        # The residuals of a fit that did not arrive, or of the poorer of several models, are no
        # noise.
        if solution.status.success and model is None:
            problems += scale_problems(job.spec.loss, solution)
    else:
        pcov, determined = covariance(
            solution.r_factor, solution.cost, solution.n_points, absolute_sigma=job.absolute_sigma
        )
    if not determined:
        problems.append(_errors.covariance_undetermined(undetermined))
    if solution.n_differenced:
        problems.append(_errors.derivatives_differenced(solution.n_differenced, solution.n_points))
    for problem in problems:
        named = problem if model is None else _errors.of_model(model, problem)
        warnings.warn(named, stacklevel=WARNING_LEVEL)
    return FitResult(
        names=spec.names,
        popt=reduction.expand(solution.params),
        pcov=reduction.expand_covariance(pcov),
        cost=solution.cost,
        chi2=solution.chi2,
        n_points=solution.n_points,
        n_skipped=solution.n_skipped,
        n_free=len(reduction.names),
        fixed=tuple(names[reduction.is_fixed].tolist()),
        moments=solution.moments,
        grad=reduction.expand_gradient(solution.gradient),
        optimality=solution.optimality,
        distance_to_optimum_sigma=solution.distance if variance_known else float(np.nan),
        active_mask=reduction.expand_mask(solution.active_mask),
        method=job.options.method,
        loss=spec.loss.name,
        absolute_sigma=job.absolute_sigma,
        r_factor=solution.r_factor,
        nfev=solution.nfev,
        njev=solution.njev,
        nit=solution.nit,
        n_passes=found.n_passes,
        status=solution.status,
        scipy_status=solution.met,
        undetermined=undetermined,
        strategy=job.plan.strategy,
        workflow=job.plan.workflow,
        budget=job.plan.budget,
        tolerances=dict(job.plan.tolerances) | {"stat_tol": job.options.stat_tol},
        structure=spec.structure,
        n_coords=spec.n_coords,
        starts=tuple(
            replace(
                start,
                p0=reduction.expand(start.p0),
                params=None if start.params is None else reduction.expand(start.params),
            )
            for start in found.before.starts
        ),
        pilot=found.before.pilot,
        checkpoint=None if store is None else str(store.directory),
        history=solution.history,
        n_differenced=solution.n_differenced,
        sandwich=robust,
        bounds=reduction.expand_bounds(job.lower, job.upper),
        fitted=FittedModel(
            spec, job.data, job.device, job.client, job.row_wise, partial(profiles, job)
        ),
    )
