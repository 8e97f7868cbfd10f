"""A dozen families of curves as people fit them, with noise, from poor starts.

A start is the truth with each parameter multiplied by a factor either way, or moved by a distance
either way: at least half of what the family names as the most.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from benchmarks.problems import FloatArray, Model


@dataclass(frozen=True)
class Family:
    """A model, where it is measured, and how far off its starts are.

    Attributes
    ----------
    label : str
    model : callable
        ``f(x, *params)`` in ``jax.numpy``.
    truth : tuple of float, length p
    off : tuple of float, length p
        Positive: the largest factor of the start over the truth, or its inverse. Negative: the
        largest distance.
    interval : tuple of float
        Rows are drawn uniformly from it.
    noise : float
        Standard deviation of a row.
    rows : int
    """

    label: str
    model: Model
    truth: tuple[float, ...]
    off: tuple[float, ...]
    interval: tuple[float, float]
    noise: float
    rows: int = 300

    def draw(self, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Draw x and y, shape (rows,), and a start, shape (p,)."""
        rng = np.random.default_rng([seed, *self.label.encode()])
        x = np.sort(rng.uniform(*self.interval, self.rows))
        truth, off = np.array(self.truth), np.array(self.off)
        y = np.asarray(self.model(x, *truth), np.float64) + rng.normal(0.0, self.noise, self.rows)
        way = rng.choice([-1.0, 1.0], truth.size) * rng.uniform(0.5, 1.0, truth.size)
        start = np.where(off > 0.0, truth * np.abs(off) ** way, truth + off * way)
        return x, y, start


def decay(x, height, lifetime, floor):
    return height * jnp.exp(-x / lifetime) + floor


def two_decays(x, height_1, lifetime_1, height_2, lifetime_2, floor):
    return height_1 * jnp.exp(-x / lifetime_1) + height_2 * jnp.exp(-x / lifetime_2) + floor


def stretched_decay(x, height, lifetime, power, floor):
    return height * jnp.exp(-((x / lifetime) ** power)) + floor


def peak_on_slope(x, height, centre, width, floor, slope):
    return height * jnp.exp(-0.5 * ((x - centre) / width) ** 2) + floor + slope * x


def two_peaks(x, height_1, centre_1, width_1, height_2, centre_2, width_2, floor):
    return (
        height_1 * jnp.exp(-0.5 * ((x - centre_1) / width_1) ** 2)
        + height_2 * jnp.exp(-0.5 * ((x - centre_2) / width_2) ** 2)
        + floor
    )


def resonance(x, height, centre, width, floor):
    return height / (1 + ((x - centre) / width) ** 2) + floor


def dose_response(x, low, high, middle, slope):
    return low + (high - low) / (1 + jnp.exp(-slope * (x - middle)))


def hill(x, most, half, power):
    return most * x**power / (half**power + x**power)


def power_law(x, factor, exponent, floor):
    return factor * x**exponent + floor


def damped_wave(x, height, lifetime, frequency, phase, floor):
    return height * jnp.exp(-x / lifetime) * jnp.cos(frequency * x + phase) + floor


def growth(x, capacity, delay, rate):
    return capacity * jnp.exp(-delay * jnp.exp(-rate * x))


def arrhenius(x, factor, energy, floor):
    return factor * jnp.exp(-energy * (1000 / x - 1000 / 300)) + floor


FAMILIES = (
    Family("decay", decay, (5.0, 2.0, 1.0), (4, 4, -2), (0, 10), 0.2),
    Family("two decays", two_decays, (3.0, 0.5, 2.0, 4.0, 0.3), (3, 2, 3, 2, -0.5), (0, 15), 0.05),
    Family(
        "stretched decay", stretched_decay, (2.0, 3.0, 0.7, 0.2), (3, 3, 1.5, -0.3), (0, 20), 0.05
    ),
    Family(
        "peak on a slope",
        peak_on_slope,
        (4.0, 5.0, 0.7, 1.0, 0.2),
        (3, -1.2, 2, -1, -0.5),
        (0, 10),
        0.3,
    ),
    Family(
        "two peaks",
        two_peaks,
        (3.0, 4.0, 0.6, 2.0, 6.0, 0.9, 0.5),
        (2, -0.6, 1.7, 2, -0.8, 1.7, -0.5),
        (0, 10),
        0.15,
    ),
    Family("resonance", resonance, (5.0, 2.0, 0.3, 0.5), (3, -0.4, 2, -0.5), (0, 4), 0.3),
    Family(
        "dose response", dose_response, (0.2, 2.0, 1.0, 1.5), (-0.5, 2, -1.5, 2.5), (-4, 6), 0.1
    ),
    Family("Hill", hill, (3.0, 2.0, 1.8), (3, 3, 1.6), (0.05, 10), 0.1),
    Family("power law", power_law, (2.0, 0.6, 1.0), (3, 2, -2), (0.1, 50), 0.5),
    Family(
        "damped wave",
        damped_wave,
        (2.0, 5.0, 3.0, 0.5, 0.3),
        (3, 2.5, -0.15, -0.8, -0.5),
        (0, 12),
        0.2,
    ),
    Family("growth", growth, (10.0, 4.0, 0.5), (2.5, 2.5, 2.5), (0, 15), 0.4),
    Family("Arrhenius", arrhenius, (1.0, 4.0, 0.1), (3, 1.6, -0.1), (280, 360), 0.3),
)
