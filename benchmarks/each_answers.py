"""The answers of one fit for each series, against SciPy series by series.

60 rows a series (100 of two exponentials), 5 % of them missing. SciPy starts at the truth, or for
bounds at our answer, with tolerances of 1e-12.

- decay: a exp(-x/τ) + c from one start for all: the share of our converged series whose parameters
  all are within 1e-3 standard errors of SciPy's;
- bounds: τ at most 2, by which two thirds of the series are bound: series whose sum of squares
  exceeds that of SciPy's "trf" by more than 1e-3 of the variance of a row;
- two exponentials + c, p = 5, bounded, from one start for all: the share that does not;
- peak: a Gaussian + c of unknown place and width, without p0: the share of all series that ends as
  low as SciPy from the truth, and the share that converged elsewhere and does not say so.

Bars: 99.99 %, 0, 100 %, 99.9 % at a signal-to-noise ratio of 20, and 0.5 % silent at a ratio of 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from benchmarks.common import Row, arguments, judge, report
from benchmarks.each import START, decay, decay_numpy, decays
from benchmarks.problems import FloatArray
from nlsq_dask import ConvergenceWarning, FitMaps, fit_each, models

PEAK = models.Gaussian() + models.Constant()
RIGHT = 1e-3
TIGHT = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, series=1000)
    options = parser.parse_args(argv)
    n = options.series
    rows = [decays_of(n, ratio) for ratio in (20, 1000, 100_000)]
    rows += [bounded(n), two_exponentials(n)]
    rows += [peaks(n, ratio) for ratio in (20, 3)]
    return report("each_answers: series as SciPy has them", rows, options.json)


def by_scipy(
    model: Callable[..., Any], x: FloatArray, y: FloatArray, start: FloatArray, **options: Any
) -> tuple[FloatArray, FloatArray]:
    """Parameters (p, n) and sums of squares (n,) of each series."""
    ends, sums = [], []
    for own, at in zip(y.T, start.T, strict=True):
        kept = np.isfinite(own)

        def residuals(theta: FloatArray, kept: Any = kept, own: Any = own) -> FloatArray:
            return np.asarray(model(x[kept], *theta) - own[kept])

        with np.errstate(all="ignore"):
            found = least_squares(residuals, at, x_scale="jac", **(TIGHT | options))
        ends.append(found.x)
        sums.append(2 * found.cost)
    return np.array(ends).T, np.array(sums)


def above(maps: FitMaps, sums: FloatArray) -> FloatArray:
    """How far our sums of squares exceed SciPy's, in variances of a row."""
    p = len(maps.names)
    variance = sums / np.maximum(np.asarray(maps.n_points) - p, 1)
    return np.asarray((np.asarray(maps.chi2) - sums) / np.maximum(variance, 1e-300))


def decays_of(n: int, signal: float) -> Row:
    """Parameters of decays in units of their standard errors from SciPy's."""
    x, y, tau = decays(n, noise=1 / signal)
    maps = fit_each(decay, x, y, START)
    truth = np.stack([np.ones(n), tau, np.full(n, 0.2)])
    ends, _ = by_scipy(decay_numpy, x, y, truth)
    converged = np.asarray(maps.success)
    off = np.abs(maps.popt.array - ends) / maps.perr.array
    right = (off < RIGHT).all(axis=0)[converged].mean()
    row: Row = {"problem": f"decay, signal/noise {signal:g}", "converged": converged.mean()}
    row |= {"right": right}
    return row | (judge(float(right), at_least=0.9999) if signal == 20 else {})


def bounded(n: int) -> Row:
    """Sums of squares where bounds bind."""
    x, y, _ = decays(n)
    bounds = ([0.0, 0.05, -5.0], [10.0, 2.0, 5.0])
    maps = fit_each(decay, x, y, START, bounds=bounds)
    inside = np.clip(maps.popt.array, np.array(bounds[0])[:, None] + 1e-6, None)
    inside = np.clip(inside, None, np.array(bounds[1])[:, None] - 1e-6)
    _, sums = by_scipy(decay_numpy, x, y, inside, bounds=bounds)
    worse = int((above(maps, sums) > RIGHT).sum())
    share = float((np.asarray(maps.at_bound) > 0).mean())
    row: Row = {"problem": f"bounds, which bind {100 * share:.0f} %"}
    return (
        row
        | {"converged": np.asarray(maps.success).mean(), "worse": worse}
        | judge(worse, at_most=0)
    )


def double(xp: Any) -> Callable[..., Any]:
    """Two exponentials and a constant, in the functions of an array library."""

    def model(x: Any, a: Any, tau: Any, b: Any, slow: Any, c: Any) -> Any:
        return a * xp.exp(-x / tau) + b * xp.exp(-x / slow) + c

    return model


def two_exponentials(n: int) -> Row:
    """An ill-conditioned problem: two lifetimes that differ by factors of 4 to 8."""
    rng = np.random.default_rng(1)
    x = np.linspace(0.0, 20.0, 100)
    tau = rng.uniform(0.5, 1.5, n)
    truth = np.stack([np.ones(n), tau, np.ones(n), tau * rng.uniform(4, 8, n), np.full(n, 0.2)])
    y = double(np)(x[:, None], *truth) + rng.normal(0.0, 0.01, (x.size, n))
    y[rng.random(y.shape) < 0.05] = np.nan
    bounds = ([0.0, 0.05, 0.0, 2.0, -5.0], [10.0, 2.0, 10.0, 50.0, 5.0])
    maps = fit_each(double(jnp), x, y, [0.5, 1.0, 0.5, 5.0, 0.0], bounds=bounds)
    _, sums = by_scipy(
        double(np), x, y, np.clip(truth, *np.array(bounds)[:, :, None]), bounds=bounds
    )
    right = float((above(maps, sums) < RIGHT).mean())
    row: Row = {"problem": "two exponentials", "converged": np.asarray(maps.success).mean()}
    return row | {"right": right} | judge(right, at_least=1.0)


def peaks(n: int, signal: float) -> Row:
    """Peaks of unknown place, whose starts are guessed."""
    rng = np.random.default_rng(2)
    x = np.linspace(0.0, 1.0, 60)
    sigma = np.exp(rng.uniform(np.log(0.02), np.log(0.2), n))
    truth = np.stack([np.ones(n), rng.uniform(0.05, 0.95, n), sigma, rng.normal(0, 1, n)])
    y = PEAK(x[:, None], *truth) + rng.normal(0.0, 1 / signal, (x.size, n))
    y[rng.random(y.shape) < 0.05] = np.nan
    with warnings.catch_warnings():  # a weak peak may not be determined
        warnings.simplefilter("ignore", ConvergenceWarning)
        maps = fit_each(PEAK, x, y)
    _, sums = by_scipy(PEAK, x, y, truth)
    right = above(maps, sums) < RIGHT
    converged = np.asarray(maps.success)
    silent = float((converged & ~right).mean())
    row: Row = {"problem": f"peak, signal/noise {signal:g}", "converged": converged.mean()}
    row |= {"right": float(right.mean()), "silent": silent}
    if signal == 20:
        return row | judge(row["right"], at_least=0.999)
    return row | judge(silent, at_most=5e-3)


if __name__ == "__main__":
    main()
