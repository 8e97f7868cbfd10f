"""Memory and threads of the workers of a distributed cluster."""

from __future__ import annotations

import sys
from importlib import metadata
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psutil
from dask import config

from nlsq_dask import _errors
from nlsq_dask.core.worker_memory import CHUNKS_A_THREAD, WORKER_BASE_BYTES, WorkerMemory
from nlsq_dask.engines.dask.ask_workers import ask_workers
from nlsq_dask.engines.dask.cache import WorkerRoom

if TYPE_CHECKING:
    from distributed import Client

# A worker spills when its memory reaches this fraction of its limit, by Dask's own default
# (``distributed.worker.memory.target``). Kept rows stay below. At 80 % a worker pauses, and a pass
# hangs once all workers pause.
TARGET_SHARE = 0.6

# A worker pauses at this fraction, by Dask's own default (``distributed.worker.memory.pause``).
PAUSE_SHARE = 0.8

# Errors of a worker that lacks a package.
PACKAGE_ERRORS = (ImportError, AttributeError)

_looked_at: WeakKeyDictionary[Client, set[str]] = WeakKeyDictionary()  # workers of each client

# Bytes that stay free beside the memory that a worker reports: with 128 MB of rows kept beyond the
# target, both workers of a cluster with limits of 572 MB paused.
SPARE_BYTES = 100_000_000


def smallest_worker(client: Client) -> WorkerMemory | None:
    """Memory and threads of the worker that has the least memory a thread.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    WorkerMemory or None
        None if no worker has arrived yet. A worker without a memory limit counts with an equal
        share of this machine's memory.
    """
    info = _workers(client).values()
    workers = [WorkerMemory(w["memory_limit"], w["nthreads"]) for w in info]
    return min(workers, key=lambda w: w.memory_bytes / w.threads, default=None)


def pause_bytes(worker: WorkerMemory) -> float:
    """Memory at which Dask pauses a worker, if the worker is configured as this process is."""
    share = config.get("distributed.worker.memory.pause", PAUSE_SHARE)
    return worker.memory_bytes * float(share) if share else float("inf")


def worker_rooms(client: Client, read_bytes: int, n_bytes: int | None = None) -> list[WorkerRoom]:
    """Memory for kept rows on each worker, in the order of the addresses.

    Parameters
    ----------
    client : distributed.Client
    read_bytes : int
        Decoded bytes that each thread reads at one time.
    n_bytes : int, optional
        Most bytes of kept rows on each worker; by default as many as the worker has room for.
    """
    rooms = []
    for address, worker in sorted(_workers(client).items()):
        threads = worker["nthreads"]
        used = max(worker["metrics"]["memory"], WORKER_BASE_BYTES) + SPARE_BYTES
        reading = threads * CHUNKS_A_THREAD * read_bytes
        room = max(int(TARGET_SHARE * worker["memory_limit"]) - used - reading, 0)
        rooms.append(WorkerRoom(address, threads, room if n_bytes is None else min(room, n_bytes)))
    return rooms


def _workers(client: Client) -> dict[str, Any]:
    """The scheduler's record of each worker, by address.

    A worker without a memory limit gets an equal share of this machine's memory.
    """
    # client.scheduler_info() will not do: every other second the client overwrites its answer by an
    # answer without workers.
    scheduler = client.scheduler
    assert scheduler is not None, "a client that was closed"
    identity: dict[str, Any] = client.sync(scheduler.identity, n_workers=-1)
    workers: dict[str, Any] = identity["workers"]
    share = psutil.virtual_memory().total // max(len(workers), 1)
    return {a: {**w, "memory_limit": w["memory_limit"] or share} for a, w in workers.items()}


def check_versions(client: Client) -> None:
    """Refuse workers without this package, or with other versions of it or of JAX.

    Workers that were looked at before are not asked again.

    Raises
    ------
    InputError
        Naming the versions, and workers.
    """
    known = _looked_at.setdefault(client, set())
    new = [address for address in client.nthreads() if address not in known]
    if not new:
        return
    here = {"nlsq_dask": sys.modules["nlsq_dask"].__version__, "jax": metadata.version("jax")}
    # Functions of the standard library, which every worker can unpickle. JAX is not imported.
    there = {
        "nlsq_dask": ask_workers(client, resolve_name, "nlsq_dask:__version__", workers=new),
        "jax": ask_workers(client, metadata.version, "jax", workers=new),
    }
    for name, versions in there.items():
        found = {a: None if isinstance(v, PACKAGE_ERRORS) else v for a, v in versions.items()}
        # A worker that has just left has another kind of error or no value, and nothing to run.
        wrong = {a: v for a, v in found.items() if v is None or isinstance(v, str)}
        wrong = {a: v for a, v in wrong.items() if v != here[name]}
        if wrong:
            raise _errors.workers_differ(name, here[name], wrong)
    known.update(new)


def worker_threads(client: Client) -> tuple[int, ...]:
    """Threads of each worker; empty if no worker has arrived yet."""
    return tuple(client.nthreads().values())
