"""One fit for each series of a block: arrays of a block in, a packed answer out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.neighbours import refined, wants
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_block import SeriesBlock


def fit_block(problem: SeriesProblem, arrays: Sequence[NDArray[Any]]) -> FloatArray:
    """Fit all series of a block.

    Parameters
    ----------
    problem : SeriesProblem
    arrays : sequence of ndarray
        As ``problem.roles`` says, each with as many axes as y.

    Returns
    -------
    ndarray, shape (k, ...), float64
        The packed answer, with the axes of the map.
    """
    return fit_in_threads(problem, arrays, 1)


def fit_in_threads(
    problem: SeriesProblem, arrays: Sequence[NDArray[Any]], threads: int
) -> FloatArray:
    """As :func:`fit_block`, with the series shared out to threads."""
    block = SeriesBlock.of(problem, arrays)
    parts = block.parts(threads)
    if len(parts) <= 1:
        packed = block.fitted()
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            # The threads read into the memory of this thread.
            own = [pool.submit(copy_context().run, part.fitted) for part in parts]
            packed = np.concatenate([future.result() for future in own], axis=1)
    if wants(problem):
        packed = refined(block, packed)
    return packed.reshape(problem.n_planes, *block.map_shape)
