"""Peak memory of streaming fits, as the rows grow and the chunks stay the same.

Measured, in MB of resident memory: fits of 1e7, 1e8 and ``--rows`` rows (1e9 is possible), which
Dask tasks make up chunk by chunk and nothing ever holds as a whole, each in a fresh process on
Dask's threads; before the fit (everything imported) and at its peak.

The same under ``memory_limit_gb``, of which a fit may take 75 %: as many rows stay in memory after
the first pass as this allows.

Bars: where no rows are kept, the peak stays within 15 % of the one with the fewest rows, and below
400 MB plus three decoded blocks (x and y of a chunk) a thread; else it exceeds what the process
held before by no more than the fit may take.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import psutil
from dask.system import CPU_COUNT

from benchmarks.common import Row, arguments, in_fresh_process, judge, report, stopwatch
from benchmarks.problems import EXPONENTIAL, FloatArray
from nlsq_dask import fit, plan

CHUNK_ROWS = 1 << 20
GROWTH = 1.15
BLOCKS_PER_THREAD = 3
BASE_MB = 400
LIMIT_GB = 1.0
SHARE_OF_LIMIT = 0.75
MB = 1e6


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=200_000_000, chunk_rows=CHUNK_ROWS)
    options = parser.parse_args(argv)
    chunk = options.chunk_rows
    sizes = sorted({n for n in (10**7, 10**8) if n < options.rows} | {options.rows})
    rows: list[Row] = []
    bound = BASE_MB + CPU_COUNT * BLOCKS_PER_THREAD * 2 * 8 * chunk / MB
    for n in sizes:
        row = in_fresh_process(measure, n, chunk, False)
        smallest = rows[0]["peak"] if rows else row["peak"]
        rows.append(row | judge(row["peak"], at_most=round(min(bound, GROWTH * smallest))))
        row = in_fresh_process(measure, n, chunk, True)
        most = round(row["before"] + SHARE_OF_LIMIT * LIMIT_GB * 1e9 / MB)
        rows.append(row | judge(row["peak"], at_most=most))
    title = f"memory: MB of a fit, {CPU_COUNT} threads, blocks of {16 * chunk / MB:.0f} MB"
    return report(title, rows, options.json)


def measure(n: int, chunk: int, cache: bool) -> Row:
    """Memory of this process before and in a fit; under a limit where rows are kept."""
    options: dict[str, Any] = {"cache": cache}
    if cache:
        options["memory_limit_gb"] = LIMIT_GB
    x, y = generated(n, chunk)
    before = psutil.Process().memory_info().rss / MB
    seconds, result = stopwatch(
        lambda: fit(EXPONENTIAL.model(jnp), x, y, EXPONENTIAL.start, progress=False, **options)
    )
    kept = plan(EXPONENTIAL.model(jnp), x, y, EXPONENTIAL.start, time=False, **options).kept
    off = float(np.max(np.abs(result.popt - EXPONENTIAL.truth) / result.perr))
    if not (result.success and off < 6.0):  # 6 standard errors: once in 10**8 fits
        raise RuntimeError(f"the fit is {off:.2g} standard errors off:\n{result}")
    return {
        "rows": n,
        "data": f"{(x.nbytes + y.nbytes) / 1e9:.3g} GB",
        "kept": kept,
        "passes": result.n_passes,
        "seconds": seconds,
        "before": round(before),
        "peak": round(peak_bytes() / MB),
    }


def generated(n: int, chunk: int) -> tuple[da.Array, da.Array]:
    """Dask arrays x and y of n rows, which tasks make up from the number of their chunk."""
    chunks = da.core.normalize_chunks(chunk, (n,))
    x = da.map_blocks(coordinates, chunks=chunks, dtype=np.float64)
    return x, da.map_blocks(observations, x, dtype=np.float64)


def coordinates(block_info: Any = None) -> FloatArray:
    """Coordinates of one chunk."""
    info = block_info[None]
    rng = np.random.default_rng(info["chunk-location"])
    x: FloatArray = rng.uniform(*EXPONENTIAL.interval, info["chunk-shape"])
    return x


def observations(x: FloatArray, block_id: Any = None) -> FloatArray:
    """Noisy observations of one chunk."""
    a, b, c = EXPONENTIAL.truth
    noise = np.random.default_rng((1, *block_id)).standard_normal(x.shape)
    noise *= EXPONENTIAL.noise
    noise += a * np.exp(-b * x) + c
    return noise


def peak_bytes() -> int:
    """Most memory that this process has had resident.

    Linux: from the kernel's count for this program, as ``getrusage`` also counts the process that
    started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
