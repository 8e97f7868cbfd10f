"""The answer of the blocks that could be read, beside the blocks that are left out.

Blocks are left out by a fit with ``on_error="omit"``. A block is known by its index in the chunk
grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias

from nlsq_dask.core.questions import AnswerT

#: Index of a block in the chunk grid.
Index: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LostBlock:
    """A block that could not be read.

    Attributes
    ----------
    index : tuple of int
        Of the block in the chunk grid.
    what : str
        The block and the cause, in words.
    """

    index: tuple[int, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Partial(Generic[AnswerT]):
    """The answer of the blocks that could be read, and the other blocks.

    Attributes
    ----------
    answer : object
    lost : tuple of LostBlock
        Blocks that were not known as left out before.
    """

    answer: AnswerT
    lost: tuple[LostBlock, ...] = ()

    def __add__(self, other: Partial[AnswerT]) -> Partial[AnswerT]:
        return Partial(self.answer + other.answer, self.lost + other.lost)
