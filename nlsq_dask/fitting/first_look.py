"""What the first pass tells of the values themselves, which a model may hide from the sums.

``jnp.where(x > 0, ...)``, ``nan_to_num`` and ``interp`` make a number of a NaN, so that the cost is
finite while rows are misread. The kernel's first pass therefore also tells the largest magnitude of
each array, while the rows are in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import Answers, FoundT, Search, relayed
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.moments import ORDINARY

# Least and largest size of y, of 1/sigma and of y/sigma. Outside of this range sums of their
# squares over 1e8 rows exceed the largest float64, 1.8e308, or lose digits below the least normal
# float64, 2.2e-308.
LEAST_SIZE, LARGEST_SIZE = 1e-150, 1e150


def looked_at(search: Search[FoundT], data: Observations) -> Search[FoundT]:
    """Look at the values of the data as the answers to a search's questions tell them.

    Parameters
    ----------
    search : Search
    data : Observations
        What the answers are of.

    Raises
    ------
    InputError
        If all rows are left out, or as :func:`look_at` does.
    """
    is_first = True

    def see(answer: Any) -> None:
        nonlocal is_first
        for sums in answer if isinstance(answer, Answers) else (answer,):
            if not isinstance(sums, NormalEquations):
                continue
            if not sums.n_points:
                raise _errors.all_left_out(data.n_rows, data.causes)
            if is_first and sums.largest is not None:
                look_at(sums, data)
                is_first = False

    return relayed(search, see=see)


def look_at(sums: NormalEquations, data: Observations) -> None:
    """Refuse values that have no sum of squares, and warn of values that are rounded.

    Parameters
    ----------
    sums : NormalEquations
        Of the first pass over `data`.
    data : Observations

    Raises
    ------
    StartNotFiniteError
        If y, a coordinate or sigma has NaN, unless that goes to the model; if y or a weight is
        infinite; or if squares of y or sigma have no float64.

    Warns
    -----
    PrecisionWarning
        If y or a coordinate has integers that float64 does not hold.
    """
    largest = sums.largest
    if largest is None:
        return
    weighted = data.sigma is not None
    if not data.propagates:
        squared = largest[[0, -1]] if weighted else largest[:1]
        if np.isnan(largest).any() or np.isinf(squared).any():
            raise _errors.values_not_finite()
    _check_sizes(float(largest[0]), float(largest[-1]) if weighted else 1.0)
    for array, name, size in zip(data.values, data.names, largest, strict=True):
        is_long = array.dtype.kind in "iu" and array.dtype.itemsize == 8
        if name != "sigma" and is_long and size >= ORDINARY:
            _errors.warn_caller(_errors.integers_rounded(name, float(size)))


def _check_sizes(y: float, weight: float) -> None:
    """Refuse y and sigma that are too large or too small for squares in float64."""
    if not (0.0 < y < np.inf and 0.0 < weight < np.inf):  # all zeros, or told of elsewhere
        return
    sizes = (y, weight, y * weight)
    if max(sizes) > LARGEST_SIZE or min(sizes) < LEAST_SIZE:
        raise _errors.squares_out_of_range(y, weight, least=LEAST_SIZE, largest=LARGEST_SIZE)
