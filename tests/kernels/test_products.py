"""The matrices of a robust loss, against dense NumPy: with lanes and with matrix products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nlsq_dask.kernels.products import (
    LANED_ROWS,
    LARGE_BUFFER,
    MOST_LANED_COLUMNS,
    MOST_LANED_COLUMNS_SMALL,
    Laned,
    Multiplied,
    products_for,
)
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES
from nlsq_dask.user_model.loss import Loss
from tests.kernels.test_sums import buffers, dense_rows, rho
from tests.support.problems import plain_problem

pytestmark = pytest.mark.versions


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "f_scale"), [("soft_l1", 0.3), ("huber", 1.0), ("cauchy", 0.7), ("arctan", 2.0)]
)
@pytest.mark.parametrize(
    ("p", "capacity"),
    [
        (1, 4096),
        (3, 4096),
        (3, 512),
        (10, 4096),
        (20, 4096),
        (3, LARGE_BUFFER),
        (10, LARGE_BUFFER),
    ],
)
def test_all_matrices_of_a_loss(name, f_scale, p, capacity):
    problem = plain_problem(min(capacity, 4096) - 100, p)
    kernel = block_kernel(replace(problem.spec, loss=Loss(name, f_scale)), "cpu")
    sums = kernel(problem.params, problem.basis, buffers(problem, capacity), scores=True)
    errors, jacobian = dense_rows(problem)
    r, jacobian = errors / problem.sigma, jacobian / problem.sigma[:, None]
    z = (r / f_scale) ** 2
    value, first, second = rho(name, z)
    assert sums.cost == pytest.approx(0.5 * f_scale**2 * value.sum(), rel=1e-13)
    curvature = first + 2 * z * second
    eps = np.finfo(float).eps

    def assert_product(found, weights):
        sizes = np.sqrt(np.abs(weights) @ jacobian**2)
        apart = np.abs(found - jacobian.T @ (jacobian * weights[:, None]))
        np.testing.assert_array_less(apart, 1e-12 * np.outer(sizes, sizes) + 1e-300)
        np.testing.assert_array_equal(found, found.T)

    assert_product(sums.gram, np.maximum(curvature, eps))
    assert_product(sums.scores, (first * r) ** 2)
    if name in ("cauchy", "arctan"):
        assert_product(sums.concave, np.minimum(curvature, 0.0))
    sizes = np.linalg.norm(jacobian, axis=0) * np.linalg.norm(first * r)
    apart = np.abs(sums.gradient - jacobian.T @ (first * r))
    np.testing.assert_array_less(apart, 1e-12 * sizes + 1e-300)


@pytest.mark.slow
def test_large_buffers_without_weights_give_the_sums_of_small_buffers():
    problem = plain_problem(4000, 3)
    loss = Loss("cauchy", 0.3)
    kernel = block_kernel(replace(problem.spec, loss=loss), "cpu")

    def sums(capacity):
        rows = buffers(problem, capacity)._replace(weights=None)
        return kernel(problem.params, problem.basis, rows, scores=True)

    small, large = sums(4096), sums(LARGE_BUFFER)
    for name in ("gram", "gradient", "cost", "chi2", "concave", "scores"):
        expected = getattr(small, name)
        rounding = 1e-13 * np.max(np.abs(expected))
        np.testing.assert_allclose(getattr(large, name), expected, atol=rounding, err_msg=name)
    for name in ("abs_residuals", "sq_residuals", "n_small"):
        np.testing.assert_allclose(
            getattr(large.moments, name), getattr(small.moments, name), rtol=1e-13, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cauchy", "arctan"])
def test_the_cost_of_large_residuals_is_finite_in_large_buffers(name):
    """Where the terms of eight rows have no product in float64, each row has its own logarithm."""
    problem = plain_problem(4000, 3)
    kernel = block_kernel(replace(problem.spec, loss=Loss(name, 1e-25)), "cpu")
    sums = kernel(problem.params, problem.basis, buffers(problem, LARGE_BUFFER))
    z = (dense_rows(problem)[0] / problem.sigma / 1e-25) ** 2
    assert np.log10(z[:8]).sum() > 308
    assert sums.cost == pytest.approx(0.5e-50 * rho(name, z)[0].sum(), rel=1e-13)


def test_lanes_are_taken_for_few_columns_of_whole_tiles():
    few, tiled = MOST_LANED_COLUMNS_SMALL, CPU_TILE_BYTES
    for n, most in ((4 * LANED_ROWS, few), (LARGE_BUFFER, MOST_LANED_COLUMNS)):
        assert products_for(most, 2, capacity=n, tile_bytes=tiled) == Laned(most, 2)
        assert products_for(most + 1, 2, capacity=n, tile_bytes=tiled) == Multiplied(most + 1, 2)
    # Buffers shorter than a tile, and those of correlated rows or a graphics processor.
    short = LANED_ROWS // 2
    assert products_for(few, 2, capacity=short, tile_bytes=tiled) == Multiplied(few, 2)
    assert products_for(few, 2, capacity=4 * LANED_ROWS, tile_bytes=None) == Multiplied(few, 2)
