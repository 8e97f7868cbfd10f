"""How the stored bytes of a Zarr chunk become its numbers, in memory that the caller gives.

A chunk is stored axis by axis in some order, each number in one of two byte orders. The bytes may
be compressed, and a checksum may stand behind them. Zarr has more codecs, in chains of any length.
Chunks of other chains are left to Zarr.
"""

from __future__ import annotations

import io
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.reused_memory import ReusedMemory

#: Decodes stored bytes into an array; False if they do not have the length of the array.
Decoder: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.uint8]], bool]

# Codecs that are no compression, by package and class.
TRANSPOSE, BYTES, CRC32C = "zarr.TransposeCodec", "zarr.BytesCodec", "zarr.Crc32cCodec"
SHARDS = "zarr.ShardingCodec"

# Libraries for checksums, and their functions: of Zarr from 3.1 on, and of Zarr 3.0.
CRC32C_LIBRARIES = (("google_crc32c", "value"), ("crc32c", "crc32c"))

# Bytes of a checksum.
CHECKSUM_BYTES = 4

# Bytes that are given to zlib at one time: what they become stays in the processor's cache.
GZIP_BYTES = 1 << 16

# Errors by which the decoders refuse what is not of their format.
DAMAGED = (RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class ChunkCodec:
    """How a chunk is stored.

    Attributes
    ----------
    dtype : dtype
        Of the stored numbers.
    axes : tuple of int
        Axes of the chunk, in the order in which they are stored.
    decompress : callable or None
        None for chunks that are not compressed.
    has_checksum : bool
        Whether a checksum stands behind the bytes.
    """

    dtype: np.dtype[Any]
    axes: tuple[int, ...]
    decompress: Decoder | None = None
    has_checksum: bool = False

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """The codec of the chunks of a Zarr array, in shards or not; None if only Zarr has it."""
        metadata, ndim, dtype = array.metadata, array.ndim, np.dtype(array.dtype)
        if unknown_codec(array):
            return None
        if metadata.zarr_format == 2:
            axes = range(ndim) if metadata.order == "C" else range(ndim)[::-1]
            return cls(dtype, tuple(axes), DECODERS[name_of_codec(metadata.compressor)])
        found = {name_of_codec(codec): codec for codec in chunk_codecs(array)}
        transpose, compressor = found.get(TRANSPOSE), found.keys() & DECODERS.keys()
        endian = getattr(found[BYTES].endian, "value", found[BYTES].endian)
        return cls(
            dtype if endian is None else dtype.newbyteorder(endian),
            tuple(range(ndim)) if transpose is None else tuple(transpose.order),
            DECODERS[compressor.pop()] if compressor else None,
            CRC32C in found,
        )

    @property
    def is_plain(self) -> bool:
        """Whether the stored bytes are those of the numbers, and no others."""
        return self.decompress is None and not self.has_checksum

    def empty(self, shape: tuple[int, ...], memory: ReusedMemory) -> NDArray[Any]:
        """An array without initial values, whose numbers are in the order of a stored chunk."""
        stored = memory.empty(tuple(shape[axis] for axis in self.axes), self.dtype)
        return stored.transpose(np.argsort(self.axes)) if stored.ndim > 1 else stored

    def in_order(self, chunk: NDArray[Any]) -> NDArray[np.uint8] | None:
        """The bytes of an array, if they are in the order of a stored chunk."""
        stored = chunk.transpose(self.axes) if chunk.ndim > 1 else chunk
        return stored.reshape(-1).view(np.uint8) if stored.flags.c_contiguous else None

    def read(
        self,
        file: io.FileIO,
        size: int,
        memory: ReusedMemory,
        target: NDArray[np.uint8],
    ) -> bool:
        """Read the bytes of a chunk, and decode them into others.

        Parameters
        ----------
        file : FileIO
            At the place where the chunk begins.
        size : int
            Stored bytes.
        memory : ReusedMemory
        target : ndarray of uint8

        Returns
        -------
        bool
            False if the bytes are not those of a chunk.
        """
        if self.decompress is not None:
            stored = memory.empty((size,), np.dtype(np.uint8))
            return file.readinto(stored.data) == size and self.decode(stored, target)
        if size != target.size + CHECKSUM_BYTES * self.has_checksum:
            return False
        if file.readinto(target.data) != target.size:
            return False
        return not self.has_checksum or has_checksum(target, file.read(CHECKSUM_BYTES) or b"")

    def decode(self, stored: NDArray[np.uint8], target: NDArray[np.uint8]) -> bool:
        """Decode the bytes of a chunk into others; False if they are not those of a chunk."""
        if self.has_checksum:
            stored, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:].tobytes()
            if not has_checksum(stored, checksum):
                return False
        if self.decompress is not None:
            return self.decompress(stored, target)
        if stored.size != target.size:
            return False
        target[:] = stored
        return True


