"""What very many small chunks cost: 100,000 of 1,000 rows, against the same rows in 100 chunks.

Measured, in seconds, in turn: a pass (a exp(-b x) + c, p=3) over both, on Dask's threads and on
clusters of 2 processes with 1 thread and of 1 process with 2 threads; and the planning of the small
ones, once a fit. Chunks are made of one number, so that none of it is reading. The last line reads
pairs of such chunks, of x and of y, from files of uncompressed Zarr arrays on Dask's threads: its
``pair`` is the processor time of a pair in microseconds, the kernel included.

Bar, small/large: 2, of chunks that are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import dask.array as da
import jax.numpy as jnp
import numpy as np
import zarr
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

#: Chunks that are made for each pair that is read.
MADE_FOR_A_PAIR = 50


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, chunks=100_000, repeat=5)
    options = parser.parse_args(argv)
    rows = [measure("threads", None, options.chunks, options.repeat)]
    for processes, threads in ((2, 1), (1, 2)):
        with local_cluster(processes, threads) as client:
            label = f"cluster {processes} x {threads}"
            rows.append(measure(label, client, options.chunks, options.repeat))
    rows.append(measure_stored(max(options.chunks // MADE_FOR_A_PAIR, 1), options.repeat))
    return report(f"{options.chunks:,} small chunks", rows, options.json)


def measure(scheduler: str, client: Client | None, n_chunks: int, repeat: int) -> Row:
    """Time a pass over rows in many chunks, and one over the same rows in fewer."""
    passes: dict[str, Callable[[], object]] = {}
    planning: dict[str, float] = {}
    with ExitStack() as stack:
        for name, n in (("small", n_chunks), ("large", max(n_chunks // SMALLER, 1))):
            n_rows = SMALL_ROWS * n_chunks // n
            chunks = ((n_rows,) * n,)
            x, y = (da.map_blocks(np.full, n_rows, v, chunks=chunks, dtype=float) for v in (1, 2.0))
            planning[name], passes[name] = opened(x, y, client, stack)
        seconds = interleave(passes, repeat)
    found = ratio(seconds["small"], seconds["large"])
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    head: Row = {"scheduler": scheduler, "chunks": n_chunks} | times
    return head | {"small/large": found} | judge(found, at_most=2) | {"planning": planning["small"]}


def measure_stored(n_chunks: int, repeat: int) -> Row:
    """Time a pass over small Zarr chunks on disk, in processor time."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        stored = [zarr_array(Path(folder) / name, n_chunks) for name in ("x", "y")]
        x, y = map(da.from_zarr, stored)
        planning, ask = opened(x, y, None, stack)
        seconds = interleave({"small": ask}, repeat, time.process_time)["small"]
    small = float(np.median(seconds))
    head: Row = {"scheduler": "threads, Zarr", "chunks": n_chunks, "small": small}
    return head | {"planning": planning, "pair": small / n_chunks * 1e6}


def opened(
    x: da.Array, y: da.Array, client: Client | None, stack: ExitStack
) -> tuple[float, Callable[[], object]]:
    """Seconds to open an engine for x and y, and a pass of this engine."""
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))
    executor = executor_of(client, lazy=False)
    seconds, engine = stopwatch(
        partial(open_engine, observe(x, y), Kernels((spec,), "cpu"), executor)
    )
    stack.enter_context(engine)
    return seconds, partial(engine.ask, SumsAt(params, basis))


def zarr_array(place: Path, n_chunks: int) -> zarr.Array:
    """An uncompressed array of equal numbers in small chunks."""
    n = SMALL_ROWS * n_chunks
    array = zarr.create_array(place, shape=n, chunks=SMALL_ROWS, dtype="f8", compressors=None)
    array[:] = 1.0
    return array


if __name__ == "__main__":
    main()
