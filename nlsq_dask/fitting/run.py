"""The course of a fit: run a job, write checkpoints, and turn the solution into a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core import statistics
from nlsq_dask.core.constraints import in_free
from nlsq_dask.core.covariance import covariance, robust_covariance
from nlsq_dask.core.minimize import PriorKnowledge, minimize
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import Search, answered, without_lost_rows
from nlsq_dask.core.reopen import reopened
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.core.workflow import create_checkpoint_directory
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.fitting.append import Appended, appended
from nlsq_dask.fitting.block_sums import BlockSums, diagnostics
from nlsq_dask.fitting.board_face import board_faces
from nlsq_dask.fitting.callback import IterationTable, NewRecords, wrap_callback
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore, recorded_vector_bits
from nlsq_dask.fitting.expected import expected_of
from nlsq_dask.fitting.first_look import looked_at
from nlsq_dask.fitting.job import Job, logger, versions
from nlsq_dask.fitting.ledger import Ledger
from nlsq_dask.fitting.missing_chunks import ChunkWatch, with_chunks_checked
from nlsq_dask.fitting.multi_start import best_end, draw_starts, run_starts
from nlsq_dask.fitting.omitted import Blocks, blocks_omitted, leave_out, of_same_rows
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.pilot import Pilot, first_pass, run_pilot
from nlsq_dask.fitting.profiles import profiles
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.same_data import (
    Knows,
    Look,
    check_digests,
    check_old_digests,
    digests,
    nothing_known,
    same_in_all_passes,
)
from nlsq_dask.fitting.sample import LazySample, guessed_start
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.bad_values import BadValues
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.record import PilotRecord, Start
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.loss import HALF_OF_ROWS, Loss

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

# A fit warns where the standard deviation of the residuals exceeds this many f_scale. The estimate
# of the standard deviation is rough for few rows, and a tenth of outliers raises the estimate by an
# eighth.
TOLERATED_NOISE = 1.25


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the caller of ``fit`` wants to see and to keep; see :func:`nlsq_dask.fit`."""

    checkpoint: str | os.PathLike[str] | None
    resume: bool
    append: bool
    callback: Callable[..., Any] | None
    verbose: int


def run(job: Job, reports: ReportOptions, progress: Progress) -> FitResult:
    """Run a fit; see :func:`nlsq_dask.fit`."""
    job = with_chunks_checked(job)
    table = IterationTable(reports.verbose)
    callback = wrap_callback(reports.callback, job.spec.names, job.reduction)
    before: Appended | None = None
    if (reports.resume or reports.append) and reports.checkpoint is not None:
        job = with_vectors_of(job, reports.checkpoint)
    if reports.append and reports.checkpoint is not None:
        job, before = appended(job, reports.checkpoint)
    resume = (reports.resume or reports.append) and before is None
    with ExitStack() as stack:
        watch = stack.enter_context(ChunkWatch(job))
        engine = engine_of(job, progress.blocks, show=progress.note)
        stack.enter_context(engine)
        boards = board_faces([job], [engine])
        progress.add(boards)
        progress.expect(partial(expected_of, job, engine, resumed=reports.resume))
        sample = LazySample(job, engine)
        if job.guess is not None:
            job = replace(job, start=guessed_start(job, sample()))
        store = open_checkpoints(job, reports.checkpoint)
        saved = store.load() if store is not None and resume else None
        ledger = stack.enter_context(open_ledger(job, store, engine))
        if resume or before is not None:
            ledger.load(after_checkpoint=saved is not None or before is not None)
        if before is not None:
            begin_appended(before, ledger, engine)
        running = _Running(job, engine, store=store, saved=saved, ledger=ledger)
        new_records = NewRecords(0 if saved is None else len(saved.state.history))

        def observe_state(state: SolverState, preparation: Preparation) -> None:
            progress.state(state)
            watch.tell()
            records = new_records.of(state)
            for record in records:
                table.row(record)
            running.save(state, preparation)
            callback(state, records)

        outcome = running.outcome(sample, before, observe_state, progress)
    solution = outcome.solution
    progress.end(_errors.fit_ended(1, int(solution.status.success)), outcome.n_passes)
    result = result_of(of_same_rows(job, blocks_omitted(engine)), outcome, store)
    result = with_blocks(result, job, ledger.blocks)
    for board in boards:
        board.result(result)
    costs = (solution.history[0].cost, solution.cost)
    table.end(result.message, result.nfev, costs, result.optimality)
    return result


