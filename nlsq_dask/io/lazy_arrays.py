"""Arrays that are read piece by piece although they are no Dask arrays.

Such are variables of xarray that were opened without Dask, and variables of HDF5 and netCDF files.
Each becomes a Dask array in blocks of whole stored chunks, so that a pass decodes no chunk twice.
Nothing is read for that, and the object of the user stays as it is: not loaded, not cut.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.cf import Decoding, decoded
from nlsq_dask.io.chunks import (
    JOINED_ROWS,
    LEAST_JOINED,
    Chunks,
    joined_chunks,
    regular_chunks,
)
from nlsq_dask.io.libraries import is_instance, is_zarr

Sizes = tuple[int, ...]

# Rows up to which stored chunks are joined to a block, also of small arrays. A block through xarray
# takes 4 ms beside its bytes, which is the time to read 2**20 rows; through h5py it takes 0.01 ms.
LEAST_ROWS = 1 << 18

# Classes of xarray that read numbers of a Zarr array, and change none.
UNDECODING = (
    "CopyOnWriteArray",
    "ImplicitToExplicitIndexingAdapter",
    "LazilyIndexedArray",
    "MemoryCachedArray",
    "ZarrArrayWrapper",
)

# Files that a worker process keeps open for later blocks.
OPEN_FILES = 32


class FileVariable:
    """A variable of a file, which is indexed by slices.

    Parameters
    ----------
    variable : object
        With ``shape``, ``dtype``, ``name``, ``attrs`` and ``chunks``.
    decoding : Decoding, optional
        How its numbers become values.
    """

    def __init__(self, variable: Any, decoding: Decoding | None = None) -> None:
        self._variable = variable
        self.decoding = decoding
        self.shape: Sizes = tuple(variable.shape)
        self.ndim = len(self.shape)
        self.sample = self._no_rows()
        self.dtype: np.dtype[Any] = self.sample.dtype

    def __getitem__(self, key: Any) -> Any:
        return self._variable[key]

    def __reduce__(self) -> Any:
        raise _errors.file_not_sent(str(self._variable.name))

    @property
    def stored(self) -> Sizes | None:
        """Shape of the stored chunks; None if the variable is stored in one piece."""
        chunks = self._variable.chunks
        return None if chunks is None else tuple(chunks)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes that may say what the numbers mean."""
        attributes: Mapping[str, Any] = self._variable.attrs
        return attributes

    def decoded_by(self, decoding: Decoding | None) -> FileVariable:
        """The variable with another decoding."""
        return type(self)(self._variable, decoding)

    def lazy(self) -> Any:
        """A Dask array of the values. The task that reads a block also decodes it."""
        import dask.array as da

        chunks = block_chunks(self.shape, self.stored)
        stored = da.from_array(self, chunks=chunks, meta=self.sample, **_as_it_is())
        return decoded(stored, self.decoding)

    def _no_rows(self) -> Any:
        """An empty array of the type that indexing returns."""
        return np.empty((0,) * self.ndim, self._variable.dtype)


class HDF5Variable(FileVariable):
    """A ``h5py.Dataset``. Another process opens its file by path."""

    def __reduce__(self) -> Any:
        path, name = str(self._variable.file.filename), str(self._variable.name)
        if not Path(path).is_file():
            raise _errors.file_not_sent(name)
        return _hdf5_again, (str(Path(path).resolve()), _version(path), name)


class NetCDFVariable(FileVariable):
    """A ``netCDF4.Variable``. Another process opens its file by path, and decodes alike."""

    def __getitem__(self, key: Any) -> Any:
        with _netcdf_lock():  # the library is not safe for threads
            return self._variable[key]

    def __reduce__(self) -> Any:
        variable = self._variable
        path, name = str(variable.group().filepath()), str(variable.name)
        if "://" not in path:
            if not Path(path).is_file():
                raise _errors.file_not_sent(name)
            path = str(Path(path).resolve())
        decoding = variable.mask, variable.scale, variable.always_mask
        within = f"{variable.group().path.rstrip('/')}/{name}"
        return _netcdf_again, (path, _version(path), within, decoding)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """None: the library follows them, unless the user told it not to."""
        return {}

    @property
    def stored(self) -> Sizes | None:
        """Shape of the stored chunks; None if the variable is stored in one piece."""
        chunks = self._variable.chunking()
        return tuple(chunks) if isinstance(chunks, list) else None

    def _no_rows(self) -> Any:
        return self[(slice(0, 0),) * self.ndim]


