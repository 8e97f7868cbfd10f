"""Every form that bounds and starting values come in, and every way in which they can be wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, curve_fit

from nlsq_dask._errors import InputError, InputTypeError
from nlsq_dask.core.bounds import (
    active_bounds,
    normalize_bounds,
    normalize_p0,
    off_bounds,
    stopped_at_bounds,
)
from nlsq_dask.core.reflective import Box

NAMES = ("a", "b", "c")
INF = np.inf


@pytest.mark.parametrize(
    ("bounds", "lower", "upper"),
    [
        (None, [-INF] * 3, [INF] * 3),
        ((-INF, INF), [-INF] * 3, [INF] * 3),
        ((None, None), [-INF] * 3, [INF] * 3),
        ((0, 5), [0.0] * 3, [5.0] * 3),
        ((0, [1, 2, 3]), [0.0] * 3, [1.0, 2.0, 3.0]),
        (([0, None, -1], INF), [0.0, -INF, -1.0], [INF] * 3),
        (([0, None, -1], [None, 2, 3]), [0.0, -INF, -1.0], [INF, 2.0, 3.0]),
        ([np.zeros(3), np.ones(3)], [0.0] * 3, [1.0] * 3),
        (np.array([[0, 0, 0], [1, 2, 3]]), [0.0] * 3, [1.0, 2.0, 3.0]),
        (Bounds([0, 1, 2], [3, 4, 5]), [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]),
        (Bounds(0, INF), [0.0] * 3, [INF] * 3),
        ((pd.Series({"c": 1, "a": 0}), 5), [0.0, -INF, 1.0], [5.0] * 3),
        ((0, pd.Series({"c": 1, "b": 2, "a": 3})), [0.0] * 3, [3.0, 2.0, 1.0]),
        (({"c": -1}, {"a": 2}), [-INF, -INF, -1.0], [2.0, INF, INF]),
        ((pd.Series([1, 2, 3]), 5), [1.0, 2.0, 3.0], [5.0] * 3),
        ({}, [-INF] * 3, [INF] * 3),
        ({"b": (0, None)}, [-INF, 0.0, -INF], [INF] * 3),
        ({"c": (None, 1), "a": [0, 2], "b": None}, [0.0, -INF, -INF], [2.0, INF, 1.0]),
    ],
)
def test_forms_of_bounds(bounds, lower: list[float], upper: list[float]):
    low, high = normalize_bounds(bounds, NAMES)
    assert low.dtype == high.dtype == np.float64
    assert (low.tolist(), high.tolist()) == (lower, upper)


@pytest.mark.parametrize(
    ("bounds", "error", "match"),
    [
        ((1, 1), InputError, "parameter a has the lower bound 1.0 and the upper bound 1.0"),
        (([0, 5, 0], 4), InputError, "parameter b .* 5.0 .* 4.0"),
        ({"c": (2, 1)}, InputError, "parameter c"),
        ((INF, INF), InputError, "strictly less"),
        ((-INF, -INF), InputError, "strictly less"),
        (([0, 0], 1), InputError, r"lower bounds have shape \(2,\) but the model has 3"),
        ((0, np.ones((1, 3))), InputError, r"upper bounds have shape \(1, 3\)"),
        ((np.nan, 1), InputError, "lower bounds of a, b and c are NaN"),
        ((0, [1, np.nan, 1]), InputError, "upper bounds of b are NaN"),
        ({"d": (0, 1), "a": (0, 1)}, InputError, "bounds names d, .* parameters are a, b and c"),
        ({"a": (0, np.nan)}, InputError, "upper bounds of a are NaN"),
        ({"a": 1}, InputTypeError, r"parameter a are 1: pass \(lower, upper\)"),
        ({"a": (0, 1, 2)}, InputTypeError, "parameter a"),
        ({"a": ("low", 1)}, InputTypeError, "parameter a"),
        (3, InputTypeError, "bounds = 3 is not a pair"),
        ([(0, 1), (0, 1), (0, 1)], InputTypeError, r"tuple\(zip\(\*bounds\)\) is that"),
        (np.ones((3, 2)), InputTypeError, r"tuple\(zip\(\*bounds\)\) is that"),
        ((pd.Series({"d": 1}), 5), InputError, "bounds names d"),
        (("low", 1), InputTypeError, "lower bounds are 'low'"),
        ((0, [1, 2j, 3]), InputTypeError, "upper bounds"),
        ((0, [[1], [2, 3]]), InputTypeError, "upper bounds"),
    ],
)
def test_wrong_bounds_are_refused(bounds, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        normalize_bounds(bounds, NAMES)


FREE = (np.full(3, -INF), np.full(3, INF))


@pytest.mark.parametrize(
    ("p0", "expected"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((1.5, 2, 3), [1.5, 2.0, 3.0]),
        (np.array([1, 2, 3], dtype=np.float32), [1.0, 2.0, 3.0]),
        ({"c": 3, "a": 1, "b": 2}, [1.0, 2.0, 3.0]),
        (None, [1.0, 1.0, 1.0]),
    ],
)
def test_forms_of_p0(p0, expected: list[float]):
    start = normalize_p0(p0, NAMES, *FREE)
    assert start.dtype == np.float64
    assert start.tolist() == expected


def test_p0_is_copied():
    p0 = np.ones(3)
    normalize_p0(p0, NAMES, *FREE)[0] = 9.0
    assert p0[0] == 1.0


def test_scalar_p0_serves_one_parameter():
    lower, upper = np.array([-INF]), np.array([INF])
    assert normalize_p0(2, ("a",), lower, upper).tolist() == [2.0]


@pytest.mark.parametrize(
    ("p0", "error", "match"),
    [
        (2.0, InputError, "length 1 but the model has 3 parameters, a, b and c"),
        ([1, 2], InputError, "length 2"),
        ([1, np.nan, INF], InputError, "NaN or infinite for b and c"),
        ([1, None, 1], InputError, "NaN or infinite for b"),
        ({"a": 1}, InputError, "no value for b and c"),
        ({"a": 1, "b": 1, "c": 1, "x": 1}, InputError, "p0 names x"),
        ([5, 0.5, 0.5], InputError, r"infeasible: a = 5.0 .* \[0.0, 1.0\]"),
        ([0.5, 0.5, -0.1], InputError, "infeasible: c"),
        ([[1, 2, 3]], InputTypeError, "not a sequence of real numbers"),
        ("abc", InputTypeError, "p0 = 'abc'"),
        ([1j, 0, 0], InputTypeError, "real numbers"),
    ],
)
def test_wrong_p0_is_refused(p0, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        normalize_p0(p0, NAMES, np.zeros(3), np.ones(3))


BOUND_PAIRS = [(-INF, INF), (0.0, INF), (3.0, INF), (-INF, 0.0), (-INF, 5.0), (2.0, 3.0)]


@pytest.mark.parametrize(("lower", "upper"), BOUND_PAIRS)
def test_default_start_is_that_of_scipy(lower: float, upper: float):
    seen = []

    def model(x, a):
        seen.append(float(a))
        return a * x

    curve_fit(model, np.arange(1.0, 4.0), np.arange(1.0, 4.0), bounds=(lower, upper))
    start = normalize_p0(None, ("a",), np.array([lower]), np.array([upper]))
    assert start[0] == seen[0]


@given(
    params=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4),
    gaps=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=4, max_size=4),
    distance=st.sampled_from([0.0, 1e-300, 1e-10, 1.0]),
)
def test_a_start_is_moved_off_its_bounds_and_no_further(params, gaps, distance: float):
    values = np.array(params)
    below, above = np.array(gaps)[: values.size].T
    lower, upper = values - below, values + above + 1e-3
    inside = off_bounds(values, lower, upper, distance)
    assert np.all((lower < inside) & (inside < upper))
    off = (lower < values) & (values < upper)
    assert np.array_equal(inside[off], values[off])
    box = upper - lower
    bound = np.maximum(np.abs(lower), np.abs(upper))
    least = np.maximum(distance, 1e-10 * bound)
    assert np.all(np.abs(inside - values) <= np.minimum(least, 1e-3 * box) + 1e-15 * bound)


@pytest.mark.parametrize("unit", [1e-18, 1e-6, 1.0, 1e12])
def test_moving_off_a_bound_knows_no_units(unit: float):
    lower, upper = np.array([0.0, 1.0, -INF]) * unit, np.array([INF, 4.0, -2.0]) * unit
    start = np.array([1e-12, 1.0, -2.0]) * unit
    inside = off_bounds(start, lower, upper, 1e-300)
    assert inside[0] == start[0]  # it is off its bound already, however near
    assert inside[1:] / unit == pytest.approx([1.0 + 1e-10, -2.0 - 2e-10], rel=1e-14)


def test_a_step_stops_halfway_to_a_bound():
    lower, upper = np.array([0.0, -INF, 0.0]), np.array([1.0, INF, 1.0])
    stopped = stopped_at_bounds(np.full(3, 0.5), np.array([-2.0, 5.0, 0.25]), Box(lower, upper))
    assert stopped.tolist() == [0.25, 5.5, 0.75]


def test_active_bounds_hold_a_parameter_back():
    """Within reach of it, and with the cost falling beyond it."""
    lower, upper = np.array([0.0, 0.0, 0.0, -INF, 100.0]), np.array([1.0, 1.0, 1.0, INF, 200.0])
    params = np.array([1e-9, 0.5, 1.0 - 1e-9, 0.0, 100.0 + 5e-7])
    outward = np.array([1.0, 1.0, -1.0, 1.0, 1.0])
    assert active_bounds(params, Box(lower, upper), outward, 1e-6).tolist() == [-1, 0, 1, 0, -1]
    assert active_bounds(params, Box(lower, upper), -outward, 1e-6).tolist() == [0, 0, 0, 0, 0]
    assert active_bounds(params, Box(lower, upper), outward, 0.0).tolist() == [0, 0, 0, 0, 0]
    params[[0, 4]] = lower[[0, 4]]
    params[2] = upper[2]
    assert active_bounds(params, Box(lower, upper), outward, 0.0).tolist() == [-1, 0, 1, 0, -1]
