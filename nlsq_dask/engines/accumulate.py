"""Blocks of rows to one answer, through one staging buffer: the inner loop of staged engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from nlsq_dask.core.questions import AnswerT, RowQuestion
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows

_local = threading.local()


def accumulate(
    question: RowQuestion[AnswerT],
    kernels: Kernels,
    blocks: Iterable[Block],
    weighted: bool,
    stage_rows: int = STAGE_ROWS,
    keep: Callable[[Stage], Rows] | None = None,
) -> AnswerT:
    """Answer a question for blocks, in their order.

    Blocks are packed: the kernel runs when the stage is full, wherever one block ends and the next
    begins, so that small blocks cost no more calls than large ones.

    Parameters
    ----------
    question : RowQuestion
    kernels : Kernels
    blocks : iterable of Block
        Read one after the other; a block is let go before the next is asked for.
    weighted : bool
        Whether blocks have a sigma.
    stage_rows : int
        Rows of the staging buffer.
    keep : callable, optional
        Called with every stage that was filled; the kernel takes the rows that it returns.
    """
    stages = _filled(blocks, weighted, stage_rows)
    return add_rows(
        question,
        kernels,
        ((rows_of_stage(s) if keep is None else keep(s), s.n_left_out) for s in stages),
    )


def add_rows(
    question: RowQuestion[AnswerT], kernels: Kernels, staged: Iterable[tuple[Rows, int]]
) -> AnswerT:
    """Answer a question for staged rows, in their order.

    Parameters
    ----------
    question : RowQuestion
    kernels : Kernels
    staged : iterable of (Rows, int)
        Rows, which may be none, and the number of rows that were left out beside them.
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
    return total


def rows_of_stage(stage: Stage) -> Rows:
    """The filled rows of a stage, as the kernel takes them."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows)


def _filled(blocks: Iterable[Block], weighted: bool, stage_rows: int) -> Iterator[Stage]:
    """The stage, each time that it is full, and at the end with what is left."""
    stage: Stage | None = None
    for block in blocks:
        if stage is None:
            stage = _take_stage(len(block.coords), weighted, stage_rows)
        start, size = 0, block.y.size
        while start < size:
            start = stage.fill(block, start)
            if stage.full:
                yield stage
                stage.clear()
        del block
    if stage is not None:
        yield stage
    _local.stage = stage


def _take_stage(n_coords: int, weighted: bool, capacity: int) -> Stage:
    """This thread's stage, empty; kept from call to call, since fresh pages cost more than use.

    It is taken away while it is filled: what makes a block may itself be a fit.
    """
    stage: Stage | None = getattr(_local, "stage", None)
    _local.stage = None
    fits = stage is not None and (len(stage.coords), stage.capacity) == (n_coords, capacity)
    if stage is None or not fits or (stage.weights is not None) != weighted:
        return Stage(n_coords, weighted, capacity)
    stage.clear()
    return stage
