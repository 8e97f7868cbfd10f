"""How a model is called, and what it may return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import _errors
from nlsq_dask.user_model import model as model_module
from nlsq_dask.user_model.model import prepare_model
from tests.user_model.evaluated import X, evaluate


def test_structures():
    u, v = np.random.default_rng(0).normal(size=(2, 15))

    def check(x, a):
        assert isinstance(x, tuple) == (structure == "tuple")
        return a * x[0] + x[1]

    for structure in ("stacked", "tuple"):
        spec = prepare_model(check, structure=structure, n_coords=2)
        np.testing.assert_allclose(evaluate(spec, [3.0], (u, v)), 3.0 * u + v, rtol=1e-15)
    single = prepare_model(lambda x, a: a * x)
    np.testing.assert_array_equal(evaluate(single, [3.0], (u,)), 3.0 * u)
    one = prepare_model(lambda x, a: a * x[0] + 0 * x.shape[0], structure="stacked", n_coords=1)
    np.testing.assert_array_equal(evaluate(one, [3.0], (u,)), 3.0 * u)


OUTPUTS = {
    "scalar": (lambda x, a: a, 2.0),
    "Python number": (lambda x, a: 3, 3.0),
    "integers": (lambda x, a: jnp.arange(len(x)), np.arange(15.0)),
    "booleans": (lambda x, a: x > 1, X > 1),
    "float32": (lambda x, a: (a * x).astype(jnp.float32), (2.0 * X).astype(np.float32)),
    "list": (lambda x, a: [a * v for v in jnp.ones(len(x))] if len(x) < 20 else a * x, 2.0),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_is_one_float64_a_row(case):
    function, expected = OUTPUTS[case]
    got = evaluate(prepare_model(function), [2.0])
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.broadcast_to(expected, (15,)))


BAD_OUTPUTS = {
    "column": (lambda x, a: a * x[:, None], "shape (1009, 1) for 1009 rows"),
    "column, remedy": (lambda x, a: a * x[:, None], ".ravel()"),
    "too short": (lambda x, a: a * x[1:], "return shape (1009,)"),
    "one element": (lambda x, a: jnp.reshape(a, (1,)), "returned shape (1,)"),
    "complex": (lambda x, a: jnp.exp(1j * a * x), "complex numbers"),
    "nothing": (lambda x, a: None, "returned None"),
    "text": (lambda x, a: "a", "returned a str"),
    "ragged": (lambda x, a: [x, a], "returned a list of values that do not form an array"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_output_that_is_not_one_number_a_row(case):
    function, text = BAD_OUTPUTS[case]
    with pytest.raises(_errors.ModelError) as caught:
        prepare_model(function)
    assert text in str(caught.value)


def test_models_own_error_is_the_cause():
    class Trouble(Exception):
        pass

    def model(x, a):
        raise Trouble("the tube is cold")

    with pytest.raises(
        _errors.ModelError, match=r"model raised Trouble.*the tube is cold"
    ) as caught:
        prepare_model(model)
    assert isinstance(caught.value.__cause__, Trouble)


def test_model_of_one_number_of_rows_is_accepted_in_memory():
    baseline = np.arange(15.0)

    def model(x, a):
        return a * x + baseline

    with pytest.raises(_errors.ModelError, match="1009 rows"):
        prepare_model(model)
    spec = prepare_model(model, n_rows=15)
    np.testing.assert_allclose(evaluate(spec, [2.0]), 2.0 * X + baseline)


def test_global_switch_of_jax_is_left_alone():
    before = jax.config.jax_enable_x64
    prepare_model(lambda x, a: a * jnp.exp(x))
    assert jax.config.jax_enable_x64 is before is False


def test_style_is_found_once(monkeypatch):
    examined = []
    examine = model_module._examine
    monkeypatch.setattr(
        model_module, "_examine", lambda *args: examined.append(args) or examine(*args)
    )
    for _ in range(3):
        prepare_model(lambda x, a: a * jnp.sinh(x))
    assert len(examined) == 1
    prepare_model(lambda x, a: a * jnp.cosh(x))
    assert len(examined) == 2
