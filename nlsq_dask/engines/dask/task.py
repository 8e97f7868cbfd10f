"""What a task of the streaming tier does, on whichever worker it lands.

These functions are sent to workers by name. They keep nothing between calls that could not be
made again: the compiled kernel and the staging buffer are caches of the process.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cloudpickle

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Many, Survey
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.dask.cache import KeptGroup
from nlsq_dask.engines.dask.groups import GroupPlan, without_collections
from nlsq_dask.engines.dask.prefetch import read_ahead
from nlsq_dask.io.stage import STAGE_ROWS, Block, Layout
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.questions.question import (
    Request,
    answers_of_rows,
    no_costs,
    no_meat,
    no_rows,
    no_survey,
)
from nlsq_dask.questions.sample import Sample, thin
from nlsq_dask.user_model.model import ModelSpec

SumT = TypeVar("SumT", NormalEquations, FloatArray, Survey, Many, Sample)
RowSumT = TypeVar("RowSumT", NormalEquations, FloatArray, Survey, Many)

Group = GroupPlan | KeptGroup


@dataclass(frozen=True, slots=True)
class Work:
    """What all groups of a fit have in common.

    ``models`` are those that read together, ``read_ahead`` the blocks made ahead of the kernel.
    """

    spec: ModelSpec
    layout: Layout
    device: str | None
    stage_rows: int = STAGE_ROWS
    models: tuple[ModelSpec, ...] = ()
    read_ahead: int = 0


@without_collections()
def packed(value: Any) -> bytes:
    """A plan, or the common work, as bytes: the plans of 100,000 chunks as 2 MB, of 17 pickled."""
    return zlib.compress(cloudpickle.dumps(value), 1)


def load(blob: bytes) -> Any:
    """Unpickle the common work. As the result of a task it can be made again."""
    return pickle.loads(blob)


@without_collections()
def unpacked(blob: bytes) -> Any:
    """Make it of its bytes again. As the result of a task it can be made again."""
    return load(zlib.decompress(blob))


def run_group(
    plan: Group,
    external: Sequence[Any],
    work: Work,
    params: FloatArray,
    basis: FloatArray,
    observe_y: bool = False,
    scores: bool = False,
) -> NormalEquations:
    """Sum over the blocks of a group.

    Parameters
    ----------
    plan : GroupPlan or KeptGroup
    external : sequence
        Values of ``plan.external``, in that order.
    work : Work
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
    observe_y : bool
        Whether to compute the moments of y.
    scores : bool
        Whether to sum the products of the scores, where the loss is robust.
    """
    kernel = block_kernel(work.spec, work.device)
    return _sum(
        plan,
        external,
        work,
        lambda rows: kernel(params, basis, rows, observe_y, scores),
        no_rows(basis.shape[1]),
    )


def survey_group(
    plan: Group,
    external: Sequence[Any],
    work: Work,
    params: FloatArray,
    basis: FloatArray,
    candidates: FloatArray,
    observe_y: bool = False,
) -> Survey:
    """Sums at a point and the costs of candidates (k, p), over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    return _sum(
        plan,
        external,
        work,
        lambda rows: kernel.survey(params, basis, candidates, rows, observe_y),
        no_survey(basis.shape[1], len(candidates)),
    )


def group_costs(
    plan: Group, external: Sequence[Any], work: Work, candidates: FloatArray
) -> FloatArray:
    """Half the sums of squared residuals of candidates (k, p) over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    return _sum(
        plan,
        external,
        work,
        lambda rows: kernel.costs(candidates, rows),
        no_costs(len(candidates)),
    )


def group_meat(plan: Group, external: Sequence[Any], work: Work, params: FloatArray) -> FloatArray:
    """Sum of outer products of the scores, (p, p), over the blocks of a group."""
    kernel = block_kernel(work.spec, work.device)
    return _sum(
        plan,
        external,
        work,
        lambda rows: kernel.meat(params, rows),
        no_meat(params.size),
    )


def together_group(
    plan: Group, external: Sequence[Any], work: Work, requests: Sequence[Request]
) -> Many:
    """Answers to the requests of several models, over the blocks of a group."""
    asked = {request.model: work.models[request.model] for request in requests}
    kernels = {model: block_kernel(spec, work.device) for model, spec in asked.items()}
    return _sum(plan, external, work, *answers_of_rows(requests, kernels))


def thin_group(plan: Group, external: Sequence[Any], work: Work, step: int) -> Sample:
    """Every ``step``-th of the rows that count of each block of a group."""
    samples = [thin(block, step) for block in _blocks(plan, external, work)]
    return add_in_order(samples)


def _sum(
    group: Group,
    external: Sequence[Any],
    work: Work,
    of_rows: Callable[[Rows], RowSumT],
    nothing: Callable[[int], RowSumT],
) -> RowSumT:
    """Sum over the blocks of a group, or over its rows where they were kept."""
    weighted, stage_rows = work.layout.weighted, work.stage_rows
    if not isinstance(group, KeptGroup):
        blocks = _blocks(group, external, work)
        return accumulate(of_rows, nothing, blocks, weighted, stage_rows)
    return group.sum(
        of_rows,
        nothing,
        lambda: _blocks(group, external, work),
        block_kernel(work.spec, work.device),
        work.device,
        weighted,
        stage_rows,
    )


def _blocks(group: Group, external: Sequence[Any], work: Work) -> Iterator[Block]:
    """Blocks of a group, given the values of ``plan.external`` in that order."""
    plan = group.plan if isinstance(group, KeptGroup) else group
    values = dict(zip(plan.external, external, strict=True))
    return read_ahead(plan, values, work.layout, work.read_ahead)


def add_in_order(sums: Sequence[SumT]) -> SumT:
    """Add sums from first to last."""
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total
