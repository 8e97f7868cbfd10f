"""A fit of a cube whose rows share few times, against one reading of the cube.

Measured, in seconds, from a Zarr store on Dask's threads: the fit of a decay to a constant to y
(time, pixel) in float32, with 500 times, in chunks of all times and of ten; and ``y.sum()``, which
reads the same chunks once. The fit collapses the rows to their means at the times in one reading,
and searches in memory. The store is uncompressed, or compressed as Zarr does by default.

Bar: fit/sum at most 1.3.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import zarr

from benchmarks.common import Row, arguments, interleave, judge, ratio, report
from benchmarks.problems import FloatArray
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
    for compressed, (name, (times, parts)) in itertools.product((False, True), LAYOUTS.items()):
        with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
            y = stored(Path(folder), t, (times, -(-n_pixels // parts)), n_pixels, compressed)
            kind = {"chunks": name, "compression": "default" if compressed else "none"}
            rows.append(kind | compare(t, y, options.repeat))
    return report(f"collapse: a fit of {TIMES * n_pixels:,} rows, and a sum", rows, options.json)


def stored(
    folder: Path, t: FloatArray, chunks: tuple[int, int], n_pixels: int, compressed: bool
) -> da.Array:
    """A noisy cube in a Zarr store, written block after block."""
    rng = np.random.default_rng(0)
    compressors: Any = "auto" if compressed else None
    shape = (TIMES, n_pixels)
    array = zarr.create_array(
        folder / "y", shape=shape, chunks=chunks, dtype="f4", compressors=compressors
    )
    curve = 2.5 * np.exp(-1.3 * t) + 0.5
    for start in range(0, n_pixels, chunks[1]):
        width = min(chunks[1], n_pixels - start)
        noise = rng.standard_normal((TIMES, width), np.float32)
        array[:, start : start + width] = curve + 0.1 * noise
    return da.from_zarr(array)


def compare(t: FloatArray, y: da.Array, repeat: int) -> Row:
    """Time the fit and the sum in turn."""
    results: list[FitResult] = []

    def fitted() -> None:
        results.append(fit(decay, t, y, p0=[1.0, 1.0, 0.0], progress=False))

    seconds = interleave({"fit": fitted, "sum": lambda: y.sum().compute()}, repeat)
    found = ratio(seconds["fit"], seconds["sum"])
    times = {key: float(np.median(values)) for key, values in seconds.items()}
    row = times | {"passes": results[-1].n_passes, "fit/sum": found}
    return row | judge(found, at_most=BAR)


if __name__ == "__main__":
    main()
