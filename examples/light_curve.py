"""A planet that passes in front of its star: a light curve with gaps and outliers.

The data are the brightness of a star over 27 days, in float32, with a date and an error for each
point. The telescope sends its data to the ground in the middle, which leaves a gap. Some points are
NaN. One in a hundred is an outlier.

Period, first transit, depth, duration and the length of ingress are fitted with a robust loss, so
that outliers count little. The dates are passed as they are. The model gets days since the first
date.

The picture shows the light curve with the fitted transits. Below, all transits lie on top of each
other; black dots are medians of points that are near in phase.

Run with ``python examples/light_curve.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from common import BLACK, SKY, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nlsq_dask import FitResult, fit

TRUTH = {
    "period": 3.5247,  # days
    "first": 1.31,  # days since the first point
    "depth": 0.0042,
    "duration": 0.128,  # days, at half of the depth
    "ingress": 0.011,  # days
    "level": 1.0003,
}
# A search for periods, such as box least squares, gives such a start.
START = {
    "period": 3.52,
    "first": 1.33,
    "depth": 0.003,
    "duration": 0.1,
    "ingress": 0.02,
    "level": 1.0,
}
FIRST_DATE = np.datetime64("2025-02-11T06:30:00")
CADENCE = np.timedelta64(2, "m")
DAY = np.timedelta64(1, "D")
POINTS = 19_440  # 27 days
GAP = (12.6, 14.1)  # days
# Beyond this many errors of its own, a point counts as an outlier of Huber's loss.
HUBER = 1.345


def phase(t: jax.Array, period: float, first: float) -> jax.Array:
    """Days since the middle of the nearest transit."""
    since = t - first
    return since - period * jnp.round(since / period)


def transits(
    t: jax.Array,
    period: float,
    first: float,
    depth: float,
    duration: float,
    ingress: float,
    level: float,
) -> jax.Array:
    """Brightness of the star: 1 before dips with smooth edges, times in days."""
    from_middle = jnp.abs(phase(t, period, first))
    shadow = 0.5 * (1 - jnp.tanh((from_middle - duration / 2) / ingress))
    return level * (1 - depth * shadow)


Curve = tuple[NDArray[np.datetime64], NDArray[np.float32], NDArray[np.float32]]


def simulate() -> Curve:
    """Dates, brightness and errors of all points."""
    rng = np.random.default_rng(17)
    dates = FIRST_DATE + np.arange(POINTS) * CADENCE
    days = (dates - dates[0]) / DAY
    seen = (days < GAP[0]) | (days > GAP[1])
    dates, days = dates[seen], days[seen]
    error = 0.0011 * rng.uniform(0.8, 1.6, days.size)
    flux = np.asarray(transits(jnp.asarray(days), **TRUTH)) + rng.normal(0, error)
    outlier = rng.random(days.size) < 0.01
    flux[outlier] += rng.normal(0, 0.02, outlier.sum())
    flux[rng.random(days.size) < 0.02] = np.nan
    return dates, flux.astype("f4"), error.astype("f4")


def draw(curve: Curve, result: FitResult) -> Figure:
    """The light curve, and all transits on top of each other."""
    dates, flux, _ = curve
    values = dict(zip(result.names, result.popt, strict=True))
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), layout="constrained")
    style = {"ls": "", "marker": ".", "ms": 2, "color": SKY, "rasterized": True}
    above.plot(dates, flux, **style)
    steady = np.arange(dates[0], dates[-1], CADENCE)
    above.plot(steady, result.predict(steady), color=VERMILION, lw=1, label="fit")
    above.set(xlabel="date", ylabel="relative brightness", ylim=(0.991, 1.008))
    above.set_title(f"period {result.params['period']} d, depth {result.params['depth']}")
    above.legend(frameon=False, loc="upper right")

    days = (dates - dates[0]) / DAY
    hours = 24 * np.asarray(phase(jnp.asarray(days), values["period"], values["first"]))
    near = (np.abs(hours) < 5) & np.isfinite(flux)
    below.plot(hours[near], flux[near], **style)
    edges = np.linspace(-5, 5, 61)
    cell = np.digitize(hours[near], edges)
    means = [np.median(flux[near][cell == k]) for k in range(1, edges.size)]
    below.plot((edges[1:] + edges[:-1]) / 2, means, "o", ms=4, color=BLACK, label="medians")
    one = np.linspace(-5, 5, 400)
    model = np.asarray(transits(jnp.asarray(one / 24), **{**values, "first": 0.0}))
    below.plot(one, model, color=VERMILION, lw=2, label="fit")
    below.set(xlabel="time from the middle of a transit (h)", ylabel="relative brightness")
    below.set(xlim=(-5, 5), ylim=(0.992, 1.004))
    below.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Make the light curve, fit it, check the answer, draw the picture."""
    output = picture_path(__doc__, "light_curve.png")
    dates, flux, error = simulate()
    result = fit(
        transits,
        dates,
        flux,
        START,
        sigma=error,
        absolute_sigma=True,
        nan_policy="omit",
        loss="huber",
        f_scale=HUBER,
        time_unit="D",
    )
    print(result)
    check(result, TRUTH)
    save(draw((dates, flux, error), result), output)


if __name__ == "__main__":
    main()
