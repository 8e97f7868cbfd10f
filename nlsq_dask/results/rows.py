"""Rows on which a fitted model is computed: the coordinates of a prediction, and their labels.

Coordinates come in the form in which a fit takes them. There is no y here that they broadcast to:
they broadcast to each other, arrays of xarray by the names of their dimensions. Arrays with the
same dimension are paired by their labels, as in a fit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.frame import Frame, frame_of_all, sizes_of_all
from nlsq_dask.io.labels import RowLabels
from nlsq_dask.io.named import named_arguments
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import as_array, is_dask, is_xarray
from nlsq_dask.io.stored import stored_argument
from nlsq_dask.io.times import TimeAxis, as_numbers
from nlsq_dask.io.units import bare_coordinates
from nlsq_dask.questions.row_values import without_mask
from nlsq_dask.user_model.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows on which a model is computed.

    Attributes
    ----------
    data : Observations
        The rows, in at least one dimension.
    shape : tuple of int
        Shape of the values.
    frame : Frame or None
        Labels of the values.
    """

    data: Observations
    shape: tuple[int, ...]
    frame: Frame | None = None


def rows_at(spec: ModelSpec, x: Any, dims: Sequence[Hashable] | None = None) -> Rows:
    """Coordinates in the form that a model takes, without observations.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    x : array_like or tuple of array_like
        As for ``FittedModel.values``.
    dims : sequence of hashable, optional
        Names of the dimensions of the data of the fit. They tell which dimension of an array of
        several coordinates counts the coordinates; by default the first.

    Returns
    -------
    Rows
        Rows with y = 0, in the shape to which the coordinates broadcast. The zeros take no memory.

    Raises
    ------
    InputError, InputTypeError
        If these are not the model's coordinates.
    """
    if spec.structure == "tuple":
        coords, frame = _of_tuple(spec, x)
    elif spec.structure == "stacked":
        coords, frame = _of_stack(spec, x, dims or ())
    else:
        coords = [without_masked(as_array(x, "x"))]
        frame = Frame.of(x) if is_xarray(x) else None
    try:
        shape = np.broadcast_shapes(*(c.shape for c in coords))
    except ValueError:
        raise _errors.coordinates_do_not_broadcast([c.shape for c in coords]) from None
    ndim = max(len(shape), 1)
    coords = [c[(None,) * (ndim - c.ndim)] for c in coords]
    y = np.broadcast_to(np.zeros(()), shape or (1,))
    lazy = any(is_dask(c) for c in coords)
    # Other arrays may add dimensions to those of the labelled ones.
    labelled = frame is not None and frame.shape == shape
    data = Observations(y, tuple(coords), None, spec.structure, lazy)
    return Rows(data, shape, frame.describing(None) if frame and labelled else None)


def numbers_at(
    x: Any,
    spec: ModelSpec,
    data: Observations | None,
    *,
    times: Sequence[TimeAxis | None] = (),
    units: Mapping[str, str] | None = None,
) -> Any:
    """Coordinates without names, times and units, in the units of the fit.

    Parameters
    ----------
    x : object
        As the user passed it.
    spec : ModelSpec
        The model.
    data : Observations or None
        Data of the fit.
    times : sequence of (TimeAxis or None)
        For each coordinate, how times become numbers.
    units : mapping of str to str, optional
        Units of the coordinates, by "x" or "x[i]"; by default those of the data.
    """
    frame = None if data is None else data.frame
    names = x if isinstance(x, tuple) else (x,)
    if frame is not None and any(isinstance(name, str) for name in names):
        # Only names and labels of y are asked for. The zero takes no memory.
        y = frame.filled(np.broadcast_to(0.0, frame.shape), "y", "zeros for")
        x = named_arguments(x, y, sigma=None, mask=None, data=None)[0]
    given = ("cf", None) if data is None else (data.decode, data.storage_options)
    x = stored_argument(x, "x", *given)
    several = spec.structure == "tuple"
    own = dict(units or {}) if data is None else dict(data.units)
    for i, axis in enumerate(times):
        if axis is not None:  # numbers take the place of times, and have no unit of quantities
            own.pop(f"x[{i}]" if several else "x", None)
    return bare_coordinates(as_numbers(x, times), own, several=several)


def _of_tuple(spec: ModelSpec, x: Any) -> tuple[list[Array], Frame | None]:
    """Each coordinate of a tuple, and the labels of all."""
    if not isinstance(x, tuple | list) or len(x) != spec.n_coords:
        raise _errors.coordinates_wrong(spec.structure, spec.n_coords, x)
    names = [f"x[{i}]" for i in range(len(x))]
    arrays = [without_masked(as_array(item, name)) for item, name in zip(x, names, strict=True)]
    labelled = [item for item in x if is_xarray(item)]
    if not labelled:
        return arrays, None
    sizes = sizes_of_all(labelled)
    for dim, n in sizes.items():
        along = [array for array in labelled if dim in array.dims]
        unlike = any(array.sizes[dim] not in (1, n) for array in along)
        if unlike and not all(dim in array.indexes for array in along):
            raise _errors.coordinates_do_not_broadcast([item.shape for item in labelled])
    rows = RowLabels(tuple(sizes.values()), tuple(sizes))
    coords = [rows.placed(*named) for named in zip(arrays, x, names, strict=True)]
    return coords, frame_of_all(labelled)


def _of_stack(
    spec: ModelSpec, x: Any, dims: Sequence[Hashable]
) -> tuple[list[Array], Frame | None]:
    """Each coordinate of an array of several, and their labels."""
    items = items_of_stack(spec, x, dims)
    frame = Frame.of(items[0]) if is_xarray(items[0]) else None
    return [without_masked(as_array(item, "x")) for item in items], frame


def items_of_stack(spec: ModelSpec, x: Any, dims: Sequence[Hashable]) -> list[Any]:
    """Each coordinate of an array of several; arrays of xarray keep their labels.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    x : array_like
    dims : sequence of hashable
        Names of the dimensions of the data of the fit.

    Raises
    ------
    InputError
        If the array has another number of coordinates than the model.
    """
    array = x if is_xarray(x) else as_array(x, "x")
    stack: Any = 0
    if is_xarray(x) and x.ndim:
        others = [dim for dim in x.dims if dim not in dims]
        stack = x.dims.index(others[0]) if len(others) == 1 else 0
    if array.ndim == 0 or array.shape[stack] != spec.n_coords:
        raise _errors.coordinates_wrong(spec.structure, spec.n_coords, x)
    if not is_xarray(x):
        return [array[i] for i in range(spec.n_coords)]
    return [array.isel({x.dims[stack]: i}, drop=True) for i in range(spec.n_coords)]


def without_masked(array: Array) -> Array:
    """An array in which masked values in memory are NaN."""
    return without_mask(array) if isinstance(array, np.ma.MaskedArray) else array
