"""The course of several fits that share their readings: prepare, run in lock-step, results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlsq_dask import _errors
from nlsq_dask.core.questions import RowQuestion, Search
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.fitting.board_face import BoardFace, board_faces
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.expected import expected_of
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.lock_step import AskAll, answered_together, together
from nlsq_dask.fitting.missing_chunks import ChunkWatch, with_chunks_checked
from nlsq_dask.fitting.omitted import Blocks, blocks_omitted, leave_out, of_same_rows
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.options import InputOptions, RunOptions
from nlsq_dask.fitting.prepare import prepare_on
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.resume import (
    Preparation,
    check_resumed,
    open_checkpoints,
    save_state,
    with_vectors_of,
)
from nlsq_dask.fitting.run import bad_values, naming_rows, next_pass, start_error
from nlsq_dask.fitting.same_data import digests
from nlsq_dask.fitting.sample import LazySample, Taken, guessed_start
from nlsq_dask.fitting.shared_ledger import SharedLedger, shared_ledger
from nlsq_dask.fitting.solve import solve
from nlsq_dask.fitting.source import open_source
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.fitting.to_result import Outcome, result_of
from nlsq_dask.io.folders import below, checked_place
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from nlsq_dask.engines.collapsed import CollapsedEngine
    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.engines.in_memory import InMemoryEngine


def prepare_models(
    models: Mapping[str, Callable[..., Any]],
    x: Any,
    y: Any,
    per_model: Mapping[str, Sequence[Any]],
    inputs: InputOptions,
    options: RunOptions,
) -> dict[str, Job]:
    """Decide how each model is fitted, so that all models share their readings."""
    source = open_source(x, y, inputs)
    jobs = {}
    for i, (name, model) in enumerate(models.items()):
        own = replace(inputs, fixed=per_model["fixed"][i], ties=per_model["ties"][i])
        if per_model["bounds"][i] is not None:
            own = replace(own, bounds=per_model["bounds"][i])
        with _naming(name):
            job = prepare_on(source, model, per_model["p0"][i], own, options)
        # Messages of the engines use the name that the model has here.
        jobs[name] = replace(job, spec=replace(job.spec, label=name))
    return _with_one_stream(jobs)


def _with_one_stream(jobs: dict[str, Job]) -> dict[str, Job]:
    """Let all streaming fits use the smallest buffers that any of them needs.

    Buffers differ only on a GPU, where they shrink with the number of parameters.
    """
    streamed = [job for job in jobs.values() if isinstance(job.strategy, Streamed)]
    if len(streamed) < len(jobs):
        return jobs
    smallest = min(streamed, key=_block_rows).strategy
    return {name: replace(job, strategy=smallest) for name, job in jobs.items()}


def _block_rows(job: Job) -> int:
    return 0 if isinstance(job.strategy, Standard) else job.strategy.blocks.block_rows


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Add the name of the model to the message of an error."""
    try:
        yield
    except _errors.FitError as error:
        raise _errors.of_model(model, error) from error


@dataclass(frozen=True)
class Fitted:
    """A fit that has ended."""

    job: Job
    store: CheckpointStore | None
    found: Outcome
    board: BoardFace | None


@dataclass
class PassCount:
    """Counts the passes of one fit.

    Attributes
    ----------
    sample : LazySample
        Taking it is a pass if it needs all blocks.
    saved : Checkpoint or None
        Checkpoint from which the fit goes on; its passes count.
    collapsed : bool
        Whether one reading answers all questions.
    questions : int
        Questions that the search has asked.
    """

    sample: LazySample
    saved: Checkpoint | None
    collapsed: bool
    questions: int = 0

    @property
    def n_passes(self) -> int:
        """Passes so far."""
        before = self.sample if self.saved is None else self.saved
        return before.n_passes + (min(self.questions, 1) if self.collapsed else self.questions)


