"""Broken and odd series: does each fit end with a status that is true?

Series of 60 rows, a exp(-x/τ) + c and a Gaussian + c, of kinds that detectors deliver: dead,
saturated, constant, spikes, steps, random walks, all missing, fewer rows than parameters, infinite
values, without noise, in units of 1e±150, and numbers of random exponents. For each series:

- its status is the one that its kind asks for, where there is only one;
- a fit without success has no error bars, and only one that is out of evaluations has estimates;
- a success is near its optimum: the Gauss-Newton step from there, by a QR decomposition of the
  Jacobian in NumPy, is below 1e-2 standard errors (0.11 for NEAR) or at rounding;
- a success has finite error bars only if that Jacobian, with columns of length 1, has full rank.

Bar: none otherwise. The figures follow from ``--seed``. ``--count`` is that of all kinds together;
``--kinds`` runs some of them.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Row, arguments, judge, report
from benchmarks.each import START, decay
from benchmarks.problems import FloatArray
from nlsq_dask import ConvergenceWarning, FitMaps, Status, fit_each, models

X = np.linspace(0.0, 10.0, 60)
PEAK = models.Gaussian() + models.Constant()

#: Of a Gauss-Newton step that is left, in standard errors, and relative to the parameters.
ARRIVED, NEAR, ROUNDING = 1e-2, 0.11, 1e-6

#: Least singular value of a Jacobian of columns of length 1 that determines its parameters.
LEAST = 1e-13


def _noise(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.normal(0.0, 0.05, (X.size, n))


def _decays(rng: np.random.Generator, n: int) -> FloatArray:
    tau = np.exp(rng.uniform(-1.5, 2.5, n))
    height = rng.choice([-1.0, 1.0], n) * np.exp(rng.uniform(-3, 3, n))
    return np.asarray(height * np.exp(-X[:, None] / tau) + rng.normal(0, 1, n))


def _saturated(rng: np.random.Generator, n: int) -> FloatArray:
    y = _decays(rng, n) + _noise(rng, n)
    low, high = np.quantile(y, (0.2, rng.uniform(0.3, 0.9)), axis=0)
    return np.clip(y, low, high)


def _spikes(rng: np.random.Generator, n: int) -> FloatArray:
    y = _noise(rng, n)
    y[rng.integers(0, X.size, n), np.arange(n)] += 10 ** rng.uniform(0, 8, n)
    return y


def _exponents(rng: np.random.Generator, n: int) -> FloatArray:
    return np.asarray(rng.normal(size=(X.size, n)) * 10.0 ** rng.integers(-150, 150, (X.size, n)))


def _few(rng: np.random.Generator, n: int) -> FloatArray:
    y = _decays(rng, n) + _noise(rng, n)
    y[2:] = np.nan
    return y


def _infinite(rng: np.random.Generator, n: int) -> FloatArray:
    y = _decays(rng, n) + _noise(rng, n)
    y[rng.integers(0, X.size, n), np.arange(n)] = rng.choice([-np.inf, np.inf], n)
    return y


def _gaps(rng: np.random.Generator, n: int) -> FloatArray:
    y = _decays(rng, n) + _noise(rng, n)
    y[rng.random(y.shape) < rng.uniform(0, 1, n)] = np.nan
    return y


#: Kinds of series, and the status that all of a kind must have, if there is one.
KINDS: dict[str, tuple[Callable[[np.random.Generator, int], FloatArray], Status | None]] = {
    "decays": (lambda rng, n: _decays(rng, n) + _noise(rng, n), None),
    "dead": (lambda _, n: np.zeros((X.size, n)), Status.UNDETERMINED),
    "constant": (
        lambda rng, n: np.ones((X.size, 1)) * rng.normal(0, 100, n),
        Status.UNDETERMINED,
    ),
    "saturated": (_saturated, None),
    "spikes": (_spikes, None),
    "steps": (lambda rng, n: (X[:, None] > rng.uniform(0, 10, n)) * rng.normal(0, 9, n), None),
    "walks": (lambda rng, n: np.cumsum(_noise(rng, n), axis=0), None),
    "noise": (_noise, None),
    "missing": (lambda _, n: np.full((X.size, n), np.nan), Status.TOO_FEW_ROWS),
    "few rows": (_few, Status.TOO_FEW_ROWS),
    "gaps": (_gaps, None),
    "infinite": (_infinite, Status.BAD_INPUT),
    "no noise": (_decays, None),
    "huge": (lambda rng, n: 1e150 * (_decays(rng, n) + _noise(rng, n)), None),
    "tiny": (lambda rng, n: 1e-150 * (_decays(rng, n) + _noise(rng, n)), None),
    "exponents": (_exponents, None),
}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, count=10_000, seed=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    options = parser.parse_args(argv)
    n = max(options.count // (2 * len(KINDS)), 1)
    rows: list[Row] = []
    for number, kind in enumerate(KINDS):
        if kind in options.kinds:
            rows += of_kind(kind, n, np.random.default_rng([options.seed, number]))
    return report("each_fuzz: series", rows, options.json)


def of_kind(kind: str, n: int, rng: np.random.Generator) -> list[Row]:
    """A line for each of the two models."""
    make, wanted = KINDS[kind]
    rows = []
    for name, model, start in (("decay", decay, START), ("peak", PEAK, None)):
        y = make(rng, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            maps = fit_each(model, X, y, start)
        wrong = untrue(model, maps, y, wanted)
        for what, where in wrong.items():
            for k in np.flatnonzero(where)[:3]:
                told = f"{Status(int(maps.status[k])).name}, {maps.popt.array[:, k]}"
                print(f"{kind}, {name}, series {k}: {what} ({told})", file=sys.stderr)
        good = int(np.asarray(maps.success).sum())
        count = int(np.any(list(wrong.values()), axis=0).sum())
        row: Row = {"kind": kind, "model": name, "series": n, "converged": good, "untrue": count}
        rows.append(row | _statuses(maps) | judge(count, at_most=0))
    return rows


def _statuses(maps: FitMaps) -> Row:
    counts = Counter({status.name: n for status, n in maps.counts().items()})
    return {"statuses": " ".join(f"{name}:{n}" for name, n in counts.most_common(3))}


def untrue(
    model: Callable[..., Any], maps: FitMaps, y: FloatArray, wanted: Status | None
) -> dict[str, NDArray[np.bool_]]:
    """Flags (n,) of series whose answer is not true, by what is wrong."""
    status, good = np.asarray(maps.status), np.asarray(maps.success)
    popt, perr = maps.popt.array, maps.perr.array
    known = good | (status == Status.MAX_EVALUATIONS)
    wrong = {
        "error bars without success": ~good & ~np.isnan(perr).all(axis=0),
        "estimates without an answer": ~known & ~np.isnan(popt).all(axis=0),
        "no estimates": known & ~np.isfinite(popt).all(axis=0),
    }
    if wanted is not None:
        wrong[f"not {wanted.name}"] = status != wanted
    far = np.zeros(good.size, np.bool_)
    unsupported = np.zeros(good.size, np.bool_)
    values, jacobian = derivatives(model, popt)
    for k in np.flatnonzero(good & np.isfinite(popt).all(axis=0)):
        distance, undetermined = distance_of(values[k], jacobian[k], popt[:, k], y[:, k])
        far[k] = distance > (NEAR if status[k] == Status.NEAR else ARRIVED)
        unsupported[k] = undetermined and bool(np.isfinite(perr[:, k]).all())
    return wrong | {"far from the optimum": far, "error bars of nothing": unsupported}


def derivatives(model: Callable[..., Any], popt: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values (n, m) and Jacobians (n, m, p) of all series."""

    def values(theta: Any) -> Any:
        return model(jnp.asarray(X), *theta)

    with jax.enable_x64(True):
        both = jax.jit(jax.vmap(lambda theta: (values(theta), jax.jacfwd(values)(theta))))
        found, jacobian = both(popt.T)
        return np.asarray(found), np.asarray(jacobian)


