"""A pass over rows that are kept, against the in-memory engine's pass over the same rows.

Measured, in seconds, in turn (a exp(-b x) + c, p=3): a pass of the streaming engine with all rows
kept, on Dask's threads; a pass of the in-memory engine; and a pass that makes its rows anew, in
chunks of 64 MB. Chunks are made of random numbers by tasks, so that no disk has a part in it. On a
cluster of 2 processes with 1 thread the same, while the in-memory engine uses as many threads here.

``same bits``: whether the sums of the kept rows have those of the rows that are made anew.

Bar, kept/in memory: 1.25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from distributed import Client

from benchmarks.common import Row, arguments, interleave, judge, local_cluster, ratio, report
from benchmarks.memory import generated
from benchmarks.problems import EXPONENTIAL
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.engine import DaskEngine, Streaming
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.in_memory import standard_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

CHUNK_ROWS = 8_000_000  # 64 MB of float64
BAR = 1.25


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=100_000_000, chunk_rows=CHUNK_ROWS, repeat=7)
    options = parser.parse_args(argv)
    rows = [measure("threads", None, options.rows, options.chunk_rows, options.repeat)]
    with local_cluster(2, 1) as client:
        label = "cluster 2 x 1"
        rows.append(measure(label, client, options.rows, options.chunk_rows, options.repeat))
    return report(f"cached: seconds of a pass over {options.rows:,} rows", rows, options.json)


def measure(scheduler: str, client: Client | None, n: int, chunk: int, repeat: int) -> Row:
    """Time the passes over kept rows, rows in memory, and rows that are made anew."""
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))
    lazy = generated(n, chunk)

    executor = executor_of(client, lazy=False)

    def streaming(cache: Literal[True, False]) -> DaskEngine:
        data = observe(*lazy)
        streaming = Streaming(make_stream(data), executor, cache=cache)
        return DaskEngine(data, Kernels((spec,), "cpu"), streaming)

    with ExitStack() as stack:
        kept, anew = (stack.enter_context(streaming(cache)) for cache in (True, False))
        x, y = (np.concatenate([block.compute() for block in a.blocks]) for a in lazy)
        here = stack.enter_context(standard_engine(observe(x, y), Kernels((spec,), "cpu")))
        passes: dict[str, Callable[[], NormalEquations]] = {
            name: partial(engine.ask, SumsAt(params, basis))
            for name, engine in {"kept": kept, "in memory": here, "anew": anew}.items()
        }
        sums = {name: call() for name, call in passes.items()}
        seconds = interleave(passes, repeat)
        share = kept.keeping.share
    found = ratio(seconds["kept"], seconds["in memory"])
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    same = np.array_equal(sums["kept"].gram, sums["anew"].gram)
    head: Row = {"scheduler": scheduler, "share kept": share} | times
    return head | {"kept/in memory": found} | judge(found, at_most=BAR) | {"same bits": same}


if __name__ == "__main__":
    main()
