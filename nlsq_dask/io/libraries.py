"""Arrays of optional libraries, recognised without importing the libraries.

While a library is not imported, no value is an instance of its classes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def is_plain(value: Any) -> bool:
    """Whether a value is None, or a NumPy array of real numbers, which has nothing of a library."""
    return value is None or (type(value) is np.ndarray and value.dtype.kind in "fiub")


def is_dask(value: Any) -> bool:
    """Whether a value is a Dask array."""
    return is_instance(value, "dask.array", "Array")


def is_zarr(value: Any) -> bool:
    """Whether a value is a Zarr array."""
    return is_instance(value, "zarr", "Array")


def is_xarray(value: Any) -> bool:
    """Whether a value is an array of xarray, whose dimensions have names."""
    return is_instance(value, "xarray", "DataArray")


def is_zarr_group(value: Any) -> bool:
    """Whether a value is a Zarr group."""
    return is_instance(value, "zarr", "Group")


def is_zarr_store(value: Any) -> bool:
    """Whether a value is a store of Zarr."""
    return is_instance(value, "zarr.abc.store", "Store")


def inner_store(store: Any) -> Any:
    """The store of Zarr inside of wrappers that log or cache."""
    while hasattr(store, "_store"):
        store = store._store  # noqa: SLF001  # there is no public name
    return store


def local_folder(store: Any) -> Path | None:
    """The folder of a store of Zarr whose keys are files on this machine; None for any other store.

    Dask opens a path by fsspec, whose local file system reads the files that Zarr's store reads.
    """
    if _has_name(store, "zarr", "LocalStore"):
        return Path(store.root)
    system = getattr(store, "fs", None)
    system = getattr(system, "sync_fs", system)
    if not _has_name(store, "zarr", "FsspecStore") or not _has_name(
        system, "fsspec", "LocalFileSystem"
    ):
        return None
    folder = Path(store.path)
    return folder if folder.is_absolute() else None  # fsspec may expand a relative path


def is_unsafe_zip(store: Any) -> bool:
    """Whether a store of Zarr is a zip archive that is open for writing.

    Dask pickles and unpickles arrays to name them, and so do clusters. The copy opens the archive
    in the same mode, which empties the archive or writes a second directory over the entries.
    """
    inner = inner_store(store)
    return _has_name(inner, "zarr", "ZipStore") and not inner.read_only


def object_store(store: Any) -> Any | None:
    """The store of obstore whose objects a store of Zarr gives as they are; None for any other."""
    inner = getattr(store, "store", None)
    is_known = type(inner).__module__.partition(".")[0] == "obstore"
    return inner if is_known and _has_name(store, "zarr", "ObjectStore") else None


def _has_name(value: Any, package: str, name: str) -> bool:
    """Whether the class of a value, not one above it, has such a name in a package."""
    kind = type(value)
    return kind.__name__ == name and kind.__module__.partition(".")[0] == package


def is_instance(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of an optional library. Does not import the library."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
