"""Short vectors: the same bits as NumPy's functions of many more calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nlsq_dask.core.bounds import next_inside
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import relative_gradient
from nlsq_dask.core.vectors import all_finite, column_norms, length, nonzero

NUMBERS = st.floats(-1e150, 1e150) | st.sampled_from([0.0, -0.0, 1e-300, np.inf, np.nan])
SIZES = st.integers(1, 12)


def vectors(sizes=SIZES, elements=NUMBERS):
    return sizes.flatmap(lambda n: arrays(np.float64, n, elements=elements))


@given(vectors())
def test_length_has_the_bits_of_the_norm(vector):
    assert np.array_equal(length(vector), np.linalg.norm(vector), equal_nan=True)


@given(vectors() | arrays(np.float64, (3, 3), elements=NUMBERS))
def test_numbers_that_are_all_finite(array):
    assert all_finite(array) == np.isfinite(array).all()


@given(SIZES.flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(-1e300, 1e300))))
def test_column_norms_have_the_bits_of_the_norm(matrix):
    largest = nonzero(np.max(np.abs(matrix), axis=0))
    assert np.array_equal(
        column_norms(matrix), largest * np.linalg.norm(matrix / largest, axis=0), equal_nan=True
    )


@given(vectors(elements=st.floats(-1e300, 1e300)))
def test_a_box_without_bounds_changes_nothing(params):
    box = Box(np.full(params.size, -np.inf), np.full(params.size, np.inf))
    assert box.is_open
    assert np.array_equal(next_inside(params, box.lower, box.upper), params)
    scaling, derivative = box.distance_along_descent(params, params)
    assert np.all(scaling == 1.0)
    assert np.all(derivative == 0.0)
    assert box.stride_to(params, np.ones_like(params))[0] == np.inf


@pytest.mark.parametrize("lower", [-np.inf, 0.0])
def test_a_bound_that_no_parameter_nears_leaves_the_gradient_criterion(lower):
    class Linear:
        gradient = np.array([3.0, -4.0])
        lengths = np.array([2.0, 8.0])

    class State:
        linearization = Linear()
        params = np.array([1e100, 1e100])
        cost = 2.0

    box = Box(np.array([lower, -np.inf]), np.full(2, np.inf))
    assert box.is_open == (lower == -np.inf)
    assert relative_gradient(State(), box) == 0.75
