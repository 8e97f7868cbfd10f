"""``fit``: fit a model to data of any size."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask.api.keywords import naming_unknown_keywords
from nlsq_dask.api.lmfit_input import naming_lmfit, without_lmfit
from nlsq_dask.core.checks import checked_flag, checked_progress, checked_retries, checked_seed
from nlsq_dask.core.records import with_changes
from nlsq_dask.core.workflow import OptimizationGoal
from nlsq_dask.fitting.faces import faces_of
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.options import InputOptions, ReportOptions, RunOptions
from nlsq_dask.fitting.prepare import prepare
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.run import run
from nlsq_dask.kernels.devices import DeviceArgument, checked_device
from nlsq_dask.planning.cost import DryRun, plan_of, with_dry_run
from nlsq_dask.results.fit_plan import FitPlan
from nlsq_dask.results.provenance import Provenance, written_arguments
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from distributed import Client

# A tolerance; None disables it, "auto" leaves it to the workflow.
Tolerance = float | Literal["auto"] | None


@with_dry_run
@naming_unknown_keywords
def fit(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: ArrayLike | Mapping[str, float] | None = None,
    *,
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
    bounds: Any = (-np.inf, np.inf),
    fixed: Mapping[str, float] | None = None,
    ties: Any = None,
    method: Literal["trf", "lm", "dogbox"] = "trf",
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    jac: str | Callable[..., Any] | None = None,
    x_scale: Any = "jac",
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
    diagnostics: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    append: bool = False,
    client: Client | None = None,
    device: DeviceArgument = None,
    progress: bool | None = None,
    callback: Callable[..., Any] | None = None,
    verbose: Literal[0, 1, 2] = 0,
    dry_run: DryRun = False,
) -> FitResult | FitPlan:
    """Fit a parametric model to data of any size by nonlinear least squares.

    Finds the parameters that minimise ``Σ ((model(x, *params) - y) / sigma)²`` over all rows, or
    the sum of a robust loss. The default method is trust-region-reflective (Branch, Coleman & Li,
    SIAM J. Sci. Comput. 21, 1999). If any of the data is a Dask array, a ``zarr.Array`` or an array
    in a file, no array is loaded whole: every pass streams the chunks through the workers.

    Parameters
    ----------
    model : callable
        ``model(x, a, b, ...)``, written with ``jax.numpy`` or NumPy functions. The parameters take
        their names from the signature. The model gets 1-D arrays of rows and returns a value for
        each row. Models of lmfit are accepted, with their ``lmfit.Parameters`` as ``p0``.
    x : array_like or tuple of array_like
        Coordinates: an array of ``y``'s shape; an array (k, n), for k coordinates of ``y`` (n,); or
        a tuple of arrays that broadcast to ``y``'s shape. They are never expanded. The model gets
        the same structure, with a 1-D array for each coordinate. Lists, NumPy arrays, memory maps,
        JAX, Dask, Zarr, xarray and pandas arrays and variables of HDF5 and netCDF files are
        accepted. A string is the name of a coordinate of ``y``, or of a variable of `data`; else it
        is the path of a Zarr array, or its URL, such as ``"s3://bucket/decay.zarr/t"``. Dates
        become numbers; see `time_unit`.
    y : array_like, shape (...)
        Observations, of any number of dimensions. Each element is a row. If ``y`` is an array of
        xarray or pandas, other such arrays are brought into the order of its dimensions and labels.
        A string is the name of a variable of `data`.
    p0 : sequence, dict or FitResult, optional
        Starting values, in order or by name; or the result of an earlier fit, for its estimates.
        The default is ``model.guess(x, y)``, called with a sample of the rows. For a model without
        ``guess`` it is 1 for each parameter, moved inside the bounds.
    dim : name, int, or sequence of these, optional
        Dimensions of ``y`` along which the model takes whole series: names for an array of xarray,
        else axes. The model may then mix the rows of a series, as a convolution with an instrument
        response or a cumulative sum does. It is called with the rows of one series, and all series
        share the parameters. Blocks hold whole series: chunks along these dimensions are joined.
        ``x`` may have the shape of a series. `sigma` and `mask` may have the shape of a series, or
        of the other dimensions. Rows of ``y`` that are left out keep their places in ``x``. By
        default each row is evaluated by itself.
    sigma : float or array_like, optional
        Standard deviations of ``y``, positive and finite, which broadcast to its shape. For ``y``
        (n,) in memory also the symmetric covariance matrix (n, n) of ``y``. By default all rows
        have equal weight.
    absolute_sigma : bool
        True takes ``sigma`` as it is for the covariance. False (default) scales the covariance so
        that the reduced chi-square is one, as in ``scipy.optimize.curve_fit``.
    mask : array_like of bool, optional
        True leaves a row out, as in ``numpy.ma``. The mask broadcasts to ``y``'s shape. Masked
        arrays are accepted, too.
    nan_policy : {"raise", "omit"}
        "raise" (default): NaN in ``y``, ``x`` or ``sigma`` is an error that says where it is.
        "omit": rows with NaN are left out.
    fill_value : float, optional
        Number that marks a missing value of ``y``, as it is stored. Such rows are left out.
    decode : "cf" or False
        "cf" (default): Zarr and HDF5 arrays have the values that their attributes declare by the CF
        conventions. ``scale_factor`` and ``add_offset`` scale the stored numbers; numbers equal to
        ``_FillValue`` or ``missing_value``, or outside of ``valid_range``, become NaN. The task
        that reads a chunk decodes it. Arrays of xarray with such attributes are refused, because
        xarray was told not to decode them. False fits the numbers as they are stored.
    storage_options : dict, optional
        Options of an object store, such as its endpoint and credentials, for arrays that are passed
        as URLs and for a `checkpoint` in the store. They have the names of obstore, or of fsspec's
        file system. By default the store finds its credentials in the environment of each worker.
    data : mapping, optional
        Data set whose variables ``x``, ``y``, `sigma` and `mask` may name: an ``xarray.Dataset``, a
        ``pandas.DataFrame``, a dictionary, or a group of a Zarr, HDF5 or netCDF file.
    time_unit : {"ns", "us", "ms", "s", "min", "h", "D", "W"}
        Unit of the numbers that the model gets in place of times; "s" by default. Dates count from
        the first date of the coordinate, in the order of ``y``. Durations keep their zero. NaT is
        NaN.
    bounds : pair, dict or scipy.optimize.Bounds
        ``(lower, upper)``, each a scalar, a number for each parameter, or numbers by name; or
        ``{name: (lower, upper)}``. By default there are no bounds.
    fixed : dict, optional
        Values, by name, of parameters that are not fitted.
    ties : dict or array_like of shape (p, q), optional
        ``{"a2": "a1"}`` ties a2 to the value of a1. ``{"a2": {"a1": 2.0, "b": -1.0}}`` makes a2 a
        linear combination of other parameters; ``1: 0.5`` among them adds 0.5. A matrix gives all p
        parameters from q free values. The value of a tied parameter in ``p0`` is ignored.
    method : {"trf", "lm", "dogbox"}
        The methods of ``scipy.optimize.least_squares``. "trf" (default): trust-region-reflective.
        "lm": Levenberg-Marquardt, without bounds and robust loss. "dogbox": dogleg in rectangular
        trust regions.
    loss : str or callable
        "linear" (default), "soft_l1", "huber", "cauchy" or "arctan", or a function of z = (residual
        / f_scale)², shape (n,), that returns the loss and its first two derivatives, shape (3, n).
    f_scale : float
        Weighted residual beyond which a robust loss reduces the weight of a row. A good value is
        one to three times the noise. The default is 1.0.
    jac : callable, optional
        ``jac(x, a, b, ...)``, derivatives of the model's values, shape (n, p). The default is
        automatic differentiation, which is exact; "2-point", "3-point" and "cs" mean the same.
    x_scale : "jac", dict or array_like, shape (p,)
        Characteristic size of each parameter. "jac" (default) takes the sizes from the Jacobian.
    ftol, xtol, gtol : float, None or "auto"
        Tolerances for termination. `ftol`: change of the cost, relative to the cost. `xtol`: change
        of each parameter, relative to the parameter. `gtol`: cosine of the angle between the
        residuals and each column of the Jacobian. None disables a tolerance. "auto" (default) is
        the workflow's tolerance; without a workflow 1e-8, as in SciPy.
    stat_tol : float, None or "auto"
        Distance from the optimum, in standard errors, that is negligible. The other tolerances end
        a fit only within this distance. "auto" (default) is 0.01, and a streaming fit then ends
        within this distance without a pass to confirm the optimum. With a number, a fit in memory
        also ends without this pass. A fit of collapsed rows counts as a fit in memory. None is 0.1.
    max_nfev : int, optional
        Most evaluations of the model; by default 100 p.
    strategy : {"auto", "standard", "chunked", "streaming"}
        Where the rows are between passes. "standard": in memory, ready for the kernel. "chunked":
        in memory as they were passed, prepared piece by piece in every pass. "streaming": read by
        Dask tasks in every pass. "auto" (default): "streaming" for Dask and Zarr arrays; "chunked"
        if coordinates broadcast, or if the memory budget requires it; otherwise "standard". All
        strategies minimise the same sum.
    workflow : str, optional
        Preset of strategy, tolerances, starts and checkpoints: "auto", "standard", "quality",
        "fast", "large_robust", "streaming" or "hpc_distributed".
    goal : OptimizationGoal or str, optional
        Changes the workflow's tolerances and starts: "fast", "robust", "global",
        "memory_efficient" or "quality".
    memory_limit_gb : float, optional
        Memory limit in GB (1e9 bytes). The default is the memory that this process may still take,
        or that of a worker of the cluster.
    n_starts : int, optional
        Number of starting points: p0, and points of a Latin hypercube in the bounds. On a side
        without bound, the hypercube reaches ``2 |p0|`` from p0, or 1 if p0 is 0. The default is the
        workflow's number, or 1.
    seed : int
        Seed of the Latin hypercube; 0 by default.
    pilot : bool, optional
        Whether to fit a sample of a few per cent of the rows first, in memory, so that two or three
        passes over all rows are left. The answer is a minimum of all rows either way; if there are
        several minima, the pilot may lead to another minimum than p0. If all rows contradict the
        answer of the sample, the fit starts at p0. By default there is a pilot from 100,000
        streamed rows, or from 500,000 rows in memory. Collapsed rows need none.
    cache : {"auto", True, False}
        Whether streamed rows are kept in memory after the first pass, as float64, so that later
        passes do not read them. True keeps as many rows as the memory budget has room for, on each
        worker or in this process. "auto" (default) does so if at least a quarter of the rows fit.
        False keeps none. The answer has the same bits in each case.
    collapse : {"auto", True, False}
        Whether rows with the same coordinates are collapsed to their weighted mean and their
        scatter about it, in one reading of the data. The fit of the means is exact, and needs no
        further reading. It is possible if no coordinate varies along some dimension of ``y``, for
        linear loss, and for a model that computes each row by itself. "auto" (default) does so if
        the distinct coordinates are at most a tenth of the rows and their means fit the memory
        budget. True does so whatever their number is, or refuses. False never does.
    retries : int
        How often a chunk of streamed data is read again after an error of the operating system or
        of the store. The fit first waits, for about 2, then 10, then 50 s. So a store that does not
        answer for a minute costs a minute. The answer has the same bits. The default is 3; 0 ends
        the fit at the first error.
    on_error : {"raise", "omit"}
        What happens to a block of streamed data that cannot be read after all `retries`, is
        corrupt, or kills each worker that reads it. "raise" (default) ends the fit with an error
        that names the block. "omit" leaves the block out of this and all later passes, and warns;
        ``result.blocks_omitted`` lists such blocks. If a block is lost after the first pass, one
        more pass evaluates the present point again without the block. Errors of the
        model and of your own code always end the fit.
    missing_chunks : {"warn", "raise", "omit", "fill"}
        What happens to chunks of Zarr arrays that are not in the store, or not in their shard. Zarr
        reads such chunks as the fill value. They were lost or never written; or they hold the fill
        value alone, as Zarr does not store such chunks unless it is told to. "warn" (default) takes
        them for data, and gives their number. "raise" is an error before the first pass. "omit"
        leaves their rows out, whole blocks at a time; ``result.blocks_omitted`` lists the blocks.
        "fill" takes them for data without a warning. Masks are never checked. Arrays whose fill
        value is NaN, or means NaN by their attributes or `fill_value`, are checked for "omit" only.
    diagnostics : bool
        Whether the result keeps the sums of each chunk of streamed data, for its
        ``block_diagnostics()``. A task then reads one chunk, up to 10,000 chunks, so that a pass
        over small chunks takes longer. Rows are not collapsed by default. The default is False.
    checkpoint : path-like, optional
        Directory to which the solver's state is written after every pass. A text such as
        "s3://bucket/run_17" is a place in an object store: "s3://", "gs://", "az://", "abfs://" or
        "memory://". fsspec opens the place with `storage_options`, unless these are for arrays in
        another kind of store, and with the credentials of its own configuration.
    resume : bool
        Whether to go on from the newest checkpoint in that directory, if there is a checkpoint. The
        result has the same bits as that of an uninterrupted fit. Data that differ from those of the
        checkpoint are an error. The first pass compares the number of rows and sums of ``y``. Of a
        finished fit, a few blocks are compared. False by default.
    append : bool
        Whether rows have been appended, along the first dimension, to the streamed data of the
        finished fit in that directory. Its last checkpoint has the sums of the old chunks at its
        answer. The first pass then reads only the new chunks, and the search goes on from there.
        Without a checkpoint, all rows are fitted. With a checkpoint of the same rows, ``append`` is
        the same as ``resume``. False by default.
    client : distributed.Client, optional
        Cluster for streaming. The default is the active client, or Dask's local scheduler.
    device : str, jax.Device or a list of devices, optional
        Where the kernel runs. The default is all GPUs if JAX has a GPU. Several devices take blocks
        in turn, and the sums have the same bits as with one of them. On a cluster each worker takes
        all GPUs that it sees, and a list is refused.
    progress : bool, optional
        Whether to show where the fit is: in the output of a notebook's cell, or on standard error.
        True shows progress from the start; in a file at most a line a minute, and one at the end.
        The default shows progress in a notebook and on a terminal once the fit has taken two
        seconds.
    callback : callable, optional
        Called after every accepted step, as ``callback(intermediate_result=...)`` with the
        attributes ``x``, ``params``, ``cost``, ``chi2``, ``optimality``, ``nit`` and ``nfev``. A
        callback whose parameter has another name is called as ``callback(x)``. StopIteration ends
        the fit.
    verbose : {0, 1, 2}
        1 prints why the fit ended, 2 also a line for every evaluation. The default is 0.
    dry_run : bool, "timed" or "untimed"
        True returns a :class:`FitPlan` with the cost of the fit instead of fitting. A few chunks of
        Dask and Zarr arrays are then read to predict the time. "timed" does so for data in memory,
        too; "untimed" reads nothing. See :func:`plan`. False by default.

    Returns
    -------
    FitResult
        Unpacks to ``popt, pcov``; prints as a report.

    Raises
    ------
    InputError, InputTypeError
        If an argument cannot be used. The errors are also the ``ValueError`` or ``TypeError`` that
        SciPy raises.
    ModelError
        If the model cannot be traced, or is not row-wise although it has to be.
    DataChangedError
        If a pass sees other data than an earlier one, or than the run that left the checkpoint.
    ReadingError
        If data cannot be read. It is also an ``OSError``, and names the block and its store.
    ClusterError
        If no worker of the cluster runs for five minutes, workers die with the same block three
        times, or the scheduler is gone.

    Warns
    -----
    ConvergenceWarning
        If the fit did not find an optimum.
    CovarianceWarning
        If the data do not determine the parameters.
    PrecisionWarning
        If ``x`` or ``y`` has integers beyond 2**53, which float64 does not represent exactly.
    LossScaleWarning
        If `f_scale` is below the noise, so that a robust loss treats most rows as outliers.
    MissingDataWarning
        If blocks were left out by `on_error`, or chunks are missing in a store.
    ClusterWarning
        If the workers of a cluster have so little memory that Dask may pause them.
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
    given = locals()  # the arguments, before any other name
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
        x_scale=x_scale,
        memory_limit_gb=memory_limit_gb,
        client=client,
        device=checked_device(device),
        cache=cache,
        collapse=collapse,
        retries=checked_retries(retries),
        on_error=on_error,
        diagnostics=checked_flag("diagnostics", diagnostics),
    )
    inputs = InputOptions(
        sigma=sigma,
        absolute_sigma=checked_flag("absolute_sigma", absolute_sigma),
        mask=mask,
        nan_policy=nan_policy,
        fill_value=fill_value,
        decode=decode,
        storage_options=storage_options,
        data=data,
        time_unit=time_unit,
        missing_chunks=missing_chunks,
        checkpoint=checkpoint,
        bounds=bounds,
        fixed=fixed,
        ties=ties,
        dim=dim,
        loss=loss,
        f_scale=f_scale,
        jac=jac,
    )
    reports = _checked_reports(
        checkpoint=checkpoint, resume=resume, append=append, callback=callback, verbose=verbose
    )
    is_dry = isinstance(dry_run, str) or checked_flag("dry_run", dry_run)
    call = without_lmfit(model, x, p0, inputs)
    shown = checked_progress(progress)
    start = time.perf_counter()
    with Progress(() if is_dry else faces_of(shown)) as watched:
        with naming_lmfit(call.model):
            job = prepare(call.model, call.x, y, call.p0, call.inputs, options)
        if is_dry:
            return plan_of(job, dry_run)
        result = run(job, reports, watched)
    seconds = time.perf_counter() - start
    return _with_provenance(result, job, given | {"model": call.model}, seconds)