@dataclass(frozen=True)
class _Running:
    """A fit that runs, and what is kept of it for a later process."""

    job: Job
    engine: InMemoryEngine | DaskEngine | CollapsedEngine
    store: CheckpointStore | None = field(kw_only=True)
    saved: Checkpoint | None = field(kw_only=True)
    ledger: Ledger = field(kw_only=True)

    def save(self, state: SolverState, preparation: Preparation) -> None:
        """Write a checkpoint, and forget the answers that it covers."""
        job, engine, ledger = self.job, self.engine, self.ledger
        ledger.blocks.moved_to(job.reduction.expand(state.params))
        save_state(
            self.store,
            state,
            preparation,
            engine.n_passes,
            digests=partial(digests, job, engine),
            omitted=blocks_omitted(engine),
            groups=partial(sums_to_append, job, ledger),
        )
        ledger.forget()

    def outcome(
        self,
        sample: LazySample,
        before: Appended | None,
        observer: Callable[[SolverState, Preparation], None],
        progress: Progress,
    ) -> Outcome:
        """Search from the checkpoint, the answer before rows were appended, or the start."""
        job, engine, saved, ledger = self.job, self.engine, self.saved, self.ledger
        if saved is not None:
            # A guess from means has read the rows once more.
            engine.n_passes = saved.n_passes + (engine.n_passes if job.n_distinct else 0)
            leave_out(engine, saved.omitted)
            check_resumed(self.store, saved, job, engine)
        look, omitted = partial(bad_values, engine, job.data), partial(blocks_omitted, engine)
        try:
            with naming_rows(job, omitted):
                search = solve(
                    job, sample, saved, observer, look, omitted, ledger=ledger, before=before
                )
                ask = progress.asking(ledger.ask, partial(next_pass, [engine]))
                found = answered(search, ask)
        except _errors.StartNotFiniteError as error:
            raise start_problem(of_same_rows(job, omitted()), error) from None
        earlier = ledger.n_replayed + (0 if saved is None else saved.n_passes)
        return Outcome(*found, engine.n_passes, earlier)


def next_pass(engines: Iterable[Engine]) -> int:
    """Number of the pass in which engines answer the next question; means need a single pass."""
    return max(
        e.n_passes or 1 if isinstance(e, CollapsedEngine) else e.n_passes + 1 for e in engines
    )


def open_ledger(
    job: Job,
    store: CheckpointStore | None,
    engine: InMemoryEngine | DaskEngine | CollapsedEngine,
) -> Ledger:
    """The ledger of a fit, which keeps answers if there are checkpoints or diagnostics."""
    directory = None if store is None else store.directory
    keeps = store is not None or job.diagnostics
    # Versions are read from files of each library, which takes a fifth of the time of a small fit.
    problem, made_by = (job.description(), versions(job)) if keeps else ({}, {})
    return Ledger(directory, problem, made_by, engine, keeps=keeps)


def begin_appended(
    before: Appended, ledger: Ledger, engine: InMemoryEngine | DaskEngine | CollapsedEngine
) -> None:
    """Compare a few old blocks, and give the ledger the sums of the old groups."""
    assert not isinstance(engine, InMemoryEngine | CollapsedEngine), "rows are streamed"
    leave_out(engine, before.omitted)
    check_old_digests(before.path, before.digests, engine)
    ledger.trust(before.question, before.answers, len(engine.stream.groups))


def sums_to_append(job: Job, ledger: Ledger) -> dict[str, Any] | None:
    """The sums of each group of a finished fit, for a fit of more rows."""
    if not isinstance(job.strategy, Streamed) or job.n_distinct:
        return None
    return ledger.blocks.to_append(job.strategy.sizes)


def with_blocks(result: FitResult, job: Job, found: BlockSums) -> FitResult:
    """The result with a table of the blocks, if their sums are known."""
    sums = found.best or found.latest
    if sums is None or not isinstance(job.strategy, Streamed) or job.n_distinct:
        return result
    held = (result.active_mask != 0).tolist()
    groups = job.strategy.stream.groups
    return replace(result, blocks=diagnostics(groups, sums, result.names, result.perr, held))


