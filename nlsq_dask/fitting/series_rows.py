"""New coordinates for the models of many series, with the axes of y.

The coordinates come in the forms in which a fit takes them: names, times, quantities, arrays with
and without labels. An array without labels has the fitted axes, or all axes of y. An array of
xarray has dimensions of y, and may have other dimensions in place of the fitted ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.labels import RowLabels
from nlsq_dask.io.libraries import is_xarray
from nlsq_dask.io.observations import Array
from nlsq_dask.io.series import SeriesAxes
from nlsq_dask.io.sources import as_array, broadcastable
from nlsq_dask.results.rows import items_of_stack, numbers_at, without_masked

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SeriesRows:
    """Rows of many series.

    Attributes
    ----------
    coords : list of array
        Coordinates with the axes of y, of length 1 where they do not vary.
    fit_shape : tuple of int
        Lengths of the fitted axes.
    frame : Frame or None
        Labels of the rows, if y has labels.
    """

    coords: list[Array]
    fit_shape: Shape
    frame: Frame | None


def series_rows(job: EachJob, x: Any) -> SeriesRows:
    """The rows of some coordinates, or of the data.

    Parameters
    ----------
    job : EachJob
    x : object
        As for :meth:`nlsq_dask.FitMaps.predict`.

    Raises
    ------
    InputError, InputTypeError
        If these are not the coordinates of the model and of the series.
    """
    axes, data = job.axes, job.data
    if x is None:
        return SeriesRows(list(data.coords), axes.fit_shape, data.frame)
    named = _items(job, numbers_at(x, job.problem.spec, data, times=data.times))
    items = [item for _, item in named]
    arrays = [without_masked(as_array(item, name)) for name, item in named]
    has_labels = [axes.dims is not None and is_xarray(item) for item in items]
    labelled = list(itertools.compress(items, has_labels))
    fitted = _fitted_dims(axes, labelled)
    parts = [
        tuple(item.sizes.get(dim, 1) for dim in fitted) if has else _fitted_part(axes, array)
        for item, array, has in zip(items, arrays, has_labels, strict=True)
    ]
    try:
        own = np.broadcast_shapes(*parts)
    except ValueError:
        raise _errors.coordinates_do_not_broadcast([a.shape for a in arrays]) from None
    new = _new_axes(axes, own, fitted)
    rows = RowLabels(new.shape, new.dims, _map_indexes(job))
    coords = [
        rows.placed(array, item, name) if has else _spread(new, array, name)
        for (name, item), array, has in zip(named, arrays, has_labels, strict=True)
    ]
    return SeriesRows(coords, own, _frame(job, new, labelled))


def _items(job: EachJob, x: Any) -> list[tuple[str, Any]]:
    """Each coordinate, and its name in messages."""
    spec = job.problem.spec
    if spec.structure == "single":
        return [("x", x)]
    if spec.structure == "stacked":
        return [("x", item) for item in items_of_stack(spec, x, job.axes.dims or ())]
    if not isinstance(x, tuple | list) or len(x) != spec.n_coords:
        raise _errors.coordinates_wrong(spec.structure, spec.n_coords, x)
    return [(f"x[{i}]", item) for i, item in enumerate(x)]


def _fitted_dims(axes: SeriesAxes, labelled: Sequence[Any]) -> tuple[Hashable, ...]:
    """Names of the fitted dimensions of the new rows, in the order of the fit."""
    if axes.dims is None:
        return ()
    of_fit, of_map = ([axes.dims[d] for d in own] for own in (axes.fit, axes.map))
    new = list(dict.fromkeys(d for item in labelled for d in item.dims if d not in of_map))
    if set(new) <= set(of_fit):
        return tuple(of_fit)
    if len(new) != len(of_fit):
        raise _errors.dimensions_unknown("x", [d for d in new if d not in of_fit], axes.dims)
    return tuple(new)


def _fitted_part(axes: SeriesAxes, array: Array) -> Shape:
    """Lengths of an array without labels along the fitted axes."""
    n, ndim, shape = len(axes.fit), len(axes.shape), tuple(array.shape)
    if len(shape) <= n:
        return (1,) * (n - len(shape)) + shape
    if len(shape) != ndim:
        raise _errors.series_of_new_x(shape, ndim, axes.fit)
    return tuple(shape[d] for d in axes.fit)


def _new_axes(axes: SeriesAxes, own: Shape, fitted: Sequence[Hashable]) -> SeriesAxes:
    """The axes of y with other lengths and names of the fitted axes."""
    shape, dims = list(axes.shape), None if axes.dims is None else list(axes.dims)
    for i, d in enumerate(axes.fit):
        shape[d] = own[i]
        if dims is not None:
            dims[d] = fitted[i]
    return SeriesAxes(tuple(shape), axes.fit, None if dims is None else tuple(dims))


def _spread(axes: SeriesAxes, array: Array, name: str) -> Array:
    """An array without labels with the axes of y."""
    if array.ndim > len(axes.fit):
        return broadcastable(array, axes.shape, name)
    return axes.spread(array)


def _map_indexes(job: EachJob) -> dict[int, tuple[str, Any]]:
    """Labels along the axes of the map."""
    axes, frame = job.axes, job.frame
    if frame is None or axes.dims is None:
        return {}
    indexes = frame.coords.to_dataset().indexes
    named = {d: axes.dims[d] for d in axes.map}
    return {d: ("y", indexes[name]) for d, name in named.items() if name in indexes}


def _frame(job: EachJob, axes: SeriesAxes, labelled: Sequence[Any]) -> Frame | None:
    """Labels of the new rows: the coordinates of the map, and those of x along other dimensions."""
    if job.data.frame is None or job.frame is None or axes.dims is None:
        return None
    import xarray as xr  # an optional library, which made the frame

    fitted = {axes.dims[d] for d in axes.fit}
    along = [
        xr.Dataset(coords={name: c for name, c in item.coords.items() if set(c.dims) <= fitted})
        for item in labelled
    ]
    # "override" compares no values, which might have to be read.
    merged = xr.merge(
        [job.frame.coords.to_dataset(), *along],
        compat="override",
        join="override",
        combine_attrs="override",
    )
    own = {name: c for name, c in merged.coords.items() if set(c.dims) <= set(axes.dims)}
    return Frame(axes.dims, axes.shape, xr.Coordinates(own)).describing(job.data.frame)