def _checked_reports(**arguments: Any) -> ReportOptions:
    """What the caller wants to see and to keep; a fit that goes on needs its checkpoint."""
    flags = {name: checked_flag(name, arguments[name]) for name in ("resume", "append")}
    reports = ReportOptions(**{**arguments, **flags})
    if reports.resume and reports.checkpoint is None:
        raise _errors.resume_without_checkpoint()
    if reports.append and reports.checkpoint is None:
        raise _errors.append_without_checkpoint()
    return reports


def _with_provenance(
    result: FitResult, job: Job, given: Mapping[str, Any], seconds: float
) -> FitResult:
    """The result of a fit, with how it was made."""
    assert result.fitted is not None, "a fit has its model"
    arguments = written_arguments(given, _defaults())
    plan = partial(plan_of, job, "untimed")
    made = Provenance(given["model"], arguments, seconds, plan)
    return with_changes(result, fitted=with_changes(result.fitted, provenance=made))


@cache
def _defaults() -> dict[str, Any]:
    """Defaults of the arguments of :func:`fit`, by name."""
    return {name: p.default for name, p in inspect.signature(fit).parameters.items()}


def given_tolerances(**tolerances: Tolerance) -> dict[str, Any]:
    """The tolerances that are not left to the workflow, by name."""
    return {n: t for n, t in tolerances.items() if not (isinstance(t, str) and t == "auto")}
