"""Evaluators for data in this process's memory: *standard* keeps rows ready, *chunked* stages them.

Both cut the rows into parts by the shape of the data alone, work on the parts with one Python
thread a core (the kernel releases the interpreter lock), and add the parts' sums in row order, so
that the same data give the same bits on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from nlsq_dask._errors import all_left_out
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import Survey
from nlsq_dask.core.resources import available_cores
from nlsq_dask.engines.accumulate import SumT, accumulate, rows_of_stage
from nlsq_dask.engines.first_look import look_at
from nlsq_dask.io.chunks import block_boxes, regular_chunks, whole_box
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import (
    MIN_PART_ROWS,
    STAGE_ROWS,
    Block,
    Stage,
    aligned_empty,
    power_of_two_from,
)
from nlsq_dask.kernels.sums import BlockKernel, block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.questions.question import (
    Request,
    answers_of_rows,
    no_costs,
    no_meat,
    no_rows,
    no_survey,
)
from nlsq_dask.user_model.model import ModelSpec

PartT = TypeVar("PartT")

# Parts a data set of moderate size is cut into, so that several cores share it evenly.
MIN_PARTS = 8

# Bytes allocated in one piece for the buffers of several parts: large enough for huge pages, small
# enough that little lies here twice on the way to another device.
PIECE_BYTES = 1 << 26

# Below this many rows one thread is faster than handing parts to several: a part of 2**15 rows
# takes about as long as waking a thread.
THREADING_ROWS = 1 << 16


class InMemoryEvaluator(Generic[PartT]):
    """Sum over parts in threads.

    Parameters
    ----------
    kernel : BlockKernel
        Sums over rows.
    parts : list
        What one task works on, in row order.
    over_part : callable
        ``over_part(of_rows, nothing, part)``: the sum of the kernel's ``of_rows`` over a part;
        ``nothing`` is the sum over no rows, given how many were left out.
    threads : int
        Threads to use.
    data : Observations
        What the parts are made of.
    n_skipped : int
        Rows that were left out when the parts were made.
    kernels : sequence of BlockKernel
        Of the models that :meth:`together` is asked about, by number.
    """

    def __init__(
        self,
        kernel: BlockKernel,
        parts: list[PartT],
        over_part: Callable[[Callable[[Rows], Any], Callable[[int], Any], PartT], Any],
        threads: int,
        data: Observations,
        n_skipped: int = 0,
        kernels: Sequence[BlockKernel] = (),
    ) -> None:
        self._kernel = kernel
        self._parts = parts
        self._over_part = over_part
        self._data = data
        self._n_skipped = n_skipped
        self._kernels = dict(enumerate(kernels))
        self._pool = ThreadPoolExecutor(threads, "nlsq") if min(threads, len(parts)) > 1 else None
        self._moments: Moments | None = None  # known after the first pass
        self.n_passes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def evaluate(
        self, params: FloatArray, basis: FloatArray, scores: bool = False
    ) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.questions.Evaluator`."""
        observe_y = self._moments is None
        sums = self._sum(
            lambda rows: self._kernel(params, basis, rows, observe_y, scores),
            no_rows(basis.shape[1]),
        )
        return self._with_moments(sums)

    def survey(self, params: FloatArray, basis: FloatArray, candidates: FloatArray) -> Survey:
        """Sums at a point and the costs of candidates (k, p), in one pass over all rows."""
        observe_y = self._moments is None
        found = self._sum(
            lambda rows: self._kernel.survey(params, basis, candidates, rows, observe_y),
            no_survey(basis.shape[1], len(candidates)),
        )
        return replace(found, sums=self._with_moments(found.sums))

    def _with_moments(self, sums: NormalEquations) -> NormalEquations:
        """Sums of at least one row, with the moments of y that the first pass found."""
        if not sums.n_points:
            raise all_left_out(self._data.n_rows, self._data.causes)
        if self._moments is None:
            look_at(sums, self._data)
        self._moments = self._moments or sums.moments
        return replace(sums, moments=sums.moments.with_y_of(self._moments))

    def costs(self, candidates: FloatArray) -> FloatArray:
        """Half the sum of squared residuals of candidates (k, p), in one pass over all rows."""
        return self._sum(
            lambda rows: self._kernel.costs(candidates, rows), no_costs(len(candidates))
        )

    def meat(self, params: FloatArray) -> FloatArray:
        """Sum of outer products of the rows' scores, (p, p), in one pass over all rows."""
        return self._sum(lambda rows: self._kernel.meat(params, rows), no_meat(params.size))

    def together(self, requests: Sequence[Request]) -> tuple[Any, ...]:
        """Answer requests of several models, in one pass over all rows."""
        return self._sum(*answers_of_rows(requests, self._kernels)).answers

    def _sum(self, of_rows: Callable[[Rows], SumT], nothing: Callable[[int], SumT]) -> SumT:
        self.n_passes += 1
        each = map if self._pool is None else self._pool.map
        total = nothing(self._n_skipped)
        for part in each(lambda part: self._over_part(of_rows, nothing, part), self._parts):
            total = total + part
        return total


