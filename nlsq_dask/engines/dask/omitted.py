"""Blocks that are left out: those that cannot be read, and those that kill their workers.

A group is made again without such blocks, from its own nodes: what they share with other blocks is
still made. So the sums have the same bits whether a block was left out before a pass or was lost
in it. A block is known by its index in the chunk grid.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from nlsq_dask import _errors
from nlsq_dask._errors import ReadingError
from nlsq_dask.core.questions import AnswerT
from nlsq_dask.engines.dask.task import AnyGroup, Work, answer_of_first, answer_of_group
from nlsq_dask.engines.partial import Index, LostBlock, Partial
from nlsq_dask.questions.question import AnyQuestion


class Omissions:
    """The blocks that the engines of a fit leave out.

    Parameters
    ----------
    before : frozenset of tuple of int
        Blocks that were taken out of the groups before any reading.
    n_blocks : int
        Number of all blocks.

    Attributes
    ----------
    n_blocks : int
    lost : frozenset of tuple of int
        Blocks that were lost while they were read.
    """

    def __init__(self, before: frozenset[Index], n_blocks: int) -> None:
        self._before = before
        self.n_blocks = n_blocks
        self.lost: frozenset[Index] = frozenset()

    @property
    def all(self) -> frozenset[Index]:
        """All blocks that are left out."""
        return self._before | self.lost

    def resume(self, omitted: frozenset[Index]) -> None:
        """Leave out blocks that an earlier run left out."""
        self.lost |= omitted - self._before

    def add(self, lost: Sequence[LostBlock]) -> None:
        """Take note of blocks that were lost in a pass.

        Raises
        ------
        ReadingError
            If no block is left.

        Warns
        -----
        MissingDataWarning
            If there are any.
        """
        if not lost:
            return
        first = lost[0].what
        self.lost = self.lost.union(block.index for block in lost)
        if len(self.all) >= self.n_blocks:
            raise _errors.no_block_read(first, self.n_blocks)
        _errors.warn_caller(_errors.blocks_omitted([b.what for b in lost], self.n_blocks))


def answer_of_readable(
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    question: AnyQuestion[AnswerT],
    omitted: frozenset[Index],
    chosen: Container[Index] | None = None,
) -> Partial[AnswerT]:
    """Answer a question for the blocks of a group that can be read.

    Each error of reading takes a block out of the group, which is then read anew.

    Parameters
    ----------
    task_group, external, work, question
        As for :func:`~nlsq_dask.engines.dask.task.answer_of_group`.
    omitted : frozenset of tuple of int
        Blocks that are left out already.
    chosen : container of tuple of int, optional
        Blocks of which the first is asked alone; by default all are.
    """
    lost: list[LostBlock] = []
    while True:
        without = omitted.union(block.index for block in lost)
        try:
            if chosen is None:
                answer = answer_of_group(task_group, external, work, question, without)
            else:
                answer = answer_of_first(
                    task_group, external, work, question, chosen=chosen, omitted=without
                )
        except ReadingError as error:
            if error.block is None:  # many blocks need what could not be read
                raise
            lost.append(LostBlock(error.block, error.what))
        else:
            return Partial(answer, tuple(lost))


def without_killers(
    killers: tuple[LostBlock, ...],
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    question: AnyQuestion[AnswerT],
    omitted: frozenset[Index],
    chosen: Container[Index] | None = None,
) -> Partial[AnswerT]:
    """Answer a question for the blocks of a group, without blocks that killed their workers."""
    without = omitted.union(block.index for block in killers)
    found = answer_of_readable(task_group, external, work, question, omitted=without, chosen=chosen)
    return replace(found, lost=killers + found.lost)
