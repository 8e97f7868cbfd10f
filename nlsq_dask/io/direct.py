"""Read chunks of Zarr arrays from local files straight into memory that is used again.

Zarr reads a chunk into fresh memory, decodes the chunk into fresh memory, and hands the work from
thread to thread. A plain chunk file needs none of that. The values are those of Zarr: whatever is
not plain goes Zarr's way, and so does every chunk that is not as expected (not written, of another
length, damaged), so that Zarr decides which values or which error it gives.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.libraries import local_folder
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_thread

#: Decodes the bytes of a file into an array; False if the file has not the length of the array.
Decoder: TypeAlias = Callable[[NDArray[np.uint8], NDArray[Any]], bool]

# Kinds of dtypes whose stored bytes are their values.
PLAIN_KINDS = "biuf"

# Zarr's settings under which chunks are read by Zarr's own code into NumPy arrays.
PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
BUFFER = "zarr.buffer.cpu.Buffer"

# Names of no compression, and of codecs that are not plain.
NONE, OTHER = "none", "other"

# Errors by which the decoders refuse what is not of their format.
DAMAGED = (RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class DirectReader:
    """Reads boxes of a Zarr array whose chunks are plain files.

    Attributes
    ----------
    array : zarr.Array
    folder : Path
        Of the chunks' files.
    dtype : dtype
    chunks : tuple of int
        Lengths of a chunk.
    decoder : callable or None
        None for chunks that are not compressed.
    """

    array: Any
    folder: Path
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    decoder: Decoder | None

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
        memory = memory_of_thread()
        values = memory.empty(tuple(stop - start for start, stop in box), self.dtype)
        along = [
            range(start // n, -(-stop // n))
            for (start, stop), n in zip(box, self.chunks, strict=True)
        ]
        for coords in itertools.product(*along):
            if not self._read_chunk(coords, box, values, memory):
                return None
        return values

    def _read_chunk(
        self,
        coords: tuple[int, ...],
        box: list[tuple[int, int]],
        values: NDArray[Any],
        memory: ReusedMemory,
    ) -> bool:
        """Read the part of a chunk that is in a box into the values of the box."""
        inside, target = [], []
        for i, n, (start, stop) in zip(coords, self.chunks, box, strict=True):
            first, last = max(i * n, start), min((i + 1) * n, stop)
            inside.append(slice(first - i * n, last - i * n))
            target.append(slice(first - start, last - start))
        part = values[tuple(target)]
        if part.shape == self.chunks and part.flags.c_contiguous:
            return self._decode(coords, part, memory)
        chunk = memory.empty(self.chunks, self.dtype)
        if not self._decode(coords, chunk, memory):
            return False
        part[...] = chunk[tuple(inside)]
        return True

    def _decode(self, coords: tuple[int, ...], chunk: NDArray[Any], memory: ReusedMemory) -> bool:
        """Read the file of a chunk into an array."""
        path = self.folder / self.array.metadata.encode_chunk_key(coords)
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if self.decoder is None:
                    return bool(size == chunk.nbytes == file.readinto(_bytes(chunk).data))
                stored = memory.empty((size,), np.dtype(np.uint8))
                return size == file.readinto(stored.data) and self.decoder(stored, _bytes(chunk))
        except OSError:
            return False


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.reshape(-1).view(np.uint8)


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
    root = local_folder(array.store)
    if root is None or why_not_direct(array):
        return None
    folder, dtype = root / array.path, np.dtype(array.dtype)
    return DirectReader(array, folder, dtype, tuple(array.chunks), DECODERS[_compression(array)])


def why_not_direct(array: Any) -> str:
    """Why Zarr must read an array, as the end of a sentence; empty if its files can be read."""
    why = why_not_native(array)
    if why:
        return why
    if array.metadata.zarr_format == 3 and not has_equal_chunks(array):
        return "its chunks are unequal"
    return "" if _compression(array) in DECODERS else "of its codecs"


def why_not_native(array: Any) -> str:
    """Why the bytes of an array are not local files of plain numbers; empty if they may be."""
    import zarr

    dtype = np.dtype(array.dtype)
    if type(array) is not zarr.Array or local_folder(array.store) is None:
        return "it lies in no local folder"
    if zarr.config.get("codec_pipeline.path") != PIPELINE or zarr.config.get("buffer") != BUFFER:
        return "Zarr has other settings"
    if dtype.kind not in PLAIN_KINDS or not dtype.isnative or sys.byteorder != "little":
        return f"of its dtype {dtype}"
    return ""


def has_equal_chunks(array: Any) -> bool:
    """Whether all chunks have one shape, but for the ends of the axes."""
    return type(array.metadata.chunk_grid).__name__.startswith("RegularChunkGrid")


def _compression(array: Any) -> str:
    """The compressor of an array whose chunks are plain but for it; "other" for other arrays."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        plain = not metadata.filters and metadata.order == "C"
        return name_of_codec(metadata.compressor) if plain else OTHER
    first, *rest = metadata.codecs
    endian = getattr(first, "endian", None)
    if name_of_codec(first) != "zarr.BytesCodec" or len(rest) > 1:
        return OTHER
    if getattr(endian, "value", endian) not in (None, "little"):
        return OTHER
    return name_of_codec(rest[0]) if rest else NONE


def name_of_codec(codec: Any) -> str:
    """Package and class of a codec; "none" for None."""
    if codec is None:
        return NONE
    return f"{type(codec).__module__.partition('.')[0]}.{type(codec).__name__}"


def _zstd(stored: NDArray[np.uint8], chunk: NDArray[np.uint8]) -> bool:
    """Decode one frame of zstd that tells its length (RFC 8878, section 3.1.1.1)."""
    head = stored[:18].tobytes()
    if len(head) < 9 or head[:4] != b"\x28\xb5\x2f\xfd":
        return False
    flags = head[4]
    single = flags >> 5 & 1
    size = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    length = int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)
    if not size or length != chunk.nbytes:
        return False
    return _decoded("zstd", stored, chunk)


def _blosc(stored: NDArray[np.uint8], chunk: NDArray[np.uint8]) -> bool:
    """Decode a buffer of blosc, whose header has the lengths (README_CHUNK_FORMAT of c-blosc)."""
    head = stored[:16].tobytes()
    length, packed = (int.from_bytes(head[i : i + 4], "little") for i in (4, 12))
    if len(head) < 16 or length != chunk.nbytes or packed != stored.size:
        return False
    return _decoded("blosc", stored, chunk)


def _lz4(stored: NDArray[np.uint8], chunk: NDArray[np.uint8]) -> bool:
    """Decode a buffer of lz4 behind four bytes that tell its length, as numcodecs writes it."""
    if int.from_bytes(stored[:4].tobytes(), "little") != chunk.nbytes:
        return False
    return _decoded("lz4", stored, chunk)


def _decoded(codec: str, stored: NDArray[np.uint8], chunk: NDArray[np.uint8]) -> bool:
    """Decode by a module of numcodecs, which Zarr brings."""
    try:
        import_module(f"numcodecs.{codec}").decompress(stored, chunk)
    except DAMAGED:
        return False
    return True


#: Codecs that decode into a given array, by package and class.
DECODERS: dict[str, Decoder | None] = {
    NONE: None,
    "zarr.ZstdCodec": _zstd,
    "zarr.BloscCodec": _blosc,
    "numcodecs.Zstd": _zstd,
    "numcodecs.Blosc": _blosc,
    "numcodecs.LZ4": _lz4,
}
