"""What the benchmarks share: interleaved timing, tables with bars, fresh processes, clusters."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from distributed import Client, LocalCluster

from benchmarks.problems import FloatArray
from nlsq_dask.results.tables import aligned

T = TypeVar("T")
#: One line of a table: what was measured, by column.
Row = dict[str, Any]


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, FloatArray]:
    """Time calls that take turns, so that whatever else the machine does hits all of them alike.

    Parameters
    ----------
    contestants : mapping of callable
        Each is called once before, unmeasured, to compile and to warm caches.
    repeat : int
        Turns.
    clock : callable
        Seconds. ``time.process_time`` counts those of the processor, which is fair to calls of one
        thread on a machine that others use too.

    Returns
    -------
    dict of ndarray, shape (repeat,)
        Seconds of each call.
    """
    for call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeat):
        for name, call in contestants.items():
            seconds[name].append(stopwatch(call, clock)[0])
    return {name: np.array(values) for name, values in seconds.items()}


def stopwatch(
    call: Callable[[], T], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, T]:
    """Seconds that a call takes, and what it returns."""
    began = clock()
    result = call()
    return clock() - began, result


def ratio(numerator: FloatArray, denominator: FloatArray) -> float:
    """Median of the ratios of calls that were made one right after the other."""
    return float(np.median(numerator / denominator))


def judge(value: float, *, at_most: float = math.inf, at_least: float = -math.inf) -> Row:
    """Columns that hold a figure against its bar: the one of the two that is given."""
    bar = f"<= {at_most:g}" if at_most < math.inf else f">= {at_least:g}"
    return {"bar": bar, "met": "yes" if at_least <= value <= at_most else "NO"}


def in_fresh_process(function: Callable[..., T], *args: Any, cores: int | None = None) -> T:
    """Call an importable function in a new process: nothing compiled, nothing cached.

    Parameters
    ----------
    function : callable
    *args
        Pickled.
    cores : int, optional
        Cores that the process may use, on systems where that can be said.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _use_cores, (cores,)) as pool:
        return pool.submit(function, *args).result()


def _use_cores(cores: int | None) -> None:
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


@contextmanager
def local_cluster(processes: int, threads: int) -> Iterator[Client]:
    """A cluster of worker processes on this machine, with Dask's own settings."""
    with (
        LocalCluster(
            n_workers=processes, threads_per_worker=threads, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def arguments(description: str | None, **defaults: int) -> argparse.ArgumentParser:
    """A parser with an option for each number, and ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=_count, default=default, help=f"default: {default}"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def _count(text: str) -> int:
    return int(float(text))  # 1e9 is easier to read than its zeros


def report(name: str, rows: Sequence[Row], path: Path | None = None) -> list[Row]:
    """Print a table, write it to a JSON file if there is a path, and return its rows.

    Parameters
    ----------
    name : str
        Name of the benchmark.
    rows : sequence of dict
        Lines; they may lack columns.
    path : Path, optional
        The JSON file.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_text(row.get(column, "")) for column in columns] for row in rows)]
    print("\n".join([f"\n{name}", *aligned(cells)]))
    if path is not None:
        content = {"benchmark": name, "machine": machine(), "rows": list(rows)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return list(rows)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, object]:
    """What the figures depend on: processor, cores, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("dask", "distributed", "jax", "numpy", "scipy", "zarr")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