def fitted_model(job: Job) -> FittedModel:
    """What the model of a job can compute on the data of the job."""
    makes_profiles = partial(profiles, job)
    return FittedModel(
        job.spec,
        job.data,
        job.device,
        job.client,
        job.row_wise,
        profiles=makes_profiles,
        times=job.data.times,
    )


def start_problem(job: Job, error: _errors.StartNotFiniteError) -> _errors.InputError:
    """The error of a start that is not finite: it names bad data, or the row of a bad value."""
    with open_engine(job.data, Kernels(()), job.client) as engine:
        found = bad_values(engine, job.data)
    if found is not None or error.params is None:
        return found or error
    rows = fitted_model(job).bad_rows(job.reduction.expand(np.array(error.params)))
    names = job.data.names[1 : 1 + len(job.data.coords)]
    return rows.error(names, error, in_series=job.spec.series is not None)


@contextmanager
def naming_rows(job: Job, omitted: Callable[[], Blocks]) -> Iterator[None]:
    """Name the rows in which the derivatives at the start are not finite.

    `omitted` tells the blocks that the fit leaves out.
    """
    try:
        yield
    except _errors.StartSlopeError as error:
        params = job.reduction.expand(np.array(error.params, np.float64))
        found = fitted_model(of_same_rows(job, omitted())).without_derivatives(params)
        if not found.count:  # they are finite one by one, but their products are not
            raise
        raise _errors.no_difference(params, found.count, found.first) from None


def with_vectors_of(job: Job, *directories: str | os.PathLike[str]) -> Job:
    """The fit with vectors of the width of its checkpoints, so that it goes on to the same bits."""
    found = [recorded_vector_bits(directory) for directory in directories]
    wanted = max((bits for bits in found if bits is not None), default=job.vector_bits)
    if wanted > job.vector_bits:
        logger.warning(_errors.vectors_narrower_than_before(job.vector_bits, wanted))
    return replace(job, vector_bits=min(wanted, job.vector_bits))


def open_checkpoints(job: Job, directory: str | os.PathLike[str] | None) -> CheckpointStore | None:
    """Open the directory of checkpoints; a new directory where the workflow wants one."""
    if directory is None:
        if not job.plan.checkpoint:
            return None
        try:
            directory = create_checkpoint_directory()
        except OSError as error:
            warning = _errors.checkpoint_not_written("nlsq_checkpoints", error)
            _errors.warn_caller(warning)
            return None
    store = CheckpointStore(
        directory,
        job.description(),
        versions(job),
        job.description(of_0_1=True),
        job.checkpoint_options,
    )
    logger.info("checkpoints in %s", store.directory)
    return store


@dataclass(frozen=True)
class Preparation:
    """Starts and pilot of a fit, before the search on all rows."""

    starts: tuple[Start, ...] = ()
    pilot: PilotRecord | None = None

    @classmethod
    def of(cls, saved: Checkpoint) -> Self:
        """Starts and pilot of a search that is resumed."""
        pilot = None if saved.pilot is None else PilotRecord.from_dict(saved.pilot)
        return cls(tuple(map(Start.from_dict, saved.starts)), pilot)


def save_state(
    store: CheckpointStore | None,
    state: SolverState,
    preparation: Preparation,
    n_passes: int,
    digests: Callable[[], dict[str, str]],
    omitted: Blocks,
    groups: Callable[[], dict[str, Any] | None] | None = None,
) -> None:
    """Write a checkpoint, if there is a store; of a finished search with checksums of its data."""
    if store is None:
        return
    starts, pilot = to_json(preparation.starts), to_json(preparation.pilot)
    of_data, of_groups = None, None
    if state.status is not None:
        try:
            of_data = digests()
        except (_errors.ReadingError, _errors.ClusterError) as error:  # the fit itself is done
            logger.warning("no checksums of the data for the last checkpoint: %s", error)
        of_groups = None if groups is None else groups()
    kept = Checkpoint(state, n_passes, starts, pilot, of_data, omitted=omitted, groups=of_groups)
    store.save(kept)


