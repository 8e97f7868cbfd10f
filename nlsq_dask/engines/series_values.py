"""Values of a model at the estimates of many series, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_tables import as_table
from nlsq_dask.kernels.lane_values import lane_values
from nlsq_dask.kernels.lanes import LANES


def values_of_block(
    problem: SeriesProblem,
    coords: Sequence[NDArray[Any]],
    params: FloatArray,
    fit_shape: tuple[int, ...],
) -> FloatArray:
    """Values of the model for the series of a block.

    Parameters
    ----------
    problem : SeriesProblem
    coords : sequence of ndarray
        Coordinates with the axes of y, of length 1 where they do not vary.
    params : ndarray, shape (p, ...), float64
        Estimates, with the axes of the map.
    fit_shape : tuple of int
        Lengths of the fitted axes.

    Returns
    -------
    ndarray, float64
        With the axes of y.
    """
    map_shape = params.shape[1:]
    n_rows, n = math.prod(fit_shape), math.prod(map_shape)
    order = problem.fit_axes + problem.map_axes
    tables = []
    for array in coords:
        turned = array.transpose(order)
        varies = any(length > 1 for length in turned.shape[len(fit_shape) :])
        tables.append(as_table(turned, fit_shape, map_shape if varies else (1,) * len(map_shape)))
    flat = params.reshape(len(params), n)
    values = np.empty((n_rows, n))
    for first in range(0, n, LANES):
        part = slice(first, min(first + LANES, n))
        width = part.stop - part.start
        own = np.ones((len(params), LANES))
        own[:, :width] = flat[:, part]
        rows = [_padded(t if t.shape[1] == 1 else t[:, part]) for t in tables]
        values[:, part] = lane_values(problem.spec, problem.row_wise, problem.device, rows, own)[
            :, :width
        ]
    full = values.reshape(*fit_shape, *map_shape)
    return full.transpose(np.argsort(order))


def _padded(table: NDArray[Any]) -> FloatArray:
    """Coordinates (m,) of all lanes, or (m, LANES)."""
    numbers = np.ma.filled(np.ma.asarray(table, np.float64), np.nan)
    if numbers.shape[1] == 1:
        return np.ascontiguousarray(numbers[:, 0])
    return np.pad(numbers, ((0, 0), (0, LANES - numbers.shape[1])), mode="edge")
