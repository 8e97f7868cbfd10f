"""Memory that a fit takes, against the memory that it was allowed.

Measured, in MB of anonymous memory: how far a fit with ``memory_limit_gb`` rises above the level
before it, at which everything is imported and a tiny fit has been made; each in a fresh process.
Three kinds of data: NumPy arrays, fitted in chunks (the arrays are there before); memory-mapped
files, which the limit makes stream (their pages are the kernel's cache, not anonymous memory); and
Dask arrays whose chunks tasks make up. Linux with glibc only.

Bar: ``result.budget.threshold_gb``, three quarters of the limit.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, in_fresh_process, judge, report
from benchmarks.memory import MB, generated
from benchmarks.problems import EXPONENTIAL
from nlsq_dask import fit

#: Kinds of data, and the arguments of their fits. Left to itself, a limit below the data makes
#: arrays stream.
OPTIONS: dict[str, dict[str, Any]] = {
    "numpy": {"strategy": "chunked"},
    "memmap": {},
    "memmap, 5 starts": {"n_starts": 5},
    "dask": {},
}

#: Limits in GB, all below the 0.64 GB of a full run.
LIMITS = (0.05, 0.1, 0.2, 0.4)

# Rows of a chunk of the Dask arrays: 0.5 MB of x and y, for which both threads have room in the
# smallest limit.
CHUNK_ROWS = 1 << 15
THREADS = 2
TINY_ROWS = 1000
LOOK_EVERY = 0.0005  # seconds


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=40_000_000)
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS, metavar="GB")
    options = parser.parse_args(argv)
    rows = []
    for kind in OPTIONS:
        for limit in options.limits:
            row = in_fresh_process(measure, kind, options.rows, limit)
            rows.append(row | judge(row["peak"], at_most=row["threshold"]))
    return report("budget: MB that a fit takes", rows, options.json)


def measure(kind: str, n: int, limit_gb: float, **others: Any) -> Row:
    """Fit data of a kind within a limit, and see how far the memory of this process rises."""
    model, start = EXPONENTIAL.model(jnp), EXPONENTIAL.start
    options = {"memory_limit_gb": limit_gb, **OPTIONS[kind], **others}
    fit(model, *EXPONENTIAL.data(TINY_ROWS), p0=start, n_starts=options.get("n_starts"))
    with tempfile.TemporaryDirectory() as folder, dask.config.set(num_workers=THREADS):
        x, y = data_of(kind, n, Path(folder))
        give_back_free_memory()
        with highest_anonymous_bytes() as peak:
            before = anonymous_bytes()
            result = fit(model, x, y, p0=start, progress=False, **options)
    off = float(np.max(np.abs(result.popt - EXPONENTIAL.truth) / result.perr))
    if not (result.success and off < 6.0):  # 6 standard errors: once in 10**8 fits
        raise RuntimeError(f"the fit is {off:.2g} standard errors off:\n{result}")
    return {
        "data": kind,
        "rows": n,
        "size": 16 * n / MB,
        "limit": 1000 * limit_gb,
        "strategy": result.strategy,
        "passes": result.n_passes,
        "threshold": round(1000 * result.budget.threshold_gb, 1),
        "peak": round((peak() - before) / MB, 1),
    }


def data_of(kind: str, n: int, folder: Path) -> tuple[Any, Any]:
    """x and y of n rows: arrays, memory-mapped files, or Dask arrays that tasks make up."""
    if kind == "dask":
        return generated(n, CHUNK_ROWS)
    columns = EXPONENTIAL.data(n)
    if kind == "numpy":
        return columns
    for name, column in zip("xy", columns, strict=True):
        np.save(folder / f"{name}.npy", column)
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def give_back_free_memory() -> None:
    """Let the kernel have what the C library keeps of memory that was freed.

    A fit could else take it again without being seen.
    """
    ctypes.CDLL(None).malloc_trim(0)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


@contextmanager
def highest_anonymous_bytes() -> Iterator[Callable[[], int]]:
    """Look at this process's anonymous memory again and again; the call returns the most."""
    levels = [anonymous_bytes()]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY):
            levels[0] = max(levels[0], anonymous_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: levels[0]
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