def check_resumed(
    store: CheckpointStore | None,
    saved: Checkpoint,
    job: Job,
    engine: InMemoryEngine | DaskEngine | CollapsedEngine,
) -> None:
    """Compare a few blocks with those of a finished checkpoint, whose search makes no pass.

    Raises
    ------
    DataChangedError
        If they differ.
    """
    if store is None or saved.state.status is None or saved.of_0_1:
        return
    if saved.digests is None:  # of an earlier release
        logger.warning("checkpoint %s is of a finished fit: no data are read", store.directory)
        return
    check_digests(store.directory, saved.digests, job, engine)
    logger.info("going on from a finished checkpoint: only a few blocks were read, and compared")


def bad_values(engine: Engine, data: Observations) -> _errors.InputError | None:
    """Look for values that are not finite, in a pass."""
    return engine.ask(BadValues(len(data.values))).error(data.names, data.marks)


@dataclass(frozen=True)
class Outcome:
    """The solution of a search, and the passes that the search took."""

    solution: Solution
    preparation: Preparation
    n_passes: int
    n_passes_before: int = 0


def solve(
    job: Job,
    sample: Callable[[], Observations],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Preparation], None],
    look: Look,
    omitted: Callable[[], Blocks],
    ledger: Ledger | None = None,
    before: Appended | None = None,
    knows: Knows | None = None,
) -> Search[tuple[Solution, Preparation]]:
    """Search for the optimum from a checkpoint, the pilot's answer, or the best start.

    Where rows were appended, from the answer before.
    """

    def find() -> Pilot | None:
        return run_pilot(job, sample())

    pilot = find if ledger is None else partial(ledger.pilot, find, job.box)
    if before is None:
        search = in_free(_solve(job, pilot, saved, observer), job.reduction)
    else:
        search = _solve_appended(job, before, observer)
    known = None if saved is None or saved.of_0_1 else saved
    state = None if known is None else known.state
    changing = job.data.lazy and not job.data.propagates
    if knows is None:
        knows = nothing_known if ledger is None else ledger.knows
    looked = looked_at(search, job.data)
    same = same_in_all_passes(looked, look if changing else None, state, knows)
    return without_lost_rows(same, omitted, None if known is None else known.omitted)


def _solve_appended(
    job: Job, before: Appended, observer: Callable[[SolverState, Preparation], None]
) -> Search[tuple[Solution, Preparation]]:
    """Search from the answer before rows were appended."""
    sums = yield from before.sums()
    known = PriorKnowledge(before.basis, sums, sums.moments, sizes=job.start)
    options = replace(job.options, scores=not job.spec.loss.is_linear)

    def observe(state: SolverState) -> None:
        observer(state, Preparation())

    search = minimize(before.point, job.box, options, observe, known=known)
    solution = yield from in_free(search, job.reduction)
    return solution, Preparation()


def _solve(
    job: Job,
    find_pilot: Callable[[], Pilot | None],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Preparation], None],
) -> Search[tuple[Solution, Preparation]]:
    """Search in the free parameters."""
    state: SolverState | None = None
    point, known, preparation = job.start, PriorKnowledge(sizes=job.start), Preparation()
    options = replace(job.options, scores=not job.spec.loss.is_linear)
    if saved is not None:
        state, preparation = saved.state, Preparation.of(saved)
        logger.info("going on from a checkpoint after pass %d", saved.n_passes)
        if saved.of_0_1:
            state = yield from reopened(state, job.box, options)
    elif job.pilot and (pilot := find_pilot()) is not None:
        point, known, pilot, record = yield from first_pass(job, pilot)
        preparation = Preparation(pilot.starts, record)
    elif job.plan.n_starts > 1:
        points = draw_starts(job.start, job.lower, job.upper, job.plan.n_starts, job.seed)
        starts = yield from run_starts(points, job.box, job.options)
        point, preparation = best_end(starts), Preparation(tuple(starts))

    def observe(state: SolverState) -> None:
        observer(state, preparation)

    solution = yield from minimize(point, job.box, options, observe, state=state, known=known)
    stopped = solution.status is _errors.Status.CALLBACK
    if not stopped and (better := _better_end(preparation, solution.cost)) is not None:
        point, preparation = better
        known = PriorKnowledge(moments=solution.moments, sizes=job.start)
        solution = yield from minimize(point, job.box, options, observe, known=known)
    return solution, preparation


