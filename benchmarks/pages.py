"""What fresh memory pages cost a streaming fit, and what settings of the allocator save of it.

Reading a chunk needs memory for its decoded values, which glibc asks the system for, page by page
of 4 KiB, and gives back when the chunk is done with. Settings that a process takes from its
environment when it starts change that (GNU C Library manual, "Memory Allocation Tunables";
mallopt(3)):

- none: as Python starts by default;
- huge pages: ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1``, large pieces in pages of 2 MiB (glibc 2.35
  or newer; of no effect where the system's transparent huge pages are "always", or "never");
- kept: ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` of 1 GiB, nothing given back.

Measured in fresh processes in turn, on Dask's threads, a exp(-b x) + c, p=3, chunks of 64 MB in a
Zarr store: seconds of a whole fit that keeps no rows, of ``(x.sum() + y.sum()).compute()``, page
faults of the fit in thousands, and peak memory of the process in MB.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dask.array as da
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, in_fresh_process, report, stopwatch
from benchmarks.problems import EXPONENTIAL
from benchmarks.streaming import CHUNK_ROWS, stores
from nlsq_dask import fit

GIB = str(1 << 30)
SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "kept": {"MALLOC_MMAP_THRESHOLD_": GIB, "MALLOC_TRIM_THRESHOLD_": GIB},
}
KB = 1024  # unit of ru_maxrss on Linux


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=100_000_000, chunk_rows=CHUNK_ROWS, repeat=5)
    options = parser.parse_args(argv)
    rows: list[Row] = []
    with stores(options.rows, options.chunk_rows) as paths:
        for compression, path in paths.items():
            rows += measure(path, compression, options.repeat)
    return report(f"pages: a streaming fit of {options.rows:,} rows", rows, options.json)


def measure(path: Path, compression: str, repeat: int) -> list[Row]:
    """Medians of fresh processes for each setting; ratios are those of one turn."""
    found: dict[str, list[Row]] = {name: [] for name in SETTINGS}
    for _ in range(repeat):
        for name, variables in SETTINGS.items():
            with environment(variables):
                found[name].append(in_fresh_process(fit_and_sum, path))
    plain = np.array([row["fit"] for row in found["none"]])
    rows = []
    for name, turns in found.items():
        medians = {
            column: float(np.median([turn[column] for turn in turns])) for column in turns[0]
        }
        faster = float(np.median(plain / [turn["fit"] for turn in turns]))
        rows.append({"compression": compression, "setting": name} | medians | {"faster": faster})
    return rows


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fit_and_sum(path: Path) -> Row:
    """Seconds, page faults and peak memory of a second fit, when all is compiled."""
    x, y = (da.from_zarr(str(path), component=name) for name in "xy")
    model = EXPONENTIAL.model(jnp)

    def ours() -> object:
        return fit(model, x, y, EXPONENTIAL.start, cache=False)

    ours()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds, _ = stopwatch(ours)
    used = resource.getrusage(resource.RUSAGE_SELF)
    total, _ = stopwatch((x.sum() + y.sum()).compute)
    return {
        "fit": seconds,
        "sum": total,
        "faults (1000)": (used.ru_minflt - before) / 1000,
        "peak MB": used.ru_maxrss * KB / 1e6,
    }


if __name__ == "__main__":
    main()