_KINDS = (
    ("h5py", "Dataset", HDF5Variable),
    ("h5netcdf", "Variable", FileVariable),
    ("netCDF4", "Variable", NetCDFVariable),
)


def file_variable(value: Any) -> FileVariable | None:
    """A variable of h5py, h5netcdf or netCDF4, of at least one dimension; None for other values."""
    if isinstance(value, FileVariable):
        return value
    for module, name, kind in _KINDS:
        if is_instance(value, module, name):
            return kind(value) if value.shape else None
    return None


def _as_it_is() -> dict[str, Any]:
    """Options of ``from_array``: Dask's own name would hash an array, which may read all of it."""
    return {"name": f"nlsq-stored-{uuid.uuid4().hex}", "inline_array": True}


def _version(path: str) -> int:
    """What differs after a file is written anew: a process then opens the new file."""
    return Path(path).stat().st_mtime_ns if "://" not in path else 0


def _hdf5_again(path: str, version: int, name: str) -> HDF5Variable:
    return HDF5Variable(_open_hdf5(path, version)[name])


def _netcdf_again(
    path: str, version: int, name: str, decoding: tuple[bool, bool, bool]
) -> NetCDFVariable:
    with _netcdf_lock():
        variable = _open_netcdf(path, version)[name]
        variable.set_auto_mask(decoding[0])
        variable.set_auto_scale(decoding[1])
        variable.set_always_mask(decoding[2])
    return NetCDFVariable(variable)


@lru_cache(maxsize=OPEN_FILES)
def _open_hdf5(path: str, version: int) -> Any:  # noqa: ARG001  # part of the key of the cache
    import h5py

    return h5py.File(path, "r")


@lru_cache(maxsize=OPEN_FILES)
def _open_netcdf(path: str, version: int) -> Any:  # noqa: ARG001  # part of the key of the cache
    import netCDF4

    return netCDF4.Dataset(path)


_LOCK = threading.RLock()


def _netcdf_lock() -> Any:
    """The lock under which netCDF files are read: that of xarray if it may read some, too."""
    backend = sys.modules.get("xarray.backends.netCDF4_")
    return getattr(backend, "NETCDF4_PYTHON_LOCK", _LOCK)


def is_lazy_variable(variable: Any) -> bool:
    """Whether the numbers of a variable of xarray are in a file, and it is no Dask array.

    The public attributes that would tell, such as ``data``, load the numbers. Without the private
    ones every array in memory would be read in blocks, which gives the same sums.
    """
    if not variable.ndim or getattr(variable, "_in_memory", False):
        return False
    indexing, data = sys.modules.get("xarray.core.indexing"), getattr(variable, "_data", None)
    # Labels of an index are in memory, or computed from two ends of a range.
    of_index = ("PandasIndexingAdapter", "CoordinateTransformIndexingAdapter")
    if isinstance(data, tuple(getattr(indexing, name, type(None)) for name in of_index)):
        return False
    return isinstance(data, getattr(indexing, "ExplicitlyIndexed", ()))


def data_of_variable(variable: Any) -> Any:
    """The numbers of a variable of xarray, without loading them.

    Parameters
    ----------
    variable : xarray.Variable

    Returns
    -------
    array
        A Dask array if the numbers are not in memory; otherwise what the variable holds.
    """
    # A copy: if anything loads its numbers, the variable of the user still has none.
    variable = variable.copy(deep=False)
    if not is_lazy_variable(variable):
        return variable.data
    stored = _stored_chunks(variable)
    kept = [_kept_positions(variable, d) if variable.size else None for d in range(variable.ndim)]
    chunks = block_chunks(variable.shape, stored, kept)
    by_name = dict(zip(variable.dims, chunks, strict=True))
    # A key of the graph, and no part of each task: a leaf can take the place of the object.
    options = _as_it_is() | {"inline_array": False}
    return variable.chunk(by_name, from_array_kwargs=options).data