def run_models(
    jobs: Mapping[str, Job],
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
    progress: Progress,
) -> tuple[dict[str, Fitted], int]:
    """Run all fits in lock-step; returns the fits and the number of readings."""
    jobs = _with_chunks_checked(jobs)
    first = next(iter(jobs.values()))
    directories = [_directory(checkpoint, i) for i in range(len(jobs))]
    if resume:
        given = [directory for directory in directories if directory is not None]
        jobs = {name: with_vectors_of(job, *given) for name, job in jobs.items()}
    with ExitStack() as stack:
        watch = stack.enter_context(ChunkWatch(first))
        engines = _engines(list(jobs.values()), stack, progress)
        watch.expect(engines[0])
        boards = board_faces(list(jobs.values()), engines, list(jobs))
        progress.add(boards)
        progress.expect(partial(expected_of, first, engines[0], resumed=resume))
        taken: Taken = {}
        pairs = zip(jobs.values(), engines, strict=True)
        samples = [LazySample(job, engine, taken) for job, engine in pairs]
        jobs = dict(zip(jobs, map(_with_guess, jobs, jobs.values(), samples), strict=True))
        opened = _checkpoints(list(jobs.values()), engines, directories, resume)
        ledger = shared_ledger(jobs, engines, checkpoint)
        if ledger is not None:
            stack.enter_context(ledger)
            if resume:
                ledger.load(after_checkpoint=any(saved is not None for _, saved in opened))
        running = [
            _Running(
                name=name,
                number=i,
                job=jobs[name],
                sample=samples[i],
                store=opened[i][0],
                count=PassCount(samples[i], opened[i][1], bool(jobs[name].n_distinct)),
                engine=engines[i],
                ledger=ledger,
                watch=watch,
                progress=progress,
            )
            for i, name in enumerate(jobs)
        ]
        try:
            ends = _run_to_their_ends(running, progress)
        except _errors.StartNotFiniteError as error:
            known = {fit.name: of_same_rows(fit.job, fit.omitted) for fit in running}
            raise _error_at_start(known, error) from None
        used = [of_same_rows(fit.job, fit.omitted) for fit in running]
    shown: Sequence[BoardFace | None] = boards or [None] * len(jobs)
    fits = {
        fit.name: Fitted(job, fit.store, fit.outcome(end), board)
        for fit, job, end, board in zip(running, used, ends, shown, strict=True)
    }
    n_passes = _n_readings(running)
    n_converged = sum(fit.found.solution.status.success for fit in fits.values())
    progress.end(_errors.fit_ended(len(fits), n_converged), n_passes)
    return fits, n_passes


def _n_readings(running: Sequence[_Running]) -> int:
    """Readings of all fits. If samples need all blocks, these are read once for all models."""
    after = max(fit.count.n_passes - fit.sample.n_passes for fit in running)
    return max(fit.sample.n_passes for fit in running) + after


def _checkpoints(
    jobs: Sequence[Job],
    engines: Sequence[InMemoryEngine | DaskEngine | CollapsedEngine],
    directories: Sequence[str | Path | None],
    resume: bool,
) -> list[tuple[CheckpointStore | None, Checkpoint | None]]:
    """The store of checkpoints of each fit, and the checkpoint that the fit goes on from."""
    stores = list(map(open_checkpoints, jobs, directories))
    saved = [store.load() if store is not None and resume else None for store in stores]
    for store, old, job, engine in zip(stores, saved, jobs, engines, strict=True):
        if old is not None:
            leave_out(engine, old.omitted)
            check_resumed(store, old, job, engine)
    return list(zip(stores, saved, strict=True))


def _with_chunks_checked(jobs: Mapping[str, Job]) -> Mapping[str, Job]:
    """The fits without rows of chunks that are not in the store, if they leave these out."""
    data = with_chunks_checked(next(iter(jobs.values()))).data
    return {name: replace(job, data=data) for name, job in jobs.items()}


def _directory(checkpoint: str | os.PathLike[str] | None, number: int) -> str | Path | None:
    """Directory of the checkpoints of one model."""
    if checkpoint is None:
        return None
    place = checked_place(checkpoint, "checkpoint", _errors.checkpoint_not_a_path)
    return below(place, f"model-{number}")


def _engines(
    jobs: Sequence[Job], stack: ExitStack, progress: Progress
) -> list[InMemoryEngine | DaskEngine | CollapsedEngine]:
    """Open the engine of each model. Models that take the rows in the same pieces share an engine.

    All streaming fits share one engine. In memory, a model that is not row-wise needs all rows at
    once, and its engine has a copy of the rows.
    """
    specs = [job.spec for job in jobs]
    pieces = [
        (
            type(job.strategy),
            job.row_wise,
            _block_rows(job),
            job.n_distinct,
            bool(job.data.series_axes),
        )
        for job in jobs
    ]
    engines: dict[Any, InMemoryEngine | DaskEngine | CollapsedEngine] = {}
    for i in range(len(jobs)):
        if pieces[i] not in engines:
            engines[pieces[i]] = engine_of(jobs[i], progress.blocks, specs, progress.note)
            stack.enter_context(engines[pieces[i]])
    return [engines[key] for key in pieces]


