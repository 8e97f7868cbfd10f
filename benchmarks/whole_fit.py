"""Whole fits streamed from a local Zarr store, against reading it once and against a loop of today.

Measured, in seconds, in turn, on Dask's threads, or with ``--processes 2`` on a LocalCluster of so
many workers of one thread (a exp(-b x) + c, p=3; chunks of 64 MB, x and y):

- fit: ``fit(model, x, y, p0, cache=False)``, from the open store to the covariance: nothing is kept
  in memory between passes, as where the data are larger than it;
- kept: the same with the default cache, in which these rows fit;
- sum: ``(x.sum() + y.sum()).compute()``, one reading of the same arrays;
- cold: what a competent user writes with Dask and SciPy: ``map_blocks`` of a NumPy function that
  returns a block's JᵀJ, Jᵀr and cost, derivatives by hand, added in one reading for each point
  tried; and ``scipy.optimize.least_squares(method="trf")`` on the p + 1 rows that have the same
  sums, with the tolerances of our fit.

``--loops 0`` leaves out the loop, which takes longer than all the rest.

``apart`` is the largest difference of the two answers in standard errors: both find the same.

Bars: fit/sum 2.2 uncompressed, 1.6 with Zarr's default compression; kept/sum 1.8 and 1.2;
cold/fit 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky
from scipy.optimize import least_squares

from benchmarks.common import (
    Row,
    arguments,
    interleave,
    judge,
    local_cluster,
    ratio,
    report,
    stopwatch,
)
from benchmarks.problems import EXPONENTIAL, FloatArray
from benchmarks.streaming import CHUNK_ROWS, stores
from nlsq_dask import FitResult, fit

#: Most that a fit takes, in readings of the same arrays, by compression.
BARS = {"none": 2.2, "default": 1.6}
KEPT_BARS = {"none": 1.8, "default": 1.2}
LOOP_BAR = 6.0
#: Of ours too, by default.
TOLERANCE = 1e-8


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(
        __doc__, rows=200_000_000, chunk_rows=CHUNK_ROWS, repeat=3, processes=0, loops=1
    )
    options = parser.parse_args(argv)
    rows: list[Row] = []
    with ExitStack() as stack:
        paths = stack.enter_context(stores(options.rows, options.chunk_rows))
        if options.processes:  # Dask and fits then compute there
            stack.enter_context(local_cluster(options.processes, 1))
        for compression, path in paths.items():
            rows += measure(path, compression, options.repeat, options.loops)
    return report(f"whole_fit: seconds of a fit of {options.rows:,} rows", rows, options.json)


def measure(path: Path, compression: str, repeat: int, loops: int) -> list[Row]:
    """Time the fit of one store, its sum, and the loop, which takes many times as long."""
    x, y = (da.from_zarr(str(path), component=name) for name in "xy")
    total = x.sum() + y.sum()

    def ours(cache: Literal["auto", False]) -> FitResult:
        return fit(EXPONENTIAL.model(jnp), x, y, EXPONENTIAL.start, cache=cache)

    result = ours(False)
    cases: dict[str, Callable[[], object]] = {
        "fit": lambda: ours(False),
        "kept": lambda: ours("auto"),
        "sum": total.compute,
    }
    seconds = interleave(cases, repeat)
    times: Row = {name: float(np.median(values)) for name, values in seconds.items()}
    head: Row = {"compression": compression, "fit": times["fit"], "passes": result.n_passes}
    found, kept = (ratio(seconds[name], seconds["sum"]) for name in ("fit", "kept"))
    against_sum = {"against": "sum", "theirs": times["sum"], "ratio": found}
    looped = [stopwatch(lambda: dask_and_scipy(x, y, EXPONENTIAL.start)) for _ in range(loops)]
    return [
        head | against_sum | judge(found, at_most=BARS[compression]),
        *([head | against_loop(looped, times["fit"], result)] if looped else []),
        head
        | {"fit": times["kept"], "against": "sum", "theirs": times["sum"]}
        | {"ratio": kept, "kept": "yes"}
        | judge(kept, at_most=KEPT_BARS[compression]),
    ]


@dataclass(frozen=True)
class Loop:
    """Where the loop ended, and how often it read the data."""

    params: FloatArray
    n_passes: int


def against_loop(looped: Sequence[tuple[float, Loop]], ours: float, result: FitResult) -> Row:
    """Columns that hold our seconds against those of the loop."""
    theirs = float(np.median([seconds for seconds, _ in looped]))
    _, loop = looped[0]
    distance = float(np.max(np.abs(loop.params - result.popt) / result.perr))
    row: Row = {"against": "cold", "theirs": theirs, "ratio": theirs / ours}
    more = {"their passes": loop.n_passes, "apart": distance}
    return row | judge(theirs / ours, at_least=LOOP_BAR) | more


def block_sums(x: FloatArray, y: FloatArray, params: FloatArray) -> FloatArray:
    """JᵀJ, Jᵀr and the cost of a block of ``a exp(-b x) + c``, as one array (1, p + 1, p + 1)."""
    a, b, c = params
    e = np.exp(-b * x)
    residuals = a * e + c - y
    columns = np.stack([e, -a * x * e, np.ones_like(x), residuals])
    return (columns @ columns.T)[None]


def reduced(x: Any, y: Any, params: FloatArray) -> FloatArray:
    """Rows (p + 1, p + 1) with the JᵀJ, Jᵀr and cost of all rows: derivatives, then residuals."""
    size = params.size + 1
    sums = da.map_blocks(
        block_sums,
        x,
        y,
        params,
        new_axis=(1, 2),
        chunks=((1,) * x.numblocks[0], (size,), (size,)),
        dtype=np.float64,
        meta=np.empty((0, 0, 0)),
    )
    return cholesky(sums.sum(axis=0).compute())


def dask_and_scipy(x: Any, y: Any, p0: Sequence[float]) -> Loop:
    """Fit by SciPy, whose every look at the model is one reading of the data.

    A point at which SciPy asks for derivatives has been evaluated, and is not read again.
    """
    known: dict[bytes, FloatArray] = {}

    def rows(params: FloatArray) -> FloatArray:
        key = params.tobytes()
        if key not in known:
            known[key] = reduced(x, y, params)
        return known[key]

    solution = least_squares(
        lambda params: rows(params)[:, -1],
        p0,
        jac=lambda params: rows(params)[:, :-1],
        method="trf",
        x_scale="jac",
        ftol=TOLERANCE,
        xtol=TOLERANCE,
        gtol=TOLERANCE,
    )
    return Loop(solution.x, len(known))


if __name__ == "__main__":
    main()
