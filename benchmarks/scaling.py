"""What a pass costs the scheduler of a cluster, by the number of workers.

Measured on clusters of simulated workers, all in this process, over chunks that cost next to
nothing to make, of one pass:

- tasks: groups and their sums;
- KB to client: messages that the client receives, and the answer;
- CPU ms: processor time of scheduler, workers and client together, which share this process;
- setup s: what is done once a fit, before the first pass.

No bar. Tasks and bytes are the same on every cluster, and grow with the rows up to 4096 groups
only; the processor time of a task should not grow with the number of workers.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import dask.array as da
import jax.numpy as jnp
import numpy as np
from distributed import Client, LocalCluster
from distributed.protocol import dumps

from benchmarks.common import Row, arguments, report, stopwatch
from benchmarks.problems import EXPONENTIAL, FloatArray
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.announced import Announced
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

#: Rows that a chunk is said to have: x and y are 64 MB, what a group holds. In fact it has one.
CHUNK_ROWS = 4_000_000
WORKERS = (2, 4, 8, 16, 32, 64)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, groups=1024, most_workers=64, repeat=3)
    options = parser.parse_args(argv)
    rows = [
        measure(n, options.groups, options.repeat) for n in WORKERS if n <= options.most_workers
    ]
    return report(f"scaling: a pass of {options.groups} groups", rows, options.json)


def measure(n_workers: int, n_groups: int, repeat: int) -> Row:
    """One cluster."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers)
        # The chunks are not as long as they say, so that they cost nothing: it is not looked at.
        with patch.object(Announced, "check", lambda *_: None):
            return _measure(client, n_workers, n_groups, repeat)


def _measure(client: Client, n_workers: int, n_groups: int, repeat: int) -> Row:
    chunks = ((CHUNK_ROWS,) * n_groups,)
    x, y = (da.map_blocks(one_row, i, chunks=chunks, dtype=float) for i in (1.0, 2.0))
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))
    received = _counted_messages(client)
    setup, engine = stopwatch(lambda: open_engine(observe(x, y), Kernels((spec,), "cpu"), client))
    figures: dict[str, list[float]] = {"pass s": [], "CPU ms": [], "tasks": [], "KB to client": []}
    with engine:
        sums = engine.ask(SumsAt(params, basis))
        for _ in range(repeat):
            began, tasks, n_bytes = time.process_time(), _finished(client), sum(received)
            figures["pass s"].append(stopwatch(lambda: engine.ask(SumsAt(params, basis)))[0])
            figures["CPU ms"].append(1e3 * (time.process_time() - began))
            figures["tasks"].append(_finished(client) - tasks)
            answer = len(pickle.dumps(sums))
            figures["KB to client"].append((sum(received) - n_bytes + answer) / 1e3)
        n_groups = len(engine.stream.groups)
    medians = {name: float(np.median(values)) for name, values in figures.items()}
    return {
        "workers": n_workers,
        "groups": n_groups,
        "tasks": int(medians.pop("tasks")),
        **medians,
        "setup s": setup,
    }


def _finished(client: Client) -> int:
    """Tasks that the cluster has finished so far."""
    scheduler = client.cluster.scheduler
    return sum(prefix.state_counts["memory"] for prefix in scheduler.task_prefixes.values())


def one_row(value: float) -> FloatArray:
    """What stands for a chunk."""
    return np.full(1, value)


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
