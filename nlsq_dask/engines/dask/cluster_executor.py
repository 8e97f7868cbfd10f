"""A distributed cluster as the place where the tasks of a fit run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nlsq_dask import _errors
from nlsq_dask.core.worker_memory import WORKER_BASE_BYTES, WorkerMemory
from nlsq_dask.engines.dask import signals
from nlsq_dask.engines.dask.aside import aside
from nlsq_dask.engines.dask.board_link import Board, open_board
from nlsq_dask.engines.dask.cache import Keeping, WorkerRoom
from nlsq_dask.engines.dask.cluster import (
    check_versions,
    smallest_worker,
    worker_rooms,
    worker_threads,
)
from nlsq_dask.engines.dask.cluster_runner import ClusterRunner
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.runners import Runner
from nlsq_dask.engines.dask.signals import Show
from nlsq_dask.engines.dask.task import Work
from nlsq_dask.engines.dask.tree import BlockProgress
from nlsq_dask.engines.dask.vectors import narrowest_vectors
from nlsq_dask.kernels.devices import DeviceChoice, check_names_no_devices

if TYPE_CHECKING:
    from distributed import Client, Future

# Least seconds between two fetches of results. To fetch one takes client, scheduler and worker some
# 3 ms of processor time together; to fetch many takes hardly more.
FETCH_SECONDS = 0.5


@dataclass(frozen=True)
class ClusterExecutor:
    """The workers of a cluster; see :class:`~nlsq_dask.engines.dask.executor.Executor`.

    Parameters
    ----------
    client : distributed.Client

    Raises
    ------
    InputTypeError
        If `client` is no client.
    """

    client: Client
    base_bytes: ClassVar[int] = WORKER_BASE_BYTES
    shares_memory: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not hasattr(self.client, "scheduler"):
            raise _errors.not_a_client(self.client)
        if not hasattr(self.client, "submit"):
            raise _errors.cluster_as_client(self.client)

    @property
    def is_closed(self) -> bool:
        """Whether the client is not connected any more."""
        return bool(self.client.status == "closed")

    def check(self) -> None:
        """Refuse a client with which a fit would hang."""
        # An asynchronous client that was not awaited is not connected, either.
        if self.client.asynchronous:
            raise _errors.client_asynchronous()
        if self.client.status != "running":
            raise _errors.client_not_running(self.client.status)

    def check_versions(self) -> None:
        """Refuse workers without this package, or with other versions of it or of JAX."""
        check_versions(self.client)

    def check_devices(self, devices: DeviceChoice) -> None:
        """Refuse names of devices, which workers do not have."""
        check_names_no_devices(devices)

    def device_names(self, devices: DeviceChoice) -> tuple[str, ...]:  # noqa: ARG002 (a protocol)
        """No names: this process does not see the devices of workers."""
        return ()

    def uses_gpu(self, devices: DeviceChoice) -> bool:  # noqa: ARG002 (a protocol)
        """No GPU of this process is used."""
        return False

    def vector_bits(self, here: int) -> int:
        """Bits of vectors that this process and all workers can compile for."""
        return min(here, narrowest_vectors(self.client))

    def parallel(self, most: int | None = None) -> tuple[int, int]:  # noqa: ARG002 (a protocol)
        """Number of workers, and of tasks at one time on all of them."""
        threads = worker_threads(self.client)
        return len(threads), sum(threads)

    def local_threads(self) -> None:
        """Tasks do not run in this process."""
        return

    def smallest_worker(self) -> WorkerMemory | None:
        """The worker with the least memory a thread; None if no worker has arrived yet."""
        return smallest_worker(self.client)

    def rooms(self, read_bytes: int, n_bytes: int | None) -> list[WorkerRoom]:
        """Memory for kept rows on each worker."""
        return worker_rooms(self.client, read_bytes, n_bytes)

    def runner(
        self,
        stream: Stream,
        work: Work,
        progress: BlockProgress,
        *,
        threads: int | None,  # noqa: ARG002 (a protocol)
        keeping: Keeping | None,
        show: Show,
    ) -> Runner:
        """Runner of the groups of a stream on the workers."""
        return ClusterRunner(stream, work, self.client, progress, keeping, show)

    def compute(self, *arrays: Any) -> Sequence[Any]:
        """Compute Dask arrays together."""
        with aside():
            values: Sequence[Any] = self.client.compute(arrays, sync=True)
        return values

    def most_handed_out(self, wanted: int) -> int:
        """As many as wanted, but two for each thread at least."""
        return max(wanted, 2 * sum(worker_threads(self.client)))

    def run_each(
        self,
        graphs: Iterable[tuple[Mapping[Any, Any], Sequence[Any]]],
        done: Callable[[Any], None],
    ) -> None:
        """Run tasks of graphs, and call `done` with the result of each task when it comes.

        The next graph is handed out when half of the tasks of the last are done: no worker waits.
        Results of tasks that end shortly after each other are fetched together.
        """
        from distributed import as_completed

        ended = as_completed(loop=self.client.loop)
        running: dict[Any, Future[Any]] = {}
        unfetched: list[Future[Any]] = []
        left = iter(graphs)
        fetched_at = -math.inf
        with ExitStack() as stack:
            stack.callback(_release, running)  # also what still runs, where a task failed
            stack.enter_context(aside())
            least = self._hand_out(left, running, ended) // 2
            for future in ended:
                unfetched.append(future)
                if len(running) - len(unfetched) <= least:
                    self._hand_out(left, running, ended)
                is_last = len(running) == len(unfetched)
                is_due = time.monotonic() - fetched_at >= FETCH_SECONDS
                if is_last or is_due or future.status != "finished":
                    self._fetch(unfetched, running, done)
                    fetched_at = time.monotonic()

    def _fetch(
        self,
        unfetched: list[Future[Any]],
        running: dict[Any, Future[Any]],
        done: Callable[[Any], None],
    ) -> None:
        """Fetch the results of tasks that have ended, and forget the tasks.

        A task that failed raises its error when the results of all others are known.
        """
        finished = [future for future in unfetched if future.status == "finished"]
        others = [future for future in unfetched if future not in finished]
        for futures in filter(None, (finished, others)):
            for result in self.client.gather(futures):
                done(result)
        for future in unfetched:
            del running[future.key]
            future.release()
        unfetched.clear()

    def _hand_out(
        self,
        graphs: Iterator[tuple[Mapping[Any, Any], Sequence[Any]]],
        running: dict[Any, Future[Any]],
        ended: Any,
    ) -> int:
        """Hand out the tasks of the next graph, and return how many."""
        graph, keys = next(graphs, ({}, ()))
        futures = self.client.get(graph, list(keys), sync=False) if keys else []
        running |= {future.key: future for future in futures}
        ended.update(futures)
        return len(futures)

    def in_each_process(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function once on each worker."""
        self.client.run(function, *args)

    def listen(self) -> None:
        """Hear the signals that tasks send to their fits."""
        signals.listen(self.client)

    def board(self) -> Board | None:
        """The board of fits of the dashboard, unless Dask is told to show none."""
        return Board(self.client) if open_board(self.client) else None


def _release(running: Mapping[Any, Future[Any]]) -> None:
    """Forget tasks."""
    for future in running.values():
        future.release()
