"""Run the groups of a pass on a distributed cluster, whose workers may die.

On a cluster the groups are results of tasks. If a worker dies, the scheduler makes its groups and
sums again on another worker, and nothing is lost. A pass ends at its first group that fails. The
cluster then forgets all tasks of the fit, as it does after success and after an interrupt.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from dask.typing import Key

from nlsq_dask.engines.dask.cache import Keeping, keep_nothing
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.reading import shared_nodes
from nlsq_dask.engines.dask.signals import Ears, Show, listen
from nlsq_dask.engines.dask.task import Work, add_in_order, packed, unpacked
from nlsq_dask.engines.dask.tree import BlockProgress, tree

if TYPE_CHECKING:
    from distributed import Client, Future

# Seconds between two looks at a pass whose groups all still run.
LOOK_SECONDS = 1.0

# Most seconds that a fit that failed waits until the scheduler has forgotten its tasks.
FORGET_SECONDS = 0.5


class ClusterRunner:
    """Runs groups as tasks of a distributed cluster.

    Keys carry an identifier of the fit and the number of the pass, because the scheduler does not
    run a key again while it has its result. The first words of the keys stay the same from pass to
    pass: the scheduler learns durations by them, and the dashboard groups tasks by them.

    A group that keeps its rows is assigned to a worker. It runs elsewhere only if that worker is
    gone.
    """

    def __init__(
        self,
        stream: Stream,
        work: Work,
        client: Client,
        progress: BlockProgress,
        keeping: Keeping | None,
        show: Show,
    ) -> None:
        self._client = client
        self._progress = progress
        self._n_blocks = stream.n_blocks
        self._fit = uuid.uuid4().hex
        self._sizes = [len(group.steps) for group in stream.groups]
        keeping = keeping or keep_nothing(stream)
        self._workers = keeping.workers
        self._work: list[Future[Any]] = []
        self._groups: list[Future[Any]] = []
        self._external: list[list[Future[Any]]] = []
        self._keys: set[str] = set()  # of the tasks of the fit, and of its last pass
        self._ears = Ears(show)
        listen(client)
        try:
            self._send(stream, replace(work, fit=self._ears.fit), keeping)
        except BaseException:
            self.close(failed=True)
            raise
        self._lasting = frozenset(self._keys)

    def _send(self, stream: Stream, work: Work, keeping: Keeping) -> None:
        """Send the groups, the work, and what all groups share, to the cluster."""
        self._work = self._map("nlsq-work", unpacked, [None], [packed(work)])
        blobs = [packed(group) for group in keeping.groups]
        self._groups = self._map("nlsq-group", unpacked, keeping.workers, blobs)
        keys = list(stream.shared_keys)
        graph = shared_nodes(stream.shared, stream.names, work.retries, work.fit)
        futures = self._client.get(graph, keys, sync=False) if keys else []
        shared = dict(zip(keys, futures, strict=True))
        self._external = [
            [shared[k] if k in shared else self._existing(k) for k in group.external]
            for group in stream.groups
        ]

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum over all groups; see :class:`~nlsq_dask.engines.dask.runners.Runner`."""
        n_groups = len(self._groups)
        self._keys = set(self._lasting)
        parts: dict[Key, Future[Any]] = {}
        try:
            futures = self._map(
                f"nlsq-{name}",
                function,
                self._workers,
                self._groups,
                self._external,
                self._work * n_groups,
                *([arg] * n_groups for arg in args),
            )
            parts.update((f.key, f) for f in futures)
            for key, keys in tree(list(parts), f"nlsq-reduce-{name}-{self._fit}"):
                node = "-".join(map(str, key))
                self._keys.add(node)
                added = [parts[k] for k in keys]
                parts[key] = self._client.submit(add_in_order, added, key=node, pure=False)
            self._wait(futures)
            return next(reversed(parts.values())).result()
        finally:
            _release(parts.values())

    def _wait(self, futures: Sequence[Future[Any]]) -> None:
        """Wait until all groups of a pass have ended, and raise the error of the first that fails.

        The callbacks of futures, unlike ``as_completed``, let a pass look at the cluster between
        two groups.
        """
        ended: SimpleQueue[Future[Any]] = SimpleQueue()
        sizes = {f.key: size for f, size in zip(futures, self._sizes, strict=True)}
        for future in futures:
            future.add_done_callback(ended.put)
        done = 0
        for _ in futures:
            future = self._next(ended)
            if future.status != "finished":
                future.result()
            done += sizes[future.key]
            self._progress(done, self._n_blocks)

    def _next(self, ended: SimpleQueue[Future[Any]]) -> Future[Any]:
        """The next group that ends."""
        while True:
            with suppress(Empty):
                return ended.get(timeout=LOOK_SECONDS)

    def close(self, *, failed: bool = False) -> None:
        """Let the cluster forget the groups and their rows.

        Parameters
        ----------
        failed : bool
            Whether the fit failed or was interrupted. Futures may then be left that no list has,
            as an interrupt may come at any place.
        """
        self._ears.close()
        _release((*self._groups, *self._work, *chain.from_iterable(self._external)))
        self._groups, self._external, self._work = [], [], []
        if failed and self._client.status == "running":
            with suppress(OSError):  # the scheduler is gone, and its tasks with it
                self._client.sync(_forgotten, self._client, self._fit, sorted(self._keys))

    def _map(
        self,
        name: str,
        function: Callable[..., Any],
        workers: Sequence[str | None],
        *args: Sequence[Any],
    ) -> list[Future[Any]]:
        """Submit a task for each set of arguments, on its worker; None lets the scheduler choose.

        Groups travel as bytes, and tasks unpack them. The scheduler would run the graph nodes of a
        group that is passed as it is, and scattered data die with their worker. Dask tries no task
        again: what a later attempt may not meet is an error of reading, and a task tries that
        itself.
        """
        futures: dict[int, Future[Any]] = {}
        of_worker: dict[str | None, list[int]] = defaultdict(list)
        for i, worker in enumerate(workers):
            of_worker[worker].append(i)
        for worker, numbers in of_worker.items():
            keys = [f"{name}-{i}-{self._fit}" for i in numbers]
            self._keys.update(keys)
            made = self._client.map(
                function,
                *([values[i] for i in numbers] for values in args),
                key=keys,
                workers=worker,
                allow_other_workers=worker is not None,
            )
            futures.update(zip(numbers, made, strict=True))
        return [futures[i] for i in range(len(workers))]

    def _existing(self, key: Key) -> Future[Any]:
        """A key that the user persisted on the cluster."""
        from distributed import Future

        future: Future[Any] = Future(key, self._client)
        return future


def _release(futures: Iterable[Future[Any]]) -> None:
    """Let the cluster forget futures now.

    The cluster would otherwise remember them as long as any object refers to them, such as the
    traceback of a fit that failed.
    """
    for future in futures:
        future.release()


async def _forgotten(client: Client, fit: str, known: Sequence[Key]) -> None:
    """Wait until the scheduler has forgotten the tasks of a fit that failed, but not for long.

    Parameters
    ----------
    client : distributed.Client
    fit : str
        Identifier of the fit, a part of the keys of its tasks.
    known : sequence of key
        Tasks that were released.
    """
    from distributed import Future

    await asyncio.sleep(0)  # the loop takes the releases that are on the way
    unlisted = [key for key in list(client.futures) if fit in str(key)]
    left: list[Future[Any]] = [Future(key, client) for key in unlisted]
    if left:
        await client.cancel(left, force=True, asynchronous=True)
        _release(left)
    end = time.monotonic() + FORGET_SECONDS
    scheduler: Any = client.scheduler
    while scheduler is not None and time.monotonic() < end:
        states = await scheduler.get_task_status(keys=[*known, *unlisted])
        if not any(states.values()):
            break
        await asyncio.sleep(0.01)
