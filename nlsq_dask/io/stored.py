"""Arguments of a fit that are stored arrays of Zarr or HDF5: how their numbers become values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.cf import Decoding, declares_packing, decoded
from nlsq_dask.io.chunks import joined_chunks
from nlsq_dask.io.lazy_arrays import FileVariable, file_variable
from nlsq_dask.io.leaf import Leaf
from nlsq_dask.io.libraries import (
    is_dask,
    is_instance,
    is_unsafe_zip,
    is_xarray,
    is_zarr,
    is_zarr_group,
    is_zarr_store,
)
from nlsq_dask.io.locations import is_location, is_url, names_in, open_location, same_store
from nlsq_dask.io.missing import number_in
from nlsq_dask.io.places import stored_lengths

DECODE = ("cf", False)

# Attribute with which xarray names the dimensions of an array in Zarr's format 2.
DIMENSIONS_OF_XARRAY = "_ARRAY_DIMENSIONS"


@dataclass(frozen=True, slots=True, eq=False)
class StoredArray:
    """A stored array as an argument of a fit.

    Attributes
    ----------
    array : zarr.Array, h5py.Dataset or h5netcdf.Variable
    decoding : Decoding or None
        How its numbers become values; None if they are the values.
    blocks : tuple of int or None
        Lengths of the pieces in which it is read, of whole chunks or shards. None is one of them.
    """

    array: Any
    decoding: Decoding | None = None
    blocks: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def read_chunks(self) -> tuple[int, ...]:
        """Lengths of the least part of a Zarr array that is decoded by itself: shard or chunk."""
        return stored_lengths(self.array)

    def lazy(self) -> Any:
        """A Dask array of the values, in chunks (or shards) that one read decodes, or several.

        The task that reads a chunk also decodes it.
        """
        import dask.array as da

        leaf, chunks = Leaf(self.array), self.blocks or self.read_chunks
        stored = da.from_array(leaf, chunks=chunks, name=leaf.name, inline_array=True)
        return decoded(stored, self.decoding)

    def decoded_by(self, decoding: Decoding) -> StoredArray:
        """The array with another decoding."""
        return replace(self, decoding=decoding)


def of_zarr(array: Any, name: str) -> StoredArray:
    """A Zarr array whose values are those that its attributes declare."""
    return StoredArray(array, Decoding.of(_attributes(array), array.dtype, name))


def stored_argument(
    value: Any, name: str, decode: Any, options: Mapping[str, Any] | None = None
) -> Any:
    """An argument with its stored arrays, and how they are decoded; other values as they are.

    Parameters
    ----------
    value : object
        Argument of a fit. The items of a tuple are arguments, too.
    name : str
        Name of the argument in messages.
    decode : "cf" or False
        Whether attributes say what the numbers mean.
    options : mapping, optional
        Options of the object store, for a value that is a URL.

    Raises
    ------
    InputError
        If `decode` is another value, if the attributes hold no numbers, if xarray was told not to
        decode, or if a location is not that of a Zarr array.
    InputTypeError
        If the value is a Zarr group or a store.
    MissingLibraryError
        If no library is installed that opens a URL.
    """
    if not (decode is False or (isinstance(decode, str) and decode == "cf")):
        raise _errors.unknown_choice("decode", decode, DECODE)
    if isinstance(value, tuple):
        items = enumerate(value)
        return tuple(stored_argument(item, f"{name}[{i}]", decode, options) for i, item in items)
    if is_location(value):
        value = open_location(value, name, options)
    if is_zarr(value):
        if is_unsafe_zip(value.store):
            raise _errors.zip_open_for_writing(name)
        return of_zarr(value, name) if decode else StoredArray(value)
    if decode:
        value = _decoded_elsewhere(value, name)
    if is_zarr_group(value):
        raise _errors.group_given(name, "group", names_in(value))
    if is_zarr_store(value):
        raise _errors.group_given(name, "store", ())
    return value


def _decoded_elsewhere(value: Any, name: str) -> Any:
    """A value of HDF5 with its decoding; any other value, unless it should have been decoded.

    xarray and netCDF4 decode by themselves, unless they are told not to. h5py never does.
    """
    attributes: Mapping[str, Any] = {}
    remedy = "open the data with mask_and_scale=True, or call xarray.decode_cf(dataset)"
    if is_xarray(value) or is_instance(value, "xarray", "Variable"):
        attributes = value.attrs
    elif is_instance(value, "netCDF4", "Variable") and not (value.scale and value.mask):
        attributes = {key: value.getncattr(key) for key in value.ncattrs()}
        remedy = "call set_auto_maskandscale(True) of the variable"
    packing = declares_packing(attributes, value.dtype, name) if attributes else ""
    if packing:
        raise _errors.not_decoded(name, packing, remedy)
    variable = file_variable(value)
    if variable is None:
        return value
    return variable.decoded_by(Decoding.of(variable.attributes, variable.dtype, name))


def in_blocks(x: Any, y: Any, *others: Any) -> list[Any]:
    """Arguments whose small chunks are read several at one time.

    Chunks are joined only if all arrays of the size of `y` that have chunks are stored in the same
    chunks. Their blocks then hold the same rows, and each chunk is read once.

    Parameters
    ----------
    x, y, *others : object
        As :func:`stored_argument` returns them.
    """
    shape = getattr(y, "shape", None)
    if not isinstance(shape, tuple):
        return [x, y, *others]
    parts = (part for a in (x, y, *others) for part in (a if isinstance(a, tuple) else (a,)))
    shapes = ((part, getattr(part, "shape", None)) for part in parts)
    full = [part for part, own in shapes if isinstance(own, tuple) and own == shape]
    grids = {part.read_chunks for part in full if isinstance(part, StoredArray)}
    otherwise = any(is_dask(a) or is_xarray(a) or file_variable(a) is not None for a in full)
    if len(grids) != 1 or otherwise:
        return [x, y, *others]
    blocks = joined_chunks(shape, grids.pop())

    def joined(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(joined, value))
        is_full = isinstance(value, StoredArray) and value.shape == shape  # all are of Zarr
        return replace(value, blocks=blocks) if is_full else value

    return [joined(value) for value in (x, y, *others)]


def check_options(options: Any, arguments: Iterable[Any], output: Any = None) -> None:
    """Check that options of an object store are a mapping, and that an argument needs them.

    Parameters
    ----------
    options : mapping or None
    arguments : iterable
        Arrays of a fit.
    output : path-like, optional
        Where checkpoints or maps are written.

    Raises
    ------
    InputTypeError
        If the options are no mapping. The message does not show them.
    InputError
        If nothing is a URL.
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise _errors.storage_options_form(type(options).__name__)
    if options and not _urls_in((*arguments, output)):
        raise _errors.storage_options_unused()


