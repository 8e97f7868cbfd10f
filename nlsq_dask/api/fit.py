"""``fit``: from data and a model to a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_seed
from nlsq_dask.core.workflow import OptimizationGoal
from nlsq_dask.fitting.prepare import InputOptions, RunOptions, prepare
from nlsq_dask.fitting.run import ReportOptions, run
from nlsq_dask.planning.cost import DryRun, plan_of, with_dry_run
from nlsq_dask.results.fit_plan import FitPlan
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from distributed import Client

# A tolerance, None to disable it, or "auto" to leave it to the workflow.
Tolerance = float | Literal["auto"] | None


@with_dry_run
def fit(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: ArrayLike | Mapping[str, float] | None = None,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: Literal["raise", "omit"] | None = "raise",
    fill_value: float | None = None,
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
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Client | None = None,
    device: Literal["cpu", "gpu"] | None = None,
    progress: bool | None = None,
    callback: Callable[..., Any] | None = None,
    verbose: Literal[0, 1, 2] = 0,
    dry_run: DryRun = False,
) -> FitResult | FitPlan:
    """Fit a parametric model to data of any size by nonlinear least squares.

    Finds the parameters that minimise ``Σ ((model(x, *params) - y) / sigma)²``, or a robust loss of
    it, over all rows, by default with the trust-region-reflective method (Branch, Coleman & Li,
    SIAM J. Sci. Comput. 21, 1999). If any of the data is a Dask array or a ``zarr.Array``, nothing
    is loaded whole: every pass streams the chunks through the workers.

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
        Starting values, in order or by name. By default what ``model.guess(x, y)`` says, called
        with a sample of the rows; without that ones, or inside the bounds.
    sigma : float or array_like, optional
        Standard deviations of ``y``, positive and finite; broadcasts to its shape. For ``y`` (n,)
        in memory also its covariance matrix (n, n), symmetric.
    absolute_sigma : bool
        True takes ``sigma`` as it is for the covariance; False (default) scales the covariance so
        that the reduced chi-square is one, as in ``scipy.optimize.curve_fit``.
    mask : array_like of bool, optional
        True leaves a row out, as in ``numpy.ma``; broadcasts to ``y``'s shape. Masked arrays are
        understood as well.
    nan_policy : {"raise", "omit"}
        What to do about NaN in ``y``, ``x`` or ``sigma``: an error that names them, or leave those
        rows out.
    fill_value : float, optional
        Number that stands for a missing value of ``y``; such rows are left out.
    bounds : pair, dict or scipy.optimize.Bounds
        ``(lower, upper)``, each a scalar or one number a parameter, or ``{name: (lower, upper)}``.
    fixed : dict, optional
        Values, by name, of parameters that are not fitted.
    ties : dict or array_like of shape (p, q), optional
        ``{"a2": "a1"}`` keeps two parameters equal, ``{"a2": {"a1": 2.0, "b": -1.0}}`` makes one a
        linear combination of others; a matrix gives all p parameters out of q free values. What
        ``p0`` says of a tied parameter counts for nothing.
    method : {"trf", "lm", "dogbox"}
        "trf", or as in ``scipy.optimize.least_squares`` the Levenberg-Marquardt method (without
        bounds and robust loss), or the dogleg method in a box.
    loss : str or callable
        "linear", "soft_l1", "huber", "cauchy" or "arctan", or a function of z = (residual /
        f_scale)² (n,) that returns the loss and its first two derivatives (3, n).
    f_scale : float
        Weighted residual from which on a robust loss counts a row less; best one to three times
        the noise.
    jac : callable, optional
        ``jac(x, a, b, ...)``, derivatives of the model's values (n, p). By default they come from
        automatic differentiation, which is exact; "2-point", "3-point" and "cs" mean the same.
    x_scale : "jac" or array_like, shape (p,)
        Characteristic size of each parameter; "jac" takes it from the Jacobian.
    ftol, xtol, gtol : float, None or "auto"
        Tolerances for termination: by the change of the cost, relative to the cost that is left;
        by the change of each parameter, relative to it; and by the cosine of the angle between the
        residuals and each column of the Jacobian. None disables one. "auto" takes the workflow's,
        and 1e-8, SciPy's default, without one.
    stat_tol : float, None or "auto"
        Standard errors from the optimum that count as none: the tolerances end a fit only nearer
        than that. "auto" is 0.01, and for streamed data a fit that is nearer ends without a pass
        to confirm it; so it does in memory with a number. None is 0.1.
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
    pilot : bool, optional
        Whether a sample of a few per cent of the rows is fitted first, in memory, so that two or
        three passes over all rows are left. The answer is a minimum of all rows either way; where
        there are several minima it may be another one than p0 alone leads to. The fit starts at p0
        where all rows contradict the sample's answer. By default where a pilot pays: from 100,000
        streamed rows, or 500,000 in memory.
    cache : {"auto", True, False}
        Whether streamed rows stay in memory after the first pass, as float64, so that later passes
        read nothing: as many as the memory budget holds beside what is being read, on each worker
        or in this process. "auto" keeps none where less than a quarter of them would fit; False
        keeps none. The answer has the same bits either way.
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
    callback : callable, optional
        Called as ``callback(intermediate_result=...)`` after every accepted step, with ``x``,
        ``params``, ``cost``, ``chi2``, ``optimality``, ``nit`` and ``nfev``, or as
        ``callback(x)`` if its parameter has another name. StopIteration ends the fit there.
    verbose : {0, 1, 2}
        Whether to print why the fit ended (1), and a line for every evaluation (2).
    dry_run : bool, "timed" or "untimed"
        True returns the fit's :class:`FitPlan`, what it will cost, in place of fitting. For Dask
        and Zarr arrays a few chunks are read to predict its time; "timed" does so for any data,
        "untimed" for none. See :func:`plan`.

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
        If the fit ended at no optimum.
    CovarianceWarning
        If the data do not determine the parameters.
    PrecisionWarning
        If ``x`` or ``y`` has integers beyond 2**53, which float64 does not hold.
    LossScaleWarning
        If `f_scale` is below the noise, so that most rows are outliers to a robust loss.
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
    named: dict[str, Any] = {
        name: value for name, value in tolerances.items() if not _is_auto(value)
    }
    options = RunOptions(
        workflow=workflow,
        goal=goal,
        strategy=strategy,
        n_starts=n_starts,
        tolerances=named,
        seed=checked_seed(seed),
        pilot=pilot,
        stat_tol=stat_tol,
        method=method,
        max_nfev=max_nfev,
        x_scale=x_scale,
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
        bounds=bounds,
        fixed=fixed,
        ties=ties,
        loss=loss,
        f_scale=f_scale,
        jac=jac,
    )
    if resume and checkpoint is None:
        raise _errors.resume_without_checkpoint()
    reports = ReportOptions(
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        callback=callback,
        verbose=verbose,
    )
    job = prepare(model, x, y, p0, inputs, options)
    if dry_run:
        return plan_of(job, dry_run)
    return run(job, reports)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"
