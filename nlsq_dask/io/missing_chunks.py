"""Chunks of a Zarr array that are not in its store.

Zarr reads such a chunk as the array's fill value, mostly 0. It may have been lost, or never been
written; or it holds fill values alone, and Zarr has not stored it for that reason. Zarr cannot tell
one from the other, and neither can anybody who reads. Where the fill value means "missing" (it is
NaN, or the attributes say so), a chunk of it leaves rows out or is refused, and is never taken for
data.

The keys of a store are listed, a thousand at a time in an object store. Of an array in shards the
keys are those of the shards, and a short read of each shard shows which chunks it lacks.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.cf import Decoding
from nlsq_dask.io.libraries import inner_store, local_folder
from nlsq_dask.io.places import chunk_key, metadata_key, stored_lengths
from nlsq_dask.io.shards import absent_in, chunks_of
from nlsq_dask.io.stored import of_zarr

#: Index of a chunk; of an array in shards, of a chunk within a shard, among all chunks.
ChunkIndex: TypeAlias = tuple[int, ...]


def n_stored(array: Any) -> int:
    """Number of chunks that an array has if all are in the store."""
    return math.prod(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True))


def chunk_label(array: Any, index: ChunkIndex) -> str:
    """Name of a chunk in messages: its key, or the key of its shard and its place in the shard."""
    if not array.shards:
        return chunk_key(array, index)
    grids = [s // c for s, c in zip(array.shards, array.chunks, strict=True)]
    shard = tuple(i // k for i, k in zip(index, grids, strict=True))
    inside = ", ".join(str(i % k) for i, k in zip(index, grids, strict=True))
    return f"{chunk_key(array, shard)}[{inside}]"


def absent_chunks(array: Any) -> frozenset[ChunkIndex] | None:
    """Chunks of a Zarr array that are not in its store, or not in their shard.

    Parameters
    ----------
    array : zarr.Array

    Returns
    -------
    frozenset of tuple of int, or None
        None if the store cannot list its keys. Some stores, as of HTTP, list none or a part.
    """
    keys = _listed(array.store, array.path)
    if keys is None or metadata_key(array) not in keys:
        return None
    named = {index: chunk_key(array, index) for index in itertools.product(*_ranges(array))}
    absent = [index for index, key in named.items() if key not in keys]
    if not array.shards:
        return frozenset(absent)
    stored = {index: key for index, key in named.items() if key in keys}
    inside = absent_in(array, stored, local_folder(inner_store(array.store)))
    return frozenset(itertools.chain(*(chunks_of(array, shard) for shard in absent), inside))


def fill_means_missing(array: Any, decoding: Decoding | None, fill_value: Any = None) -> bool:
    """Whether the array's fill value is no data: NaN, or what attributes or an argument say.

    Parameters
    ----------
    array : zarr.Array
    decoding : Decoding or None
        How stored numbers become values.
    fill_value : number, optional
        Number that marks missing values.
    """
    fill = np.asarray(array.fill_value)
    if fill.dtype.kind in "mM":
        return bool(np.isnat(fill))
    if fill.dtype.kind not in "fiu":
        return False
    value = fill if decoding is None else decoding(fill.astype(array.dtype)[None])[0]
    return bool(np.isnan(value)) or (fill_value is not None and bool(fill == fill_value))


def declared_decoding(array: Any) -> Decoding | None:
    """The decoding that the attributes of a Zarr array declare; None if they hold no numbers."""
    try:
        decoding: Decoding | None = of_zarr(array, array.path).decoding
    except _errors.InputError:
        return None
    return decoding


def _ranges(array: Any) -> list[range]:
    lengths = zip(array.shape, stored_lengths(array), strict=True)
    return [range(-(-n // chunk)) for n, chunk in lengths]


def _listed(store: Any, path: str) -> frozenset[str] | None:
    """Keys of a store below a path."""
    if not store.supports_listing:
        return None
    inner = inner_store(store)
    folder = local_folder(inner)
    if folder is not None:
        return frozenset(_files_below(folder, path))
    from zarr.core.sync import sync  # runs on the loop of Zarr, to which stores are tied

    if hasattr(inner, "fs"):  # of fsspec, which may remember what it listed before
        inner.fs.invalidate_cache()
    try:
        return frozenset(sync(_collected(store.list_prefix(f"{path}/" if path else ""))))
    except NotImplementedError:
        return None


async def _collected(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


def _files_below(root: Path, path: str) -> list[str]:
    """Keys of a local store. Zarr's own listing would hold up the loop that reads chunks.

    A link to nothing is no key: Zarr reads the chunk as the fill value. Large files that are not
    fetched yet are such links in repositories of git-annex.
    """
    found, folders = [], [f"{path}/" if path else ""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{prefix}{entry.name}/")
                elif not entry.is_symlink() or entry.is_file():
                    found.append(prefix + entry.name)
    return found
