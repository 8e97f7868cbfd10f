"""Random problems for each model: true parameters, coordinates and noise of a realistic size."""

from __future__ import annotations

import numpy as np

from nlsq_dask import models


def spread(rng, low, high):
    """A number between two, even in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def sign(rng):
    return float(rng.choice([-1, 1]))


def peak(rng, low, high, narrowest=0.01):
    """Height, center inside the window, and a width from narrow to a quarter of it."""
    width = spread(rng, narrowest, 0.25) * (high - low)
    return [sign(rng) * spread(rng, 0.5, 50), rng.uniform(low, high), width]


def voigt(rng, low, high):
    height, center, width = peak(rng, low, high)
    return [height, center, width * rng.uniform(0.2, 1), width * rng.uniform(0.2, 1)]


def line(rng, low, high):
    return [rng.normal(), rng.normal(0, 10)]


def offset(rng, low, high):
    return [rng.normal(0, 10)]


def decay(rng, low, high):
    return [sign(rng) * spread(rng, 0.5, 50), spread(rng, 0.05, 1) * (high - low)]


def biexponential(rng, low, high):
    tau = spread(rng, 0.02, 0.1) * (high - low)
    height = spread(rng, 0.5, 50)
    return [height, tau, height * rng.uniform(0.4, 2), tau * rng.uniform(4, 8)]


def power_law(rng, low, high):
    return [sign(rng) * spread(rng, 0.5, 50), rng.uniform(-4, 4)]


def oscillation(rng, low, high):
    return [spread(rng, 0.5, 50), spread(rng, 0.5, 60) / (high - low), rng.uniform(-3, 3)]


def step(rng, low, high):
    rate = sign(rng) / (spread(rng, 0.005, 0.15) * (high - low))
    return [sign(rng) * spread(rng, 0.5, 50), rng.uniform(low, high), rate]


def peak_2d(rng, low, high):
    # Narrower ones would have a few rows for their six parameters.
    height, center, width = peak(rng, low, high, narrowest=0.05)
    return [
        *(height, center, rng.uniform(low, high)),
        *(width, width * spread(rng, 0.4, 2.5), rng.uniform(-0.8, 0.8)),
    ]


DRAWS = {
    models.Gaussian: peak,
    models.Lorentzian: peak,
    models.Voigt: voigt,
    models.Gaussian2D: peak_2d,
    models.ExponentialDecay: decay,
    models.BiexponentialDecay: biexponential,
    models.PowerLaw: power_law,
    models.Sinusoid: oscillation,
    models.Logistic: step,
    models.Constant: offset,
    models.Linear: line,
}

SUMS = [
    models.Gaussian() + models.Constant(),
    models.Gaussian() + models.Linear(),
    models.Lorentzian() + models.Constant(),
    models.Voigt() + models.Linear(),
    models.Gaussian2D() + models.Constant(),
    models.ExponentialDecay() + models.Constant(),
    models.Sinusoid() + models.Linear(),
    models.Logistic() + models.Constant(),
]


def draw_params(model, rng, low, high):
    return [value for term in model.terms for value in DRAWS[type(term)](rng, low, high)]


def draw_coords(model, rng, low, high):
    """Rows in random order, from a hundred to a few hundred a parameter."""
    n = int(spread(rng, 100, 1000)) * (model.n_coords or 1) ** 2
    coords = tuple(rng.uniform(low, high, n) for _ in range(model.n_coords or 1))
    return coords if len(coords) > 1 else coords[0]


def draw_problem(model, seed, noise=0.05):
    """Coordinates, noisy observations, and true parameters.

    The noise is relative to the spread of the values, or to the smallest spread of a term.
    """
    rng = np.random.default_rng(seed)
    is_power = any(isinstance(term, models.PowerLaw) for term in model.terms)
    low = spread(rng, 0.1, 2) if is_power else rng.uniform(-1, 0.5) * _is_free(model)
    high = low + spread(rng, 1, 20)
    params = draw_params(model, rng, low, high)
    x = draw_coords(model, rng, low, high)
    values = model(x, *params)
    parts, left = [], params
    for term in model.terms:
        own, left = left[: len(term.names)], left[len(term.names) :]
        parts.append(np.ptp(term(x, *own)) or np.inf)
    size = min(parts) if np.isfinite(min(parts)) else 1.0
    return x, values + rng.normal(0, noise * size, values.shape), params


def _is_free(model):
    """Whether the origin of x may lie anywhere: decays are seen from x = 0 on."""
    decays = (models.ExponentialDecay, models.BiexponentialDecay)
    return not any(isinstance(term, decays) for term in model.terms)
