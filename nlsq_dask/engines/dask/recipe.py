"""The recipe of blocks that are all made in the same way, from the layers of a Dask graph. Pure.

Of elementwise operations on Zarr arrays, or of a function for each chunk, Dask keeps a graph in
layers: one task for all chunks of an array, whose arguments are the same for all chunks, or the
position of the chunk. A recipe is these tasks as a list of calls. The nodes of single chunks, some
30 µs each, are not made. What a call does, and in which order, is what Dask's task does.

Of an array in memory Dask keeps the chunks themselves, and of a range of numbers a task for each
chunk. Such chunks and tasks are given to the recipe, block by block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.array.core import getter
from dask.blockwise import Blockwise, blockwise_token, optimize_blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArrayBlockIdDep, ArrayChunkShapeDep, ArraySliceDep
from dask.typing import Key

from nlsq_dask.engines.dask.leaves import with_leaves
from nlsq_dask.engines.dask.node_order import visit
from nlsq_dask.engines.dask.reading import FUSED
from nlsq_dask.io.chunks import Chunks, lengths
from nlsq_dask.io.lazy_arrays import undecoded
from nlsq_dask.io.leaf import Leaf
from nlsq_dask.io.observations import Array

#: Number of a value that a block is made from or makes.
Slot: TypeAlias = int

#: For each slot that is given, what is given for each block of a grid, in C order.
Given: TypeAlias = tuple[Sequence[Any], ...]

# The first values are what differs from block to block: its rows, its index and its shape. The
# chunks that are given follow.
BOX, INDEX, SHAPE = range(N_PLACE := 3)
DIFFERENT = {ArraySliceDep: BOX, ArrayBlockIdDep: INDEX, ArrayChunkShapeDep: SHAPE}


@dataclass(frozen=True, slots=True)
class Layer:
    """How all chunks of an array are made.

    Attributes
    ----------
    name : str
        Of the array in the graph.
    task : Task
        With names in the place of what differs.
    same : dict
        By name, what is the same for all chunks: a node, or a reference to a leaf.
    different : dict
        By name, the slot of what differs from chunk to chunk.
    arrays : dict
        By name, the array whose chunk at the same place is used.
    """

    name: str
    task: Task
    same: Mapping[Key, GraphNode | TaskRef] = field(default_factory=dict)
    different: Mapping[Key, Slot] = field(default_factory=dict)
    arrays: Mapping[Key, str] = field(default_factory=dict)

    def node(self, different: Sequence[Any]) -> GraphNode:
        """The node of one chunk, as Dask would make it, from what differs from block to block."""
        index = different[INDEX]
        subs: dict[Key, Any] = dict(self.same)
        subs |= {name: DataNode(None, different[slot]) for name, slot in self.different.items()}
        subs |= {name: (array, *index) for name, array in self.arrays.items()}
        return self.task.substitute(subs, key=(self.name, *index))


@dataclass(frozen=True, slots=True)
class GivenLayer:
    """An array whose chunks, or the tasks that make them, are in the graph one by one.

    Attributes
    ----------
    name : str
        Of the array in the graph.
    slot : int
        Slot of the chunk or of the task.
    runs : bool
        Whether a task makes the chunk.
    """

    name: str
    slot: Slot
    runs: bool

    def node(self, different: Sequence[Any]) -> GraphNode:
        """The node of one chunk, as Dask has it."""
        given = different[self.slot]
        if self.runs:
            task: GraphNode = given
            return task
        return DataNode((self.name, *different[INDEX]), given)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function.

    Attributes
    ----------
    layer : int
        Number of the layer that the call is a part of.
    function : callable
        Has its first arguments already, as far as these are the same for all blocks.
    take : itemgetter or None
        Takes the other arguments from the values of a block; None if there are none.
    several : bool
        Whether these are two or more.
    drop : tuple of int
        Slots that no later call needs.
    """

    layer: int
    function: Callable[..., Any]
    take: Callable[[list[Any]], Any] | None
    several: bool
    drop: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the Dask arrays of all blocks are made.

    Attributes
    ----------
    layers : tuple of Layer or GivenLayer
        Each after those that it uses.
    leaves : dict
        What all blocks read from, by key.
    calls : tuple of Call
        The calls that make the arrays of a block. Each gives the value of the next slot.
    same : tuple
        Values of the slots after those that differ: arguments that are the same for all blocks.
    names : tuple of str
        Name of each array in the graph, in the order of the operands.
    made : tuple of int
        Slot of each array.
    n_different : int
        Number of the values that differ from block to block.
    asking : tuple of Leaf
        Leaves whose chunks are requested from an object store, in the order of the calls.
    """

    layers: tuple[Layer | GivenLayer, ...]
    leaves: Mapping[Key, DataNode]
    calls: tuple[Call, ...]
    same: tuple[Any, ...]
    names: tuple[str, ...]
    made: tuple[Slot, ...]
    n_different: int
    asking: tuple[Leaf, ...] = ()

    def graph(self, different: Sequence[Any]) -> dict[Key, GraphNode]:
        """The nodes that make one block, from what differs from block to block."""
        nodes = [layer.node(different) for layer in self.layers]
        return {**self.leaves, **{node.key: node for node in nodes}}


class _OtherwiseError(Exception):
    """An array whose chunks are made in another way."""


def recipe_of(arrays: Sequence[Array], chunks: Chunks) -> tuple[Recipe, Given] | None:
    """The recipe of Dask arrays whose chunk grid is that of the blocks, and what is given to it.

    Parameters
    ----------
    arrays : sequence of dask.array.Array
    chunks : tuple of tuple of int
        The grid.

    Returns
    -------
    tuple of Recipe and Given, or None
        None if the chunks are not all made in the same way, each from the same place of what it is
        made from; then Dask must make the graph of all chunks.
    """
    graph = HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays))
    # Dask compares the names in the keys alone.
    keys = [(a.name, *(0 for _ in a.chunks)) for a in arrays]
    finder = _Finder(optimize_blockwise(graph, keys=keys), chunks)
    try:
        names = [finder.find(a.name) for a in arrays]
        layers, leaves = finder.layers, finder.leaves
        calls = _Calls(leaves, finder.n_different)
        slots: dict[str, Slot] = {}
        for number, layer in enumerate(layers.values()):
            slots[layer.name] = calls.add_layer(number, layer, slots)
    except _OtherwiseError:
        return None
    made = [slots[name] for name in names]
    recipe = Recipe(
        layers=tuple(layers.values()),
        leaves=leaves,
        calls=calls.finished(made),
        same=calls.same,
        names=tuple(names),
        made=tuple(calls.final(slot) for slot in made),
        n_different=finder.n_different,
        asking=tuple(leaf for leaf in calls.leaves() if leaf.asks_a_store),
    )
    return recipe, tuple(finder.given)


class _Finder:
    """Finds the layers that arrays are made by."""

    def __init__(self, graph: HighLevelGraph, chunks: Chunks) -> None:
        self._graph = graph
        self._chunks = chunks
        self._n_blocks = tuple(map(len, chunks))
        self._leaves: dict[Key, GraphNode] = {}
        self.layers: dict[str, Layer | GivenLayer] = {}
        self.given: list[list[Any]] = []

    @property
    def n_different(self) -> int:
        """Number of the values that differ from block to block."""
        return N_PLACE + len(self.given)

    @property
    def leaves(self) -> dict[Key, DataNode]:
        """What all blocks read from, in the form in which this library reads it."""
        index = tuple(0 for _ in self._chunks)
        box = tuple(slice(0, sizes[0]) for sizes in self._chunks)
        first = (box, index, lengths(box), *(own[0] for own in self.given))
        nodes = [layer.node(first) for layer in self.layers.values()]
        graph = with_leaves(self._leaves | {node.key: node for node in nodes})
        found = {key: graph[key] for key in self._leaves}
        return {key: node for key, node in found.items() if isinstance(node, DataNode)}

    def find(self, name: str) -> str:
        """Find the layer of an array, after those that it uses; return the name."""
        if name in self.layers:
            return name
        layer = self._graph.layers.get(name)
        if isinstance(layer, MaterializedLayer):
            self.layers[name] = self._given(name, layer)
            return name
        if (
            not isinstance(layer, Blockwise)
            or layer.output_blocks is not None
            or tuple(layer.dims[i] for i in layer.output_indices) != self._n_blocks
        ):
            raise _OtherwiseError
        found = Layer(name, layer.task, {}, {}, {})
        for number, (argument, index) in enumerate(layer.indices):
            token = blockwise_token(number)
            if token not in layer.task.dependencies:
                continue
            if index is None:
                found.same[token] = self._same(argument)  # type: ignore[index]
            elif index != layer.output_indices:
                raise _OtherwiseError
            elif argument in layer.io_deps:
                found.different[token] = self._different(layer.io_deps[argument])  # type: ignore[index]
            elif tuple(layer.numblocks[str(argument)]) == self._n_blocks:
                found.arrays[token] = self.find(str(argument))  # type: ignore[index]
            else:
                raise _OtherwiseError
        self.layers[name] = found
        return name

    def _given(self, name: str, layer: MaterializedLayer) -> GivenLayer:
        """A layer of chunks in memory, or of tasks that depend on nothing."""
        indices = itertools.product(*map(range, self._n_blocks))
        given = [layer.mapping.get((name, *index)) for index in indices]
        runs = isinstance(given[0], Task)
        for chunk in given:
            known = (
                isinstance(chunk, Task) and not chunk.dependencies
                if runs
                else isinstance(chunk, np.ndarray)
            )
            if not known:
                raise _OtherwiseError
        self.given.append(given)
        return GivenLayer(name, self.n_different - 1, runs)

    def _same(self, argument: Any) -> GraphNode | TaskRef:
        """An argument that is the same for all blocks."""
        if not isinstance(argument, TaskRef):
            if undecoded(argument) is None:
                return argument if isinstance(argument, GraphNode) else DataNode(None, argument)
            # Dask was told to make the array a part of each task.
            key = Leaf(argument).name
            self._leaves[key] = DataNode(key, argument)
            return TaskRef(key)
        layer = self._graph.layers.get(str(argument.key))
        if not isinstance(layer, MaterializedLayer) or argument.key not in layer:
            raise _OtherwiseError
        node = convert_legacy_graph({argument.key: layer[argument.key]})[argument.key]
        # An array in memory is not a part of each group.
        if not isinstance(node, DataNode) or isinstance(node.value, np.ndarray):
            raise _OtherwiseError
        self._leaves[argument.key] = node
        return argument

    def _different(self, argument: Any) -> Slot:
        """An argument that tells of the place of the block."""
        slot = DIFFERENT.get(type(argument))
        if slot is None or argument.chunks != self._chunks:
            raise _OtherwiseError
        return slot


@dataclass(frozen=True, slots=True)
class _Same:
    """An argument that is the same for all blocks."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Written:
    """A call, with the values and the slots of its arguments."""

    layer: int
    function: Callable[..., Any]
    args: tuple[_Same | Slot, ...]
    kwargs: Mapping[str, Any]

    @property
    def n_first(self) -> int:
        """Number of arguments before the first that differs from block to block."""
        return next(
            (n for n, a in enumerate(self.args) if not isinstance(a, _Same)), len(self.args)
        )


