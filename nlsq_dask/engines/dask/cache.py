"""Rows that stay where they were staged, so that later passes read and decode nothing.

What is kept of a group are the kernel's own inputs: aligned float64 buffers, in the order and of
the lengths in which the first pass met them. A pass over them makes the same calls of the kernel,
and so has the same bits, as one that reads.

The rows are a part of the group's plan, and live as long as it does in the process that holds it.
On a cluster plans are results of tasks: Dask sends the tasks of a group to where its plan is, as
the plan gives the size of its rows as its own; it forgets plan and rows when the fit is over or its
client is gone; and where it must make a plan again, the rows are read again.

Nothing is evicted to make room: since passes go over the groups in a cycle, the one that was used
last would always be the next to go. The first groups that fit are kept, the others are not.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from dask._task_spec import Alias, DataNode

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import AnswerT, RowQuestion
from nlsq_dask.engines.accumulate import accumulate, add_rows
from nlsq_dask.engines.dask.groups import GroupPlan, StreamPlan
from nlsq_dask.io.stage import ALIGNMENT, Block, Stage
from nlsq_dask.kernels.compiled import find_device
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows

CacheChoice = bool | Literal["auto"]

# Share of all rows, at least, that "auto" keeps: less is not worth tying groups to workers.
MIN_SHARE = 0.25

# Share of a GPU's memory up to which rows are kept on it; the kernel's matrices need the rest.
DEVICE_SHARE = 0.6

_held: Counter[str] = Counter()  # bytes of kept rows, by worker and device
_returned: deque[tuple[str, int]] = deque()  # bytes let go of, not yet subtracted
_lock = threading.Lock()


class KeptGroup:
    """A group whose staged rows stay in the memory of the process that staged them.

    Parameters
    ----------
    plan : GroupPlan
    n_bytes : int
        Bytes of its staged rows.
    limit : int
        Bytes that the kept rows of all groups may take on one worker, or in this process.
    """

    __slots__ = ("__weakref__", "_release", "_rows", "limit", "n_bytes", "plan")

    def __init__(self, plan: GroupPlan, n_bytes: int, limit: int) -> None:
        self.plan = plan
        self.n_bytes = n_bytes
        self.limit = limit
        self._rows: list[tuple[Rows, int]] | None = None
        self._release: weakref.finalize[..., KeptGroup] | None = None

    def __reduce__(self) -> tuple[type[KeptGroup], tuple[GroupPlan, int, int]]:
        # Another process gets the plan alone, and reads.
        return KeptGroup, (self.plan, self.n_bytes, self.limit)

    def __sizeof__(self) -> int:
        # By this Dask decides whether to move a task to another worker than the one that has it.
        return self.n_bytes

    def answer(
        self,
        question: RowQuestion[AnswerT],
        kernels: Kernels,
        blocks: Iterable[Block],
        weighted: bool,
        stage_rows: int,
    ) -> AnswerT:
        """Answer a question for the kept rows; or for the blocks, whose rows are then kept.

        Parameters
        ----------
        blocks : iterable of Block
            The blocks of the group. Nothing is made of them where rows were kept.
        question, kernels, weighted, stage_rows
            As for :func:`~nlsq_dask.engines.accumulate.accumulate`.
        """
        if self._rows is not None:
            return add_rows(question, kernels, self._rows)
        if not self._claim(kernels.device):
            return accumulate(question, kernels, blocks, weighted, stage_rows)
        kept: list[tuple[Rows, int]] = []

        def keep(stage: Stage) -> Rows:
            rows = kernels.put(_copied(stage))
            kept.append((rows, stage.n_left_out))
            return rows

        try:
            total = accumulate(question, kernels, blocks, weighted, stage_rows, keep)
        except BaseException:
            self.forget()
            raise
        self._rows = kept
        return total

    def forget(self) -> None:
        """Let go of the rows."""
        self._rows = None
        if self._release is not None:
            self._release()
            self._release = None

    def _claim(self, device: str | None) -> bool:
        """Take memory for the rows, if there is any left on this worker."""
        place = f"{_worker_address()} {device}"
        with _lock:
            while _returned:
                returned, n_bytes = _returned.popleft()
                _held[returned] -= n_bytes
            # A task that is tried again while the first try still runs keeps nothing.
            if self._release is not None or _held[place] + self.n_bytes > self.limit:
                return False
            if not _device_has_room(device, self.n_bytes):
                return False
            _held[place] += self.n_bytes
        self._release = weakref.finalize(self, _give_back, place, self.n_bytes)
        return True


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """Room for kept rows on one worker.

    Attributes
    ----------
    address : str or None
        None is this process.
    threads : int
        Tasks that it runs at one time.
    n_bytes : int
        Bytes that kept rows may take.
    """

    address: str | None
    threads: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which groups are kept, and where.

    Attributes
    ----------
    groups : tuple of GroupPlan or KeptGroup
        All groups, in their order.
    workers : tuple of str or None
        Worker of each group that is kept on one.
    share : float
        Rows that are kept, of all rows.
    worker_bytes : int
        Most memory that kept rows take on one worker, or in this process.
    """

    groups: tuple[GroupPlan | KeptGroup, ...]
    workers: tuple[str | None, ...]
    share: float
    worker_bytes: int


