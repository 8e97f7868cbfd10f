"""Rows that are kept where they are staged, so that later passes read and decode nothing.

The kept rows of a group are the inputs of the kernel: aligned float64 buffers. They have the order
and the lengths that the first pass gave them. A pass over kept rows makes the same calls of the
kernel as a pass that reads, and so gives the same bits.

Kept rows belong to a KeptGroup, and live as long as this object in the process that staged them. On
a cluster groups are results of tasks. A KeptGroup reports the size of its rows as its own, so Dask
sends the tasks of a group to the worker that has its rows. Dask forgets groups and rows when the
fit ends or its client is gone. When a worker is lost, its groups are made elsewhere and read again.

Rows are never dropped to make room for others. Every pass goes over the groups in the same order,
so the rows dropped would always be the next ones needed. The first groups that fit are kept.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from dask._task_spec import Alias, DataNode

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import AnswerT, RowQuestion
from nlsq_dask.engines.accumulate import Blocks, accumulate, add_rows
from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.signals import worker_here
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.io.ready_memory import make_ready
from nlsq_dask.io.stage import ALIGNMENT, aligned
from nlsq_dask.kernels.devices import DeviceChoice, find_devices, next_device
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows

CacheChoice = bool | Literal["auto"]

# Least fraction of all rows that "auto" keeps: less is not worth tying groups to workers.
MIN_SHARE = 0.25

# Fraction of a GPU's memory that may be in use with kept rows; the kernel's matrices need the rest.
DEVICE_SHARE = 0.6

_kept_bytes: Counter[str] = Counter()  # bytes of kept rows, by worker and device
_returned: deque[tuple[str, int]] = deque()  # bytes of dropped rows, not yet subtracted
_lock = threading.Lock()


class KeptGroup:
    """A group that keeps its staged rows in the memory of the process that stages them.

    Parameters
    ----------
    group : Group
    n_bytes : int
        Bytes of its staged rows.
    limit : int
        Most bytes of the kept rows of all groups on one worker, or in this process.
    """

    __slots__ = ("__weakref__", "_blocks", "_release", "_rows", "group", "limit", "n_bytes")

    def __init__(self, group: Group, n_bytes: int, limit: int) -> None:
        self.group = group
        self.n_bytes = n_bytes
        self.limit = limit
        self._rows: list[tuple[Rows, int]] | None = None
        self._blocks: frozenset[tuple[int, ...]] | None = None
        self._release: weakref.finalize[..., KeptGroup] | None = None

    def __reduce__(self) -> tuple[type[KeptGroup], tuple[Group, int, int]]:
        # Rows do not travel: another process gets the group alone, and reads.
        return KeptGroup, (self.group, self.n_bytes, self.limit)

    def __sizeof__(self) -> int:
        # Dask reads this size to decide whether a task leaves the worker that has the group.
        return self.n_bytes

    def answer(
        self,
        question: RowQuestion[AnswerT],
        kernels: Kernels,
        blocks: Blocks,
        weighted: bool,
        stage_rows: int,
        indices: frozenset[tuple[int, ...]] | None = None,
    ) -> AnswerT:
        """Answer a question for the kept rows; the first call reads and keeps them.

        Parameters
        ----------
        blocks : iterable of Block, or StagedBlocks
            The blocks of the group; not iterated if rows are kept.
        indices : frozenset of tuple of int, optional
            Which blocks these are; None for all of the group. Kept rows of other blocks are
            dropped.
        question, kernels, weighted, stage_rows
            As for :func:`~nlsq_dask.engines.accumulate.accumulate`.
        """
        if self._rows is not None and self._blocks != indices:
            self.forget()
        rows = self._rows
        if rows is not None:
            return add_rows(question, kernels, rows)
        device = self._claim(kernels.device)
        if device is None:
            return accumulate(question, kernels, blocks, weighted, stage_rows)
        kept: list[tuple[Rows, int]] = []

        def keep(rows: Rows, n_left_out: int) -> Rows:
            rows = kernels.put(_copied(rows), device)
            kept.append((rows, n_left_out))
            return rows

        try:
            total = accumulate(question, kernels, blocks, weighted, stage_rows, keep)
        except BaseException:
            self.forget()
            raise
        self._rows, self._blocks = kept, indices
        return total

    @property
    def keeps(self) -> bool:
        """Whether rows are kept now."""
        return self._rows is not None

    def forget(self) -> None:
        """Drop the rows."""
        self._rows = None
        if self._release is not None:
            self._release()
            self._release = None

    def _claim(self, choice: DeviceChoice) -> jax.Device | None:
        """Reserve memory for the rows on a device; None if this worker has too little left."""
        place = f"{_worker_address()} {choice}"
        with _lock:
            while _returned:
                returned, n_bytes = _returned.popleft()
                _kept_bytes[returned] -= n_bytes
            # A task may be tried again while the first try still runs. The second keeps nothing.
            if self._release is not None or _kept_bytes[place] + self.n_bytes > self.limit:
                return None
            device = _device_with_room(choice, self.n_bytes)
            if device is None:
                return None
            _kept_bytes[place] += self.n_bytes
        self._release = weakref.finalize(self, _give_back, place, self.n_bytes)
        return device


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """Memory for kept rows on one worker.

    Attributes
    ----------
    address : str or None
        Address of the worker; None is this process.
    threads : int
        Tasks that the worker runs at one time.
    n_bytes : int
        Most bytes of kept rows.
    """

    address: str | None
    threads: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which groups keep their rows, and where.

    Attributes
    ----------
    groups : tuple of Group or KeptGroup
        All groups, in their order.
    workers : tuple of str or None
        Address of the worker that keeps the rows of each group; None for the other groups.
    share : float
        Fraction of all rows that are kept.
    worker_bytes : int
        Most bytes of kept rows on one worker, or in this process.
    """

    groups: tuple[Group | KeptGroup, ...]
    workers: tuple[str | None, ...]
    share: float
    worker_bytes: int


