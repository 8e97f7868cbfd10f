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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from dask._task_spec import Task, parse_input
from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.engines.dask.aside import aside
from nlsq_dask.engines.dask.board_link import shown_fits
from nlsq_dask.engines.dask.board_tasks import add_telling, looking
from nlsq_dask.engines.dask.cache import Keeping, keep_nothing
from nlsq_dask.engines.dask.cluster_pass import ClusterPass
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.look import Look, ShownSums, shown_sums, steps_of
from nlsq_dask.engines.dask.omitted import answer_of_readable, without_killers
from nlsq_dask.engines.dask.reading import shared_nodes
from nlsq_dask.engines.dask.signals import Ears, Show, listen, logger
from nlsq_dask.engines.dask.span import Span
from nlsq_dask.engines.dask.task import Work, add_in_order, packed, telling, unpacked
from nlsq_dask.engines.dask.tree import BlockProgress, tree
from nlsq_dask.engines.dask.vectors import NarrowVectorsError, wide_workers
from nlsq_dask.engines.dask.watch import LOOK_SECONDS, WAIT_OPTION, Watch, longest_wait
from nlsq_dask.engines.ledger import NO_PASS_LEDGER, PassLedger
from nlsq_dask.engines.partial import LostBlock

if TYPE_CHECKING:
    from distributed import Client, Future

# Number of the common work among the tasks that set a fit up.
WORK = -1

# Most bytes of a group that a pass runs on any worker. A group reads some 100 MB, in a tenth of a
# second, unless it holds arrays itself.
MOST_MOVED_BYTES = 1_000_000

# Most seconds that a fit that failed waits until the scheduler has forgotten its tasks.
FORGET_SECONDS = 0.5

# Most seconds that a pass waits for the answers of groups that have ended. If a worker dies in the
# meantime, its groups run again, and their answers are asked for later.
GATHER_SECONDS = 5.0


