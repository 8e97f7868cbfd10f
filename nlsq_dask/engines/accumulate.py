"""Answer a question for blocks of rows through one staging buffer: the inner loop of engines."""

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

    Blocks are packed into the stage, and the kernel runs each time that the stage is full, so small
    blocks cost no more calls of the kernel than large ones.

    Parameters
    ----------
    question : RowQuestion
    kernels : Kernels
    blocks : iterable of Block
        Read one after the other. A block is released before the next one is read.
    weighted : bool
        Whether the blocks have a sigma.
    stage_rows : int
        Rows of the staging buffer.
    keep : callable, optional
        Called with each filled stage. The kernel takes the rows that `keep` returns.
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
    return total


def rows_of_stage(stage: Stage) -> Rows:
    """The filled rows of a stage, as inputs of the kernel."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows, stage.counted)


def _filled(blocks: Iterable[Block], weighted: bool, stage_rows: int) -> Iterator[Stage]:
    """Yield the stage each time that it is full, and at the end with the remaining rows."""
    stage: Stage | None = None
    for block in blocks:
        if stage is None:
            flagged = bool(block.series_axes)
            stage = _take_stage(len(block.coords), weighted, stage_rows, flagged)
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
