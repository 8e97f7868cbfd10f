"""Where a part of an array lies: its place in messages, down to the chunks of a Zarr store."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.libraries import inner_store, local_folder

# Most chunk keys that are looked up for a message.
MOST_KEYS = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the data of a fit, for messages.

    Attributes
    ----------
    names : tuple of str
        Names of the arrays that the part belongs to; empty for an array upstream.
    index : tuple of int
        Index of the block.
    box : tuple of slice
        Rows of the block; empty if they are not known.
    stored : tuple of str
        Zarr chunks that hold the part, each store with the first few of its keys.
    """

    names: tuple[str, ...]
    index: tuple[int, ...] = ()
    box: Box = ()
    stored: tuple[str, ...] = ()


def stored_lengths(array: Any) -> tuple[int, ...]:
    """Lengths of the parts of a Zarr array that have keys of their own: shards, or else chunks."""
    return tuple(array.shards or array.chunks)


def chunk_key(array: Any, index: tuple[int, ...]) -> str:
    """Key of a chunk, or shard, of a Zarr array in its store."""
    prefix = f"{array.path}/" if array.path else ""
    key: str = array.metadata.encode_chunk_key(index)
    return prefix + key


def metadata_key(array: Any) -> str:
    """Key of the metadata of a Zarr array in its store."""
    name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
    return f"{array.path}/{name}" if array.path else name


def check_there(array: Any) -> None:
    """Refuse a Zarr array in a folder that this process does not find.

    Zarr reads each chunk of such an array as its fill value. A worker may lack the file system of
    the data, or be in another working directory; or the file system went away.

    Parameters
    ----------
    array : zarr.Array
        An array that was opened, here or in another process.

    Raises
    ------
    FileNotFoundError
    """
    folder = local_folder(inner_store(array.store))
    if folder is None or (folder / metadata_key(array)).is_file():
        return
    # Metadata of a group may be consolidated: the array then needs none of its own.
    if not (folder / array.path).is_dir():
        raise _errors.array_not_here(str(folder.absolute() / array.path))


def stored_chunks(array: Any, box: tuple[slice, ...] | None) -> str:
    """The chunks (or shards) of a Zarr array that hold a part of it, by key, and its store.

    Parameters
    ----------
    array : zarr.Array
    box : tuple of slice or None
        The part; None if it is not known.
    """
    name = str(array.store)
    if box is None or len(box) != array.ndim:
        return f"array {array.path!r} of {name}" if array.path else name
    ranges = []
    for part, n, chunk in zip(box, array.shape, stored_lengths(array), strict=True):
        start, stop, _ = part.indices(n)
        ranges.append(range(start // chunk, max(math.ceil(stop / chunk), start // chunk + 1)))
    few = itertools.islice(itertools.product(*ranges), MOST_KEYS)
    keys = [chunk_key(array, index) for index in few]
    more = math.prod(map(len, ranges)) - len(keys)
    listed = f"{', '.join(keys)} and {more} more" if more else ", ".join(keys)
    return f"chunk {listed} of {name}" if len(keys) == 1 else f"chunks {listed} of {name}"
