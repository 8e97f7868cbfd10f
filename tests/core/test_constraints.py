"""Fixed and tied parameters: the algebra between all parameters and the free ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import InputError, InputTypeError
from nlsq_dask.core.constraints import (
    in_free,
    reduce_bounds,
    reduce_parameters,
    reduce_start,
)
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import CostsAt, SumsAt, answered

NAMES = ("a", "b", "c", "d")
NO_BOUNDS = (np.full(4, -np.inf), np.full(4, np.inf))

finite = st.floats(-10, 10, allow_nan=False)


class Quadratic:
    """Normal equations of residuals ``A θ - b``."""

    def __init__(self, matrix, rhs):
        self.matrix, self.rhs, self.n_passes = matrix, rhs, 0

    def residuals(self, params):
        return self.matrix @ params - self.rhs

    def ask(self, question):
        self.n_passes += 1
        if isinstance(question, CostsAt):
            return np.array([0.5 * np.sum(self.residuals(c) ** 2) for c in question.candidates])
        r, jacobian = self.residuals(question.params), self.matrix @ question.basis
        chi2 = float(r @ r)
        return NormalEquations(jacobian.T @ jacobian, jacobian.T @ r, chi2 / 2, chi2, r.size)


@given(free=st.lists(finite, min_size=2, max_size=2), fixed=finite, factor=finite)
def test_all_parameters_follow_from_the_free_ones(free, fixed, factor):
    ties = {"b": {"a": factor, "c": 1.0}}
    reduction = reduce_parameters(NAMES, {"c": fixed}, ties)
    assert reduction.names == ("a", "d")
    expected = [free[0], factor * free[0] + fixed, fixed, free[1]]
    np.testing.assert_allclose(reduction.expand(np.array(free)), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(reduction.is_fixed, [False, factor == 0.0, True, False])


def test_ties_of_ties_are_followed_to_the_free_parameter():
    reduction = reduce_parameters(NAMES, None, {"d": "c", "c": {"b": 2.0}, "b": "a"})
    np.testing.assert_array_equal(reduction.expand(np.array([3.0])), [3.0, 3.0, 6.0, 6.0])


def test_nothing_fixed_or_tied_changes_nothing():
    reduction = reduce_parameters(NAMES, {}, None)
    assert reduction.is_identity
    values = np.arange(4.0)
    assert reduction.expand(values) is values
    assert reduction.expand_covariance(values) is values


def asked_in_free(engine, reduction, question):
    """The answer to a question in the free coordinates."""

    def search():
        return (yield question)

    return answered(in_free(search(), reduction), engine.ask)


def test_sums_by_free_coordinates_are_those_of_the_composed_problem():
    rng = np.random.default_rng(0)
    dense = Quadratic(rng.normal(size=(20, 4)), rng.normal(size=20))
    reduction = reduce_parameters(NAMES, {"c": 0.5}, {"d": "a"})
    free, basis = np.array([1.2, -0.3]), rng.normal(size=(2, 2))
    ask = partial(asked_in_free, dense, reduction)
    sums = ask(SumsAt(free, basis))
    jacobian = dense.matrix @ reduction.matrix @ basis
    r = dense.residuals(np.array([1.2, -0.3, 0.5, 1.2]))
    np.testing.assert_allclose(sums.gram, jacobian.T @ jacobian)
    np.testing.assert_allclose(sums.gradient, jacobian.T @ r)
    costs = ask(CostsAt(np.array([free, 2 * free])))
    np.testing.assert_allclose(costs[0], sums.cost)


def test_covariance_and_gradient_of_all_parameters():
    reduction = reduce_parameters(NAMES, {"c": 0.5}, {"d": {"a": -2.0}})
    covariance = np.array([[4.0, 1.0], [1.0, 9.0]])
    whole = reduction.expand_covariance(covariance)
    np.testing.assert_array_equal(whole[2], 0.0)
    np.testing.assert_array_equal(whole[:, 2], 0.0)
    np.testing.assert_allclose(whole[3], -2.0 * whole[0])
    np.testing.assert_allclose(whole[np.ix_([0, 1], [0, 1])], covariance)
    infinite = reduction.expand_covariance(np.full((2, 2), np.inf))
    assert np.isinf(infinite[0, 3])
    assert infinite[2, 2] == 0.0
    gradient = reduction.expand_gradient(np.array([3.0, 5.0]))
    np.testing.assert_allclose(reduction.matrix.T @ gradient, [3.0, 5.0])
    assert gradient[2] == 0.0
    np.testing.assert_array_equal(reduction.expand_mask(np.array([1, -1])), [1, -1, 0, -1])


def test_bounds_pass_to_the_free_coordinate():
    reduction = reduce_parameters(NAMES, {"c": 0.5}, {"d": {"a": -2.0}})
    lower, upper = np.array([-1.0, -np.inf, 0.0, -6.0]), np.array([np.inf, 7.0, 1.0, 1.0])
    low, high = reduce_bounds(reduction, NAMES, lower, upper)
    np.testing.assert_array_equal(low, [-0.5, -np.inf])
    np.testing.assert_array_equal(high, [3.0, 7.0])


def test_a_matrix_of_ties():
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, -1.0]])
    reduction = reduce_parameters(NAMES, None, matrix)
    start = reduce_start(reduction, matrix @ [2.0, 3.0], NAMES, *(b[:2] for b in NO_BOUNDS))
    np.testing.assert_allclose(start, [2.0, 3.0])
    low, _ = reduce_bounds(reduction, NAMES, np.array([-np.inf] * 2 + [1.0, -np.inf]), NO_BOUNDS[1])
    np.testing.assert_array_equal(low, [-np.inf, 0.5])


@pytest.mark.parametrize(
    ("p0", "expected"),
    [
        (None, [1.0, 1.0]),
        ([5.0, 6.0, 7.0, 8.0], [5.0, 6.0]),
        ({"a": 5.0, "b": 6.0}, [5.0, 6.0]),
        ({"a": 5.0, "b": 6.0, "c": 99.0}, [5.0, 6.0]),
    ],
)
def test_a_start_says_nothing_of_what_is_fixed(p0, expected):
    reduction = reduce_parameters(NAMES, {"c": 0.5}, {"d": "a"})
    start = reduce_start(reduction, p0, NAMES, *(b[:2] for b in NO_BOUNDS))
    np.testing.assert_array_equal(start, expected)


@pytest.mark.parametrize(
    ("fixed", "ties", "error", "message"),
    [
        ({"q": 1.0}, None, InputError, "fixed names q, but the model's parameters are a, b, c"),
        (["a"], None, InputTypeError, "pass values by parameter name"),
        ({"a": "x"}, None, InputError, r"fixed\['a'\] = 'x': pass a finite number"),
        ({"a": np.nan}, None, InputError, "pass a finite number"),
        ({"a": 1.0}, {"a": "b"}, InputError, "a cannot be both fixed and tied"),
        (dict.fromkeys(NAMES, 1.0), None, InputError, "all fixed or tied"),
        (None, {"a": "q"}, InputError, r"ties\['a'\] names q"),
        (None, {"a": 3.0}, InputTypeError, r"ties\['a'\] = 3.0"),
        (None, {"a": {"b": "x"}}, InputTypeError, "finite factors by name"),
        (None, {"a": {"b": np.inf}}, InputTypeError, "finite factors by name"),
        (None, {"a": "b", "b": "c", "c": "a"}, InputError, "a -> b -> c -> a"),
        (None, {"a": "a"}, InputError, "a -> a"),
        (None, np.ones((3, 2)), InputError, r"shape \(3, 2\)"),
        (None, np.ones((4, 2)), InputError, "rank 1"),
        (None, "no", InputError, "ties has str"),
        (None, [[1.0, 2.0], [3.0]], InputError, "ties has list"),
        (None, np.eye(4) * (1 + 1j), InputError, "ties has complex values"),
        ({"a": 1.0}, np.ones((4, 1)), InputError, "cannot be combined"),
    ],
)
def test_refusals(fixed, ties, error, message):
    with pytest.raises(error, match=message):
        reduce_parameters(NAMES, fixed, ties)


@pytest.mark.parametrize(
    ("ties", "lower", "message"),
    [
        ({"b": {"a": 1.0, "d": 1.0}}, [-np.inf, 0.0, -np.inf, -np.inf], "b is a combination"),
        ({"b": "a"}, [-np.inf, -np.inf, 0.7, -np.inf], "c is fixed at 0.5, outside of its bounds"),
        ({"b": {"a": -1.0}}, [1.0, 0.0, -np.inf, -np.inf], "parameter a has the lower bound 1.0"),
    ],
)
def test_bounds_that_cannot_be_kept(ties, lower, message):
    reduction = reduce_parameters(NAMES, {"c": 0.5}, ties)
    with pytest.raises(InputError, match=message):
        reduce_bounds(reduction, NAMES, np.array(lower), NO_BOUNDS[1])
