"""Blocks of rows to one sum, through one staging buffer: the inner loop of every staged engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.block import BlockKernel, Rows

_local = threading.local()


def accumulate(
    kernel: BlockKernel,
    params: FloatArray,
    basis: FloatArray,
    blocks: Iterable[Block],
    weighted: bool,
) -> NormalEquations:
    """Sum over blocks, in their order.

    Blocks are packed: the kernel runs when the stage is full, wherever one block ends and the next
    begins, so that small blocks cost no more calls than large ones.

    Parameters
    ----------
    kernel : BlockKernel
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
    blocks : iterable of Block
        Read one after the other; a block is let go before the next is asked for.
    weighted : bool
        Whether blocks have a sigma.
    """
    total = NormalEquations.zero(basis.shape[1])
    stage: Stage | None = None
    for block in blocks:
        if stage is None:
            stage = _thread_stage(len(block.coords), weighted)
        start, size = 0, block.y.size
        while start < size:
            start = stage.fill(block, start)
            if stage.full:
                total += kernel(params, basis, stage_rows(stage))
                stage.clear()
        del block
    if stage is not None and stage.n_rows:
        total += kernel(params, basis, stage_rows(stage))
    return total


def stage_rows(stage: Stage) -> Rows:
    """The filled rows of a stage, as the kernel takes them."""
    return Rows(stage.coords, stage.y, stage.weights, stage.n_rows)


def _thread_stage(n_coords: int, weighted: bool) -> Stage:
    """This thread's stage, empty; kept from call to call, since fresh pages cost more than use."""
    stage: Stage | None = getattr(_local, "stage", None)
    fits = stage is not None and len(stage.coords) == n_coords
    if stage is None or not fits or (stage.weights is not None) != weighted:
        stage = _local.stage = Stage(n_coords, weighted, STAGE_ROWS)
    stage.clear()
    return stage
