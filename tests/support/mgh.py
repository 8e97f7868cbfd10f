"""The least-squares test functions of Moré, Garbow & Hillstrom, written from their formulas.

"Testing Unconstrained Optimization Software", ACM TOMS 7, 1981, 17-41; numbers are the paper's. A
function with data is ``model(x, *b)`` for its observations y. Any other one returns its residual
of the row ``x = 0 .. m-1``, for y = 0. The published minima are sums of squares ``Σ f_i²``.

Of the paper's 35 functions these are 29: not the two that repeat another one (extended Rosenbrock,
extended Powell singular), the three that are linear, and the discrete boundary value problem, whose
integral equation is here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tests.support.dense_engine import model_functions

FloatArray = NDArray[np.float64]
Model = Callable[..., Any]

#: Multiples of the standard start that the paper asks for.
FACTORS = (1, 10, 100)
#: A lower sum of squares, relative to it, that a success may leave; absolute where the least is 0.
LEFT_OVER = 1e-6
#: The published minima have six digits; what is below the other number is zero.
MINIMUM_DIGITS, ZERO = 1e-5, 1e-10
TIGHT: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 5000}


@dataclass(frozen=True)
class Problem:
    """One test function.

    Attributes
    ----------
    name : str
    model : callable
        ``model(x, *b)`` in ``jax.numpy``.
    x, y : ndarray, shape (m,), float64
    standard_start : ndarray, shape (n,), float64
    minima : tuple of float
        Published sums of squares at local minima, the least first.
    """

    name: str
    model: Model
    x: FloatArray
    y: FloatArray
    standard_start: FloatArray
    minima: tuple[float, ...]

    def is_minimum(self, sum_of_squares: float, minima: Sequence[float] | None = None) -> bool:
        """Whether a sum of squares is one of the minima, by default of all that are published."""
        published = self.minima if minima is None else minima
        return any(abs(sum_of_squares - m) <= MINIMUM_DIGITS * m + ZERO for m in published)

    def lower_from(self, params: FloatArray) -> float | None:
        """A lower sum of squares that SciPy finds from there; None where it finds none.

        By "lm" or "trf" with tolerances of rounding. None says that this is a minimum.
        """
        residuals, jacobian = functions_of(self.name)
        here = float(np.sum(residuals(params) ** 2))
        for method, x_scale in itertools.product(("lm", "trf"), (1.0, "jac")):
            options: dict[str, Any] = {"method": method, "x_scale": x_scale, **TIGHT}
            try:
                found = least_squares(residuals, params, jacobian, **options)
            except (ValueError, np.linalg.LinAlgError):
                continue  # a trial was not finite, and SciPy gives up
            if self._is_lower(2.0 * float(found.cost), here):
                return 2.0 * float(found.cost)
        return None

    def start(self, factor: int) -> FloatArray:
        """A multiple of the standard start; where that is zero, the factor itself.

        So do the paper's programs (Algorithm 566, ``INITPT``).
        """
        if factor != 1 and not self.standard_start.any():
            return np.full(self.standard_start.size, float(factor))
        return factor * self.standard_start

    def _is_lower(self, lower: float, sum_of_squares: float) -> bool:
        """Whether a sum of squares is so much lower than another that the latter is no minimum."""
        scale = sum_of_squares if self.minima[0] > 0.0 else 1.0
        return sum_of_squares - lower > LEFT_OVER * scale


def residual_problem(
    name: str, residuals: Callable[[Any], Any], start: Any, minima: tuple[float, ...]
) -> Problem:
    """A function without data, as a model of the number of its row."""
    standard_start = np.array(start, np.float64)
    m = jax.eval_shape(residuals, standard_start).shape[0]

    def model(row, *b):
        return residuals(jnp.stack(b))[row.astype(int)]

    model.__name__ = name.replace(" ", "_")
    return Problem(name, model, np.arange(float(m)), np.zeros(m), standard_start, minima)


def data_problem(
    name: str, model: Model, x: Any, y: Any, start: Any, minima: tuple[float, ...]
) -> Problem:
    """A function with data."""
    return Problem(
        name,
        model,
        np.array(x, np.float64),
        np.array(y, np.float64),
        np.array(start, np.float64),
        minima,
    )


def rosenbrock(b):
    return jnp.stack([10 * (b[1] - b[0] ** 2), 1 - b[0]])


def freudenstein_roth(b):
    u, v = b
    return jnp.stack([u - 13 + ((5 - v) * v - 2) * v, u - 29 + ((v + 1) * v - 14) * v])


def powell_badly_scaled(b):
    return jnp.stack([1e4 * b[0] * b[1] - 1, jnp.exp(-b[0]) + jnp.exp(-b[1]) - 1.0001])


def brown_badly_scaled(b):
    return jnp.stack([b[0] - 1e6, b[1] - 2e-6, b[0] * b[1] - 2])


def helical_valley(b):
    turn = jnp.arctan(b[1] / b[0]) / (2 * jnp.pi) + jnp.where(b[0] > 0, 0.0, 0.5)
    radius = jnp.sqrt(b[0] ** 2 + b[1] ** 2)
    return jnp.stack([10 * (b[2] - 10 * turn), 10 * (radius - 1), b[2]])


def powell_singular(b):
    return jnp.stack(
        [
            b[0] + 10 * b[1],
            5**0.5 * (b[2] - b[3]),
            (b[1] - 2 * b[2]) ** 2,
            10**0.5 * (b[0] - b[3]) ** 2,
        ]
    )


def wood(b):
    return jnp.stack(
        [
            10 * (b[1] - b[0] ** 2),
            1 - b[0],
            90**0.5 * (b[3] - b[2] ** 2),
            1 - b[2],
            10**0.5 * (b[1] + b[3] - 2),
            (b[1] - b[3]) / 10**0.5,
        ]
    )


def watson(b):
    n = b.shape[0]
    t = np.arange(1, 30)[:, None] / 29
    powers = t ** np.arange(n)
    slopes = np.arange(1, n) * powers[:, :-1]
    inner = slopes @ b[1:] - (powers @ b) ** 2 - 1
    return jnp.concatenate([inner, jnp.stack([b[0], b[1] - b[0] ** 2 - 1])])


def penalty_1(b):
    return jnp.append(1e-5**0.5 * (b - 1), b @ b - 0.25)


def penalty_2(b):
    n = b.shape[0]
    i = np.arange(2, n + 1)
    grown = jnp.exp(b / 10)
    pairs = grown[1:] + grown[:-1] - (np.exp(i / 10) + np.exp((i - 1) / 10))
    singles = grown[1:] - np.exp(-0.1)
    last = np.arange(n, 0, -1) @ b**2 - 1
    small = 1e-5**0.5
    return jnp.concatenate([b[:1] - 0.2, small * pairs, small * singles, last[None]])


def variably_dimensioned(b):
    total = np.arange(1, b.shape[0] + 1) @ (b - 1)
    return jnp.concatenate([b - 1, jnp.stack([total, total**2])])


def trigonometric(b):
    n = b.shape[0]
    i = np.arange(1, n + 1)
    return n - jnp.sum(jnp.cos(b)) + i * (1 - jnp.cos(b)) - jnp.sin(b)


def brown_almost_linear(b):
    n = b.shape[0]
    return jnp.append(b[:-1] + jnp.sum(b) - (n + 1), jnp.prod(b) - 1)


def _grid(n: int) -> FloatArray:
    return np.arange(1, n + 1) / (n + 1)


def integral_equation(b):
    n = b.shape[0]
    t = _grid(n)
    cubes = (b + t + 1) ** 3
    kernel = np.where(t <= t[:, None], np.outer(1 - t, t), np.outer(t, 1 - t))
    return b + kernel @ cubes / (2 * (n + 1))


def broyden_tridiagonal(b):
    padded = jnp.pad(b, 1)
    return (3 - 2 * b) * b - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(b):
    n = b.shape[0]
    ahead = np.arange(n) - np.arange(n)[:, None]
    band = ((ahead >= -5) & (ahead <= 1) & (ahead != 0)).astype(float)
    return b * (2 + 5 * b**2) + 1 - band @ (b * (1 + b))


def chebyquad(b):
    n = b.shape[0]
    u = 2 * b - 1
    before, now = jnp.ones_like(u), u
    means = []
    for i in range(1, n + 1):
        mean = 0.0 if i % 2 else -1.0 / (i**2 - 1)
        means.append(jnp.mean(now) - mean)
        before, now = now, 2 * u * now - before
    return jnp.stack(means)


def beale(i, a, b):
    return a * (1 - b**i)


def jennrich_sampson(i, a, b):
    return jnp.exp(i * a) + jnp.exp(i * b)


def bard(u, a, b, c):
    v = 16 - u
    return a + u / (v * b + jnp.minimum(u, v) * c)


def gaussian(t, a, b, c):
    return a * jnp.exp(-b * (t - c) ** 2 / 2)


def meyer(t, a, b, c):
    return a * jnp.exp(b / (t + c))


def gulf(y, a, b, c):
    return jnp.exp(-(jnp.abs(y - b) ** c) / a)


def box(t, a, b, c):
    return jnp.exp(-t * a) - jnp.exp(-t * b) - c * (jnp.exp(-t) - jnp.exp(-10 * t))


def kowalik_osborne(u, a, b, c, d):
    return a * (u**2 + u * b) / (u**2 + u * c + d)


def brown_dennis(t, a, b, c, d):
    return (a + t * b - jnp.exp(t)) ** 2 + (c + d * jnp.sin(t) - jnp.cos(t)) ** 2


def osborne_1(t, a, b, c, d, e):
    return a + b * jnp.exp(-t * d) + c * jnp.exp(-t * e)


def biggs(t, a, b, c, d, e, f):
    return c * jnp.exp(-t * a) - d * jnp.exp(-t * b) + f * jnp.exp(-t * e)


def osborne_2(t, a, b, c, d, e, f, g, h, i, j, k):
    return (
        a * jnp.exp(-t * e)
        + b * jnp.exp(-((t - i) ** 2) * f)
        + c * jnp.exp(-((t - j) ** 2) * g)
        + d * jnp.exp(-((t - k) ** 2) * h)
    )


# fmt: off
_BARD = [.14, .18, .22, .25, .29, .32, .35, .39, .37, .58, .73, .96, 1.34, 2.10, 4.39]
_GAUSSIAN = [.0009, .0044, .0175, .0540, .1295, .2420, .3521, .3989]
_MEYER = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820,
          3307, 2872]
_KOWALIK = [.1957, .1947, .1735, .1600, .0844, .0627, .0456, .0342, .0323, .0235, .0246]
_KOWALIK_U = [4, 2, 1, .5, .25, .167, .125, .1, .0833, .0714, .0625]
_OSBORNE_1 = [.844, .908, .932, .936, .925, .908, .881, .850, .818, .784, .751, .718, .685, .658,
              .628, .603, .580, .558, .538, .522, .506, .490, .478, .467, .457, .448, .438, .431,
              .424, .420, .414, .411, .406]
_OSBORNE_2 = [1.366, 1.191, 1.112, 1.013, .991, .885, .831, .847, .786, .725, .746, .679, .608,
              .655, .616, .606, .602, .626, .651, .724, .649, .649, .694, .644, .624, .661, .612,
              .558, .533, .495, .500, .423, .395, .375, .372, .391, .396, .405, .428, .429, .523,
              .562, .607, .653, .672, .708, .633, .668, .645, .632, .591, .559, .597, .625, .739,
              .710, .729, .720, .636, .581, .428, .292, .162, .098, .054]
# fmt: on


def _plain_problems() -> list[Problem]:
    """Those without data, in the largest number of parameters with a published minimum, or ten."""
    ones = np.ones(10)
    t = _grid(10)
    return [
        residual_problem("Rosenbrock", rosenbrock, [-1.2, 1], (0.0,)),
        residual_problem("Freudenstein and Roth", freudenstein_roth, [0.5, -2], (0.0, 48.9842)),
        residual_problem("Powell badly scaled", powell_badly_scaled, [0, 1], (0.0,)),
        residual_problem("Brown badly scaled", brown_badly_scaled, [1, 1], (0.0,)),
        residual_problem("helical valley", helical_valley, [-1, 0, 0], (0.0,)),
        residual_problem("Powell singular", powell_singular, [3, -1, 0, 1], (0.0,)),
        residual_problem("Wood", wood, [-3, -1, -3, -1], (0.0,)),
        residual_problem("Watson", watson, np.zeros(12), (4.72238e-10,)),
        residual_problem("penalty I", penalty_1, np.arange(1, 11), (7.08765e-5,)),
        residual_problem("penalty II", penalty_2, ones / 2, (2.93660e-4,)),
        residual_problem(
            "variably dimensioned", variably_dimensioned, 1 - np.arange(1, 11) / 10, (0.0,)
        ),
        residual_problem("trigonometric", trigonometric, ones / 10, (0.0, 2.79506e-5)),
        residual_problem("Brown almost linear", brown_almost_linear, ones / 2, (0.0, 1.0)),
        residual_problem("integral equation", integral_equation, t * (t - 1), (0.0,)),
        residual_problem("Broyden tridiagonal", broyden_tridiagonal, -ones, (0.0,)),
        residual_problem("Broyden banded", broyden_banded, -ones, (0.0,)),
        residual_problem("Chebyquad", chebyquad, np.arange(1, 9) / 9, (3.51687e-3,)),
    ]


def _data_problems() -> list[Problem]:
    i = np.arange(1.0, 101.0)
    fifths, tenths = i[:20] / 5, i / 10
    gulf_t = i[:99] / 100
    biggs_y = np.exp(-tenths) - 5 * np.exp(-10 * tenths) + 3 * np.exp(-4 * tenths)
    bell = _GAUSSIAN + _GAUSSIAN[-2::-1]
    osborne_2_start = [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5]
    return [
        data_problem("Beale", beale, i[:3], [1.5, 2.25, 2.625], [1, 1], (0.0,)),
        data_problem(
            "Jennrich and Sampson", jennrich_sampson, i[:10], 2 + 2 * i[:10], [0.3, 0.4], (124.362,)
        ),
        data_problem("Bard", bard, i[:15], _BARD, [1, 1, 1], (8.21487e-3, 17.4286)),
        data_problem("Gaussian", gaussian, (8 - i[:15]) / 2, bell, [0.4, 1, 0], (1.12793e-8,)),
        data_problem("Meyer", meyer, 45 + 5 * i[:16], _MEYER, [0.02, 4000, 250], (87.9458,)),
        data_problem(
            "Gulf", gulf, 25 + (-50 * np.log(gulf_t)) ** (2 / 3), gulf_t, [5, 2.5, 0.15], (0.0,)
        ),
        data_problem("Box", box, tenths[:10], np.zeros(10), [0, 10, 20], (0.0,)),
        data_problem(
            "Kowalik and Osborne",
            kowalik_osborne,
            _KOWALIK_U,
            _KOWALIK,
            [0.25, 0.39, 0.415, 0.39],
            (3.07505e-4, 1.02734e-3),
        ),
        data_problem(
            "Brown and Dennis", brown_dennis, fifths, np.zeros(20), [25, 5, -5, -1], (85822.2,)
        ),
        data_problem(
            "Osborne 1",
            osborne_1,
            10 * (i[:33] - 1),
            _OSBORNE_1,
            [0.5, 1.5, -1, 0.01, 0.02],
            (5.46489e-5,),
        ),
        data_problem(
            "Biggs", biggs, tenths[:13], biggs_y[:13], [1, 2, 1, 1, 1, 1], (0.0, 5.65565e-3)
        ),
        data_problem(
            "Osborne 2", osborne_2, (i[:65] - 1) / 10, _OSBORNE_2, osborne_2_start, (4.01377e-2,)
        ),
    ]


PROBLEMS = {problem.name: problem for problem in _plain_problems() + _data_problems()}


@cache
def functions_of(name: str) -> tuple[Callable[..., FloatArray], Callable[..., FloatArray]]:
    """Residuals (m,) and Jacobian (m, n) of a problem, compiled once."""
    problem = PROBLEMS[name]
    return model_functions(problem.model, problem.x, problem.y)