def standard_evaluator(
    data: Observations,
    spec: ModelSpec,
    device: str | None = None,
    row_wise: bool = True,
    models: Sequence[ModelSpec] = (),
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
    models : sequence of ModelSpec
        Models that read together, by number.
    """
    kernel = block_kernel(spec, device, whole=not row_wise).compare_anew()
    parts = _aligned_parts(data, part_rows(data.n_rows) if row_wise else data.count_rows())
    rows = [kernel.put(part) for part in parts]
    n_points = sum(part.n for part in rows)
    if not n_points:
        raise all_left_out(data.n_rows, data.causes)
    return InMemoryEvaluator(
        kernel,
        rows,
        lambda of_rows, _, part: of_rows(part),
        available_cores() if n_points >= THREADING_ROWS else 1,
        data,
        data.n_rows - n_points,
        [block_kernel(model, device, whole=not row_wise).compare_anew() for model in models],
    )


def chunked_evaluator(
    data: Observations,
    spec: ModelSpec,
    device: str | None = None,
    block_rows: int = STAGE_ROWS,
    threads: int | None = None,
    models: Sequence[ModelSpec] = (),
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
        Most rows of one task; a stage holds no more than these.
    threads : int, optional
        Threads to use; all cores by default.
    models : sequence of ModelSpec
        Models that read together, by number.
    """
    kernel = block_kernel(spec, device).compare_anew()
    stage_rows = min(STAGE_ROWS, power_of_two_from(block_rows))

    def over_block(
        of_rows: Callable[[Rows], SumT], nothing: Callable[[int], SumT], block: Block
    ) -> SumT:
        return accumulate(of_rows, nothing, [block], block.sigma is not None, stage_rows)

    boxes = block_boxes(regular_chunks(data.y.shape, block_rows))
    blocks = [data.block(box) for _, box in boxes]
    kernels = [block_kernel(model, device).compare_anew() for model in models]
    return InMemoryEvaluator(
        kernel, blocks, over_block, threads or available_cores(), data, kernels=kernels
    )


def _aligned_parts(data: Observations, capacity: int) -> Iterator[Rows]:
    """Copy all rows that count into aligned buffers of one capacity, 0 where there are none."""
    block = data.block(whole_box(data.y.shape))
    n_coords, weighted = len(data.coords), data.sigma is not None
    n_buffers = n_coords + 1 + weighted
    start = 0
    while capacity and start < data.n_rows:
        n_parts = -(-(data.n_rows - start) // capacity)
        n_parts = min(n_parts, max(PIECE_BYTES // (8 * n_buffers * capacity), 1))
        for memory in aligned_empty(n_parts, n_buffers, capacity):
            stage = Stage(n_coords, weighted, capacity, memory)
            while start < data.n_rows and not stage.full:
                start = stage.fill(block, start)
            if stage.n_rows:
                yield rows_of_stage(stage)
            if start == data.n_rows:
                return


def part_rows(n_rows: int) -> int:
    """Rows of a buffer: a power of two, so that few shapes are ever compiled."""
    wanted = n_rows if n_rows < THREADING_ROWS else -(-n_rows // MIN_PARTS)
    return min(max(power_of_two_from(wanted), MIN_PART_ROWS), STAGE_ROWS)
