"""The problems that are timed: a model written once for NumPy and JAX, its data and its start.

Imports NumPy alone, so that other packages' environments can run the same problems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Model = Callable[..., Any]


def exponential(xp: Any) -> Model:
    """``a exp(-b x) + c`` in the functions of an array library, ``numpy`` or ``jax.numpy``."""

    def decay(x: Any, a: Any, b: Any, c: Any) -> Any:
        return a * xp.exp(-b * x) + c

    return decay


def gaussians(xp: Any) -> Model:
    """Three Gaussians on a constant, in the functions of an array library."""

    def peak(x: Any, height: Any, centre: Any, width: Any) -> Any:
        return height * xp.exp(-0.5 * ((x - centre) / width) ** 2)

    def peaks(
        x: Any,
        a1: Any,
        m1: Any,
        s1: Any,
        a2: Any,
        m2: Any,
        s2: Any,
        a3: Any,
        m3: Any,
        s3: Any,
        c: Any,
    ) -> Any:
        return peak(x, a1, m1, s1) + peak(x, a2, m2, s2) + peak(x, a3, m3, s3) + c

    return peaks


@dataclass(frozen=True)
class Problem:
    """A model with true parameters and a start.

    Attributes
    ----------
    label : str
    model : callable
        ``model(numpy)`` or ``model(jax.numpy)`` is ``f(x, *params)``.
    truth, start : tuple of float, length p
        Each start is 25 to 50 % off.
    interval : tuple of float
        Rows are drawn uniformly from it.
    noise : float
        Standard deviation of a row.
    """

    label: str
    model: Callable[[Any], Model]
    truth: tuple[float, ...]
    start: tuple[float, ...]
    interval: tuple[float, float]
    noise: float

    def data(self, rows: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
        """Draw ``x`` and noisy ``y``, each of shape (rows,)."""
        rng = np.random.default_rng(seed)
        x = rng.uniform(*self.interval, rows)
        y = self.model(np)(x, *self.truth)
        y += rng.normal(0.0, self.noise, rows)
        return x, y


EXPONENTIAL = Problem(
    label="a exp(-b x) + c, p=3",
    model=exponential,
    truth=(2.5, 1.3, 0.5),
    start=(1.6, 0.9, 0.7),
    interval=(0.0, 5.0),
    noise=0.05,
)

GAUSSIANS = Problem(
    label="three Gaussians + c, p=10",
    model=gaussians,
    truth=(1.0, -2.0, 0.8, 0.7, 0.4, 0.6, 1.2, 3.0, 0.9, 0.3),
    start=(1.3, -2.6, 1.1, 0.5, 0.55, 0.8, 0.8, 2.25, 1.2, 0.2),
    interval=(-5.0, 6.0),
    noise=0.05,
)


def gaussian(xp: Any) -> Model:
    """A Gaussian on a constant, in the functions of an array library."""

    def peak(x: Any, height: Any, centre: Any, width: Any, c: Any) -> Any:
        return height * xp.exp(-0.5 * ((x - centre) / width) ** 2) + c

    return peak


def two_exponentials(xp: Any) -> Model:
    """``a exp(-b x) + c exp(-d x)`` in the functions of an array library."""

    def decays(x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return a * xp.exp(-b * x) + c * xp.exp(-d * x)

    return decays


#: Whose passes are counted.
PASSES = (
    Problem(
        label="Gaussian + c, p=4",
        model=gaussian,
        truth=(3.0, 4.0, 0.7, 0.5),
        start=(4.0, 5.0, 0.5, 0.7),
        interval=(0.0, 10.0),
        noise=0.3,
    ),
    Problem(
        label="a exp(-b x) + c, p=3",
        model=exponential,
        truth=(2.5, 1.3, 0.5),
        start=(3.4, 0.9, 0.7),
        interval=(0.0, 4.0),
        noise=0.1,
    ),
    Problem(
        label="two exponentials at low signal, p=4",
        model=two_exponentials,
        truth=(1.0, 3.0, 0.5, 0.5),
        start=(1.4, 4.0, 0.35, 0.35),
        interval=(0.0, 5.0),
        noise=1.0,
    ),
    Problem(
        label="three Gaussians + c, p=10",
        model=gaussians,
        truth=(3.0, 4.0, 0.7, 2.0, 9.0, 1.0, 4.0, 15.0, 0.8, 0.5),
        start=(4.0, 4.6, 0.5, 1.5, 10.0, 1.3, 3.0, 14.2, 1.1, 0.7),
        interval=(0.0, 20.0),
        noise=0.3,
    ),
)
