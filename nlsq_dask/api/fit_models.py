"""``fit_models``: several models on the same readings of the data, and their comparison."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.api.fit import Tolerance
from nlsq_dask.core.checks import checked_seed
from nlsq_dask.core.questions import RowQuestion, Search
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.core.workflow import OptimizationGoal
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.lock_step import AskAll, answered_together, together
from nlsq_dask.fitting.open_engine import engine_of
from nlsq_dask.fitting.prepare import InputOptions, RunOptions, open_source, prepare_on
from nlsq_dask.fitting.progress import ProgressLine
from nlsq_dask.fitting.run import (
    Outcome,
    Preparation,
    naming_rows,
    open_checkpoints,
    result_of,
    save_state,
    solve,
    start_problem,
)
from nlsq_dask.fitting.sample import LazySample, Taken, guessed_start
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.results.comparison import ModelComparison
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.signature import model_label

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.engines.in_memory import InMemoryEngine

Model = Callable[..., Any]


def fit_models(
    models: Sequence[Model] | Mapping[str, Model],
    x: Any,
    y: Any,
    p0: Any = None,
    *,
    bounds: Any = None,
    fixed: Any = None,
    ties: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: Literal["raise", "omit"] | None = "raise",
    fill_value: float | None = None,
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
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Client | None = None,
    device: Literal["cpu", "gpu"] | None = None,
    progress: bool | None = None,
) -> ModelComparison:
    """Fit several models to the same data, in the readings that one fit takes.

    While a block of rows is in memory it is shown to all models, so that k models take the readings
    of the one that takes most, not the sum. Each fit is the one that :func:`fit` would make with
    the same options, to the same bits.

    Parameters
    ----------
    models : sequence or dict of callable
        ``[model, ...]``, named for the functions (and their positions, ``"model [1]"``, where names
        are the same), or ``{name: model}``. Each as for :func:`fit`.
    x, y : array_like
        The data, as for :func:`fit`.
    p0, bounds, fixed, ties : sequence or dict, optional
        One entry a model, in the order of the models, or ``{name: entry}`` by their names, where
        models may be left out. Each entry as for :func:`fit`; None is its default.
    sigma, absolute_sigma, mask, nan_policy, fill_value : optional
        What is known of the data, as for :func:`fit`.
    method, loss, f_scale, ftol, xtol, gtol, stat_tol, max_nfev : optional
        How each model is fitted, as for :func:`fit`.
    strategy, workflow, goal, memory_limit_gb, n_starts, seed, pilot, cache : optional
        How the data are read, as for :func:`fit`. A sample is read once for all models; another
        where a model guesses its start, if :func:`fit` would show it all rows.
    checkpoint : path-like, optional
        Directory in which each model gets one of its own, "model-0" and so on.
    resume : bool
        Whether each fit goes on from its newest checkpoint there, if it has one.
    client, device, progress : optional
        As for :func:`fit`; the progress line is that of all readings.

    Returns
    -------
    ModelComparison
        A :class:`FitResult` for each model, by position or name; prints as a table.

    Raises
    ------
    InputError, InputTypeError, ModelError
        As :func:`fit`, with the name of the model in the message; the other fits are given up. Also
        if `p0`, `bounds`, `fixed` or `ties` is not one entry a model.

    Warns
    -----
    ConvergenceWarning, CovarianceWarning, CheckpointWarning
        As :func:`fit`, for each model by name.

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
    tolerances: dict[str, Any] = {"ftol": ftol, "xtol": xtol, "gtol": gtol}
    options = RunOptions(
        workflow=workflow,
        goal=goal,
        strategy=strategy,
        n_starts=n_starts,
        tolerances={n: t for n, t in tolerances.items() if not _is_auto(t)},
        seed=checked_seed(seed),
        pilot=pilot,
        stat_tol=stat_tol,
        method=method,
        max_nfev=max_nfev,
        x_scale="jac",
        memory_limit_gb=memory_limit_gb,
        client=client,
        device=device,
        cache=cache,
    )
    inputs = InputOptions(
        sigma=sigma,
        absolute_sigma=absolute_sigma,
        mask=mask,
        nan_policy=nan_policy,
        fill_value=fill_value,
        loss=loss,
        f_scale=f_scale,
    )
    if resume and checkpoint is None:
        raise _errors.resume_without_checkpoint()
    own = {"p0": p0, "bounds": bounds, "fixed": fixed, "ties": ties}
    per_model = {argument: _per_model(argument, own[argument], list(named)) for argument in own}
    jobs = _prepare(named, x, y, per_model, inputs, options)
    fits, n_passes = _run(jobs, checkpoint, resume, progress)
    return ModelComparison(_results(fits), n_passes)


def _is_auto(tolerance: Any) -> bool:
    return isinstance(tolerance, str) and tolerance == "auto"


def _named_models(models: Any) -> dict[str, Model]:
    """The models by name."""
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
    """What was given for each model, None where nothing was."""
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
    """Put the model's name in front of what went wrong with it."""
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
    """Decide how each model is fitted, such that one reading serves all of them."""
    source = open_source(x, y, inputs)
    jobs = {}
    for i, (name, model) in enumerate(models.items()):
        own = replace(inputs, fixed=per_model["fixed"][i], ties=per_model["ties"][i])
        if per_model["bounds"][i] is not None:
            own = replace(own, bounds=per_model["bounds"][i])
        with _naming(name):
            job = prepare_on(source, model, per_model["p0"][i], own, options)
        # Messages of the engines call the model by its name here.
        jobs[name] = replace(job, spec=replace(job.spec, label=name))
    return _with_one_stream(jobs)