def _better_end(preparation: Preparation, cost: float) -> tuple[FloatArray, Preparation] | None:
    """The best end of several starts, if it costs less on all rows than the answer from p0.

    The fit goes on from p0 where the sample does not show all parameters; what the other starts
    found on it is not lost.
    """
    if preparation.pilot is None or preparation.pilot.used:
        return None
    least = min((s.cost for s in preparation.starts if s.cost is not None), default=np.inf)
    if least >= cost:
        return None
    logger.info("p0 led to a cost of %.6g, another start to %.6g: going on from there", cost, least)
    return best_end(preparation.starts), replace(
        preparation, pilot=replace(preparation.pilot, used=True)
    )


def scale_problems(loss: Loss, solution: Solution) -> list[_errors.FitWarning]:
    """Warnings of a robust loss for which most rows are outliers."""
    small, n = HALF_OF_ROWS * loss.f_scale, solution.n_points
    n_small = solution.moments.n_small
    normal = NormalDist(sigma=TOLERATED_NOISE * loss.f_scale)
    if not statistics.fewer_than_chance(n_small, n, 2.0 * normal.cdf(small) - 1.0):
        return []
    noise = statistics.noise_by_small_rows(n_small, n, small)
    return [_errors.f_scale_below_noise(loss.name, loss.f_scale, noise)]


def _problems(
    solution: Solution, undetermined: tuple[str, ...], determined: bool
) -> Iterator[_errors.FitWarning]:
    """Warnings of a solution: no optimum, no covariance, differences in place of derivatives."""
    status = solution.status
    if not status.success and status is not _errors.Status.UNDETERMINED:
        yield _errors.not_converged(_errors.end_of_fit(status, undetermined))
    if not determined:
        yield _errors.covariance_undetermined(undetermined)
    if solution.n_differenced:
        yield _errors.derivatives_differenced(solution.n_differenced, solution.n_points)


def result_of(
    job: Job, outcome: Outcome, store: CheckpointStore | None, model: str | None = None
) -> FitResult:
    """Turn the solution into a result of all parameters, and give the warnings.

    Parameters
    ----------
    job : Job
    outcome : Outcome
    store : CheckpointStore or None
    model : str, optional
        Name of the model in the warnings of several models.
    """
    solution, reduction, spec = outcome.solution, job.reduction, job.spec
    names = np.array(spec.names, object)
    undetermined = tuple(np.array(reduction.names, object)[solution.undetermined].tolist())
    if spec.loss.is_linear:
        pcov, determined = covariance(
            solution.r_factor, solution.cost, solution.n_points, absolute_sigma=job.absolute_sigma
        )
    else:
        pcov, determined = robust_covariance(solution)
    for problem in _problems(solution, undetermined, determined):
        named = problem if model is None else _errors.of_model(model, problem)
        _errors.warn_caller(named)
    # Residuals are noise only where the fit arrived, and only for one model: the poorer of several
    # models leaves more than noise.
    if not spec.loss.is_linear and solution.status.success and model is None:
        for problem in scale_problems(spec.loss, solution):
            _errors.warn_caller(problem)
    variance_known = job.absolute_sigma or solution.n_points > solution.params.size
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
        n_passes=outcome.n_passes,
        n_passes_before=outcome.n_passes_before,
        status=solution.status,
        scipy_status=solution.met,
        undetermined=undetermined,
        strategy=job.plan.strategy,
        workflow=job.plan.workflow,
        budget=job.plan.budget,
        decoded=job.data.decoded,
        tolerances=dict(job.plan.tolerances) | {"stat_tol": job.options.stat_tol},
        structure=spec.structure,
        n_coords=spec.n_coords,
        starts=tuple(
            replace(
                start,
                p0=reduction.expand(start.p0),
                params=None if start.params is None else reduction.expand(start.params),
            )
            for start in outcome.preparation.starts
        ),
        pilot=outcome.preparation.pilot,
        checkpoint=None if store is None else str(store.directory),
        history=solution.history,
        n_differenced=solution.n_differenced,
        sandwich=not spec.loss.is_linear,
        bounds=reduction.expand_bounds(job.lower, job.upper),
        param_units=dict(job.param_units),
        vector_bits=job.vector_bits,
        data_units=job.data.units,
        n_distinct=job.n_distinct,
        times=job.data.times,
        blocks_omitted=tuple(sorted(job.data.omitted)),
        fitted=fitted_model(job),
    )
