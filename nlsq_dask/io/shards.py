"""Where the chunks of a shard of a Zarr array are, and which chunks the shard does not hold.

A shard is one object of a store with several chunks. Its index has the place of each chunk, or two
numbers of ones for a chunk that is not there ("Zarr sharding codec", version 1.0). The index has 16
bytes a chunk, at the start or the end of the shard, so that a short read shows what is missing. A
checksum stands behind the index, as a rule.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.chunk_codec import CHECKSUM_BYTES, crc32c_function, has_checksum

# Bytes of the index of a chunk.
BYTES_A_CHUNK = 16

# Codecs of an index, with a checksum and without.
INDEX_CODECS = (["bytes"], ["bytes", "crc32c"])

# Both numbers of a chunk that is not there.
NOWHERE = int(np.iinfo(np.uint64).max)

# Indices that are asked for at one time. A store takes so many requests as fast as one.
INDICES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """How the index of a shard is read.

    Attributes
    ----------
    grid : tuple of int
        Chunks of a shard along each dimension.
    n_bytes : int
        Bytes of the index.
    at_end : bool
        Whether it is at the end of the shard.
    has_checksum : bool
        Whether a checksum stands behind it.
    """

    grid: tuple[int, ...]
    n_bytes: int
    at_end: bool
    has_checksum: bool

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """The index of the shards of an array; None if only Zarr can read this index."""
        configuration = array.metadata.codecs[0].to_dict().get("configuration", {})
        codecs = [
            codec if isinstance(codec, Mapping) else codec.to_dict()
            for codec in configuration.get("index_codecs", ())
        ]
        names = [codec["name"] for codec in codecs]
        if names not in INDEX_CODECS or (len(names) > 1 and crc32c_function() is None):
            return None
        if codecs[0].get("configuration", {}).get("endian", "little") != "little":
            return None
        grid = tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        n_bytes = BYTES_A_CHUNK * math.prod(grid) + CHECKSUM_BYTES * (len(names) - 1)
        location = str(
            getattr(configuration.get("index_location"), "value", None)
            or configuration.get("index_location", "end")
        )
        return cls(grid, n_bytes, location != "start", len(names) > 1)

    def read(self, file: io.FileIO, size: int) -> bytes | None:
        """The bytes of the index of a shard in a file of some bytes; None if they are too few."""
        if size < self.n_bytes:
            return None
        file.seek(size - self.n_bytes if self.at_end else 0)
        return file.read(self.n_bytes)

    def places(self, raw: bytes | None) -> NDArray[np.uint64] | None:
        """First byte and number of bytes of each chunk; None if the index is cut off or damaged.

        Parameters
        ----------
        raw : bytes or None
            The index.

        Returns
        -------
        ndarray, shape (*grid, 2), or None
            Both numbers are NOWHERE for a chunk that the shard does not hold.
        """
        if raw is None or len(raw) != self.n_bytes:
            return None
        n_bytes = BYTES_A_CHUNK * math.prod(self.grid)
        if self.has_checksum and not has_checksum(raw[:n_bytes], raw[n_bytes:]):
            return None
        return np.frombuffer(raw[:n_bytes], "<u8").reshape(*self.grid, 2)

    def absent(self, raw: bytes | None) -> Iterator[tuple[int, ...]]:
        """Chunks of a shard that its index does not have; none if the index is damaged.

        An empty file has no index, and some releases of Zarr read fill values.
        """
        if raw == b"":
            yield from np.ndindex(self.grid)
            return
        places = self.places(raw)
        if places is None:
            return  # the fit will tell of a damaged shard
        for chunk in np.argwhere((places == NOWHERE).all(axis=-1)).tolist():
            yield tuple(chunk)


def chunks_of(array: Any, shard: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The chunks of an array that a shard holds, by their index among all chunks."""
    ranges = [
        range(i * s // c, min((i + 1) * s // c, math.ceil(n / c)))
        for i, s, c, n in zip(shard, array.shards, array.chunks, array.shape, strict=True)
    ]
    return itertools.product(*ranges)


def absent_in(
    array: Any, shards: Mapping[tuple[int, ...], str], folder: Path | None
) -> Iterator[tuple[int, ...]]:
    """Chunks that the stored shards of an array do not hold.

    Parameters
    ----------
    array : zarr.Array
        In shards.
    shards : mapping
        Keys of the stored shards, by their index.
    folder : Path or None
        Folder of a local store; other stores are asked for the indices.

    Yields
    ------
    tuple of int
        Index of a chunk among all chunks.
    """
    index = ShardIndex.of(array)
    if index is None:
        return
    if folder is None:
        from zarr.core.sync import sync  # runs on the loop of Zarr, to which stores are tied

        found: Iterable[bytes | None] = sync(_asked(array.store, list(shards.values()), index))
    else:
        found = (_read(folder / key, index) for key in shards.values())
    for shard, raw in zip(shards, found, strict=True):
        inside = set(chunks_of(array, shard))
        for chunk in index.absent(raw):
            place = tuple(i * k + j for i, k, j in zip(shard, index.grid, chunk, strict=True))
            if place in inside:
                yield place


def _read(path: Path, index: ShardIndex) -> bytes | None:
    """The index of a shard in a file, nothing of an empty file; None if the file is shorter."""
    with io.FileIO(path) as file:
        size = os.fstat(file.fileno()).st_size
        return index.read(file, size) if size else b""


async def _asked(store: Any, keys: Iterable[str], index: ShardIndex) -> list[bytes | None]:
    """The indices of shards in a store."""
    import asyncio  # a fit in memory does not load it

    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype

    prototype, free = default_buffer_prototype(), asyncio.Semaphore(INDICES_AT_ONCE)
    part = SuffixByteRequest(index.n_bytes) if index.at_end else RangeByteRequest(0, index.n_bytes)

    async def ask(key: str) -> bytes | None:
        async with free:
            found = await store.get(key, prototype, byte_range=part)
        return None if found is None else found.to_bytes()

    return list(await asyncio.gather(*map(ask, keys)))
