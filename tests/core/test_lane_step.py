"""Many small systems and searches at once, in NumPy: against dense algebra and closed forms."""

import numpy as np
import pytest

from nlsq_dask._errors import Status
from nlsq_dask.core.constraints import reduce_parameters
from nlsq_dask.core.lane_algebra import (
    backward,
    forward,
    inverse_columns,
    lane_factor,
    triangle,
)
from nlsq_dask.core.lane_answer import answers_of
from nlsq_dask.core.lane_parameters import expanded_covariance, free_bounds
from nlsq_dask.core.lane_step import (
    FIRST_DAMPING,
    RUNNING,
    LaneOptions,
    Lanes,
    LaneState,
    LaneSums,
    next_state,
)

SIZE, LANES, ROWS = 3, 40, 12
DRAW = np.random.default_rng(0)
DESIGN = DRAW.normal(size=(ROWS, SIZE, LANES))
Y = DRAW.normal(size=(ROWS, LANES))
INFINITE = np.full((SIZE, LANES), np.inf)


def packed(matrix):
    return [matrix[i, j] for i in range(SIZE) for j in range(i + 1)]


def sums_at(params, design=DESIGN, y=Y):
    """Sums of the linear model ``design @ params``."""
    residuals = np.einsum("mql,ql->ml", design, params) - y
    gram = np.einsum("mql,mkl->qkl", design, design)
    gradient = np.einsum("mql,ml->ql", design, residuals)
    return LaneSums(packed(gram), list(gradient), (residuals**2).sum(axis=0))


def searched(lower, upper, design=DESIGN, y=Y, turns=60):
    n = np.full(LANES, float(ROWS))
    lanes = Lanes(list(lower), list(upper), n, np.full(LANES, np.nan), (y**2).sum(axis=0))
    start = np.clip(np.zeros((SIZE, LANES)), lower, upper)
    zero, one = np.zeros(LANES), np.ones(LANES)
    state = LaneState(
        list(start),
        list(start),
        [zero] * 6,
        [zero] * SIZE,
        [zero] * SIZE,
        one * np.inf,
        zero,
        one * FIRST_DAMPING,
        one * 2,
        one * np.inf,
        one * np.inf,
        zero,
        zero,
        one * RUNNING,
    )
    options = LaneOptions(1e-6, 100)
    for _ in range(turns):
        with np.errstate(all="ignore"):
            sums = sums_at(np.asarray(state.trial), design, y)
            state = next_state(np, state, sums, lanes, options)
    return state, lanes, start


def test_factor_solves_and_inverts_each_system():
    gram = np.einsum("mql,mkl->qkl", DESIGN, DESIGN)
    factor = lane_factor(np, triangle(packed(gram), SIZE), 1e-12)
    right = DRAW.normal(size=(SIZE, LANES))
    found = np.stack(backward(factor, forward(factor, list(right))))
    dense = np.linalg.solve(gram.transpose(2, 0, 1), right.T[..., None])[..., 0].T
    np.testing.assert_allclose(found, dense, rtol=1e-9)
    inverse = np.linalg.inv(gram.transpose(2, 0, 1))
    rows = inverse_columns(factor, right[0])
    for i, row in enumerate(rows):
        for j, element in enumerate(row):
            np.testing.assert_allclose(element, inverse[:, i, j], rtol=1e-8)


def test_linear_series_end_at_least_squares_with_its_covariance():
    state, lanes, start = searched(-INFINITE, INFINITE)
    assert (state.status == Status.STATISTICAL).all()
    answers = answers_of(state, lanes, start)
    for k in range(LANES):
        expected, cost, *_ = np.linalg.lstsq(DESIGN[:, :, k], Y[:, k])
        np.testing.assert_allclose(answers.params[:, k], expected, atol=1e-5)
        cov = cost / (ROWS - SIZE) * np.linalg.inv(DESIGN[:, :, k].T @ DESIGN[:, :, k])
        own = [cov[i, j] for i in range(SIZE) for j in range(i + 1)]
        np.testing.assert_allclose(answers.covariance[:, k], own, rtol=1e-7)


def test_bounded_linear_series_meet_the_conditions_of_kuhn_and_tucker():
    state, lanes, start = searched(np.full((SIZE, LANES), -0.1), np.full((SIZE, LANES), 0.05))
    answers = answers_of(state, lanes, start)
    assert (answers.status == Status.STATISTICAL).all()
    gradient = np.asarray(sums_at(answers.params).gradient)
    low, high = answers.params == -0.1, answers.params == 0.05
    assert (gradient[low] >= 0).all()
    assert (gradient[high] <= 0).all()
    assert np.abs(gradient[~low & ~high]).max() < 1e-4
    np.testing.assert_array_equal(answers.at_bound, low | high)


@pytest.mark.parametrize("case", ["equal columns", "a column of zeros"])
def test_a_direction_without_effect_leaves_no_answer(case):
    design = DESIGN.copy()
    design[:, 2] = design[:, 1] if case == "equal columns" else 0.0
    state, lanes, start = searched(-INFINITE, INFINITE, design)
    answers = answers_of(state, lanes, start)
    assert (answers.status == Status.UNDETERMINED).all()
    assert np.isnan(answers.params).all()
    assert np.isnan(answers.covariance).all()


def test_exact_data_end_at_rounding():
    y = np.einsum("mql,ql->ml", DESIGN, np.ones((SIZE, LANES)))
    state, lanes, start = searched(-INFINITE, INFINITE, y=y)
    answers = answers_of(state, lanes, start)
    assert set(answers.status) == {Status.STATISTICAL, Status.ROUNDING}
    np.testing.assert_allclose(answers.params, 1.0, rtol=1e-12)


def test_bounds_and_covariances_follow_ties():
    names = ("a", "b", "c")
    reduction = reduce_parameters(names, {"c": 2.0}, {"b": {"a": -2.0, "c": 1.0}})
    offset = np.repeat(reduction.offset[:, None], 2, axis=1)
    lower = np.array([[-9.0, -9.0], [0.0, 0.0], [-np.inf, 3.0]])
    upper = np.array([[9.0, 9.0], [4.0, 4.0], [np.inf, np.inf]])
    low, high, bad = free_bounds(reduction, offset, lower, upper)
    np.testing.assert_array_equal(bad, [False, True])
    assert (low[0, 0], high[0, 0]) == (-1.0, 1.0)
    dense = expanded_covariance(reduction.matrix, np.array([[0.5, 0.25]]))
    np.testing.assert_array_equal(dense[:, 0], [0.5, -1.0, 2.0, 0.0, 0.0, 0.0])
