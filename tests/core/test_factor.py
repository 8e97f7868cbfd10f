"""Factors out of sums are those of a QR of the Jacobian itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from nlsq_dask.core.factor import (
    EPS,
    LEAST_CURVATURE,
    Basis,
    Linearization,
    column_norms,
    factorize,
    nonzero,
    rank_tolerance,
)
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations


def linearize(jac: FloatArray, r: FloatArray, basis: Basis) -> Linearization:
    js = jac @ basis.forward
    chi2 = float(r @ r)
    return factorize(NormalEquations(js.T @ js, js.T @ r, chi2 / 2, chi2, r.size), basis)


def jacobian_of_condition(rng: np.random.Generator, size: int, condition: float) -> FloatArray:
    """A (40, size) matrix of the given condition number, then with columns in wild units."""
    u, _ = np.linalg.qr(rng.normal(size=(40, size)))
    v, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return u * np.geomspace(1.0, 1.0 / condition, size) @ v.T * 10.0 ** rng.uniform(-6, 6, size)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 9))
def test_well_conditioned_jacobian_in_one_pass(seed: int, size: int):
    rng = np.random.default_rng(seed)
    jac, r = jacobian_of_condition(rng, size, 10.0), rng.normal(size=40)
    linear = linearize(jac, r, Basis.identity(size))
    assert np.array_equal(linear.r_factor, np.triu(linear.r_factor))
    norms = column_norms(jac)
    error = (linear.r_factor.T @ linear.r_factor - jac.T @ jac) / norms / norms[:, None]
    assert np.max(np.abs(error)) < 1e-12
    assert linear.gradient == pytest.approx(jac.T @ r, rel=1e-12, abs=1e-13 * np.max(norms))
    assert linear.r_factor.T @ linear.qtr / norms == pytest.approx(
        linear.gradient / norms, abs=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 6), exponent=st.floats(4.0, 10.0))
def test_whitening_recovers_the_digits_that_the_gram_matrix_loses(
    seed: int, size: int, exponent: float
):
    rng = np.random.default_rng(seed)
    jac = jacobian_of_condition(rng, size, 10.0**exponent)
    scaled = jac / column_norms(jac)
    # A consistent right-hand side: else a squared condition number is in the problem itself.
    expected = rng.normal(size=size)
    r = scaled @ expected
    first = linearize(scaled, r, Basis.identity(size))
    second = linearize(scaled, r, first.whitening)
    assert second.resolution > 1e-7
    step = np.linalg.solve(second.r_factor, second.qtr)
    tolerance = 1e3 * EPS * np.linalg.cond(scaled)
    assert np.linalg.norm(step - expected) <= tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(second.qtr) == pytest.approx(np.linalg.norm(r), rel=tolerance)


def test_one_pass_at_a_condition_of_1e7_is_worth_no_digits_and_says_so():
    rng = np.random.default_rng(5)
    jac = jacobian_of_condition(rng, 4, 1e8)
    jac /= column_norms(jac)
    linear = linearize(jac, rng.normal(size=40), Basis.identity(4))
    smallest = np.linalg.svd(jac, compute_uv=False)[-1]
    found = np.linalg.svd(linear.r_factor, compute_uv=False)[-1]
    assert linear.resolution < 1e3 * EPS
    assert abs(found / smallest - 1.0) > 1e-4


def whitening(r_factor):
    """The basis in which a Jacobian with this factor has orthonormal columns."""
    nothing = np.zeros(len(r_factor))
    return Linearization(r_factor, nothing, nothing, 1.0).whitening


@pytest.mark.parametrize("size", [1, 3, 7])
def test_basis_and_its_inverse_undo_each_other(size: int):
    rng = np.random.default_rng(size)
    _, r_factor = np.linalg.qr(jacobian_of_condition(rng, size, 1e12))
    basis = whitening(r_factor)
    identity = basis.inverse @ basis.forward
    assert identity == pytest.approx(np.eye(size), abs=1e-7)
    # In this order, which is the one that J S S⁻¹ needs, to rounding in units of the parameters.
    norms = nonzero(column_norms(r_factor))
    product = basis.forward @ basis.inverse * norms[:, None] / norms
    assert product == pytest.approx(np.eye(size), abs=1e-14 * size)


def test_column_of_zeros():
    rng = np.random.default_rng(0)
    jac, r = rng.normal(size=(20, 3)), rng.normal(size=20)
    jac[:, 1] = 0.0
    for basis in (Basis.identity(3), whitening(np.linalg.qr(jac)[1])):
        linear = linearize(jac, r, basis)
        assert linear.resolution > 0.01
        assert linear.gradient[1] == pytest.approx(0.0, abs=1e-12)
        assert linear.r_factor[:, 1] == pytest.approx(np.zeros(3), abs=1e-12)
        assert linear.r_factor.T @ linear.r_factor == pytest.approx(jac.T @ jac, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 6), concave=st.floats(0.0, 3.0))
def test_steps_know_the_rows_where_the_loss_is_concave(seed: int, size: int, concave: float):
    """With the absolute value of H in the metric in which each row counts by its curvature."""
    rng = np.random.default_rng(seed)
    jac, r = jacobian_of_condition(rng, size, 10.0), rng.normal(size=40)
    curvatures = np.where(np.arange(40) < 25, 1.0, -concave * rng.uniform(size=40))
    kept = jac * np.sqrt(np.maximum(curvatures, 0.0))[:, None]
    below = (jac * np.minimum(curvatures, 0.0)[:, None]).T @ jac
    chi2 = float(r @ r)
    sums = NormalEquations(kept.T @ kept, jac.T @ r, chi2 / 2, chi2, r.size, concave=below)
    linear = factorize(sums, Basis.identity(size))
    norms = column_norms(jac)

    def in_units(matrix):
        return matrix / norms / norms[:, None]

    # Standard errors are of the rows that are kept, as in SciPy.
    gram = in_units(linear.r_factor.T @ linear.r_factor)
    assert gram == pytest.approx(in_units(kept.T @ kept), abs=1e-11)
    metric = in_units((jac * np.abs(curvatures)[:, None]).T @ jac)
    hessian = in_units((jac * curvatures[:, None]).T @ jac)
    mu, vectors = eigh(hessian, metric)  # vectorsᵀ metric vectors = 1
    strengths = np.maximum(np.abs(mu), LEAST_CURVATURE)
    expected = metric @ (vectors * strengths) @ vectors.T @ metric
    quadratic = linear.quadratic
    assert in_units(quadratic.r_factor.T @ quadratic.r_factor) == pytest.approx(expected, abs=1e-10)
    assert np.array_equal(quadratic.r_factor, np.triu(quadratic.r_factor))
    assert quadratic.r_factor.T @ quadratic.qtr / norms == pytest.approx(
        linear.gradient / norms, abs=1e-11
    )
    if mu.min() > 1e-2:  # near an optimum steps are Newton's
        step = np.linalg.solve(quadratic.r_factor, quadratic.qtr) * norms
        newton = np.linalg.solve(hessian, linear.gradient / norms)
        assert step == pytest.approx(newton, rel=1e-8, abs=1e-8)


def test_jacobian_of_zeros():
    linear = linearize(np.zeros((5, 2)), np.ones(5), Basis.identity(2))
    assert not linear.r_factor.any()
    assert not linear.qtr.any()
    assert np.isfinite(linear.whitening.forward).all()


def test_equal_columns_are_found_out_in_the_second_pass():
    rng = np.random.default_rng(1)
    jac, r = rng.normal(size=(30, 3)), rng.normal(size=30)
    jac[:, 2] = 3.0 * jac[:, 0]
    first = linearize(jac, r, Basis.identity(3))
    second = linearize(jac, r, first.whitening)
    singular = np.linalg.svd(second.r_factor, compute_uv=False)
    assert singular[-1] < rank_tolerance(30, 3) * singular[0]
    assert second.r_factor.T @ second.r_factor == pytest.approx(jac.T @ jac, abs=1e-12)


def test_norms_neither_overflow_nor_vanish():
    matrix = np.array([[3e200, 3e-200, 0.0], [4e200, 4e-200, 0.0]])
    assert column_norms(matrix) == pytest.approx([5e200, 5e-200, 0.0])
    assert nonzero(column_norms(matrix))[2] == 1.0


def test_rank_tolerance_stops_growing_with_the_rows():
    assert rank_tolerance(50, 3) == 50 * EPS
    assert rank_tolerance(3, 50) == 50 * EPS
    assert rank_tolerance(10**12, 3) < 1e-11
