"""Whole fits of data in memory, against ``scipy.optimize.curve_fit``.

Measured, in seconds, same data, start and tolerances (1e-8) for all:

- warm: the fit in a process that has fitted this model before;
- cold: the first fit of a fresh process, everything compiled (imports are not in it, for either);
- small: 100 rows, fitted again and again with one model, in milliseconds.

``apart`` is the largest difference between our parameters and SciPy's in standard errors: all must
find the same. SciPy gets the model in NumPy, and differentiates it numerically.

``passes`` is how often our fit read all rows: a sample is fitted first (see ``passes.py``).

Bars: p=3, 1e7 rows: 18 times faster than method="lm", 20 times than "trf"; cold not slower than
"lm"; p=10, 1e6 rows: 18 and 18 times; small: 5 ms. Those against the package NLSQ are in
``nlsq_reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import curve_fit

from benchmarks.common import (
    Row,
    arguments,
    in_fresh_process,
    interleave,
    judge,
    ratio,
    report,
    stopwatch,
)
from benchmarks.problems import EXPONENTIAL, GAUSSIANS, FloatArray, Problem
from nlsq_dask import FitResult, fit

TOLERANCES: dict[str, Any] = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}
#: Times faster than SciPy's "lm" and "trf".
BARS = {EXPONENTIAL.label: (18.0, 20.0), GAUSSIANS.label: (18.0, 18.0)}
SMALL_ROWS = 100
SMALL_MILLISECONDS = 5.0
#: Where two criteria stop at the same minimum, they stop this near to each other.
STANDARD_ERRORS = 0.1


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=10_000_000, repeat=3)
    options = parser.parse_args(argv)
    rows: list[Row] = []
    for problem, n in ((EXPONENTIAL, options.rows), (GAUSSIANS, options.rows // 10)):
        rows += warm(problem, n, options.repeat)
    rows += cold(EXPONENTIAL, options.rows, options.repeat)
    rows.append(small(20 * options.repeat))
    return report("in_memory: seconds of a fit", rows, options.json)


def ours(problem: Problem, x: FloatArray, y: FloatArray) -> Callable[[], FitResult]:
    """Our fit, ready to be called."""
    model = problem.model(jnp)
    return lambda: fit(model, x, y, p0=problem.start, **TOLERANCES)


def scipys(
    problem: Problem, x: FloatArray, y: FloatArray, method: str
) -> Callable[[], tuple[FloatArray, FloatArray]]:
    """SciPy's fit, ready to be called."""
    model = problem.model(np)
    return lambda: curve_fit(model, x, y, p0=problem.start, method=method, **TOLERANCES)


def warm(problem: Problem, n: int, repeat: int) -> list[Row]:
    """Fits in turn, in this process."""
    x, y = problem.data(n)
    result = ours(problem, x, y)()
    contestants = {method: scipys(problem, x, y, method) for method in ("lm", "trf")}
    seconds = interleave({"ours": ours(problem, x, y), **contestants}, repeat)
    rows = []
    for (method, call), bar in zip(contestants.items(), BARS[problem.label], strict=True):
        row = line(problem.label, n, method, seconds["ours"], seconds[method], bar)
        row |= {"passes": result.n_passes, "apart": apart(result, call()[0])}
        rows.append(row)
    return rows


def apart(result: FitResult, popt: FloatArray) -> float:
    """Largest difference of parameters, in standard errors.

    Raises
    ------
    RuntimeError
        If these are different minima: their times cannot be compared.
    """
    distance = float(np.max(np.abs(popt - result.popt) / result.perr))
    if not distance <= STANDARD_ERRORS:
        raise RuntimeError(f"found {result.popt} and {popt}, {distance:.3g} standard errors apart")
    return distance


def cold(problem: Problem, n: int, repeat: int) -> list[Row]:
    """First fits of fresh processes."""
    seconds: dict[str, list[float]] = {"ours": [], "lm": []}
    for _ in range(repeat):
        for who, values in seconds.items():
            values.append(in_fresh_process(first_fit, problem, n, who))
    first, theirs = (np.array(values) for values in seconds.values())
    return [line(f"{problem.label}, cold", n, "lm", first, theirs, 1.0)]


def first_fit(problem: Problem, n: int, who: str) -> float:
    """Seconds of the first fit in this process."""
    x, y = problem.data(n)
    call = ours(problem, x, y) if who == "ours" else scipys(problem, x, y, who)
    return stopwatch(call)[0]


def small(repeat: int) -> Row:
    """Many small fits of one model."""
    x, y = EXPONENTIAL.data(SMALL_ROWS)
    calls = {"ours": ours(EXPONENTIAL, x, y), "lm": scipys(EXPONENTIAL, x, y, "lm")}
    seconds = interleave(calls, repeat)
    row = line(f"{EXPONENTIAL.label}, small", SMALL_ROWS, "lm", seconds["ours"], seconds["lm"], 0.0)
    milliseconds = 1e3 * float(row["ours"])
    verdict = judge(milliseconds, at_most=SMALL_MILLISECONDS)
    return row | verdict | {"bar": f"{verdict['bar']} ms"}


def line(label: str, n: int, method: str, mine: FloatArray, theirs: FloatArray, bar: float) -> Row:
    """A line of the table."""
    found = ratio(theirs, mine)
    times = {"ours": float(np.median(mine)), "scipy": float(np.median(theirs))}
    head = {"problem": label, "rows": n, "against": method}
    return head | times | {"faster": found} | judge(found, at_least=bar)


if __name__ == "__main__":
    main()
