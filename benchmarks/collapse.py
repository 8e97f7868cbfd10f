"""A fit of a cube whose rows share few times, against one reading of the cube.

Measured, in seconds, from an uncompressed Zarr store on Dask's threads: the fit of a decay with the
constant c to y (time, pixel) in float32, with 500 times, in chunks of all times and of a few; and
``y.sum()``, which reads the same chunks once. The fit collapses the rows to their means at the
times in one reading, and searches in memory.

Bar: fit/sum at most 1.3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import zarr

from benchmarks.common import Row, arguments, interleave, judge, ratio, report
from nlsq_dask import fit
from nlsq_dask.results.result import FitResult

TIMES = 500
#: Chunks of 4 MB of the full cube: (times, parts of the pixels).
LAYOUTS = {"all times": (TIMES, 200), "ten times": (10, 4)}
BAR = 1.3


def decay(t: Any, a: Any, b: Any, c: Any) -> Any:
    """A decay to a constant."""
    return a * jnp.exp(-b * t) + c


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    options = arguments(__doc__, rows=2 * 10**8, repeat=7).parse_args(argv)
    n_pixels = max(options.rows // TIMES, *(parts for _, parts in LAYOUTS.values()))
    t = np.linspace(0.0, 4.0, TIMES)[:, None]
    rows = []
    for name, (times, parts) in LAYOUTS.items():
        with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
            y = stored(Path(folder), t, (times, -(-n_pixels // parts)), n_pixels)
            rows.append(compare(name, t, y, options.repeat))
    return report(f"collapse: a fit of {TIMES * n_pixels:,} rows, and a sum", rows, options.json)


def stored(folder: Path, t: np.ndarray, chunks: tuple[int, int], n_pixels: int) -> da.Array:
    """A noisy cube in a Zarr store, written block after block."""
    rng = np.random.default_rng(0)
    array = zarr.create_array(
        folder / "y", shape=(TIMES, n_pixels), chunks=chunks, dtype="f4", compressors=None
    )
    curve = 2.5 * np.exp(-1.3 * t) + 0.5
    for start in range(0, n_pixels, chunks[1]):
        width = min(chunks[1], n_pixels - start)
        noise = rng.standard_normal((TIMES, width), np.float32)
        array[:, start : start + width] = curve + 0.1 * noise
    return da.from_zarr(array)


def compare(name: str, t: np.ndarray, y: da.Array, repeat: int) -> Row:
    """Time the fit and the sum in turn."""
    results: list[FitResult] = []

    def fitted() -> None:
        results.append(fit(decay, t, y, p0=[1.0, 1.0, 0.0], progress=False))

    seconds = interleave({"fit": fitted, "sum": lambda: y.sum().compute()}, repeat)
    found = ratio(seconds["fit"], seconds["sum"])
    times = {key: float(np.median(values)) for key, values in seconds.items()}
    row = {"chunks": name} | times | {"passes": results[-1].n_passes, "fit/sum": found}
    return row | judge(found, at_most=BAR)


if __name__ == "__main__":
    main()