class ClusterRunner:
    """Runs groups as tasks of a distributed cluster.

    Keys carry the number of the pass and an identifier of the fit, because the scheduler does not
    run a key again while it has its result. Dask's pages group tasks by their first words: setup,
    pilot, pass 3, reduce. In the pages that know spans, a span is a fit, with a span a pass.

    A group that keeps its rows is assigned to a worker. It runs elsewhere only if that worker is
    gone.

    Attributes
    ----------
    fit : str
        Identifier of the fit, a part of the keys of its tasks.
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
        self._stream = stream
        self.fit = uuid.uuid4().hex
        self._vector_bits = work.kernels.vector_bits
        self._told_of_narrow = False
        keeping = keeping or keep_nothing(stream)
        self._workers = keeping.workers
        self._work: list[Future[Any]] = []
        self._groups: list[Future[Any]] = []
        self._external: list[list[Future[Any]]] = []
        self._anywhere = False
        self._keys: set[Key] = set()  # of the tasks of the fit, and of its last pass
        self._n_models = len(work.kernels.specs)
        # A model that needs all rows at once has no residuals of some rows.
        self._steps = {} if work.kernels.whole else steps_of(stream.groups)
        self._span = Span(work.kernels.specs, self.fit)
        self._ears = Ears(show)
        listen(client)
        try:
            with self._span.of("setup"):
                self._send(stream, replace(work, fit=self._ears.fit), keeping)
        except BaseException:
            self.close(failed=True)
            raise
        self._lasting = frozenset(self._keys)

    def _send(self, stream: Stream, work: Work, keeping: Keeping) -> None:
        """Send the groups, the work, and what all groups share, to the cluster."""
        blobs = [packed(group) for group in keeping.groups]
        # Other keys that groups need are of arrays that the user persisted, on some workers.
        own = set(stream.shared_keys)
        self._anywhere = all(
            len(blob) <= MOST_MOVED_BYTES and own.issuperset(group.external)
            for blob, group in zip(blobs, stream.groups, strict=True)
        )
        self._work = self._map("nlsq setup", unpacked, [None], [packed(work)], numbers=[WORK])
        self._groups = self._map("nlsq setup", unpacked, keeping.workers, blobs)
        keys = list(stream.shared_keys)
        graph = shared_nodes(stream.shared, stream.names, work.retries, work.fit)
        futures = self._client.get(graph, keys, sync=False) if keys else []
        shared = dict(zip(keys, futures, strict=True))
        self._external = [
            [shared[k] if k in shared else self._existing(k) for k in group.external]
            for group in stream.groups
        ]

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        ledger: PassLedger = NO_PASS_LEDGER,
    ) -> Any:
        """Sum over all groups; see :class:`~nlsq_dask.engines.dask.runners.Runner`."""
        self._keys = set(self._lasting)
        shown = shown_sums(args[0], shown_fits(self._client, self.fit, self._n_models))
        only, named = self._wide_workers(anew=False), name
        for attempt in count(1):
            with suppress(NarrowVectorsError):
                submit = _Submit(self, only, named, function, args, shown)
                return self._run_on(only, submit, ledger)
            logger.info("pass %s begins again, on other workers", name)
            only, named = self._wide_workers(anew=True), f"{name}-elsewhere-{attempt}"
        raise AssertionError("count() never ends")

    def _run_on(self, only: Sequence[str], submit: _Submit, ledger: PassLedger) -> Any:
        """Sum over all groups, on some workers only; on any if there are none in the list."""
        watch = Watch(self._client, self._ears, only)
        a_pass = ClusterPass(self._stream.groups, submit, watch, self._progress, ledger)
        try:
            with self._span.of(submit.name), aside():
                return a_pass.answer()
        finally:
            a_pass.release()

    def _wide_workers(self, *, anew: bool) -> list[str]:
        """The workers whose vectors are as wide as the fit's; empty if all workers' are.

        Waits as long for such a worker as a fit waits for any worker.
        """
        if self._vector_bits <= XLA_VECTOR_BITS:
            return []
        began = time.monotonic()
        while True:
            wide, narrow = wide_workers(self._client, self._vector_bits, anew=anew)
            if narrow and not self._told_of_narrow:
                self._told_of_narrow = True
                self._ears.tell(*_errors.vectors_narrow(narrow, self._vector_bits))
            if wide or not narrow:
                return wide if narrow else []
            if time.monotonic() - began >= longest_wait():
                raise _errors.no_wide_worker(narrow, self._vector_bits, WAIT_OPTION)
            time.sleep(LOOK_SECONDS)

    def submit_groups(
        self,
        name: str,
        numbers: Sequence[int],
        function: Callable[..., Any],
        args: Sequence[Any],
        only: Sequence[str],
        shown: tuple[ShownSums, ...],
    ) -> list[Future[Any]]:
        """Submit a function of some groups, by number, to some workers only if any are named.

        Some groups tell the board of fits residuals at the points that it shows.
        """
        wanted = [self._workers[i] for i in numbers]
        if only:
            wanted = [worker if worker in only else None for worker in wanted]
        steps = self._steps
        looks = [Look(shown, i, steps[i]) if i in steps else None for i in numbers]
        return self._map(
            f"nlsq {name}",
            partial(looking, function) if shown else function,
            wanted,
            *([looks] if shown else []),
            [self._groups[i] for i in numbers],
            [self._external[i] for i in numbers],
            self._work * len(numbers),
            *([arg] * len(numbers) for arg in args),
            numbers=numbers,
            only=only,
            anywhere=self._anywhere,
        )

    def submit_tree(
        self, name: str, groups: Sequence[Any], shown: tuple[ShownSums, ...]
    ) -> list[Future[Any]]:
        """Submit the tree that adds the answers of all groups: futures, or known answers."""
        parts: dict[Key, Any] = dict(enumerate(groups))
        nodes = []
        for node, keys in tree(list(parts), f"nlsq reduce-{name}-{self.fit}"):
            self._keys.add(node)
            added = [parts[k] for k in keys]
            _, level, number = node
            add = partial(add_telling, shown, number) if shown and not level else add_in_order
            parts[node] = self._client.submit(add, added, key=node, pure=False)
            nodes.append(parts[node])
        return nodes

    def values(self, futures: Mapping[int, Future[Any]]) -> dict[int, Any]:
        """Results of futures that have ended; without those that do not come soon."""
        found: dict[int, Any] = self._client.sync(_soon, self._client, dict(futures))
        return found

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
                self._client.sync(_forgotten, self._client, self.fit, list(self._keys))

    def _map(
        self,
        name: str,
        function: Callable[..., Any],
        workers: Sequence[str | None],
        *args: Sequence[Any],
        numbers: Sequence[int] | None = None,
        only: Sequence[str] = (),
        anywhere: bool = False,
    ) -> list[Future[Any]]:
        """Submit a task for each set of arguments, on its worker; None lets the scheduler choose.

        If `only` names workers, the scheduler chooses among them. Tasks that run `anywhere` go to
        the next free worker, wherever their arguments are.

        Groups travel as bytes, and tasks unpack them. The scheduler would run the graph nodes of a
        group that is passed as it is, and scattered data die with their worker. Dask tries no task
        again: what a later attempt may not meet is an error of reading, and a task tries that
        itself.
        """
        names = range(len(workers)) if numbers is None else numbers
        futures: dict[int, Future[Any]] = {}
        of_worker: dict[str | None, list[int]] = defaultdict(list)
        for i, worker in enumerate(workers):
            of_worker[worker].append(i)
        for worker, chosen in of_worker.items():
            keys = [(f"{name}-{self.fit}", names[i]) for i in chosen]
            self._keys.update(keys)
            given = [[values[i] for i in chosen] for values in args]
            if anywhere and worker is None and not only:
                made = self._map_anywhere(function, keys, given)
            else:
                made = self._client.map(
                    function,
                    *given,
                    key=keys,
                    workers=list(only) or None if worker is None else worker,
                    allow_other_workers=worker is not None,
                )
            futures.update(zip(chosen, made, strict=True))
        return [futures[i] for i in range(len(workers))]

    def _map_anywhere(
        self, function: Callable[..., Any], keys: Sequence[Key], args: Sequence[Sequence[Any]]
    ) -> list[Future[Any]]:
        """Submit tasks that read data: the scheduler gives each to the next worker that is free.

        Dask otherwise sends a task at once to a worker that has a group, which takes no time to
        send, and moves tasks to idle workers only each second.
        """
        graph = {
            key: Task(key, function, *map(parse_input, given), _data_producer=True)
            for key, given in zip(keys, zip(*args, strict=True), strict=True)
        }
        made: list[Future[Any]] = self._client.get(graph, list(keys), sync=False)
        return made

    def _existing(self, key: Key) -> Future[Any]:
        """A key that the user persisted on the cluster."""
        from distributed import Future

        future: Future[Any] = Future(key, self._client)
        return future


@dataclass(frozen=True, slots=True)
class _Submit:
    """Sends the tasks of one pass; see :class:`~nlsq_dask.engines.dask.cluster_pass.Submit`."""

    runner: ClusterRunner
    only: Sequence[str]
    name: str
    function: Callable[..., Any]
    args: Sequence[Any]
    shown: tuple[ShownSums, ...]

    @property
    def omits(self) -> bool:
        return self.function is answer_of_readable

    def groups(self, numbers: Sequence[int]) -> list[Future[Any]]:
        return self._submitted(self.name, numbers, self.function)

    def again(self, number: int, killers: Sequence[LostBlock]) -> Future[Any]:
        function, name = self.function, f"{self.name}-again"
        if killers:
            function, name = partial(without_killers, tuple(killers)), f"{name}-{len(killers)}"
        (future,) = self._submitted(name, [number], partial(telling, function))
        return future

    def _submitted(
        self, name: str, numbers: Sequence[int], function: Callable[..., Any]
    ) -> list[Future[Any]]:
        return self.runner.submit_groups(name, numbers, function, self.args, self.only, self.shown)

    def tree(self, groups: Sequence[Any], attempt: int) -> list[Future[Any]]:
        name = f"{self.name}-again-{attempt}" if attempt else self.name
        return self.runner.submit_tree(name, groups, self.shown)

    def values(self, futures: Mapping[int, Future[Any]]) -> dict[int, Any]:
        return self.runner.values(futures)


def _release(futures: Iterable[Future[Any]]) -> None:
    """Let the cluster forget futures now, whatever still refers to them."""
    for future in futures:
        future.release()


async def _soon(client: Client, futures: dict[int, Future[Any]]) -> dict[int, Any]:
    """Results of futures; none if the scheduler does not get one of them soon.

    ``Client.gather`` would wait until a lost result is made again.
    """
    numbers = {future.key: number for number, future in futures.items()}
    scheduler: Any = client.scheduler
    try:
        response = await asyncio.wait_for(scheduler.gather(keys=list(numbers)), GATHER_SECONDS)
    except (TimeoutError, OSError):
        return {}
    if response["status"] != "OK":
        return {}
    return {numbers[key]: value for key, value in response["data"].items()}


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
