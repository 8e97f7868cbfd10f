"""Problems of moderate size that SciPy solves too, in NumPy and in JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.optimize

INF = np.inf


@dataclass(frozen=True)
class ScipyProblem:
    """Data and a model that takes its array module from ``xp``."""

    name: str
    formula: Callable[..., Any]
    x: Any
    y: np.ndarray
    p0: list[float]
    bounds: Any = (-INF, INF)
    sigma: Any = None

    @property
    def model(self) -> Callable[..., Any]:
        formula = self.formula
        return lambda x, *theta: formula(jnp, x, *theta)

    def scipy_fit(self, absolute_sigma: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Estimates and covariance of SciPy's, at tolerances of rounding."""
        sigma = self.sigma
        if sigma is not None:
            sigma = np.broadcast_to(sigma, self.y.shape).ravel()
        x = self.x
        if isinstance(x, tuple):
            x = np.stack([np.broadcast_to(c, self.y.shape).ravel() for c in x])
        return scipy.optimize.curve_fit(
            lambda x, *theta: self.formula(np, x, *theta),
            x,
            self.y.ravel(),
            self.p0,
            sigma=sigma,
            absolute_sigma=absolute_sigma,
            bounds=self.bounds,
            method="trf",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            x_scale="jac",
            max_nfev=10_000,
        )


def decay(xp, x, a, b, c):
    return a * xp.exp(-b * x) + c


def line(xp, x, slope, offset):
    return slope * x + offset


def peaks(xp, x, a1, m1, s1, a2, m2, s2, base):
    return (
        a1 * xp.exp(-0.5 * ((x - m1) / s1) ** 2) + a2 * xp.exp(-0.5 * ((x - m2) / s2) ** 2) + base
    )


def wave(xp, x, amplitude, frequency, phase):
    return amplitude * xp.sin(frequency * x + phase)


def surface(xp, x, height, x0, y0, width):
    return height * xp.exp(-((x[0] - x0) ** 2 + (x[1] - y0) ** 2) / width**2)


def _problems() -> list[ScipyProblem]:
    rng = np.random.default_rng(20)
    x = np.sort(rng.uniform(0, 5, 3000))
    noise = rng.normal(0, 0.05, x.size)
    falling = decay(np, x, 2.5, 1.3, 0.5) + noise
    spectrum = peaks(np, x, 1.0, 1.2, 0.3, 0.7, 3.1, 0.4, 0.2) + noise
    sigma = rng.uniform(0.02, 0.2, x.size)
    rows, columns = np.linspace(-2, 2, 40)[:, None], np.linspace(-3, 3, 60)
    image = surface(np, (rows, columns), 3.0, 0.3, -0.4, 1.5)
    image = image + rng.normal(0, 0.1, image.shape)
    start = [1, 1, 0]
    return [
        ScipyProblem("decay", decay, x, falling, start),
        ScipyProblem("few rows", decay, x[::300], falling[::300], start),
        ScipyProblem("sigma a row", decay, x, falling + noise, start, sigma=sigma),
        ScipyProblem("one sigma", decay, x, falling, start, sigma=0.05),
        ScipyProblem("line", line, x, line(np, x, -3.0, 10.0) + noise, [0, 0]),
        ScipyProblem("peaks", peaks, x, spectrum, [0.8, 1, 0.4, 0.8, 3, 0.3, 0]),
        ScipyProblem("wave", wave, x, wave(np, x, 2, 3, 0.7) + noise, [1, 3.1, 0]),
        ScipyProblem("loose bounds", decay, x, falling, start, ([0, 0, -5], [10, 10, 5])),
        ScipyProblem("active bounds", decay, x, falling, start, ([0, 0, -1], [2, 9, INF])),
        ScipyProblem("two active", decay, x, falling, [1, 2, 0], ([0, 1.5, -1], [2, 9, 1]), sigma),
        ScipyProblem("on a bound", decay, x, falling, [1, 0, 0], (0, INF)),
        ScipyProblem("image", surface, (rows, columns), image, [1, 0, 0, 1]),
    ]


PROBLEMS = {problem.name: problem for problem in _problems()}
