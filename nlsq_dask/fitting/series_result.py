"""The answer of one series of a map as an ordinary result, where a fit of it alone gives none.

A map has a status for each series. :func:`nlsq_dask.fit` refuses some of these series with an
error: series without rows, with infinite values, or with values too large or too small for squares
in float64. A fit of a series alone may also end in another way than in the map. For all these
series the result is made of the numbers of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nlsq_dask._errors import Status
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import FloatArray, Moments
from nlsq_dask.engines.fit_block import fit_block
from nlsq_dask.engines.series import Role
from nlsq_dask.fitting.each import EachJob, OneSeries
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.fitting.source import open_source
from nlsq_dask.io.finite import is_deviation
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.result import FitResult

#: Statuses of series that are not fitted alone: a fit refuses them, or goes on past their limit.
WITHOUT_FIT = (
    Status.BAD_INPUT,
    Status.TOO_FEW_ROWS,
    Status.START_NOT_FINITE,
    Status.MAX_EVALUATIONS,
)


def agrees(result: FitResult, status: Status) -> bool:
    """Whether a fit of a series alone may stand for the answer of the map."""
    is_same = status in (result.status, Status.NOT_FITTED)
    return is_same or (result.success and status.success)


def with_labels(result: FitResult, job: EachJob, index: tuple[int, ...]) -> FitResult:
    """A result of one series with the times, units and labels of all data.

    The rows of a series that runs along one axis have the coordinates of y. Rows along several axes
    are flat, and have none.
    """
    assert result.fitted is not None, "a fit has its model"
    assert result.fitted.data is not None, "a fit has its data"
    own, frame = job.data, None
    if own.frame is not None and len(job.axes.fit) == 1:
        places = {own.frame.dims[d]: i for d, i in zip(job.axes.map, index, strict=True)}
        frame = own.frame.at(places)
    data = replace(result.fitted.data, times=own.times, labels=own.labels, frame=frame)
    return replace(
        result,
        param_units=dict(job.parameters.units),
        data_units=own.units,
        times=own.times,
        fitted=replace(result.fitted, data=data, times=own.times),
    )


def result_of_answer(
    job: EachJob,
    index: tuple[int, ...],
    series: OneSeries,
    answer: Mapping[str, Any],
    rows: tuple[FloatArray, FloatArray],
) -> FitResult:
    """A result with the numbers of a map.

    Parameters
    ----------
    job : EachJob
    index : tuple of int
        Index of the series in the map.
    series : OneSeries
    answer : mapping
        Fields of the answer of the series, by name.
    rows : pair of ndarray, each (m,)
        Observations, and values of the model.
    """
    problem, reduction = job.problem, job.problem.reduction
    names, status = np.array(problem.spec.names, object), Status(int(answer["status"]))
    p, q, n = len(names), len(reduction.names), int(answer["n_points"])
    popt, chi2 = np.asarray(answer["popt"], np.float64), float(answer["chi2"])
    source = open_source(
        series.x,
        series.y,
        InputOptions(mask=series.mask, nan_policy="omit", fill_value=problem.rule.fill_value),
    )
    return FitResult(
        names=problem.spec.names,
        popt=popt,
        pcov=_covariance(job, index, answer, status),
        cost=chi2 / 2.0,
        chi2=chi2,
        n_points=n,
        n_skipped=job.axes.n_rows - n,
        n_free=q,
        fixed=tuple(names[reduction.is_fixed].tolist()),
        moments=_moments(*rows, series.sigma),
        grad=np.full(p, np.nan),
        optimality=float(np.nan),
        distance_to_optimum_sigma=float(answer["distance_to_optimum_sigma"]),
        active_mask=_active(series, problem.spec.names, popt, int(answer["at_bound"])),
        method="lm",
        loss="linear",
        absolute_sigma=problem.absolute_sigma,
        r_factor=np.full((q, q), np.nan),
        nfev=int(answer["nfev"]),
        njev=int(answer["nfev"]),
        nit=0,
        n_passes=1,
        status=status,
        strategy="standard",
        workflow=None,
        budget=MemoryBudget.compute(max(n, 1), p, problem.spec.n_coords),
        tolerances={"ftol": None, "xtol": None, "gtol": None, "stat_tol": problem.stat_tol},
        structure=problem.spec.structure,
        n_coords=problem.spec.n_coords,
        pilot=None,
        starts=(),
        checkpoint=None,
        history=(),
        bounds=np.array([series.bounds.get(name, (-np.inf, np.inf)) for name in names]),
        vector_bits=problem.vector_bits,
        fitted=FittedModel(problem.spec, source.data, problem.device, row_wise=problem.row_wise),
    )


def _covariance(
    job: EachJob, index: tuple[int, ...], answer: Mapping[str, Any], status: Status
) -> FloatArray:
    """Covariance (p, p): infinite if the data do not determine it, NaN without a success."""
    reduction, p = job.problem.reduction, len(job.problem.spec.names)
    if status is Status.UNDETERMINED:
        q = len(reduction.names)
        return reduction.expand_covariance(np.full((q, q), np.inf))
    if not status.success:
        return np.full((p, p), np.nan)
    packed = answer["pcov"] if "pcov" in answer else _products_at(job, index, answer["popt"])
    found = np.empty((p, p))
    low = np.tril_indices(p)
    found[low] = found.T[low] = packed
    return found


def _products_at(job: EachJob, index: tuple[int, ...], popt: FloatArray) -> FloatArray:
    """The packed covariance of a series whose map holds none, from a fit that starts at its end."""
    roles = tuple(role for role in job.problem.roles if role.kind != "p0")
    roles += tuple(Role("p0", i, along=False) for i in range(len(popt)))
    problem = replace(job.problem, roles=roles, covariance=True, refine=None)
    block = job.block(index)
    arrays = [a for role, a in zip(job.problem.roles, block, strict=True) if role.kind != "p0"]
    single = (1,) * block[0].ndim
    packed = fit_block(problem, [*arrays, *(np.full(single, value) for value in popt)])
    found: FloatArray = problem.unpacked(packed.reshape(len(packed)))["pcov"]
    return found


def _active(series: OneSeries, names: tuple[str, ...], popt: FloatArray, at_bound: int) -> Any:
    """Active bounds (p,): -1 for a lower one, 1 for an upper one."""
    found = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        if at_bound >> i & 1 and name in series.bounds:
            found[i] = -1 if popt[i] <= series.bounds[name][0] else 1
    return found


def _moments(y: FloatArray, values: FloatArray, sigma: Any) -> Moments:
    """Sums over the rows that have an observation."""
    with np.errstate(all="ignore"):
        deviations = np.broadcast_to(1.0 if sigma is None else np.asarray(sigma, float), y.shape)
        counted = np.isfinite(y) & is_deviation(deviations)
        y, deviations = y[counted], deviations[counted]
        residuals, weights = y - values[counted], deviations**-2.0
        weight = float(weights.sum())
        mean = float((weights * y).sum()) / weight if weight else 0.0
        return Moments(
            abs_residuals=float(np.abs(residuals).sum()),
            sq_residuals=float((residuals**2).sum()),
            weight=weight,
            mean=mean,
            scatter=float((weights * (y - mean) ** 2).sum()),
            variance=float((deviations**2).sum()),
        )
