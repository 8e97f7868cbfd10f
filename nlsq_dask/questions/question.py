"""The two kinds of questions that an engine answers: about staged rows, and about blocks.

The questions of a search are in :mod:`nlsq_dask.core.questions`. Each other file of this folder
has a question that is asked outside of a search.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from nlsq_dask.core.questions import AnswerT, AnswerT_co, Question, RowQuestion
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.table import Kernels


@runtime_checkable
class BlockQuestion(Question[AnswerT_co], Protocol[AnswerT_co]):
    """A question about blocks as they are read: any shape and dtype, rows left out included."""

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> AnswerT_co:
        """Answer the question for the rows of a block."""
        ...


#: A block, after its index in the chunk grid (None without chunks) and its box in ``y``.
PlacedBlock: TypeAlias = tuple[tuple[int, ...] | None, Box, Block]

AnyQuestion: TypeAlias = RowQuestion[AnswerT] | BlockQuestion[AnswerT]
