"""Arguments of any type end in errors of this package, and not in those of NumPy or Python."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import InputError, curve_fit, fit
from nlsq_dask._errors import FitError

X = np.linspace(0, 4, 24)
Y = 2.5 * np.exp(-1.3 * X) + 0.5


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


#: Each was an error of NumPy or Python: an array has no truth value, and float64 no such number.
ODD = [
    {name: value}
    for value, names in [
        (np.zeros((3, 3)), ("method", "strategy", "dry_run", "device", "nan_policy")),
        (np.zeros(2), ("diagnostics", "append", "resume", "absolute_sigma")),
        (10**400, ("ties", "f_scale", "x_scale", "gtol", "ftol", "stat_tol", "memory_limit_gb")),
        (NotImplemented, ("diagnostics", "append", "resume", "dry_run")),
    ]
    for name in names
]


@pytest.mark.parametrize("options", ODD, ids=lambda options: next(iter(options)))
def test_odd_arguments_of_fit(options):
    (name,) = options
    with pytest.raises(FitError, match=name):
        fit(decay, X, Y, p0=[1, 1, 0], **options)


def test_odd_arguments_of_curve_fit():
    with pytest.raises(FitError, match="nan_policy"):
        curve_fit(decay, X, Y, nan_policy=np.zeros(2))
    with pytest.raises(FitError, match="ydata|y "):
        curve_fit(decay, X, [10**400] * X.size)


#: Lists of several lengths, and a model that cannot use what it gets.
RAGGED = [[1.0, 2.0], [3.0]]
OF_CURVE_FIT = [
    ("x", dict(xdata=RAGGED, ydata=np.float64(0.7))),
    ("x", dict(xdata=RAGGED, ydata=[0.7])),
    ("decay raised TypeError", dict(xdata=([1.0, 2.0], [3.0]), ydata=0.7)),
    ("decay raised TypeError", dict(xdata={"x": X}, ydata=0.7)),
    ("p0", dict(p0=RAGGED)),
    ("p0", dict(p0=[1, [1], 0])),
    *(("diag", dict(diag=value)) for value in (RAGGED, "auto", 10**400, [1, 0, 1], [1, 1, 1e-200])),
    *((name, {name: np.zeros(3)}) for name in ("max_nfev", "full_output", "check_finite")),
    ("max_nfev", dict(maxfev=np.zeros(3))),
    ("x_scale", dict(x_scale=1e308)),
]


@pytest.mark.parametrize(("name", "options"), OF_CURVE_FIT)
def test_ragged_and_odd_arguments_of_curve_fit(name, options):
    given = {"xdata": X, "ydata": Y, "p0": [1, 1, 0], "method": "lm"} | options
    with pytest.raises(FitError, match=name):
        curve_fit(decay, **given)


def test_numbers_of_any_kind_are_flags():
    for value in (0, None, np.False_):
        fit(decay, X, Y, p0=[1, 1, 0], absolute_sigma=value, diagnostics=value, resume=value)
    with pytest.raises(InputError, match="choose one of True, False|choose one of True and False"):
        fit(decay, X, Y, p0=[1, 1, 0], diagnostics="yes")
