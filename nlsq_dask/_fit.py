"""``fit``: from data and a model to a result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask._job import Job, Wishes, logger, prepare, versions
from nlsq_dask._multi_start import (
    Start,
    best_end,
    compare_on_all_rows,
    draw_starts,
    n_basins,
    run_starts,
    with_cost,
)
from nlsq_dask._progress import ProgressLine
from nlsq_dask._result import FitResult
from nlsq_dask.core.checks import checked_seed
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.trf import TrfSolution, TrfState, minimize
from nlsq_dask.core.workflow import OptimizationGoal, create_checkpoint_directory
from nlsq_dask.engines.in_memory import InMemoryEvaluator, standard_evaluator
from nlsq_dask.io.checkpoint import Checkpoint, CheckpointStore, to_json
from nlsq_dask.io.sources import finite_problem

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask import DaskEvaluator

# A tolerance, None to disable it, or "auto" to leave it to the workflow.
Tolerance = float | Literal["auto"] | None


def fit(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: ArrayLike | Mapping[str, float] | None = None,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = (-np.inf, np.inf),
    x_scale: Any = "jac",
    ftol: Tolerance = "auto",
    xtol: Tolerance = "auto",
    gtol: Tolerance = "auto",
    max_nfev: int | None = None,
    strategy: Literal["auto", "standard", "chunked", "streaming"] = "auto",
    workflow: str | None = None,
    goal: OptimizationGoal | str | None = None,
    memory_limit_gb: float | None = None,
    n_starts: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Client | None = None,
    device: Literal["cpu", "gpu"] | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Fit a parametric model to data of any size by nonlinear least squares.

    Finds the parameters that minimise ``Σ ((model(x, *params) - y) / sigma)²`` over all rows, by
    the trust-region-reflective method (Branch, Coleman & Li, SIAM J. Sci. Comput. 21, 1999). If any
    of the data is a Dask array or a ``zarr.Array``, nothing is loaded whole: every pass streams
    the chunks through the workers.

    Parameters
    ----------
    model : callable
        ``model(x, a, b, ...)`` in ``jax.numpy`` or NumPy functions; the parameters take their names
        from the signature. It gets 1-D arrays of rows and returns one value a row.
    x : array_like or tuple of array_like
        Coordinates: of ``y``'s shape; (k, n) for k coordinates of ``y`` (n,); or a tuple of arrays
        that broadcast to ``y``'s shape, which are never expanded to it. The model gets the same
        structure, with one 1-D array a coordinate. Lists, NumPy, memory maps, JAX, Dask, Zarr.
    y : array_like, shape (...)
        Observations, of any number of dimensions; each element is a row.
    p0 : sequence or dict, optional
        Starting values, in order or by name. By default ones, or inside the bounds.
    sigma : float or array_like, optional
        Standard deviations of ``y``; broadcasts to its shape.
    absolute_sigma : bool
        True takes ``sigma`` as it is for the covariance; False (default) scales the covariance so
        that the reduced chi-square is one, as in ``scipy.optimize.curve_fit``.
    bounds : pair, dict or scipy.optimize.Bounds
        ``(lower, upper)``, each a scalar or one number a parameter, or ``{name: (lower, upper)}``.
    x_scale : "jac" or array_like, shape (p,)
        Characteristic size of each parameter; "jac" takes it from the Jacobian.
    ftol, xtol, gtol : float, None or "auto"
        Tolerances for termination by the change of the cost, of the parameters, and by the norm of
        the gradient, as in ``scipy.optimize.least_squares``; None disables one. "auto" takes the
        workflow's, and 1e-8, SciPy's default, without one.
    max_nfev : int, optional
        Most evaluations of the model; 100 p by default.
    strategy : {"auto", "standard", "chunked", "streaming"}
        Where the rows are between passes. "standard": in memory, ready for the kernel. "chunked":
        in memory as they were passed, prepared piece by piece in every pass. "streaming": read by
        Dask tasks in every pass. "auto": streaming for Dask and Zarr arrays, else chunked where
        coordinates broadcast or the memory budget asks for it, else standard. All minimise the
        same sum.
    workflow : str, optional
        Preset of strategy, tolerances, starts and checkpoints: "auto", "standard", "quality",
        "fast", "large_robust", "streaming" or "hpc_distributed".
    goal : OptimizationGoal or str, optional
        Moves the workflow's tolerances and starts: "fast", "robust", "global",
        "memory_efficient" or "quality".
    memory_limit_gb : float, optional
        Memory to plan with, in GB (1e9 bytes); by default what this process may still take, or
        what a worker of the cluster has.
    n_starts : int, optional
        Starting points: p0, and a Latin hypercube in the bounds (within ``2 |p0|`` of p0, or 1
        where p0 is 0, on a side without bound). By default the workflow's, or 1.
    seed : int
        Of the Latin hypercube.
    checkpoint : path-like, optional
        Directory to which the solver's state is written after every pass.
    resume : bool
        Whether to go on from the newest checkpoint there, if there is one; the result has the same
        bits as that of the uninterrupted fit.
    client : distributed.Client, optional
        Cluster for streaming; by default the active one, or Dask's local scheduler.
    device : {"cpu", "gpu"}, optional
        Where the kernel runs; by default on a GPU where JAX has one.
    progress : bool, optional
        Whether to show a progress line on standard error; by default on a terminal, once a
        streaming fit has taken two seconds.

    Returns
    -------
    FitResult
        Unpacks to ``popt, pcov``; prints as a report.

    Raises
    ------
    InputError, InputTypeError
        If an argument cannot be used; both are also the ``ValueError`` or ``TypeError`` that SciPy
        raises.
    ModelError
        If the model cannot be traced, or is not row-wise where it has to be.

    Warns
    -----
    ConvergenceWarning
        If no convergence criterion was met.
    CovarianceWarning
        If the data do not determine the parameters.
    CheckpointWarning
        If a checkpoint cannot be written, or is damaged.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from nlsq_dask import fit
    >>> def model(x, a, b):
    ...     return a * jnp.exp(-b * x)
    >>> x = np.linspace(0, 4, 50)
    >>> result = fit(model, x, 2.5 * np.exp(-1.3 * x), p0=[1, 1])
    >>> result.popt.round(6)
    array([2.5, 1.3])
    """
    tolerances = {"ftol": ftol, "xtol": xtol, "gtol": gtol}
    given = {name: value for name, value in tolerances.items() if value != "auto"}
    wishes = Wishes(
        workflow,
        goal,
        strategy,
        n_starts,
        given,
        max_nfev,
        x_scale,
        memory_limit_gb,
        client,
        device,
    )
    if resume and checkpoint is None:
        raise _errors.resume_without_checkpoint()
    seed = checked_seed(seed)
    job = prepare(model, x, y, p0, sigma, bounds, wishes)
    store = _checkpoint_store(job, checkpoint, seed)
    with ExitStack() as stack:
        line = stack.enter_context(
            ProgressLine(progress if job.plan.strategy == "streaming" else False)
        )
        evaluator = job.evaluator(line.blocks)
        stack.enter_context(evaluator)
        try:
            solution, starts = _solve(job, evaluator, store, seed, resume, line)
        except _errors.StartNotFiniteError as error:
            raise finite_problem(job.data, job.client) or error from None
        n_passes = evaluator.n_passes
    return _result(job, solution, starts, n_passes, store, absolute_sigma)


