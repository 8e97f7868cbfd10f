"""Where Dask's configuration says that tasks run: a cluster, or a local scheduler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dask import config
from dask.base import compute, get_scheduler
from dask.callbacks import Callback
from dask.local import get_sync as synchronous_get
from dask.system import CPU_COUNT
from dask.threaded import get as threaded_get
from dask.typing import Key

if TYPE_CHECKING:
    from distributed import Client


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


def computed(client: Client | None, *arrays: Any) -> Sequence[Any]:
    """Values of Dask arrays, computed together on a cluster or by Dask's local scheduler."""
    values: Sequence[Any] = (
        compute(*arrays) if client is None else client.compute(arrays, sync=True)
    )
    return values


def local_threads() -> int:
    """Tasks that Dask's local scheduler runs at one time, as it is configured now."""
    if get_scheduler() is synchronous_get:
        return 1
    executors = config.get("pool", None), config.get("scheduler", None)
    sizes = [getattr(executor, "_max_workers", None) for executor in executors]  # as Dask does
    return next(filter(None, [*sizes, config.get("num_workers", None)]), CPU_COUNT)


def runs_here() -> bool:
    """Whether Dask's local scheduler runs tasks in this process."""
    return local_scheduler() in (threaded_get, synchronous_get)


def local_scheduler() -> Callable[..., Any]:
    """The local scheduler that Dask is configured for; threads by default."""
    get: Callable[..., Any] | None = get_scheduler()
    return threaded_get if get is None or active_client() is not None else get


def local_get(
    graph: dict[Key, Any],
    keys: list[Key],
    threads: int | None,
    after_task: Callable[..., None] | None = None,
) -> Sequence[Any]:
    """Run a graph on the local scheduler that Dask is configured for; threads by default."""
    if not keys:
        return ()
    get = local_scheduler()
    if get is threaded_get and threads is not None and threads < local_threads():
        get = partial(get, num_workers=threads)
    # Handed over rather than registered with Dask, where fits in other threads would meet it.
    callbacks = [*Callback.active, (None, None, None, after_task, None)]
    results: Sequence[Any] = get(graph, keys, callbacks=callbacks)
    return results
