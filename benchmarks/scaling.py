"""What a pass costs the scheduler of a cluster, by the number of workers.

The scheduler is a process of its own. The workers are simulated, some hundred in a process. Chunks
cost nothing to make, and the question asks nothing of their rows. So the workers only take tasks
and give answers. Of one pass:

- tasks: groups and their sums;
- scheduler ms, client ms: processor time of the process, for each task;
- in flight: most tasks that are with the workers at one time;
- KB to client: messages that the client receives, and the answer;
- setup s: what is done once a fit, before the first pass.

A thousand workers (``--most-workers 1000``) take minutes to start, and both cores while they work.
No bar: docs/reference/benchmarks.md derives from these figures what 1 TB and 100 TB cost.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import pickle
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
from distributed import Client, Scheduler, SchedulerPlugin, Worker
from distributed.protocol import dumps

from benchmarks.common import Row, arguments, report, stopwatch
from benchmarks.problems import EXPONENTIAL, FloatArray
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

#: Rows of a chunk: x and y are 64 MB, what a group holds.
CHUNK_ROWS = 4_000_000
WORKERS = (64, 256, 1000)

#: Workers of a process, and workers that start at one time.
IN_A_PROCESS = 250
STARTED_TOGETHER = 50


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, groups=2048, most_workers=256, repeat=3)
    options = parser.parse_args(argv)
    wanted = [n for n in WORKERS if n <= options.most_workers] or [options.most_workers]
    rows = [measure(n, options.groups, options.repeat) for n in wanted]
    return report(f"scaling: a pass of {options.groups} groups", rows, options.json)


def measure(n_workers: int, n_groups: int, repeat: int) -> Row:
    """One cluster."""
    with cluster_of(n_workers) as address, Client(address, set_as_default=False) as client:
        client.wait_for_workers(n_workers)
        client.register_plugin(InFlight())
        return {"workers": n_workers} | _measure(client, n_groups, repeat)


def _measure(client: Client, n_groups: int, repeat: int) -> Row:
    chunks = ((CHUNK_ROWS,) * n_groups,)
    x, y = (da.map_blocks(one_value, i, chunks=chunks, dtype=float) for i in (1.0, 2.0))
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    received = _counted_messages(client)
    executor = executor_of(client)
    setup, engine = stopwatch(lambda: open_engine(observe(x, y), Kernels((spec,), "cpu"), executor))
    passes: list[dict[str, float]] = []
    with engine:
        n_groups = len(engine.stream.groups)
        for number in range(1 + repeat):
            before, n_bytes, began = used(client), sum(received), time.process_time()
            answer = engine.ask(Nothing())
            own, after = time.process_time() - began, used(client)
            if number:  # workers learn in the first pass how long a task takes
                n_tasks = after["tasks"] - before["tasks"]
                passes.append(
                    {
                        "tasks": n_tasks,
                        "scheduler ms": 1e3 * (after["seconds"] - before["seconds"]) / n_tasks,
                        "client ms": 1e3 * own / n_tasks,
                        "in flight": after["in flight"],
                        "KB to client": (sum(received) - n_bytes + len(pickle.dumps(answer))) / 1e3,
                    }
                )
    return {name: float(np.median([row[name] for row in passes])) for name in passes[0]} | {
        "groups": n_groups,
        "setup s": setup,
    }


class Nothing(BlockQuestion[int]):
    """Asks nothing of a block. The answer is the number of blocks."""

    task_name = "nothing"
    calls_model = False

    def zero(self) -> int:
        return 0

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> int:  # noqa: ARG002
        return 1


class InFlight(SchedulerPlugin):
    """Counts the tasks that have ended, and the tasks that are with the workers."""

    name = "in-flight"
    ended = here = most = 0

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        del key
        self.here += (finish == "processing") - (start == "processing")
        self.ended += start == "processing" and finish == "memory"
        self.most = max(self.most, self.here)


def used(client: Client) -> dict[str, float]:
    """Processor time of the scheduler, its tasks, and the most in flight since the last call."""
    found: dict[str, float] = client.run_on_scheduler(_used)
    return found


def _used(dask_scheduler: Scheduler) -> dict[str, float]:
    plugin: Any = dask_scheduler.plugins[InFlight.name]
    most, plugin.most = plugin.most, 0
    return {"seconds": time.process_time(), "tasks": plugin.ended, "in flight": most}


def one_value(value: float) -> FloatArray:
    """A chunk of equal values, which takes no memory."""
    chunk: FloatArray = np.broadcast_to(np.float64(value), CHUNK_ROWS)
    return chunk


@contextmanager
def cluster_of(n_workers: int) -> Iterator[str]:
    """The address of a scheduler in a process, with workers in other processes."""
    _allow_many_connections()
    context = multiprocessing.get_context("spawn")
    address: Any = context.Queue()
    processes = [context.Process(target=_run_scheduler, args=(address,), daemon=True)]
    processes[0].start()
    found = address.get()
    for first in range(0, n_workers, IN_A_PROCESS):
        own = found, min(IN_A_PROCESS, n_workers - first)
        processes.append(context.Process(target=_run_workers, args=own, daemon=True))
        processes[-1].start()
    try:
        yield found
    finally:
        for process in reversed(processes):
            process.kill()
            process.join()


def _allow_many_connections() -> None:
    """Let this process open as many files as the system allows, and wait for answers for long."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    dask.config.set({"distributed.comm.timeouts.connect": "600s"})


def _run_scheduler(address: Any) -> None:
    _allow_many_connections()
    logging.getLogger("distributed").setLevel(logging.ERROR)

    async def run() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            address.put(scheduler.address)
            await scheduler.finished()

    asyncio.run(run())


def _run_workers(address: str, n_workers: int) -> None:
    _allow_many_connections()
    # Each worker would count the open files of the process that it shares with all others.
    dask.config.set({"distributed.admin.system-monitor.interval": "1h"})
    dask.config.set({"distributed.worker.profile.enabled": False})
    logging.getLogger("distributed").setLevel(logging.ERROR)

    async def run() -> None:
        workers = [
            Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(n_workers)
        ]
        for first in range(0, n_workers, STARTED_TOGETHER):
            await asyncio.gather(*workers[first : first + STARTED_TOGETHER])
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(run())


def _counted_messages(client: Client) -> list[int]:
    """Bytes of each message that the client receives from now on, as they would be sent."""
    comm: Any = client.scheduler_comm.comm
    read = comm.read
    received: list[int] = []

    async def counting(*args: Any, **options: Any) -> Any:
        message = await read(*args, **options)
        received.append(sum(len(bytes(frame)) for frame in dumps(message)))
        return message

    comm.read = counting
    return received


if __name__ == "__main__":
    main()
