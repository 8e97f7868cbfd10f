"""Kernels for the widest vectors that all processors of a fit have."""

from __future__ import annotations

import logging
import os

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import ClusterError, fit, fit_each
from nlsq_dask.core import resources
from nlsq_dask.core.resources import VECTOR_OPTION, WIDE_VECTOR_BITS, XLA_VECTOR_BITS, vector_bits
from nlsq_dask.engines.dask import vectors, watch
from nlsq_dask.kernels import compiled
from nlsq_dask.kernels.sums import block_kernel
from tests.kernels.test_sums import buffers
from tests.support.problems import exact_sums, plain_problem

pytestmark = pytest.mark.versions

NARROW = f"--{VECTOR_OPTION}={XLA_VECTOR_BITS}"

wide_only = pytest.mark.skipif(vector_bits() == XLA_VECTOR_BITS, reason="needs AVX-512")


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


X = np.linspace(0, 4, 30_000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31e3 * X)


def fit_decay(x=X, y=Y, **options):
    return fit(decay, x, y, p0=[1, 1, 0], **options)


def fit_in_chunks(client=None, **options):
    x, y = (da.from_array(array, chunks=1000) for array in (X, Y))
    return fit_decay(x, y, client=client, pilot=False, cache=False, **options)


def bits(result):
    return result.popt.tobytes(), result.pcov.tobytes(), result.cost


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512vl\n", WIDE_VECTOR_BITS),
        ("processor\t: 0\nflags\t\t: fpu avx2\n", XLA_VECTOR_BITS),
        ("processor\t: 0\nFeatures\t: fp asimd\n", XLA_VECTOR_BITS),
        (None, XLA_VECTOR_BITS),
    ],
)
def test_width_of_a_processor(text, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(resources, "CPU_INFO", path)
    monkeypatch.setattr(resources, "_has_wide_vectors", resources._has_wide_vectors.__wrapped__)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert vector_bits() == expected
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    assert vector_bits() == XLA_VECTOR_BITS


def test_sums_of_wide_and_narrow_vectors_agree():
    problem = plain_problem()
    rows, exact = buffers(problem, 8192), exact_sums(problem)
    for width in (XLA_VECTOR_BITS, WIDE_VECTOR_BITS):
        kernel = block_kernel(problem.spec, "cpu", vector_bits=width)
        exact.assert_equal(kernel(problem.params, problem.basis, rows), problem.y.size)
        assert kernel is block_kernel(problem.spec, "cpu", vector_bits=width)
    assert kernel is not block_kernel(problem.spec, "cpu")


def test_a_release_of_jax_without_the_option(monkeypatch):
    monkeypatch.setattr(compiled, "VECTOR_OPTION", "xla_cpu_no_such_option")
    assert not compiled.compiles_for_wide_vectors.__wrapped__()


@pytest.mark.slow
@wide_only
def test_a_result_says_the_width(monkeypatch):
    wide = fit_decay()
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    narrow = fit_decay()
    assert (wide.vector_bits, narrow.vector_bits) == (WIDE_VECTOR_BITS, XLA_VECTOR_BITS)
    np.testing.assert_allclose(wide.popt, narrow.popt, rtol=1e-7)


@pytest.mark.slow
@wide_only
def test_series_have_the_same_bits_with_vectors_of_any_width(monkeypatch):
    """So a worker of any processor may fit any block."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 40)[:, None]
    y = 2.5 * np.exp(-rng.uniform(0.5, 2, 300) * x) + 0.5 + rng.normal(0, 0.1, (40, 300))
    y[rng.random(y.shape) < 0.1] = np.nan
    wide = fit_each(decay, x[:, 0], y, p0=[1, 1, 0])
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    narrow = fit_each(decay, x[:, 0], y, p0=[1, 1, 0])
    for name, values in wide.fields.items():
        np.testing.assert_array_equal(narrow.fields[name], values)


@pytest.mark.slow
@wide_only
@pytest.mark.parametrize("lazy", [False, True])
def test_a_fit_goes_on_with_the_width_of_its_checkpoint(lazy, tmp_path, monkeypatch):
    fitted = fit_in_chunks if lazy else fit_decay
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    expected = fitted()
    interrupted(fitted, tmp_path)
    monkeypatch.delenv("XLA_FLAGS")
    resumed = fitted(checkpoint=tmp_path, resume=True)
    assert resumed.vector_bits == XLA_VECTOR_BITS
    assert bits(resumed) == bits(expected)


class InterruptError(Exception):
    pass


def interrupted(fitted, directory):
    def stop(*_):
        raise InterruptError

    with pytest.raises(InterruptError):
        fitted(checkpoint=directory, callback=stop)


@wide_only
def test_a_wide_checkpoint_goes_on_with_narrow_vectors_and_says_so(tmp_path, caplog, monkeypatch):
    interrupted(fit_decay, tmp_path)
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    with caplog.at_level(logging.WARNING, "nlsq_dask"):
        resumed = fit_decay(checkpoint=tmp_path, resume=True)
    assert resumed.vector_bits == XLA_VECTOR_BITS
    assert "computed with vectors of 512 bits" in caplog.text


def set_flags(flags):
    if flags:
        os.environ["XLA_FLAGS"] = flags
    else:
        os.environ.pop("XLA_FLAGS", None)


@pytest.fixture
def workers(client):
    """The addresses of two workers, whose vectors are what they are before and afterwards."""
    yield sorted(client.nthreads())
    client.run(set_flags, None)
    vectors._known.pop(client, None)


@pytest.mark.cluster
@wide_only
def test_the_narrowest_worker_at_the_start_decides(client, workers, monkeypatch):
    wide = fit_in_chunks(client)
    client.run(set_flags, NARROW, workers=workers[1:])
    vectors._known.pop(client, None)
    narrow = fit_in_chunks(client)
    assert (wide.vector_bits, narrow.vector_bits) == (WIDE_VECTOR_BITS, XLA_VECTOR_BITS)
    assert bits(wide) == bits(fit_in_chunks())
    monkeypatch.setenv("XLA_FLAGS", NARROW)
    assert bits(narrow) == bits(fit_in_chunks())


@pytest.mark.cluster
@wide_only
def test_a_worker_that_is_narrower_later_gets_no_groups(client, workers, caplog):
    """The worker is known as a wide one: a group meets its vectors, and the pass begins again."""

    def narrow_one(*_):
        client.run(set_flags, NARROW, workers=workers[1:])

    with caplog.at_level(logging.WARNING, "nlsq_dask"):
        result = fit_in_chunks(client, callback=narrow_one)
    assert result.vector_bits == WIDE_VECTOR_BITS
    assert bits(result) == bits(fit_in_chunks())
    assert caplog.text.count("workers get no groups of this fit") == 1
    assert workers[1] in caplog.text


@pytest.mark.cluster
@wide_only
def test_a_fit_without_any_wide_worker_ends(client, workers, monkeypatch):
    def narrow_all(*_):
        client.run(set_flags, NARROW)

    monkeypatch.setattr("nlsq_dask.engines.dask.cluster_runner.longest_wait", lambda: 0.0)
    with pytest.raises(ClusterError, match="no worker that is left has them") as caught:
        fit_in_chunks(client, callback=narrow_all)
    assert watch.WAIT_OPTION in str(caught.value)
