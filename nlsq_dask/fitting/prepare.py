"""From the arguments of a fit to a job: everything is checked and decided, nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.bounds import normalize_bounds
from nlsq_dask.core.constraints import (
    Reduction,
    reduce_bounds,
    reduce_parameters,
    reduce_start,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import SolverOptions
from nlsq_dask.core.workflow import Machine, Problem, WorkflowPlan, plan_workflow
from nlsq_dask.fitting.job import Job, Source, logger, stream_of
from nlsq_dask.io.correlation import factor_covariance, split_sigma
from nlsq_dask.io.sources import Observations, is_dask, observe
from nlsq_dask.kernels.compiled import find_device
from nlsq_dask.kernels.derivatives import model_eps
from nlsq_dask.user_model.called_back import RowsModel
from nlsq_dask.user_model.model import prepare_jacobian, prepare_loss, prepare_model
from nlsq_dask.user_model.model_spec import ModelSpec
from nlsq_dask.user_model.row_wise import row_dependence
from nlsq_dask.user_model.signature import parameter_names

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask.cache import CacheChoice
    from nlsq_dask.engines.dask.groups import StreamPlan

# Rows of data in memory that are shown to the model to see whether it works row by row.
SAMPLE_ROWS = 64

# Rows up to which the model is first tried on as many rows as there are. Nothing is computed in a
# trial, but a careless model may allocate.
MAX_TRIAL_ROWS = 100_000_000

# Finite differences of SciPy. Derivatives are exact here, which is what these estimate.
DIFFERENCES = ("2-point", "3-point", "cs")

# Rows from which on a pilot pays: of streamed data, where a pass also costs its tasks, and in
# memory, where a pass over so many rows takes as long as a pilot.
PILOT_ROWS_STREAMED = 100_000
PILOT_ROWS_IN_MEMORY = 500_000

# Standard errors from the optimum that count as none; for streamed data also those at which another
# pass is not worth its time.
STAT_TOL = 0.01

# The same where the caller asks for SciPy's criteria alone.
LOOSE_STAT_TOL = 0.1

# Rows of a row-wise model that are traced to find its types of float.
PRECISION_ROWS = 4


@dataclass(frozen=True)
class Wishes:
    """What the caller of ``fit`` says about how it is to be run; see there.

    ``tolerances`` holds only those that were given.
    """

    workflow: str | None
    goal: Any
    strategy: str
    n_starts: int | None
    tolerances: Mapping[str, float | None]
    seed: int
    pilot: bool | None
    stat_tol: Any
    method: str
    max_nfev: int | None
    x_scale: Any
    memory_limit_gb: float | None
    client: Client | None
    device: str | None
    cache: CacheChoice = "auto"


@dataclass(frozen=True)
class Given:
    """What the caller of ``fit`` says of the data and the residuals; see there."""

    sigma: Any = None
    absolute_sigma: bool = False
    mask: Any = None
    nan_policy: Any = "raise"
    fill_value: Any = None
    bounds: Any = (-np.inf, np.inf)
    fixed: Mapping[str, float] | None = None
    ties: Any = None
    loss: Any = "linear"
    f_scale: Any = 1.0
    jac: Any = None


def prepare(
    model: Callable[..., Any], x: Any, y: Any, p0: Any, given: Given, wishes: Wishes
) -> Job:
    """Check the arguments of a fit and decide how it is run; see :func:`nlsq_dask.fit`."""
    return prepare_on(open_source(x, y, given), model, p0, given, wishes)


def open_source(x: Any, y: Any, given: Given) -> Source:
    """Check the data of a fit, without reading them."""
    sigma, correlated = split_sigma(given.sigma, y)
    data = observe(
        x,
        y,
        sigma,
        mask=given.mask,
        nan_policy=given.nan_policy,
        fill_value=given.fill_value,
    )
    return Source(data, correlated)


def prepare_on(
    source: Source, model: Callable[..., Any], p0: Any, given: Given, wishes: Wishes
) -> Job:
    """Decide how a model is fitted to data that were checked already."""
    if wishes.client is not None and not hasattr(wishes.client, "scheduler"):
        raise _errors.not_a_client(wishes.client)
    data, correlated = source.data, source.correlated
    # By name, p0 says which parameters there are only through the model's signature.
    count = None if p0 is None or isinstance(p0, Mapping) else int(np.size(p0))
    names = parameter_names(model, count)
    reduction = reduce_parameters(names, given.fixed, given.ties)
    lower, upper = reduce_bounds(reduction, names, *normalize_bounds(given.bounds, names))
    if wishes.method == "lm" and np.isfinite([lower, upper]).any():
        raise _errors.lm_bounded()
    start = reduce_start(reduction, p0, names, lower, upper)
    if data.n_rows < start.size:
        raise _errors.too_few_rows(start.size, data.n_rows)
    spec = _spec(model, names, data, given, correlated)
    spec = replace(spec, constant=tuple(np.flatnonzero(reduction.is_fixed).tolist()))
    if wishes.method == "lm" and not spec.loss.is_linear:
        raise _errors.lm_with_loss(spec.loss.name)
    dependence = None
    several_axes = sum(size > 1 for size in data.y.shape) > 1
    if correlated is None or several_axes:
        dependence = _dependence(spec, reduction.expand(start), data)
    if dependence is not None and several_axes and not data.lazy:
        raise _errors.not_row_wise_in_several_dimensions(dependence, data.y.shape)
    row_wise = dependence is None and correlated is None
    client, stream = None, None
    if data.lazy:
        client, stream = _active_client(wishes.client), source.stream
    plan = _plan(data, len(reduction.names), row_wise, wishes, client, stream)
    if not row_wise and plan.strategy != "standard":
        if spec.whole is not None:
            raise _errors.untraceable_loop(spec.label, "")
        raise _errors.not_row_wise(dependence) if dependence else _errors.covariance_in_parts()
    if plan.strategy == "streaming" and stream is None:
        # Data in memory stay there, unless a cluster is named for them: sent to the active one
        # they would be in memory once more.
        client, stream = wishes.client, stream_of(data, plan.config)
    options = _options(plan, wishes, reduction, given.absolute_sigma)
    traced = PRECISION_ROWS if row_wise else _n_rows(data)
    options = replace(options, model_eps=model_eps(spec, traced))
    logger.info("%d rows, %d parameters: %s", data.n_rows, len(names), plan.summary)
    return Job(
        data,
        spec,
        row_wise,
        reduction,
        start,
        lower,
        upper,
        given.absolute_sigma,
        plan,
        options,
        stream,
        client,
        wishes.device,
        getattr(model, "guess", None) if p0 is None else None,
        wishes.seed,
        _pilots(data, plan, row_wise, _checked_pilot(wishes.pilot)),
        _checked_cache(wishes.cache),
    )


def _spec(
    model: Callable[..., Any],
    names: Sequence[str],
    data: Observations,
    given: Given,
    correlated: Any,
) -> ModelSpec:
    """The model with all that its residuals are made by."""
    # A model that takes all rows at once may accept no other number of them.
    rows = _n_rows(data) if data.n_rows <= MAX_TRIAL_ROWS else None
    spec = _traced_or_called(model, names, data, given.bounds, rows)
    jacobian = None
    if callable(given.jac):
        jacobian = prepare_jacobian(given.jac, spec, rows)
    elif given.jac is not None and not (isinstance(given.jac, str) and given.jac in DIFFERENCES):
        raise _errors.jac_unknown(given.jac, DIFFERENCES)
    cholesky = None if correlated is None else factor_covariance(correlated, data)
    loss = prepare_loss(given.loss, given.f_scale)
    return replace(spec, jacobian=jacobian, loss=loss, cholesky=cholesky)


def _n_rows(data: Observations) -> int:
    """Rows that the model is called with, as far as these are known without reading."""
    return data.count_rows() if data.selects and not data.lazy else data.n_rows


def _traced_or_called(
    model: Callable[..., Any],
    names: Sequence[str],
    data: Observations,
    bounds: Any,
    rows: int | None,
) -> ModelSpec:
    """The model, traced; or called as it is where it loops over the rows of data in memory."""
    try:
        return prepare_model(model, names, data.structure, len(data.coords), rows)
    except _errors.RowLoopError as error:
        if data.lazy:
            raise
        logger.info("the model is called as it is, without JAX: %s", error)
        called = RowsModel(model, *normalize_bounds(bounds, names))
        spec = prepare_model(called, names, data.structure, len(data.coords), rows)
        return replace(spec, whole="loops over the rows in Python")


def _dependence(spec: ModelSpec, at: FloatArray, data: Observations) -> str | None:
    """What a model's value at a row depends on beside that row, if anything."""
    if data.lazy:
        return row_dependence(spec, at)
    return row_dependence(spec, at, lambda: data.thinned(SAMPLE_ROWS).coords, data.n_rows)