def distance_of(
    values: FloatArray, jacobian: FloatArray, popt: FloatArray, y: FloatArray
) -> tuple[float, bool]:
    """Standard errors from the optimum, 0 at rounding; and whether parameters are undetermined."""
    kept = np.isfinite(y)
    own = y[kept]
    size = float(np.max(np.abs(own))) or 1.0
    rest, jacobian = (values[kept] - own) / size, jacobian[kept] / size
    lengths = np.max(np.abs(jacobian), axis=0)  # squares of lengths may underflow
    if not (np.isfinite(lengths).all() and lengths.all()):
        return 0.0, True
    lengths *= np.linalg.norm(jacobian / lengths, axis=0)
    scaled = jacobian / lengths
    step, _, rank, singular = np.linalg.lstsq(scaled, -rest, rcond=1e-15)
    undetermined = rank < popt.size or singular[-1] < LEAST * singular[0]
    variance = float(rest @ rest) / max(own.size - popt.size, 1)
    length = float(np.linalg.norm(scaled @ step))
    at_rounding = np.abs(step) <= ROUNDING * lengths * np.abs(popt) + 1e-12
    distance = 0.0 if at_rounding.all() else length / max(variance**0.5, 1e-300)
    return distance, undetermined


if __name__ == "__main__":
    main()
