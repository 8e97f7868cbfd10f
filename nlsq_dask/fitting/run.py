"""The course of a fit: run a job, write checkpoints, and turn the solution into a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.questions import answered
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.fitting.append import Appended, appended
from nlsq_dask.fitting.board_face import board_faces
from nlsq_dask.fitting.callback import IterationTable, NewRecords, wrap_callback
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.expected import expected_of
from nlsq_dask.fitting.job import Job, versions
from nlsq_dask.fitting.ledger import Ledger
from nlsq_dask.fitting.missing_chunks import ChunkWatch, with_chunks_checked
from nlsq_dask.fitting.omitted import Blocks, blocks_omitted, leave_out, of_same_rows
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.options import ReportOptions
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.resume import (
    Preparation,
    check_resumed,
    open_checkpoints,
    save_state,
    with_vectors_of,
)
from nlsq_dask.fitting.same_data import (
    check_old_digests,
    digests,
)
from nlsq_dask.fitting.sample import LazySample, guessed_start
from nlsq_dask.fitting.solve import solve
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.fitting.to_result import Outcome, fitted_model, result_of, with_blocks
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.bad_values import BadValues
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine


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
        watch.expect(engine)
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
        if not ledger.keeps:
            return
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
                asked = ledger.ask if ledger.keeps else engine.ask
                ask = progress.asking(asked, partial(next_pass, [engine]))
                found = answered(search, ask)
        except _errors.StartNotFiniteError as error:
            raise start_error(of_same_rows(job, omitted()), error) from None
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
    refused = None if store is None else store.refused
    return Ledger(directory, problem, made_by, engine, keeps=keeps, refused=refused)


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


def start_error(job: Job, error: _errors.StartNotFiniteError) -> _errors.InputError:
    """The error of a start that is not finite: it names bad data, or the row of a bad value."""
    with open_engine(job.data, Kernels(()), job.executor) as engine:
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


def bad_values(engine: Engine, data: Observations) -> _errors.InputError | None:
    """Look for values that are not finite, in a pass."""
    return engine.ask(BadValues(len(data.values))).error(data.names, data.marks)
