"""Chunks that a shard of a Zarr array does not hold.

A shard is one object of a store with several chunks. Its index has the place of each chunk, or two
numbers of ones for a chunk that is not there ("Zarr sharding codec", version 1.0). The index has 16
bytes a chunk, at the start or the end of the shard, so that a short read shows what is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

# Bytes of the index of a chunk, and of the checksum behind the index.
BYTES_A_CHUNK = 16
CHECKSUM_BYTES = {"crc32c": 4}

# Both numbers of a chunk that is not there.
NOWHERE = np.iinfo(np.uint64).max

# Indices that are asked for at one time. A store takes so many requests as fast as one.
AT_ONCE = 64


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
    """

    grid: tuple[int, ...]
    n_bytes: int
    at_end: bool

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """The index of the shards of an array; None if another codec wrote it."""
        configuration = array.metadata.codecs[0].to_dict().get("configuration", {})
        codecs = [
            codec if isinstance(codec, Mapping) else codec.to_dict()
            for codec in configuration.get("index_codecs", ())
        ]
        names = [codec["name"] for codec in codecs]
        if not names or names[0] != "bytes" or not set(names[1:]) <= set(CHECKSUM_BYTES):
            return None
        if codecs[0].get("configuration", {}).get("endian", "little") != "little":
            return None
        grid = tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        checksums = sum(CHECKSUM_BYTES[name] for name in names[1:])
        location = str(
            getattr(configuration.get("index_location"), "value", None)
            or configuration.get("index_location", "end")
        )
        return cls(grid, BYTES_A_CHUNK * math.prod(grid) + checksums, location != "start")

    def absent(self, raw: bytes | None) -> Iterator[tuple[int, ...]]:
        """Chunks of a shard that its index does not have; none if the index is cut off."""
        if raw is None or len(raw) != self.n_bytes:
            return  # the shard is damaged, as the fit will tell
        places = np.frombuffer(raw, "<u8", 2 * math.prod(self.grid)).reshape(-1, 2)
        for number in np.flatnonzero((places == NOWHERE).all(axis=1)):
            yield tuple(int(i) for i in np.unravel_index(number, self.grid))


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
    """The index of a shard in a file; None if the file is shorter."""
    with path.open("rb") as file:
        if index.at_end:
            if file.seek(0, 2) < index.n_bytes:
                return None
            file.seek(-index.n_bytes, 2)
        return file.read(index.n_bytes)


async def _asked(store: Any, keys: Iterable[str], index: ShardIndex) -> list[bytes | None]:
    """The indices of shards in a store."""
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype

    prototype, free = default_buffer_prototype(), asyncio.Semaphore(AT_ONCE)
    part = SuffixByteRequest(index.n_bytes) if index.at_end else RangeByteRequest(0, index.n_bytes)

    async def ask(key: str) -> bytes | None:
        async with free:
            found = await store.get(key, prototype, byte_range=part)
        return None if found is None else found.to_bytes()

    return list(await asyncio.gather(*map(ask, keys)))