def keep_nothing(stream: Stream) -> Keeping:
    """No group keeps its rows: all are read in every pass."""
    return Keeping(stream.groups, (None,) * len(stream.groups), 0.0, 0)


def choose_keeping(
    stream: Stream,
    choice: CacheChoice,
    row_values: int,
    stage_rows: int,
    rooms: Sequence[WorkerRoom],
) -> Keeping:
    """Decide which groups keep their rows: the first that fit, spread over the workers.

    Parameters
    ----------
    stream : Stream
    choice : bool or "auto"
        False keeps nothing, True keeps what fits, "auto" keeps what fits if that is at least a
        quarter of all rows.
    row_values : int
        Number of float64 values of a staged row.
    stage_rows : int
        Rows of a staging buffer.
    rooms : sequence of WorkerRoom
        Memory for kept rows on each worker.
    """
    if choice is False or not rooms:
        return keep_nothing(stream)
    # Workers take turns, each as often as it has threads, so that all finish a pass together.
    rounds = range(max(room.threads for room in rooms))
    order = [i for turn in rounds for i, room in enumerate(rooms) if turn < room.threads]
    left = [room.n_bytes for room in rooms]
    groups: list[Group | KeptGroup] = []
    workers: list[str | None] = []
    kept_rows, at = 0, 0
    for group in stream.groups:
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
    share = kept_rows / stream.n_rows
    if choice == "auto" and share < MIN_SHARE:
        return keep_nothing(stream)
    taken = max(room.n_bytes - rest for room, rest in zip(rooms, left, strict=True))
    return Keeping(tuple(groups), tuple(workers), share, taken)


def reads(group: Group) -> bool:
    """Whether making the blocks of a group takes work; False if all arrays are in memory."""
    first = next(iter(group.steps), None)
    if isinstance(first, AlikeStep):
        return bool(first.recipe.calls)
    nodes = (node for step in group.steps for node, _ in step.nodes)
    return any(not isinstance(node, (DataNode, Alias)) for node in nodes)


def _copied(rows: Rows) -> Rows:
    """A copy of rows, in buffers of the same length."""

    def copy(buffer: Any) -> FloatArray:
        # Pages of zeros that are never written take no memory, so that few rows take little.
        n_bytes = buffer.size * 8
        own = aligned(np.zeros(n_bytes + ALIGNMENT, np.uint8), n_bytes).view(np.float64)
        make_ready(own[: rows.n])
        own[: rows.n] = buffer[: rows.n]
        return own

    weights = None if rows.weights is None else copy(rows.weights)
    counted = None if rows.counted is None else np.array(rows.counted)
    return Rows(tuple(copy(c) for c in rows.coords), copy(rows.y), weights, rows.n, counted)


def _give_back(place: str, n_bytes: int) -> None:
    # No lock here: the garbage collector may call this in a thread that has the lock.
    _returned.append((place, n_bytes))


def _device_with_room(choice: DeviceChoice, n_bytes: int) -> jax.Device | None:
    """The next device in turn that has room for so many bytes more; None if there is none."""
    devices = find_devices(choice)
    turns = (next_device(devices) for _ in devices)
    return next((device for device in turns if _has_room(device, n_bytes)), None)


def _has_room(device: jax.Device, n_bytes: int) -> bool:
    """Whether a GPU has room for so many bytes more; always True for a CPU.

    The limit of a KeptGroup bounds the memory of a CPU.
    """
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return True
    return bool(stats["bytes_in_use"] + n_bytes <= DEVICE_SHARE * stats["bytes_limit"])


def _worker_address() -> str:
    """Address of the Dask worker that runs this task; a process may have several workers."""
    worker = worker_here()
    return "" if worker is None else str(worker.address)
