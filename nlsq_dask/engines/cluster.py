"""What a distributed cluster offers its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil

from nlsq_dask.core.memory_budget import WorkerMemory

if TYPE_CHECKING:
    from distributed import Client


def smallest_worker(client: Client) -> WorkerMemory | None:
    """Memory and threads of the worker that has the least memory a thread.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    WorkerMemory or None
        None if no worker has arrived yet: then nothing is known to plan for. A worker without a
        limit is taken to have its share of this machine's memory.
    """
    # Not client.scheduler_info(), whose answer the client overwrites every other second by one
    # that lists no workers.
    scheduler = client.scheduler
    assert scheduler is not None, "a client that was closed"
    identity: dict[str, Any] = client.sync(scheduler.identity, n_workers=-1)
    info = identity["workers"].values()
    share = psutil.virtual_memory().total // max(len(info), 1)
    workers = [WorkerMemory(w["memory_limit"] or share, w["nthreads"]) for w in info]
    return min(workers, key=lambda w: w.memory_bytes / w.threads, default=None)