def zarr_inside(value: Any) -> Any | None:
    """The Zarr array that a value of a Dask graph is, or that xarray reads there.

    None for other values, and for a part or a transpose of a Zarr array: the pieces of such an
    array are not those of the Zarr array.
    """
    while value is not None and not is_zarr(value):
        key = getattr(getattr(value, "key", None), "tuple", ())
        inner = _inner(value)
        for part, n in zip(key, getattr(inner, "shape", ()), strict=False):
            if not isinstance(part, slice) or part.indices(n) != (0, n, 1):
                return None
        value = inner
    return value


def undecoded(value: Any) -> Any | None:
    """The Zarr array of which a value of a Dask graph gives all numbers as they are stored.

    None for other values, and for an object of xarray that decodes numbers, or selects some.
    """
    inner = value
    while not is_zarr(inner):
        if type(inner).__name__ not in UNDECODING:
            return None
        inner = _inner(inner)
    whole = zarr_inside(value)
    return whole if value is whole or value.dtype == inner.dtype else None


def zarr_below(value: Any) -> Any | None:
    """The Zarr array that a value of a Dask graph is, or is a part or a transpose of."""
    while value is not None and not is_zarr(value):
        value = _inner(value)
    return value


def stored_positions(value: Any, box: Sequence[slice]) -> list[np.ndarray[Any, Any]] | None:
    """Positions in a Zarr array that a part of a value below which it is reads, along each axis.

    Parameters
    ----------
    value : object
        A Zarr array, or an object of xarray that reads a part of a Zarr array.
    box : sequence of slice
        Part of the value.

    Returns
    -------
    list of ndarray of int, or None
        None where axes do not correspond, as in vectorised indexing.
    """
    ranges = [range(n)[part] for part, n in zip(box, value.shape, strict=True)]
    positions = [np.arange(r.start, r.stop, r.step) for r in ranges]
    while not is_zarr(value):
        inner = _inner(value)
        key = getattr(getattr(value, "key", None), "tuple", ())
        if key:
            varying = [isinstance(part, slice) or np.ndim(part) > 0 for part in key]
            if sum(varying) != len(positions) or any(np.ndim(part) > 1 for part in key):
                return None
            of_value = iter(positions)
            positions = [
                _positions_through(part, n, next(of_value)) if varies else np.array([int(part) % n])
                for part, n, varies in zip(key, inner.shape, varying, strict=True)
            ]
        value = inner
    return positions


