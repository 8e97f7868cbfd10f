"""What fits of series gain by a second core where Dask takes no part.

The cube of ``benchmarks.each_store``. These figures tell what the processor and its memory allow: a
cluster and its threads cannot do better.

- processes: seconds of plain processes with Dask's synchronous scheduler, each on one core with its
  share of the rows of pixels, from store to store; next to one process with all rows;
- threads: seconds of plain threads, each with its share of the calls of the compiled program, on
  series in memory; next to one thread on one core.

Processor time of all processes or threads stands beside the seconds: where others use the machine,
work that waits for a core takes longer, but no more processor time.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np

from benchmarks.common import Row, arguments, in_fresh_process, report
from benchmarks.each import ROWS, START, decay, decays
from benchmarks.each_store import SIDE, WIDTH, keep_to_cores, write_cube
from benchmarks.problems import FloatArray
from nlsq_dask import fit_each
from nlsq_dask.io.reused_memory import ReusedMemory
from nlsq_dask.kernels.lanes import LANES, TILES, LaneData, LaneKernel


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, megabytes=500, calls=200, repeat=3)
    options = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "cube.zarr")
        bands = max(options.megabytes * 10**6 // (4 * ROWS * WIDTH * SIDE), 2)
        in_fresh_process(write_cube, place, bands)
        taken = {n: seconds_of_processes(place, n, options.repeat) for n in (1, 2)}
        rows += rows_of("processes", taken)
    taken = {
        n: in_fresh_process(seconds_of_threads, n, options.calls, options.repeat, cores=n)
        for n in (1, 2)
    }
    rows += rows_of("threads, the program alone", taken)
    return report("each_alone: series without a cluster", rows, options.json)


def rows_of(what: str, taken: dict[int, FloatArray]) -> list[Row]:
    """A row for each number, with what it gains over one."""
    return [
        {
            "what": f"{n} {what}",
            "seconds": seconds,
            "ratio": taken[1][0] / seconds,
            "processor seconds": processor,
        }
        for n, (seconds, processor) in taken.items()
    ]


def timed(call: Callable[[], object]) -> FloatArray:
    """Seconds and processor seconds (2,) of a call."""
    began = np.array([time.perf_counter(), time.process_time()])
    call()
    taken: FloatArray = np.array([time.perf_counter(), time.process_time()]) - began
    return taken


def seconds_of_processes(place: Path, count: int, repeat: int) -> FloatArray:
    """Seconds until the last process has fitted its share of the cube, and those of all cores."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(count, spawn) as pool:
        together = manager.Barrier(count)
        shares = [pool.submit(fit_share, place, i, count, repeat, together) for i in range(count)]
        taken = np.array([share.result() for share in shares])  # (processes, repeat, 2)
    median: FloatArray = np.median([taken[..., 0].max(axis=0), taken[..., 1].sum(axis=0)], axis=1)
    return median


def fit_share(
    place: Path, number: int, count: int, repeat: int, together: Barrier
) -> list[FloatArray]:
    """What fits of one share take on one core; they begin together with those of the others."""
    keep_to_cores(number, 1)
    cube = da.from_zarr(place)
    first, last = (i * (cube.shape[1] // SIDE) // count * SIDE for i in (number, number + 1))
    x, _, _ = decays(1)
    fit = partial(fit_each, decay, x, cube[:, first:last], START)
    taken = []
    with dask.config.set(scheduler="synchronous"):
        for _ in range(repeat + 1):
            with tempfile.TemporaryDirectory() as folder:
                together.wait()
                taken.append(timed(partial(fit, store=Path(folder, "maps.zarr"))))
    return taken[1:]  # without the fit that compiles


def seconds_of_threads(count: int, calls: int, repeat: int) -> FloatArray:
    """Seconds of so many calls of the program, shared out to threads, and those of all cores."""
    x, y, _ = decays(TILES * LANES)
    made: list[Callable[[], FloatArray]] = []
    run = LaneKernel.__call__

    def recorded(kernel: LaneKernel, states: FloatArray, data: LaneData, *rest: Any) -> FloatArray:
        if not made:
            copies = [(aligned(states), aligned_data(data)) for _ in range(count)]
            made.extend(partial(run, kernel, *copy, *rest) for copy in copies)
        return run(kernel, states, data, *rest)

    with mock.patch.object(LaneKernel, "__call__", recorded):
        fit_each(decay, x, y, START)

    def several(call: Callable[[], FloatArray]) -> None:
        for _ in range(calls // count):
            call()

    with ThreadPoolExecutor(count) as pool:
        taken = [timed(lambda: list(pool.map(several, made))) for _ in range(repeat + 1)]
    median: FloatArray = np.median(taken[1:], axis=0)
    return median


def aligned(values: FloatArray) -> FloatArray:
    """A copy in aligned memory of its own, which JAX reads without another copy."""
    copy: FloatArray = ReusedMemory().empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def aligned_data(data: LaneData) -> LaneData:
    """Copies of the tiles of series without weights."""
    coords = tuple(map(aligned, data.coords))
    return LaneData(aligned(data.y), coords, None, aligned(data.constants))


if __name__ == "__main__":
    main()
