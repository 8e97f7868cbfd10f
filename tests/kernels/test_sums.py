"""The kernel of one buffer of rows."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES

from nlsq_dask import InputError
from nlsq_dask.io.stage import aligned_empty
from nlsq_dask.kernels import compiled as compiled_module
from nlsq_dask.kernels.devices import find_device
from nlsq_dask.kernels.moments import MOMENT_PIECES, MOMENT_ROWS, moments_of_y
from nlsq_dask.kernels.sums import (
    BlockKernel,
    block_compilations,
    block_kernel,
)
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, Rows, tile_rows
from nlsq_dask.user_model.loss import LINEAR, Loss
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model import prepare_jacobian, prepare_loss, prepare_model
from tests.support.problems import decays, exact_sums, plain_problem
from tests.support.traced import traced_peak

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


@pytest.mark.slow
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
    rows = Kernels((problem.spec,)).put(buffers(problem, 1024))
    exact_sums(problem).assert_equal(kernel(problem.params, problem.basis, rows), 1024)


def test_kernels_are_pickled_without_what_is_compiled():
    kernels = Kernels((plain_problem(16).spec,), vector_bits=256)
    kernel = kernels[0]
    assert kernels[0] is kernel
    again = pickle.loads(pickle.dumps(kernels))
    assert again == kernels
    assert len(vars(again)) == len(dataclasses.fields(Kernels))
    assert again[0] is kernel  # of the same process


@pytest.mark.slow
def test_one_compilation_for_each_shape_of_buffer():
    scale = 0.123  # a closure that no other test has

    def model(x, a, b):
        return a * jnp.exp(-scale * b * x)

    problem = plain_problem(900, p=2)
    spec = prepare_model(model, 2, "single", 1)
    assert block_compilations(spec) == 0
    for expected, capacity in enumerate((1024, 2048), start=1):
        for n_rows in (900, 1, 512):
            rows = buffers(problem, capacity)
            kernel = block_kernel(spec, "cpu")
            kernel(problem.params, problem.basis, Rows(rows.coords, rows.y, rows.weights, n_rows))
        assert block_compilations(spec) == expected


@pytest.mark.slow
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
    assert block_compilations(spec) == 1


def test_the_least_used_kernel_is_forgotten(monkeypatch):
    monkeypatch.setattr(compiled_module, "_kernels", LruTable(2))
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


@pytest.mark.slow
def test_a_tile_does_not_change_more_than_the_rounding():
    problem = plain_problem(4096)
    devices = (find_device("cpu"),)
    exact = exact_sums(problem)
    for tile_bytes in (None, 1 << 8, 1 << 12, 1 << 20):
        sums = BlockKernel(problem.spec, tile_bytes, devices, whole=tile_bytes is None)(
            problem.params, problem.basis, buffers(problem, 4096)
        )
        exact.assert_equal(sums, 4096, rtol=1e-13)


@pytest.mark.parametrize(("capacity", "loops"), [(1024, 0), (4096, 1)])
def test_a_single_tile_of_linear_loss_has_no_loop(capacity, loops):
    problem = plain_problem(1000)
    rows = buffers(problem, capacity)._replace(n=np.int64(1000))
    kernel = block_kernel(problem.spec, "cpu")
    at = (problem.params, problem.basis, np.bool_(False), rows)
    with jax.enable_x64(True):
        program = kernel._small_sums.lower(*at).as_text()
    assert program.count("stablehlo.while") == loops


@pytest.mark.skipif(not compiled_module.HAS_EMITTERS_OPTION, reason="jaxlib has no such option")
@pytest.mark.parametrize(("p", "weighted"), [(3, False), (6, True)])
def test_small_sums_of_fewer_loops_have_the_same_bits(p, weighted):
    problem = plain_problem(3000, p)
    rows = buffers(problem, 4096)._replace(n=np.int64(3000))
    rows = rows if weighted else rows._replace(weights=None)
    kernel = block_kernel(problem.spec, "cpu")
    at = (problem.params, problem.basis, np.bool_(False), rows)
    option = {compiled_module.EMITTERS_OPTION: True}
    with jax.enable_x64(True):
        few = kernel._small_sums.lower(*at).compile()
        many = jax.jit(kernel._sums_of_tiles, compiler_options=option).lower(*at).compile()
        assert np.asarray(few(*at)).tobytes() == np.asarray(many(*at)).tobytes()
    assert few.as_text().count("calls=") < many.as_text().count("calls=")


def test_no_rows_have_no_sums():
    problem = plain_problem(1000)
    sums = block_kernel(problem.spec, "cpu")(
        problem.params, problem.basis, buffers(problem, 1024)._replace(n=0)
    )
    assert not sums.gram.any()
    assert sums.chi2 == 0.0


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


@pytest.mark.slow
def test_the_model_of_this_file_has_the_derivatives_of_jax():
    """Ties the oracle of the suite, derived by hand, to JAX's derivatives."""
    problem = plain_problem(50)
    with jax.enable_x64(True):
        derivative = jax.jit(jax.jacfwd(lambda t: decays(jnp.asarray(problem.x), *t)))
        jacobian = np.asarray(derivative(PARAMS))
        value = np.asarray(decays(jnp.asarray(problem.x), *PARAMS))
    plain = type(problem)(problem.x, problem.y, None, PARAMS, np.eye(3))
    exact = exact_sums(plain)
    np.testing.assert_allclose(exact.gram, jacobian.T @ jacobian, rtol=1e-13)
    np.testing.assert_allclose(exact.gradient, jacobian.T @ (value - problem.y), rtol=1e-12)


