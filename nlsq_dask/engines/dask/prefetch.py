"""Make the blocks of a group, and read the next blocks while the kernel works on this one.

Reading across a network is mostly waiting, and several readings at one time wait no longer than one
reading. A task of a worker leaves its thread to other tasks while it waits for its first block. On
local disks nothing is gained: decoding and the kernel use the same cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

from dask._task_spec import DataNode, GraphNode, Task
from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.aside import aside
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.reading import READ_ONCE, Reading, place_in_group
from nlsq_dask.engines.dask.signals import worker_here
from nlsq_dask.engines.dask.steps import Group, Making, Step
from nlsq_dask.io.lazy_arrays import zarr_inside
from nlsq_dask.io.libraries import inner_store
from nlsq_dask.io.places import Place
from nlsq_dask.io.stage import Block, Layout

# Blocks that are read ahead from an object store at first. With 30 ms of latency and chunks of 8
# MB, a chunk took 131 ms without reading ahead, 117 ms with one block ahead, 37 ms with four.
FIRST_DEPTH = 4

# Most blocks that are read ahead for each thread. With 30 ms of latency and chunks of 160 kB, 4, 8,
# 16, 32 and 64 requests in flight read 32 MB in 1.9, 1.0, 0.72, 0.57 and 0.70 s.
MOST_DEPTH = 16

# Most decoded bytes that a task reads ahead, so that it never has many large chunks in memory.
AHEAD_BYTES = 64_000_000

# Fits of a process that read at one time, at most.
MOST_FITS = 32

# Class names of Zarr's stores in this machine's memory or on its disks.
LOCAL_STORES = ("LocalStore", "MemoryStore", "ZipStore", "GpuMemoryStore")

# Protocols of fsspec's file systems in this machine's memory or on its disks.
LOCAL_PROTOCOLS = ("file", "local", "memory")


def read_blocks(
    group: Group, external: Mapping[Key, Any], layout: Layout, reading: Reading = READ_ONCE
) -> Iterator[Block]:
    """Make the blocks of a group one after the other, and drop what no later block needs.

    Raises
    ------
    InputError, InputTypeError
        If an array of a block has another shape than announced, or values that are no numbers.
    ReadingError
        If an array of a block cannot be read.
    """
    values = checked_values(group, external)

    def place() -> Place:
        return place_of(making, group, layout)

    for step in group.steps:
        reading.begin(step.index)
        making = step.making(values, group.announced)
        try:
            arrays = reading.run(making.run, place)
        except _errors.ReadingError as error:
            error.block = step.index
            raise
        yield layout.checked(arrays, step.shapes, step.index, step.box)
        del arrays
        making.drop()


def checked_values(group: Group, external: Mapping[Key, Any]) -> dict[Key, Any]:
    """The values that are handed to a group, if they are as announced; see :func:`read_blocks`."""
    for key in group.announced.keys() & external.keys():
        group.announced[key].check(external[key])
    return dict(external)


def place_of(making: Making, group: Group, layout: Layout) -> Place:
    """What the node that failed is a part of, while the arrays of a block of a group are made."""
    step = making.step
    node, values = making.failed()
    steps = [step] if isinstance(step, AlikeStep) else group.steps
    nodes = {n.key: n for s in steps for n, _ in s.nodes}
    operands = [
        (operand.key, layout.announced(number, step.index, step.box))
        for number, operand in enumerate(step.operands)
    ]
    return place_in_group(node, values, nodes, operands, group.announced)


class ReadAhead:
    """Reads the blocks of groups in their order, ahead of the tasks that use the blocks.

    The groups of a pass share the reading: a group of one block hides no latency by itself. The
    number of blocks that are read or wait for their use grows while tasks wait for blocks. It
    changes no value and no order of sums.

    Parameters
    ----------
    groups : sequence of (Group, mapping)
        Groups whose blocks are independent, each with the values that are handed to it.
    layout : Layout
    depth : int
        Most blocks that are read ahead, at least 1.
    reading : Reading
    """

    def __init__(
        self,
        groups: Sequence[tuple[Group, Mapping[Key, Any]]],
        layout: Layout,
        depth: int,
        reading: Reading,
    ) -> None:
        self._groups = {id(group): (group, external) for group, external in groups}
        self._layout = layout
        self._reading = reading
        self._most = depth
        self._width = min(FIRST_DEPTH, depth)
        self._lock = threading.Lock()
        self._left = self._in_order(list(self._groups))
        self._coming: dict[tuple[int, tuple[int, ...]], Future[Block]] = {}
        self._asked: set[tuple[int, tuple[int, ...]]] = set()
        self._given_up: set[int] = set()
        self._pool = ThreadPoolExecutor(depth, "nlsq-read")

    def __contains__(self, group: Group) -> bool:
        return id(group) in self._groups

    def follow(self, groups: Iterable[Group]) -> None:
        """Read in the order in which tasks begin the groups; called before the first begins."""
        self._left = self._in_order([id(group) for group in groups if group in self])

    def blocks(self, group: Group) -> Iterator[Block]:
        """The blocks of a group, one after the other. A second call reads them anew."""
        try:
            for step in group.steps:
                future = self._taken(id(group), step)
                if not future.done():
                    with self._lock:
                        self._width = min(2 * self._width, self._most)
                        self._fill()
                yield future.result()
                del future
        except _errors.ReadingError:
            self._give_up(id(group))
            raise

    def _give_up(self, group: int) -> None:
        """Read no more of a group ahead: without the block that failed it is another group."""
        with self._lock:
            self._given_up.add(group)
            for place in [place for place in self._coming if place[0] == group]:
                self._coming.pop(place).cancel()

    def wait_aside(self, width: int) -> None:
        """Begin to read so many blocks, and let other tasks have the thread until one is read.

        An error of reading is raised where the block is used.
        """
        with self._lock:
            self._width, then = width, self._width
            self._fill()
            self._width = then
            first = next(iter(self._coming.values()), None)
        if first is not None:
            with aside():
                first.exception()

    def close(self, *, wait: bool = True) -> None:
        """Begin no other reading, and wait for what is under way."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _in_order(self, groups: Iterable[int]) -> Iterator[tuple[int, Step]]:
        return ((g, step) for g in groups for step in self._groups[g][0].steps)

    def _taken(self, group: int, step: Step) -> Future[Block]:
        """The reading of a block, which is no longer ahead."""
        place = group, step.index
        with self._lock:
            future = self._coming.pop(place, None)
            if future is None:
                self._asked.add(place)
                future = self._submit(group, step)
            self._fill()
        return future

    def _fill(self) -> None:
        """Begin to read the next blocks."""
        while len(self._coming) < self._width:
            found = next(self._left, None)
            if found is None:
                return
            place = found[0], found[1].index
            if found[0] in self._given_up:
                continue
            if place in self._asked:
                self._asked.remove(place)
            else:
                self._coming[place] = self._submit(*found)

    def _submit(self, group: int, step: Step) -> Future[Block]:
        return self._pool.submit(copy_context().run, self._read, group, step)

    def _read(self, number: int, step: Step) -> Block:
        group, external = self._groups[number]
        one = replace(group, steps=(step,))
        return next(read_blocks(one, external, self._layout, self._reading))


