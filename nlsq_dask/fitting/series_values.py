"""Predictions and residuals of many series, in memory or lazy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nlsq_dask.engines.series_values import values_of_block
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.fitting.series_rows import series_rows
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask


def map_values(job: EachJob, fields: Mapping[str, Array], x: Any, residuals: bool) -> Any:
    """Values of the model, or residuals, with the axes of y.

    Parameters
    ----------
    job : EachJob
    fields : mapping of str to array
    x : object
        Coordinates; None for those of the data.
    residuals : bool
        Whether to subtract the values from y.
    """
    rows = series_rows(job, x)
    coords, fit_shape, frame = rows.coords, rows.fit_shape, rows.frame
    params = fields["popt"]
    if any(map(is_dask, (*coords, params))) or (residuals and job.lazy):
        from nlsq_dask.engines.dask.series import lazy_values  # an engine, loaded for use

        values = lazy_values(job.problem, coords, params, fit_shape, job.arrays)
    else:
        values = values_of_block(job.problem, coords, params, fit_shape)
    if residuals:
        values = _differences(job, values)
    if frame is None:
        return values
    name, meaning = ("residuals", "residuals of") if residuals else ("prediction", "prediction of")
    return frame.filled(values, name, meaning)


def _differences(job: EachJob, values: Array) -> Array:
    """Residuals ``y - f``; NaN for rows that are left out."""
    found = job.data.y - values
    rule = job.data.rule
    for mask in job.data.masks:
        found = _without(found, mask)
    if rule.fill_value is not None:
        found = _without(found, job.data.y == rule.fill_value)
    return found


def _without(values: Array, mask: Array) -> Array:
    """Values with NaN where a mask is True."""
    if is_dask(values) or is_dask(mask):
        import dask.array as da  # an optional tier, loaded for use

        return da.where(mask, np.nan, values)
    return np.where(mask, np.nan, values)
