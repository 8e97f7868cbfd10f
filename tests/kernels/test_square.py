"""Sums of linear loss by lanes, against dense NumPy and against the matrix product."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask.kernels.products import LARGE_BUFFER
from nlsq_dask.kernels.square import (
    BLOCKS,
    FEW_COLUMNS,
    MOST_COLUMNS,
    TILE,
    TURNS,
    LanedSquare,
    WeightedSquare,
    squares_by_lanes,
)
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.model import prepare_model
from tests.kernels.test_sums import buffers, dense_rows
from tests.support.problems import exact_sums, plain_problem


@pytest.mark.parametrize("columns", [1, 2, 6, 7, 13])
def test_the_square_of_a_tile_is_the_matrix_product(columns):
    matrix = np.random.default_rng(columns).normal(size=(columns, TILE))

    def product(tile, blocks):
        square, total = LanedSquare(columns, blocks), LanedSquare(columns).zero()
        for part in jnp.split(tile, BLOCKS // blocks, axis=1):
            for block in square.cut(square.held([part])):
                total = total + square.of_block(block)
        return square.finish(total)

    with jax.enable_x64(True):
        found, same = (np.asarray(product(jnp.asarray(matrix), blocks)) for blocks in (BLOCKS, 1))
    assert found.tobytes() == same.tobytes()
    sizes = np.linalg.norm(matrix, axis=1)
    np.testing.assert_array_less(
        np.abs(found - matrix @ matrix.T), 1e-14 * np.outer(sizes, sizes) + 1e-300
    )
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("columns", [1, 2, FEW_COLUMNS + 1])
def test_the_weighted_square_of_a_tile_is_the_matrix_product(columns):
    square = WeightedSquare(columns, 2)
    rng = np.random.default_rng(columns)
    matrix = rng.normal(size=(columns, TURNS * square.lanes))
    weights = rng.normal(size=(2, TURNS * square.lanes))
    with jax.enable_x64(True):
        sums = square.of_tile(square.held([matrix]), square.held([weights]))
        found = [np.asarray(each) for each in square.finish(sums)]
        assert sums.shape == square.zero().shape
    for each, weight in zip(found, weights, strict=True):
        sizes = np.sqrt(np.abs(weight) @ matrix.T**2)
        apart = np.abs(each - (matrix * weight) @ matrix.T)
        np.testing.assert_array_less(apart, 1e-14 * np.outer(sizes, sizes) + 1e-300)
        np.testing.assert_array_equal(each, each.T)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "weighted"), [(3, True), (6, False)])
def test_sums_of_several_tiles(p, weighted):
    problem = plain_problem(3 * TILE + 7, p)
    if not weighted:
        problem = replace(problem, sigma=np.ones_like(problem.sigma))
    rows = buffers(problem, LARGE_BUFFER)
    rows = rows if weighted else rows._replace(weights=None)
    kernel = block_kernel(problem.spec, "cpu")
    sums = kernel(problem.params, problem.basis, rows)
    exact_sums(problem).assert_equal(sums, problem.y.size, rtol=1e-13)
    errors = dense_rows(problem)[0]
    np.testing.assert_allclose(sums.moments.abs_residuals, np.abs(errors).sum(), rtol=1e-13)
    np.testing.assert_allclose(sums.moments.sq_residuals, errors @ errors, rtol=1e-13)
    np.testing.assert_array_equal(sums.gram, sums.gram.T)
    empty = kernel(problem.params, problem.basis, rows._replace(n=0))
    assert empty.chi2 == 0.0
    assert not empty.gram.any()


@pytest.mark.slow
def test_derivatives_that_are_not_finite():
    spec = prepare_model(lambda x, t, b: (x / t) ** b, ["t", "b"])
    x = np.linspace(0.0, 1.0, LARGE_BUFFER)
    kernel = block_kernel(spec, "cpu")
    sums = kernel(np.array([2.0, 0.5]), np.eye(2), Rows((x,), 0 * x, None, x.size))
    values = (x / 2.0) ** 0.5
    jacobian = np.stack([-0.25 * values, values * np.log(np.where(x > 0, x / 2.0, 1.0))], axis=1)
    assert sums.n_differenced == 1
    np.testing.assert_allclose(sums.gram, jacobian.T @ jacobian, rtol=1e-12)


def looped(x, a):
    return jax.lax.fori_loop(0, 3, lambda _, total: total + a * x, 0.0 * x)


def test_models_and_buffers_that_lanes_suit():
    plain = prepare_model(lambda x, a: a * x, ["a"])
    with_a_loop = prepare_model(looped, ["a"])
    assert squares_by_lanes(plain, MOST_COLUMNS, LARGE_BUFFER)
    assert not squares_by_lanes(plain, MOST_COLUMNS + 1, LARGE_BUFFER)
    assert not squares_by_lanes(plain, 2, LARGE_BUFFER // 2)
    assert not squares_by_lanes(plain, 2, LARGE_BUFFER + TILE // 2)
    assert not squares_by_lanes(plain, 2, 0)
    assert not squares_by_lanes(with_a_loop, 2, LARGE_BUFFER)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_places_of_a_tile_are_computed_once(weighted):
    problem = plain_problem(TILE, 3)
    rows = buffers(problem, LARGE_BUFFER)._replace(n=np.int64(TILE))
    rows = rows if weighted else rows._replace(weights=None)
    kernel = block_kernel(problem.spec, "cpu")
    at = (problem.params, problem.basis, np.bool_(False), rows)
    with jax.enable_x64(True):
        text = kernel._sums.lower(*at).compile().as_text()
    masks = [part for part in text.split("\n\n") if " select(" in part]
    assert masks
    assert not [part for part in masks if " iota(" in part]