def read_ahead(
    group: Group,
    external: Mapping[Key, Any],
    layout: Layout,
    depth: int,
    reading: Reading = READ_ONCE,
    room: threading.Semaphore | None = None,
) -> Iterator[Block]:
    """Make the blocks of a group in their order, and up to `depth` of the next blocks meanwhile.

    Nothing is read ahead in a group whose blocks use arrays that earlier blocks made.

    Parameters
    ----------
    group : Group
    external : mapping
        The values that are handed to the group.
    layout : Layout
    depth : int
    reading : Reading
    room : Semaphore, optional
        Counts the blocks that tasks of this process may read while other tasks have their threads.
        By default a task keeps its thread. The task of a group of FIRST_DEPTH blocks keeps its
        thread, too: such a group waits for one block in several.
    """
    waits_aside = room is not None and len(group.steps) < FIRST_DEPTH
    alone = len(group.steps) < 2 and not waits_aside
    if depth < 1 or reading.tells or alone or not is_independent(group):
        yield from read_blocks(group, external, layout, reading)
        return
    ahead = ReadAhead([(group, external)], layout, depth, reading)
    try:
        if room is not None and waits_aside:
            with _places(room, min(depth, len(group.steps))) as n_places:
                if n_places:
                    ahead.wait_aside(n_places)
        yield from ahead.blocks(group)
    finally:
        ahead.close()