def _with_one_stream(jobs: dict[str, Job]) -> dict[str, Job]:
    """Stream through the smallest buffers that any of the fits would use.

    They are the same for all but on a GPU, where they shrink with the number of parameters.
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
    """One of the fits, run to its end."""

    job: Job
    store: CheckpointStore | None
    found: Outcome


def _run(
    jobs: Mapping[str, Job],
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
    progress: bool | None,
) -> tuple[dict[str, Fitted], int]:
    """Run all fits to their ends, reading together; also, the number of readings."""
    first = next(iter(jobs.values()))
    streaming = first.plan.strategy == "streaming"
    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(progress if streaming else False))
        engines = _engines(list(jobs.values()), stack, line)
        taken: Taken = {}
        samples = [LazySample(job, engines[0], taken) for job in jobs.values()]
        jobs = dict(zip(jobs, map(_with_guess, jobs, jobs.values(), samples), strict=True))
        directories = [_directory(checkpoint, i) for i in range(len(jobs))]
        stores = list(map(open_checkpoints, jobs.values(), directories))
        saved = [store.load() if store is not None and resume else None for store in stores]
        read = [sample.n_passes for sample in samples]  # for a guess that is shown all blocks
        passes = [n if old is None else old.n_passes for n, old in zip(read, saved, strict=True)]
        searches = [
            _search(name, job, sample, old, _saving(store, passes, i))
            for i, (name, job, sample, store, old) in enumerate(
                zip(jobs, jobs.values(), samples, stores, saved, strict=True)
            )
        ]
        ask = _counting(together(engines, range(len(jobs))), passes)
        try:
            ends = answered_together(searches, ask)
        except _errors.StartNotFiniteError as error:
            raise _start_problem(jobs, error) from None
    found = [Outcome(*end, n_passes) for end, n_passes in zip(ends, passes, strict=True)]
    after = max(f.n_passes - n for f, n in zip(found, read, strict=True))
    # All blocks are read once for all guesses.
    fits = dict(zip(jobs, map(Fitted, jobs.values(), stores, found), strict=True))
    return fits, max(read) + after


def _counting(ask: AskAll, passes: list[int]) -> AskAll:
    """Count the readings that each search takes part in."""

    def counted(questions: Mapping[int, RowQuestion[Any]]) -> Mapping[int, Any]:
        for number in questions:
            passes[number] += 1
        return ask(questions)

    return counted


def _saving(
    store: CheckpointStore | None, passes: Sequence[int], number: int
) -> Callable[[SolverState, Preparation], None]:
    """Write checkpoints of one of the fits, where they are kept."""

    def observe(state: SolverState, preparation: Preparation) -> None:
        save_state(store, state, preparation, passes[number])

    return observe


def _start_problem(
    jobs: Mapping[str, Job], error: _errors.StartNotFiniteError
) -> _errors.InputError:
    """What is wrong at the start of a model, with the model's name if it is not the data."""
    name = error.model or next(iter(jobs))
    problem = start_problem(jobs[name], error)
    is_new = problem is not error and isinstance(problem, _errors.StartNotFiniteError)
    return _errors.of_model(name, problem) if is_new else problem


def _directory(checkpoint: str | os.PathLike[str] | None, number: int) -> Path | None:
    """The directory of one model's checkpoints."""
    if checkpoint is None:
        return None
    try:
        return Path(checkpoint) / f"model-{number}"
    except TypeError:
        raise _errors.checkpoint_not_a_path(checkpoint) from None


def _results(fits: Mapping[str, Fitted]) -> dict[str, FitResult]:
    results = {}
    for name, fit in fits.items():  # no comprehension: warnings count the frames to the caller
        results[name] = result_of(fit.job, fit.found, fit.store, name)
    return results


def _with_guess(name: str, job: Job, sample: LazySample) -> Job:
    """A fit that starts where its model guesses, if it was given no start."""
    if job.guess is None:
        return job
    with _naming(name):
        return replace(job, start=guessed_start(job, sample()))


def _engines(
    jobs: Sequence[Job], stack: ExitStack, line: ProgressLine
) -> list[InMemoryEngine | DaskEngine]:
    """Make the engine of each model: the same for all that take the rows in the same pieces.

    Streamed rows are read by one. In memory, a model whose rows depend on each other needs them all
    at once, and gets them in a copy of their own.
    """
    specs = [job.spec for job in jobs]
    pieces = [(type(job.strategy), job.row_wise, _block_rows(job)) for job in jobs]
    engines: dict[Any, InMemoryEngine | DaskEngine] = {}
    for i in range(len(jobs)):
        if pieces[i] not in engines:
            engines[pieces[i]] = engine_of(jobs[i], line.blocks, specs)
            stack.enter_context(engines[pieces[i]])
    return [engines[key] for key in pieces]


def _search(
    name: str,
    job: Job,
    sample: LazySample,
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Preparation], None],
) -> Search[tuple[Solution, Preparation]]:
    """One model's fit; what goes wrong bears the model's name."""
    with _naming(name), naming_rows(job):
        return (yield from solve(job, sample, saved, observer))
