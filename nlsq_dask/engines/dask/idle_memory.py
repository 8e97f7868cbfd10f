"""Memory that a worker holds for some seconds behind the last task that has read into it.

Between two passes no value on a worker may refer to the memory that blocks are read into. Dask
drops second copies of what the tasks of a fit have in common, and the sample and the next fit have
other tasks. The system then takes the memory back, and clears it again for the next pass, page by
page: 64 MB took 8 ms, and up to 200 ms on virtual machines that return free memory to their host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

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
    """

    def __init__(self, seconds: float = IDLE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._memory: ReusedMemory | None = None
        self._ends = 0.0
        self._waits = False

    def hold(self, memory: ReusedMemory, most: float) -> None:
        """Hold memory that was used just now, or none if it has more than `most` bytes."""
        with self._lock:
            self._memory = memory if memory.n_bytes <= most else None
            self._ends = time.monotonic() + self._seconds
            if self._waits or self._memory is None:
                return
            self._waits = True
        threading.Thread(target=self._wait, name="nlsq-idle-memory", daemon=True).start()

    def _wait(self) -> None:
        """Wait until the time is over, and drop the memory."""
        while True:
            with self._lock:
                left = self._ends - time.monotonic()
                if left <= 0.0:
                    self._memory, self._waits = None, False
                    return
            time.sleep(left)


_idle = IdleMemory()


@contextmanager
def reusing_on_worker(memory: ReusedMemory) -> Iterator[None]:
    """Read into memory, as :func:`reusing` has it; on a worker, hold the memory behind the task."""
    with reusing(memory):
        yield
    worker = worker_here()
    if worker is not None:
        limit = worker.memory_manager.memory_limit or psutil.virtual_memory().total
        _idle.hold(memory, IDLE_SHARE * limit)
