"""Data, models and comparisons that the tests of curve_fit share."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import scipy.optimize

SCIPY = scipy.optimize.curve_fit

X = np.linspace(0, 4, 100)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(31 * X)
P0 = [1, 1, 0]
BOUNDS = ([0, 0, 0], [9, 1, 9])
METHODS = ["lm", "trf", "dogbox"]
# Far below the tolerances of the comparisons.
TIGHT = dict(ftol=1e-13, xtol=1e-13)


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def slopes(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def line(x, a, b):
    return a * x + b


def with_value(array, value):
    changed = array.copy()
    changed[7] = value
    return changed


def lazy(array):
    return da.from_array(array, chunks=30)


def assert_agrees(ours, scipys, rtol=1e-6):
    np.testing.assert_allclose(ours[0], scipys[0], rtol=rtol)
    tiny = 1e-9 * np.abs(scipys[1]).max()
    np.testing.assert_allclose(ours[1], scipys[1], rtol=100 * rtol, atol=tiny)


def with_nan(array, *index):
    changed = array.copy()
    changed[..., list(index)] = np.nan
    return changed


COLUMNS = np.stack([X, np.cos(3 * X)])
PLANE = 2 * COLUMNS[0] - COLUMNS[1] + 0.01 * np.sin(17 * X)


def by_math(x, a, b, c):
    return np.array([a * math.exp(-b * t) + c for t in x])
