"""What a task of the streaming tier does, on whichever worker it lands.

These functions are sent to workers by name. They keep nothing between calls that could not be
made again: the compiled kernel and the staging buffer are caches of the process.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from nlsq_dask.core.questions import AnswerT
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.dask.cache import KeptGroup
from nlsq_dask.engines.dask.groups import Group, without_collections
from nlsq_dask.engines.dask.prefetch import read_ahead
from nlsq_dask.io.stage import STAGE_ROWS, Block, Layout
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import AnyQuestion, BlockQuestion

AnyGroup = Group | KeptGroup


@dataclass(frozen=True, slots=True)
class Work:
    """What all groups of a fit have in common.

    Attributes
    ----------
    kernels : Kernels
        Of the models, by number.
    layout : Layout
        Which array of a block is what.
    stage_rows : int
        Rows of a thread's staging buffer.
    read_ahead : int
        Blocks that are made ahead of the kernel.
    """

    kernels: Kernels
    layout: Layout
    stage_rows: int = STAGE_ROWS
    read_ahead: int = 0


@without_collections()
def packed(value: Any) -> bytes:
    """A plan, or the common work, as bytes: the plans of 100,000 chunks as 2 MB, of 17 pickled."""
    return zlib.compress(cloudpickle.dumps(value), 1)


def load(blob: bytes) -> Any:
    """Unpickle the common work. As the result of a task it can be made again."""
    return pickle.loads(blob)


@without_collections()
def unpacked(blob: bytes) -> Any:
    """Make it of its bytes again. As the result of a task it can be made again."""
    return load(zlib.decompress(blob))


def answer_of_group(
    task_group: AnyGroup, external: Sequence[Any], work: Work, question: AnyQuestion[AnswerT]
) -> AnswerT:
    """Answer a question for the blocks of a group, or for its rows where they were kept.

    Parameters
    ----------
    task_group : Group or KeptGroup
    external : sequence
        Values of ``group.external``, in that order.
    work : Work
    question : RowQuestion or BlockQuestion
    """
    group = task_group.group if isinstance(task_group, KeptGroup) else task_group
    blocks = _blocks(group, external, work)
    if isinstance(question, BlockQuestion):
        total = question.zero()
        for step, block in zip(group.steps, blocks, strict=True):
            total = total + question.of_block((step.index, step.box, block), work.kernels)
        return total
    weighted = work.layout.weighted
    if isinstance(task_group, KeptGroup):
        return task_group.answer(question, work.kernels, blocks, weighted, work.stage_rows)
    return accumulate(question, work.kernels, blocks, weighted, work.stage_rows)


def _blocks(group: Group, external: Sequence[Any], work: Work) -> Iterator[Block]:
    """Blocks of a group, given the values of ``group.external`` in that order."""
    values = dict(zip(group.external, external, strict=True))
    return read_ahead(group, values, work.layout, work.read_ahead)


def add_in_order(answers: Sequence[AnswerT]) -> AnswerT:
    """Add answers from first to last."""
    total = answers[0]
    for part in answers[1:]:
        total = total + part
    return total