# Robust losses, derivatives of one's own, correlated rows


def rho(name, z):
    """ρ, ρ' and ρ'' by the functions of ``scipy.optimize.least_squares``."""
    if name == "linear":
        return z, np.ones_like(z), np.zeros_like(z)
    terms = np.empty((3, z.size))
    IMPLEMENTED_LOSSES[name](z, terms, cost_only=False)
    return terms


def dense_rows(problem):
    """Residuals (n,) and their Jacobian (n, p), not weighted, by NumPy."""
    rates = np.arange(1, problem.params.size + 1) / 12
    terms = np.exp(-problem.params[:, None] * problem.x * rates[:, None])
    return terms.sum(axis=0) - problem.y, (-terms * problem.x * rates[:, None]).T


def assert_sums(sums, residuals, jacobian, cost, chi2):
    """Against dense arrays, to the rounding of sums of terms of both signs."""
    sizes = np.linalg.norm(jacobian, axis=0)
    scale = np.linalg.norm(residuals)
    np.testing.assert_array_less(
        np.abs(sums.gram - jacobian.T @ jacobian), 1e-11 * np.outer(sizes, sizes) + 1e-300
    )
    np.testing.assert_array_less(
        np.abs(sums.gradient - jacobian.T @ residuals), 1e-11 * sizes * scale + 1e-300
    )
    assert sums.cost == pytest.approx(cost, rel=1e-12)
    assert sums.chi2 == pytest.approx(chi2, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "f_scale"), [("soft_l1", 0.3), ("huber", 1.0), ("cauchy", 0.7), ("arctan", 20.0)]
)
@settings(max_examples=10)
@given(n_rows=st.integers(1, 4096), filler=st.sampled_from([np.nan, np.inf]))
def test_sums_of_a_loss_are_those_of_rescaled_rows(name, f_scale, n_rows, filler):
    """Triggs et al. (2000), as in SciPy: J by sqrt(rho' + 2 z rho''), r by rho' over that."""
    problem = plain_problem(n_rows)
    kernel = block_kernel(replace(problem.spec, loss=Loss(name, f_scale)), "cpu")
    rows = buffers(problem, 4096, filler)
    sums = kernel(problem.params, problem.basis, rows)

    errors, jacobian = dense_rows(problem)
    r, jacobian = errors / problem.sigma, jacobian / problem.sigma[:, None]
    z = (r / f_scale) ** 2
    value, first, second = rho(name, z)
    scale = np.sqrt(np.maximum(first + 2 * z * second, np.finfo(float).eps))
    cost = 0.5 * f_scale**2 * value.sum()
    assert_sums(sums, r * first / scale, jacobian * scale[:, None], cost, r @ r)
    # What negative second derivatives leave out of the Gram matrix is summed apart.
    below = np.minimum(first + 2 * z * second, 0)
    if name in ("cauchy", "arctan"):
        np.testing.assert_allclose(
            sums.concave, jacobian.T @ (jacobian * below[:, None]), rtol=1e-9, atol=1e-9
        )
    else:
        assert sums.concave is None
    # That changes no gradient: it is the cost's.
    np.testing.assert_allclose(sums.gradient, jacobian.T @ (first * r), rtol=1e-9, atol=1e-9)
    assert sums.moments.abs_residuals == pytest.approx(np.abs(errors).sum())
    assert sums.moments.sq_residuals == pytest.approx(errors @ errors)

    np.testing.assert_allclose(
        kernel.costs(np.stack([problem.params, problem.params]), rows), [sums.cost] * 2, rtol=1e-13
    )
    small = np.abs(r) <= 0.6744897501960817 * f_scale
    assert sums.moments.n_small == np.count_nonzero(small)
    assert sums.scores is None
    asked = kernel(problem.params, problem.basis, rows, scores=True)
    scores = jacobian * (first * r)[:, None]
    np.testing.assert_allclose(asked.scores, scores.T @ scores, rtol=1e-9, atol=1e-12)
    # What is asked for beside them keeps its bits.
    for mine, plain in ((asked.gram, sums.gram), (asked.gradient, sums.gradient)):
        assert mine.tobytes() == plain.tobytes()
    assert (asked.cost, asked.moments) == (sums.cost, sums.moments)
    np.testing.assert_allclose(
        kernel.score_products(problem.params, rows), scores.T @ scores, rtol=1e-10, atol=1e-12
    )


