"""One fit for each series of a Zarr store, whose maps go to another.

The series of ``benchmarks.each`` in float32: a cube of (60, H, 1024) in chunks of (60, 128, 128).
All bands of 128 rows of pixels are links to the files of the first: a cube of any size takes 32 MB
on the disk.

- rate: series a second of processor time, one process on one core, from store to store with all
  reading and writing, next to the same series in memory;
- memory: peak resident memory of fresh processes, two threads each, for cubes of a quarter of
  ``--megabytes``, of all, and of ``--megabytes`` more for each factor of ``--times``: with 1000 and
  4 16, cubes of 1, 4 and 16 GB;
- workers: seconds on clusters of one and of two processes of one thread, and of one process of two
  threads; each process has as many cores as threads, since XLA starts a thread for each core of its
  process, and one worker of one thread would use all cores;
- frames: peak resident memory for frames of (1, 64, 512), 512 and 2,048 of them, read with
  ``memory_limit_gb=0.3``, and how often each frame is read (``--no-frames`` leaves them out).

Bars: the rate at least 0.55 times that in memory; the peaks within 5 %; two processes at least 1.9
times as fast as one, two threads 1.6 times; frames read at most 6.1 times.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import dask
import dask.array as da
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
from benchmarks.problems import FloatArray
from nlsq_dask import fit_each

WIDTH, SIDE = 1024, 128
SERIES_OF_RATE = 2 * SIDE * WIDTH
FRAME = 64, 512


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, megabytes=1000, repeat=3)
    parser.add_argument("--no-workers", action="store_true", help="leave the clusters out")
    parser.add_argument("--no-frames", action="store_true", help="leave the frames out")
    parser.add_argument("--only-memory", action="store_true", help="leave the rate out, too")
    parser.add_argument("--times", type=int, nargs="*", default=[], help="sizes of more cubes")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        small, large = (Path(folder, f"{name}.zarr") for name in ("small", "large"))
        bands = max(options.megabytes * 10**6 // (4 * ROWS * WIDTH * SIDE), 4)
        in_fresh_process(write_cube, small, bands // 4)
        in_fresh_process(write_cube, large, bands)
        rows: list[Row] = []
        if not options.only_memory:
            rows.append(in_fresh_process(measure_rate, small, options.repeat, cores=1))
        rows += measure_peaks([small, large, *more_cubes(Path(folder), bands, options.times)])
        if not (options.no_workers or options.only_memory):
            rows += in_fresh_process(measure_workers, large)
        if not options.no_frames:
            rows += measure_frames(Path(folder))
    return report("each_store: series from store to store", rows, options.json)


def more_cubes(folder: Path, bands: int, times: Sequence[int]) -> Iterator[Path]:
    """Cubes of so many times as many bands."""
    for factor in times:
        place = folder / f"times-{factor}.zarr"
        in_fresh_process(write_cube, place, bands * factor)
        yield place


def measure_peaks(places: Iterable[Path]) -> list[Row]:
    """Peak memory for each cube, next to that for the first."""
    rows: list[Row] = []
    for place in places:
        row = in_fresh_process(measure_memory, place)
        if rows:
            row |= judge(row["peak MB"] / rows[0]["peak MB"], at_most=1.05)
        rows.append(row)
    return rows


def write_cube(place: Path, bands: int) -> None:
    """A cube of so many bands of 128 rows of pixels, with the files of one."""
    cube = zarr.create_array(
        place, shape=(ROWS, bands * SIDE, WIDTH), chunks=(ROWS, SIDE, SIDE), dtype="f4"
    )
    _, y, _ = decays(SIDE * WIDTH)
    cube[:, :SIDE] = y.astype(np.float32).reshape(ROWS, SIDE, WIDTH)
    for i in range(1, bands):
        link(place / "c" / "0" / "0", place / "c" / "0" / str(i))


def link(source: Path, target: Path) -> None:
    """A folder with links to the files of another."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).hardlink_to(file)


