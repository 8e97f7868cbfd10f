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

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.groups import GroupPlan, Operand
from nlsq_dask.io.stage import STAGE_ROWS, Block
from nlsq_dask.kernels.block import block_kernel
from nlsq_dask.kernels.model import ModelSpec

SumT = TypeVar("SumT", NormalEquations, FloatArray, "Sample")


@dataclass(frozen=True, slots=True)
class Work:
    """What all groups of a fit have in common."""

    spec: ModelSpec
    weighted: bool
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
    """
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    zero = NormalEquations.zero(basis.shape[1])
    return accumulate(
        lambda rows: kernel(params, basis, rows), zero, blocks, work.weighted, work.stage_rows
    )


def group_costs(
    plan: GroupPlan, external: Sequence[Any], work: Work, candidates: FloatArray
) -> FloatArray:
    """Half the sums of squared residuals of candidates (k, p) over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    blocks = _blocks(plan, external, work)
    zero = np.zeros(len(candidates))
    return accumulate(
        lambda rows: kernel.costs(candidates, rows), zero, blocks, work.weighted, work.stage_rows
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
    """Every ``step``-th row of each block of a group."""
    samples = [_thin(block, step) for block in _blocks(plan, external, work)]
    return add_in_order(samples)


def _thin(block: Block, step: int) -> Sample:
    shape = block.y.shape
    rows = np.unravel_index(np.arange(0, block.y.size, step), shape)

    def pick(array: np.ndarray[Any, Any]) -> FloatArray:
        return np.asarray(np.broadcast_to(array, shape)[rows], np.float64)

    sigma = None if block.sigma is None else pick(block.sigma)
    return Sample(pick(block.y), tuple(pick(c) for c in block.coords), sigma)


def _blocks(plan: GroupPlan, external: Sequence[Any], work: Work) -> Iterator[Block]:
    """Blocks of a group, given the values of ``plan.external`` in that order."""
    return read_blocks(plan, dict(zip(plan.external, external, strict=True)), work.weighted)


def read_blocks(plan: GroupPlan, external: Mapping[Key, Any], weighted: bool) -> Iterator[Block]:
    """Make the blocks of a group one after the other, keeping only what later ones need."""
    values = dict(external)
    for step in plan.steps:
        for node, drop in step.nodes:
            values[node.key] = node(values)
            for key in drop:
                del values[key]
        yield _block(step.operands, values, weighted)
        for key in step.drop:
            del values[key]


def add_in_order(sums: Sequence[SumT]) -> SumT:
    """Add sums from first to last."""
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total


def _block(operands: Sequence[Operand], values: Mapping[Key, Any], weighted: bool) -> Block:
    arrays = [np.asarray(o.value if o.key is None else values[o.key]) for o in operands]
    sigma = arrays.pop() if weighted else None
    return Block(arrays[0], tuple(arrays[1:]), sigma)