def keep_nothing(plan: StreamPlan) -> Keeping:
    """All groups read in every pass."""
    return Keeping(plan.groups, (None,) * len(plan.groups), 0.0, 0)


def plan_keeping(
    plan: StreamPlan,
    choice: CacheChoice,
    row_values: int,
    stage_rows: int,
    rooms: Sequence[WorkerRoom],
) -> Keeping:
    """Decide which groups are kept: the first that fit, spread over the workers.

    Parameters
    ----------
    plan : StreamPlan
    choice : bool or "auto"
        False keeps nothing, True what fits, "auto" what fits if it is a quarter of all rows.
    row_values : int
        float64 values of a staged row.
    stage_rows : int
        Rows of a staging buffer.
    rooms : sequence of WorkerRoom
    """
    if choice is False or not rooms:
        return keep_nothing(plan)
    # In turn, a worker as often as it has threads, so that all have as much to do in each pass.
    rounds = range(max(room.threads for room in rooms))
    order = [i for turn in rounds for i, room in enumerate(rooms) if turn < room.threads]
    left = [room.n_bytes for room in rooms]
    groups: list[GroupPlan | KeptGroup] = []
    workers: list[str | None] = []
    kept_rows, at = 0, 0
    for group in plan.groups:
        size = -(-group.n_rows // stage_rows) * stage_rows * row_values * 8
        turns = order[at:] + order[:at]
        place = next((i for i in turns if size <= left[i]), None)
        if place is None or not reads(group):
            groups.append(group)
            workers.append(None)
            continue
        at = (order.index(place, at) if place in order[at:] else order.index(place)) + 1
        left[place] -= size
        groups.append(KeptGroup(group, size, rooms[place].n_bytes))
        workers.append(rooms[place].address)
        kept_rows += group.n_rows
    share = kept_rows / plan.n_rows
    if choice == "auto" and share < MIN_SHARE:
        return keep_nothing(plan)
    taken = max(room.n_bytes - rest for room, rest in zip(rooms, left, strict=True))
    return Keeping(tuple(groups), tuple(workers), share, taken)


def reads(group: GroupPlan) -> bool:
    """Whether making the blocks of a group takes any work: arrays in memory take none."""
    nodes = (node for step in group.steps for node, _ in step.nodes)
    return any(not isinstance(node, (DataNode, Alias)) for node in nodes)


def _copied(stage: Stage) -> Rows:
    """The rows of a stage in buffers of their own, of the same length."""

    def copy(buffer: FloatArray) -> FloatArray:
        # Zeros that were never written take no memory: a buffer of few rows is as large as these.
        raw = np.zeros(stage.capacity * 8 + ALIGNMENT, np.uint8)
        offset = -raw.ctypes.data % ALIGNMENT
        own = raw[offset : offset + stage.capacity * 8].view(np.float64)
        own[: stage.n_rows] = buffer[: stage.n_rows]
        return own

    weights = None if stage.weights is None else copy(stage.weights)
    return Rows(tuple(copy(c) for c in stage.coords), copy(stage.y), weights, stage.n_rows)


def _give_back(place: str, n_bytes: int) -> None:
    # Without the lock: the garbage collector may call this in a thread that holds it.
    _returned.append((place, n_bytes))


def _device_has_room(device: str | None, n_bytes: int) -> bool:
    """Whether a GPU has room for so many bytes more; a CPU's memory is counted elsewhere."""
    stats = find_device(device).memory_stats()
    if not stats or "bytes_limit" not in stats:
        return True
    return bool(stats["bytes_in_use"] + n_bytes <= DEVICE_SHARE * stats["bytes_limit"])


def _worker_address() -> str:
    """Address of the Dask worker that runs this task, of which one process may have several."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return ""
    try:
        return str(distributed.get_worker().address)
    except ValueError:  # not in a task of a cluster
        return ""