def options_of_checkpoint(
    options: Mapping[str, Any] | None, arguments: Iterable[Any], checkpoint: Any
) -> Mapping[str, Any] | None:
    """Options of the store of checkpoints; None if they are for arrays in another kind of store.

    Parameters are as for :func:`check_options`.
    """
    place, arrays = _urls_in([checkpoint]), _urls_in(arguments)
    if not place or (arrays and not any(same_store(url, place[0]) for url in arrays)):
        return None
    return options


def _urls_in(arguments: Iterable[Any]) -> list[str]:
    """The URLs among some arguments, and the items of tuples."""
    parts = (part for a in arguments for part in (a if isinstance(a, tuple) else (a,)))
    return [str(part) for part in parts if is_location(part) and is_url(str(part))]


def with_fill_value(y: Any, fill_value: Any) -> tuple[Any, Any]:
    """Let a decoded array make NaN of the stored number that marks missing values.

    Parameters
    ----------
    y : object
        As :func:`stored_argument` returns it.
    fill_value : number or None
        Argument of the fit, as it is stored.

    Returns
    -------
    y : object
    fill_value : number or None
        NaN if `y` is decoded.

    Raises
    ------
    InputError, InputTypeError
        If the array cannot hold the fill value.
    """
    if fill_value is None or not isinstance(y, StoredArray | FileVariable) or y.decoding is None:
        return y, fill_value
    if isinstance(fill_value, float | np.floating) and np.isnan(fill_value):
        return y, fill_value
    number = number_in(fill_value, np.dtype(y.decoding.stored)).item()
    return y.decoded_by(y.decoding.with_fill_value(number)), np.nan


def _attributes(array: Any) -> Mapping[str, Any]:
    """Attributes of a Zarr array, with ``_FillValue`` where xarray stored it in another place.

    In Zarr's format 2, xarray stores ``_FillValue`` as the array's own fill value. In format 3 that
    is only the value of chunks that were not written.
    """
    attributes: Mapping[str, Any] = array.metadata.attributes
    own = array.fill_value
    of_format_2 = array.metadata.zarr_format == 2 and DIMENSIONS_OF_XARRAY in attributes
    if own is None or not of_format_2 or "_FillValue" in attributes:
        return attributes
    return {**attributes, "_FillValue": own}
