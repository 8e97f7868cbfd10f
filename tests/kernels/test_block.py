"""The kernel of one buffer of rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError
from nlsq_dask.io.stage import aligned_empty
from nlsq_dask.kernels import block
from nlsq_dask.kernels.block import (
    CPU_TILE_BYTES,
    BlockKernel,
    Rows,
    block_kernel,
    compilations,
    find_device,
    tile_rows,
)
from nlsq_dask.kernels.model import prepare_model
from tests.engines.problems import decays, exact_sums, plain_problem

PARAMS = np.array([0.5, 0.8, 0.3])


def buffers(problem, capacity, filler=np.nan):
    """The rows of a problem in front of rows that must not count."""
    columns = []
    for array in (problem.x, problem.y, 1 / problem.sigma):
        buffer = aligned_empty(capacity)
        buffer[: array.size] = array
        buffer[array.size :] = filler
        columns.append(buffer)
    x, y, weights = columns
    return Rows((x,), y, weights, problem.y.size)


@settings(max_examples=15)
@given(n_rows=st.integers(1, 4096), p=st.integers(1, 12), filler=st.sampled_from([np.nan, np.inf]))
def test_rows_behind_the_last_never_count(n_rows, p, filler):
    problem = plain_problem(n_rows, p)
    kernel = block_kernel(problem.spec, "cpu")
    sums = kernel(problem.params, problem.basis, buffers(problem, 4096, filler))
    exact_sums(problem).assert_equal(sums, n_rows)


@pytest.mark.parametrize("offset", range(0, 64, 8))
def test_the_same_bits_wherever_a_buffer_lies(offset):
    problem = plain_problem(3000)
    kernel = block_kernel(problem.spec, "cpu")
    expected = kernel(problem.params, problem.basis, buffers(problem, 4096))
    rows = buffers(problem, 4096)

    def moved(array):
        raw = np.empty(array.nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        copy = raw[start : start + array.nbytes].view(np.float64)
        copy[:] = array
        assert copy.ctypes.data % 64 == offset
        return copy

    sums = kernel(
        problem.params,
        problem.basis,
        Rows((moved(rows.coords[0]),), moved(rows.y), moved(rows.weights), rows.n),
    )
    assert sums.gram.tobytes() == expected.gram.tobytes()
    assert sums.gradient.tobytes() == expected.gradient.tobytes()
    assert sums.chi2 == expected.chi2


def test_buffers_may_be_refilled_when_the_kernel_returns():
    problem = plain_problem(4096)
    kernel = block_kernel(problem.spec, "cpu")
    rows = buffers(problem, 4096)
    exact = exact_sums(problem)
    for _ in range(50):
        sums = kernel(problem.params, problem.basis, rows)
        for buffer in (rows.coords[0], rows.y, rows.weights):
            buffer[:] = np.nan
        exact.assert_equal(sums, 4096)
        fresh = buffers(problem, 4096)
        rows.coords[0][:], rows.y[:], rows.weights[:] = fresh.coords[0], fresh.y, fresh.weights


def test_rows_that_were_put_on_the_device():
    problem = plain_problem(1024)
    kernel = block_kernel(problem.spec)
    rows = kernel.put(buffers(problem, 1024))
    exact_sums(problem).assert_equal(kernel(problem.params, problem.basis, rows), 1024)


def test_one_compilation_for_each_shape_of_buffer():
    scale = 0.123  # a closure that no other test has

    def model(x, a, b):
        return a * jnp.exp(-scale * b * x)

    problem = plain_problem(900, p=2)
    spec = prepare_model(model, 2, "single", 1)
    assert compilations(spec) == 0
    for expected, capacity in enumerate((1024, 2048), start=1):
        for n_rows in (900, 1, 512):
            rows = buffers(problem, capacity)
            kernel = block_kernel(spec, "cpu")
            kernel(problem.params, problem.basis, Rows(rows.coords, rows.y, rows.weights, n_rows))
        assert compilations(spec) == expected


def test_equal_closures_share_a_kernel_and_others_do_not():
    def make(scale):
        return prepare_model(lambda x, a: a * scale * x, 1, "single", 1)

    assert block_kernel(make(2.0)) is block_kernel(make(2.0))
    assert block_kernel(make(2.0)) is not block_kernel(make(3.0))
    assert block_kernel(make(2.0)) is not block_kernel(make(2.0), whole=True)
    rows = Rows((np.ones(1024),), np.zeros(1024), None, 10)
    twice, thrice = (block_kernel(make(s))(np.ones(1), np.eye(1), rows) for s in (2.0, 3.0))
    assert (twice.chi2, thrice.chi2) == (40.0, 90.0)


def test_threads_that_start_together_compile_once():
    def model(x, a):
        return a * x + 0.25

    spec = prepare_model(model, 1, "single", 1)
    start = threading.Barrier(8)
    rows = Rows((np.ones(1024),), np.zeros(1024), None, 1024)

    def work(_):
        start.wait()
        return block_kernel(spec)(np.array([2.0]), np.eye(1), rows).chi2

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [1024 * 2.25**2] * 8
    assert compilations(spec) == 1


def test_the_least_used_kernel_is_forgotten(monkeypatch):
    monkeypatch.setattr(block, "MAX_KERNELS", 2)
    monkeypatch.setattr(block, "_kernels", type(block._kernels)())
    specs = [prepare_model(lambda x, a, c=c: a * x + c, ["a"], "single", 1) for c in (1, 2, 3)]
    first, second = block_kernel(specs[0]), block_kernel(specs[1])
    assert block_kernel(specs[0]) is first
    block_kernel(specs[2])
    assert block_kernel(specs[0]) is first
    assert block_kernel(specs[1]) is not second


@pytest.mark.parametrize("p", [1, 3, 10, 60])
@pytest.mark.parametrize("size", [1, 1 << 10, CPU_TILE_BYTES])
def test_tiles_are_the_largest_power_of_two_that_fits(p, size):
    rows = tile_rows(size, p + 1)
    assert rows.bit_count() == 1
    assert rows * 8 * (p + 1) <= max(size, 8 * (p + 1))
    assert 2 * rows * 8 * (p + 1) > size


def test_a_tile_does_not_change_more_than_the_rounding():
    problem = plain_problem(4096)
    device = find_device("cpu")
    exact = exact_sums(problem)
    for tile_bytes in (None, 1 << 8, 1 << 12, 1 << 20):
        sums = BlockKernel(problem.spec, tile_bytes, device)(
            problem.params, problem.basis, buffers(problem, 4096)
        )
        exact.assert_equal(sums, 4096, rtol=1e-13)


def test_no_setting_of_jax_is_changed():
    dtypes = []

    def model(x, a):
        dtypes.append(x.dtype)
        return a * x

    spec = prepare_model(model, 1, "single", 1)
    block_kernel(spec)(np.ones(1), np.eye(1), Rows((np.ones(1024),), np.ones(1024), None, 1024))
    assert set(dtypes) == {np.dtype(np.float64)}
    assert jax.config.jax_enable_x64 is False
    assert jnp.ones(1).dtype == np.float32


def test_unknown_devices():
    assert find_device("cpu").platform == "cpu"
    with pytest.raises(InputError, match="device='tpu'"):
        find_device("tpu")
    if jax.default_backend() == "cpu":
        with pytest.raises(InputError, match="device='gpu' is not available"):
            find_device("gpu")


def test_the_model_of_this_file_has_the_derivatives_of_jax():
    """Ties the oracle of the suite, derived by hand, to JAX's derivatives."""
    problem = plain_problem(50)
    with jax.enable_x64(True):
        derivative = jax.jacfwd(lambda t: decays(jnp.asarray(problem.x), *t))
        jacobian = np.asarray(derivative(PARAMS))
        value = np.asarray(decays(jnp.asarray(problem.x), *PARAMS))
    plain = type(problem)(problem.x, problem.y, None, PARAMS, np.eye(3))
    exact = exact_sums(plain)
    np.testing.assert_allclose(exact.gram, jacobian.T @ jacobian, rtol=1e-13)
    np.testing.assert_allclose(exact.gradient, jacobian.T @ (value - problem.y), rtol=1e-12)
