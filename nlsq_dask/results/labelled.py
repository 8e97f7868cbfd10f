"""Results in the frame of labelled data, and their numbers without labels."""

from __future__ import annotations

from typing import Any

from nlsq_dask.io.frame import Frame
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_xarray


def bare(array: Any) -> Array:
    """The numbers of an array, without labels."""
    return array.data if is_xarray(array) else array


def framed_like(array: Any, values: Array, name: str, meaning: str) -> Any:
    """Values with the labels of an array, if it has labels.

    Parameters
    ----------
    array : numpy or dask array, or xarray.DataArray
    values : numpy or dask array
        In the shape of the array.
    name, meaning : str
        As for :meth:`nlsq_dask.io.frame.Frame.filled`.
    """
    return Frame.of(array).filled(values, name, meaning) if is_xarray(array) else values
