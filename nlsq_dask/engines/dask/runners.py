"""Run the groups of a pass, on Dask's local scheduler or on a distributed cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from dask._task_spec import DataNode, List, Task, TaskRef
from dask.order import order
from dask.typing import Key

from nlsq_dask.engines.dask.cache import Keeping, KeptGroup, keep_nothing
from nlsq_dask.engines.dask.group_parts import group_without
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.omitted import answer_of_readable
from nlsq_dask.engines.dask.prefetch import ReadAhead, is_independent
from nlsq_dask.engines.dask.reading import Reading, shared_nodes
from nlsq_dask.engines.dask.scheduler import local_get, local_threads, runs_here
from nlsq_dask.engines.dask.signals import Ears, Show, show_nothing, signals_of
from nlsq_dask.engines.dask.task import Work, add_in_order, answer_of_group
from nlsq_dask.engines.dask.tree import BlockProgress, tree
from nlsq_dask.engines.ledger import NO_PASS_LEDGER, PassLedger

# Arguments of a function that answers for all blocks: the question, and blocks that are left out. A
# third one chooses blocks.
ARGS_OF_ALL_BLOCKS = 2


class Runner(Protocol):
    """Runs a function on all groups and adds the answers.

    Attributes
    ----------
    fit : str
        Identifier of the fit on a cluster; empty on a local scheduler.
    """

    fit: str

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        ledger: PassLedger = NO_PASS_LEDGER,
    ) -> Any:
        """Sum ``function(group, external, work, *args)`` over all groups.

        `name` is part of the names of the tasks. The ledger is told the answers of groups.
        """
        ...

    def close(self, *, failed: bool = False) -> None:
        """Release the runner's memory, here and on the cluster, and end what still runs."""
        ...


class LocalRunner:
    """Runs groups as tasks of Dask's local scheduler: the configured one, or threads by default."""

    fit = ""

    def __init__(
        self,
        stream: Stream,
        work: Work,
        progress: BlockProgress,
        threads: int | None,
        keeping: Keeping | None = None,
        show: Show = show_nothing,
    ) -> None:
        self._stream = stream
        self._groups = (keeping or keep_nothing(stream)).groups
        self._ears = Ears(show)
        self._work = replace(work, fit=self._ears.fit)
        self._progress = progress
        self._threads = threads
        keys = list(stream.shared_keys)
        graph = shared_nodes(stream.shared, stream.names, work.retries, self._ears.fit)
        try:
            self._shared = dict(zip(keys, local_get(graph, keys, threads), strict=True))
        except BaseException:
            self.close(failed=True)
            raise

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        ledger: PassLedger = NO_PASS_LEDGER,
    ) -> Any:
        """Sum over all groups; see :class:`Runner`."""
        ahead = None
        if function in (answer_of_group, answer_of_readable) and len(args) <= ARGS_OF_ALL_BLOCKS:
            ahead = self._ahead(ledger, *args[1:])
        work = replace(self._work, ahead=ahead)
        try:
            total = self._sum(name, function, work, args, ledger)
        except BaseException:
            if ahead is not None:
                ahead.close(wait=False)  # what waits for a store ends with the fit
            raise
        if ahead is not None:
            ahead.close()
        return total

    def _ahead(
        self, ledger: PassLedger, omitted: frozenset[tuple[int, ...]] = frozenset()
    ) -> ReadAhead | None:
        """Reads the blocks of all groups that a pass must read; None to read group by group.

        Groups with blocks that are left out read by themselves.
        """
        depth = self._work.read_ahead * min(local_threads(), self._threads or local_threads())
        if depth < 1 or not runs_here():
            return None
        read = [
            task_group.group if isinstance(task_group, KeptGroup) else task_group
            for i, task_group in enumerate(self._groups)
            if i not in ledger.known
            if not (isinstance(task_group, KeptGroup) and task_group.keeps)
        ]
        known = [
            (group, {key: self._shared[key] for key in group.external})
            for group in read
            if is_independent(group) and group_without(group, omitted) is group
        ]
        reading = Reading(self._work.retries, signals_of(self._work.fit))
        return ReadAhead(known, self._work.layout, depth, reading)

    def _sum(
        self,
        name: str,
        function: Callable[..., Any],
        work: Work,
        args: tuple[Any, ...],
        ledger: PassLedger,
    ) -> Any:
        blocks: dict[Key, int] = {}
        graph: dict[Key, Any] = {}
        for i, (group, task_group) in enumerate(
            zip(self._stream.groups, self._groups, strict=True)
        ):
            key: Key = (f"nlsq {name}", i)
            blocks[key] = len(group.steps)
            if i in ledger.known:
                graph[key] = DataNode(key, ledger.known[i])
                continue
            external = tuple(self._shared[k] for k in group.external)
            inputs = (DataNode(None, v) for v in (task_group, external, work, *args))
            graph[key] = Task(key, function, *inputs)
        for node, parts in tree(list(graph), f"nlsq reduce-{name}"):
            graph[node] = Task(node, add_in_order, List(*(TaskRef(part) for part in parts)))
        root = next(reversed(graph))
        if work.ahead is not None:
            ranks = order(graph)  # as Dask's local scheduler runs the tasks
            first = sorted(range(len(blocks)), key=lambda i: ranks[f"nlsq {name}", i])
            work.ahead.follow(self._stream.groups[i] for i in first)
        counter = _BlockCounter(blocks, self._progress, ledger)
        (total,) = local_get(graph, [root], self._threads, counter)
        return total

    def close(self, *, failed: bool = False) -> None:
        """Drop the shared values and the kept rows, and end the tasks that still run."""
        if failed:
            self._ears.stop()
        self._ears.close()
        self._shared = {}
        for group in self._groups:
            if isinstance(group, KeptGroup):
                group.forget()


class _BlockCounter:
    """Counts blocks as Dask's local scheduler finishes their groups, and keeps the answers."""

    def __init__(self, sizes: dict[Key, int], progress: BlockProgress, ledger: PassLedger) -> None:
        self._sizes = sizes
        self._n_blocks = sum(sizes.values())
        self._progress = progress
        self._ledger = ledger
        self._numbers = {key: number for number, key in enumerate(sizes)}
        self._done = sum(n for key, n in sizes.items() if self._numbers[key] in ledger.known)

    def __call__(self, key: Key, answer: Any, *_: object) -> None:
        """Count the blocks of a task that is done, and keep its answer."""
        if key in self._sizes:
            self._done += self._sizes[key]
            self._progress(self._done, self._n_blocks)
            self._ledger.note({self._numbers[key]: answer})
