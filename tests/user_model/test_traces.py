"""What is read from a traced model: the coarsest of the types that it computes with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask.user_model.traces import coarsest_epsilon, operations

TABLE = np.linspace(0.0, 1.0, 4, dtype=np.float32)


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, v: v.astype(jnp.float16).astype(jnp.float64), x)


MODELS = {
    "float64": (lambda x: jnp.sin(x), np.float64),
    "integers": (lambda x: x + jnp.arange(4), np.float64),
    "float32": (lambda x: jnp.sin(x.astype(jnp.float32)), np.float32),
    "float16 in a loop": (looped, np.float16),
    "complex of float32": (lambda x: jnp.abs(x.astype(jnp.complex64)), np.float32),
    "complex of float64": (lambda x: jnp.abs(x.astype(jnp.complex128)), np.float64),
    "a constant of float32": (lambda x: x + TABLE, np.float32),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_coarsest_type_of_constants_and_results_counts(name):
    model, coarsest = MODELS[name]
    with jax.enable_x64(True):
        traced = jax.make_jaxpr(model)(np.ones(4))
    assert coarsest_epsilon(traced) == float(np.finfo(coarsest).eps)


@pytest.mark.slow
def test_operations_of_inner_traces_are_listed():
    with jax.enable_x64(True):
        names = [eqn.primitive.name for eqn in operations(jax.make_jaxpr(looped)(np.ones(4)))]
    assert names.count("convert_element_type") >= 2
    assert {"scan", "while"} & set(names)
