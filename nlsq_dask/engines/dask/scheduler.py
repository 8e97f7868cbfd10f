"""The cluster or local scheduler that Dask is configured to compute on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dask import config
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.local import get_sync as synchronous_get
from dask.system import CPU_COUNT
from dask.threaded import get as threaded_get
from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.dask.signals import worker_here

if TYPE_CHECKING:
    from distributed import Client


def active_client() -> Client | None:
    """The client of the cluster that Dask would compute on now.

    Dask's configuration decides, as for ``dask.compute``. None stands for a local scheduler.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    owner = getattr(_scheduler(), "__self__", None)
    return owner if isinstance(owner, distributed.Client) else None


def _scheduler() -> Callable[..., Any] | None:
    """What Dask would compute with now."""
    try:
        get: Callable[..., Any] | None = get_scheduler()
    except RuntimeError:  # Dask refuses an active client that is asynchronous
        raise _errors.client_asynchronous() from None
    return get


def local_threads() -> int:
    """Number of tasks that Dask's local scheduler, as configured now, runs at one time."""
    if _scheduler() is synchronous_get:
        return 1
    executors = config.get("pool", None), config.get("scheduler", None)
    sizes = [
        getattr(executor, "_max_workers", None) for executor in executors
    ]  # in Dask's own order
    return next(filter(None, [*sizes, config.get("num_workers", None)]), CPU_COUNT)


def threads_here() -> int:
    """Number of tasks that the process of this task runs at one time."""
    worker = worker_here()
    return local_threads() if worker is None else int(worker.state.nthreads)


def runs_here() -> bool:
    """Whether Dask's local scheduler runs tasks in this process."""
    return local_scheduler() in (threaded_get, synchronous_get)


def local_scheduler() -> Callable[..., Any]:
    """The local scheduler that Dask is configured to use; threads by default."""
    get = _scheduler()
    return threaded_get if get is None or active_client() is not None else get


def local_get(
    graph: dict[Key, Any],
    keys: list[Key],
    threads: int | None,
    after_task: Callable[..., None] | None = None,
) -> Sequence[Any]:
    """Run a graph on the local scheduler that Dask is configured to use; threads by default."""
    if not keys:
        return ()
    get = local_scheduler()
    if get is threaded_get and threads is not None and threads < local_threads():
        get = partial(get, num_workers=threads)
    # Callbacks registered with Dask would also be called for fits in other threads.
    callbacks = [*Callback.active, (None, None, None, after_task, None)]
    results: Sequence[Any] = get(graph, keys, callbacks=callbacks)
    return results
