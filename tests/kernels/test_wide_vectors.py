"""Kernels compiled for the widest vectors, against NumPy.

The quick compiler of the suite (``tests/conftest.py``) does not make the fault of an arctangent.
With ``XLA_FLAGS=`` in the environment JAX 0.10 made it on a CPU with AVX-512. Therefore the options
of the compiler are compared as well.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask.core.resources import VECTOR_OPTION, WIDE_VECTOR_BITS, vector_bits
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.loss import Loss
from nlsq_dask.user_model.model import prepare_loss, prepare_model

X = np.linspace(0.1, 4.0, 1024)


def arctangent(xp, x, a, b):
    return a * xp.arctan(b * x)


def two_arguments(xp, x, a, b):
    return a * xp.arctan2(x, b)


def angle(xp, x, a, b):
    return a * xp.log(b + 1j * x).imag


@pytest.mark.parametrize("model", [arctangent, two_arguments, angle])
def test_arctangents_have_the_values_of_numpy(model):
    spec = prepare_model(lambda x, a, b: model(jnp, x, a, b), ["a", "b"])
    rows = Rows((X,), np.zeros(X.size), None, X.size)
    params = np.array([1.3, 1.0])
    assert block_kernel(spec, "cpu", vector_bits=WIDE_VECTOR_BITS)._options == {}
    kernel = block_kernel(spec, "cpu", vector_bits=vector_bits())
    values = model(np, X, *params)
    sums = kernel(params, np.eye(2), rows)
    np.testing.assert_allclose(sums.chi2, values @ values, rtol=1e-13)
    slopes = values / params[0]
    np.testing.assert_allclose(sums.gram[0, 0], slopes @ slopes, rtol=1e-13)


@pytest.mark.slow
def test_a_loss_of_the_user_may_take_an_arctangent():
    def rho(z):
        return jnp.stack([jnp.arctan(z), 1 / (1 + z**2), -2 * z / (1 + z**2) ** 2])

    spec = prepare_model(lambda x, a: a * x, ["a"])
    kernels = [
        block_kernel(replace(spec, loss=loss), "cpu", vector_bits=vector_bits())
        for loss in (Loss("arctan"), prepare_loss(rho, 1.0))
    ]
    rows = Rows((X,), np.zeros(X.size), None, X.size)
    ready, own = (kernel(np.ones(1), np.eye(1), rows) for kernel in kernels)
    np.testing.assert_allclose(own.cost, ready.cost, rtol=1e-12)


def test_other_models_take_the_widest_vectors():
    spec = prepare_model(lambda x, a: a * jnp.exp(x), ["a"])
    kernel = block_kernel(spec, "cpu", vector_bits=WIDE_VECTOR_BITS)
    assert kernel._options == {VECTOR_OPTION: str(WIDE_VECTOR_BITS)}
