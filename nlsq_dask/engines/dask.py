"""The streaming tier: every pass is a set of group tasks and a tree of sums.

The plan (:mod:`~nlsq_dask.engines.groups`) is made once a fit. A pass sends parameters and a basis
to every group, and gets p x p numbers back, which are added in the groups' order: the same bits
for any scheduler and any number of workers. Groups run on a :class:`distributed.Client` where
there is one, else on Dask's local scheduler in this process.

On a cluster the plans are results of tasks, so that a worker that dies takes nothing along: the
scheduler makes its plans and sums again elsewhere.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import cloudpickle
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.threaded import get as threaded_get
from dask.typing import Key

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.engines.group_task import Work, add_in_order, load, run_group
from nlsq_dask.engines.groups import StreamPlan, plan_stream
from nlsq_dask.io.sources import Observations
from nlsq_dask.kernels.model import ModelSpec

if TYPE_CHECKING:
    from distributed import Client, Future

# Sums that one task of the tree adds. Widths of 8 to 32 were equally fast.
TREE_WIDTH = 32

# Times a failed task is tried again before the fit fails: storage errors on networks pass.
RETRIES = 2

# Called with the number of the pass, the blocks done so far in it, and all blocks.
PassProgress = Callable[[int, int, int], None]


class Runner(Protocol):
    """Where groups run."""

    def run(self, number: int, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all groups."""
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
    """

    def __init__(
        self,
        data: Observations,
        spec: ModelSpec,
        device: str | None = None,
        client: Client | None = None,
        progress: PassProgress | None = None,
    ) -> None:
        self.plan = plan_stream(data)
        self.n_passes = 0
        work = Work(spec, data.sigma is not None, device)
        report = progress or _no_progress
        self._runner: Runner = (
            LocalRunner(self.plan, work, report)
            if client is None
            else ClusterRunner(self.plan, work, client, report)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def evaluate(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.normal_equations.Evaluator`."""
        self.n_passes += 1
        return self._runner.run(self.n_passes, params, basis)


class LocalRunner:
    """Groups as tasks of Dask's local scheduler: the configured one, or threads on all cores."""

    def __init__(self, plan: StreamPlan, work: Work, progress: PassProgress) -> None:
        self._plan = plan
        self._work = work
        self._progress = progress
        keys = list(plan.shared_keys)
        self._shared = dict(zip(keys, _local_get(dict(plan.shared), keys), strict=True))

    def run(self, number: int, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all groups."""
        blocks: dict[Key, int] = {}
        graph: dict[Key, Any] = {}
        for i, group in enumerate(self._plan.groups):
            key: Key = (f"nlsq-block-pass-{number}", i)
            external = tuple(self._shared[k] for k in group.external)
            inputs = (DataNode(None, v) for v in (group, external, self._work, params, basis))
            graph[key] = Task(key, run_group, *inputs)
            blocks[key] = len(group.steps)
        for node, parts in _tree(list(graph), f"nlsq-reduce-pass-{number}"):
            graph[node] = Task(node, add_in_order, List(*(TaskRef(part) for part in parts)))
        root = next(reversed(graph))
        with _BlockCounter(number, blocks, self._plan.n_blocks, self._progress):
            (total,) = _local_get(graph, [root])
        assert isinstance(total, NormalEquations)
        return total

    def close(self) -> None:
        """Forget what was computed before the first pass."""
        self._shared = {}


class ClusterRunner:
    """Groups as tasks of a distributed cluster.

    Keys carry an identity of the fit and the number of the pass: the scheduler never runs a key
    again that it still holds. Their first words stay the same from pass to pass, since the
    scheduler learns durations, and the dashboard shows tasks, by them.
    """

    def __init__(
        self, plan: StreamPlan, work: Work, client: Client, progress: PassProgress
    ) -> None:
        self._client = client
        self._progress = progress
        self._n_blocks = plan.n_blocks
        self._fit = uuid.uuid4().hex
        self._sizes = [len(group.steps) for group in plan.groups]
        self._work = self._send("nlsq-work", [work])[0]
        self._groups = self._send("nlsq-plan", plan.groups)
        keys = list(plan.shared_keys)
        futures = client.get(dict(plan.shared), keys, sync=False) if keys else []
        shared = dict(zip(keys, futures, strict=True))
        self._external = [
            [shared[k] if k in shared else self._existing(k) for k in group.external]
            for group in plan.groups
        ]

    def run(self, number: int, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """One pass over all groups."""
        from distributed import as_completed

        futures = self._client.map(
            run_group,
            self._groups,
            self._external,
            key=[f"nlsq-block-pass-{number}-{i}-{self._fit}" for i in range(len(self._groups))],
            work=self._work,
            params=params,
            basis=basis,
            retries=RETRIES,
        )
        sizes = {f.key: size for f, size in zip(futures, self._sizes, strict=True)}
        parts: dict[Key, Future[Any]] = {f.key: f for f in futures}
        for key, keys in _tree([f.key for f in futures], f"nlsq-reduce-pass-{number}-{self._fit}"):
            name = "-".join(map(str, key)) if isinstance(key, tuple) else str(key)
            parts[key] = self._client.submit(
                add_in_order, [parts[k] for k in keys], key=name, pure=False
            )
        done = 0
        for future in as_completed(futures):
            done += sizes[future.key] if future.status == "finished" else 0
            self._progress(number, done, self._n_blocks)
        total = next(reversed(parts.values())).result()
        assert isinstance(total, NormalEquations)
        return total

    def close(self) -> None:
        """Let the cluster forget the plans."""
        self._groups, self._external = [], []

    def _send(self, name: str, values: Sequence[Any]) -> list[Future[Any]]:
        """Values as results of tasks, made from bytes: the scheduler would run graph nodes."""
        blobs = [cloudpickle.dumps(value) for value in values]
        keys = [f"{name}-{i}-{self._fit}" for i in range(len(blobs))]
        futures: list[Future[Any]] = self._client.map(load, blobs, key=keys)
        return futures

    def _existing(self, key: Key) -> Future[Any]:
        """What the user persisted on the cluster before."""
        from distributed import Future

        future: Future[Any] = Future(key, self._client)
        return future


class _BlockCounter(Callback):
    """Counts blocks as Dask's local scheduler finishes their groups."""

    def __init__(
        self, number: int, sizes: dict[Key, int], n_blocks: int, progress: PassProgress
    ) -> None:
        super().__init__(posttask=self._count)  # type: ignore[no-untyped-call]
        self._pass = number
        self._sizes = sizes
        self._n_blocks = n_blocks
        self._progress = progress
        self._done = 0

    def _count(self, key: Key, *_: object) -> None:
        if key in self._sizes:
            self._done += self._sizes[key]
            self._progress(self._pass, self._done, self._n_blocks)


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


def _local_get(graph: dict[Key, Any], keys: list[Key]) -> Sequence[Any]:
    """Run a graph on the local scheduler that Dask is configured for; threads by default."""
    if not keys:
        return ()
    get = get_scheduler()
    if get is None or active_client() is not None:
        get = threaded_get
    results: Sequence[Any] = get(graph, keys)
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


def _no_progress(number: int, done: int, total: int) -> None:
    """Show nothing."""
