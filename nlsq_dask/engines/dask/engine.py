"""The streaming tier: every pass is a set of group tasks and a tree of sums.

The plan (:mod:`~nlsq_dask.engines.dask.groups`) is made once a fit. A pass sends parameters and a
basis to every group, and gets p x p numbers back, which are added in the groups' order: the same
bits for any scheduler and any number of workers. Groups run on a :class:`distributed.Client` where
there is one, else on Dask's local scheduler in this process.

Where a cache is asked for, groups keep their staged rows (:mod:`~nlsq_dask.engines.dask.cache`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nlsq_dask._errors import all_left_out
from nlsq_dask.core.memory_budget import SAMPLE_ROWS
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import Many, Survey
from nlsq_dask.core.resources import available_memory
from nlsq_dask.engines.dask.cache import CacheChoice, Keeping, WorkerRoom, plan_keeping
from nlsq_dask.engines.dask.cluster import worker_rooms
from nlsq_dask.engines.dask.groups import StreamPlan, plan_stream
from nlsq_dask.engines.dask.prefetch import prefetch_depth
from nlsq_dask.engines.dask.runners import ClusterRunner, LocalRunner, Runner
from nlsq_dask.engines.dask.sampling import sample_blocks
from nlsq_dask.engines.dask.scheduler import runs_here
from nlsq_dask.engines.dask.task import (
    Work,
    group_costs,
    group_meat,
    run_group,
    survey_group,
    thin_group,
    together_group,
)
from nlsq_dask.engines.first_look import look_at
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.questions.question import Request
from nlsq_dask.questions.sample import Sample
from nlsq_dask.user_model.model import ModelSpec

if TYPE_CHECKING:
    from distributed import Client

# Share of the memory available to this process that kept rows take unless told otherwise.
LOCAL_SHARE = 0.5

# Called with the number of the pass, the blocks done so far in it, and all blocks.
PassProgress = Callable[[int, int, int], None]

# So many times as many blocks are read for a sample where nearly all rows were left out.
SAMPLE_GROWTH = 8


def keeping_of(
    data: Observations,
    plan: StreamPlan,
    stage_rows: int,
    client: Client | None,
    cache: CacheChoice,
    cache_bytes: int | None,
) -> Keeping:
    """Which groups keep their rows after the first pass; see :class:`DaskEvaluator`."""
    rooms: list[WorkerRoom] = []
    if cache is False:
        pass
    elif client is not None:
        ahead = (1 + prefetch_depth(plan)) * plan.block_bytes
        rooms = worker_rooms(client, ahead, cache_bytes)
    elif runs_here():  # tasks of other processes forget
        if cache_bytes is None:
            cache_bytes = int(LOCAL_SHARE * available_memory())
        rooms = [WorkerRoom(None, 1, cache_bytes)]
    row_values = len(data.coords) + 1 + (data.sigma is not None)
    return plan_keeping(plan, cache, row_values, stage_rows, rooms)


class DaskEvaluator:
    """Normal equations of data in Dask arrays, one pass a call.

    Parameters
    ----------
    data : Observations
        Dask and NumPy arrays.
    spec : ModelSpec
        A row-wise model.
    device : {"cpu", "gpu"} or None
        Where the kernel runs on each worker.
    client : distributed.Client or None
        Cluster to run on; None runs on Dask's local scheduler.
    progress : callable or None
        Called as ``progress(pass_number, blocks_done, blocks)``.
    plan : StreamPlan, optional
        Groups, where they were planned already.
    stage_rows : int
        Rows of a thread's staging buffer.
    threads : int, optional
        Most groups at one time on Dask's local scheduler.
    sample_rows : int
        Rows to which a sample is thinned.
    models : sequence of ModelSpec
        Models that :meth:`together` is asked about, by number.
    cache : bool or "auto"
        Whether rows stay staged in memory after the first pass: True for the blocks that fit,
        "auto" only where these are a quarter of all rows, False for none.
    cache_bytes : int, optional
        Memory that kept rows may take, in bytes: in this process, or in each worker of a cluster,
        but never more there than 60 % of its limit, less what it holds and what reading takes. By
        default half of what is available here, and as much as a worker has.

    Attributes
    ----------
    n_passes : int
        Passes over all rows so far, kept or read.
    keeping : Keeping
        Which groups are kept. Kept rows are read once; again only where a worker was lost.
    """

    def __init__(
        self,
        data: Observations,
        spec: ModelSpec,
        device: str | None = None,
        client: Client | None = None,
        progress: PassProgress | None = None,
        plan: StreamPlan | None = None,
        stage_rows: int = STAGE_ROWS,
        threads: int | None = None,
        sample_rows: int = SAMPLE_ROWS,
        models: Sequence[ModelSpec] = (),
        cache: CacheChoice = False,
        cache_bytes: int | None = None,
    ) -> None:
        self._sample_rows = sample_rows
        self.plan = plan or plan_stream(data)
        self.n_passes = 0
        self._moments: Moments | None = None  # known after the first pass
        self._samples: dict[int, Sample] = {}  # by the number of blocks
        depth = prefetch_depth(self.plan)
        self._work = Work(spec, data.layout, device, stage_rows, tuple(models), depth)
        self._client = client
        self._threads = threads
        self._data = data
        self._progress = progress
        self.keeping = keeping_of(data, self.plan, stage_rows, client, cache, cache_bytes)
        self._runner = self._runner_of(self.plan, self.keeping)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def evaluate(
        self, params: FloatArray, basis: FloatArray, scores: bool = False
    ) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.questions.Evaluator`."""
        self.n_passes += 1
        observe_y = self._moments is None
        name = f"block-pass-{self.n_passes}"
        sums = self._runner.run(name, run_group, params, basis, observe_y, scores)
        assert isinstance(sums, NormalEquations)
        return self._with_moments(sums)

    def survey(self, params: FloatArray, basis: FloatArray, candidates: FloatArray) -> Survey:
        """Sums at a point and the costs of candidates (k, p), in one pass over all rows."""
        self.n_passes += 1
        observe_y = self._moments is None
        name = f"survey-pass-{self.n_passes}"
        found = self._runner.run(name, survey_group, params, basis, candidates, observe_y)
        assert isinstance(found, Survey)
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
        self.n_passes += 1
        name = f"costs-pass-{self.n_passes}"
        return np.asarray(self._runner.run(name, group_costs, candidates))

    def meat(self, params: FloatArray) -> FloatArray:
        """Sum of outer products of the rows' scores, (p, p), in one pass over all rows."""
        self.n_passes += 1
        name = f"meat-pass-{self.n_passes}"
        return np.asarray(self._runner.run(name, group_meat, params))

    def together(self, requests: Sequence[Request]) -> tuple[Any, ...]:
        """Answer requests of several models, in one pass over all rows."""
        self.n_passes += 1
        name = f"models-pass-{self.n_passes}"
        found = self._runner.run(name, together_group, list(requests))
        assert isinstance(found, Many)
        return found.answers

    def sample(self, least: int = 1, *, whole: bool = False) -> tuple[Observations, bool]:
        """Rows of a few whole chunks, spread over the chunk grid of every dimension.

        Parameters
        ----------
        least : int
            Rows that must be among them, as many as a model has parameters.
        whole : bool
            Read all blocks instead.

        Returns
        -------
        rows : Observations
            In memory, flat, without rows that are left out; about `sample_rows` rows at most, of at
            most 2 % of the blocks, or of 16 blocks, a quarter of fewer than 64, where that is more.
            Where these hold fewer than `least` rows that count, of more blocks.
        all_read : bool
            Whether these are all blocks. That is a pass, and counts as one.

        Raises
        ------
        InputError
            If all rows are left out.
        """
        few = self.plan.n_blocks if whole else sample_blocks(self.plan.n_blocks)
        rows = self._thinned(few)
        while rows.y.size < least and few < self.plan.n_blocks:
            few *= SAMPLE_GROWTH
            rows = self._thinned(few)
        if not rows.y.size:
            raise all_left_out(self._data.n_rows, self._data.causes)
        taken = self._data.sample_of(rows.y, rows.coords, rows.sigma)
        return taken, few >= self.plan.n_blocks

    def _thinned(self, n_blocks: int) -> Sample:
        """Rows of so many blocks, read once."""
        if n_blocks in self._samples:
            return self._samples[n_blocks]
        block_rows = math.prod(map(max, self.plan.chunks))
        plan = plan_stream(self._data, block_rows, most_blocks=n_blocks)
        runner = self._runner_of(plan)
        rows = runner.run("sample", thin_group, -(-plan.n_rows // self._sample_rows))
        runner.close()
        self.n_passes += n_blocks >= self.plan.n_blocks
        assert isinstance(rows, Sample)
        self._samples[n_blocks] = rows
        return rows

    def _runner_of(self, plan: StreamPlan, keeping: Keeping | None = None) -> Runner:
        if self._client is None:
            return LocalRunner(plan, self._work, self._report, self._threads, keeping)
        return ClusterRunner(plan, self._work, self._client, self._report, keeping)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self.n_passes, done, total)
