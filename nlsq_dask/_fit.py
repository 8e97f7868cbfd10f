"""``fit``: the one place that knows every layer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._progress import ProgressLine
from nlsq_dask._result import FitResult
from nlsq_dask.core.bounds import normalize_bounds, normalize_p0
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.trf import TrfOptions, TrfSolution, minimize
from nlsq_dask.engines.in_memory import (
    InMemoryEvaluator,
    chunked_evaluator,
    standard_evaluator,
)
from nlsq_dask.io.sources import Observations, finite_problem, observe
from nlsq_dask.kernels.model import ModelSpec, parameter_names, prepare_model
from nlsq_dask.kernels.rows import row_dependence

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask import DaskEvaluator

Strategy = Literal["standard", "chunked", "streaming"]

# Rows of data in memory that are shown to the model to see whether it works row by row.
SAMPLE_ROWS = 64

logger = logging.getLogger("nlsq_dask")


def fit(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: Sequence[float] | Mapping[str, float] | None = None,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = (-np.inf, np.inf),
    x_scale: Any = "jac",
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    max_nfev: int | None = None,
    strategy: Literal["auto", "standard", "chunked", "streaming"] = "auto",
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
    ftol, xtol, gtol : float or None
        Tolerances for termination by the change of the cost, of the parameters, and by the norm of
        the gradient, as in ``scipy.optimize.least_squares``.
    max_nfev : int, optional
        Most evaluations of the model; 100 p by default.
    strategy : {"auto", "standard", "chunked", "streaming"}
        Where the rows are between passes. "standard": in memory, ready for the kernel. "chunked":
        in memory as they were passed, prepared piece by piece in every pass. "streaming": read by
        Dask tasks in every pass. "auto": streaming for Dask and Zarr arrays, else chunked where
        coordinates broadcast, else standard. All minimise the same sum.
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
    data = observe(x, y, sigma)
    # By name, p0 says which parameters there are only through the model's signature.
    count = None if p0 is None or isinstance(p0, Mapping) else int(np.size(p0))
    names = parameter_names(model, count)
    lower, upper = normalize_bounds(bounds, names)
    start = normalize_p0(p0, names, lower, upper)
    options = TrfOptions(ftol, xtol, gtol, max_nfev, _scale(x_scale))
    # A model that takes all rows at once may accept no other number of them.
    trial_rows = {} if data.lazy else {"n_rows": data.n_rows}
    spec = prepare_model(model, names, data.structure, len(data.coords), **trial_rows)
    chosen, row_wise = _choose(strategy, data, spec, start)
    logger.info("fit of %d rows, %d parameters: %s", data.n_rows, len(names), chosen)
    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(progress if chosen == "streaming" else False))
        evaluator = _evaluator(chosen, data, spec, row_wise, client, device, line)
        stack.enter_context(evaluator)
        try:
            solution = minimize(evaluator, start, lower, upper, options, line.iteration)
        except _errors.StartNotFiniteError as error:
            raise finite_problem(data) or error from None
        n_passes = evaluator.n_passes
    return _result(names, solution, n_passes, chosen, absolute_sigma)


def _scale(x_scale: Any) -> Any:
    return x_scale if isinstance(x_scale, str) else np.asarray(x_scale, dtype=np.float64)


def _choose(
    strategy: str, data: Observations, spec: ModelSpec, start: FloatArray
) -> tuple[Strategy, bool]:
    """Strategy, and whether the model works row by row, which two of the three need."""
    if strategy not in ("auto", *get_args(Strategy)):
        raise _errors.unknown_choice("strategy", strategy, ("auto", *get_args(Strategy)))
    if data.lazy and strategy in ("standard", "chunked"):
        raise _errors.lazy_data_in_memory(strategy)
    sample = None if data.lazy else _sample(data)
    dependence = row_dependence(spec, start, sample)
    if strategy == "streaming" or data.lazy:
        if dependence is not None:
            raise _errors.not_row_wise(spec.label, dependence)
        return "streaming", True
    if dependence is not None:
        if strategy == "chunked":
            raise _errors.not_row_wise(spec.label, dependence)
        return "standard", False
    if strategy == "auto" and not data.flat:
        return "chunked", True
    return ("chunked" if strategy == "chunked" else "standard"), True


def _sample(data: Observations) -> tuple[FloatArray, ...]:
    """Coordinates of a few rows spread over data in memory."""
    rows = np.unique(np.linspace(0, data.n_rows - 1, SAMPLE_ROWS).astype(np.intp))
    index = np.unravel_index(rows, data.y.shape)
    return tuple(
        np.asarray(np.broadcast_to(c, data.y.shape)[index], np.float64) for c in data.coords
    )


def _evaluator(
    strategy: Strategy,
    data: Observations,
    spec: ModelSpec,
    row_wise: bool,
    client: Client | None,
    device: str | None,
    line: ProgressLine,
) -> InMemoryEvaluator[Any] | DaskEvaluator:
    if strategy == "standard":
        return standard_evaluator(data, spec, device, row_wise)
    if strategy == "chunked":
        return chunked_evaluator(data, spec, device)
    from nlsq_dask.engines.dask import DaskEvaluator, active_client  # an engine, loaded for use

    return DaskEvaluator(data, spec, device, active_client(client), line.blocks)


def _result(
    names: tuple[str, ...],
    solution: TrfSolution,
    n_passes: int,
    strategy: Strategy,
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
        names=names,
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
        strategy=strategy,
        history=solution.history,
    )
