"""The tasks of one pass on a cluster: wait for them, and find a block that kills workers.

The scheduler sends a task whose worker died to another worker. After two deaths with the same
group, the group runs again, and its task tells each block before the block is read. If the task
ends, its answer has the same bits. If its worker dies, the block that was told last is to blame:
the fit ends with an error that names the block, or the group runs once more without the block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.engines.dask.tree import BlockProgress
from nlsq_dask.engines.dask.watch import GUILTY, LOOK_SECONDS, SUSPICIOUS, Watch
from nlsq_dask.engines.ledger import PassLedger
from nlsq_dask.engines.partial import LostBlock
from nlsq_dask.io.places import Place

if TYPE_CHECKING:
    from distributed import Future

# Number of the task that has the answer of the pass, among the numbers of groups.
ANSWER = -1


class Submit(Protocol):
    """Sends the tasks of a pass to the cluster."""

    @property
    def omits(self) -> bool:
        """Whether a group may be run without the blocks that kill its workers."""
        ...

    def groups(self, numbers: Sequence[int]) -> list[Future[Any]]:
        """Tasks of some groups, by number."""
        ...

    def again(self, number: int, killers: Sequence[LostBlock]) -> Future[Any]:
        """A task of a group that tells each block, without the blocks that killed workers."""
        ...

    def tree(self, groups: Sequence[Any], attempt: int) -> list[Future[Any]]:
        """Tasks that add the answers of all groups; the last has the answer of the pass.

        A group is a future, or an answer that is known already.
        """
        ...

    def values(self, futures: Mapping[int, Future[Any]]) -> dict[int, Any]:
        """Results of the futures; without those that do not come soon."""
        ...


class ClusterPass:
    """One pass over all groups.

    Parameters
    ----------
    groups : sequence of Group
    submit : Submit
    watch : Watch
    progress : callable
        Called as ``progress(blocks_done, blocks)``.
    ledger : PassLedger
        Keeps the answers of groups.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        submit: Submit,
        watch: Watch,
        progress: BlockProgress,
        ledger: PassLedger,
    ) -> None:
        self._groups = groups
        self._submit = submit
        self._watch = watch
        self._progress = progress
        self._blocks = sum(len(group.steps) for group in groups)
        self._ledger = ledger
        self._done = sum(len(groups[number].steps) for number in ledger.known)
        self._asked: dict[int, Future[Any]] = {}  # by number of the group
        self._unnoted: dict[int, Future[Any]] = {}
        self._nodes: list[Future[Any]] = []
        self._replaced: list[Future[Any]] = []
        self._telling: set[Key] = set()
        self._killers: dict[int, list[LostBlock]] = defaultdict(list)
        self._waiting: dict[Key, int] = {}
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()

    def answer(self) -> Any:
        """The answer of all groups.

        Raises
        ------
        ClusterError
            If no worker runs for long, a block kills its workers, or the scheduler is gone.
        Exception
            The error of the first group that fails.
        """
        numbers = [n for n in range(len(self._groups)) if n not in self._ledger.known]
        self._asked = dict(zip(numbers, self._submit.groups(numbers), strict=True))
        self._nodes = self._submit.tree(self._answers(), 0)
        self._wait_for(self._asked.items())
        self._wait_for([(ANSWER, self._nodes[-1])])
        while self._waiting:
            with suppress(Empty):
                self._take(self._ended.get(timeout=LOOK_SECONDS))
            if self._watch.due:
                self._look()
            if self._ledger.due:
                self._note()
        if self._ledger.wanted:
            self._note()
        return self._nodes[-1].result()

    def release(self) -> None:
        """Let the cluster forget all tasks of the pass.

        The cluster would otherwise remember them as long as any object refers to them, such as the
        traceback of a fit that failed.
        """
        for future in (*self._asked.values(), *self._nodes, *self._replaced):
            future.release()

    def _answers(self) -> list[Any]:
        """The future of each group, or its answer if that is known."""
        known = self._ledger.known
        return [known[n] if n in known else self._asked[n] for n in range(len(self._groups))]

    def _note(self) -> None:
        """Keep the answers of groups that have ended."""
        ended = {n: f for n, f in self._unnoted.items() if f.status == "finished"}
        if not ended:
            return
        answers = self._submit.values(ended)
        for number in answers:
            del self._unnoted[number]
        self._ledger.note(answers)

    def _wait_for(self, futures: Iterable[tuple[int, Future[Any]]]) -> None:
        """Take note of futures as they end.

        Callbacks, unlike ``as_completed``, let a pass look at the workers between two groups.
        """
        for number, future in futures:
            self._waiting[future.key] = number
            future.add_done_callback(self._ended.put)

    def _take(self, future: Future[Any]) -> None:
        """Take note of a task that has ended; raise its error."""
        number = self._waiting.pop(future.key, None)
        if number is None:  # it was replaced
            return
        if future.status == "error":
            error = future.exception()
            if type(error).__name__ == "KilledWorker":
                deaths = getattr(error, "allowed_failures", GUILTY - 1) + 1
                self._killed(number, deaths, future.key)
                return
            future.result()
        if future.status == "cancelled":
            raise _errors.cluster_lost("its tasks were cancelled") from None
        # Another status than "finished": its worker has died since, and the task runs again. The
        # tree waits for it.
        self._watch.group_ended()
        if number != ANSWER:
            self._unnoted[number] = future
            self._done += len(self._groups[number].steps)
            self._progress(self._done, self._blocks)

    def _look(self) -> None:
        """Look at the workers, and at the groups with which some have died."""
        deaths = self._watch.look()
        for key, number in list(self._waiting.items()):
            if number == ANSWER or not deaths[str(key)]:
                continue
            if key in self._telling:
                self._leave_out(number, GUILTY, self._watch.last_begun(str(key)))
            elif deaths[str(key)] >= SUSPICIOUS:
                self._run_again(number)

    def _killed(self, number: int, deaths: int, key: Key) -> None:
        """Deal with a task that Dask runs no more, as its workers have died too often."""
        if not self._submit.omits:
            raise self._guilty(number, deaths, None) from None
        if number == ANSWER:  # the group that it waits for has the same error
            return
        if key in self._telling:
            self._leave_out(number, deaths, self._watch.last_begun(str(key)))
        else:
            self._run_again(number)

    def _leave_out(self, number: int, deaths: int, block: tuple[int, ...] | None) -> None:
        """Run a group without the block that killed its workers; or end the fit."""
        if not self._submit.omits or block is None:
            raise self._guilty(number, deaths, block) from None
        (place,) = self._places(number, block)
        killer = LostBlock(place.index, _errors.killed_workers(place, deaths))
        self._killers[number].append(killer)
        self._run_again(number)

    def _run_again(self, number: int) -> None:
        """Replace the task of a group by one that tells its blocks, and the tree with it."""
        old = self._asked[number]
        replaced = [old, *self._nodes]
        for future in replaced:
            self._waiting.pop(future.key, None)
            future.release()
        self._replaced += replaced
        new = self._submit.again(number, self._killers[number])
        self._asked[number] = new
        self._telling.add(new.key)
        self._nodes = self._submit.tree(self._answers(), len(self._telling))
        self._wait_for([(number, new), (ANSWER, self._nodes[-1])])

    def _guilty(
        self, number: int, deaths: int, block: tuple[int, ...] | None
    ) -> _errors.ClusterError:
        """The error of a group that kills workers, with the block if it is known."""
        places = self._places(number, block) if number != ANSWER else []
        return _errors.block_kills_workers(places or [Place(())], deaths)

    def _places(self, number: int, block: tuple[int, ...] | None) -> list[Place]:
        """A block of a group, or all blocks where the block is not known."""
        steps = self._groups[number].steps
        chosen = [step for step in steps if block is None or step.index == block]
        return [Place(("y",), step.index, step.box) for step in chosen]
