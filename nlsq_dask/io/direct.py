"""Read chunks of Zarr arrays, as stored, straight into memory that is used again.

Zarr reads a chunk into fresh memory, decodes the chunk into fresh memory, and hands the work from
thread to thread. A chunk file, or a shard, needs none of that. The values are those of Zarr:
whatever is not known here goes Zarr's way, and so does every box with a chunk that is not as
expected (of another length, damaged, its file not there), so that Zarr decides which values or
which error it gives.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.chunk_codec import ChunkCodec, unknown_codec
from nlsq_dask.io.libraries import local_folder, object_store
from nlsq_dask.io.objects import fetched
from nlsq_dask.io.places import chunk_key, stored_lengths
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_thread
from nlsq_dask.io.shards import NOWHERE, ShardIndex

# Kinds of dtypes whose stored bytes are their values.
PLAIN_KINDS = "biuf"

# Zarr's settings under which chunks are read by Zarr's own code into NumPy arrays.
PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
BUFFER = "zarr.buffer.cpu.Buffer"

# Whether the system reads into several buffers by one call. Windows does not.
READS_IN_PARTS = hasattr(os, "readv")


@dataclass(frozen=True, slots=True)
class DirectReader:
    """Reads boxes of a Zarr array whose chunks, or shards, are files.

    Attributes
    ----------
    array : zarr.Array
    folder : str
        Of the files, on this machine.
    objects : obstore.store.ObjectStore or None
        Store that holds the files instead.
    codec : ChunkCodec
    chunks : tuple of int
        Lengths of a chunk.
    files : tuple of int
        Lengths of the part of the array that is in one file.
    index : ShardIndex or None
        None for an array without shards.
    key_of : callable
        The key of a chunk, or of a shard, below that of the array.
    """

    array: Any
    folder: str
    objects: Any | None
    codec: ChunkCodec
    chunks: tuple[int, ...]
    files: tuple[int, ...]
    index: ShardIndex | None
    key_of: Callable[[tuple[int, ...]], str]

    def read(self, index: Any) -> NDArray[Any] | None:
        """The values of a box, or None where Zarr must read them.

        Parameters
        ----------
        index : tuple of slice
            Any other index is left to Zarr.
        """
        box = _box(index, self.array.shape)
        if box is None:
            return None
        memory, codec = memory_of_thread(), self.codec
        values = codec.empty(tuple([stop - start for start, stop in box]), memory)
        if self.objects is not None:
            files = itertools.product(*_cells(box, self.files))
            whole = self._read_objects(list(files), box, values, memory)
        elif self.index is None and values.shape == self.chunks and _begins_chunk(box, self.chunks):
            whole = self._read_whole(box, values, memory)
        else:
            files = itertools.product(*_cells(box, self.files))
            whole = all(self._read_file(coords, box, values, memory) for coords in files)
        if not whole:
            return None
        if not codec.dtype.isnative and np.dtype(self.array.dtype).isnative:
            values = values.byteswap(inplace=True).view(self.array.dtype)
        return values

    def requests(self, index: Any) -> tuple[Any, list[str]] | None:
        """The object store and the keys that hold a box; None if it is read from no such store."""
        box = None if self.objects is None else _box(index, self.array.shape)
        if box is None:
            return None
        return self.objects, self._keys(itertools.product(*_cells(box, self.files)))

    def _keys(self, chunks: Iterable[tuple[int, ...]]) -> list[str]:
        return [chunk_key(self.array, coords) for coords in chunks]

    def _read_objects(
        self,
        chunks: list[tuple[int, ...]],
        box: list[tuple[int, int]],
        values: NDArray[Any],
        memory: ReusedMemory,
    ) -> bool:
        """Read the parts of chunks in an object store that are in a box."""
        keys = self._keys(chunks)
        for coords, stored in zip(chunks, fetched(self.objects, keys), strict=True):
            if stored is None:
                return False
            decode = partial(self.codec.decode, stored)
            if not self._read_chunk(decode, coords, box, values, memory):
                return False
        return True

    def _read_whole(
        self, box: list[tuple[int, int]], values: NDArray[Any], memory: ReusedMemory
    ) -> bool:
        """Read a box that is one chunk: a fast path, for data in many small chunks."""
        coords = tuple([start // n for (start, _), n in zip(box, self.chunks, strict=True)])
        stored = self.codec.in_order(values)
        assert stored is not None, "made in this order"
        path = f"{self.folder}/{self.key_of(coords)}"
        try:
            if self.codec.is_plain and READS_IN_PARTS:
                return _reads_whole(path, stored)
            with io.FileIO(path) as file:
                size = os.fstat(file.fileno()).st_size
                return self.codec.read(file, size, memory, stored)
        except OSError:
            return False

    def _read_file(
        self,
        coords: tuple[int, ...],
        box: list[tuple[int, int]],
        values: NDArray[Any],
        memory: ReusedMemory,
    ) -> bool:
        """Read the part of a file that is in a box into the values of the box."""
        try:
            path = f"{self.folder}/{self.key_of(coords)}"
            with io.FileIO(path) as file:
                size = os.fstat(file.fileno()).st_size
                if self.index is None:
                    read = partial(self.codec.read, file, size, memory)
                    return self._read_chunk(read, coords, box, values, memory)
                return self._read_shard(file, size, coords, box, values, memory)
        except OSError:
            return False

    def _read_shard(
        self,
        file: io.FileIO,
        size: int,
        coords: tuple[int, ...],
        box: list[tuple[int, int]],
        values: NDArray[Any],
        memory: ReusedMemory,
    ) -> bool:
        """Read the part of a shard that is in a box."""
        assert self.index is not None, "an array in shards"
        places = self.index.places(self.index.read(file, size))
        if places is None:
            return False
        grid = self.index.grid
        corner = [i * k for i, k in zip(coords, grid, strict=True)]
        inside = [
            range(max(cells.start, first), min(cells.stop, first + k))
            for cells, first, k in zip(_cells(box, self.chunks), corner, grid, strict=True)
        ]
        for chunk in itertools.product(*inside):
            local = tuple(i - first for i, first in zip(chunk, corner, strict=True))
            start, n_bytes = places[local].tolist()
            if start == n_bytes == NOWHERE:
                if not fills_missing(self.array):
                    return False
                values[self._overlap(chunk, box)[1]] = self.array.fill_value
                continue
            if start + n_bytes > size:
                return False
            file.seek(start)
            read = partial(self.codec.read, file, n_bytes, memory)
            if not self._read_chunk(read, chunk, box, values, memory):
                return False
        return True

    def _read_chunk(
        self,
        read: Callable[[NDArray[np.uint8]], bool],
        coords: tuple[int, ...],
        box: list[tuple[int, int]],
        values: NDArray[Any],
        memory: ReusedMemory,
    ) -> bool:
        """Read the part of a chunk that is in a box, by a function that fills a chunk's bytes."""
        inside, target = self._overlap(coords, box)
        part = values[target]
        if part.shape == self.chunks:
            stored = self.codec.in_order(part)
            if stored is not None:
                return read(stored)
        chunk = self.codec.empty(self.chunks, memory)
        stored = self.codec.in_order(chunk)
        if stored is None or not read(stored):
            return False
        part[...] = chunk[inside]
        return True

    def _overlap(
        self, coords: tuple[int, ...], box: list[tuple[int, int]]
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a chunk that is in a box: where in the chunk, and where in the box."""
        inside, target = [], []
        for i, n, (start, stop) in zip(coords, self.chunks, box, strict=True):
            first, last = max(i * n, start), min((i + 1) * n, stop)
            inside.append(slice(first - i * n, last - i * n))
            target.append(slice(first - start, last - start))
        return tuple(inside), tuple(target)


def _reads_whole(path: str, target: NDArray[np.uint8]) -> bool:
    """Read the bytes of a file into an array; False if the file does not have the array's length.

    A file object takes twice as long, for a chunk of a thousand numbers: it asks for the length.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One more byte is asked for, to notice a longer file.
        return os.readv(file, (target.data, memoryview(bytearray(1)))) == target.size
    finally:
        os.close(file)


def fills_missing(array: Any) -> bool:
    """Whether Zarr reads a chunk that is not there as the fill value, as it does by default."""
    return bool(getattr(getattr(array, "config", None), "read_missing_chunks", True))


def _cells(box: list[tuple[int, int]], lengths: tuple[int, ...]) -> list[range]:
    """Indices of the chunks, or of the shards, that a box has parts of."""
    return [range(start // n, -(-stop // n)) for (start, stop), n in zip(box, lengths, strict=True)]


def _begins_chunk(box: list[tuple[int, int]], chunks: tuple[int, ...]) -> bool:
    """Whether a box begins where a chunk begins."""
    return not any(start % n for (start, _), n in zip(box, chunks, strict=True))


def _box(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Start and stop along each dimension; None if an index is not a box with rows."""
    if not isinstance(index, tuple) or len(index) != len(shape) or not shape:
        return None
    box = []
    for part, n in zip(index, shape, strict=True):
        if not isinstance(part, slice):
            return None
        start, stop, step = part.indices(n)
        if step != 1 or start >= stop:
            return None
        box.append((start, stop))
    return box


def direct_reader(array: Any) -> DirectReader | None:
    """Reader of a Zarr array; None for an array that only Zarr can read.

    Parameters
    ----------
    array : zarr.Array
    """
    if why_not_direct(array):
        return None
    root, objects = local_folder(array.store), object_store(array.store)
    folder = "" if root is None else str(root / array.path)
    codec = ChunkCodec.of(array)
    assert codec is not None, "known, as there is no reason against it"
    index = ShardIndex.of(array) if array.shards else None
    lengths = tuple(array.chunks), stored_lengths(array)
    key_of = array.metadata.encode_chunk_key
    return DirectReader(array, folder, objects, codec, *lengths, index, key_of)


def why_not_direct(array: Any) -> str:
    """Why Zarr must read an array, as the end of a sentence; empty if its files can be read."""
    why = why_not_native(array)
    if why:
        return why
    if array.metadata.zarr_format == 3 and not has_equal_chunks(array):
        return "its chunks are unequal"
    if codec := unknown_codec(array):
        return f"of its codec {codec}"
    if array.shards and local_folder(array.store) is None:
        return "its shards lie in an object store"
    return "of the index of its shards" if array.shards and not ShardIndex.of(array) else ""


def why_not_native(array: Any) -> str:
    """Why the bytes of an array are not stored as plain numbers; empty if they may be."""
    import zarr

    dtype = np.dtype(array.dtype)
    is_local = local_folder(array.store) is not None
    if type(array) is not zarr.Array or not (is_local or object_store(array.store)):
        return "it lies neither in a local folder nor in a store of obstore"
    if zarr.config.get("codec_pipeline.path") != PIPELINE or zarr.config.get("buffer") != BUFFER:
        return "Zarr has other settings"
    # In format 3 the order of the stored bytes is that of a codec, and the array's own is another.
    is_native = dtype.isnative or array.metadata.zarr_format == 2
    if dtype.kind not in PLAIN_KINDS or not is_native or sys.byteorder != "little":
        return f"of its dtype {dtype}"
    return ""


def has_equal_chunks(array: Any) -> bool:
    """Whether all chunks have one shape, but for the ends of the axes."""
    return type(array.metadata.chunk_grid).__name__.startswith("RegularChunkGrid")