def chunk_codecs(array: Any) -> tuple[Any, ...]:
    """The codecs of the chunks of an array of Zarr's format 3, in the order of encoding."""
    codecs: tuple[Any, ...] = tuple(array.metadata.codecs)
    return (
        tuple(codecs[0].codecs)
        if [name_of_codec(codec) for codec in codecs] == [SHARDS]
        else codecs
    )


def unknown_codec(array: Any) -> str:
    """Class of the first codec of an array that only Zarr decodes here; empty if there is none."""
    if array.metadata.zarr_format == 2:
        compressor = array.metadata.compressor
        others = [*(array.metadata.filters or ())]
        others += [] if name_of_codec(compressor) in DECODERS else [compressor]
    else:
        left = deque(chunk_codecs(array))
        checksum = {CRC32C} if crc32c_function() is not None else set()
        for known in ({TRANSPOSE}, {BYTES}, DECODERS, checksum):
            if left and name_of_codec(left[0]) in known:
                left.popleft()
        others = [*left]
    return type(others[0]).__name__ if others else ""


def has_checksum(data: Any, checksum: bytes) -> bool:
    """Whether four bytes are the CRC-32C of others."""
    return checksum == checksum_of(data)


def checksum_of(data: Any) -> bytes:
    """The CRC-32C of bytes, as Zarr stores it: the lowest byte first."""
    crc32c = crc32c_function()
    assert crc32c is not None, "looked for before arrays with checksums are read"
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")


@cache
def crc32c_function() -> Callable[[Any], int] | None:
    """Function for checksums of the library that Zarr brings; None if there is no such library."""
    for module, name in CRC32C_LIBRARIES:
        if find_spec(module) is not None:
            found: Callable[[Any], int] = getattr(import_module(module), name)
            return found
    return None


def name_of_codec(codec: Any) -> str:
    """Package and class of a codec."""
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


def _gzip(stored: NDArray[np.uint8], chunk: NDArray[np.uint8]) -> bool:
    """Decode one member of gzip (RFC 1952), whose checksum zlib compares."""
    inflating = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    source, target, done = stored.data, chunk.data, 0
    try:
        for start in range(0, stored.size, GZIP_BYTES):
            piece = source[start : start + GZIP_BYTES]
            part = inflating.decompress(piece, chunk.size - done + 1)
            if done + len(part) > chunk.size:
                return False
            target[done : done + len(part)] = part
            done += len(part)
    except zlib.error:
        return False
    return done == chunk.size and inflating.eof and not inflating.unused_data


#: Codecs that decode into a given array, by package and class. None stands for no compression.
DECODERS: dict[str, Decoder | None] = {
    "builtins.NoneType": None,
    "zarr.ZstdCodec": _zstd,
    "zarr.BloscCodec": _blosc,
    "zarr.GzipCodec": _gzip,
    **{
        f"{package}.{name}": decode
        # Zarr has classes of its own for the codecs of numcodecs in format 3.
        for package in ("numcodecs", "zarr")
        for name, decode in (("Zstd", _zstd), ("Blosc", _blosc), ("LZ4", _lz4), ("GZip", _gzip))
    },
}
