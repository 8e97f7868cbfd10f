"""An engine written outside of the package: a loop over chunks in a pool of processes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import cloudpickle

from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.io.chunks import block_boxes, regular_chunks
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion


@cache
def pool():
    """Two processes, started once for all engines."""
    return ProcessPoolExecutor(2, get_context("spawn"))


def answer_of_chunk(asked, placed):
    """What one process computes."""
    question, kernels = cloudpickle.loads(asked)
    if isinstance(question, BlockQuestion):
        return question.of_block(placed, kernels), os.getpid()
    _, _, block = placed
    return accumulate(question, kernels, [block], block.sigma is not None, 4096), os.getpid()


class PoolEngine:
    """Answers questions of data in memory, cut into chunks of so many rows."""

    def __init__(self, data, specs, chunk_rows):
        self.kernels = Kernels(tuple(specs))
        self.n_passes = 0
        self.processes = set()
        boxes = block_boxes(regular_chunks(data.y.shape, chunk_rows))
        self.chunks = [(index, box, data.block(box)) for index, box in boxes]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, question):
        self.n_passes += 1
        asked = cloudpickle.dumps((question, self.kernels))
        total = question.zero()
        for answer, process in pool().map(partial(answer_of_chunk, asked), self.chunks):
            self.processes.add(process)
            total = total + answer
        return total