def _with_guess(name: str, job: Job, sample: LazySample) -> Job:
    """The fit, with the start that its model guesses if no start is given."""
    if job.guess is None:
        return job
    with _naming(name):
        return replace(job, start=guessed_start(job, sample()))


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A fit that runs in lock-step with others."""

    name: str
    number: int
    job: Job
    sample: LazySample
    store: CheckpointStore | None
    count: PassCount
    engine: InMemoryEngine | DaskEngine | CollapsedEngine
    ledger: SharedLedger | None
    watch: ChunkWatch
    progress: Progress

    @property
    def n_passes_before(self) -> int:
        """Passes that earlier processes made."""
        saved = 0 if self.count.saved is None else self.count.saved.n_passes
        return saved + (0 if self.ledger is None else self.ledger.replayed[self.number])

    @property
    def omitted(self) -> Blocks:
        """The blocks that answers leave out now."""
        return blocks_omitted(self.engine)

    def outcome(self, end: _End) -> Outcome:
        """The fit at the end of its search."""
        return Outcome(end.solution, end.preparation, self.count.n_passes, self.n_passes_before)

    def search(self) -> Search[_End]:
        """The search of its model."""
        return self._search(self.job, self.count.saved, self._save)

    def search_again(self, end: _End) -> Search[_End]:
        """The search from its end, as rows were lost since."""
        plan = replace(self.job.plan, n_starts=1)
        job = replace(self.job, start=end.solution.params, pilot=False, plan=plan)

        def save(state: SolverState, _: Preparation) -> None:
            self._save(state, end.preparation)

        found = yield from self._search(job, None, save)
        return replace(found, preparation=end.preparation)

    def _search(
        self,
        job: Job,
        saved: Checkpoint | None,
        save: Callable[[SolverState, Preparation], None],
    ) -> Search[_End]:
        """A search; errors have the model's name."""
        look = partial(bad_values, self.engine, job.data)
        omitted = partial(blocks_omitted, self.engine)
        with _naming(self.name), naming_rows(job, omitted):
            knows = None if self.ledger is None else partial(self.ledger.knows_of, self.number)
            end = yield from solve(job, self.sample, saved, save, look, omitted, knows=knows)
        return _End(*end, self.omitted)

    def _save(self, state: SolverState, preparation: Preparation) -> None:
        """Show the fit, and write its checkpoint if there is a store."""
        self.progress.state(state, self.name)
        self.watch.tell()
        of_data = partial(digests, self.job, self.engine)
        n_passes = self.count.n_passes
        save_state(self.store, state, preparation, n_passes, of_data, self.omitted)
        if self.ledger is not None:
            self.ledger.saved(self.number)


@dataclass(frozen=True)
class _End:
    """Where a search ended, and the blocks that its last answers left out."""

    solution: Solution
    preparation: Preparation
    omitted: Blocks


def _run_to_their_ends(running: Sequence[_Running], progress: Progress) -> list[_End]:
    """Run all searches in lock-step.

    Searches that ended before a block was lost go on from their ends: models are compared on the
    same rows.
    """
    searches = {i: fit.search() for i, fit in enumerate(running)}
    ends: dict[int, _End] = {}
    while searches:
        engines = [running[i].engine for i in searches]
        asked = [running[i].ledger or running[i].engine for i in searches]
        ask = progress.asking(together(asked, list(searches)), partial(next_pass, engines))
        counted = _counting(ask, [running[i].count for i in searches])
        found = answered_together(list(searches.values()), counted)
        ends |= dict(zip(searches, found, strict=True))
        stale = [i for i, end in ends.items() if end.omitted != running[i].omitted]
        searches = {i: running[i].search_again(ends[i]) for i in stale}
    return [ends[i] for i in range(len(running))]


def _counting(ask: AskAll, counts: Sequence[PassCount]) -> AskAll:
    """Count the questions of each search."""

    def counted(questions: Mapping[int, RowQuestion[Any]]) -> Mapping[int, Any]:
        for number in questions:
            counts[number].questions += 1
        return ask(questions)

    return counted


def _error_at_start(
    jobs: Mapping[str, Job], error: _errors.StartNotFiniteError
) -> _errors.InputError:
    """The error at the start of a model; it has the model's name, unless the data are bad."""
    name = error.model or next(iter(jobs))
    explained = start_error(jobs[name], error)
    is_new = explained is not error and isinstance(explained, _errors.StartNotFiniteError)
    return _errors.of_model(name, explained) if is_new else explained


def results_of(fits: Mapping[str, Fitted]) -> dict[str, FitResult]:
    """The results of the fits, also for the page of fits; warns of what is wrong with them."""
    results = {}
    for name, fit in fits.items():
        results[name] = result_of(fit.job, fit.found, fit.store, name)
        if fit.board is not None:
            fit.board.result(results[name])
    return results
