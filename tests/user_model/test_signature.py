"""The names of a model's parameters, from its signature or from its caller."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import _errors
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names
from tests.user_model.evaluated import Line, evaluate


def decay(x, a, b=1.0):
    return a * jnp.exp(-b * x)


NAMES = {
    "signature": (decay, None, ("a", "b")),
    "default left out": (decay, 1, ("a",)),
    "lambda": (lambda t, tau: t / tau, None, ("tau",)),
    "count": (lambda x, *p: sum(p) * x, 3, ("p0", "p1", "p2")),
    "named and counted": (lambda x, a, *p: a + sum(p) * x, 3, ("a", "p1", "p2")),
    "all counted": (lambda *args: args[0] * args[1], 1, ("p0",)),
    "given": (decay, ("amplitude", "rate"), ("amplitude", "rate")),
    "given for args": (lambda x, *p: sum(p) * x, ["u", "v"], ("u", "v")),
    "positional only": (lambda x, a, /: a * x, None, ("a",)),
    "keyword with a default": (lambda x, a, *, n=2: a * x**n, None, ("a",)),
    "partial": (functools.partial(Line().method, power=2), None, ("slope",)),
    "object": (Line(), None, ("slope",)),
    "bound method": (Line().method, None, ("slope", "power")),
    "static method": (Line.static, None, ("slope",)),
    "jit": (jax.jit(decay), None, ("a", "b")),
}


@pytest.mark.parametrize("case", NAMES)
def test_parameter_names(case):
    function, names_or_count, expected = NAMES[case]
    assert parameter_names(function, names_or_count) == expected
    assert evaluate(prepare_model(function, names_or_count), [1.5] * len(expected)).shape == (15,)


BAD_SIGNATURES = {
    "no function": (3.0, None, _errors.InputTypeError, "3.0, which cannot be called"),
    "ufunc": (np.exp, None, _errors.ModelError, "exp has no signature"),
    "builtin": (max, None, _errors.ModelError, "max has no signature"),
    "no x": (lambda: 1.0, None, _errors.ModelError, "no positional argument"),
    "no parameters": (lambda x: x, None, _errors.ModelError, "no parameters to fit"),
    "open": (lambda x, *p: x, None, _errors.ModelError, "pass p0"),
    "too many": (decay, 3, _errors.ModelError, "takes 1 to 2 parameters, but 3 were given"),
    "an array": (lambda x, p: x, 2, _errors.ModelError, "pass lambda x, *values: model(x, "),
    "too few": (lambda x, a, b: x, 1, _errors.ModelError, "takes 2 parameters, but 1 was given"),
    "too few before *args": (lambda x, a, b, *c: x, 1, _errors.ModelError, "at least 2"),
    "keyword only": (lambda x, a, *, b: x, None, _errors.ModelError, "takes b by keyword only"),
    "partial by name": (
        functools.partial(lambda x, a, b, c: x, b=1),
        None,
        _errors.ModelError,
        "takes c by keyword only",
    ),
    "twice": (decay, ("a", "a"), _errors.InputError, "hold a more than once"),
}


@pytest.mark.parametrize("case", BAD_SIGNATURES)
def test_signature_that_does_not_fit(case):
    function, names_or_count, kind, text = BAD_SIGNATURES[case]
    with pytest.raises(kind) as caught:
        prepare_model(function, names_or_count)
    assert text in str(caught.value)
