"""Observations with coordinates, made from the arrays that a user passes.

Observations ``y`` have any number of dimensions. Their elements, in C order, are the rows. A
coordinate is an array that broadcasts to the shape of ``y`` and is not expanded. A flat ``x`` of
the length of ``y`` is the simplest case. Standard deviations and masks broadcast the same way.
Arrays of xarray and pandas are paired by names and labels; see :mod:`nlsq_dask.io.labels`.

A Zarr array has the values that its attributes declare, unless it comes as a
:class:`~nlsq_dask.io.stored.StoredArray` that says otherwise. An array in a file is never loaded
whole: it becomes a Dask array, in blocks of whole stored chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.structure import Structure
from nlsq_dask.io.arguments import LazyArgument
from nlsq_dask.io.finite import is_deviation, scan_in_memory
from nlsq_dask.io.frame import NO_LABEL, Frame, Label
from nlsq_dask.io.labels import AxesOf, RowLabels, in_order_of
from nlsq_dask.io.lazy_arrays import data_of_variable, file_variable
from nlsq_dask.io.libraries import is_dask, is_instance, is_plain, is_xarray, is_zarr
from nlsq_dask.io.missing import UNLOOKED, NanPolicy, Unlooked, missing_rule
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.refusals import checked_kind, not_real, to_numpy
from nlsq_dask.io.stored import StoredArray, of_zarr
from nlsq_dask.io.times import TimeAxis, with_time_axis

__all__ = [
    "Array",
    "Observations",
    "as_array",
    "is_dask",
    "is_xarray",
    "is_zarr",
    "observe",
]


def observe(
    x: Any,
    y: Any,
    sigma: Any = None,
    *,
    mask: Any = None,
    nan_policy: NanPolicy | Unlooked | None = "raise",
    fill_value: Any = None,
    time_unit: str = "s",
    deviations: bool = True,
    axes_of: AxesOf | None = None,
) -> Observations:
    """Check the data of a fit and convert them to one representation.

    Only masks and standard deviations in memory are read, and the first chunk of a Dask array of
    dates.

    Parameters
    ----------
    x : array_like or tuple of array_like
        Coordinates: shape (n,) or ``y``'s shape, (k, n) with ``y`` (n,), or a tuple of arrays that
        broadcast to ``y``'s shape.
    y : array_like, shape (...)
        Observations.
    sigma : array_like or None
        Standard deviations, broadcasting to ``y``'s shape.
    mask : array_like of bool or None
        True where a row is left out, broadcasting to ``y``'s shape. The masks of ``x``, ``y`` and
        ``sigma``, if they are masked arrays, leave out rows, too.
    nan_policy : {"raise", "omit", UNLOOKED} or None
        "omit" leaves out rows with NaN in ``y``, a coordinate or ``sigma``; None is "raise".
    fill_value : number or None
        Value of ``y`` that marks a missing row.
    time_unit : str
        Unit of the numbers that take the place of times.
    deviations : bool
        Whether to refuse standard deviations that are not positive and finite.
    axes_of : callable or None
        See :class:`~nlsq_dask.io.labels.RowLabels`.

    Raises
    ------
    InputTypeError
        If an array does not hold real numbers, a mask does not hold truth values, or the fill
        value is not a number.
    InputError
        If shapes do not fit, an array is empty or of unknown chunk sizes, sigma is not positive,
        the policy is unknown, y cannot hold the fill value, or a mask leaves out all rows.
    """
    observed = as_array(y, "y")
    if observed.ndim == 0:
        observed = observed.reshape(1)
    if observed.size == 0:
        raise _errors.no_rows(observed.shape)
    rule = missing_rule(nan_policy, fill_value, observed.dtype)
    rows = RowLabels.of(y, observed.shape, axes_of)
    x = in_order_of(y, x, "x") if isinstance(x, list) else x
    coords, structure, times = _coordinates(x, rows, time_unit)
    values = [observed, *coords]
    if sigma is not None:
        values.append(_placed(as_array(sigma, "sigma"), sigma, "sigma", rows))
    masks = [np.ma.getmask(a) for a in values if isinstance(a, np.ma.MaskedArray)]
    if mask is not None:
        masks.insert(0, _placed(_as_mask(mask), mask, "mask", rows))
    values = [a.view(np.ndarray) if isinstance(a, np.ma.MaskedArray) else a for a in values]
    # Plain arrays have no chunks, attributes, names or units.
    is_bare = all(map(is_plain, (x, y, sigma, mask)))
    data = Observations(
        values[0],
        tuple(values[1 : 1 + len(coords)]),
        None if sigma is None else values[-1],
        structure,
        lazy=not is_bare and any(is_dask(a) for a in itertools.chain(values, masks)),
        masks=tuple(m for m in masks if is_dask(m) or m.any()),
        rule=rule,
        arguments={} if is_bare else _lazy_arguments(x, y, structure, sigma=sigma, mask=mask),
        propagates=nan_policy is UNLOOKED,
        frame=Frame.of(y) if not is_bare and is_xarray(y) and y.ndim else None,
        labels={} if is_bare else _labels(x, y, structure, times),
        times=times,
    )
    if any(m.all() for m in data.masks if not is_dask(m)):
        raise _errors.all_left_out(data.n_rows, data.causes)
    if deviations:
        _check_sigma(data)
    return data


def as_array(value: Any, name: str) -> Array:
    """Convert to a NumPy or Dask array of real numbers, without reading or copying if possible.

    Parameters
    ----------
    value : array_like
    name : str
        Name of the array in messages.

    Raises
    ------
    InputTypeError
        If the values are not real numbers.
    InputError
        If the array is ragged, or has chunks of unknown size.
    """
    return _real(_unwrapped(value, name), name)


def _real(array: Array, name: str) -> Array:
    """The array, if it holds real numbers."""
    if array.dtype.kind not in "fiub":
        raise not_real(array, name)
    return array


def _unwrapped(value: Any, name: str) -> Array:
    """A NumPy, masked or Dask array of any dtype."""
    if value is not None and is_plain(value):
        return value
    if is_xarray(value):
        value = data_of_variable(value.variable)
    elif is_instance(value, "xarray", "Variable"):
        value = data_of_variable(value)
    if is_zarr(value):
        value = of_zarr(value, name)
    if isinstance(value, StoredArray):
        return value.lazy()
    if (variable := file_variable(value)) is not None:
        return variable.lazy()
    if is_dask(value):
        if any(np.isnan(n) for n in value.shape):
            raise _errors.unknown_chunks(name)
        return value
    return to_numpy(checked_kind(value, name), name)


def _lazy_arguments(
    x: Any, y: Any, structure: Structure, *, sigma: Any, mask: Any
) -> dict[str, LazyArgument]:
    """The arguments that have chunks, by name."""
    named = {"y": y, "sigma": sigma, "mask": mask}
    named |= {f"x[{i}]": c for i, c in enumerate(x)} if structure == "tuple" else {"x": x}
    dims = y.dims if is_xarray(y) else None
    found = {}
    for name, value in named.items():
        if is_plain(value):
            continue
        if is_zarr(value) or isinstance(value, StoredArray):
            stored = of_zarr(value, name) if is_zarr(value) else value
            kind: Literal["zarr", "file"] = "zarr" if is_zarr(stored.array) else "file"
            found[name] = LazyArgument(kind, (None,) * stored.ndim, stored.decoding)
        elif is_dask(value):
            found[name] = LazyArgument("dask", (None,) * value.ndim)
        elif (variable := file_variable(value)) is not None:
            found[name] = LazyArgument("file", (None,) * variable.ndim, variable.decoding)
        elif is_xarray(value) and dims is not None and set(value.dims) <= set(dims):
            aligned = tuple(d if d in value.dims else None for d in dims)
            found[name] = LazyArgument("xarray", aligned)
        elif is_xarray(value):
            found[name] = LazyArgument("xarray", value.dims)
    return found


def _labels(
    x: Any, y: Any, structure: Structure, times: Sequence[TimeAxis | None]
) -> dict[str, Label]:
    """Names and units of y and the coordinates, by the names of the arguments."""
    named = {"y": y}
    named |= {f"x[{i}]": c for i, c in enumerate(x)} if structure == "tuple" else {"x": x}
    labels = {name: Label.of(value) for name, value in named.items() if is_xarray(value)}
    arguments = list(named)[1:] if structure == "tuple" else ["x"]
    for name, axis in zip(arguments, times, strict=False):
        if axis is not None:
            labels[name] = replace(labels.get(name, NO_LABEL), unit=str(axis))
    return labels


def _as_mask(value: Any) -> Array:
    """A NumPy or Dask array of truth values."""
    array = _unwrapped(value, "mask")
    if array.dtype != np.bool_:
        raise _errors.mask_not_boolean(array.dtype)
    return array if is_dask(array) else np.ma.filled(array, True)


def _coordinates(
    x: Any, rows: RowLabels, time_unit: str
) -> tuple[tuple[Array, ...], Structure, tuple[TimeAxis | None, ...]]:
    """Coordinates, the form in which the model takes them, and how their times became numbers."""
    if isinstance(x, tuple) and not all(np.isscalar(item) for item in x):
        named = [(item, f"x[{i}]") for i, item in enumerate(x)]
        pairs = [_numbers(item, label, rows, time_unit) for item, label in named]
        arrays, axes = zip(*pairs, strict=True)
        fitting = zip(arrays, named, strict=True)
        coords = tuple(broadcastable(a, rows.shape, label) for a, (_, label) in fitting)
        return coords, "tuple", axes
    array, axis = _numbers(x, "x", rows, time_unit, stacks=True)
    if array.ndim == len(rows.shape) + 1:
        if array.shape[1:] != rows.shape:
            raise _errors.unequal_lengths("x", array.shape, rows.shape)
        n = array.shape[0]
        return tuple(array[i] for i in range(n)), "stacked", (axis,) * n
    return (broadcastable(array, rows.shape, "x"),), "single", (axis,)


def _numbers(
    value: Any, name: str, rows: RowLabels, time_unit: str, *, stacks: bool = False
) -> tuple[Array, TimeAxis | None]:
    """A coordinate in the order of y's rows, as numbers; times count from the first row."""
    placed = rows.placed(_unwrapped(value, name), value, name, stacks=stacks)
    array, axis = with_time_axis(placed, name, time_unit)
    return _real(array, name), axis