def _checkpoint_store(
    job: Job, directory: str | os.PathLike[str] | None, seed: int
) -> CheckpointStore | None:
    if directory is None:
        if not job.plan.checkpoint:
            return None
        try:
            directory = create_checkpoint_directory()
        except OSError as error:
            warnings.warn(_errors.checkpoint_not_written("nlsq_checkpoints", error), stacklevel=3)
            return None
    store = CheckpointStore(directory, {**job.description(), "seed": seed}, versions())
    logger.info("checkpoints in %s", store.directory)
    return store


def _solve(
    job: Job,
    evaluator: InMemoryEvaluator[Any] | DaskEvaluator,
    store: CheckpointStore | None,
    seed: int,
    resume: bool,
    line: ProgressLine,
) -> tuple[TrfSolution, tuple[Start, ...]]:
    """From the newest checkpoint, or from the best of the starts, to the optimum."""
    saved = store.load() if store is not None and resume else None
    state: TrfState | None = None
    point = job.start
    starts: tuple[Start, ...] = ()
    if saved is not None:
        state, evaluator.n_passes = saved.state, saved.n_passes
        starts = tuple(Start.from_dict(start) for start in saved.starts)
        logger.info("going on from a checkpoint after pass %d", saved.n_passes)
    elif job.plan.n_starts > 1:
        starts, point = _find_start(job, evaluator, seed)

    def observe_state(state: TrfState) -> None:
        line.cost(state.cost)
        if store is not None:
            as_json = [{k: to_json(v) for k, v in s.to_dict().items()} for s in starts]
            store.save(Checkpoint(state, evaluator.n_passes, as_json))

    solution = minimize(evaluator, point, job.lower, job.upper, job.options, observe_state, state)
    if job.stream is not None and n_basins(starts) == 1:
        # Nothing had to be compared: the first pass tells what the end found on a sample costs.
        starts = with_cost(starts, solution.history[0].cost)
    return solution, starts


def _find_start(
    job: Job, evaluator: InMemoryEvaluator[Any] | DaskEvaluator, seed: int
) -> tuple[tuple[Start, ...], FloatArray]:
    """Run several starts: on all rows in memory, or on a sample of streamed ones."""
    points = draw_starts(job.start, job.lower, job.upper, job.plan.n_starts, seed)
    if isinstance(evaluator, InMemoryEvaluator):
        starts = run_starts(evaluator, points, job.lower, job.upper, job.options)
        return tuple(starts), best_end(starts)
    with standard_evaluator(evaluator.sample(), job.spec, job.device) as sample:
        starts = run_starts(sample, points, job.lower, job.upper, job.options)
    starts, point = compare_on_all_rows(evaluator, starts)
    return tuple(starts), point


def _result(
    job: Job,
    solution: TrfSolution,
    starts: tuple[Start, ...],
    n_passes: int,
    store: CheckpointStore | None,
    absolute_sigma: bool,
) -> FitResult:
    if not solution.status.success:
        warnings.warn(_errors.not_converged(solution.status), stacklevel=3)
    pcov, determined = covariance(
        solution.r_factor, solution.chi2, solution.n_points, absolute_sigma=absolute_sigma
    )
    if not determined:
        warnings.warn(_errors.covariance_undetermined(), stacklevel=3)
    return FitResult(
        names=job.spec.names,
        popt=solution.params,
        pcov=pcov,
        cost=solution.cost,
        chi2=solution.chi2,
        n_points=solution.n_points,
        optimality=solution.optimality,
        active_mask=solution.active_mask,
        nfev=solution.nfev,
        njev=solution.njev,
        nit=solution.nit,
        n_passes=n_passes,
        status=solution.status,
        strategy=job.plan.strategy,
        workflow=job.plan.workflow,
        budget=job.plan.budget,
        tolerances=dict(job.plan.tolerances),
        starts=starts,
        checkpoint=None if store is None else str(store.directory),
        history=solution.history,
    )