def singular_at_zero(z):
    """ρ(0) is not 0, and ρ' is infinite there."""
    return jnp.stack([2 * jnp.sqrt(z) + 7, z**-0.5, -0.5 * z**-1.5])


@pytest.mark.slow
def test_rows_behind_the_last_never_count_in_a_loss():
    """Their residual of 0 is no value that the user's function must be fit for."""
    problem = plain_problem(700)
    r = dense_rows(problem)[0] / problem.sigma
    spec = replace(problem.spec, loss=prepare_loss(singular_at_zero, 1.0))
    kernel, rows = block_kernel(spec, "cpu"), buffers(problem, 4096)
    sums = kernel(problem.params, problem.basis, rows)
    assert sums.cost == pytest.approx(np.sum(np.abs(r) + 3.5))
    np.testing.assert_allclose(kernel.costs(problem.params[None], rows), sums.cost)
    for values in (sums.gram, sums.gradient, kernel.score_products(problem.params, rows)):
        assert np.isfinite(values).all()


@pytest.mark.slow
def test_a_loss_that_is_linear_in_one_s_own_words():
    problem = plain_problem(3000)
    rows = buffers(problem, 4096)
    spec = replace(problem.spec, loss=prepare_loss(lambda z: [z, z**0, 0 * z], 3.0))
    own, plain = (
        block_kernel(s, "cpu")(problem.params, problem.basis, rows) for s in (spec, problem.spec)
    )
    np.testing.assert_allclose(own.gram, plain.gram, rtol=1e-14)
    np.testing.assert_allclose(own.gradient, plain.gradient, rtol=1e-12)
    assert own.cost == pytest.approx(plain.cost, rel=1e-14)
    assert own.chi2 == pytest.approx(plain.chi2, rel=1e-14)


