"""Blocks of rows to one sum, through one staging buffer: the inner loop of every staged engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.block import Rows

# What sums over blocks are made of; costs of several candidates are arrays.
SumT = TypeVar("SumT", NormalEquations, FloatArray)

_local = threading.local()


def accumulate(
    of_rows: Callable[[Rows], SumT],
    zero: SumT,
    blocks: Iterable[Block],
    weighted: bool,
    stage_rows: int = STAGE_ROWS,
) -> SumT:
    """Sum over blocks, in their order.

    Blocks are packed: the kernel runs when the stage is full, wherever one block ends and the next
    begins, so that small blocks cost no more calls than large ones.

    Parameters
    ----------
    of_rows : callable
        The kernel's sum over staged rows: normal equations, or costs.
    zero : sum
        The sum over no rows.
    blocks : iterable of Block
        Read one after the other; a block is let go before the next is asked for.
    weighted : bool
        Whether blocks have a sigma.
    stage_rows : int
        Rows of the staging buffer.
    """
    total = zero
    stage: Stage | None = None
    for block in blocks:
        if stage is None:
            stage = _take_stage(len(block.coords), weighted, stage_rows)
        start, size = 0, block.y.size
        while start < size:
            start = stage.fill(block, start)
            if stage.full:
                total = total + of_rows(rows_of_stage(stage))
                stage.clear()
        del block
    if stage is not None and stage.n_rows:
        total = total + of_rows(rows_of_stage(stage))
    _local.stage = stage
    return total


def rows_of_stage(stage: Stage) -> Rows:
    """The filled rows of a stage, as the kernel takes them."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows)


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
