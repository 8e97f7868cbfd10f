"""What an engine may be asked: questions of staged rows, and questions of blocks.

Questions that a search asks are in :mod:`nlsq_dask.core.questions`. The other files of this folder
hold a question each, for what is asked of rows beside a search.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from nlsq_dask.core.questions import AnswerT, AnswerT_co, Question, RowQuestion
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.table import Kernels


@runtime_checkable
class BlockQuestion(Question[AnswerT_co], Protocol[AnswerT_co]):
    """A question of blocks as they are: of any shape and dtype, with the rows that are left out."""

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> AnswerT_co:
        """Answer for the rows of a block."""
        ...


#: A block, its index where data are chunked, and what the block is of ``y``.
PlacedBlock: TypeAlias = tuple[tuple[int, ...] | None, Box, Block]

AnyQuestion: TypeAlias = RowQuestion[AnswerT] | BlockQuestion[AnswerT]
