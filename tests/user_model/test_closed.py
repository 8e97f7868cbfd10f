"""Which models depend on nothing but their identity, and the trace that these models save."""

import functools
import math
import os
import time

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
import pytest
from jax import lax
from jax.numpy import exp

from nlsq_dask import models
from nlsq_dask.user_model import model as model_module
from nlsq_dask.user_model.identity import identify
from nlsq_dask.user_model.model import prepare_model
from tests.user_model.evaluated import Line, X, evaluate

TABLE = np.arange(3.0)
GENERATOR = np.random.default_rng(0)
NAME = "load"
load = 2.0


def helper(x):
    return jnp.where(x > 0, x, 0) * math.pi


def with_import(x, a):
    import pathlib

    return a * x + len(pathlib.Path("/").parts)


def with_closed_helper(x, a):
    return helper(a * x) + TABLE[1]


def of_outer_variables(xp, inner):
    return lambda x, a: a * xp.exp(x) + inner(x)


CLOSED = {
    "function of JAX": lambda x, a: a * jnp.exp(x),
    "function of NumPy": lambda x, a: a * np.exp(x),
    "imported by name": lambda x, a: a * exp(x),
    "special function": lambda x, a: jsp.erf(a * x),
    "lax": lambda x, a: lax.cumsum(a * x),
    "long path": lambda x, a: jax.numpy.linalg.norm(jnp.stack([a * x, x]), axis=0),
    "method of an array": lambda x, a: (a * x).at[0].set(1.0).astype(np.float32),
    "own function and array": with_closed_helper,
    "partial": functools.partial(lambda x, a, b: a * x + b, b=2.0),
    "default": lambda x, a, b=TABLE: a * x + b[0],
    "module of an outer function": of_outer_variables(jnp, lambda x: jnp.sin(x)),
    "module of NumPy of an outer function": of_outer_variables(np, lambda x: np.sin(x)),
    "inner function": lambda x, a: sum((lambda t: t * a)(x) for _ in range(3)),
    "ready-made": models.Gaussian() + models.Linear(),
}

OPEN = {
    "file": lambda x, a: a * x + len(open(os.devnull).read()),  # noqa: PTH123, SIM115
    "environment": lambda x, a: a * x + len(os.environ),
    "clock": lambda x, a: a * x + time.time(),
    "global generator": lambda x, a: a * x + np.random.rand(),  # noqa: NPY002
    "own generator": lambda x, a: a * x + GENERATOR.normal(),
    "file of NumPy": lambda x, a: a * x + np.fromfile(os.devnull).size,
    "global called as an attribute": lambda x, a: a * x + load * np.load(os.devnull),
    "setting of JAX": lambda x, a: a * x + jax.config.jax_enable_x64,
    "setting of NumPy": lambda x, a: a * x + len(np.geterr()),
    "globals": lambda x, a: a * x + globals()["load"],
    "attribute by its name": lambda x, a: a * x + getattr(np, NAME)(os.devnull),
    "private attribute": lambda x, a: a * x + len(helper.__globals__),
    "import": with_import,
    "other module of an outer function": of_outer_variables(GENERATOR, lambda x: x),
    "module of the system of an outer function": of_outer_variables(os, lambda x: x),
    "open function of an outer function": of_outer_variables(jnp, lambda x: x * time.time()),
    "function of a library": lambda x, a: a * x + len(functools.reduce(max, "ab")),
    "cache": functools.lru_cache(lambda x, a: a * x),
    "callback": lambda x, a: jax.pure_callback(lambda t: t, x, a * x),
    "object": Line(),
    "method": Line().method,
}


@pytest.mark.parametrize("case", CLOSED)
def test_closed(case):
    assert identify(CLOSED[case]).modules is not None


@pytest.mark.parametrize("case", OPEN)
def test_open(case):
    assert identify(OPEN[case]).modules is None


@pytest.fixture
def traced(monkeypatch):
    """Labels of the models that have been traced."""
    labels, trace = [], model_module.trace_call
    monkeypatch.setattr(
        model_module, "trace_call", lambda spec, n: labels.append(spec.label) or trace(spec, n)
    )
    return labels


def test_a_closed_model_is_traced_once(traced):
    first = prepare_model(lambda x, a: a * jnp.sinh(x) + TABLE[2])
    traced.clear()
    again = prepare_model(lambda x, a: a * jnp.sinh(x) + TABLE[2], ["slope"])
    assert traced == []
    # Identity, trace and function are as for a model that is traced; the names are its own.
    assert (again.token, again.traced, again.rows) == (first.token, first.traced, first.rows)
    assert again.names == ("slope",)
    np.testing.assert_array_equal(evaluate(again, [2.0]), evaluate(first, [2.0]))


def test_an_open_model_is_traced_each_time(traced, monkeypatch):
    def model(x, a):
        return a * x + float(os.environ["OFFSET"])

    tokens = []
    for offset in ("1", "1", "3"):
        monkeypatch.setenv("OFFSET", offset)
        tokens.append(prepare_model(model).token)
        assert traced
        traced.clear()
        np.testing.assert_array_equal(
            evaluate(prepare_model(model), [2.0]), 2.0 * X + float(offset)
        )
    assert tokens[0] == tokens[1] != tokens[2]


def test_another_setting_of_jax_traces_anew(traced):
    def model(x, a):
        return a * (jnp.stack([x, x]).T @ jnp.ones(2))

    default = prepare_model(model)
    traced.clear()
    with jax.default_matmul_precision("bfloat16"):
        coarse = prepare_model(model)
    assert traced and coarse.token != default.token
    traced.clear()
    assert prepare_model(model) == default
    assert traced == []


def test_a_function_of_a_module_that_was_replaced_is_seen(monkeypatch):
    def model(x, a):
        return a * jnp.tanh(x)

    before = prepare_model(model)
    with monkeypatch.context() as patch:
        patch.setattr(jnp, "tanh", jnp.sin)
        assert identify(model).modules is None
        assert prepare_model(model).token != before.token
    assert prepare_model(model).token == before.token


def test_a_model_in_memory_is_known_by_its_rows(traced):
    """A model that takes only the rows of the data has a trace for each number of rows."""
    baseline = np.arange(15.0)

    def model(x, a):
        return a * x + baseline[-1] * jnp.ones(x.shape)[: baseline.size]

    assert identify(model).modules is not None
    spec = prepare_model(model, n_rows=15)
    traced.clear()
    assert prepare_model(model, n_rows=15) == spec
    assert traced == []
