"""The blocks of a task, and how each is made. Pure.

A group has the part of the optimised Dask graph that makes its blocks, as a list of steps, one for
each block: make the arrays of the block, use them, drop what no later block needs. An array that
two blocks share is made once in a group. The memory of a group is that of one block, however many
blocks the group has.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dask._task_spec import GraphNode
from dask.typing import Key

from nlsq_dask.engines.dask.node_order import inputs_of, visit
from nlsq_dask.io.announced import Announced
from nlsq_dask.io.chunks import Box, box_size
from nlsq_dask.io.stage import Shape, Stage

#: A node of the graph, and the keys to drop after it has run.
NodeRun = tuple[GraphNode, tuple[Key, ...]]


@dataclass(frozen=True, slots=True)
class Operand:
    """One array of a block: a key of the graph, or a slice of a NumPy array."""

    key: Key | None
    value: Any = None


class Making(Protocol):
    """The arrays of a block while they are made."""

    @property
    def step(self) -> Step:
        """The block."""
        ...

    @property
    def shape(self) -> Shape:
        """Announced shape of the first array."""
        ...

    def run(self) -> list[Any]:
        """Make the arrays. A second call goes on at what failed in the first."""
        ...

    def failed(self) -> tuple[GraphNode, Mapping[Key, Any]]:
        """The node that failed, and the values of the keys that are made already."""
        ...

    def drop(self) -> None:
        """Drop what no later block needs."""
        ...


class Makings(Protocol):
    """The blocks of a group, made one after the other."""

    @property
    def current(self) -> Making | None:
        """The block that is made now; None after the last."""
        ...

    def go_on(self) -> None:
        """Begin the next block."""
        ...

    def fill(self, stage: Stage, ends: float) -> list[Any] | None:
        """Make blocks, and copy their rows into a stage.

        If a call fails, the next call goes on with the block that failed.

        Parameters
        ----------
        stage : Stage
        ends : float
            Time of the monotonic clock behind which no other block is made.

        Returns
        -------
        list or None
            Arrays of the current block, if the stage did not take them; None if it took all.
        """
        ...


class Step(Protocol):
    """One block."""

    @property
    def index(self) -> tuple[int, ...]:
        """Index of the block in the chunk grid."""
        ...

    @property
    def box(self) -> Box:
        """Rows of the block."""
        ...

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Announced shapes of its arrays."""
        ...

    @property
    def nodes(self) -> tuple[NodeRun, ...]:
        """Nodes in the order in which they run, each with the keys to drop after it."""
        ...

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Arrays of the block."""
        ...

    @property
    def drop(self) -> tuple[Key, ...]:
        """Keys to drop after the block is used."""
        ...

    def making(self, values: dict[Key, Any], announced: Mapping[Key, Announced]) -> Making:
        """Begin to make the arrays.

        Parameters
        ----------
        values : dict
            Values of keys that earlier blocks of the group made, and that were handed to it.
        announced : mapping
            Shape and kind to expect of chunks that blocks are cut from, by key.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A block that nodes of the graph make; see :class:`Step`."""

    index: tuple[int, ...]
    box: Box
    shapes: tuple[Shape, ...]
    nodes: tuple[NodeRun, ...]
    operands: tuple[Operand, ...]
    drop: tuple[Key, ...]

    def making(self, values: dict[Key, Any], announced: Mapping[Key, Announced]) -> Making:
        """Begin to make the arrays; see :class:`Step`."""
        return _NodesMaking(self, values, announced)


class _NodesMaking:
    """Runs the nodes of a block; see :class:`Making`."""

    def __init__(
        self, step: NodeStep, values: dict[Key, Any], announced: Mapping[Key, Announced]
    ) -> None:
        self.step = step
        self._left = deque(step.nodes)
        self._values = values
        self._announced = announced

    @property
    def shape(self) -> Shape:
        """Announced shape of the first array."""
        return self.step.shapes[0]

    def run(self) -> list[Any]:
        """Run the nodes that are left, and drop what no later node needs."""
        left, values = self._left, self._values
        while left:
            node, drop = left[0]
            values[node.key] = node(values)
            if node.key in self._announced:
                self._announced[node.key].check(values[node.key])
            for key in drop:
                del values[key]
            left.popleft()
        return [o.value if o.key is None else values[o.key] for o in self.step.operands]

    def failed(self) -> tuple[GraphNode, Mapping[Key, Any]]:
        """The first node that is left."""
        return self._left[0][0], self._values

    def drop(self) -> None:
        """Drop what no later block needs."""
        for key in self.step.drop:
            del self._values[key]


class MakingsOfSteps:
    """Makes the blocks of any steps; see :class:`Makings`.

    Parameters
    ----------
    makings : iterator of Making
        Begins to make a block where it is asked for it.
    """

    def __init__(self, makings: Iterator[Making]) -> None:
        self._left = makings
        self.current: Making | None = None
        self.go_on()

    def go_on(self) -> None:
        """Begin the next block."""
        self.current = next(self._left, None)

    def fill(self, stage: Stage, ends: float) -> list[Any] | None:
        """Make blocks, and copy their rows into a stage."""
        while self.current is not None:
            arrays = self.current.run()
            if not stage.append(arrays, self.current.shape):
                return arrays
            self.current.drop()
            self.go_on()
            if time.monotonic() > ends:
                break
        return None


@dataclass(frozen=True, slots=True)
class Group:
    """What one task does.

    Attributes
    ----------
    steps : sequence of Step
        Its blocks, in order.
    external : tuple of key
        Keys whose values are handed to the task.
    n_rows : int
        Rows of its blocks.
    announced : dict
        Shape and kind to expect of each chunk that blocks are cut from, by key.
    n_left_out : int
        Rows of blocks that were taken out of the group.
    """

    steps: Sequence[Step]
    external: tuple[Key, ...]
    n_rows: int
    announced: Mapping[Key, Announced] = field(default_factory=dict)
    n_left_out: int = 0


def make_group(
    graph: Mapping[Key, GraphNode],
    blocks: list[tuple[tuple[int, ...], Box, tuple[Shape, ...], tuple[Operand, ...]]],
    shared: Mapping[Key, None],
    announced: Mapping[Key, Announced],
) -> Group:
    """Order the nodes of a group by block, and find the last use of each array."""
    made: dict[Key, None] = dict.fromkeys(shared)
    runs: list[list[Key]] = []
    last_use: dict[Key, tuple[int, int]] = {}
    external: dict[Key, None] = {}
    for b, (*_, operands) in enumerate(blocks):
        first = len(made)
        keys = [o.key for o in operands if o.key is not None]
        for key in keys:
            visit(graph, key, made)
        run = list(itertools.islice(made, first, None))
        for position, key in enumerate(run):
            for needed in inputs_of(graph[key]):
                last_use[needed] = (b, position)
        for key in keys:
            last_use[key] = (b, len(run))
        needs = itertools.chain(keys, *(inputs_of(graph[key]) for key in run))
        external.update((k, None) for k in needs if k in shared or k not in graph)
        runs.append(run)
    drops: dict[tuple[int, int], list[Key]] = defaultdict(list)
    for key, place in last_use.items():
        drops[place].append(key)
    steps = tuple(
        NodeStep(
            index,
            box,
            shapes,
            tuple((graph[key], tuple(drops[b, i])) for i, key in enumerate(run)),
            operands,
            tuple(drops[b, len(run)]),
        )
        for b, (run, (index, box, shapes, operands)) in enumerate(zip(runs, blocks, strict=True))
    )
    n_rows = sum(box_size(box) for _, box, *_ in blocks)
    used = itertools.chain(external, *runs)
    pieces = {key: announced[key] for key in used if key in announced}
    return Group(steps, tuple(external), n_rows, pieces)
