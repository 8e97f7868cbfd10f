"""The NIST/ITL StRD problems of nonlinear regression: certified data, and their models in JAX.

Reads the files of https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml. A model is written
once, as ``model(x, b1, ..., bp)``; where there are several predictors, ``x`` is a tuple or a
stacked array of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

#: Where the tests keep the files.
DATA = Path(__file__).parents[1] / "data" / "nist"

FloatArray = NDArray[np.float64]
Model = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """One data set with its model and what NIST certifies of it.

    Attributes
    ----------
    name : str
    model : callable
        ``model(x, b1, ..., bp)`` in ``jax.numpy``.
    x : ndarray, shape (n,), or (k, n) for k > 1 predictors, float64
    y : ndarray, shape (n,), float64
        The response in the model's form (the logarithm, for Nelson).
    starts : tuple of two ndarrays, shape (p,), float64
        From far away, and from nearby.
    params, standard_deviations : ndarray, shape (p,), float64
        Certified.
    rss : float
        Certified residual sum of squares.
    """

    name: str
    model: Model
    x: FloatArray
    y: FloatArray
    starts: tuple[FloatArray, FloatArray]
    params: FloatArray
    standard_deviations: FloatArray
    rss: float

    @property
    def degrees_of_freedom(self) -> int:
        """n - p, counted."""
        return self.y.size - self.params.size


def bennett5(x, b1, b2, b3):
    return b1 * (b2 + x) ** (-1 / b3)


def chwirut(x, b1, b2, b3):
    return jnp.exp(-b1 * x) / (b2 + b3 * x)


def dan_wood(x, b1, b2):
    return b1 * x**b2


def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    return (
        b1 * jnp.exp(-b2 * x)
        + b3 * jnp.exp(-((x - b4) ** 2) / b5**2)
        + b6 * jnp.exp(-((x - b7) ** 2) / b8**2)
    )


def rational_cubic(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def rational_quadratic(x, b1, b2, b3, b4, b5):
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * jnp.exp(-b2 * x) + b3 * jnp.exp(-b4 * x) + b5 * jnp.exp(-b6 * x)


def mgh17(x, b1, b2, b3, b4, b5):
    return b1 + b2 * jnp.exp(-x * b4) + b3 * jnp.exp(-x * b5)


def misra1a(x, b1, b2):
    return b1 * (1 - jnp.exp(-b2 * x))


def nelson(x, b1, b2, b3):
    time, temperature = x
    return b1 - b2 * time * jnp.exp(-b3 * temperature)


def rat42(x, b1, b2, b3):
    return b1 / (1 + jnp.exp(b2 - b3 * x))


def roszman1(x, b1, b2, b3, b4):
    return b1 - b2 * x - jnp.arctan(b3 / (x - b4)) / jnp.pi


MODELS: dict[str, Model] = {
    "Bennett5": bennett5,
    "Chwirut2": chwirut,
    "DanWood": dan_wood,
    "Gauss1": gauss,
    "Hahn1": rational_cubic,
    "Kirby2": rational_quadratic,
    "Lanczos1": lanczos,
    "Lanczos3": lanczos,
    "MGH17": mgh17,
    "Misra1a": misra1a,
    "Nelson": nelson,
    "Rat42": rat42,
    "Roszman1": roszman1,
    "Thurber": rational_cubic,
}

#: The files are in Fortran's columns: a parameter's row holds two starts, the value and its
#: deviation.
_PARAMETER = re.compile(r"^\s*b\d+\s*=((?:\s+\S+){4})\s*$")
_RSS = re.compile(r"^\s*Residual Sum of Squares:\s*(\S+)")
_ROWS = re.compile(r"^\s*Number of Observations:\s*(\d+)")


def load(name: str, directory: Path = DATA) -> Problem:
    """Read one problem from ``<directory>/<name>.dat``."""
    lines = (directory / f"{name}.dat").read_text(encoding="ascii").splitlines()
    table = np.array([m[1].split() for m in map(_PARAMETER.match, lines) if m], dtype=np.float64)
    # The heading of the file also starts a line with "Data:"; the numbers follow the last one.
    first = max(i for i, line in enumerate(lines) if line.startswith("Data:")) + 1
    rows = np.array([line.split() for line in lines[first:] if line.strip()], dtype=np.float64)
    if rows.shape[0] != int(_value(_ROWS, lines)):
        raise ValueError(f"{name}: {rows.shape[0]} rows do not match the header")
    y, *x = rows.T
    return Problem(
        name=name,
        model=MODELS[name],
        x=x[0] if len(x) == 1 else np.stack(x),
        y=np.log(y) if name == "Nelson" else y,
        starts=(table[:, 0], table[:, 1]),
        params=table[:, 2],
        standard_deviations=table[:, 3],
        rss=float(_value(_RSS, lines)),
    )


def load_all(directory: Path = DATA) -> dict[str, Problem]:
    """Read every problem of the table, by name."""
    return {name: load(name, directory) for name in MODELS}


def certified_digits(value: FloatArray, certified: FloatArray) -> float:
    """Digits of the worst of several values: ``-log10`` of its relative error, 11 at most."""
    error = np.max(np.abs(value - certified) / np.abs(certified))
    # NaN compares as false, and has no digit right.
    return float(min(-np.log10(max(error, 1e-11)), 11.0)) if error < 1.0 else 0.0


def _value(pattern: re.Pattern[str], lines: list[str]) -> str:
    return next(m[1] for m in map(pattern.match, lines) if m)
