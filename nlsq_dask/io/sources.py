"""Observations with coordinates, made from the arrays that a user passes.

Observations ``y`` have any number of dimensions. Their elements, in C order, are the rows. A
coordinate is an array that broadcasts to the shape of ``y`` and is not expanded. A flat ``x`` of
the length of ``y`` is the simplest case. Standard deviations and masks broadcast the same way. If
``y`` is an ``xarray.DataArray``, the other arrays broadcast by the names of their dimensions.

Dask, Zarr and xarray are recognised without importing them: while a library is not imported, no
value is an instance of its classes.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.structure import Structure
from nlsq_dask.io.arguments import LazyArgument
from nlsq_dask.io.finite import is_deviation, scan_in_memory
from nlsq_dask.io.frame import Frame, Label
from nlsq_dask.io.missing import UNLOOKED, NanPolicy, Unlooked, missing_rule
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.refusals import checked_kind, not_real, to_numpy

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
) -> Observations:
    """Check the data of a fit and convert them to one representation.

    Only masks and standard deviations in memory are read.

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
        raise _errors.no_rows("y", observed.shape)
    rule = missing_rule(nan_policy, fill_value, observed.dtype)
    dims = y.dims if is_xarray(y) else None
    coords, structure = _coordinates(x, observed.shape, dims)
    values = [observed, *coords]
    if sigma is not None:
        values.append(_broadcastable(as_array(sigma, "sigma", dims), observed.shape, "sigma"))
    masks = [np.ma.getmask(a) for a in values if isinstance(a, np.ma.MaskedArray)]
    if mask is not None:
        masks.insert(0, _broadcastable(_as_mask(mask, dims), observed.shape, "mask"))
    values = [a.view(np.ndarray) if isinstance(a, np.ma.MaskedArray) else a for a in values]
    data = Observations(
        values[0],
        tuple(values[1 : 1 + len(coords)]),
        None if sigma is None else values[-1],
        structure,
        any(is_dask(a) for a in itertools.chain(values, masks)),
        tuple(m for m in masks if is_dask(m) or m.any()),
        rule,
        _lazy_arguments(x, y, sigma, mask, structure),
        nan_policy is UNLOOKED,
        Frame.of(y) if is_xarray(y) and y.ndim else None,
        _labels(x, y, structure),
    )
    if any(m.all() for m in data.masks if not is_dask(m)):
        raise _errors.all_left_out(data.n_rows, data.causes)
    _check_sigma(data)
    return data


def as_array(value: Any, name: str, dims: tuple[Any, ...] | None = None) -> Array:
    """Convert to a NumPy or Dask array of real numbers, without reading or copying if possible.

    Parameters
    ----------
    value : array_like
    name : str
        Name of the array in messages.
    dims : tuple of hashable, optional
        Names of dimensions, to which a value with named dimensions is aligned.

    Raises
    ------
    InputTypeError
        If the values are not real numbers.
    InputError
        If the array is ragged, or has chunks of unknown size.
    """
    array = _unwrapped(value, name, dims)
    if array.dtype.kind not in "fiub":
        raise not_real(array, name)
    return array


def is_dask(value: Any) -> bool:
    """Whether a value is a Dask array."""
    return _is_instance(value, "dask.array", "Array")


def is_zarr(value: Any) -> bool:
    """Whether a value is a Zarr array."""
    return _is_instance(value, "zarr", "Array")


def is_xarray(value: Any) -> bool:
    """Whether a value is an array of xarray, whose dimensions have names."""
    return _is_instance(value, "xarray", "DataArray")


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of an optional library. Does not import the library."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _unwrapped(value: Any, name: str, dims: tuple[Any, ...] | None) -> Array:
    """A NumPy, masked or Dask array of any dtype."""
    if is_xarray(value):
        value = _aligned(value, dims)
    if is_zarr(value):
        return _wrap_zarr(value)
    if is_dask(value):
        if any(np.isnan(n) for n in value.shape):
            raise _errors.unknown_chunks(name)
        return value
    return to_numpy(checked_kind(value, name), name)


def _wrap_zarr(array: Any) -> Array:
    """A Dask array over a Zarr array, with the chunks (or shards) that one read decodes."""
    import dask.array as da

    return da.from_array(array, chunks=array.shards or array.chunks, inline_array=True)


def _aligned(value: Any, dims: tuple[Any, ...] | None) -> Array:
    """The data of an xarray array, in the order of ``dims`` if these include all its dimensions."""
    if dims is None or not set(value.dims) <= set(dims):
        return value.data
    data = value.transpose(*(d for d in dims if d in value.dims)).data
    return data[tuple(slice(None) if d in value.dims else None for d in dims)]


def _lazy_arguments(
    x: Any, y: Any, sigma: Any, mask: Any, structure: Structure
) -> dict[str, LazyArgument]:
    """The arguments that have chunks, by name."""
    named = {"y": y, "sigma": sigma, "mask": mask}
    named |= {f"x[{i}]": c for i, c in enumerate(x)} if structure == "tuple" else {"x": x}
    dims = y.dims if is_xarray(y) else None
    found = {}
    for name, value in named.items():
        if is_zarr(value):
            found[name] = LazyArgument("zarr", (None,) * value.ndim)
        elif is_dask(value):
            found[name] = LazyArgument("dask", (None,) * value.ndim)
        elif is_xarray(value) and dims is not None and set(value.dims) <= set(dims):
            aligned = tuple(d if d in value.dims else None for d in dims)
            found[name] = LazyArgument("xarray", aligned)
        elif is_xarray(value):
            found[name] = LazyArgument("xarray", value.dims)
    return found


def _labels(x: Any, y: Any, structure: Structure) -> dict[str, Label]:
    """Names and units of y and the coordinates, by the names of the arguments."""
    named = {"y": y}
    named |= {f"x[{i}]": c for i, c in enumerate(x)} if structure == "tuple" else {"x": x}
    return {name: Label.of(value) for name, value in named.items() if is_xarray(value)}


def _as_mask(value: Any, dims: tuple[Any, ...] | None) -> Array:
    """A NumPy or Dask array of truth values."""
    array = _unwrapped(value, "mask", dims)
    if array.dtype != np.bool_:
        raise _errors.mask_not_boolean(array.dtype)
    return array if is_dask(array) else np.ma.filled(array, True)


def _coordinates(
    x: Any, shape: tuple[int, ...], dims: tuple[Any, ...] | None
) -> tuple[tuple[Array, ...], Structure]:
    if isinstance(x, tuple) and not all(np.isscalar(item) for item in x):
        named = [(as_array(item, f"x[{i}]", dims), f"x[{i}]") for i, item in enumerate(x)]
        return tuple(_broadcastable(a, shape, label) for a, label in named), "tuple"
    array = as_array(x, "x", dims)
    if array.ndim == len(shape) + 1:
        if array.shape[1:] != shape:
            raise _errors.unequal_lengths("x", array.shape, shape)
        return tuple(array[i] for i in range(array.shape[0])), "stacked"
    return (_broadcastable(array, shape, "x"),), "single"


def _broadcastable(array: Array, shape: tuple[int, ...], name: str) -> Array:
    """The array with leading dimensions of length 1, as NumPy's broadcasting adds them."""
    missing = len(shape) - array.ndim
    padded = (1,) * missing + tuple(array.shape)
    if missing < 0 or any(n not in (1, full) for n, full in zip(padded, shape, strict=True)):
        raise _errors.unequal_lengths(name, array.shape, shape)
    return array[(None,) * missing] if missing else array


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
