"""The streaming tier: every pass is a set of group tasks and a tree of sums.

The plan (:mod:`~nlsq_dask.engines.groups`) is made once a fit. A pass sends parameters and a basis
to every group, and gets p x p numbers back, which are added in the groups' order: the same bits
for any scheduler and any number of workers. Groups run on a :class:`distributed.Client` where
there is one, else on Dask's local scheduler in this process.

Where a cache is asked for, groups keep their staged rows (:mod:`~nlsq_dask.engines.cache`).

On a cluster the plans are results of tasks, so that a worker that dies takes nothing along: the
scheduler makes its plans and sums again elsewhere.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from dask import config
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.local import get_sync as synchronous_get
from dask.system import CPU_COUNT
from dask.threaded import get as threaded_get
from dask.typing import Key

from nlsq_dask._errors import all_left_out
from nlsq_dask.core.memory_budget import SAMPLE_ROWS
from nlsq_dask.core.normal_equations import FloatArray, Many, Moments, NormalEquations, Survey
from nlsq_dask.core.resources import available_memory
from nlsq_dask.engines.cache import (
    CacheChoice,
    Keeping,
    KeptGroup,
    WorkerRoom,
    keep_nothing,
    plan_keeping,
)
from nlsq_dask.engines.cluster import worker_rooms
from nlsq_dask.engines.group_task import (
    Sample,
    Work,
    add_in_order,
    group_costs,
    group_meat,
    packed,
    run_group,
    survey_group,
    thin_group,
    together_group,
    unpacked,
)
from nlsq_dask.engines.groups import StreamPlan, plan_stream
from nlsq_dask.engines.prefetch import prefetch_depth
from nlsq_dask.engines.requests import Request
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.kernels.model import ModelSpec

if TYPE_CHECKING:
    from distributed import Client, Future

# Sums that one task of the tree adds. Widths of 8 to 32 were equally fast.
TREE_WIDTH = 32

# Times a failed task is tried again before the fit fails: storage errors on networks pass.
RETRIES = 2

# Share of the memory available to this process that kept rows take unless told otherwise.
LOCAL_SHARE = 0.5

# Called with the number of the pass, the blocks done so far in it, and all blocks.
PassProgress = Callable[[int, int, int], None]

# The same for one pass: blocks done, all blocks.
BlockProgress = Callable[[int, int], None]

# A sample is this fraction of the blocks, or so many blocks if that is more, of few blocks a part.
# Along sorted data the blocks must not lie further apart than what is to be found there is wide.
SAMPLE_FRACTION = 0.02
SAMPLE_BLOCKS = 16
SAMPLE_PART = 4

# So many times as many blocks are read for a sample where nearly all rows were left out.
SAMPLE_GROWTH = 8


def sample_blocks(n_blocks: int) -> int:
    """How many of so many blocks are read for a sample."""
    return max(int(SAMPLE_FRACTION * n_blocks), min(SAMPLE_BLOCKS, -(-n_blocks // SAMPLE_PART)))


class Runner(Protocol):
    """Where groups run."""

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum ``function(plan, external, work, *args)`` over all groups, in tasks of a name."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


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
        Memory that kept rows may take, in bytes: in this process, or in each worker of a cluster.
        By default half of what is available here; or 60 % of a worker's limit, less what it holds
        and what reading takes.

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
        depth = prefetch_depth(self.plan)
        self._work = Work(spec, data.layout, device, stage_rows, tuple(models), depth)
        self._client = client
        self._threads = threads
        self._data = data
        self._progress = progress
        rooms = self._rooms(cache_bytes) if cache else []
        row_values = len(data.coords) + 1 + (data.sigma is not None)
        self.keeping = plan_keeping(self.plan, cache, row_values, stage_rows, rooms)
        self._runner = self._runner_of(self.plan, self.keeping)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def evaluate(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.normal_equations.Evaluator`."""
        self.n_passes += 1
        observe_y = self._moments is None
        name = f"block-pass-{self.n_passes}"
        sums = self._runner.run(name, run_group, params, basis, observe_y)
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

    def sample(self) -> Observations:
        """Rows of a few whole chunks, spread over the chunk grid of every dimension.

        Returns
        -------
        Observations
            In memory, flat, without rows that are left out; about `sample_rows` rows at most, of at
            most 2 % of the blocks, or of 16 blocks, a quarter of fewer than 64, where that is more.
            Where these hold fewer rows that count than there are parameters, of more blocks.

        Raises
        ------
        InputError
            If all rows are left out.
        """
        few = sample_blocks(self.plan.n_blocks)
        rows = self._thinned(few)
        while rows.y.size < len(self._work.spec.names) and few < self.plan.n_blocks:
            few *= SAMPLE_GROWTH
            rows = self._thinned(few)
        if not rows.y.size:
            raise all_left_out(self._data.n_rows, self._data.causes)
        return Observations(rows.y, rows.coords, rows.sigma, self._data.structure, lazy=False)

    def _thinned(self, n_blocks: int) -> Sample:
        """Rows of so many blocks."""
        block_rows = math.prod(map(max, self.plan.chunks))
        plan = plan_stream(self._data, block_rows, most_blocks=n_blocks)
        runner = self._runner_of(plan)
        rows = runner.run("sample", thin_group, -(-plan.n_rows // self._sample_rows))
        runner.close()
        assert isinstance(rows, Sample)
        return rows

    def _runner_of(self, plan: StreamPlan, keeping: Keeping | None = None) -> Runner:
        if self._client is None:
            return LocalRunner(plan, self._work, self._report, self._threads, keeping)
        return ClusterRunner(plan, self._work, self._client, self._report, keeping)

    def _rooms(self, cache_bytes: int | None) -> list[WorkerRoom]:
        """Where rows may be kept, and in how many bytes."""
        if self._client is not None:
            ahead = (1 + self._work.read_ahead) * self.plan.block_bytes
            return worker_rooms(self._client, ahead, cache_bytes)
        if _local_scheduler() not in (threaded_get, synchronous_get):
            return []  # tasks of other processes forget
        if cache_bytes is None:
            cache_bytes = int(LOCAL_SHARE * available_memory())
        return [WorkerRoom(None, 1, cache_bytes)]

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self.n_passes, done, total)


class LocalRunner:
    """Groups as tasks of Dask's local scheduler: the configured one, or threads on all cores."""

    def __init__(
        self,
        plan: StreamPlan,
        work: Work,
        progress: BlockProgress,
        threads: int | None,
        keeping: Keeping | None = None,
    ) -> None:
        self._plan = plan
        self._groups = (keeping or keep_nothing(plan)).groups
        self._work = work
        self._progress = progress
        self._threads = threads
        keys = list(plan.shared_keys)
        self._shared = dict(zip(keys, _local_get(dict(plan.shared), keys, threads), strict=True))

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum over all groups; see :class:`Runner`."""
        blocks: dict[Key, int] = {}
        graph: dict[Key, Any] = {}
        for i, (plan, group) in enumerate(zip(self._plan.groups, self._groups, strict=True)):
            key: Key = (f"nlsq-{name}", i)
            external = tuple(self._shared[k] for k in plan.external)
            inputs = (DataNode(None, v) for v in (group, external, self._work, *args))
            graph[key] = Task(key, function, *inputs)
            blocks[key] = len(plan.steps)
        for node, parts in _tree(list(graph), f"nlsq-reduce-{name}"):
            graph[node] = Task(node, add_in_order, List(*(TaskRef(part) for part in parts)))
        root = next(reversed(graph))
        counter = _BlockCounter(blocks, self._plan.n_blocks, self._progress)
        (total,) = _local_get(graph, [root], self._threads, counter)
        return total

    def close(self) -> None:
        """Forget what was computed before the first pass, and the rows that were kept."""
        self._shared = {}
        for group in self._groups:
            if isinstance(group, KeptGroup):
                group.forget()


class ClusterRunner:
    """Groups as tasks of a distributed cluster.

    Keys carry an identity of the fit and the number of the pass: the scheduler never runs a key
    again that it still holds. Their first words stay the same from pass to pass, since the
    scheduler learns durations, and the dashboard shows tasks, by them.

    Groups of which rows are kept have a worker each, where they run if it is there.
    """

    def __init__(
        self,
        plan: StreamPlan,
        work: Work,
        client: Client,
        progress: BlockProgress,
        keeping: Keeping | None = None,
    ) -> None:
        self._client = client
        self._progress = progress
        self._n_blocks = plan.n_blocks
        self._fit = uuid.uuid4().hex
        self._sizes = [len(group.steps) for group in plan.groups]
        keeping = keeping or keep_nothing(plan)
        self._workers = keeping.workers
        self._work = self._map("nlsq-work", unpacked, [None], [packed(work)])
        blobs = [packed(group) for group in keeping.groups]
        self._groups = self._map("nlsq-plan", unpacked, keeping.workers, blobs)
        keys = list(plan.shared_keys)
        futures = client.get(dict(plan.shared), keys, sync=False) if keys else []
        shared = dict(zip(keys, futures, strict=True))
        self._external = [
            [shared[k] if k in shared else self._existing(k) for k in group.external]
            for group in plan.groups
        ]

    def run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Sum over all groups; see :class:`Runner`."""
        from distributed import as_completed

        n_groups = len(self._groups)
        futures = self._map(
            f"nlsq-{name}",
            function,
            self._workers,
            self._groups,
            self._external,
            self._work * n_groups,
            *([arg] * n_groups for arg in args),
        )
        sizes = {f.key: size for f, size in zip(futures, self._sizes, strict=True)}
        parts: dict[Key, Future[Any]] = {f.key: f for f in futures}
        for key, keys in _tree([f.key for f in futures], f"nlsq-reduce-{name}-{self._fit}"):
            parts[key] = self._client.submit(
                add_in_order, [parts[k] for k in keys], key="-".join(map(str, key)), pure=False
            )
        done = 0
        for future in as_completed(futures, loop=self._client.loop):
            done += sizes[future.key] if future.status == "finished" else 0
            self._progress(done, self._n_blocks)
        return next(reversed(parts.values())).result()

    def close(self) -> None:
        """Let the cluster forget the plans."""
        self._groups, self._external, self._work = [], [], []

    def _map(
        self,
        name: str,
        function: Callable[..., Any],
        workers: Sequence[str | None],
        *args: Sequence[Any],
    ) -> list[Future[Any]]:
        """Tasks of a function over arguments, each on its worker; None lets the scheduler choose.

        Groups travel as bytes, of which tasks make them: graph nodes in them the scheduler would
        run, and what is scattered dies with its worker.
        """
        futures: dict[int, Future[Any]] = {}
        of_worker: dict[str | None, list[int]] = defaultdict(list)
        for i, worker in enumerate(workers):
            of_worker[worker].append(i)
        for worker, numbers in of_worker.items():
            made = self._client.map(
                function,
                *([values[i] for i in numbers] for values in args),
                key=[f"{name}-{i}-{self._fit}" for i in numbers],
                retries=RETRIES,
                workers=worker,
                allow_other_workers=worker is not None,
            )
            futures.update(zip(numbers, made, strict=True))
        return [futures[i] for i in range(len(workers))]

    def _existing(self, key: Key) -> Future[Any]:
        """What the user persisted on the cluster before."""
        from distributed import Future

        future: Future[Any] = Future(key, self._client)
        return future


class _BlockCounter:
    """Counts blocks as Dask's local scheduler finishes their groups."""

    def __init__(self, sizes: dict[Key, int], n_blocks: int, progress: BlockProgress) -> None:
        self._sizes = sizes
        self._n_blocks = n_blocks
        self._progress = progress
        self._done = 0

    def __call__(self, key: Key, *_: object) -> None:
        """Note that a task is done."""
        if key in self._sizes:
            self._done += self._sizes[key]
            self._progress(self._done, self._n_blocks)


def active_client(client: Client | None = None) -> Client | None:
    """The cluster that Dask would compute on now, or None for a local scheduler.

    A client that is passed wins; then Dask's configuration decides, as it does for ``compute``.
    """
    if client is not None:
        return client
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    owner = getattr(get_scheduler(), "__self__", None)
    return owner if isinstance(owner, distributed.Client) else None


def local_threads() -> int:
    """Tasks that Dask's local scheduler runs at one time, as it is configured now."""
    if get_scheduler() is synchronous_get:
        return 1
    executors = config.get("pool", None), config.get("scheduler", None)
    sizes = [getattr(executor, "_max_workers", None) for executor in executors]  # as Dask does
    return next(filter(None, [*sizes, config.get("num_workers", None)]), CPU_COUNT)


def _local_scheduler() -> Callable[..., Any]:
    """The local scheduler that Dask is configured for; threads by default."""
    get: Callable[..., Any] | None = get_scheduler()
    return threaded_get if get is None or active_client() is not None else get


def _local_get(
    graph: dict[Key, Any],
    keys: list[Key],
    threads: int | None,
    after_task: Callable[..., None] | None = None,
) -> Sequence[Any]:
    """Run a graph on the local scheduler that Dask is configured for; threads by default."""
    if not keys:
        return ()
    get = _local_scheduler()
    if get is threaded_get and threads is not None and threads < local_threads():
        get = partial(get, num_workers=threads)
    # Handed over rather than registered with Dask, where fits in other threads would meet it.
    callbacks = [*Callback.active, (None, None, None, after_task, None)]
    results: Sequence[Any] = get(graph, keys, callbacks=callbacks)
    return results


def _tree(keys: list[Any], name: str) -> Iterator[tuple[tuple[str, int, int], list[Any]]]:
    """Nodes of a tree over keys, by level, the root last; neighbours are added in their order."""
    level = 0
    while level == 0 or len(keys) > 1:
        nodes = []
        for i, start in enumerate(range(0, len(keys), TREE_WIDTH)):
            node = (name, level, i)
            nodes.append(node)
            yield node, keys[start : start + TREE_WIDTH]
        keys = nodes
        level += 1
