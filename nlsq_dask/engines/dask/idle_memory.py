"""Memory that a worker holds for some seconds behind the last task that has read into it.

Between two passes no value on a worker may refer to the memory that blocks are read into. Dask
drops second copies of what the tasks of a fit have in common, and the sample and the next fit have
other tasks. The system then takes the memory back, and clears it again for the next pass, page by
page: 64 MB took 8 ms, and up to 200 ms on virtual machines that return free memory to their host.

While blocks are read from an object store, or series are fitted, and as long behind them, the C
library of the worker keeps what other libraries free (:mod:`nlsq_dask.core.freed_memory`): that of
the store, or JAX, which takes fresh memory for the answers of each call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil

from nlsq_dask.core.freed_memory import FreedMemory
from nlsq_dask.engines.dask.signals import worker_here
from nlsq_dask.io.reused_memory import ReusedMemory, reusing

# Seconds for which memory is held. The allocator jemalloc returns unused memory after as long
# (``dirty_decay_ms``).
IDLE_SECONDS = 10.0

# Largest fraction of a worker's memory limit that is held. Two chunks of 64 MB, as stored and as
# decoded, are 2 % of 12 GB.
IDLE_SHARE = 0.05


class IdleMemory:
    """Holds memory until it has not been used for some seconds.

    Parameters
    ----------
    seconds : float
    freed : FreedMemory, optional
        Kept as long.
    """

    def __init__(self, seconds: float = IDLE_SECONDS, freed: FreedMemory | None = None) -> None:
        self._seconds = seconds
        self._freed = freed or FreedMemory()
        self._lock = threading.Lock()
        self._memory: ReusedMemory | None = None
        self._ends = 0.0
        self._waits = False
        self._n_reading = 0

    @contextmanager
    def keeping_freed(self) -> Iterator[None]:
        """Let the C library keep what is freed, in the context and for some seconds behind it."""
        with self._lock:
            self._freed.keep()
            self._n_reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_reading -= 1
                self._begin_to_wait()

    def hold(self, memory: ReusedMemory, most: float) -> None:
        """Hold memory that was used just now, or none if it has more than `most` bytes."""
        with self._lock:
            self._memory = memory if memory.n_bytes <= most else None
            self._begin_to_wait()

    def _begin_to_wait(self) -> None:
        """Begin the time anew, and see to its end, if anything is held."""
        self._ends = time.monotonic() + self._seconds
        if self._waits or not (self._memory is not None or self._freed.kept):
            return
        self._waits = True
        threading.Thread(target=self._wait, name="nlsq-idle-memory", daemon=True).start()

    def _wait(self) -> None:
        """Wait until the time is over, and drop the memory."""
        while True:
            with self._lock:
                if self._n_reading:
                    self._ends = time.monotonic() + self._seconds
                left = self._ends - time.monotonic()
                if left <= 0.0:
                    self._memory, self._waits = None, False
                    self._freed.give_back()
                    return
            time.sleep(left)


_idle = IdleMemory()


@contextmanager
def reusing_on_worker(memory: ReusedMemory, *, keeps_freed: bool) -> Iterator[None]:
    """Read into memory, as :func:`reusing` has it; on a worker, hold the memory behind the task.

    Parameters
    ----------
    memory : ReusedMemory
    keeps_freed : bool
        Whether the task takes and frees much memory that is not reused here.
    """
    worker = worker_here()
    keeps = keeps_freed and worker is not None
    with reusing(memory), _idle.keeping_freed() if keeps else nullcontext():
        yield
    if worker is not None:
        limit = worker.memory_manager.memory_limit or psutil.virtual_memory().total
        _idle.hold(memory, IDLE_SHARE * limit)
