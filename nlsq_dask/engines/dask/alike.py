"""Blocks that are all made by one recipe: made when they are needed, and not when a fit is planned.

A group of such blocks is the recipe and a range of the chunk grid, however many blocks it has.
"""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias, overload

from dask._task_spec import GraphNode
from dask.typing import Key
from numpy.typing import NDArray

from nlsq_dask.engines.dask.grouping import Grouping
from nlsq_dask.engines.dask.recipe import BOX, N_PLACE, SHAPE, Given, Recipe
from nlsq_dask.engines.dask.steps import Group, Making, NodeRun, Operand, Step, make_group
from nlsq_dask.io.announced import Announced
from nlsq_dask.io.chunks import Box, Chunks, block_sizes, lengths
from nlsq_dask.io.objects import requested
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Shape, Stage

#: The parts in memory of a block; and its box, index and shape, and what is given.
_Begun: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]


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
    given : tuple
        What is given to the recipe.
    """

    recipe: Recipe
    index: tuple[int, ...]
    box: Box
    shape: Shape
    in_memory: tuple[Any, ...]
    given: tuple[Any, ...] = ()

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
        graph = self.recipe.graph(self._different)
        block = (self.index, self.box, self.shapes, self.operands)
        return make_group(graph, [block], {}, {}).steps[0]

    @property
    def _different(self) -> tuple[Any, ...]:
        """What differs from block to block, in the order of the slots."""
        return self.box, self.index, self.shape, *self.given

    def making(self, values: dict[Key, Any], announced: Mapping[Key, Announced]) -> Making:
        """Begin to make the arrays; see :class:`~nlsq_dask.engines.dask.steps.Step`."""
        del values, announced
        return _making(self.recipe, self.in_memory, self._different)


class _RecipeMaking:
    """Follows a recipe; see :class:`~nlsq_dask.engines.dask.steps.Making`.

    Parameters
    ----------
    recipe : Recipe
    in_memory : tuple of (ndarray or None)
        As that of a step.
    different : tuple
        Box, index and shape of the block, and what is given, as values in the order of the slots.
    """

    __slots__ = ("_in_memory", "_n_known", "_recipe", "_values")

    def __init__(
        self, recipe: Recipe, in_memory: tuple[Any, ...], different: tuple[Any, ...]
    ) -> None:
        self._recipe = recipe
        self._n_known = recipe.n_different + len(recipe.same)
        self._in_memory = in_memory
        self._values: list[Any] = [*different, *recipe.same]

    @property
    def step(self) -> AlikeStep:
        """The block."""
        box, index, shape, *given = self._values[: self._recipe.n_different]
        return AlikeStep(self._recipe, index, box, shape, self._in_memory, tuple(given))

    @property
    def shape(self) -> Shape:
        """Announced shape of the first array."""
        shape: Shape = self._values[SHAPE]
        return shape

    def run(self) -> list[Any]:
        """Make the calls that are left, and drop what no later call needs."""
        recipe, values = self._recipe, self._values
        n_made = len(values) - self._n_known
        for call in recipe.calls[n_made:] if n_made else recipe.calls:
            take = call.take
            if take is None:
                values.append(call.function())
            elif call.several:
                values.append(call.function(*take(values)))
            else:
                values.append(call.function(take(values)))
            for slot in call.drop:
                values[slot] = None
        return self._arrays()

    def _arrays(self) -> list[Any]:
        """The arrays of the block, after the last call."""
        made = [self._values[slot] for slot in self._recipe.made]
        if len(made) == len(self._in_memory):
            return made
        left = iter(made)
        return [next(left) if part is None else part for part in self._in_memory]

    def failed(self) -> tuple[GraphNode, Mapping[Key, Any]]:
        """The node that the call that failed is a part of."""
        recipe = self._recipe
        call = recipe.calls[len(self._values) - self._n_known]
        node = recipe.layers[call.layer].node(self._values[: recipe.n_different])
        return node, {key: leaf.value for key, leaf in recipe.leaves.items()}

    def drop(self) -> None:
        """Drop what no later block needs: all."""
        del self._values[N_PLACE:]


class AlikeMakings(_RecipeMaking):
    """Follows a recipe block after block; see :class:`~nlsq_dask.engines.dask.steps.Makings`.

    Parameters
    ----------
    recipe : Recipe
        Asks no object store.
    places : iterator
        The parts in memory of each block; and its box, index and shape, and what is given.
    """

    __slots__ = ("_is_over", "_places")

    def __init__(self, recipe: Recipe, places: Iterator[_Begun]) -> None:
        super().__init__(recipe, (), ())
        self._places = places
        self.go_on()

    @property
    def current(self) -> Making | None:
        """The block that is made now; None after the last."""
        return None if self._is_over else self

    def go_on(self) -> None:
        """Begin the next block."""
        found = next(self._places, None)
        self._is_over = found is None
        if found is not None:
            self._in_memory, place = found
            self._values = [*place, *self._recipe.same]

    def fill(self, stage: Stage, ends: float) -> list[Any] | None:
        """Make blocks, and copy their rows into a stage; see `Makings`.

        This does what `run`, `drop` and `go_on` do for each block, without a call of each.
        """
        append, same, now = stage.append, self._recipe.same, time.monotonic
        calls = [(c.function, c.take, c.several, c.drop) for c in self._recipe.calls]
        whole = itemgetter(*self._recipe.made) if self._makes_all else None
        arrays: Sequence[Any] = self.run()
        while append(arrays, self._values[SHAPE]):
            del arrays  # the memory is used again for the next block
            found = next(self._places, None)
            if found is None:
                self._is_over = True
                return None
            self._in_memory, place = found
            self._values = values = [*place, *same]  # the next attempt goes on here
            if now() > ends:
                return None
            for function, take, several, drop in calls:
                if take is None:
                    values.append(function())
                elif several:
                    values.append(function(*take(values)))
                else:
                    values.append(function(take(values)))
                for slot in drop:
                    values[slot] = None
            arrays = self._arrays() if whole is None else whole(values)
        return list(arrays)

    @property
    def _makes_all(self) -> bool:
        """Whether the recipe makes two arrays or more, and the block has no others."""
        return 1 < len(self._recipe.made) == len(self._in_memory)


class _AskingMaking(_RecipeMaking):
    """Has all arrays of a block on their way while the thread waits for the first."""

    __slots__ = ()

    def run(self) -> list[Any]:
        """Make the calls that are left, and drop what no later call needs."""
        wanted = (leaf.requests(self._values[BOX]) for leaf in self._recipe.asking[1:])
        with requested([w for w in wanted if w is not None]):
            return super().run()


def _making(
    recipe: Recipe, in_memory: tuple[Any, ...], different: tuple[Any, ...]
) -> _RecipeMaking:
    """Begin to make a block."""
    kind = _RecipeMaking if len(recipe.asking) < 2 else _AskingMaking
    return kind(recipe, in_memory, different)


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
    given : tuple of sequence
        What is given to the recipe for each block.
    """

    recipe: Recipe
    edges: Chunks
    corner: tuple[int, ...]
    first: int
    n_blocks: int
    in_memory: tuple[tuple[Any, ...] | None, ...]
    given: Given = ()

    def __len__(self) -> int:
        return self.n_blocks

    def __iter__(self) -> Iterator[AlikeStep]:
        for in_memory, (box, index, shape, *given) in self._places():
            yield AlikeStep(self.recipe, index, box, shape, in_memory, tuple(given))

    def makings(self) -> AlikeMakings | None:
        """What makes the blocks one after the other; None if each asks an object store first."""
        return None if len(self.recipe.asking) > 1 else AlikeMakings(self.recipe, self._places())

    def _places(self) -> Iterator[_Begun]:
        """The parts in memory of each block; and its box, index and shape, and what is given."""
        pairs = [list(itertools.pairwise(cuts)) for cuts in self.edges]
        ranges = (range(c, c + len(p)) for c, p in zip(self.corner, pairs, strict=True))
        found = zip(
            itertools.product(*([slice(a, b) for a, b in p] for p in pairs)),
            itertools.product(*ranges),
            itertools.product(*([b - a for a, b in p] for p in pairs)),
            strict=True,
        )
        chosen: Iterator[Any] = itertools.islice(found, self.first, self.first + self.n_blocks)
        if self.given:
            chosen = map(operator.add, chosen, zip(*self.given, strict=True))
        none = itertools.repeat(None)
        parts = [none if part is None else part for part in self.in_memory]
        return zip(zip(*parts, strict=False), chosen, strict=False)

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
        given = tuple(own[position] for own in self.given)
        return AlikeStep(self.recipe, whole, box, lengths(box), in_memory, given)


