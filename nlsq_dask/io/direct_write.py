"""Write chunks of Zarr arrays to local files, encoded in the thread that made the values.

Zarr hands a chunk from thread to thread to encode and to write it, some 2.5 ms a chunk. Where other
threads compute, each of these threads waits for Python's lock. A chunk of a plain array needs none
of that. The files have the bytes of Zarr's. Arrays that are not plain, and parts of chunks, go
Zarr's way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.chunk_codec import ChunkCodec, checksum_of, name_of_codec
from nlsq_dask.io.direct import has_equal_chunks, why_not_native
from nlsq_dask.io.libraries import local_folder

# Codecs of a plain array, in the order in which they encode.
CODECS = ["zarr.BytesCodec", "zarr.ZstdCodec", "zarr.Crc32cCodec"]


@dataclass(frozen=True, slots=True)
class DirectWriter:
    """Writes chunks of a Zarr array as files.

    Attributes
    ----------
    array : zarr.Array
    folder : Path
        Of the array.
    level : int
        Of zstd.
    """

    array: Any
    folder: Path
    level: int

    def write(self, region: tuple[slice, ...], values: NDArray[Any]) -> bool:
        """Write the values of a region; False, and nothing is written, if it is not one chunk."""
        coords = []
        for part, n, length in zip(region, self.array.chunks, self.array.shape, strict=True):
            start, stop, _ = part.indices(length)
            if start % n or stop != min(start + n, length) or start == stop:
                return False
            coords.append(start // n)
        chunk = values
        if values.shape != self.array.chunks:  # at the end of an axis
            chunk = np.full(self.array.chunks, self.array.fill_value, self.array.dtype)
            chunk[tuple(map(slice, values.shape))] = values
        stored = _encoded(np.ascontiguousarray(chunk), self.level)
        path = self.folder / self.array.metadata.encode_chunk_key(tuple(coords))
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with begun.open("wb") as file:
                file.writelines(stored)
            begun.replace(path)  # a reader sees the old chunk or the new one
        finally:
            begun.unlink(missing_ok=True)
        return True


def _encoded(chunk: NDArray[Any], level: int) -> tuple[bytes, bytes]:
    """The bytes of a chunk, compressed, and their checksum."""
    compress: Callable[..., bytes] = import_module("numcodecs.zstd").compress
    packed = compress(chunk.reshape(-1).view(np.uint8), level)
    return packed, checksum_of(packed)


def direct_writer(array: Any) -> DirectWriter | None:
    """Writer of a Zarr array; None for an array that only Zarr can write.

    Parameters
    ----------
    array : zarr.Array
    """
    root = local_folder(array.store)
    if root is None or why_not_native(array):
        return None
    metadata = array.metadata
    if metadata.zarr_format != 3 or not has_equal_chunks(array):
        return None
    if [name_of_codec(codec) for codec in metadata.codecs] != CODECS:
        return None
    known = ChunkCodec.of(array)
    if known is None or not known.dtype.isnative:
        return None
    zstd = metadata.codecs[1]
    return None if zstd.checksum else DirectWriter(array, root / array.path, zstd.level)