def _pilots(data: Observations, plan: WorkflowPlan, row_wise: bool, wanted: bool | None) -> bool:
    """Whether to fit a sample first. Rows that depend on each other cannot be sampled."""
    streaming = plan.strategy == "streaming"
    if not row_wise:
        return False
    if streaming and plan.n_starts > 1:  # several starts on all rows would read them for each
        return True
    if wanted is None:
        return data.n_rows >= (PILOT_ROWS_STREAMED if streaming else PILOT_ROWS_IN_MEMORY)
    return wanted


def _checked_pilot(pilot: Any) -> bool | None:
    if pilot is None or isinstance(pilot, bool):
        return pilot
    raise _errors.unknown_choice("pilot", pilot, (None, True, False))


def _checked_cache(cache: Any) -> CacheChoice:
    if isinstance(cache, bool) or (isinstance(cache, str) and cache == "auto"):
        return cache  # type: ignore[return-value]
    raise _errors.unknown_choice("cache", cache, ("auto", True, False))


def _options(
    plan: WorkflowPlan, wishes: Wishes, reduction: Reduction, absolute_sigma: bool
) -> SolverOptions:
    stat_tol = wishes.stat_tol
    arrival_tol = LOOSE_STAT_TOL if stat_tol is None else stat_tol
    if isinstance(stat_tol, str):
        if stat_tol != "auto":
            raise _errors.unknown_choice("stat_tol", stat_tol, ("auto",))
        stat_tol, arrival_tol = STAT_TOL if plan.strategy == "streaming" else None, STAT_TOL
    return SolverOptions(
        ftol=plan.tolerances["ftol"],
        xtol=plan.tolerances["xtol"],
        gtol=plan.tolerances["gtol"],
        arrival_tol=arrival_tol,
        max_nfev=wishes.max_nfev,
        x_scale=_sizes(wishes.x_scale, reduction),
        method=wishes.method,  # type: ignore[arg-type]
        stat_tol=stat_tol,
        residual_variance=1.0 if absolute_sigma else None,
        scores=False,  # asked for by the search on all rows alone
    )


