"""Blocks that are all made by one recipe: made when they are needed, and not when a fit is planned.

A group of such blocks is the recipe and a range of the chunk grid, however many blocks it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from dask._task_spec import GraphNode
from dask.typing import Key

from nlsq_dask.engines.dask.grouping import Grouping
from nlsq_dask.engines.dask.recipe import N_DIFFERENT, Recipe
from nlsq_dask.engines.dask.steps import Group, Making, NodeRun, Operand, Step, make_group
from nlsq_dask.io.announced import Announced
from nlsq_dask.io.chunks import Box, Chunks, block_sizes, lengths
from nlsq_dask.io.objects import requested
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Shape


@dataclass(slots=True)
class AlikeStep:
    """A block; see :class:`~nlsq_dask.engines.dask.steps.Step`.

    Attributes
    ----------
    recipe : Recipe
    index : tuple of int
        Index of the block in the chunk grid.
    box : tuple of slice
        Rows of the block.
    shape : tuple of int
        Their lengths.
    in_memory : tuple of (ndarray or None)
        For each array of the block, the part of a NumPy array, or None for a Dask array.
    """

    recipe: Recipe
    index: tuple[int, ...]
    box: Box
    shape: Shape
    in_memory: tuple[Any, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Announced shapes of the arrays."""
        if len(self.recipe.made) == len(self.in_memory):
            return (self.shape,) * len(self.in_memory)
        return tuple([self.shape if part is None else part.shape for part in self.in_memory])

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Arrays of the block."""
        names = iter(self.recipe.names)
        return tuple(
            Operand((next(names), *self.index)) if part is None else Operand(None, part)
            for part in self.in_memory
        )

    @property
    def nodes(self) -> tuple[NodeRun, ...]:
        """The nodes that Dask would run."""
        return self._by_nodes.nodes

    @property
    def drop(self) -> tuple[Key, ...]:
        """Keys of the nodes to drop after the block is used."""
        return self._by_nodes.drop

    @property
    def _by_nodes(self) -> Step:
        graph = self.recipe.graph(self.index, self.box)
        block = (self.index, self.box, self.shapes, self.operands)
        return make_group(graph, [block], {}, {}).steps[0]

    def making(self, values: dict[Key, Any], announced: Mapping[Key, Announced]) -> Making:
        """Begin to make the arrays; see :class:`~nlsq_dask.engines.dask.steps.Step`."""
        del values, announced
        return _RecipeMaking(self)


class _RecipeMaking:
    """Follows a recipe; see :class:`~nlsq_dask.engines.dask.steps.Making`."""

    __slots__ = ("_step", "_values")

    def __init__(self, step: AlikeStep) -> None:
        self._step = step
        self._values: list[Any] = [step.box, step.index, step.shape]

    def run(self) -> list[Any]:
        """Make the calls that are left, and drop what no later call needs."""
        asking, box = self._step.recipe.asking, self._step.box
        if len(asking) < 2:
            return self._run()
        # All arrays of the block are on their way while this thread waits for the first.
        wanted = (leaf.requests(box) for leaf in asking[1:])
        with requested([w for w in wanted if w is not None]):
            return self._run()

    def _run(self) -> list[Any]:
        recipe, values = self._step.recipe, self._values
        n_made = len(values) - N_DIFFERENT
        for call in recipe.calls[n_made:] if n_made else recipe.calls:
            if call.places:
                args = list(call.args)
                for position, slot in call.places:
                    args[position] = values[slot]
                values.append(call.function(*args, **call.kwargs))
            else:
                values.append(call.function(*call.args, **call.kwargs))
            for slot in call.drop:
                values[slot] = None
        made = [values[slot] for slot in recipe.made]
        if len(made) == len(self._step.in_memory):
            return made
        left = iter(made)
        return [next(left) if part is None else part for part in self._step.in_memory]

    def failed(self) -> tuple[GraphNode, Mapping[Key, Any]]:
        """The node that the call that failed is a part of."""
        step = self._step
        call = step.recipe.calls[len(self._values) - N_DIFFERENT]
        node = step.recipe.layers[call.layer].node(step.index, step.box)
        return node, {key: leaf.value for key, leaf in step.recipe.leaves.items()}

    def drop(self) -> None:
        """Nothing is left that a later block needs."""
        self._values.clear()


@dataclass(frozen=True, slots=True)
class AlikeSteps(Sequence[Step]):
    """Neighbouring blocks of a chunk grid.

    Attributes
    ----------
    recipe : Recipe
    edges : tuple of tuple of int
        Where the blocks of a part of the grid begin and end, along each dimension.
    corner : tuple of int
        Index of the first block of the part.
    first : int
        Number of the first block in the part, in C order.
    n_blocks : int
        Number of blocks.
    in_memory : tuple of (tuple of ndarray, or None)
        For each array, its part in each block, or None for a Dask array.
    """

    recipe: Recipe
    edges: Chunks
    corner: tuple[int, ...]
    first: int
    n_blocks: int
    in_memory: tuple[tuple[Any, ...] | None, ...]

    def __len__(self) -> int:
        return self.n_blocks

    def __iter__(self) -> Iterator[AlikeStep]:
        pairs = [list(itertools.pairwise(cuts)) for cuts in self.edges]
        ranges = (range(c, c + len(p)) for c, p in zip(self.corner, pairs, strict=True))
        found = zip(
            itertools.product(*ranges),
            itertools.product(*([slice(a, b) for a, b in p] for p in pairs)),
            itertools.product(*([b - a for a, b in p] for p in pairs)),
            strict=True,
        )
        chosen = itertools.islice(found, self.first, self.first + self.n_blocks)
        if len(self.recipe.made) == len(self.in_memory):
            none = (None,) * len(self.in_memory)
            yield from (AlikeStep(self.recipe, *different, none) for different in chosen)
            return
        parts = [itertools.repeat(None) if part is None else part for part in self.in_memory]
        for (index, box, shape), *in_memory in zip(chosen, *parts, strict=False):
            yield AlikeStep(self.recipe, index, box, shape, tuple(in_memory))

    @overload
    def __getitem__(self, position: int) -> AlikeStep: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[AlikeStep, ...]: ...
    def __getitem__(self, position: int | slice) -> AlikeStep | tuple[AlikeStep, ...]:
        if isinstance(position, slice):
            return tuple(self[i] for i in range(self.n_blocks)[position])
        position = range(self.n_blocks)[position]
        index = _index(self.first + position, [len(cuts) - 1 for cuts in self.edges])
        box = tuple(slice(e[i], e[i + 1]) for e, i in zip(self.edges, index, strict=True))
        in_memory = tuple(None if part is None else part[position] for part in self.in_memory)
        whole = tuple(c + i for c, i in zip(self.corner, index, strict=True))
        return AlikeStep(self.recipe, whole, box, lengths(box), in_memory)


def alike_groups(
    recipe: Recipe, arrays: Sequence[Array], chunks: Chunks, grouping: Grouping
) -> tuple[Group, ...]:
    """The groups of blocks that one recipe makes.

    Parameters
    ----------
    recipe : Recipe
        Of the Dask arrays.
    arrays : sequence of (dask.array.Array or ndarray)
        All arrays of a block.
    chunks : tuple of tuple of int
        The grid. Each block has rows.
    grouping : Grouping
    """
    edges = tuple(tuple(itertools.accumulate(sizes, initial=0)) for sizes in chunks)
    in_memory = [None if is_dask(a) else _parts(a, edges) for a in arrays]
    sizes = block_sizes(chunks)
    groups = []
    for group in grouping.groups:
        numbers = grouping.blocks[group.start : group.stop]
        first, last = numbers[0], numbers[-1]
        parts = tuple(None if p is None else tuple(p[first : last + 1]) for p in in_memory)
        steps: Sequence[Step] = _steps(recipe, edges, first, last, parts)
        if len(numbers) < len(steps):
            steps = tuple(steps[number - first] for number in numbers)
        groups.append(Group(steps, (), int(sizes[numbers].sum())))
    return tuple(groups)


def _steps(
    recipe: Recipe,
    edges: Chunks,
    first: int,
    last: int,
    parts: tuple[tuple[Any, ...] | None, ...],
) -> AlikeSteps:
    """The blocks of a range of numbers, with the part of the grid that has them."""
    n_blocks = [len(cuts) - 1 for cuts in edges]
    low, high = list(_index(first, n_blocks)), list(_index(last, n_blocks))
    for d in range(len(edges)):
        if low[:d] != high[:d]:  # the range goes round this dimension
            low[d], high[d] = 0, n_blocks[d] - 1
    part = tuple(e[a : b + 2] for e, a, b in zip(edges, low, high, strict=True))
    inside = [i - a for i, a in zip(_index(first, n_blocks), low, strict=True)]
    number = 0
    for i, cuts in zip(inside, part, strict=True):
        number = number * (len(cuts) - 1) + i
    return AlikeSteps(recipe, part, tuple(low), number, last - first + 1, parts)


def _index(number: int, n_blocks: Sequence[int]) -> tuple[int, ...]:
    """Index of a block by its number in C order."""
    index = []
    for n in reversed(n_blocks):
        number, i = divmod(number, n)
        index.append(i)
    return tuple(reversed(index))


def _parts(array: Array, edges: Chunks) -> list[Any]:
    """The part of a NumPy array in each block, in C order."""
    along = [
        [slice(0, 1)] * (len(cuts) - 1) if n == 1 else [slice(*c) for c in itertools.pairwise(cuts)]
        for cuts, n in zip(edges, array.shape, strict=True)
    ]
    return [array[box] for box in itertools.product(*along)]
