"""Memory of arrays that is used again as soon as nothing refers to the arrays.

The system clears each page of fresh memory, page by page, before it hands the page out. For arrays
of some megabytes that takes longer than filling them from the disk's cache.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.stage import ALIGNMENT, aligned_offset

# Pieces of memory have a multiple of these bytes, and large pieces a multiple of such a fraction of
# their size, so that chunks that compress to about the same length share them.
GRANULE = 1 << 16
STEPS_TO_DOUBLE = 8

# Pieces that are kept while nothing uses them: those of the arrays of two blocks, or more pieces of
# so many bytes in all. A task that fits series uses 12 pieces of 20 MB in all, and two threads that
# share less make each piece again and again.
MOST_IDLE = 8
MOST_IDLE_BYTES = 1 << 25

_memory: ContextVar[ReusedMemory | None] = ContextVar("nlsq_dask_memory", default=None)


class ReusedMemory:
    """Pieces of memory for the arrays that a process reads for a fit.

    A piece is free when no array refers to it. An array that somebody keeps is never overwritten.
    A pickle of the memory stands for that of the process that opens the pickle.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[NDArray[np.uint8]] = []
        self._places: list[tuple[int, int]] = []  # bytes of each, and where the aligned ones begin

    def __reduce__(self) -> tuple[Callable[[], ReusedMemory], tuple[()]]:
        return memory_of_process, ()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array without initial values."""
        n_bytes = math.prod(shape) * dtype.itemsize
        step = max(GRANULE, (1 << max(n_bytes - 1, 0).bit_length() >> 1) // STEPS_TO_DOUBLE)
        piece, offset = self._taken(max(-(-n_bytes // step), 1) * step)
        return piece[offset : offset + n_bytes].view(dtype).reshape(shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of all pieces."""
        with self._lock:
            return sum(size for size, _ in self._places)

    def _taken(self, n_bytes: int) -> tuple[NDArray[np.uint8], int]:
        """A free piece of so many aligned bytes, or a new one; and where these bytes begin."""
        with self._lock:
            for i, (size, offset) in enumerate(self._places):
                if size == n_bytes and self._is_free(i):
                    return self._pieces[i], offset
            self._drop_idle()
            piece = np.empty(n_bytes + ALIGNMENT, np.uint8)
            offset = aligned_offset(piece)
            self._pieces.append(piece)
            self._places.append((n_bytes, offset))
            return piece, offset

    def _drop_idle(self) -> None:
        """Drop free pieces, the oldest first, where another would be one too many."""
        idle = [i for i in range(len(self._pieces)) if self._is_free(i)]
        n_bytes = sum(self._places[i][0] for i in idle)
        dropped = []
        for i in idle[: max(len(idle) - MOST_IDLE + 1, 0)]:
            if n_bytes <= MOST_IDLE_BYTES:
                break
            n_bytes -= self._places[i][0]
            dropped.append(i)
        for i in reversed(dropped):
            del self._pieces[i], self._places[i]

    def _is_free(self, i: int) -> bool:
        # The list and the call refer to the piece; views of an array refer to its owner.
        return sys.getrefcount(self._pieces[i]) <= 2


_LOCK = threading.Lock()
_of_process: weakref.ref[ReusedMemory] | None = None


def memory_of_process() -> ReusedMemory:
    """The memory that the fits of this process share, while any of them holds it.

    A fit reads its sample and its passes into the same memory.
    """
    global _of_process  # noqa: PLW0603  # one a process
    with _LOCK:
        memory = None if _of_process is None else _of_process()
        if memory is None:
            memory = ReusedMemory()
            _of_process = weakref.ref(memory)
        return memory


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
