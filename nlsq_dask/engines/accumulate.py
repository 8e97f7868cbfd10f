"""Blocks of rows to one sum, through one staging buffer: the inner loop of every staged engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Many, Survey
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.tiles import Rows

# What sums over blocks are made of; costs of several candidates are arrays.
SumT = TypeVar("SumT", NormalEquations, FloatArray, Survey, Many)

_local = threading.local()


def accumulate(
    of_rows: Callable[[Rows], SumT],
    nothing: Callable[[int], SumT],
    blocks: Iterable[Block],
    weighted: bool,
    stage_rows: int = STAGE_ROWS,
    keep: Callable[[Stage], Rows] | None = None,
) -> SumT:
    """Sum over blocks, in their order.

    Blocks are packed: the kernel runs when the stage is full, wherever one block ends and the next
    begins, so that small blocks cost no more calls than large ones.

    Parameters
    ----------
    of_rows : callable
        The kernel's sum over staged rows: normal equations, or costs.
    nothing : callable
        The sum over no rows, given how many rows were left out.
    blocks : iterable of Block
        Read one after the other; a block is let go before the next is asked for.
    weighted : bool
        Whether blocks have a sigma.
    stage_rows : int
        Rows of the staging buffer.
    keep : callable, optional
        Called with every stage that was filled; the kernel takes the rows that it returns.
    """

    def sum_of(stage: Stage) -> SumT:
        rows = rows_of_stage(stage) if keep is None else keep(stage)
        return sum_rows(of_rows, nothing, rows, stage.n_left_out)

    total = nothing(0)
    stage: Stage | None = None
    for block in blocks:
        if stage is None:
            stage = _take_stage(len(block.coords), weighted, stage_rows)
        start, size = 0, block.y.size
        while start < size:
            start = stage.fill(block, start)
            if stage.full:
                total = total + sum_of(stage)
                stage.clear()
        del block
    if stage is not None:
        total = total + sum_of(stage)
    _local.stage = stage
    return total


def rows_of_stage(stage: Stage) -> Rows:
    """The filled rows of a stage, as the kernel takes them."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows)


def sum_rows(
    of_rows: Callable[[Rows], SumT], nothing: Callable[[int], SumT], rows: Rows, n_left_out: int
) -> SumT:
    """The sum over staged rows, which may be none, with those that were left out."""
    if not rows.n:
        return nothing(n_left_out)
    sums = of_rows(rows)
    return sums + nothing(n_left_out) if n_left_out else sums


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
