"""The two kinds of questions that an engine answers: about staged rows, and about blocks.

The questions of a search are in :mod:`nlsq_dask.core.questions`. Each other file of this folder
has a question that is asked outside of a search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeAlias

from nlsq_dask.core.questions import AnswerT, AnswerT_co, RowQuestion
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.table import Kernels


class BlockQuestion(ABC, Generic[AnswerT_co]):
    """A question about blocks as they are read: any shape and dtype, rows left out included."""

    #: Name of the tasks that answer the question, as a dashboard shows it.
    task_name: ClassVar[str]

    #: Whether answers call a model. A user's function is not called in several threads at a time.
    calls_model: ClassVar[bool] = True

    @abstractmethod
    def zero(self) -> AnswerT_co:
        """Answer for no rows."""

    def left_out(self, n_rows: int) -> AnswerT_co:  # noqa: ARG002 (counted by some questions)
        """Answer for rows of blocks that are left out as a whole."""
        return self.zero()

    @abstractmethod
    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> AnswerT_co:
        """Answer the question for the rows of a block."""


#: A block, after its index in the chunk grid (None without chunks) and its box in ``y``.
PlacedBlock: TypeAlias = tuple[tuple[int, ...] | None, Box, Block]

AnyQuestion: TypeAlias = RowQuestion[AnswerT] | BlockQuestion[AnswerT]