def decays_jacobian(x, *theta):
    return jnp.stack([-x * k / 12 * jnp.exp(-t * x * k / 12) for k, t in enumerate(theta, 1)], 1)


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("loss", [LINEAR, Loss("cauchy", 0.5)], ids=["linear", "cauchy"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_derivatives_of_one_s_own_give_the_same_sums(loss, columns):
    problem = plain_problem(3000)
    basis = np.random.default_rng(columns).normal(size=(3, columns))
    spec = replace(problem.spec, loss=loss)
    own = replace(spec, jacobian=prepare_jacobian(decays_jacobian, spec))
    assert own.key != spec.key
    rows = buffers(problem, 4096)
    sums, expected = (block_kernel(s, "cpu")(problem.params, basis, rows) for s in (own, spec))
    np.testing.assert_allclose(sums.gram, expected.gram, rtol=1e-11)
    np.testing.assert_allclose(sums.gradient, expected.gradient, rtol=1e-11)
    assert (sums.cost, sums.chi2) == pytest.approx((expected.cost, expected.chi2), rel=1e-14)
    np.testing.assert_allclose(
        block_kernel(own, "cpu").score_products(problem.params, rows),
        block_kernel(spec, "cpu").score_products(problem.params, rows),
        rtol=1e-11,
    )


@pytest.mark.slow
def test_derivatives_of_one_s_own_are_the_ones_used():
    problem = plain_problem(50)
    spec = problem.spec
    double = prepare_jacobian(lambda x, *theta: 2 * decays_jacobian(x, *theta), spec)
    rows = buffers(problem, 1024)
    twice, once = (
        block_kernel(s, "cpu")(problem.params, problem.basis, rows)
        for s in (replace(spec, jacobian=double), spec)
    )
    np.testing.assert_allclose(twice.gram, 4 * once.gram, rtol=1e-11)
    np.testing.assert_allclose(twice.gradient, 2 * once.gradient, rtol=1e-11)


def covariance_of(n_rows, seed=0):
    root = np.random.default_rng(seed).normal(size=(n_rows, n_rows))
    return root @ root.T / n_rows + np.eye(n_rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "huber"])
def test_correlated_rows_are_whitened(name):
    problem = plain_problem(80, sigma=False)
    covariance = covariance_of(80)
    factor = np.linalg.cholesky(covariance)
    spec = replace(problem.spec, cholesky=factor, loss=Loss(name, 0.5))
    rows = Rows((problem.x,), problem.y, None, 80)
    kernel = block_kernel(spec, "cpu", whole=True)
    sums = kernel(problem.params, problem.basis, rows, True)

    errors, jacobian = dense_rows(problem)
    whitened = np.linalg.solve(factor, np.column_stack([errors, jacobian]))
    r, jacobian = whitened[:, 0], whitened[:, 1:]
    assert r @ r == pytest.approx(errors @ np.linalg.solve(covariance, errors))
    z = (r / 0.5) ** 2
    value, first, second = rho(name, z)
    scale = np.sqrt(np.maximum(first + 2 * z * second, np.finfo(float).eps))
    cost = 0.5 * 0.25 * value.sum()
    assert_sums(sums, r * first / scale, jacobian * scale[:, None], cost, r @ r)
    assert sums.moments.sq_residuals == pytest.approx(errors @ errors)


# Moments


def moments_of(y, weights=None, factor=None):
    """Of y, by the kernel."""
    spec = prepare_model(lambda x, a: a * x, 1, "single", 1)
    whole = factor is not None
    kernel = block_kernel(replace(spec, cholesky=factor), "cpu", whole=whole)
    capacity = len(y) if whole else 2048
    columns = [None if c is None else aligned_empty(capacity) for c in (y, y, weights)]
    for buffer, values in zip(columns, (y, y, weights), strict=True):
        if buffer is not None:
            buffer[: len(y)], buffer[len(y) :] = values, np.nan
    rows = Rows((columns[0],), columns[1], columns[2], len(y))
    return kernel(np.zeros(1), np.eye(1), rows, True).moments


@pytest.mark.slow
@given(
    n_rows=st.integers(1, 2048),
    offset=st.sampled_from([0.0, 1.0, -1e9, 1e9]),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    weighted=st.booleans(),
)
def test_moments_of_y_lose_no_digits_to_an_offset(n_rows, offset, spread, weighted):
    """A scatter of ±1 about 1e9, as the difference of two sums of squares, would be noise."""
    rng = np.random.default_rng(n_rows)
    y = offset + spread * rng.uniform(-1, 1, n_rows)
    weights = rng.uniform(0.1, 3, n_rows) if weighted else None
    moments = moments_of(y, weights)
    squares = np.ones(n_rows) if weights is None else weights**2
    # The oracle subtracts first, which is exact for numbers this close to each other.
    apart = y - y[0]
    mean = np.average(apart, weights=squares)
    assert moments.weight == pytest.approx(squares.sum(), rel=1e-13)
    assert moments.mean - y[0] == pytest.approx(mean, rel=1e-9, abs=4 * np.spacing(abs(y[0])))
    expected = float(np.sum(squares * (apart - mean) ** 2))
    assert moments.scatter == pytest.approx(expected, rel=1e-9, abs=1e-12 * (spread**2 + 1e-300))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [3 * MOMENT_ROWS + 5, 2 * MOMENT_PIECES * MOMENT_ROWS])
