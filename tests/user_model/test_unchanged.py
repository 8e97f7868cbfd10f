"""A function that has not changed is known; any change of what it depends on is seen."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import _errors
from nlsq_dask.user_model import unchanged
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

POWER = 2


def helper(x):
    return x**POWER


def model(x, a, b=0.5):
    return a * jnp.sqrt(helper(x)) + b


def scaled(factor):
    def inner(x, a):
        return a * factor * x

    return inner


def scaled_values(factor):
    return lambda x: factor * x


def anew(function):
    """The spec of a function of which nothing is known."""
    kept, unchanged._known = unchanged._known, unchanged.LruTable(1)
    try:
        return prepare_model(function)
    finally:
        unchanged._known = kept


def number_of_examinations(monkeypatch):
    calls = []
    real = prepare_model.__globals__["_examined"]

    def counted(spec, n_rows):
        calls.append(spec.label)
        return real(spec, n_rows)

    monkeypatch.setitem(prepare_model.__globals__, "_examined", counted)
    return calls


def test_a_function_that_has_not_changed_is_not_examined_again(monkeypatch):
    calls = number_of_examinations(monkeypatch)
    first = prepare_model(model)
    assert prepare_model(model) is first
    assert first == anew(model)
    assert calls == ["model", "model"]
    assert prepare_model(model, n_rows=3).token == first.token
    with jax.numpy_dtype_promotion("strict"):
        prepare_model(model)
    assert calls == ["model"] * 4


def new_default(monkeypatch):
    monkeypatch.setattr(model, "__defaults__", (0.25,))


def new_code(monkeypatch):
    monkeypatch.setattr(model, "__code__", (lambda x, a, b: a * x - b).__code__)


def new_global(monkeypatch):
    monkeypatch.setitem(globals(), "POWER", 4)


def new_helper(monkeypatch):
    monkeypatch.setitem(globals(), "helper", lambda x: x**6)


def helper_with_another_code(monkeypatch):
    monkeypatch.setattr(helper, "__code__", (lambda x: x**8).__code__)


def new_attribute(monkeypatch):
    monkeypatch.setattr(model, "__dict__", {"unit": "m"})


def function_of_a_library(monkeypatch):
    monkeypatch.setattr(jnp, "sqrt", lambda x: x**0.25)


def new_global_of_the_name_of_an_attribute(monkeypatch):
    monkeypatch.setitem(globals(), "sqrt", None)


CHANGES = [
    new_default,
    new_code,
    new_global,
    new_helper,
    helper_with_another_code,
    new_attribute,
    function_of_a_library,
    new_global_of_the_name_of_an_attribute,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_is_seen(monkeypatch, change):
    before = prepare_model(model, 2)
    change(monkeypatch)
    after = prepare_model(model, 2)
    assert after.token != before.token
    assert after == anew(model)
    monkeypatch.undo()
    assert prepare_model(model, 2).token == before.token


def test_variables_of_outer_functions():
    inner = scaled(3.0)
    before = prepare_model(inner)
    inner.__closure__[0].cell_contents = 5.0
    assert prepare_model(inner).token != before.token
    inner.__closure__[0].cell_contents = np.array([3.0])
    assert unchanged.facts_of(inner) == {}
    array = prepare_model(inner)
    inner.__closure__[0].cell_contents[0] = 4.0
    assert prepare_model(inner).token != array.token


def test_modules_and_functions_of_outer_functions(monkeypatch):
    def made(xp, inner):
        return lambda x, a: a * xp.sqrt(x) + inner(x)

    calls = number_of_examinations(monkeypatch)
    function = made(jnp, scaled_values(3.0))
    before = prepare_model(function, 1)
    assert prepare_model(function, 1) is before
    assert len(calls) == 1
    inner, xp = function.__closure__
    inner.cell_contents.__closure__[0].cell_contents = 5.0
    changed = prepare_model(function, 1)
    xp.cell_contents = np
    tokens = {before.token, changed.token, prepare_model(function, 1).token}
    assert len(tokens) == 3
    xp.cell_contents = types
    assert unchanged.facts_of(function) == {}


def test_a_token_stands_for_the_latest_function():
    twins = [types.FunctionType(model.__code__, globals(), "twin", (0.5,)) for _ in range(2)]
    specs = [prepare_model(twin) for twin in twins]
    assert specs[0].token == specs[1].token
    assert prepare_model(twins[0]).function.function is twins[0]
    assert prepare_model(twins[1]).function.function is twins[1]


def test_names_follow_the_signature(monkeypatch):
    assert parameter_names(model) == parameter_names(model, ["a", "b"]) == ("a", "b")
    monkeypatch.setattr(model, "__code__", (lambda x, c, d: x).__code__)
    assert parameter_names(model) == ("c", "d")
    for _ in range(2):
        with pytest.raises(_errors.ModelError, match="3"):
            parameter_names(model, 3)


def test_few_facts_and_few_functions_are_kept():
    kept = [scaled(float(i)) for i in range(unchanged.MAX_FUNCTIONS + 3)]
    for function in kept:
        unchanged.facts_of(function)["seen"] = True
    assert unchanged.facts_of(kept[0]) == {}
    assert unchanged.facts_of(kept[-1]) == {"seen": True}
    facts = unchanged.facts_of(kept[-1])
    facts.update((i, i) for i in range(unchanged.MAX_FACTS))
    assert unchanged.facts_of(kept[-1]) == {}