def _placed(array: Array, value: Any, name: str, rows: RowLabels) -> Array:
    """An array in the order of y's rows, with as many dimensions."""
    return broadcastable(rows.placed(array, value, name), rows.shape, name)


def broadcastable(array: Array, shape: tuple[int, ...], name: str, of: str = "y") -> Array:
    """The array with leading dimensions of length 1, as NumPy's broadcasting adds them."""
    if not broadcasts(array.shape, shape):
        raise _errors.unequal_lengths(name, array.shape, shape, of=of)
    missing = len(shape) - array.ndim
    return array[(None,) * missing] if missing else array


def broadcasts(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether NumPy broadcasts an array of a shape to another shape."""
    missing = len(shape) - len(own)
    pairs = zip((1,) * missing + tuple(own), shape, strict=False)
    return missing >= 0 and all(n in (1, full) for n, full in pairs)


def _check_sigma(data: Observations) -> None:
    """Refuse sigma that is not positive and finite, if this needs no reading.

    A lazy sigma is not read here, nor is sigma of lazy data that may leave rows out. There a bad
    sigma makes the sum of squares infinite, and the search for its cause names it.
    """
    sigma = data.sigma
    if sigma is None or is_dask(sigma):
        return
    # The minimum needs no memory, unlike a comparison of all values. NaN fails this test.
    if sigma.min() > 0 and sigma.max() < np.inf:
        return
    if not data.selects:
        bad = ~is_deviation(sigma)
        raise _errors.sigma_no_deviation(int(bad.sum()), float(sigma[bad][0]))
    if data.lazy:
        return
    found = scan_in_memory(data).no_deviation
    if found.count:
        raise _errors.sigma_no_deviation(found.count, found.value, f", the first {found.first}")