def _active_client(wanted: Client | None) -> Client | None:
    from nlsq_dask.engines.dask.scheduler import active_client  # an engine, loaded for use

    return active_client(wanted)


def _plan(
    data: Observations,
    n_params: int,
    row_wise: bool,
    wishes: Wishes,
    client: Client | None,
    stream: StreamPlan | None,
) -> WorkflowPlan:
    worker, threads = None, None
    if client is not None:
        from nlsq_dask.engines.dask.cluster import smallest_worker  # an engine, loaded for use

        worker = smallest_worker(client)
    elif data.lazy:
        from nlsq_dask.engines.dask.scheduler import local_threads  # an engine, loaded for use

        threads = local_threads()
    on_gpu = client is None and find_device(wishes.device).platform != "cpu"
    chunk, piece_bytes, held_bytes = None, 0, 0
    if stream is not None:
        chunk = _largest_chunk(data, stream)
        piece_bytes, held_bytes = stream.piece_bytes, stream.held_bytes
    return plan_workflow(
        Problem(
            data.n_rows,
            n_params,
            len(data.coords),
            lazy=data.lazy,
            row_wise=row_wise,
            broadcasts=not data.flat,
            chunks=chunk,
            chunk_bytes=piece_bytes,
            held_bytes=held_bytes,
        ),
        Machine(wishes.memory_limit_gb, use_gpu=on_gpu, threads=threads, worker=worker),
        wishes.workflow,
        wishes.goal,
        strategy=wishes.strategy,
        n_starts=wishes.n_starts,
        tolerances=wishes.tolerances,
    )


def _largest_chunk(data: Observations, stream: StreamPlan) -> tuple[int, ...]:
    """Shape of what a thread reads at a time, at most.

    Where the arrays' chunks differ, blocks are cut from chunks that are larger than they are.
    """
    full = (a for a in data.operands if is_dask(a) and a.shape == data.y.shape)
    grids = [stream.chunks, *(a.chunks for a in full)]
    return tuple(max(map(max, cuts)) for cuts in zip(*grids, strict=True))


def _sizes(x_scale: Any, reduction: Reduction) -> Any:
    """Characteristic sizes of the free parameters."""
    if isinstance(x_scale, str):
        return x_scale
    try:
        sizes = np.asarray(x_scale, dtype=np.float64)
    except (TypeError, ValueError):
        raise _errors.x_scale_invalid(x_scale) from None
    if sizes.shape == reduction.offset.shape and reduction.leaders is not None:
        return sizes[list(reduction.leaders)]
    return sizes
