"""Where the tasks of a fit run: in this process, or on a cluster.

An executor is made once, from the argument ``client`` of a fit. Whatever differs between the two
places is asked of the executor, so that no other code looks for a client. Fits in memory have an
executor, too, so this file loads no Dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nlsq_dask.core.memory_budget import SOLVER_BYTES
from nlsq_dask.core.resources import available_memory
from nlsq_dask.core.worker_memory import WorkerMemory
from nlsq_dask.kernels.devices import DeviceChoice, device_names, find_device

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask.board_link import Board
    from nlsq_dask.engines.dask.cache import Keeping, WorkerRoom
    from nlsq_dask.engines.dask.groups import Stream
    from nlsq_dask.engines.dask.runners import Runner
    from nlsq_dask.engines.dask.signals import Show
    from nlsq_dask.engines.dask.task import Work
    from nlsq_dask.engines.dask.tree import BlockProgress

# Fraction of the memory available to this process that kept rows take by default.
LOCAL_SHARE = 0.5


class Executor(Protocol):
    """Runs the tasks of fits: Dask's local scheduler in this process, or a cluster."""

    @property
    def base_bytes(self) -> int:
        """Memory of a process that runs tasks, before it reads data."""
        ...

    @property
    def shares_memory(self) -> bool:
        """Whether tasks may write into the memory of this process."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether no task can run here any more."""
        ...

    def check(self) -> None:
        """Refuse a client with which a fit would hang."""
        ...

    def check_versions(self) -> None:
        """Refuse workers without this package, or with other versions of it or of JAX."""
        ...

    def check_devices(self, devices: DeviceChoice) -> None:
        """Refuse devices that the processes that run tasks do not know by name."""
        ...

    def device_names(self, devices: DeviceChoice) -> tuple[str, ...]:
        """Names of the devices of a choice, as far as this process can see them."""
        ...

    def uses_gpu(self, devices: DeviceChoice) -> bool:
        """Whether a plan counts with the memory of GPUs of this process."""
        ...

    def vector_bits(self, here: int) -> int:
        """Bits of vectors that all processes can compile for, if this process can for `here`."""
        ...

    def parallel(self, most: int | None = None) -> tuple[int, int]:
        """Number of workers, and of tasks at one time, at most so many in this process."""
        ...

    def local_threads(self) -> int | None:
        """Tasks at one time in this process; None if tasks run elsewhere."""
        ...

    def smallest_worker(self) -> WorkerMemory | None:
        """The worker with the least memory a thread; None if there is no worker."""
        ...

    def rooms(self, read_bytes: int, n_bytes: int | None) -> list[WorkerRoom]:
        """Memory for kept rows in each process.

        Parameters
        ----------
        read_bytes : int
            Decoded bytes that each thread reads at one time.
        n_bytes : int or None
            Most bytes of kept rows in each process; None is as many as there is room for.
        """
        ...

    def runner(
        self,
        stream: Stream,
        work: Work,
        progress: BlockProgress,
        *,
        threads: int | None,
        keeping: Keeping | None,
        show: Show,
    ) -> Runner:
        """Runner of the groups of a stream.

        Parameters
        ----------
        stream : Stream
        work : Work
            What all groups have in common.
        progress : callable
            Called as ``progress(blocks_done, blocks)``.
        threads : int or None
            Most groups at one time in this process.
        keeping : Keeping or None
            Which groups keep their rows; None is no group.
        show : callable
            Called with a few words if tasks wait, as for a store that fails.
        """
        ...

    def compute(self, *arrays: Any) -> Sequence[Any]:
        """Compute Dask arrays together."""
        ...

    def most_handed_out(self, wanted: int) -> int | None:
        """Most tasks in each of the graphs of :meth:`run_each`, of the number that is wanted.

        None stands for one graph of all tasks.
        """
        ...

    def run_each(
        self,
        graphs: Iterable[tuple[Mapping[Any, Any], Sequence[Any]]],
        done: Callable[[Any], None],
    ) -> None:
        """Run tasks of graphs, and call `done` with the result of each task when it comes.

        Parameters
        ----------
        graphs : iterable of (dict, sequence of key)
            Graphs, each with the keys of its tasks. A graph is taken when the tasks of the last are
            done, or nearly.
        done : callable
        """
        ...

    def in_each_process(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function once in each process that runs tasks."""
        ...

    def listen(self) -> None:
        """Hear the signals that tasks send to their fits."""
        ...

    def board(self) -> Board | None:
        """The board of fits of the dashboard, if fits are shown there."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Dask's local scheduler, as configured when tasks run: threads of this process by default."""

    base_bytes: ClassVar[int] = SOLVER_BYTES
    shares_memory: ClassVar[bool] = True
    is_closed: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing can be wrong."""

    def check_versions(self) -> None:
        """The versions are those of this process."""

    def check_devices(self, devices: DeviceChoice) -> None:
        """The names are those of this process."""

    def device_names(self, devices: DeviceChoice) -> tuple[str, ...]:
        """Names of the devices of a choice."""
        return device_names(devices)

    def uses_gpu(self, devices: DeviceChoice) -> bool:
        """Whether the devices of a choice are GPUs."""
        return bool(find_device(devices).platform != "cpu")

    def vector_bits(self, here: int) -> int:
        """Bits of the vectors that this process can compile for."""
        return here

    def parallel(self, most: int | None = None) -> tuple[int, int]:
        """No worker, and the number of tasks at one time."""
        threads = self.local_threads()
        return 0, threads if most is None else min(threads, most)

    def local_threads(self) -> int:
        """Tasks at one time in this process."""
        from nlsq_dask.engines.dask import scheduler  # an engine, loaded for use

        return scheduler.local_threads()

    def smallest_worker(self) -> None:
        """There is no worker."""
        return

    def rooms(self, read_bytes: int, n_bytes: int | None) -> list[WorkerRoom]:  # noqa: ARG002
        """Memory for kept rows in this process. Tasks in other processes keep no rows."""
        from nlsq_dask.engines.dask.cache import WorkerRoom  # an engine, loaded for use
        from nlsq_dask.engines.dask.scheduler import runs_here

        if not runs_here():
            return []
        room = int(LOCAL_SHARE * available_memory()) if n_bytes is None else n_bytes
        return [WorkerRoom(None, 1, room)]

    def runner(
        self,
        stream: Stream,
        work: Work,
        progress: BlockProgress,
        *,
        threads: int | None,
        keeping: Keeping | None,
        show: Show,
    ) -> Runner:
        """Runner of the groups of a stream on the local scheduler."""
        from nlsq_dask.engines.dask.runners import LocalRunner  # an engine, loaded for use

        return LocalRunner(stream, work, progress, threads, keeping, show)

    def compute(self, *arrays: Any) -> Sequence[Any]:
        """Compute Dask arrays together."""
        from dask.base import compute  # loaded for use

        values: Sequence[Any] = compute(*arrays)
        return values

    def most_handed_out(self, wanted: int) -> int | None:
        """As many as wanted, but all where Dask starts new processes for each graph."""
        from nlsq_dask.engines.dask.scheduler import runs_here  # an engine, loaded for use

        return wanted if runs_here() else None

    def run_each(
        self,
        graphs: Iterable[tuple[Mapping[Any, Any], Sequence[Any]]],
        done: Callable[[Any], None],
    ) -> None:
        """Run tasks of graphs, and call `done` with the result of each task when it comes."""
        from nlsq_dask.engines.dask.scheduler import local_get  # an engine, loaded for use

        for graph, keys in graphs:
            wanted = set(keys)

            def note(key: Any, result: Any, *_: object, wanted: set[Any] = wanted) -> None:
                if key in wanted:
                    done(result)

            local_get(dict(graph), list(keys), None, note)

    def in_each_process(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in this process."""
        function(*args)

    def listen(self) -> None:
        """Signals of this process are heard without a call."""

    def board(self) -> None:
        """There is no dashboard."""
        return


#: Dask's local scheduler.
LOCAL = LocalExecutor()


def executor_of(client: Client | None, *, lazy: bool = True) -> Executor:
    """The executor that the argument ``client`` of a fit stands for.

    Parameters
    ----------
    client : distributed.Client or None
        None is the cluster that Dask would compute on now, if there is one.
    lazy : bool
        Whether the data are lazy. Data in memory go to a cluster only if the caller names the
        cluster: on the active cluster they would take the same memory once more.

    Raises
    ------
    InputTypeError
        If `client` is no client.
    """
    if client is None and lazy:
        from nlsq_dask.engines.dask.scheduler import active_client  # an engine, loaded for use

        client = active_client()
    if client is None:
        return LOCAL
    from nlsq_dask.engines.dask.cluster_executor import ClusterExecutor  # an engine, loaded for use

    return ClusterExecutor(client)


def running(executor: Executor) -> Executor:
    """The executor of a fit, or where Dask would compute now, if the client was closed since."""
    return executor_of(None) if executor.is_closed else executor
