"""Look at the workers of a cluster during a pass: which are paused or gone, which groups kill them.

Dask waits for ever where all workers are paused, or none is there, and says nothing. It also sends
a task that kills its worker to the next one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dask import config
from dask.utils import parse_timedelta

from nlsq_dask import _errors
from nlsq_dask.engines.dask.signals import TOPIC, Ears
from nlsq_dask.engines.dask.vectors import NarrowVectorsError

if TYPE_CHECKING:
    from distributed import Client

# Seconds between two looks, and seconds without a finished group before a wait is told.
LOOK_SECONDS = 1.0
QUIET_SECONDS = 5.0

# Seconds without any worker that runs, after which a fit ends. Autoscaled workers come in minutes.
WAIT_SECONDS = 300.0
WAIT_OPTION = "nlsq_dask.worker-wait"

# Deaths of workers in the same group, in one pass: after the first number the group is run block by
# block, and after the second the fit ends.
SUSPICIOUS = 2
GUILTY = 3


class Watch:
    """What happens to the workers during a pass.

    Parameters
    ----------
    client : distributed.Client
    ears : Ears
        Of the fit, which is told what it waits for.
    only : sequence of str
        The workers that may run groups; empty if all may.
    """

    def __init__(self, client: Client, ears: Ears, only: Sequence[str] = ()) -> None:
        self._client = client
        self._ears = ears
        self._only = frozenset(only)
        self._began = time.time()
        self._ended = self._looked = self._ran = time.monotonic()
        self._told: set[str] = set()
        self._workers: set[str] | None = None
        self._deaths: Counter[str] = Counter()

    def group_ended(self) -> None:
        """Note that a group has ended."""
        self._ended = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        return time.monotonic() - self._looked >= LOOK_SECONDS

    def look(self) -> Counter[str]:
        """Look at the workers.

        Returns
        -------
        Counter
            How many workers have died with each task.

        Raises
        ------
        ClusterError
            If the client is closed, or no worker runs for too long.
        NarrowVectorsError
            If all workers that may run groups are gone.
        """
        self._looked = time.monotonic()
        if self._client.status in ("closing", "closed"):
            raise _errors.cluster_lost("the client is closed")
        with suppress(OSError):  # no answer: the client connects again, or closes itself
            workers = set(self._client.nthreads())
            if self._workers is None or not self._workers <= workers:
                self._deaths = self._count_deaths()
            self._workers = workers
            if self._only and self._only.isdisjoint(workers):
                raise NarrowVectorsError
            if self._looked - self._ended >= QUIET_SECONDS:
                self._look_at_states()
        return self._deaths

    def last_begun(self, task: str) -> tuple[int, ...] | None:
        """The block that a task of the fit began last, by its index, if it told."""
        notes = (note for _, note in self._client.get_events(TOPIC))
        begun = [n["block"] for n in notes if n["fit"] == self._ears.fit and n.get("task") == task]
        return tuple(begun[-1]) if begun else None

    def _count_deaths(self) -> Counter[str]:
        """Tasks that workers had when they died, since the pass began."""
        deaths: Counter[str] = Counter()
        for moment, event in self._client.get_events("all"):
            dead = event.get("action") == "remove-worker" and not event.get("expected")
            if dead and moment >= self._began:
                deaths.update(map(str, event["processing-tasks"]))
        return deaths

    def _look_at_states(self) -> None:
        """Say which workers are paused, or that there are none; end the fit after a long wait."""
        scheduler: Any = self._client.scheduler
        workers: dict[str, Any] = self._client.sync(scheduler.identity, n_workers=-1)["workers"]
        paused = {a: w for a, w in workers.items() if w["status"] == "paused"}
        running = [a for a, w in workers.items() if w["status"] in ("running", "init")]
        wait: float | None = longest_wait()
        if running:
            self._ran = time.monotonic()
            wait = None
        waited = time.monotonic() - self._ran
        states = [(a, w["metrics"]["memory"], w["memory_limit"]) for a, w in paused.items()]
        if wait is not None and waited >= wait:
            raise _errors.no_worker_runs(states, len(workers), waited, WAIT_OPTION)
        if not paused and running:
            return
        text = _errors.workers_wait(states, len(workers), wait, WAIT_OPTION)
        short = _errors.workers_wait_shortly(len(paused), len(workers))
        if short not in self._told:
            self._told.add(short)
            self._ears.tell(text, short)


def longest_wait() -> float:
    """Seconds that a fit waits for a worker that runs; an option of Dask's configuration."""
    return float(parse_timedelta(config.get(WAIT_OPTION, WAIT_SECONDS)))
