"""``fit_models``: fit several models in the same readings of the data, and compare them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.api.fit import Tolerance, given_tolerances
from nlsq_dask.api.keywords import naming_unknown_keywords
from nlsq_dask.core.checks import checked_progress, checked_retries, checked_seed
from nlsq_dask.core.questions import RowQuestion, Search
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.core.workflow import OptimizationGoal
from nlsq_dask.fitting.board_face import BoardFace, board_faces
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.expected import expected_of
from nlsq_dask.fitting.faces import faces_of
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.lock_step import AskAll, answered_together, together
from nlsq_dask.fitting.missing_chunks import ChunkWatch, with_chunks_checked
from nlsq_dask.fitting.omitted import Blocks, blocks_omitted, leave_out, of_same_rows
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.prepare import InputOptions, RunOptions, open_source, prepare_on
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.run import (
    Outcome,
    Preparation,
    bad_values,
    check_resumed,
    naming_rows,
    next_pass,
    open_checkpoints,
    result_of,
    save_state,
    solve,
    start_problem,
    with_vectors_of,
)
from nlsq_dask.fitting.same_data import digests
from nlsq_dask.fitting.sample import LazySample, Taken, guessed_start
from nlsq_dask.fitting.shared_ledger import SharedLedger, shared_ledger
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.io.folders import below, checked_place
from nlsq_dask.kernels.devices import DeviceArgument, checked_device
from nlsq_dask.results.comparison import ModelComparison
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.signature import model_label

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.collapsed import CollapsedEngine
    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.engines.in_memory import InMemoryEngine

Model = Callable[..., Any]


@naming_unknown_keywords
def fit_models(
    models: Sequence[Model] | Mapping[str, Model],
    x: Any,
    y: Any,
    p0: Any = None,
    *,
    bounds: Any = None,
    fixed: Any = None,
    ties: Any = None,
    dim: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: Literal["raise", "omit"] | None = "raise",
    fill_value: float | None = None,
    decode: Literal["cf", False] = "cf",
    storage_options: Mapping[str, Any] | None = None,
    data: Any = None,
    time_unit: str = "s",
    method: Literal["trf", "lm", "dogbox"] = "trf",
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    ftol: Tolerance = "auto",
    xtol: Tolerance = "auto",
    gtol: Tolerance = "auto",
    stat_tol: Tolerance = "auto",
    max_nfev: int | None = None,
    strategy: Literal["auto", "standard", "chunked", "streaming"] = "auto",
    workflow: str | None = None,
    goal: OptimizationGoal | str | None = None,
    memory_limit_gb: float | None = None,
    n_starts: int | None = None,
    seed: int = 0,
    pilot: bool | None = None,
    cache: bool | Literal["auto"] = "auto",
    collapse: bool | Literal["auto"] = "auto",
    retries: int = 3,
    on_error: Literal["raise", "omit"] = "raise",
    missing_chunks: Literal["warn", "raise", "omit", "fill"] = "warn",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Client | None = None,
    device: DeviceArgument = None,
    progress: bool | None = None,
) -> ModelComparison:
    """Fit several models to the same data, in as many readings as one fit takes.

    All models see a block of rows while it is in memory. So k models take as many readings as the
    model that takes most, not the sum. Each result has the same bits as :func:`fit` with the same
    options.

    Parameters
    ----------
    models : sequence or dict of callable
        ``{name: model}``, or ``[model, ...]``, where models take the names of the functions. Equal
        names get the position, as in ``"model [1]"``. Each model is as for :func:`fit`.
    x, y : array_like
        The data, as for :func:`fit`.
    p0, bounds, fixed, ties : sequence or dict, optional
        An entry for each model in the order of the models, or ``{name: entry}``, which may leave
        models out. Each entry is as for :func:`fit`; None is the default of :func:`fit`.
    dim : name, int, or sequence of these, optional
        Dimensions of ``y`` along which the models take whole series, as for :func:`fit`.
    sigma, absolute_sigma, mask, nan_policy, fill_value, decode, storage_options : optional
        Weights, missing rows, packed numbers and object stores, as for :func:`fit`.
    data, time_unit : optional
        Data set of named variables, and unit of times, as for :func:`fit`.
    method, loss, f_scale, ftol, xtol, gtol, stat_tol, max_nfev : optional
        How each model is fitted, as for :func:`fit`.
    strategy, workflow, goal, memory_limit_gb, n_starts, seed, pilot : optional
        How the fits are run, as for :func:`fit`.
    cache, collapse, retries, on_error, missing_chunks : optional
        How the data are read, as for :func:`fit`. A sample is read once for all models. Models that
        guess their start share another reading, if :func:`fit` would show them all blocks.
    checkpoint : path-like, optional
        Directory in which each model has a directory of checkpoints, "model-0" and so on.
    resume : bool
        Whether each fit goes on from its newest checkpoint, if it has a checkpoint.
    client, device, progress : optional
        As for :func:`fit`. All models share one display of progress.

    Returns
    -------
    ModelComparison
        A :class:`FitResult` for each model, by position or name; prints as a table.

    Raises
    ------
    InputError, InputTypeError, ModelError
        As :func:`fit`, with the name of the model in the message. The other fits end, too. Also if
        `p0`, `bounds`, `fixed` or `ties` does not have an entry for each model.

    Warns
    -----
    ConvergenceWarning, CovarianceWarning, CheckpointWarning
        As :func:`fit`, with the name of the model in the message.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from nlsq_dask import fit_models
    >>> def line(x, a, b):
    ...     return a + b * x
    >>> def decay(x, a, b):
    ...     return a * jnp.exp(-b * x)
    >>> x = np.linspace(0, 4, 50)
    >>> y = 2.5 * np.exp(-1.3 * x) + 0.01 * np.sin(37 * x)
    >>> comparison = fit_models([line, decay], x, y)
    >>> comparison.best_name, comparison["decay"].popt.round(1)
    ('decay', array([2.5, 1.3]))
    """
    named = _named_models(models)
    options = RunOptions(
        workflow=workflow,
        goal=goal,
        strategy=strategy,
        n_starts=n_starts,
        tolerances=given_tolerances(ftol=ftol, xtol=xtol, gtol=gtol),
        seed=checked_seed(seed),
        pilot=pilot,
        stat_tol=stat_tol,
        method=method,
        max_nfev=max_nfev,
        x_scale="jac",
        memory_limit_gb=memory_limit_gb,
        client=client,
        device=checked_device(device),
        cache=cache,
        collapse=collapse,
        retries=checked_retries(retries),
        on_error=on_error,
    )
    inputs = InputOptions(
        sigma=sigma,
        absolute_sigma=absolute_sigma,
        mask=mask,
        nan_policy=nan_policy,
        fill_value=fill_value,
        decode=decode,
        storage_options=storage_options,
        data=data,
        time_unit=time_unit,
        missing_chunks=missing_chunks,
        checkpoint=checkpoint,
        dim=dim,
        loss=loss,
        f_scale=f_scale,
    )
    if resume and checkpoint is None:
        raise _errors.resume_without_checkpoint()
    own = {"p0": p0, "bounds": bounds, "fixed": fixed, "ties": ties}
    per_model = {argument: _per_model(argument, own[argument], list(named)) for argument in own}
    with Progress(faces_of(checked_progress(progress))) as watched:
        jobs = _prepare(named, x, y, per_model, inputs, options)
        fits, n_passes = _run(jobs, checkpoint, resume, watched)
    return ModelComparison(_results(fits), n_passes)


def _named_models(models: Any) -> dict[str, Model]:
    """Models by name; functions without a given name are named for themselves."""
    if isinstance(models, Mapping):
        named = dict(models)
        if not all(isinstance(name, str) for name in named):
            raise _errors.models_form(models)
    elif isinstance(models, Sequence) and not isinstance(models, str):
        labels = [model_label(model) for model in models]
        counts = Counter(labels)
        names = (n if counts[n] == 1 else f"{n} [{i}]" for i, n in enumerate(labels))
        named = dict(zip(names, models, strict=True))
    else:
        raise _errors.models_form(models)
    if not named:
        raise _errors.no_models()
    return named


def _per_model(argument: str, value: Any, names: Sequence[str]) -> list[Any]:
    """The entry of each model, in order; None for a model without an entry."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping):
        unknown = [repr(name) for name in value if name not in names]
        if unknown:
            raise _errors.per_model_unknown(argument, unknown, names)
        return [value.get(name) for name in names]
    listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    if not listed or getattr(value, "ndim", 1) == 0:
        raise _errors.per_model_form(argument, value, names)
    if len(value) != len(names):
        raise _errors.per_model_count(argument, len(value), names)
    return list(value)


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Add the name of the model to the message of an error."""
    try:
        yield
    except _errors.FitError as error:
        raise _errors.of_model(model, error) from error


def _prepare(
    models: Mapping[str, Model],
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


def _run(
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
        boards = board_faces(list(jobs.values()), engines, list(jobs))
        progress.add(boards)
        progress.expect(partial(expected_of, first, engines[0], resumed=resume))
        taken: Taken = {}
        pairs = zip(jobs.values(), engines, strict=True)
        samples = [LazySample(job, engine, taken) for job, engine in pairs]
        jobs = dict(zip(jobs, map(_with_guess, jobs, jobs.values(), samples), strict=True))
        stores = list(map(open_checkpoints, jobs.values(), directories))
        saved = [store.load() if store is not None and resume else None for store in stores]
        for store, old, job, engine in zip(stores, saved, jobs.values(), engines, strict=True):
            if old is not None:
                leave_out(engine, old.omitted)
                check_resumed(store, old, job, engine)
        ledger = shared_ledger(jobs, engines, checkpoint)
        if ledger is not None:
            stack.enter_context(ledger)
            if resume:
                ledger.load(after_checkpoint=any(old is not None for old in saved))
        is_collapsed = [bool(job.n_distinct) for job in jobs.values()]
        counts = list(map(PassCount, samples, saved, is_collapsed))
        running = [
            _Running(
                name=name,
                number=i,
                job=jobs[name],
                sample=samples[i],
                store=stores[i],
                count=counts[i],
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
            known = {r.name: of_same_rows(r.job, r.omitted) for r in running}
            raise _error_at_start(known, error) from None
        used = [of_same_rows(r.job, r.omitted) for r in running]
    found = [
        Outcome(*end, fit.count.n_passes, fit.n_passes_before)
        for end, fit in zip(ends, running, strict=True)
    ]
    after = max(f.n_passes - s.n_passes for f, s in zip(found, samples, strict=True))
    shown: Sequence[BoardFace | None] = boards or [None] * len(found)
    fits = dict(zip(jobs, map(Fitted, used, stores, found, shown), strict=True))
    # If samples need all blocks, the blocks are read once for all models.
    n_passes = max(sample.n_passes for sample in samples) + after
    n_converged = sum(outcome.solution.status.success for outcome in found)
    progress.end(_errors.fit_ended(len(found), n_converged), n_passes)
    return fits, n_passes


def _with_chunks_checked(jobs: Mapping[str, Job]) -> Mapping[str, Job]:
    """The fits without rows of chunks that are not in the store, if they leave these out."""
    data = with_chunks_checked(next(iter(jobs.values()))).data
    return {name: replace(job, data=data) for name, job in jobs.items()}


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


def _run_to_their_ends(
    running: Sequence[_Running], progress: Progress
) -> list[tuple[Solution, Preparation]]:
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
    return [(ends[i].solution, ends[i].preparation) for i in range(len(running))]


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
    explained = start_problem(jobs[name], error)
    is_new = explained is not error and isinstance(explained, _errors.StartNotFiniteError)
    return _errors.of_model(name, explained) if is_new else explained


def _directory(checkpoint: str | os.PathLike[str] | None, number: int) -> str | Path | None:
    """Directory of the checkpoints of one model."""
    if checkpoint is None:
        return None
    place = checked_place(checkpoint, "checkpoint", _errors.checkpoint_not_a_path)
    return below(place, f"model-{number}")


def _results(fits: Mapping[str, Fitted]) -> dict[str, FitResult]:
    results = {}
    for name, fit in fits.items():  # a comprehension may add a frame, and warnings count frames
        results[name] = result_of(fit.job, fit.found, fit.store, name)
        if fit.board is not None:
            fit.board.result(results[name])
    return results


def _with_guess(name: str, job: Job, sample: LazySample) -> Job:
    """The fit, with the start that its model guesses if no start is given."""
    if job.guess is None:
        return job
    with _naming(name):
        return replace(job, start=guessed_start(job, sample()))


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
