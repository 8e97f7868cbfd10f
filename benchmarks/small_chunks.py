"""What very many small chunks cost: 100,000 of 1,000 rows, against the same rows in 100 chunks.

Measured, in seconds, in turn: a pass (a exp(-b x) + c, p=3) over both, on Dask's threads and on
clusters of 2 processes with 1 thread and of 1 process with 2 threads; and the planning of the small
ones, once a fit. Chunks are made of one number, so that none of it is reading.

Bar, small/large: 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import dask.array as da
import jax.numpy as jnp
import numpy as np
from distributed import Client

from benchmarks.common import (
    Row,
    arguments,
    interleave,
    judge,
    local_cluster,
    ratio,
    report,
    stopwatch,
)
from benchmarks.problems import EXPONENTIAL
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

#: Rows of a small chunk, and how many of them make a large one.
SMALL_ROWS = 1000
SMALLER = 1000


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, chunks=100_000, repeat=5)
    options = parser.parse_args(argv)
    rows = [measure("threads", None, options.chunks, options.repeat)]
    for processes, threads in ((2, 1), (1, 2)):
        with local_cluster(processes, threads) as client:
            label = f"cluster {processes} x {threads}"
            rows.append(measure(label, client, options.chunks, options.repeat))
    return report(f"{options.chunks:,} small chunks", rows, options.json)


def measure(scheduler: str, client: Client | None, n_chunks: int, repeat: int) -> Row:
    """Time a pass over rows in many chunks, and one over the same rows in fewer."""
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))
    passes: dict[str, Callable[[], object]] = {}
    planning: dict[str, float] = {}
    with ExitStack() as stack:
        for name, n in (("small", n_chunks), ("large", max(n_chunks // SMALLER, 1))):
            n_rows = SMALL_ROWS * n_chunks // n
            chunks = ((n_rows,) * n,)
            x, y = (da.map_blocks(np.full, n_rows, v, chunks=chunks, dtype=float) for v in (1, 2.0))
            executor = executor_of(client, lazy=False)
            planning[name], engine = stopwatch(
                partial(open_engine, observe(x, y), Kernels((spec,), "cpu"), executor)
            )
            stack.enter_context(engine)
            passes[name] = partial(engine.ask, SumsAt(params, basis))
        seconds = interleave(passes, repeat)
    found = ratio(seconds["small"], seconds["large"])
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    head: Row = {"scheduler": scheduler, "chunks": n_chunks} | times
    return head | {"small/large": found} | judge(found, at_most=2) | {"planning": planning["small"]}


if __name__ == "__main__":
    main()
