"""Fits of few rows: what a fit costs beside its rows, and what the first fit of a process costs.

Measured, with one model of 3 parameters:

- again: processor time of a fit of 100 rows in a process that has fitted the model, in
  milliseconds, next to ``scipy.optimize.curve_fit``. The model is a function of a module, or has
  its library in a variable of an outer function;
- calls: Python functions that such a fit calls, those of this package among them, and how many
  different functions of this package a fit of 5,000 rows with a new model enters;
- first: processor time of the first fit of a fresh process after ``import jax``, 5,000 rows, in
  seconds: the imports of this package, tracing and other work in Python, compilation by XLA, and
  the same fit once more.

Processor time counts the work of all threads. Bars: 1.5 ms, and 0.25 s, on an idle machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import curve_fit

from benchmarks.common import Row, arguments, in_fresh_process, interleave, judge, ratio, report
from benchmarks.first_fit import decay
from benchmarks.problems import EXPONENTIAL, FloatArray, Model
from nlsq_dask import fit

TOLERANCES: dict[str, Any] = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}
AGAIN_MILLISECONDS = 1.5
FIRST_SECONDS = 0.25


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__, rows=100, first_rows=5000, repeat=200, processes=5)
    options = parser.parse_args(argv)
    rows = in_fresh_process(again, options.rows, options.repeat)
    rows += in_fresh_process(calls, options.rows, options.first_rows)
    firsts = [first(options.first_rows) for _ in range(options.processes)]
    parts = {name: float(np.median([one[name] for one in firsts])) for name in firsts[0]}
    verdict = judge(parts["imports"] + parts["fit"], at_most=FIRST_SECONDS)
    rows.append({"what": "first, s", "rows": options.first_rows} | parts | verdict)
    return report("small_fit: fits of few rows", rows, options.json)


def fitting(model: Model, x: FloatArray, y: FloatArray) -> Callable[[], object]:
    """A fit, ready to be called."""
    return lambda: fit(model, x, y, p0=EXPONENTIAL.start, **TOLERANCES)


def again(n_rows: int, repeat: int) -> list[Row]:
    """Fits of models that the process has fitted, in turn with SciPy's."""
    x, y = EXPONENTIAL.data(n_rows)
    theirs = EXPONENTIAL.model(np)
    contestants: dict[str, Callable[[], object]] = {
        "again, module": fitting(decay, x, y),
        "again, variable": fitting(EXPONENTIAL.model(jnp), x, y),
        "scipy": lambda: curve_fit(theirs, x, y, EXPONENTIAL.start, method="lm", **TOLERANCES),
    }
    seconds = interleave(contestants, repeat, time.process_time)
    scipy = seconds.pop("scipy")
    rows = []
    for what, ours in seconds.items():
        fit_ms, scipy_ms = (1e3 * float(np.median(s)) for s in (ours, scipy))
        row = {"what": f"{what}, ms", "rows": n_rows, "fit": fit_ms, "scipy": scipy_ms}
        rows.append(row | {"ratio": ratio(ours, scipy)} | judge(fit_ms, at_most=AGAIN_MILLISECONDS))
    return rows


def calls(n_rows: int, first_rows: int) -> list[Row]:
    """Numbers of calls of a fit with a known model, and with a new model."""
    known = fitting(EXPONENTIAL.model(jnp), *EXPONENTIAL.data(n_rows))
    known()
    new = fitting(decay, *EXPONENTIAL.data(first_rows))
    rows = []
    for what, n, call in (("known model", n_rows, known), ("new model", first_rows, new)):
        entered = calls_in(call)
        own = [code for code in entered if "/nlsq_dask/" in code.co_filename]
        counts = {"fit": len(entered), "own": len(own), "own functions": len(set(own))}
        rows.append({"what": f"calls, {what}", "rows": n} | counts)
    return rows


def calls_in(call: Callable[[], object]) -> list[CodeType]:
    """The Python functions that a call enters in this thread, in their order."""
    entered: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.append(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def first(n_rows: int) -> dict[str, float]:
    """Seconds of the first fit of a process, in parts: a script that imports nothing else."""
    command = [sys.executable, "-m", "benchmarks.first_fit", str(n_rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    parts: dict[str, float] = json.loads(done.stdout)
    return parts


if __name__ == "__main__":
    main()
