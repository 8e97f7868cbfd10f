"""Run the groups of a pass, on Dask's local scheduler or on a distributed cluster.

On a cluster the groups are results of tasks. If a worker dies, the scheduler makes its groups and
sums again on another worker, and nothing is lost.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from dask._task_spec import DataNode, List, Task, TaskRef
from dask.typing import Key

from nlsq_dask.engines.dask.cache import Keeping, KeptGroup, keep_nothing
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.scheduler import local_get
from nlsq_dask.engines.dask.task import Work, add_in_order, packed, unpacked

if TYPE_CHECKING:
    from distributed import Client, Future

# Number of sums that one task of the tree adds. Widths of 8 to 32 were equally fast.
TREE_WIDTH = 32

# Times that a failed task is tried again before the fit fails: many storage errors are transient.
RETRIES = 2

# Called with the number of blocks that are done in a pass, and that of all blocks.
BlockProgress = Callable[[int, int], None]


class Runner(Protocol):
    """Runs a function on all groups and adds the answers."""

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum ``function(group, external, work, *args)`` over all groups.

        `name` is part of the names of the tasks.
        """
        ...

    def close(self) -> None:
        """Release the runner's memory, here and on the cluster."""
        ...


def runner_of(
    stream: Stream,
    work: Work,
    progress: BlockProgress,
    *,
    client: Client | None,
    threads: int | None = None,
    keeping: Keeping | None = None,
) -> Runner:
    """Runner of the groups of a stream, on a cluster or on Dask's local scheduler.

    Parameters
    ----------
    stream : Stream
    work : Work
        What all groups have in common.
    progress : callable
        Called as ``progress(blocks_done, blocks)``.
    client : distributed.Client or None
        Cluster to run on; None runs on Dask's local scheduler.
    threads : int, optional
        Most groups at one time on the local scheduler.
    keeping : Keeping, optional
        Which groups keep their rows; by default none.
    """
    if client is None:
        return LocalRunner(stream, work, progress, threads, keeping)
    return ClusterRunner(stream, work, client, progress, keeping)


class LocalRunner:
    """Runs groups as tasks of Dask's local scheduler: the configured one, or threads by default."""

    def __init__(
        self,
        stream: Stream,
        work: Work,
        progress: BlockProgress,
        threads: int | None,
        keeping: Keeping | None = None,
    ) -> None:
        self._stream = stream
        self._groups = (keeping or keep_nothing(stream)).groups
        self._work = work
        self._progress = progress
        self._threads = threads
        keys = list(stream.shared_keys)
        self._shared = dict(zip(keys, local_get(dict(stream.shared), keys, threads), strict=True))

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum over all groups; see :class:`Runner`."""
        blocks: dict[Key, int] = {}
        graph: dict[Key, Any] = {}
        for i, (group, task_group) in enumerate(
            zip(self._stream.groups, self._groups, strict=True)
        ):
            key: Key = (f"nlsq-{name}", i)
            external = tuple(self._shared[k] for k in group.external)
            inputs = (DataNode(None, v) for v in (task_group, external, self._work, *args))
            graph[key] = Task(key, function, *inputs)
            blocks[key] = len(group.steps)
        for node, parts in _tree(list(graph), f"nlsq-reduce-{name}"):
            graph[node] = Task(node, add_in_order, List(*(TaskRef(part) for part in parts)))
        root = next(reversed(graph))
        counter = _BlockCounter(blocks, self._stream.n_blocks, self._progress)
        (total,) = local_get(graph, [root], self._threads, counter)
        return total

    def close(self) -> None:
        """Drop the shared values and the kept rows."""
        self._shared = {}
        for group in self._groups:
            if isinstance(group, KeptGroup):
                group.forget()


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
        keeping: Keeping | None = None,
    ) -> None:
        self._client = client
        self._progress = progress
        self._n_blocks = stream.n_blocks
        self._fit = uuid.uuid4().hex
        self._sizes = [len(group.steps) for group in stream.groups]
        keeping = keeping or keep_nothing(stream)
        self._workers = keeping.workers
        self._work = self._map("nlsq-work", unpacked, [None], [packed(work)])
        blobs = [packed(group) for group in keeping.groups]
        self._groups = self._map("nlsq-group", unpacked, keeping.workers, blobs)
        keys = list(stream.shared_keys)
        futures = client.get(dict(stream.shared), keys, sync=False) if keys else []
        shared = dict(zip(keys, futures, strict=True))
        self._external = [
            [shared[k] if k in shared else self._existing(k) for k in group.external]
            for group in stream.groups
        ]

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum over all groups; see :class:`Runner`."""
        from distributed import as_completed

        n_groups = len(self._groups)
        futures = self._map(
            f"nlsq-{name}",
            function,
            self._workers,
            self._groups,
            self._external,
            self._work * n_groups,
            *([arg] * n_groups for arg in args),
        )
        sizes = {f.key: size for f, size in zip(futures, self._sizes, strict=True)}
        parts: dict[Key, Future[Any]] = {f.key: f for f in futures}
        for key, keys in _tree([f.key for f in futures], f"nlsq-reduce-{name}-{self._fit}"):
            parts[key] = self._client.submit(
                add_in_order, [parts[k] for k in keys], key="-".join(map(str, key)), pure=False
            )
        done = 0
        try:
            for future in as_completed(futures, loop=self._client.loop):
                done += sizes[future.key] if future.status == "finished" else 0
                self._progress(done, self._n_blocks)
            return next(reversed(parts.values())).result()
        finally:
            _release(parts.values())

    def close(self) -> None:
        """Let the cluster forget the groups and their rows."""
        _release((*self._groups, *self._work, *chain.from_iterable(self._external)))
        self._groups, self._external, self._work = [], [], []

    def _map(
        self,
        name: str,
        function: Callable[..., Any],
        workers: Sequence[str | None],
        *args: Sequence[Any],
    ) -> list[Future[Any]]:
        """Submit a task for each set of arguments, on its worker; None lets the scheduler choose.

        Groups travel as bytes, and tasks unpack them. The scheduler would run the graph nodes of a
        group that is passed as it is, and scattered data die with their worker.
        """
        futures: dict[int, Future[Any]] = {}
        of_worker: dict[str | None, list[int]] = defaultdict(list)
        for i, worker in enumerate(workers):
            of_worker[worker].append(i)
        for worker, numbers in of_worker.items():
            made = self._client.map(
                function,
                *([values[i] for i in numbers] for values in args),
                key=[f"{name}-{i}-{self._fit}" for i in numbers],
                retries=RETRIES,
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


class _BlockCounter:
    """Counts blocks as Dask's local scheduler finishes their groups."""

    def __init__(self, sizes: dict[Key, int], n_blocks: int, progress: BlockProgress) -> None:
        self._sizes = sizes
        self._n_blocks = n_blocks
        self._progress = progress
        self._done = 0

    def __call__(self, key: Key, *_: object) -> None:
        """Count the blocks of a task that is done."""
        if key in self._sizes:
            self._done += self._sizes[key]
            self._progress(self._done, self._n_blocks)


def _tree(keys: list[Any], name: str) -> Iterator[tuple[tuple[str, int, int], list[Any]]]:
    """Nodes of a tree over keys, each with the keys that it adds, in order; the root is last."""
    level = 0
    while level == 0 or len(keys) > 1:
        nodes = []
        for i, start in enumerate(range(0, len(keys), TREE_WIDTH)):
            node = (name, level, i)
            nodes.append(node)
            yield node, keys[start : start + TREE_WIDTH]
        keys = nodes
        level += 1
