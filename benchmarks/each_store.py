"""One fit for each series of a Zarr store, whose maps go to another.

The series of ``benchmarks.each`` in float32: a cube of (60, H, 1024) in chunks of (60, 128, 128).

- rate: series a second of processor time, one process on one core, from store to store with all
  reading and writing, next to the same series in memory;
- memory: peak resident memory of fresh processes, two threads each, for cubes of a quarter of
  ``--megabytes``, and of all;
- workers: seconds on clusters of one and of two processes of one thread, and of one process of two
  threads.

Bars: the rate at least 0.55 times that in memory; the peak within 5 %; two processes at least 1.9
times as fast as one, two threads 1.6 times.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import dask
import numpy as np
import zarr

from benchmarks.common import (
    Row,
    arguments,
    in_fresh_process,
    interleave,
    judge,
    local_cluster,
    ratio,
    report,
    stopwatch,
)
from benchmarks.each import ROWS, START, decay, decays
from benchmarks.memory import MB, peak_bytes
from nlsq_dask import fit_each

WIDTH, SIDE = 1024, 128
SERIES_OF_RATE = 2 * SIDE * WIDTH


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, megabytes=1000, repeat=3)
    parser.add_argument("--no-workers", action="store_true", help="leave the clusters out")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        small, large = (Path(folder, f"{name}.zarr") for name in ("small", "large"))
        bands = max(options.megabytes * 10**6 // (4 * ROWS * WIDTH * SIDE), 4)
        in_fresh_process(write_cube, small, bands // 4)
        in_fresh_process(write_cube, large, bands)
        rows = [in_fresh_process(measure_rate, small, options.repeat, cores=1)]
        peaks = [in_fresh_process(measure_memory, place) for place in (small, large)]
        growth = peaks[1]["peak MB"] / peaks[0]["peak MB"]
        rows += [peaks[0], peaks[1] | judge(growth, at_most=1.05)]
        if not options.no_workers:
            rows += in_fresh_process(measure_workers, large)
    return report("each_store: series from store to store", rows, options.json)


def write_cube(place: Path, bands: int) -> None:
    """A cube of so many bands of 128 rows of pixels."""
    cube = zarr.create_array(
        place, shape=(ROWS, bands * SIDE, WIDTH), chunks=(ROWS, SIDE, SIDE), dtype="f4"
    )
    _, y, _ = decays(SIDE * WIDTH)
    band = y.astype(np.float32).reshape(ROWS, SIDE, WIDTH)
    for i in range(bands):
        cube[:, i * SIDE : (i + 1) * SIDE] = np.roll(band, i, axis=2)


def fitted(place: Path) -> None:
    """Fit all series, and write their maps to a store that is removed."""
    x, _, _ = decays(1)
    with tempfile.TemporaryDirectory() as folder:
        fit_each(decay, x, zarr.open_array(place), START, store=Path(folder, "maps.zarr"))


def measure_rate(place: Path, repeat: int) -> Row:
    """Processor time of all series, from the store and in memory."""
    x, _, _ = decays(1)
    y = np.asarray(zarr.open_array(place)[:])
    with dask.config.set(scheduler="synchronous"):
        seconds = interleave(
            {"store": lambda: fitted(place), "memory": lambda: fit_each(decay, x, y, START)},
            repeat,
            time.process_time,
        )
    n = y[0].size
    share = ratio(seconds["memory"], seconds["store"])
    return {
        "what": "rate",
        "series": n,
        "1/s": n / float(np.median(seconds["store"])),
        "1/s in memory": n / float(np.median(seconds["memory"])),
        "ratio": share,
    } | judge(share, at_least=0.55)


def measure_memory(place: Path) -> Row:
    """Peak memory of this process."""
    with dask.config.set(num_workers=2):
        fitted(place)
    n = int(np.prod(zarr.open_array(place).shape[1:]))
    return {"what": "memory", "series": n, "peak MB": peak_bytes() / MB}


def measure_workers(place: Path) -> list[Row]:
    """Seconds on clusters, after a run that compiles."""
    rows: list[Row] = []
    alone = 0.0
    for processes, threads, bar in ((1, 1, None), (2, 1, 1.9), (1, 2, 1.6)):
        with local_cluster(processes, threads):
            fitted(place)
            seconds, _ = stopwatch(lambda: fitted(place))
        row: Row = {"what": f"{processes} processes, {threads} threads", "seconds": seconds}
        if bar is None:
            alone = seconds
        else:
            row |= {"ratio": alone / seconds} | judge(alone / seconds, at_least=bar)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