def write_frames(place: Path, frames: int) -> None:
    """So many frames of (1, 64, 512), with the noise of 64 frames."""
    cube = zarr.create_array(place, shape=(frames, *FRAME), chunks=(1, *FRAME), dtype="f4")
    draw = np.random.default_rng(0)
    height, lifetime = draw.uniform(0.5, 2.0, (2, *FRAME))
    noise = draw.normal(0.0, 0.05, (64, *FRAME))
    for i, t in enumerate(frame_times(frames)):
        cube[i] = height * np.exp(-t / lifetime) + np.roll(noise[i % 64], i // 64, axis=1)


def frame_times(frames: int) -> FloatArray:
    """Times of frames."""
    return np.linspace(0.0, 8.0, frames)


def measure_frames(folder: Path) -> list[Row]:
    """Peak memory and readings, for few and for many frames."""
    rows: list[Row] = []
    for frames in (512, 2048):
        place = folder / f"frames-{frames}.zarr"
        in_fresh_process(write_frames, place, frames)
        row = in_fresh_process(read_frames, place)
        if rows:
            row |= judge(row["peak MB"] / rows[0]["peak MB"], at_most=1.05)
        rows.append(row)
    rows[0] |= judge(rows[0]["readings"], at_most=6.1)
    return rows


def read_frames(place: Path) -> Row:
    """Peak memory of this process with frames, and how often a frame is read on average."""
    cube = zarr.open_array(place)
    counted: Counter[int] = Counter()

    def reading(block: FloatArray, block_id: tuple[int, ...] = (0,)) -> FloatArray:
        counted[block_id[0]] += 1
        return block

    y = da.from_zarr(cube).map_blocks(reading, dtype=cube.dtype, meta=np.empty((0, 0, 0), "f4"))
    with dask.config.set(scheduler="synchronous"), tempfile.TemporaryDirectory() as maps:
        seconds, found = stopwatch(
            lambda: fit_each(
                decay,
                frame_times(len(y)),
                y,
                START,
                memory_limit_gb=0.3,
                store=Path(maps, "maps.zarr"),
            )
        )
    if found.strategy != "frames":
        raise RuntimeError(f"the frames are read as {found.strategy}")
    return {
        "what": f"{len(y):,} frames",
        "series": int(np.prod(y.shape[1:])),
        "peak MB": peak_bytes() / MB,
        "readings": sum(counted.values()) / len(y),
        "seconds": seconds,
    }


def fitted(place: Path) -> None:
    """Fit all series, and write their maps to a store that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        fit_to(Path(folder, "maps.zarr"), place)


def fit_to(maps: Path, place: Path) -> None:
    """Fit all series, and write their maps."""
    x, _, _ = decays(1)
    fit_each(decay, x, zarr.open_array(place), START, store=maps)


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


def keep_to_cores(first: int, count: int) -> None:
    """Let all threads of this process use so many cores of its own, before JAX starts."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[first : first + count]
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def measure_workers(place: Path) -> list[Row]:
    """Seconds on clusters, after a run that compiles."""
    rows: list[Row] = []
    alone = 0.0
    for processes, threads, bar in ((1, 1, None), (2, 1, 1.9), (1, 2, 1.6)):
        with local_cluster(processes, threads) as client:
            for i, worker in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
                client.run(keep_to_cores, i * threads, threads, workers=[worker])
            fitted(place)
            with tempfile.TemporaryDirectory() as folder:  # removed after the time is taken
                maps = Path(folder, "maps.zarr")
                seconds, _ = stopwatch(partial(fit_to, maps, place))
        row: Row = {"what": f"{processes} processes, {threads} threads", "seconds": seconds}
        if bar is None:
            alone = seconds
        else:
            row |= {"ratio": alone / seconds} | judge(alone / seconds, at_least=bar)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
