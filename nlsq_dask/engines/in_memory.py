"""Evaluators for data in this process's memory: *standard* keeps rows ready, *chunked* stages them.

Both cut the rows into parts by the shape of the data alone, work on the parts with one Python
thread a core (the kernel releases the interpreter lock), and add the parts' sums in row order, so
that the same data give the same bits on any number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.engines.accumulate import accumulate, stage_rows
from nlsq_dask.io.chunks import Box, block_boxes, broadcast_box, regular_chunks
from nlsq_dask.io.sources import Observations
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.block import Rows, block_kernel
from nlsq_dask.kernels.model import ModelSpec

PartT = TypeVar("PartT")

# Smallest buffer of kept rows: below it a kernel call costs its overhead, whatever the rows.
MIN_PART_ROWS = 1 << 10

# Parts a data set of moderate size is cut into, so that several cores share it evenly.
MIN_PARTS = 8

# Below this many rows one thread is faster than handing parts to several: a part of 2**15 rows
# takes about as long as waking a thread.
THREADING_ROWS = 1 << 16


class InMemoryEvaluator(Generic[PartT]):
    """Sum over parts in threads.

    Parameters
    ----------
    parts : list
        What one task works on, in row order.
    work : callable
        ``work(params, basis, part) -> NormalEquations``.
    threads : int
        Threads to use.
    """

    def __init__(
        self,
        parts: list[PartT],
        work: Callable[[FloatArray, FloatArray, PartT], NormalEquations],
        threads: int,
    ) -> None:
        self._parts = parts
        self._work = work
        self._pool = ThreadPoolExecutor(threads, "nlsq") if min(threads, len(parts)) > 1 else None
        self.n_passes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def evaluate(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.normal_equations.Evaluator`."""
        self.n_passes += 1
        each = map if self._pool is None else self._pool.map
        sums = each(lambda part: self._work(params, basis, part), self._parts)
        return sum(sums, NormalEquations.zero(basis.shape[1]))


def standard_evaluator(
    data: Observations, spec: ModelSpec, device: str | None = None, row_wise: bool = True
) -> InMemoryEvaluator[Rows]:
    """Rows copied once into aligned buffers on the device, where they stay for all passes.

    Parameters
    ----------
    data : Observations
        In memory.
    spec : ModelSpec
        The model.
    device : {"cpu", "gpu"} or None
        Where the kernel runs.
    row_wise : bool
        False evaluates the model on all rows at once, as one needs it whose rows depend on each
        other.
    """
    kernel = block_kernel(spec, device, whole=not row_wise)
    rows = [
        kernel.put(part) for part in _aligned_parts(data, data.n_rows if not row_wise else None)
    ]
    threads = available_cores() if data.n_rows >= THREADING_ROWS else 1
    return InMemoryEvaluator(rows, kernel, threads)


def chunked_evaluator(
    data: Observations, spec: ModelSpec, device: str | None = None, block_rows: int = STAGE_ROWS
) -> InMemoryEvaluator[Block]:
    """Rows staged anew in every pass, from the arrays as the user passed them.

    Needs no memory beyond one staging buffer a thread; broadcast coordinates and memory maps
    stay as they are.

    Parameters
    ----------
    data : Observations
        In memory.
    spec : ModelSpec
        A row-wise model.
    device : {"cpu", "gpu"} or None
        Where the kernel runs.
    block_rows : int
        Most rows of one task.
    """
    kernel = block_kernel(spec, device)
    weighted = data.sigma is not None

    def work(params: FloatArray, basis: FloatArray, block: Block) -> NormalEquations:
        return accumulate(kernel, params, basis, [block], weighted)

    boxes = block_boxes(regular_chunks(data.y.shape, block_rows))
    blocks = [cut_block(data, box) for _, box in boxes]
    return InMemoryEvaluator(blocks, work, available_cores())


def cut_block(data: Observations, box: Box) -> Block:
    """Views of the rows of a box, coordinates and sigma included."""
    coords = tuple(c[broadcast_box(box, c.shape)] for c in data.coords)
    sigma = None if data.sigma is None else data.sigma[broadcast_box(box, data.sigma.shape)]
    return Block(data.y[box], coords, sigma)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _aligned_parts(data: Observations, exact_rows: int | None) -> Iterator[Rows]:
    """Copy all rows into aligned buffers of one capacity."""
    capacity = exact_rows or _part_rows(data.n_rows)
    block = Block(data.y, data.coords, data.sigma)
    start = 0
    while start < data.n_rows:
        stage = Stage(len(data.coords), data.sigma is not None, capacity)
        start = stage.fill(block, start)
        yield stage_rows(stage)


def _part_rows(n_rows: int) -> int:
    """Rows of a buffer: a power of two, so that few shapes are ever compiled."""
    wanted = n_rows if n_rows < THREADING_ROWS else -(-n_rows // MIN_PARTS)
    power = 1 << int(np.ceil(np.log2(max(wanted, 1))))
    return min(max(power, MIN_PART_ROWS), STAGE_ROWS)
