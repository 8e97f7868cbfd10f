"""Fits of many series from poor starts, against ``scipy.optimize.curve_fit`` series by series.

40 rows a series, noise of 0.05, amplitudes of 1 to 3, one start for all series. A series is right
if its sum of squares is at most 0.1 % above that of a fit from the truth. Counted are:

- right: our series that are right;
- elsewhere: our series that converged to another minimum;
- scipy: series of SciPy ("lm") that are right;
- evaluations: ours a series, all searches included. SciPy's do not count derivatives.

Bar: at least as many right as SciPy.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from benchmarks.common import Row, arguments, judge, report
from benchmarks.each_answers import by_scipy
from benchmarks.problems import FloatArray
from nlsq_dask import ConvergenceWarning, fit_each

X = np.linspace(0.0, 5.0, 40)
NOISE = 0.05
RIGHT = 1.001


class Family(NamedTuple):
    """A model, the ranges of its parameters, and poor starts."""

    name: str
    model: Callable[[Any], Callable[..., Any]]
    ranges: Sequence[tuple[float, float]]
    starts: Sequence[Sequence[float]]


def decay(xp: Any) -> Callable[..., Any]:
    """A decay to a constant."""
    return lambda x, a, tau, c: a * xp.exp(-x / tau) + c


def peak(xp: Any) -> Callable[..., Any]:
    """A Gaussian on a constant."""
    return lambda x, a, mid, width, c: a * xp.exp(-0.5 * ((x - mid) / width) ** 2) + c


def two_decays(xp: Any) -> Callable[..., Any]:
    """Two decays to zero."""
    return lambda x, a, tau, b, slow: a * xp.exp(-x / tau) + b * xp.exp(-x / slow)


def wave(xp: Any) -> Callable[..., Any]:
    """A sine on a constant."""
    return lambda x, a, rate, phase, c: a * xp.sin(rate * x + phase) + c


FAMILIES = (
    Family(
        "decay",
        decay,
        [(1, 3), (0.5, 2), (0, 1)],
        [(1, 1, 0), (1, 5, 0), (10, 1, 5), (-1, 1, 0), (0.1, 20, 0)],
    ),
    Family(
        "peak",
        peak,
        [(1, 3), (1, 4), (0.2, 1), (0, 1)],
        [(1, 2.5, 2, 0), (1, 2.5, 0.5, 0), (1, 1, 1, 0)],
    ),
    Family(
        "two decays",
        two_decays,
        [(1, 3), (0.2, 0.5), (1, 2), (2, 4)],
        [(1, 1, 1, 2), (1, 0.1, 1, 10)],
    ),
    Family("wave", wave, [(1, 3), (2, 3), (-1, 1), (0, 1)], [(1, 2.5, 0, 0), (1, 2, 0, 0)]),
)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    options = arguments(__doc__, series=500).parse_args(argv)
    rows: list[Row] = []
    for family in FAMILIES:
        rows += of_family(family, options.series)
    return report("each_starts: series that find their optimum", rows, options.json)


def of_family(family: Family, n: int) -> list[Row]:
    """A row for each start."""
    rng = np.random.default_rng(1)
    model = family.model(np)
    truth = np.array([rng.uniform(low, high, n) for low, high in family.ranges])
    y = model(X[:, None], *truth) + NOISE * rng.standard_normal((X.size, n))
    _, lowest = by_scipy(model, X, y, truth)
    return [_row(family, y, lowest, start) for start in family.starts]


def _row(family: Family, y: FloatArray, lowest: FloatArray, start: Sequence[float]) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        maps = fit_each(family.model(jnp), X, y, start)
    converged = np.asarray(maps.success)
    right = converged & (np.asarray(maps.chi2) <= RIGHT * lowest)
    theirs = _by_curve_fit(family.model(np), y, start) <= RIGHT * lowest
    row: Row = {
        "start": f"{family.name} {tuple(start)}",
        "right": int(right.sum()),
        "elsewhere": int((converged & ~right).sum()),
        "scipy": int(theirs.sum()),
        "evaluations": float(np.mean(maps.nfev)),
    }
    return row | judge(int(right.sum()), at_least=int(theirs.sum()))


def _by_curve_fit(model: Callable[..., Any], y: FloatArray, start: Sequence[float]) -> FloatArray:
    """Sums of squares (n,) where SciPy ends; infinite without an end."""
    sums = np.full(y.shape[1], np.inf)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)
        for i, own in enumerate(y.T):
            with contextlib.suppress(RuntimeError):  # out of evaluations
                found, _ = curve_fit(model, X, own, p0=start)
                sums[i] = float(np.sum((model(X, *found) - own) ** 2))
    return sums


if __name__ == "__main__":
    main()