def test_moments_of_many_rows_take_pieces_of_them(n_rows, weighted):
    """Temporary arrays of the buffer's size took longer than the kernel, by their fresh pages."""
    rng = np.random.default_rng(7)
    y = 1e6 + rng.normal(size=n_rows)
    weights = rng.uniform(0.1, 3, n_rows) if weighted else None
    rows = Rows((y,), y, weights, n_rows)
    found = moments_of_y(rows, None)
    squares = np.ones(n_rows) if weights is None else weights**2
    mean = np.average(y - 1e6, weights=squares)
    assert found["weight"] == pytest.approx(squares.sum(), rel=1e-13)
    assert found["mean"] - 1e6 == pytest.approx(mean, rel=1e-6)
    assert found["scatter"] == pytest.approx(squares @ (y - 1e6 - mean) ** 2, rel=1e-10)
    assert found["variance"] == pytest.approx(np.sum(1.0 / squares), rel=1e-13)
    # The distances from the first value are computed in memory of the thread.
    assert traced_peak(lambda: moments_of_y(rows, None)) < 0.2 * 8 * MOMENT_ROWS


def test_moments_of_many_rows_take_few_calls_of_numpy(monkeypatch):
    """After each call a thread waits for the interpreter lock."""
    y = np.random.default_rng(7).normal(size=2 * MOMENT_PIECES * MOMENT_ROWS + 5)
    calls, subtract = [], np.subtract

    def counted(*args, **kwargs):
        calls.append(args[0].size)
        return subtract(*args, **kwargs)

    monkeypatch.setattr(np, "subtract", counted)
    moments_of_y(Rows((y,), y, None, y.size), None)
    assert calls == [MOMENT_PIECES * MOMENT_ROWS] * 2 + [5]


@pytest.mark.slow
def test_moments_of_correlated_rows_are_those_of_generalised_least_squares():
    """The mean is the constant that fits best, and the scatter its chi2 (Aitken 1936)."""
    y = 1e6 + np.random.default_rng(3).normal(size=40)
    covariance = covariance_of(40)
    moments = moments_of(y, factor=np.linalg.cholesky(covariance))
    inverse = np.linalg.inv(covariance)
    mean = (inverse @ (y - 1e6)).sum() / inverse.sum()
    apart = y - 1e6 - mean
    assert moments.weight == pytest.approx(inverse.sum(), rel=1e-10)
    assert moments.mean - 1e6 == pytest.approx(mean, rel=1e-7)
    assert moments.scatter == pytest.approx(apart @ inverse @ apart, rel=1e-8)
