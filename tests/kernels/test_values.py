"""Values of a model on rows, and their standard errors."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import InputError
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, tile_rows
from nlsq_dask.kernels.values import covariance_root, row_compilations, row_kernel
from nlsq_dask.user_model.model import prepare_jacobian, prepare_model
from nlsq_dask.user_model.model_spec import call_model
from tests.support.problems import decays


def covariance(rng, p, fixed=0):
    """A random covariance of parameters in very different units, some of them fixed."""
    factor = rng.normal(size=(p, p)) * 10.0 ** rng.integers(-6, 6, p)[:, None]
    factor[:fixed] = 0.0
    return factor @ factor.T


@pytest.mark.slow
@given(n=st.integers(1, 20_000), p=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_values_and_errors_equal_dense_ones(n, p, seed):
    rng = np.random.default_rng(seed)
    x, params = rng.uniform(-4, 4, n), rng.uniform(0.1, 1, p)
    fixed = int(rng.integers(0, p))
    pcov = covariance(rng, p, fixed)
    spec = prepare_model(decays, p)
    kernel = row_kernel(spec, "cpu")

    values = kernel.values(params, (x,))
    errors = kernel.standard_errors(params, covariance_root(pcov), (x,))

    rates = np.arange(1, p + 1) / 12
    terms = np.exp(-params * x[:, None] * rates)
    jacobian = -terms * x[:, None] * rates
    assert values.dtype == errors.dtype == np.float64
    np.testing.assert_allclose(values, terms.sum(axis=1), rtol=1e-13)
    variances = np.einsum("ni,ij,nj->n", jacobian, pcov, jacobian)
    sizes = np.sum((jacobian * np.sqrt(np.diagonal(pcov))) ** 2, axis=1)
    assert np.all(np.abs(errors**2 - variances) <= 1e-12 * sizes)


@pytest.mark.slow
def test_errors_equal_those_of_the_whole_jacobian():
    def model(x, a, b, c, d):
        u, v = x
        return a * jnp.sin(b * u) / (1 + v**2) ** c + d

    rng = np.random.default_rng(5)
    coords = tuple(rng.normal(size=(2, 777)))
    params = np.array([2.0, 0.7, 1.3, -1.0])
    pcov = covariance(rng, 4)
    spec = prepare_model(model, None, "tuple", 2)
    errors = row_kernel(spec).standard_errors(params, covariance_root(pcov), coords)

    with jax.enable_x64(True):
        jacobian = np.asarray(jax.jit(jax.jacfwd(lambda p: call_model(spec, coords, p)))(params))
    expected = np.sqrt(np.einsum("ni,ij,nj->n", jacobian, pcov, jacobian))
    np.testing.assert_allclose(errors, expected, rtol=1e-9)


def test_the_users_derivatives_are_taken_where_there_are_any():
    def line(x, a, b):
        return a * x + b

    def ten_times_too_large(x, a, b):
        return jnp.stack([10 * x, jnp.full_like(x, 10.0)], axis=1)

    spec = prepare_model(line)
    with_jacobian = replace(spec, jacobian=prepare_jacobian(ten_times_too_large, spec))
    x, params, root = np.linspace(0, 1, 50), np.array([2.0, 1.0]), np.eye(2)
    plain = row_kernel(spec).standard_errors(params, root, (x,))
    own = row_kernel(with_jacobian).standard_errors(params, root, (x,))
    np.testing.assert_allclose(plain, np.sqrt(x**2 + 1), rtol=1e-14)
    np.testing.assert_allclose(own, 10 * plain, rtol=1e-14)


@pytest.mark.parametrize("rows_over", [-1, 0, 1, 17])
def test_lengths_around_whole_tiles(rows_over):
    n = 2 * tile_rows(CPU_TILE_BYTES, 1) + rows_over
    x = np.linspace(0, 3, n)
    values = row_kernel(prepare_model(decays, 1)).values(np.array([0.5]), (x,))
    np.testing.assert_allclose(values, np.exp(-0.5 * x / 12), rtol=1e-14)


def test_one_compilation_for_one_length():
    def parabola(x, a, b):
        return a * x**2 + b

    spec = prepare_model(parabola)
    for i in range(4):
        row_kernel(spec).values(np.array([i, 1.0]), (np.full(1000, i + 0.5),))
        # A model that is prepared anew is the same model.
        row_kernel(prepare_model(parabola)).values(np.array([i, 2.0]), (np.zeros(1000),))
    assert row_compilations(spec) == 1
    row_kernel(spec).values(np.ones(2), (np.zeros(1001),))
    assert row_compilations(spec) == 2


def test_rows_of_a_whole_model_see_each_other():
    def from_mean(x, a):
        return a * (x - x.mean())

    n = 5 * tile_rows(CPU_TILE_BYTES, 1)
    x = np.random.default_rng(0).normal(size=n)
    values = row_kernel(prepare_model(from_mean), whole=True).values(np.array([3.0]), (x,))
    np.testing.assert_allclose(values, 3 * (x - x.mean()), atol=1e-12)


@given(p=st.integers(1, 8), fixed=st.integers(0, 8), seed=st.integers(0, 2**32 - 1))
def test_a_root_of_a_covariance(p, fixed, seed):
    rng = np.random.default_rng(seed)
    fixed = min(fixed, p)
    pcov = covariance(rng, p, fixed)
    root = covariance_root(pcov)
    errors = np.sqrt(np.diagonal(pcov))
    assert root.shape == (p, p - fixed)
    assert np.all(np.abs(root @ root.T - pcov) <= 1e-13 * p * np.outer(errors, errors))


def test_a_covariance_that_rounding_made_indefinite():
    pcov = np.array([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]])
    assert np.linalg.eigvalsh(pcov)[0] < 0
    root = covariance_root(pcov)
    np.testing.assert_allclose(root @ root.T, pcov, atol=1e-14)


def test_an_unknown_device():
    with pytest.raises(InputError, match="tpu"):
        row_kernel(prepare_model(decays, 1), "tpu")
