"""What planning a pass costs: the groups of 1,000, 10,000 and 100,000 chunks, once a fit.

Measured, in seconds of processor time, for x and y that are Zarr arrays as they are passed, read by
``da.from_zarr``, results of elementwise operations, NumPy arrays in chunks (``da.from_array``), or
made by a task for each chunk (``da.arange``). The chunks of Zarr are not written: nothing is read.
The last column is for arrays that are cut anew, which need Dask's graph of all chunks.

Bar, 100,000 chunks: 2 s but for arrays that are cut anew.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr

from benchmarks.common import Row, arguments, judge, report
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.io.sources import observe

CHUNK_ROWS = 1000

#: Ways to make an array of a Zarr array.
WAYS: dict[str, Callable[[Any], Any]] = {
    "as passed": lambda stored: stored,
    "from_zarr": da.from_zarr,
    "elementwise": lambda stored: da.log(da.from_zarr(stored) + 3.0) * 2.0,
    "from_array": lambda stored: da.from_array(np.zeros(stored.shape, np.int8), stored.chunks),
    "tasks": lambda stored: da.arange(stored.size, chunks=stored.chunks) * 0.5,
    "cut anew": lambda stored: da.from_zarr(stored)[CHUNK_ROWS // 2 :],
}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, chunks=100_000, repeat=3)
    options = parser.parse_args(argv)
    sizes = sorted({max(options.chunks // part, 1) for part in (100, 10, 1)})
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), n, options.repeat) for n in sizes]
    return report("planning: seconds", rows, options.json)


def measure(folder: Path, n_chunks: int, repeat: int) -> Row:
    """Plan a pass over so many chunks, in each way; the least of some times."""
    stored = [
        zarr.create_array(
            folder / f"{name}-{n_chunks}",
            shape=n_chunks * CHUNK_ROWS,
            chunks=CHUNK_ROWS,
            dtype="f8",
        )
        for name in "xy"
    ]
    row: Row = {"chunks": n_chunks}
    for name, way in WAYS.items():
        seconds = []
        # The graph of all chunks takes long: once is enough.
        for _ in range(1 if name == "cut anew" else repeat):
            x, y = map(way, stored)
            began = time.process_time()
            make_stream(observe(x, y))
            seconds.append(time.process_time() - began)
        row[name] = min(seconds)
    slowest = max(float(row[name]) for name in WAYS if name != "cut anew")
    return row | judge(slowest, at_most=2.0)


if __name__ == "__main__":
    main()
