"""The engine of data in this process's memory.

The *standard* engine hands the user's arrays to the kernel where it can, and copies other rows
into aligned buffers once, in the threads of the first pass (:mod:`nlsq_dask.engines.parts`). The
*chunked* engine stages the rows in every pass. Both cut the rows into parts by the shape of the
data alone, work on the parts in one thread for each core (the kernel releases the interpreter
lock), and add the answers in row order. So the same data give the same bits on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from nlsq_dask._errors import all_left_out
from nlsq_dask.core.questions import AnswerT, RowQuestion
from nlsq_dask.core.resources import available_cores
from nlsq_dask.core.structure import whole_series
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.ordered_sum import OrderedSum, PartT
from nlsq_dask.engines.parts import Part, aligned_parts, can_stay, parts_in_place, uncopied_parts
from nlsq_dask.io.chunks import Box, block_boxes, regular_chunks, whole_box
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import MIN_PART_ROWS, STAGE_ROWS, Block, power_of_two_from
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.questions.question import AnyQuestion, BlockQuestion

# Fewest parts of a data set of moderate size, so that several cores share the work evenly.
MIN_PARTS = 8

# Below this many rows one thread is faster than several: waking a thread takes about as long as a
# part of 2**15 rows.
THREADING_ROWS = 1 << 16


class InMemoryEngine:
    """Answers questions of data in memory, part by part in threads.

    Parameters
    ----------
    data : Observations
        The data.
    kernels : Kernels
        Of the models that questions are about.
    parts : sequence of Part or Block
        The same data in parts, in row order. A thread works on one part at a time.
    threads : int
        Threads to use.
    stage_rows : int
        Rows of a thread's staging buffer, for parts that are blocks.
    n_left_out : int
        Number of rows that are in no part, because they are left out.

    Attributes
    ----------
    n_passes : int
        Readings of all rows so far.
    n_arrays : int
        Number of arrays that the rows have: y, the coordinates, and sigma if there is one.
    """

    def __init__(
        self,
        data: Observations,
        kernels: Kernels,
        parts: Sequence[Part] | Sequence[Block],
        threads: int,
        stage_rows: int = STAGE_ROWS,
        n_left_out: int = 0,
    ) -> None:
        self.kernels = kernels.compare_anew()
        self.n_passes = 0
        self.n_arrays = len(data.values)
        self._data = data
        self._parts = parts
        self._stage_rows = stage_rows
        self._n_left_out = n_left_out
        self._threads = min(threads, len(parts))
        self._pool = ThreadPoolExecutor(self._threads, "nlsq") if self._threads > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def ask(self, question: AnyQuestion[AnswerT]) -> AnswerT:
        """Answer a question for all rows; see :class:`~nlsq_dask.engines.engine.Engine`."""
        self.n_passes += 1
        if isinstance(question, BlockQuestion):
            return self._of_blocks(question)
        if len(self._parts) == 1 and not self._n_left_out:  # with nothing to add to it
            return self._of_part(question, self._parts[0])

        def of_part(part: Part | Block) -> AnswerT:
            return self._of_part(question, part)

        return self._summed(question.zero(self._n_left_out), of_part, self._parts)

    def _of_blocks(self, question: BlockQuestion[AnswerT]) -> AnswerT:
        """Answer a question about blocks, in the order of the blocks."""

        def of_block(placed: tuple[Box, Block]) -> AnswerT:
            return question.of_block((None, *placed), self.kernels)

        by_threads = not question.calls_model
        return self._summed(question.zero(), of_block, self._blocks(), by_threads)

    def _summed(
        self,
        zero: AnswerT,
        answer_of: Callable[[PartT], AnswerT],
        parts: Iterable[PartT],
        by_threads: bool = True,
    ) -> AnswerT:
        """Sum of the answers of parts, in their order."""
        if by_threads and self._pool is not None:
            return OrderedSum(zero, answer_of, parts).by(self._pool, self._threads)
        total = zero
        for part in parts:
            total = total + answer_of(part)
        return total

    def _of_part(self, question: RowQuestion[AnswerT], part: Part | Block) -> AnswerT:
        if isinstance(part, Block):
            weighted = part.sigma is not None
            return accumulate(question, self.kernels, [part], weighted, self._stage_rows)
        rows = part if isinstance(part, Rows) else part.rows()
        return question.of_rows(rows, self.kernels)

    def _blocks(self) -> Iterable[tuple[Box, Block]]:
        """All rows in pieces; in one piece if a model needs all rows at once."""
        if not self.kernels.whole:
            return self._data.pieces()
        box = whole_box(self._data.y.shape)
        return [(box, self._data.block(box))]


def standard_engine(data: Observations, kernels: Kernels) -> InMemoryEngine:
    """Engine whose rows are ready for all passes: in place, or in aligned buffers on the device.

    Parameters
    ----------
    data : Observations
        Arrays in memory.
    kernels : Kernels
        If a model needs all rows at once, they are in one buffer.

    Raises
    ------
    InputError
        If all rows are left out.
    """
    if stays_in_place(data, kernels):
        return in_place_engine(data, kernels, part_rows(data.n_rows))
    capacity = data.count_rows() if kernels.whole else part_rows(data.n_rows, data.series_rows)
    if not data.selects and not data.series_axes and kernels.on_cpu:
        threads = available_cores() if data.n_rows >= THREADING_ROWS else 1
        return InMemoryEngine(data, kernels, list(uncopied_parts(data, capacity)), threads)
    rows = [kernels.put(part) for part in aligned_parts(data, capacity)]
    n_points = sum(part.n_counted for part in rows)
    if not n_points:
        raise all_left_out(data.n_rows, data.causes)
    threads = available_cores() if n_points >= THREADING_ROWS else 1
    return InMemoryEngine(data, kernels, rows, threads, n_left_out=data.n_rows - n_points)


def stays_in_place(data: Observations, kernels: Kernels) -> bool:
    """Whether the standard engine hands the user's arrays to the kernel.

    Of fewer rows than THREADING_ROWS few parts or none could stay in place.
    """
    large = data.n_rows >= THREADING_ROWS
    return large and kernels.on_cpu and not kernels.whole and can_stay(data)


def in_place_engine(data: Observations, kernels: Kernels, capacity: int) -> InMemoryEngine:
    """Engine whose parts stay in place, except for some at the ends of the arrays.

    Parameters
    ----------
    data : Observations
        Arrays in memory; see :func:`stays_in_place`.
    kernels : Kernels
        Of row-wise models.
    capacity : int
        Rows of a part.
    """
    parts = list(parts_in_place(data, capacity))
    return InMemoryEngine(data, kernels, parts, available_cores())


def chunked_engine(
    data: Observations,
    kernels: Kernels,
    block_rows: int = STAGE_ROWS,
    threads: int | None = None,
) -> InMemoryEngine:
    """Engine that stages the rows in every pass, from the arrays as the user passed them.

    It needs no memory beyond a staging buffer for each thread. Broadcast coordinates and memory
    maps are never expanded or copied whole.

    Parameters
    ----------
    data : Observations
        Arrays in memory.
    kernels : Kernels
        Of row-wise models.
    block_rows : int
        Most rows of a part. A staging buffer is no longer.
    threads : int, optional
        Threads to use; by default one for each core.
    """
    boxes = block_boxes(regular_chunks(data.y.shape, block_rows, data.series_axes))
    blocks = [data.block(box) for _, box in boxes]
    stage_rows = whole_series(min(STAGE_ROWS, power_of_two_from(block_rows)), data.series_rows)
    return InMemoryEngine(data, kernels, blocks, threads or available_cores(), stage_rows)


def part_rows(n_rows: int, series_rows: int = 1) -> int:
    """Rows of a buffer: a power of two, so that the kernel is compiled for few shapes.

    Of series the buffer holds a power of two.
    """
    wanted = n_rows if n_rows < THREADING_ROWS else -(-n_rows // MIN_PARTS)
    rows = min(max(power_of_two_from(wanted), MIN_PART_ROWS), STAGE_ROWS)
    return whole_series(rows, series_rows)
