"""How often a fit with a robust loss reads all rows, where noise exceeds the scale of the loss.

``a exp(-b x) + c``, streamed in ``--chunks`` chunks along sorted x, for residuals of 1, 3 and 10
times ``f_scale``:

- passes: readings of all rows by ``fit`` with its defaults;
- apart: the largest difference between our parameters and those of a fit that went on until
  nothing moved any more, in standard errors;
- ours, scipy: evaluations (nfev) in memory from the same start, by ``fit`` and by
  ``scipy.optimize.least_squares(method="trf")``, both to SciPy's default tolerances;
- scipy apart: how far SciPy's answer is from where it goes if it is run on; inf where that is
  nowhere.

Bar: apart 0.01.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from benchmarks.common import Row, arguments, judge, report
from benchmarks.passes import STANDARD_ERRORS, TIGHT
from benchmarks.problems import PASSES, FloatArray
from nlsq_dask import CovarianceWarning, FitResult, LossScaleWarning, fit

PROBLEM = next(problem for problem in PASSES if problem.label.startswith("a exp"))
LOSSES = ("soft_l1", "cauchy", "arctan")
#: Standard deviations of the noise in units of f_scale.
SCALES = (1, 3, 10)
#: SciPy's creeps.
MAX_NFEV = 2000


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=200_000, chunks=100)
    options = parser.parse_args(argv)
    x, y = PROBLEM.data(options.rows)
    order = np.argsort(x)
    data = x[order], y[order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossScaleWarning)  # what is measured
        rows = [count(loss, k, data, options.chunks) for loss in LOSSES for k in SCALES]
    return report(f"losses: readings of {options.rows:,} rows", rows, options.json)


def count(loss: str, noises: int, data: tuple[FloatArray, FloatArray], chunks: int) -> Row:
    """Count the passes of fits with one loss, in noise of so many times its scale."""
    model, start = PROBLEM.model(jnp), PROBLEM.start
    lazy = [da.from_array(a, chunks=-(-a.size // chunks)) for a in data]
    robust: dict[str, Any] = {"loss": loss, "f_scale": PROBLEM.noise / noises}
    result = fit(model, *lazy, start, **robust)
    ours = fit(model, *data, start, pilot=False, **robust)
    residuals, jacobian = functions(*data)
    theirs = least_squares(residuals, start, jacobian, x_scale="jac", max_nfev=MAX_NFEV, **robust)

    def apart(params: FloatArray) -> float:
        with warnings.catch_warnings():
            # In little data SciPy's may leave for a line, of which nothing is determined.
            warnings.simplefilter("ignore", CovarianceWarning)
            there: FitResult = fit(model, *data, params, pilot=False, **robust, **TIGHT)
        if not np.isfinite(there.perr).all():
            return math.inf
        return float(np.max(np.abs(params - there.popt) / there.perr))

    off = apart(result.popt)
    return {
        "loss": loss,
        "noise / f_scale": noises,
        "passes": result.n_passes,
        **judge(off, at_most=STANDARD_ERRORS),
        "apart": off,
        "ours": ours.nfev,
        "scipy": int(theirs.nfev),
        "scipy apart": apart(theirs.x),
    }


def functions(
    x: FloatArray, y: FloatArray
) -> tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]]:
    """Residuals (n,) and their Jacobian (n, 3) in NumPy, as SciPy wants them."""
    model = PROBLEM.model(np)

    def residuals(params: FloatArray) -> FloatArray:
        difference: FloatArray = model(x, *params) - y
        return difference

    def jacobian(params: FloatArray) -> FloatArray:
        a, b, _ = params
        decay = np.exp(-b * x)
        return np.stack([decay, -a * x * decay, np.ones_like(x)], axis=1)

    return residuals, jacobian


if __name__ == "__main__":
    main()