def alike_groups(
    recipe: Recipe, given: Given, arrays: Sequence[Array], chunks: Chunks, grouping: Grouping
) -> tuple[Group, ...]:
    """The groups of blocks that one recipe makes.

    Parameters
    ----------
    recipe : Recipe
        Of the Dask arrays.
    given : tuple of sequence
        What is given to the recipe for each block of the grid.
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
        own = tuple(tuple(of[first : last + 1]) for of in given)
        steps: Sequence[Step] = _steps(recipe, edges, range(first, last + 1), parts, own)
        if len(numbers) < len(steps):
            steps = tuple(steps[number - first] for number in numbers)
        groups.append(Group(steps, (), int(sizes[numbers].sum())))
    return tuple(groups)


def alike_group(
    recipe: Recipe,
    in_memory: Sequence[NDArray[Any] | None],
    edges: Chunks,
    corner: tuple[int, ...],
    given: Given = (),
) -> Group:
    """A group of all blocks of a part of a grid, which one recipe makes.

    Parameters
    ----------
    recipe : Recipe
        Of the Dask arrays.
    in_memory : sequence of (ndarray or None)
        For each array of a block, the whole NumPy array, or None for a Dask array.
    edges : tuple of tuple of int
        Where the blocks of the part begin and end, along each dimension.
    corner : tuple of int
        Index of the first block of the part in the grid.
    given : tuple of sequence
        What is given to the recipe for each block of the part.
    """
    n_blocks = math.prod(len(cuts) - 1 for cuts in edges)
    parts = tuple(None if a is None else tuple(_parts(a, edges)) for a in in_memory)
    steps = AlikeSteps(
        recipe, edges, corner, first=0, n_blocks=n_blocks, in_memory=parts, given=given
    )
    return Group(steps, (), math.prod(cuts[-1] - cuts[0] for cuts in edges))


def _steps(
    recipe: Recipe,
    edges: Chunks,
    numbers: range,
    parts: tuple[tuple[Any, ...] | None, ...],
    given: Given,
) -> AlikeSteps:
    """The blocks of a range of numbers, with the part of the grid that has them."""
    n_blocks = [len(cuts) - 1 for cuts in edges]
    first = numbers[0]
    low, high = list(_index(first, n_blocks)), list(_index(numbers[-1], n_blocks))
    for d in range(len(edges)):
        if low[:d] != high[:d]:  # the range goes round this dimension
            low[d], high[d] = 0, n_blocks[d] - 1
    part = tuple(e[a : b + 2] for e, a, b in zip(edges, low, high, strict=True))
    inside = [i - a for i, a in zip(_index(first, n_blocks), low, strict=True)]
    number = 0
    for i, cuts in zip(inside, part, strict=True):
        number = number * (len(cuts) - 1) + i
    return AlikeSteps(recipe, part, tuple(low), number, len(numbers), parts, given)


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
