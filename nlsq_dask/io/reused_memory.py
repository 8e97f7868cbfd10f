"""Memory of arrays that is used again as soon as nothing refers to the arrays.

The system clears each page of fresh memory, page by page, before it hands the page out. For arrays
of some megabytes that takes longer than filling them from the disk's cache.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.stage import ALIGNMENT, aligned

# Pieces of memory have a multiple of these bytes, so that chunks that compress to about the same
# length share them.
GRANULE = 1 << 16

# Pieces that are kept while nothing uses them: those of the arrays of two blocks.
MOST_IDLE = 8

_memory: ContextVar[ReusedMemory | None] = ContextVar("nlsq_dask_memory", default=None)


class ReusedMemory:
    """Pieces of memory for the arrays that a process reads for a fit.

    A piece is free when no array refers to it. An array that somebody keeps is never overwritten.
    Pickling gives an object without memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[NDArray[np.uint8]] = []

    def __reduce__(self) -> tuple[type[ReusedMemory], tuple[()]]:
        return ReusedMemory, ()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array without initial values."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        piece = self._taken(max(-(-n_bytes // GRANULE), 1) * GRANULE)
        return aligned(piece, n_bytes).view(dtype).reshape(shape)

    def _taken(self, n_bytes: int) -> NDArray[np.uint8]:
        """A free piece of so many bytes, or a new one."""
        with self._lock:
            idle = [i for i in range(len(self._pieces)) if self._is_free(i)]
            for i in idle:
                if self._pieces[i].size == n_bytes + ALIGNMENT:
                    return self._pieces[i]
            for i in reversed(idle[: len(idle) - MOST_IDLE + 1]):
                del self._pieces[i]
            piece = np.empty(n_bytes + ALIGNMENT, np.uint8)
            self._pieces.append(piece)
            return piece

    def _is_free(self, i: int) -> bool:
        # The list and the call refer to the piece; views of an array refer to its owner.
        return sys.getrefcount(self._pieces[i]) <= 2


@contextmanager
def reusing(memory: ReusedMemory) -> Iterator[None]:
    """Let this thread, and threads that run in a copy of its context, read into reused memory."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


def memory_of_thread() -> ReusedMemory:
    """The memory that this thread reads into; memory of its own outside of :func:`reusing`."""
    memory = _memory.get()
    return ReusedMemory() if memory is None else memory
