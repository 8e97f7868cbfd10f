"""Parameters in which a model is linear, against what the formulas say."""

import jax
import jax.numpy as jnp
import pytest

from nlsq_dask import models
from nlsq_dask.user_model.linear import linear_parameters
from nlsq_dask.user_model.model_spec import ModelSpec


def decay(x, a, tau, c):
    return a * jnp.exp(-x / tau) + c


CASES = {
    "a decay to a constant": (decay, "a tau c", "a c"),
    "a function that is compiled": (jax.jit(decay), "a tau c", "a c"),
    "a product": (lambda x, a, b, c: a * b * x + c, "a b c", "a c"),
    "a polynomial": (lambda x, a, b: jnp.polyval(jnp.stack([a, b]), x), "a b", "a b"),
    "a choice of branches": (lambda x, a, b: jnp.where(x > 1.0, a * x, b), "a b", "a b"),
    "a square": (lambda x, a: a**2 * x, "a", ""),
    "a loop": (
        lambda x, a, b: jax.lax.fori_loop(0, 3, lambda _, v: v * b + a, x),
        "a b",
        "a",
    ),
    "two peaks": (
        models.Gaussian() + models.Lorentzian(),
        "h1 m1 w1 h2 m2 w2",
        "h1 h2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_linear_parameters(name):
    function, names, linear = CASES[name]
    spec = ModelSpec.of(function, tuple(names.split()), "single", 1)
    assert [spec.names[i] for i in linear_parameters(spec)] == linear.split()
