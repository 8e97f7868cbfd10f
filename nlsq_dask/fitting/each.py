"""Fits of many series: check the arguments, and run all fits or make them lazy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.checks import (
    checked_choice,
    checked_count,
    checked_gigabytes,
    checked_retries,
    checked_tolerance,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.process import check_not_forked
from nlsq_dask.core.resources import available_cores
from nlsq_dask.core.solver_state import EVALUATIONS_PER_PARAMETER
from nlsq_dask.core.structure import model_input
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.fit_block import fit_in_threads
from nlsq_dask.engines.series import Role, SeriesProblem
from nlsq_dask.fitting.choose_strategy import bits_of_process
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.fitting.series_parameters import SeriesParameters, series_parameters
from nlsq_dask.fitting.series_reading import SeriesReading, lazy_answer_of, reading_of
from nlsq_dask.fitting.source import opened_data
from nlsq_dask.io.finite import is_deviation
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.reused_memory import memory_of_process, reusing
from nlsq_dask.io.series import SeriesAxes
from nlsq_dask.io.sources import is_dask
from nlsq_dask.kernels.derivatives import model_eps
from nlsq_dask.kernels.devices import DeviceArgument, checked_device
from nlsq_dask.models.base import Model
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.row_wise import row_dependence

logger = logging.getLogger("nlsq_dask")

# A series has arrived at this distance from its optimum, in standard errors. The last step then
# leaves less than 1e-3 of a standard error, and costs half an evaluation more than 1e-3 would.
SERIES_STAT_TOL = 1e-4

# Second chances of a series.
REFINEMENTS = (None, "neighbours")

# What happens to chunks that are not in a Zarr store.
MISSING_CHUNKS_OF_SERIES = ("warn", "raise", "fill")


@dataclass(frozen=True, kw_only=True)
class EachOptions:
    """What the caller of ``fit_each`` says about how the fits are run; see there."""

    stat_tol: Any = SERIES_STAT_TOL
    max_nfev: int | None = None
    covariance: bool = False
    device: DeviceArgument = None
    memory_limit_gb: Any = None
    retries: Any = 3
    refine: Any = None
    store: Any = None


@dataclass(frozen=True, kw_only=True)
class OneSeries:
    """One series as arguments of :func:`nlsq_dask.fit`.

    Attributes
    ----------
    x, y, sigma, mask : object
    start : ndarray, shape (p,), float64
        NaN where there is no start.
    bounds : dict
    fixed : dict
    """

    x: Any
    y: Any
    sigma: Any
    mask: Any
    start: FloatArray
    bounds: Mapping[str, tuple[float, float]]
    fixed: Mapping[str, float]

    @classmethod
    def of(cls, found: Mapping[tuple[str, int], Any], job: EachJob) -> OneSeries:
        """The arguments, from the arrays and numbers of a series by kind and index."""
        problem, names = job.problem, job.parameters.names

        def numbers(kind: str, values: FloatArray) -> FloatArray:
            own = np.array(values)
            for (name, index), value in found.items():
                if name == kind:
                    own[index] = value
            return own

        coords = tuple(found["x", i] for i in range(problem.spec.n_coords))
        masks = [value for (name, _), value in found.items() if name == "mask"]
        lower, upper = numbers("lower", problem.lower), numbers("upper", problem.upper)
        offset = numbers("fixed", problem.reduction.offset)
        held = problem.reduction.is_fixed
        return cls(
            x=model_input(problem.spec.structure, coords, np.stack),
            y=found["y", 0],
            sigma=found.get(("sigma", 0)),
            mask=np.any(masks, axis=0) if masks else None,
            start=numbers("p0", problem.start),
            bounds={
                name: (float(low), float(high))
                for name, low, high in zip(names, lower, upper, strict=True)
                if np.isfinite([low, high]).any()
            },
            fixed={name: float(offset[i]) for i, name in enumerate(names) if held[i]},
        )


@dataclass(frozen=True, kw_only=True)
class EachJob:
    """The fits of many series, with checked arguments.

    Attributes
    ----------
    problem : SeriesProblem
    arrays : tuple of array
        Arrays of NumPy or Dask, as ``problem.roles`` says, each with the axes of y.
    data : Observations
    axes : SeriesAxes
    frame : Frame or None
        Labels of the map.
    parameters : SeriesParameters
    model : callable
        As the caller passed it.
    ties : object
        As the caller passed them.
    memory_limit_gb : float or None
        Memory of this process, or of each worker.
    retries : int
        Most times that a failed reading is tried again.
    missing_chunks : {"warn", "raise", "fill"}
        What happens to chunks that are not in a Zarr store.
    """

    problem: SeriesProblem
    arrays: tuple[Array, ...]
    data: Observations
    axes: SeriesAxes
    frame: Frame | None
    parameters: SeriesParameters
    model: Callable[..., Any]
    ties: Any
    memory_limit_gb: float | None = None
    retries: int = 3
    missing_chunks: str = "warn"

    @property
    def lazy(self) -> bool:
        """Whether any array is a Dask array."""
        return any(map(is_dask, self.arrays))

    def block(self, index: tuple[int, ...]) -> list[NDArray[Any]]:
        """The arrays of one series, with the axes of y, read into memory.

        Parameters
        ----------
        index : tuple of int
            An index for each axis of the map.
        """
        at = dict(zip(self.axes.map, index, strict=True))
        found = []
        for array in self.arrays:
            first = [min(at.get(d, 0), n - 1) for d, n in enumerate(array.shape)]
            cut = array[
                tuple(slice(i, i + 1) if d in at else slice(None) for d, i in enumerate(first))
            ]
            found.append(cut.compute() if is_dask(cut) else cut)
        return found

    def series(self, index: tuple[int, ...]) -> OneSeries:
        """The arguments of one series, read into memory.

        Parameters
        ----------
        index : tuple of int
            An index for each axis of the map.
        """
        axes, problem = self.axes, self.problem
        found: dict[tuple[str, int], Any] = {}
        for role, array in zip(problem.roles, self.block(index), strict=True):
            values = array.reshape([n for d, n in enumerate(array.shape) if d in axes.fit])
            order = np.argsort(np.argsort(axes.fit))
            turned = np.ma.asanyarray(values).transpose(np.argsort(order))
            if role.kind in ("y", "x", "sigma", "mask"):
                found[role.kind, role.index] = np.broadcast_to(
                    turned, axes.fit_shape, subok=True
                ).ravel()
            else:
                found[role.kind, role.index] = float(turned.ravel()[0])
        return OneSeries.of(found, self)


def prepare_each(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: Any,
    dim: Any,
    inputs: InputOptions,
    options: EachOptions,
) -> EachJob:
    """Check the arguments of the fits of many series; see :func:`nlsq_dask.fit_each`."""
    check_not_forked()
    opened = opened_data(x, y, inputs, options.store)
    y = opened.y
    axes = SeriesAxes.of(y, opened.x, dim)
    data = opened.observed(axes, chosen=dim is not None, deviations=False)
    _check_common_sigma(data, axes)
    parameters = series_parameters(
        model, axes, y, p0=p0, bounds=inputs.bounds, fixed=inputs.fixed, ties=inputs.ties
    )
    roles, arrays = _operands(data, parameters, axes)
    problem = _problem(model, data, axes, parameters, roles, inputs, options)
    job = EachJob(
        problem=problem,
        arrays=arrays,
        data=data,
        axes=axes,
        frame=axes.map_frame(y),
        parameters=parameters,
        model=model,
        ties=inputs.ties,
        memory_limit_gb=None
        if options.memory_limit_gb is None
        else checked_gigabytes("memory_limit_gb", options.memory_limit_gb),
        retries=checked_retries(options.retries),
        missing_chunks=checked_choice(
            "missing_chunks", inputs.missing_chunks, MISSING_CHUNKS_OF_SERIES
        ),
    )
    logger.info(
        "%d series of %d rows, %d parameters",
        int(np.prod(axes.map_shape)),
        axes.n_rows,
        len(parameters.names),
    )
    return job


def packed_answer(job: EachJob, reading: SeriesReading | None) -> Any:
    """The packed answer (k, ...): an array of NumPy, or of Dask for lazy data."""
    if reading is None:
        with reusing(memory_of_process()):
            return fit_in_threads(job.problem, job.arrays, available_cores())
    return lazy_answer_of(job.problem, job.arrays, reading, job.retries)


def series_reading(job: EachJob, executor: Executor) -> SeriesReading | None:
    """How the series of lazy data are read; None for data in memory."""
    if not job.lazy:
        return None
    return reading_of(job.problem, job.arrays, job.memory_limit_gb, executor)


def _check_common_sigma(data: Observations, axes: SeriesAxes) -> None:
    """Refuse standard deviations that no series can use."""
    sigma = data.sigma
    if sigma is None or is_dask(sigma) or any(sigma.shape[d] > 1 for d in axes.map):
        return
    bad = ~is_deviation(sigma) & ~np.isnan(sigma)
    if bad.any():
        raise _errors.sigma_no_deviation(int(bad.sum()), float(sigma[bad][0]))


def _operands(
    data: Observations, parameters: SeriesParameters, axes: SeriesAxes
) -> tuple[tuple[Role, ...], tuple[Array, ...]]:
    """The arrays of all blocks, and what they are."""
    named: dict[tuple[str, int], Array] = {("y", 0): data.y}
    named |= {("x", i): c for i, c in enumerate(data.coords)}
    if data.sigma is not None:
        named["sigma", 0] = data.sigma
    named |= {("mask", i): m for i, m in enumerate(data.masks)}
    named |= dict(parameters.maps)

    def varies(array: Array, own: tuple[int, ...]) -> bool:
        return array is data.y or any(array.shape[d] > 1 for d in own)

    roles = tuple(
        Role(kind, index, along=varies(array, axes.fit), varies=varies(array, axes.map))
        for (kind, index), array in named.items()
    )
    return roles, tuple(named.values())


def _problem(
    model: Callable[..., Any],
    data: Observations,
    axes: SeriesAxes,
    parameters: SeriesParameters,
    roles: tuple[Role, ...],
    inputs: InputOptions,
    options: EachOptions,
) -> SeriesProblem:
    names, reduction = parameters.names, parameters.reduction
    spec = prepare_model(model, names, data.structure, len(data.coords), axes.n_rows)
    at = np.where(np.isnan(parameters.start), 1.0, parameters.start)
    row_wise = row_dependence(spec, at, None, axes.n_rows) is None
    size = len(reduction.names)
    tolerance = checked_tolerance("stat_tol", options.stat_tol)
    if not tolerance:
        raise _errors.stat_tol_needed(options.stat_tol)
    if options.refine not in REFINEMENTS:
        raise _errors.unknown_choice("refine", options.refine, REFINEMENTS)
    given = options.max_nfev
    most = EVALUATIONS_PER_PARAMETER * size if given is None else checked_count("max_nfev", given)
    device = checked_device(options.device)
    return SeriesProblem(
        spec=spec,
        reduction=reduction,
        row_wise=row_wise,
        roles=roles,
        fit_axes=axes.fit,
        map_axes=axes.map,
        start=parameters.start,
        lower=parameters.lower,
        upper=parameters.upper,
        carried=parameters.carried,
        guess=model if isinstance(model, Model) else None,
        rule=data.rule,
        absolute_sigma=bool(inputs.absolute_sigma),
        stat_tol=tolerance,
        max_nfev=most,
        eps=model_eps(spec, axes.n_rows),
        covariance=bool(options.covariance),
        device=device,
        refine=options.refine,
        vector_bits=bits_of_process(device),
    )
