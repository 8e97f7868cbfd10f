"""A Zarr store that writes down what is read from it, from any thread or process."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore


class CountingStore(WrapperStore[LocalStore]):
    """Appends a line to a file for each chunk that is read, and for its bytes.

    A short line appended to a file opened for appending is written in one piece, so that lines of
    several processes never mix.
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self._log = Path(f"{store.root}.log")

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is not None and "c/" in key:
            line = f"{key} {len(value)}\n".encode()
            descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        return value

    @property
    def _lines(self) -> list[list[str]]:
        if not self._log.exists():
            return []
        return [line.split() for line in self._log.read_text().splitlines()]

    @property
    def reads(self) -> Counter[str]:
        """How often each chunk was read."""
        return Counter(key for key, _ in self._lines)

    @property
    def bytes_read(self) -> int:
        """Bytes read since the last call of ``clear_counts``."""
        return sum(int(size) for _, size in self._lines)

    def clear_counts(self) -> None:
        self._log.unlink(missing_ok=True)


def stored(path: Path, values: np.ndarray, chunks: Any, **options: Any) -> zarr.Array[Any]:
    """An array in a counting store, with nothing counted yet; its chunks are not compressed."""
    store = CountingStore(LocalStore(path))
    options = {"compressors": None, "fill_value": np.nan, **options}
    array = zarr.create_array(
        store, shape=values.shape, chunks=chunks, dtype=values.dtype, **options
    )
    array[...] = values
    store.clear_counts()
    return array