def _positions_through(part: Any, n: int, chosen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Positions along an axis of length n of what is chosen from a part of the axis."""
    if isinstance(part, slice):
        whole = range(n)[part]
        return whole.start + whole.step * chosen
    positions: np.ndarray[Any, Any] = np.asarray(part)[chosen] % n
    return positions


def _inner(value: Any) -> Any:
    """What an object that reads through another one reads."""
    return value.get_array() if hasattr(value, "get_array") else getattr(value, "array", None)


def _stored_chunks(variable: Any) -> tuple[int | Sizes, ...] | None:
    """Stored chunks of a variable along its dimensions; None if they are not known.

    The encoding lists sizes by the dimensions of the file. The variable may have fewer, or have
    them in another order.
    """
    encoding = variable.encoding
    by_name = dict(encoding.get("preferred_chunks") or {})
    sizes = encoding.get("shards") or encoding.get("chunksizes") or encoding.get("chunks")
    dims = tuple(by_name) or variable.dims
    # A read of a part of a shard opens the shard, so that shards count where there are some.
    if (
        isinstance(sizes, tuple)
        and len(sizes) == len(dims)
        and (encoding.get("shards") or not by_name)
    ):
        by_name = dict(zip(dims, sizes, strict=True))
    if not by_name:
        return None
    return tuple(by_name.get(dim, n) for dim, n in variable.sizes.items())


def _kept_positions(variable: Any, axis: int) -> range | np.ndarray[Any, Any] | None:
    """Positions in the file of what was chosen along an axis; None for all or if not known.

    Where a variable is a part of what is stored, the first chunk may have been cut.
    """
    data = getattr(variable, "_data", None)
    while type(data).__name__ in ("MemoryCachedArray", "CopyOnWriteArray"):
        data = data.array  # type: ignore[union-attr]
    key = getattr(getattr(data, "key", None), "tuple", ())
    stored = getattr(getattr(data, "array", None), "shape", ())
    kept: list[Any] = []
    for part, n in zip(key, stored, strict=False):
        if isinstance(part, slice):
            kept.append(range(*part.indices(n)))
        elif isinstance(part, np.ndarray) and part.ndim == 1:
            kept.append(part)
        elif isinstance(part, np.ndarray):  # transposed: each part varies along one axis
            lines = [_line(part, d) for d in range(part.ndim)]
            if [d for d, line in enumerate(lines) if line.min() < line.max()] == [axis]:
                return lines[axis]
    return kept[axis] if len(kept) == variable.ndim else None


def _line(array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """The first line of an array along an axis."""
    return array[tuple(slice(None) if d == axis else 0 for d in range(array.ndim))]


def block_chunks(
    shape: Sizes,
    stored: Sequence[int | Sizes] | None,
    kept: Sequence[Any] | None = None,
) -> Chunks:
    """Blocks of whole stored chunks.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    stored : sequence of (int or tuple of int) or None
        Lengths of the stored chunks along each dimension: one for all, or one for each. None if the
        array is stored in one piece.
    kept : sequence of (range, ndarray or None), optional
        For each dimension the stored positions that the array has, or None for all of them.

    Returns
    -------
    tuple of tuple of int
        Small chunks are joined, as :func:`~nlsq_dask.io.chunks.joined_chunks` joins them.
    """
    if stored is None:
        most = max(math.prod(shape) // LEAST_JOINED, LEAST_ROWS)
        return regular_chunks(shape, min(most, JOINED_ROWS))
    sizes = [max(c) if isinstance(c, tuple) else int(c) for c in stored]
    joined = joined_chunks(shape, sizes, LEAST_ROWS)
    known = kept if kept is not None else [None] * len(shape)
    return tuple(
        chunk if isinstance(chunk, tuple) and sum(chunk) == n else _cuts(n, size, positions)
        for n, chunk, size, positions in zip(shape, stored, joined, known, strict=True)
    )


def _cuts(n: int, size: int, positions: Any | None) -> Sizes:
    """Lengths of blocks that end where the stored positions pass a multiple of a size."""
    regular = tuple(min(size, n - i) for i in range(0, n, max(size, 1))) or (0,)
    if positions is None or len(positions) != n or size >= n:
        return regular
    edges = _edges_in_range(positions, size) if isinstance(positions, range) else None
    if edges is None:
        at = np.asarray(positions) // size
        edges = (np.flatnonzero(np.diff(at)) + 1).tolist()
        # Positions in no order would make very many short blocks.
        if len(edges) > abs(int(at[-1]) - int(at[0])):
            return regular
    return tuple(b - a for a, b in itertools.pairwise([0, *edges, n]))


def _edges_in_range(positions: range, size: int) -> list[int]:
    """Where the positions of a slice pass a multiple of a size."""
    first, last, step = positions[0], positions[-1], positions.step
    if step > 0:
        passed = range((first // size + 1) * size, last + 1, size)
        edges = (-(-(multiple - first) // step) for multiple in passed)
    else:
        passed = range(first // size * size, last, -size)
        edges = ((first - multiple) // -step + 1 for multiple in passed)
    return sorted(set(edges))
