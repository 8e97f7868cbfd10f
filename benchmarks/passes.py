"""How often a fit reads all rows: with the pilot, without it, and SciPy on the same data.

Four problems, streamed in ``--chunks`` chunks along sorted x, from starts that are 25 to 50 % off:

- passes: readings of all rows by ``fit`` with its defaults, the final covariance included;
- cold: the same without the pilot and with SciPy's criteria alone (``stat_tol=None``);
- scipy: evaluations (nfev) of ``scipy.optimize.curve_fit(method="trf")`` with the model's
  derivatives, on the same rows in memory;
- apart: the largest difference between our parameters and those of a fit that went on until
  nothing moved any more, in standard errors;
- after: distance from the optimum after each pass, in standard errors, as the fit estimates it.

Bars: passes 2, 2, 3, 3, and one more where the last pass is for the covariance at the answer;
apart 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import curve_fit

from benchmarks.common import Row, arguments, judge, report
from benchmarks.problems import PASSES, FloatArray, Problem
from nlsq_dask import fit

#: Most readings by problem, and most standard errors from the optimum.
BARS = dict(zip((problem.label for problem in PASSES), (2, 2, 3, 3), strict=True))
STANDARD_ERRORS = 0.01
#: With these a fit goes on until nothing moves any more.
TIGHT: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=4_000_000, chunks=100)
    options = parser.parse_args(argv)
    rows = [count(problem, options.rows, options.chunks) for problem in PASSES]
    return report(f"passes: readings of {options.rows:,} rows", rows, options.json)


def count(problem: Problem, n: int, chunks: int) -> Row:
    """Count the passes of one problem."""
    x, y = problem.data(n)
    order = np.argsort(x)
    x, y = x[order], y[order]
    model, chunk = problem.model(jnp), -(-n // chunks)
    lazy = [da.from_array(a, chunks=chunk) for a in (x, y)]
    result = fit(model, *lazy, problem.start)
    cold = fit(model, *lazy, problem.start, pilot=False, stat_tol=None)
    converged = fit(model, x, y, result.popt, pilot=False, **TIGHT)
    apart = float(np.max(np.abs(result.popt - converged.popt) / converged.perr))
    verdict = judge(result.n_passes, at_most=BARS[problem.label])
    if judge(apart, at_most=STANDARD_ERRORS)["met"] == "NO":
        verdict["met"] = "NO"
    after = " ".join(f"{record.distance:.1e}" for record in result.history)
    counts = {"passes": result.n_passes, "cold": cold.n_passes, "scipy": scipys(problem, x, y)}
    return {"problem": problem.label} | counts | verdict | {"apart": apart, "after": after}


def scipys(problem: Problem, x: FloatArray, y: FloatArray) -> int:
    """Evaluations that SciPy needs."""
    model = problem.model(jnp)
    with jax.enable_x64(True):
        value = jax.jit(model)
        derivatives = jax.jit(
            jax.vmap(
                jax.grad(model, tuple(range(1, 1 + len(problem.start)))),
                (0, *[None] * len(problem.start)),
            )
        )
        *_, information, _, _ = curve_fit(
            lambda *a: np.asarray(value(*a)),
            x,
            y,
            p0=problem.start,
            method="trf",
            jac=lambda *a: np.stack(derivatives(*a), axis=1),
            x_scale="jac",
            full_output=True,
        )
    return int(information["nfev"])


if __name__ == "__main__":
    main()
