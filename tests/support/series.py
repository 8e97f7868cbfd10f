"""Cubes of series with an answer that SciPy knows, one series at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import curve_fit

ROWS = 40
T = np.linspace(0.0, 5.0, ROWS)
START = (1.0, 1.0, 0.0)
NAMES = ("amplitude", "lifetime", "offset")


def decay(t, amplitude, lifetime, offset):
    return amplitude * jnp.exp(-t / lifetime) + offset


def decay_in_numpy(t, amplitude, lifetime, offset):
    return amplitude * np.exp(-t / lifetime) + offset


@dataclass(frozen=True)
class Cube:
    """Observations (m, ...) and the parameters (3, ...) that they were made of."""

    y: Any
    params: Any


def cube(shape=(5, 7), noise=0.05, missing=0.05, seed=0) -> Cube:
    draw = np.random.default_rng(seed)
    params = np.stack(
        [draw.uniform(0.5, 2, shape), draw.uniform(0.5, 3, shape), draw.uniform(-0.5, 0.5, shape)]
    )
    t = T.reshape(-1, *(1,) * len(shape))
    y = decay_in_numpy(t, *params) + noise * draw.normal(size=(ROWS, *shape))
    y[draw.random(y.shape) < missing] = np.nan
    return Cube(y, params)


def by_scipy(y, sigma=None, absolute_sigma=False, start=None, bounds=(-np.inf, np.inf)):
    """Estimates and errors (3, n) of series (m, n), one after the other."""
    popt, perr = np.full((2, 3, y.shape[1]), np.nan)
    for k in range(y.shape[1]):
        rows = ~np.isnan(y[:, k])
        weights = None if sigma is None else np.broadcast_to(sigma, y.shape)[rows, k]
        found, covariance = curve_fit(
            decay_in_numpy,
            T[rows],
            y[rows, k],
            START if start is None else start[:, k],
            sigma=weights,
            absolute_sigma=absolute_sigma,
            bounds=bounds,
            ftol=1e-12,
            xtol=1e-12,
            gtol=1e-12,
        )
        popt[:, k], perr[:, k] = found, np.sqrt(np.diag(covariance))
    return popt, perr
