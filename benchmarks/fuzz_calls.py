"""Calls of ``fit``, ``curve_fit`` and ``plan`` with odd arguments, drawn at random."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeWarning

from nlsq_dask import curve_fit, fit, plan
from nlsq_dask._errors import FitError, FitWarning

N = 24
X = np.linspace(0, 4, N)
Y = 2.5 * np.exp(-1.3 * X) + 0.5


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def positive(x, a, b, c):
    return a * jnp.sqrt(x - b) + c


def two(x, a, b):
    return a + b * x


def not_a_model(x):
    return x


def of_strings(*_):
    return "text"


def listener(*_):
    """A callback."""


def shorter(x, a, b, c):
    return a * x[1:] + b + c


class Odd:
    """An object of no use."""


def arrays(rng: random.Random) -> Any:
    """An array, or something in its place."""
    plain = np.array([rng.gauss(0, 1) for _ in range(N)])
    at = rng.randrange(N)
    spoilt = plain.copy()
    spoilt[at] = rng.choice((np.nan, np.inf, -np.inf, 1e155, -1e200, 1e308, 5e-324, -0.0, 1e150))
    made: tuple[Callable[[], Any], ...] = (
        lambda: plain,
        lambda: spoilt,
        lambda: plain * rng.choice((1e-300, 1e-150, 1e150, 1e300, 0.0)),
        lambda: plain.astype(rng.choice(("f4", "f2", "i8", "u1", "bool", "c16", "O", "U5", "g"))),
        lambda: (plain * 1e300).astype(rng.choice(("f8", "g"))),
        lambda: np.full(N, rng.choice((0, 2**53 + 1, -(2**63), 2**63 - 1)), np.int64),
        lambda: np.arange(N).astype("M8[s]"),
        lambda: np.arange(N).astype("m8[ms]"),
        lambda: np.full(N, np.datetime64("NaT")),
        lambda: np.ma.masked_array(spoilt, mask=np.arange(N) % rng.randint(1, 4) == 0),
        lambda: da.from_array(spoilt, chunks=rng.randint(1, N)),
        lambda: da.from_array(plain[: rng.randint(0, N)], chunks=5),
        lambda: jnp.asarray(plain),
        lambda: plain.reshape(2, -1),
        lambda: plain[:, None],
        lambda: plain[None],
        lambda: plain[: rng.randint(0, N)],
        lambda: np.zeros((rng.randint(0, 3), 0)),
        lambda: np.float64(rng.gauss(0, 1)),
        plain.tolist,
        lambda: tuple(spoilt.tolist()),
        lambda: [[1.0, 2.0], [3.0]],
        lambda: rng.choice(
            (([1.0, 2.0], [3.0]), [plain, plain[:5]], [[1.0], [[2.0]]], {"x": plain})
        ),
        lambda: [1.0, "a", None],
        lambda: [decimal.Decimal("1.5")] * N,
        lambda: [fractions.Fraction(1, 3)] * N,
        lambda: [10**400] * N,
        lambda: (plain, spoilt),
        lambda: (plain, plain[:5]),
        lambda: np.stack([plain, spoilt]),
        lambda: odd(rng),
    )
    return rng.choice(made)()


def odd(rng: random.Random) -> Any:
    """A value of any type."""
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1, 3, 2**70, 0.5, -2.5, 1e155, 1e308, 1j),
            *(float("nan"), float("inf"), -float("inf"), 10**400, decimal.Decimal(2)),
            *("", "x", "auto", "trf", "\0", "é" * 300, b"bytes", bytearray(b"x")),
            *((), [], {}, set(), {1, 2}, {"a": 1}, {"a": "b"}, {"zz": 1.0}, {1: 2}, range(3)),
            *([1, 1, 0], [1, 1], [[1, 1, 0]], (0.0, 1.0), ([0] * 3, [9] * 3), [np.nan] * 3),
            *(np.zeros(3), np.zeros((3, 3)), np.eye(3), np.array(None), np.array("a")),
            *([[1.0, 2.0], [3.0]], [1, [1], 0]),
            *(Odd(), decay, iter([1, 2]), slice(3), Ellipsis, NotImplemented),
            *(dt.datetime(2020, 1, 1), dt.timedelta(1), np.datetime64("2020")),
        )
    )


# What an argument may be, besides any odd value.
CHOICES: dict[str, tuple[Any, ...]] = {
    "p0": ([1, 1, 0], {"a": 1, "b": 1, "c": 0}, [1e300] * 3, [0, 0, 0], [-1, 1e-300, 5]),
    "sigma": (
        None,
        0.1,
        0.0,
        -1.0,
        1e-200,
        np.full(N, 0.1),
        np.eye(N),
        -np.eye(N),
        np.ones((N, N)),
    ),
    "absolute_sigma": (True, False),
    "mask": (None, np.arange(N) % 2 == 0, np.ones(N, bool), np.zeros(N), True),
    "nan_policy": ("raise", "omit", "propagate"),
    "fill_value": (None, 0.5, -1),
    "bounds": ((-np.inf, np.inf), (0, 10), ([0] * 3, [9] * 3), {"a": (0, 5)}, (5, 1), (1, 1)),
    "fixed": (None, {"a": 2.5}, {"a": 1, "b": 1, "c": 0}, {"zz": 1}),
    "ties": (None, {"a": "b"}, {"a": {"b": 2.0}}, np.eye(3), {"a": "a"}, {"a": "b", "b": "a"}),
    "method": ("trf", "lm", "dogbox"),
    "loss": ("linear", "soft_l1", "huber", "cauchy", "arctan"),
    "f_scale": (1.0, 0.1, 1e-300, 1e300),
    "jac": (None, "2-point"),
    "x_scale": ("jac", 1.0, [1, 2, 3], [0, 1, 1]),
    "ftol": (None, 1e-8, 0, 1.0, "auto"),
    "xtol": (None, 1e-8, "auto"),
    "gtol": (None, 1e-8, "auto"),
    "stat_tol": (None, 0.01, "auto"),
    "strategy": ("auto", "standard", "chunked", "streaming"),
    "workflow": (None, "standard", "quality"),
    "goal": (None, "fast", "robust"),
    "memory_limit_gb": (None, 1, 1e-9),
    "n_starts": (None, 1, 2),
    "seed": (0, 2**40),
    "pilot": (None, True, False),
    "cache": ("auto", True, False),
    "collapse": ("auto", True, False),
    "retries": (0, 1),
    "diagnostics": (True, False),
    "verbose": (0,),
    "callback": (None, listener),
    "device": (None, "cpu"),
    "time_unit": ("s", "D"),
    "decode": ("cf", False),
    "progress": (None, False),
    "diag": (None, [1, 2, 3], 1e-300),
    "maxfev": (0, 20),
    "epsfcn": (None, 1e-3),
    "col_deriv": (False, True),
    "full_output": (False, True),
    "check_finite": (None, True, False),
}
#: Arguments of ``scipy.optimize.curve_fit``.
OF_CURVE_FIT = (
    *("p0", "sigma", "absolute_sigma", "bounds", "method", "jac", "nan_policy", "x_scale"),
    *("diag", "maxfev", "epsfcn", "col_deriv", "full_output", "check_finite"),
)
MODELS = (decay, decay, decay, decay, positive, two, not_a_model, of_strings, shorter, None, 3)


def call(rng: random.Random) -> tuple[str, Callable[[], Any]]:
    """A call, and its text."""
    function = rng.choice((fit, fit, curve_fit, plan))
    others = tuple(name for name in CHOICES if name not in OF_CURVE_FIT[8:])
    names = OF_CURVE_FIT if function is curve_fit else others
    options: dict[str, Any] = {"p0": [1, 1, 0]}
    for name in rng.sample(names, rng.choice((0, 1, 1, 2, 3))):
        options[name] = odd(rng) if rng.random() < 0.4 else rng.choice(CHOICES[name])
    model, x, y = decay, X, Y
    spoilt = rng.choice(("", "x", "y", "y", "both", "model"))
    model = rng.choice(MODELS) if spoilt == "model" else model
    x = arrays(rng) if spoilt in ("x", "both") else x
    y = arrays(rng) if spoilt in ("y", "both") else y
    options |= {"max_nfev": 20}
    with np.printoptions(threshold=8):
        text = f"{function.__name__}({model}, {x!r}, {y!r}, **{options!r})"
    return text, lambda: function(model, x, y, **options)


def end_of(made: Callable[[], Any]) -> str:
    """How a call ends."""
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
        warnings.simplefilter("always")
        try:
            str(made())
        except FitError:
            return "refused"
        except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
            return f"undocumented: {error!r}"
    known = (FitWarning, OptimizeWarning, np.exceptions.ComplexWarning)
    strange = [w.message for w in caught if not isinstance(w.message, known)]
    return f"undocumented: {strange[0]!r}" if strange else "ran"


def calls(count: int, rng: random.Random) -> Iterable[tuple[str, str]]:
    """Texts and ends of `count` calls."""
    for _ in range(count):
        text, made = call(rng)
        yield text, end_of(made)
