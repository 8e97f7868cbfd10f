"""Prepare a job: check the arguments of a fit, and decide its course, without reading data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.bounds import normalize_bounds
from nlsq_dask.core.checks import checked_choice
from nlsq_dask.core.solver_state import SolverOptions
from nlsq_dask.core.structure import Series
from nlsq_dask.core.workflow import WorkflowPlan
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.fitting.choose_strategy import bits_for, chosen_strategy
from nlsq_dask.fitting.collapse import checked_collapse, collapsed
from nlsq_dask.fitting.free_parameters import (
    FreeParameters,
    free_parameters,
    sizes_of,
    without_units,
)
from nlsq_dask.fitting.job import Job, Source, logger
from nlsq_dask.fitting.missing_chunks import MISSING_CHUNKS
from nlsq_dask.fitting.options import InputOptions, RunOptions
from nlsq_dask.fitting.source import open_source
from nlsq_dask.fitting.strategy import Standard
from nlsq_dask.io.correlation import factor_covariance
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.derivatives import model_eps
from nlsq_dask.user_model.called_back import RowsModel
from nlsq_dask.user_model.model import prepare_jacobian, prepare_loss, prepare_model
from nlsq_dask.user_model.model_spec import ModelSpec
from nlsq_dask.user_model.row_wise import row_dependence

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.cache import CacheChoice

# Rows of data in memory on which the model is tried, to see whether the model is row-wise.
SHOWN_ROWS = 64

# The model is first traced with the number of rows of the data, up to this number. A trace computes
# nothing, but a careless model may allocate arrays.
MOST_TRACED_ROWS = 100_000_000

# SciPy's names of difference schemes. They are accepted, but derivatives are exact.
DIFFERENCES = ("2-point", "3-point", "cs")

# Least number of rows for which a pilot pays. A pass over streamed data costs tasks, too. In memory
# a pass over so many rows takes as long as a pilot.
PILOT_ROWS_STREAMED = 100_000

PILOT_ROWS_IN_MEMORY = 500_000

# A fit has arrived at a distance of this many standard errors from the optimum. For streamed data
# another pass is then not worth its time.
STAT_TOL = 0.01

# The same for callers who ask for SciPy's criteria alone.
LOOSE_STAT_TOL = 0.1

# What happens to a block that cannot be read.
ON_ERROR = ("raise", "omit")

# Rows with which a row-wise model is traced to find its float types.
PRECISION_ROWS = 4


def prepare(
    model: Callable[..., Any], x: Any, y: Any, p0: Any, inputs: InputOptions, options: RunOptions
) -> Job:
    """Check the arguments of a fit and decide how the fit is run; see :func:`nlsq_dask.fit`."""
    return prepare_on(open_source(x, y, inputs), model, p0, inputs, options)


def prepare_on(
    source: Source, model: Callable[..., Any], p0: Any, inputs: InputOptions, options: RunOptions
) -> Job:
    """Decide how a model is fitted to data that are checked already."""
    data = source.data
    executor = executor_of(options.client, lazy=data.lazy)
    executor.check()
    bare = without_units(model, p0, inputs)
    inputs = bare.inputs
    free = free_parameters(bare, options.method)
    if data.n_rows < free.start.size:
        raise _errors.too_few_rows(free.start.size, data.n_rows)
    spec = _spec(model, free.names, data, inputs, source.correlated)
    if options.method == "lm" and not spec.loss.is_linear:
        raise _errors.lm_with_loss(spec.loss.name)
    if not free.reduction.is_identity:
        spec = replace(spec, constant=tuple(np.flatnonzero(free.reduction.is_fixed).tolist()))
    dependence = _checked_dependence(spec, free, source)
    source, spec = _in_series(source, spec, dependence)
    data, in_series = source.data, spec.series is not None
    row_wise = (dependence is None or in_series) and source.correlated is None
    n_params = len(free.reduction.names)
    plan, strategy = chosen_strategy(source, n_params, row_wise, options, executor)
    if not row_wise and not isinstance(strategy, Standard):
        if spec.whole is not None:
            raise _errors.untraceable_loop(spec.label, "")
        raise _errors.not_row_wise(dependence) if dependence else _errors.covariance_in_parts()
    traced = PRECISION_ROWS if row_wise and not in_series else _n_rows(data)
    solver_options = _solver_options(
        plan,
        options,
        x_scale=sizes_of(options.x_scale, free.reduction, free.names),
        model_eps=model_eps(spec, traced),
        residual_variance=1.0 if inputs.absolute_sigma else None,
    )
    if logger.isEnabledFor(logging.INFO):
        logger.info("%d rows, %d parameters: %s", data.n_rows, len(free.names), plan.summary)
    job = Job(
        data=data,
        spec=spec,
        row_wise=row_wise,
        reduction=free.reduction,
        start=free.start,
        lower=free.lower,
        upper=free.upper,
        absolute_sigma=inputs.absolute_sigma,
        plan=plan,
        options=solver_options,
        strategy=strategy,
        device=options.device,
        guess=getattr(model, "guess", None) if bare.p0 is None else None,
        seed=options.seed,
        pilot=_has_pilot(data, plan, row_wise and not in_series, _checked_pilot(options.pilot)),
        cache=_checked_cache(options.cache),
        retries=options.retries,
        on_error=checked_choice("on_error", options.on_error, ON_ERROR),
        missing_chunks=checked_choice("missing_chunks", inputs.missing_chunks, MISSING_CHUNKS),
        diagnostics=options.diagnostics,
        param_units=bare.units,
        checkpoint_options=source.checkpoint_options,
        vector_bits=bits_for(strategy, options.device),
    )
    if options.diagnostics and options.collapse == "auto":
        return job  # means of many blocks tell nothing of one
    choice, is_auto = checked_collapse(options.collapse), isinstance(options.stat_tol, str)
    return collapsed(job, choice, stat_tol_is_auto=is_auto)


def _in_series(source: Source, spec: ModelSpec, dependence: str | None) -> tuple[Source, ModelSpec]:
    """Let a model that mixes the rows of a series take whole series, where rows form series."""
    data = source.data
    if dependence is None or source.correlated is not None:
        if data.series_axes:
            source = replace(source, data=replace(data, series_axes=()))
        return source, spec
    if data.series_axes:
        spec = spec.in_series(Series(data.series_rows, data.series_axes))
    return source, spec


def _checked_dependence(spec: ModelSpec, free: FreeParameters, source: Source) -> str | None:
    """Describe what a value depends on beside its row; None for a row-wise model.

    Correlated rows of one dimension are evaluated together anyway.
    """
    data = source.data
    several_axes = sum(size > 1 for size in data.y.shape) > 1
    if source.correlated is not None and not several_axes:
        return None
    at = free.reduction.expand(free.start)
    if data.lazy:
        dependence = row_dependence(spec, at)
    else:
        n_rows = data.series_rows if data.series_axes else data.n_rows
        dependence = row_dependence(spec, at, lambda: data.thinned(SHOWN_ROWS).coords, n_rows)
    if dependence is not None and several_axes and not data.lazy and not data.series_axes:
        raise _errors.not_row_wise_in_several_dimensions(dependence, data.y.shape)
    return dependence


def _spec(
    model: Callable[..., Any],
    names: Sequence[str],
    data: Observations,
    inputs: InputOptions,
    correlated: Any,
) -> ModelSpec:
    """The model, with its Jacobian, loss and covariance."""
    # A model that takes all rows at once may accept no other number of rows.
    rows = _n_rows(data) if data.series_axes or data.n_rows <= MOST_TRACED_ROWS else None
    spec = _traced_or_called(model, names, data, inputs.bounds, rows)
    jacobian = None
    if callable(inputs.jac):
        jacobian = prepare_jacobian(inputs.jac, spec, rows)
    elif inputs.jac is not None and not (isinstance(inputs.jac, str) and inputs.jac in DIFFERENCES):
        raise _errors.jac_unknown(inputs.jac, DIFFERENCES)
    cholesky = None if correlated is None else factor_covariance(correlated, data)
    loss = prepare_loss(inputs.loss, inputs.f_scale)
    if jacobian is None and cholesky is None and loss == spec.loss:
        return spec
    return replace(spec, jacobian=jacobian, loss=loss, cholesky=cholesky)


def _n_rows(data: Observations) -> int:
    """Rows that the model is called with, as far as known without reading."""
    if data.series_axes:
        return data.series_rows
    return data.count_rows() if data.selects and not data.lazy else data.n_rows


def _traced_or_called(
    model: Callable[..., Any],
    names: Sequence[str],
    data: Observations,
    bounds: Any,
    rows: int | None,
) -> ModelSpec:
    """Trace the model. A model that loops over rows of data in memory is called as it is."""
    try:
        return prepare_model(model, names, data.structure, len(data.coords), rows)
    except _errors.RowLoopError as error:
        if data.lazy or data.series_axes:
            raise
        logger.info("the model is called as it is, without JAX: %s", error)
        called = RowsModel(model, *normalize_bounds(bounds, names))
        spec = prepare_model(called, names, data.structure, len(data.coords), rows)
        return replace(spec, whole="loops over the rows in Python")


def _has_pilot(data: Observations, plan: WorkflowPlan, row_wise: bool, wanted: bool | None) -> bool:
    """Whether to fit a sample first. Rows that depend on each other are not sampled."""
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


def _solver_options(plan: WorkflowPlan, options: RunOptions, **others: Any) -> SolverOptions:
    """Tolerances and method of the search, with other options of the solver."""
    stat_tol = options.stat_tol
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
        max_nfev=options.max_nfev,
        method=options.method,  # type: ignore[arg-type]
        stat_tol=stat_tol,
        scores=False,  # asked for by the search on all rows alone
        **others,
    )