def room_aside(fit: str, depth: int) -> threading.Semaphore | None:
    """Places for `depth` blocks that tasks of a fit read in this process while they wait aside.

    None if no task waits: nothing is read ahead, or this is no task of a worker.
    """
    if depth < 1 or worker_here() is None:
        return None
    return _room(os.getpid(), fit, depth)


@lru_cache(MOST_FITS)
def _room(process: int, fit: str, depth: int) -> threading.Semaphore:  # noqa: ARG001 (what differs)
    return threading.Semaphore(depth)


@contextmanager
def _places(room: threading.Semaphore, wanted: int) -> Iterator[int]:
    """Take as many places as are free, at most so many, and give them back."""
    taken = sum(room.acquire(blocking=False) for _ in range(wanted))
    try:
        yield taken
    finally:
        if taken:
            room.release(taken)


def prefetch_depth(stream: Stream) -> int:
    """Most blocks to read ahead for each thread; 0 unless a Zarr store is not local."""
    return depth_of(stream.groups, stream.block_bytes)


def depth_of(groups: Iterable[Group], block_bytes: int) -> int:
    """Most blocks to read ahead for each thread, for the bytes of the largest block."""
    steps = islice((step for group in groups for step in group.steps), 1)
    nodes = (node for step in steps for node, _ in step.nodes)
    if not any(is_remote(array.store) for array in _zarr_arrays(nodes)):
        return 0
    return min(MOST_DEPTH, AHEAD_BYTES // block_bytes)


def is_independent(group: Group) -> bool:
    """Whether each block can be made by itself, from the values that are handed to the group."""
    for step in group.steps:
        if isinstance(step, AlikeStep):
            return True  # as all others
        known = set(group.external)
        for node, _ in step.nodes:
            if not node.dependencies <= known:
                return False
            known.add(node.key)
        if any(o.key is not None and o.key not in known for o in step.operands):
            return False
    return True


def _zarr_arrays(values: Iterable[Any]) -> Iterator[Any]:
    """Zarr arrays in graph nodes, their arguments, and containers of either."""
    for value in values:
        if (array := zarr_inside(value)) is not None:
            yield array
        elif isinstance(value, DataNode):
            yield from _zarr_arrays([value.value])
        elif isinstance(value, Task):
            yield from _zarr_arrays([*value.args, *value.kwargs.values()])
        elif isinstance(value, dict):
            yield from _zarr_arrays(value.values())
        elif isinstance(value, list | tuple):
            yield from _zarr_arrays(v for v in value if isinstance(v, GraphNode | dict | list))


def is_remote(store: Any) -> bool:
    """Whether a Zarr store is neither on this machine's disks nor in its memory."""
    store = inner_store(store)
    if hasattr(store, "fs"):
        protocol = store.fs.protocol
        names = (protocol,) if isinstance(protocol, str) else protocol
        return not set(names) & set(LOCAL_PROTOCOLS)
    # Zarr's wrapper of obstore has the store in an attribute `store`.
    return type(getattr(store, "store", store)).__name__ not in LOCAL_STORES
