"""Answer a question for blocks of rows through one staging buffer: the inner loop of engines."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import AnswerT, RowQuestion
from nlsq_dask.io.stage import ALIGNMENT, STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows

_local = threading.local()


class StagedBlocks(ABC):
    """Blocks without sigma whose rows are copied into the stage where they are made.

    Attributes
    ----------
    n_coords : int
        Number of coordinates.
    """

    def __init__(self, n_coords: int) -> None:
        self.n_coords = n_coords

    @abstractmethod
    def into(self, stage: Stage) -> Iterator[Block]:
        """Copy rows into a stage, block by block; each block that the stage does not take follows.

        The caller copies the rows of such a block, before the rows of the next blocks.
        """


#: Blocks of rows, one after the other.
Blocks: TypeAlias = Iterable[Block] | StagedBlocks


def accumulate(
    question: RowQuestion[AnswerT],
    kernels: Kernels,
    blocks: Blocks,
    weighted: bool,
    stage_rows: int = STAGE_ROWS,
    keep: Callable[[Rows, int], Rows] | None = None,
) -> AnswerT:
    """Answer a question for blocks, in their order.

    Blocks are packed into the stage, and the kernel runs each time that the stage is full, so small
    blocks cost no more calls of the kernel than large ones. The kernel takes rows that need no
    change from the block itself, as many at one time as the stage would hold: the sums are the
    same.

    Parameters
    ----------
    question : RowQuestion
    kernels : Kernels
    blocks : iterable of Block, or StagedBlocks
        Read one after the other. A block is released before the next one is read.
    weighted : bool
        Whether the blocks have a sigma.
    stage_rows : int
        Rows of the staging buffer.
    keep : callable, optional
        Called with the rows of each call of the kernel, and the number of rows that are left out
        with them. The kernel takes the rows that `keep` returns.
    """
    return add_rows(question, kernels, _staged(blocks, weighted, stage_rows, keep or _as_they_are))


def add_rows(
    question: RowQuestion[AnswerT], kernels: Kernels, staged: Iterable[tuple[Rows, int]]
) -> AnswerT:
    """Answer a question for staged rows, in their order.

    Parameters
    ----------
    question : RowQuestion
    kernels : Kernels
    staged : iterable of (Rows, int)
        Rows (there may be none), and the number of rows that are left out with them.
    """
    total = question.zero()
    for rows, n_left_out in staged:
        if not rows.n:
            total = total + question.zero(n_left_out)
            continue
        part = question.of_rows(rows, kernels)
        if n_left_out:
            part = part + question.zero(n_left_out)
        total = total + part
        del rows  # the memory of their block is used again for the next block
    return total


def rows_of_stage(stage: Stage) -> Rows:
    """The filled rows of a stage, as inputs of the kernel."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows, stage.counted)


def _as_they_are(rows: Rows, n_left_out: int) -> Rows:  # noqa: ARG001  # as `keep`
    return rows


def _staged(
    blocks: Blocks, weighted: bool, stage_rows: int, keep: Callable[[Rows, int], Rows]
) -> Iterator[tuple[Rows, int]]:
    """Rows for the kernel, and the number of rows that are left out with them.

    Rows are given each time that the stage is full. The last rows are what remains in the end.
    """
    stage: Stage | None = None
    if isinstance(blocks, StagedBlocks):
        stage = _take_stage(blocks.n_coords, weighted, stage_rows, flagged=False)
        blocks = blocks.into(stage)
    for block in blocks:
        if stage is None:
            flagged = bool(block.series_axes)
            stage = _take_stage(len(block.coords), weighted, stage_rows, flagged)
        start, size = 0, block.y.size
        columns = _columns(block) if size >= stage_rows else None
        while start < size:
            if columns is not None and not stage.n_rows and _fits(columns, start, stage_rows):
                yield keep(_rows_in_place(columns, start, stage_rows), 0), 0
                start += stage_rows
                continue
            start = stage.fill(block, start)
            if stage.full:
                yield keep(rows_of_stage(stage), stage.n_left_out), stage.n_left_out
                stage.clear()
        del block, columns
    if stage is not None:
        yield keep(rows_of_stage(stage), stage.n_left_out), stage.n_left_out
    _local.stage = stage


def plain_columns(block: Block) -> list[FloatArray] | None:
    """The values of a block, flat, if all are contiguous float64 of full length; else None."""
    for array in block.arrays:
        plain = type(array) is np.ndarray and array.dtype == np.float64 and array.dtype.isnative
        if (
            not plain
            or array.shape != block.y.shape
            or not (array.flags.c_contiguous and array.flags.aligned)
        ):
            return None
    return [array.reshape(-1) for array in block.arrays]  # type: ignore[misc]


def _columns(block: Block) -> list[FloatArray] | None:
    """The values of a block as a kernel takes them, equally aligned; None if they are not so."""
    if block.selects or block.series_axes or block.sigma is not None:
        return None
    columns = plain_columns(block)
    places = {column.ctypes.data % ALIGNMENT for column in columns or ()}
    return columns if len(places) == 1 else None


def _fits(columns: list[FloatArray], start: int, n: int) -> bool:
    """Whether a kernel takes n rows from a row on without a copy."""
    return columns[0].size - start >= n and columns[0][start:].ctypes.data % ALIGNMENT == 0


def _rows_in_place(columns: list[FloatArray], start: int, n: int) -> Rows:
    y, *coords = (column[start : start + n] for column in columns)
    return Rows(tuple(coords), y, None, n)


def _take_stage(n_coords: int, weighted: bool, capacity: int, flagged: bool) -> Stage:
    """This thread's stage, empty.

    The stage is reused, because allocating its memory anew costs more than filling it. While it is
    in use no other call can take it: the task that makes a block may itself run a fit.
    """
    stage: Stage | None = getattr(_local, "stage", None)
    _local.stage = None
    fits = stage is not None and (len(stage.coords), stage.capacity) == (n_coords, capacity)
    kind = (weighted, flagged)
    if stage is None or not fits or (stage.weights is not None, stage.counted is not None) != kind:
        return Stage(n_coords, weighted, capacity, flagged=flagged)
    stage.clear()
    return stage
