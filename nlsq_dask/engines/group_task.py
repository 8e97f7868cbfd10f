"""What a task of the streaming tier does, on whichever worker it lands.

These functions are sent to workers by name. They keep nothing between calls that could not be
made again: the compiled kernel and the staging buffer are caches of the process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from dask.typing import Key

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations, Survey
from nlsq_dask.engines.accumulate import accumulate, no_costs, no_meat, no_rows, no_survey
from nlsq_dask.engines.groups import GroupPlan
from nlsq_dask.io.stage import STAGE_ROWS, Block, Layout
from nlsq_dask.kernels.block import block_kernel
from nlsq_dask.kernels.model import ModelSpec

SumT = TypeVar("SumT", NormalEquations, FloatArray, Survey, "Sample")


@dataclass(frozen=True, slots=True)
class Work:
    """What all groups of a fit have in common."""

    spec: ModelSpec
    layout: Layout
    device: str | None
    stage_rows: int = STAGE_ROWS


def load(blob: bytes) -> Any:
    """Unpickle a plan or the common work. As the result of a task it can be made again."""
    return pickle.loads(blob)


def run_group(
    plan: GroupPlan,
    external: Sequence[Any],
    work: Work,
    params: FloatArray,
    basis: FloatArray,
    observe_y: bool = False,
) -> NormalEquations:
    """Sum over the blocks of a group.

    Parameters
    ----------
    plan : GroupPlan
    external : sequence
        Values of ``plan.external``, in that order.
    work : Work
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
    observe_y : bool
        Whether to compute the moments of y.
    """
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    return accumulate(
        lambda rows: kernel(params, basis, rows, observe_y),
        no_rows(basis.shape[1]),
        blocks,
        work.layout.weighted,
        work.stage_rows,
    )


def survey_group(
    plan: GroupPlan,
    external: Sequence[Any],
    work: Work,
    params: FloatArray,
    basis: FloatArray,
    candidates: FloatArray,
    observe_y: bool = False,
) -> Survey:
    """Sums at a point and the costs of candidates (k, p), over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    return accumulate(
        lambda rows: kernel.survey(params, basis, candidates, rows, observe_y),
        no_survey(basis.shape[1], len(candidates)),
        blocks,
        work.layout.weighted,
        work.stage_rows,
    )


def group_costs(
    plan: GroupPlan, external: Sequence[Any], work: Work, candidates: FloatArray
) -> FloatArray:
    """Half the sums of squared residuals of candidates (k, p) over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    return accumulate(
        lambda rows: kernel.costs(candidates, rows),
        no_costs(len(candidates)),
        blocks,
        work.layout.weighted,
        work.stage_rows,
    )


def group_meat(
    plan: GroupPlan, external: Sequence[Any], work: Work, params: FloatArray
) -> FloatArray:
    """Sum of outer products of the scores, (p, p), over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    return accumulate(
        lambda rows: kernel.meat(params, rows),
        no_meat(params.size),
        blocks,
        work.layout.weighted,
        work.stage_rows,
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows as 1-D float64 arrays; samples combine by adding, one behind the other."""

    y: FloatArray
    coords: tuple[FloatArray, ...]
    sigma: FloatArray | None

    def __add__(self, other: Sample) -> Sample:
        pairs = zip(self.coords, other.coords, strict=True)
        coords = tuple(np.concatenate(pair) for pair in pairs)
        sigma = None
        if self.sigma is not None and other.sigma is not None:
            sigma = np.concatenate([self.sigma, other.sigma])
        return Sample(np.concatenate([self.y, other.y]), coords, sigma)


def thin_group(plan: GroupPlan, external: Sequence[Any], work: Work, step: int) -> Sample:
    """Every ``step``-th of the rows that count of each block of a group."""
    samples = [_thin(block, step) for block in _blocks(plan, external, work)]
    return add_in_order(samples)


def _thin(block: Block, step: int) -> Sample:
    shape = block.y.shape
    numbers = np.arange(0, block.y.size, step)
    if block.selects:
        numbers = np.flatnonzero(~block.left_out())[::step]
    rows = np.unravel_index(numbers, shape)

    def pick(array: np.ndarray[Any, Any]) -> FloatArray:
        return np.asarray(np.broadcast_to(array, shape)[rows], np.float64)

    sigma = None if block.sigma is None else pick(block.sigma)
    return Sample(pick(block.y), tuple(pick(c) for c in block.coords), sigma)


def _blocks(plan: GroupPlan, external: Sequence[Any], work: Work) -> Iterator[Block]:
    """Blocks of a group, given the values of ``plan.external`` in that order."""
    return read_blocks(plan, dict(zip(plan.external, external, strict=True)), work.layout)


def read_blocks(plan: GroupPlan, external: Mapping[Key, Any], layout: Layout) -> Iterator[Block]:
    """Make the blocks of a group one after the other, keeping only what later ones need."""
    values = dict(external)
    for step in plan.steps:
        for node, drop in step.nodes:
            values[node.key] = node(values)
            for key in drop:
                del values[key]
        yield layout.block([o.value if o.key is None else values[o.key] for o in step.operands])
        for key in step.drop:
            del values[key]


def add_in_order(sums: Sequence[SumT]) -> SumT:
    """Add sums from first to last."""
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total
