"""The models of the sweep over units, in natural units: x in 0 to 10, signals of the size of 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Exact = Sequence[Fraction]

ROWS = 120
#: Largest x, and noise as a fraction of the signal.
RANGE = 10
NOISE = 0.05


def line(x, slope, offset):
    return slope * x + offset


def decay(x, height, lifetime, floor):
    return height * jnp.exp(-x / lifetime) + floor


def peak(x, height, centre, width, floor):
    return height * jnp.exp(-0.5 * ((x - centre) / width) ** 2) + floor


def two_decays(x, height_1, lifetime_1, height_2, lifetime_2):
    return height_1 * jnp.exp(-x / lifetime_1) + height_2 * jnp.exp(-x / lifetime_2)


def saturation(x, most, half):
    return most * x / (half + x)


def step(x, height, centre, width):
    return height / (1 + jnp.exp(-(x - centre) / width))


def damped_wave(x, height, lifetime, frequency, phase, floor):
    return height * jnp.exp(-x / lifetime) * jnp.cos(frequency * x + phase) + floor


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes
    ----------
    function : callable
        ``f(x, *params)`` in ``jax.numpy``.
    truth, near, far : tuple of float, length p
        True parameters and two starts.
    powers : tuple of pair of int, length p
        Powers of the units of y and x in each parameter.
    constant, location : int or None
        Parameter that takes up an offset of y, or of x.
    bounded : tuple of pair
        Numbers of parameters and their upper bounds, so that one of them ends at its bound.
    positive : tuple of int
        Parameters that are positive in any units and with any offsets.
    """

    function: Callable[..., Any]
    truth: tuple[float, ...]
    near: tuple[float, ...]
    far: tuple[float, ...]
    powers: tuple[tuple[int, int], ...]
    bounded: tuple[tuple[int, float], ...]
    positive: tuple[int, ...]
    constant: int | None = None
    location: int | None = None

    @property
    def shifts_x(self) -> bool:
        """Whether the model can take up an offset of x; a line does so by its constant."""
        return self.location is not None or self.function is line

    def shifted(self, params: Exact, x: int, y: int) -> list[Fraction]:
        """Parameters, in natural units, of the same curve moved by offsets of x and y."""
        moved = list(params)
        if self.constant is not None:
            moved[self.constant] += y
        if self.location is not None:
            moved[self.location] += x
        if self.function is line:
            moved[1] -= moved[0] * x
        return moved


SHAPES = {
    "line": Shape(
        line, (0.3, 1.0), (0.2, 1.5), (1.0, 10.0), ((1, -1), (1, 0)), ((0, 0.25),), (0,), constant=1
    ),
    "decay": Shape(
        decay,
        (2.0, 1.7, 0.4),
        (1.5, 1.2, 0.5),
        (1.0, 1.0, 0.0),
        ((1, 0), (0, 1), (1, 0)),
        ((1, 1.4),),
        (0, 1, 2),
        constant=2,
    ),
    "peak": Shape(
        peak,
        (1.5, 4.5, 0.8, 0.5),
        (1.0, 4.2, 1.0, 0.4),
        (0.8, 5.5, 1.5, 0.0),
        ((1, 0), (0, 1), (0, 1), (1, 0)),
        ((2, 0.6),),
        (0, 1, 2, 3),
        constant=3,
        location=1,
    ),
    "two decays": Shape(
        two_decays,
        (1.5, 0.8, 1.0, 5.0),
        (1.2, 1.0, 0.8, 4.0),
        (1.0, 0.5, 1.0, 3.0),
        ((1, 0), (0, 1), (1, 0), (0, 1)),
        ((1, 4.0), (3, 4.0)),
        (0, 1, 2, 3),
    ),
    "saturation": Shape(
        saturation, (2.0, 1.5), (1.5, 1.0), (1.0, 5.0), ((1, 0), (0, 1)), ((1, 1.0),), (0, 1)
    ),
    "step": Shape(
        step,
        (1.5, 4.0, 0.6),
        (1.2, 4.5, 0.8),
        (1.0, 5.5, 1.2),
        ((1, 0), (0, 1), (0, 1)),
        ((2, 0.4),),
        (0, 1, 2),
        location=1,
    ),
    "damped wave": Shape(
        damped_wave,
        (1.5, 4.0, 2.5, 0.6, 0.8),
        (1.2, 3.0, 2.4, 0.8, 0.7),
        (1.0, 6.0, 2.3, 1.0, 0.0),
        ((1, 0), (0, 1), (0, -1), (0, 0), (1, 0)),
        ((1, 3.0),),
        (0, 1, 2, 4),
        constant=4,
    ),
}


@cache
def functions(name: str) -> tuple[Callable[..., FloatArray], Callable[..., FloatArray]]:
    """Values (n,) and Jacobian (n, p) of a model by (x, params), compiled once."""
    function = SHAPES[name].function

    def values(x, params):
        return function(x, *params)

    compiled = jax.jit(values), jax.jit(jax.jacfwd(values, 1))

    def in_float64(call: Callable[..., Any]) -> Callable[..., FloatArray]:
        def called(x: FloatArray, params: FloatArray) -> FloatArray:
            with jax.enable_x64(True):
                return np.asarray(call(x, params))

        return called

    return in_float64(compiled[0]), in_float64(compiled[1])


@cache
def signal(name: str, seed: int) -> tuple[FloatArray, FloatArray]:
    """x and noisy y in natural units, shape (ROWS,)."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.02, RANGE, ROWS))
    values, _ = functions(name)
    return x, values(x, np.array(SHAPES[name].truth)) + rng.normal(0.0, NOISE, ROWS)
