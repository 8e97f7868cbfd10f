"""Make the blocks of a group, and read the next blocks while the kernel works on this one.

Reading across a network is mostly waiting, and several readings at one time wait no longer than one
reading. On local disks nothing is gained: decoding and the kernel use the same cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from dask._task_spec import DataNode, GraphNode, Task
from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.reading import AT_ONCE, Reading, place_in_group
from nlsq_dask.engines.dask.steps import Group, Making, Step
from nlsq_dask.io.lazy_arrays import zarr_inside
from nlsq_dask.io.libraries import inner_store
from nlsq_dask.io.places import Place
from nlsq_dask.io.stage import Block, Layout

# Blocks that are read ahead from an object store. With 30 ms of latency and chunks of 8 MB, a chunk
# took 131 ms without reading ahead, 117 ms with one block ahead, and 37 ms with four.
REMOTE_DEPTH = 4

# Most decoded bytes that a task reads ahead, so that it never has many large chunks in memory.
AHEAD_BYTES = 64_000_000

# Class names of Zarr's stores in this machine's memory or on its disks.
LOCAL_STORES = ("LocalStore", "MemoryStore", "ZipStore", "GpuMemoryStore")

# Protocols of fsspec's file systems in this machine's memory or on its disks.
LOCAL_PROTOCOLS = ("file", "local", "memory")


def read_blocks(
    group: Group, external: Mapping[Key, Any], layout: Layout, reading: Reading = AT_ONCE
) -> Iterator[Block]:
    """Make the blocks of a group one after the other, and drop what no later block needs.

    Raises
    ------
    InputError, InputTypeError
        If an array of a block has another shape than announced, or values that are no numbers.
    ReadingError
        If an array of a block cannot be read.
    """
    values = dict(external)
    for key in group.announced.keys() & values.keys():
        group.announced[key].check(values[key])
    for step in group.steps:
        reading.begin(step.index)
        making = step.making(values, group.announced)
        try:
            arrays = reading.run(making.run, partial(_place, making, group, step, layout))
        except _errors.ReadingError as error:
            error.block = step.index
            raise
        layout.check(arrays, step.shapes, step.index, step.box)
        yield layout.block(arrays)
        del arrays
        making.drop()


def _place(making: Making, group: Group, step: Step, layout: Layout) -> Place:
    """What the node that failed is a part of."""
    node, values = making.failed()
    steps = [step] if isinstance(step, AlikeStep) else group.steps
    nodes = {n.key: n for s in steps for n, _ in s.nodes}
    operands = [
        (operand.key, layout.announced(number, step.index, step.box))
        for number, operand in enumerate(step.operands)
    ]
    return place_in_group(node, values, nodes, operands, group.announced)


def read_ahead(
    group: Group,
    external: Mapping[Key, Any],
    layout: Layout,
    depth: int,
    reading: Reading = AT_ONCE,
) -> Iterator[Block]:
    """Make the blocks of a group in their order, and up to `depth` of the next blocks meanwhile.

    Nothing is read ahead in a group whose blocks use arrays that earlier blocks made.
    """
    if depth < 1 or reading.tells or len(group.steps) < 2 or not _independent(group):
        yield from read_blocks(group, external, layout, reading)
        return

    def make(step: Step) -> Block:
        return next(read_blocks(replace(group, steps=(step,)), external, layout, reading))

    coming: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(depth, "nlsq-read") as pool:
        try:
            for step in group.steps:
                coming.append(pool.submit(copy_context().run, make, step))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def prefetch_depth(stream: Stream) -> int:
    """Number of blocks to read ahead; 0 unless a Zarr array lies in a store that is not local."""
    return depth_of(stream.groups, stream.block_bytes)


def depth_of(groups: Iterable[Group], block_bytes: int) -> int:
    """Number of blocks to read ahead in some groups, for the bytes of the largest block."""
    steps = islice((step for group in groups for step in group.steps), 1)
    nodes = (node for step in steps for node, _ in step.nodes)
    if not any(_is_remote(array.store) for array in _zarr_arrays(nodes)):
        return 0
    return min(REMOTE_DEPTH, AHEAD_BYTES // block_bytes)


def _independent(group: Group) -> bool:
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


def _is_remote(store: Any) -> bool:
    """Whether a Zarr store is neither on this machine's disks nor in its memory."""
    store = inner_store(store)
    if hasattr(store, "fs"):
        protocol = store.fs.protocol
        names = (protocol,) if isinstance(protocol, str) else protocol
        return not set(names) & set(LOCAL_PROTOCOLS)
    # Zarr's wrapper of obstore has the store in an attribute `store`.
    return type(getattr(store, "store", store)).__name__ not in LOCAL_STORES
