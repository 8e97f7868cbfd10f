"""One fit for each series, against what people use for it.

20,000 series of 60 rows, a exp(-x/τ) + c with τ from 0.5 to 5, noise 0.05, 5 % of the rows missing,
and one start for all. In one process on one core, in turns, microseconds of processor time for each
series:

- ours: ``fit_each``, all series, until each is within 1e-4 standard errors of its optimum;
- xarray: ``DataArray.curvefit``, of some series, for its time a series does not depend on their
  number; lmfit: a loop over some series; astropy: ``parallel_fit_dask`` of some series.
- C: a pass over all rows by the loop of ``kernel.c`` in nanoseconds a row, next to ours in
  nanoseconds for each row and evaluation: everything that a fit does, by the evaluations it needed.

Bars: at least 50 times xarray's "lm", 400 times xarray with bounds, 300 times astropy and 400 times
lmfit; at most 7.5 times the loop in C. lmfit and astropy are left out where they are not installed.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.by_hand import loop_by_hand
from benchmarks.common import Row, arguments, in_fresh_process, interleave, judge, ratio, report
from benchmarks.problems import EXPONENTIAL, FloatArray
from nlsq_dask import fit_each

ROWS = 60
NAMES = ("amplitude", "tau", "offset")
START = (1.0, 1.0, 0.0)
BOUNDS = ((0.0, 0.05, -5.0), (10.0, 50.0, 5.0))

#: Least that others may take in units of ours, and how many series of theirs are timed.
BARS = {
    "xarray lm": (50, 400),
    "xarray bounds": (400, 100),
    "astropy": (300, 100),
    "lmfit": (400, 50),
}
AT_MOST_C = 7.5


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, series=20_000, repeat=3)
    options = parser.parse_args(argv)
    rows = in_fresh_process(measure, options.series, options.repeat, cores=1)
    return report("each: microseconds a series", rows, options.json)


def decay(x: Any, amplitude: Any, tau: Any, offset: Any) -> Any:
    """``a exp(-x/τ) + c`` in JAX."""
    return amplitude * jnp.exp(-x / tau) + offset


def decay_numpy(x: Any, amplitude: Any, tau: Any, offset: Any) -> Any:
    """``a exp(-x/τ) + c`` in NumPy, for the others."""
    return amplitude * np.exp(-x / tau) + offset


def decays(n_series: int, noise: float = 0.05, missing: float = 0.05) -> Any:
    """Coordinates (m,), observations (m, n) with rows that are missing, and lifetimes (n,)."""
    rng = np.random.default_rng(0)
    x, tau = np.linspace(0.0, 10.0, ROWS), rng.uniform(0.5, 5.0, n_series)
    y = np.exp(-x[:, None] / tau) + 0.2 + rng.normal(0.0, noise, (ROWS, n_series))
    y[rng.random(y.shape) < missing] = np.nan
    return x, y, tau


def measure(n_series: int, repeat: int) -> list[Row]:
    """Time all contestants on the same series."""
    warnings.simplefilter("ignore")  # of the others, for series that they cannot fit
    x, y, _ = decays(n_series)
    maps = fit_each(decay, x, y, START)
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: fit_each(decay, x, y, START),
        "ours, bounds": lambda: fit_each(decay, x, y, START, bounds=BOUNDS),
    }
    n_of = dict.fromkeys(contestants, n_series)
    for name, call in others(x, y).items():
        n_of[name] = min(BARS[name][1], n_series)
        contestants[name] = _some(call, n_of[name])
    by_hand = loop_by_hand(EXPONENTIAL)
    flat = _flat(x, y)
    if by_hand is not None:
        params = np.array(EXPONENTIAL.truth)
        contestants["C"] = lambda: by_hand(params, *flat)
    seconds = interleave(contestants, repeat, time.process_time)
    rows = []
    for name, n in n_of.items():
        row: Row = {"who": name, "series": n, "us": float(np.median(seconds[name])) / n * 1e6}
        if name in BARS:
            ours = seconds["ours, bounds" if "bounds" in name else "ours"] / n_series
            times = ratio(seconds[name] / n, ours)
            row |= {"times ours": times} | judge(times, at_least=BARS[name][0])
        rows.append(row)
    passes = float(np.sum(maps.nfev)) * ROWS
    row = {"who": "ours, ns a row and pass", "ns": float(np.median(seconds["ours"])) / passes * 1e9}
    if by_hand is not None:
        own, limit = seconds["ours"] / passes, seconds["C"] / flat[0].size
        row |= {"ns in C": float(np.median(limit)) * 1e9, "times C": ratio(own, limit)}
        row |= judge(row["times C"], at_most=AT_MOST_C)
    return [*rows, row]


def _some(call: Callable[[int], object], n: int) -> Callable[[], object]:
    return lambda: call(n)


def _flat(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """All rows of all series as one, of a multiple of 256, for the loop in C."""
    n = y.size // 256 * 256
    return np.tile(x, y.shape[1])[:n].copy(), np.nan_to_num(y.T).ravel()[:n].copy()


def others(x: FloatArray, y: FloatArray) -> dict[str, Callable[[int], object]]:
    """What people use, each as a function of the number of series."""
    import xarray as xr

    data = xr.DataArray(y, dims=("x", "series"), coords={"x": x})
    start = dict(zip(NAMES, START, strict=True))
    bounds = dict(zip(NAMES, zip(*BOUNDS, strict=True), strict=True))

    def by_xarray(n: int, **options: Any) -> object:
        chosen = data.isel(series=slice(n))
        return chosen.curvefit("x", decay_numpy, p0=start, errors="ignore", **options)

    found: dict[str, Callable[[int], object]] = {
        "xarray lm": by_xarray,
        "xarray bounds": lambda n: by_xarray(n, bounds=bounds),
    }
    if importlib.util.find_spec("astropy") is not None:
        found["astropy"] = lambda n: by_astropy(x, y[:, :n])
    if importlib.util.find_spec("lmfit") is not None:
        found["lmfit"] = lambda n: by_lmfit(x, y[:, :n])
    return found


def by_astropy(x: FloatArray, y: FloatArray) -> object:
    """``parallel_fit_dask`` on Dask's synchronous scheduler, as on one core."""
    from astropy.modeling.fitting import LMLSQFitter, parallel_fit_dask
    from astropy.modeling.models import Const1D, Exponential1D

    model = Exponential1D(amplitude=1.0, tau=-1.0) + Const1D(amplitude=0.0)
    return parallel_fit_dask(
        model=model,
        fitter=LMLSQFitter(),
        data=np.nan_to_num(y),
        world=(x,),
        fitting_axes=0,
        scheduler="synchronous",
    )


def by_lmfit(x: FloatArray, y: FloatArray) -> object:
    """A loop over the series, without the rows that are missing."""
    import lmfit

    model = lmfit.Model(decay_numpy)
    params = model.make_params(**dict(zip(NAMES, START, strict=True)))
    kept = np.isfinite(y)
    return [model.fit(y[k, i], params, x=x[k]) for i, k in enumerate(kept.T)]


if __name__ == "__main__":
    main()