def _bound(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """A function with its first arguments."""
    if function is getter and not kwargs and len(args) == 1 and isinstance(args[0], Leaf):
        return args[0].__getitem__  # for slices it returns what Dask's function returns
    return partial(function, *args, **kwargs)


def _made(task: Task) -> Any:
    """The chunk that a task makes which depends on nothing."""
    return task({})


class _Calls:
    """Writes the tasks of layers as calls. Slots are counted without those of equal arguments."""

    def __init__(self, leaves: Mapping[Key, DataNode], n_different: int) -> None:
        self._leaves = leaves
        self._n_different = n_different
        self._calls: list[_Written] = []
        self._layer = 0

    def add_layer(self, number: int, layer: Layer | GivenLayer, slots: Mapping[str, Slot]) -> Slot:
        """Add the calls of a layer; return the slot of its chunk."""
        self._layer = number
        if isinstance(layer, GivenLayer):
            return self._called(_made, (layer.slot,), {}) if layer.runs else layer.slot
        known: dict[Key, Slot | _Same] = dict(layer.different)
        known |= {token: slots[name] for token, name in layer.arrays.items()}
        leaves = {key: _Same(leaf.value) for key, leaf in self._leaves.items()}
        known |= {token: self._value(node, leaves) for token, node in layer.same.items()}
        slot = self._value(layer.task, known)
        if isinstance(slot, _Same):
            raise _OtherwiseError
        return slot

    @property
    def same(self) -> tuple[Any, ...]:
        """Arguments after the first that differs which are the same for all blocks."""
        return tuple(
            a.value for c in self._calls for a in c.args[c.n_first :] if isinstance(a, _Same)
        )

    def leaves(self) -> list[Leaf]:
        """The leaves that the calls read from, each once."""
        args = (a.value for call in self._calls for a in call.args if isinstance(a, _Same))
        return list({id(arg): arg for arg in args if isinstance(arg, Leaf)}.values())

    def final(self, slot: Slot) -> Slot:
        """A slot among all, which have equal arguments after what differs."""
        return slot if slot < self._n_different else slot + len(self.same)

    def finished(self, made: Sequence[Slot]) -> tuple[Call, ...]:
        """All calls, each with the slots that it is the last to use, but for those of `made`."""
        last = {a: n for n, c in enumerate(self._calls) for a in c.args if not isinstance(a, _Same)}
        drops: dict[int, list[Slot]] = {}
        for slot, number in last.items():
            if slot >= self._n_different and slot not in made:
                drops.setdefault(number, []).append(self.final(slot))
        equal = itertools.count(self._n_different)
        finished = []
        for number, call in enumerate(self._calls):
            first = [a.value for a in call.args[: call.n_first] if isinstance(a, _Same)]
            function = _bound(call.function, first, call.kwargs)
            rest = [
                next(equal) if isinstance(a, _Same) else self.final(a)
                for a in call.args[call.n_first :]
            ]
            take = itemgetter(*rest) if rest else None
            drop = tuple(drops.get(number, ()))
            finished.append(Call(call.layer, function, take, len(rest) > 1, drop))
        return tuple(finished)

    def _value(self, node: Any, known: Mapping[Key, Slot | _Same]) -> Slot | _Same:
        """Where the value of a node, or of an argument, is to be found."""
        if isinstance(node, (TaskRef, Alias)):
            key = node.key if isinstance(node, TaskRef) else node.target
            if key not in known:
                raise _OtherwiseError
            return known[key]
        if isinstance(node, DataNode):
            return _Same(node.value)
        if not isinstance(node, GraphNode):
            return _Same(node)
        if not isinstance(node, Task):
            raise _OtherwiseError
        if getattr(node.func, "__name__", "") == FUSED:
            return self._fused(node, known)
        if any(isinstance(value, GraphNode | TaskRef) for value in node.kwargs.values()):
            raise _OtherwiseError
        args = tuple(self._value(argument, known) for argument in node.args)
        return self._called(node.func, args, node.kwargs)

    def _called(
        self,
        function: Callable[..., Any],
        args: tuple[_Same | Slot, ...],
        kwargs: Mapping[str, Any],
    ) -> Slot:
        """Add a call; return the slot of what it makes."""
        self._calls.append(_Written(self._layer, function, args, kwargs))
        return self._n_different - 1 + len(self._calls)

    def _fused(self, node: Task, known: Mapping[Key, Slot | _Same]) -> Slot | _Same:
        """Where the value of nodes that Dask has fused to one is to be found."""
        inner, key, names, *given = node.args
        own = {n: self._value(g, known) for n, g in zip(names, given, strict=True)}
        order: dict[Key, None] = dict.fromkeys(own)
        visit(inner, key, order)
        for needed in list(order)[len(own) :]:
            own[needed] = self._value(inner[needed], own)
        return own[key]
