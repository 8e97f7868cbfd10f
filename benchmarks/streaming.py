"""One pass over a local Zarr store, against reading and adding up the same arrays.

Measured, in seconds, on the same scheduler in turn: a pass (a exp(-b x) + c, p=3) over x and y in
chunks of 64 MB, and ``(x.sum() + y.sum()).compute()``, which reads what the pass reads and does
the least with it. The store lies in the page cache after the first reading. Schedulers: Dask's
threads, and clusters of 2 processes with 1 thread and of 1 process with 2 threads.

Bars, pass/sum: 1.7 uncompressed, 1.35 with Zarr's default compression.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import zarr
from distributed import Client

from benchmarks.common import Row, arguments, interleave, judge, local_cluster, ratio, report
from benchmarks.problems import EXPONENTIAL
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

CHUNK_ROWS = 8_000_000  # 64 MB of float64
BARS = {"none": 1.7, "default": 1.35}
CLUSTERS = ((2, 1), (1, 2))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=64_000_000, chunk_rows=CHUNK_ROWS, repeat=7)
    options = parser.parse_args(argv)
    with stores(options.rows, options.chunk_rows) as paths:
        rows = measure(paths, options.repeat, "threads", None)
        for processes, threads in CLUSTERS:
            with local_cluster(processes, threads) as client:
                label = f"cluster {processes} x {threads}"
                rows += measure(paths, options.repeat, label, client)
    return report(f"streaming: a pass over {options.rows:,} rows", rows, options.json)


@contextmanager
def stores(n: int, chunk: int) -> Iterator[dict[str, Path]]:
    """Stores of n rows with and without compression, by its name, on a disk for the time being."""
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
        paths = {compression: Path(folder) / compression for compression in BARS}
        for compression, path in paths.items():
            write_store(path, n, chunk, compression)
        yield paths


def write_store(path: Path, n: int, chunk: int, compression: str) -> None:
    """Write x and y of n rows, chunk by chunk.

    Parameters
    ----------
    path : Path
        Of the store, which is made.
    n, chunk : int
        Rows of the store and of a chunk.
    compression : {"none", "default"}
    """
    group = zarr.create_group(path)
    settings: dict[str, Any] = {"compressors": None} if compression == "none" else {}
    x, y = (
        group.create_array(name, shape=n, chunks=(chunk,), dtype="f8", **settings) for name in "xy"
    )
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        x[start:stop], y[start:stop] = EXPONENTIAL.data(stop - start, seed=start)


def measure(
    paths: Mapping[str, Path], repeat: int, scheduler: str, client: Client | None
) -> list[Row]:
    """Time both stores on one scheduler."""
    rows = []
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))
    executor = executor_of(client, lazy=False)
    for compression, bar in BARS.items():
        x, y = (da.from_zarr(str(paths[compression]), component=name) for name in "xy")
        total = x.sum() + y.sum()
        with open_engine(observe(x, y), Kernels((spec,), "cpu"), executor) as engine:
            seconds = interleave(
                {"pass": lambda: engine.ask(SumsAt(params, basis)), "sum": total.compute}, repeat
            )
        found = ratio(seconds["pass"], seconds["sum"])
        times = {name: float(np.median(values)) for name, values in seconds.items()}
        rate = (x.nbytes + y.nbytes) / times["pass"] / 1e9
        head: Row = {"scheduler": scheduler, "compression": compression}
        rows.append(head | times | {"GB/s": rate, "pass/sum": found} | judge(found, at_most=bar))
    return rows


if __name__ == "__main__":
    main()
