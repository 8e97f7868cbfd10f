"""What a traced model computes, as a value that can be compared and named.

A jaxpr has no equality of its own: two traces of one function are two objects. Its content is a
nested tuple of the operations in their order, the numbers of their inputs and outputs, their
parameters, and the values of all constants. Two models with equal contents compute the same, bit by
bit, and the digest of a content is the same in every process.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

Content = tuple[Any, ...]

# Constants with more bytes are held as their digest.
LONG_CONSTANT = 256


def content(closed: ClosedJaxpr) -> Content:
    """What a jaxpr computes.

    Parameters
    ----------
    closed : ClosedJaxpr

    Returns
    -------
    tuple
        Hashable; equal for equal computations. Python functions among the parameters of operations
        (rules of derivatives, callbacks) are told apart by their type alone.
    """
    return _jaxpr_content(closed.jaxpr), tuple(_constant(value) for value in closed.consts)


def digest(found: Content) -> str:
    """SHA-256 of a content."""
    return hashlib.sha256(repr(found).encode()).hexdigest()


def count_operations(closed: ClosedJaxpr) -> int:
    """Operations that a jaxpr's result follows from, those of inner jaxprs too."""
    needed = set(filter(_is_variable, closed.jaxpr.outvars))
    count = 0
    for eqn in reversed(closed.jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(filter(_is_variable, eqn.invars))
            count += 1 + sum(map(_count, _inner_jaxprs(eqn)))
    return count


def operations(closed: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """All operations of a jaxpr, those of inner jaxprs too."""
    return (eqn for jaxpr in _all_jaxprs(closed.jaxpr) for eqn in jaxpr.eqns)


def coarsest_epsilon(closed: ClosedJaxpr) -> float:
    """Machine precision of the coarsest floating-point type in a jaxpr, at least float64's.

    The types of constants and of all results count, complex ones among them.
    """
    constants = (var for jaxpr in _all_jaxprs(closed.jaxpr) for var in jaxpr.constvars)
    results = (var for eqn in operations(closed) for var in eqn.outvars)
    types = {getattr(var.aval, "dtype", None) for var in (*constants, *results)}
    floats = [t for t in types if t is not None and jnp.issubdtype(t, jnp.inexact)]
    return max(float(jnp.finfo(t).eps) for t in (np.dtype(np.float64), *floats))  # type: ignore[no-untyped-call]


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _count(jaxpr: Jaxpr) -> int:
    return sum(len(inner.eqns) for inner in _all_jaxprs(jaxpr))


def _all_jaxprs(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """A jaxpr and those within its operations."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in _inner_jaxprs(eqn):
            yield from _all_jaxprs(inner)


def _inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    for param in eqn.params.values():
        for part in param if isinstance(param, tuple | list) else (param,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _jaxpr_content(jaxpr: Jaxpr) -> Content:
    numbers: dict[Any, Any] = {}

    def atom(value: Any) -> Any:
        if isinstance(value, Literal):
            return _constant(value.val)
        return numbers.setdefault(value, len(numbers))

    inputs = tuple((atom(var), *_aval(var)) for var in (*jaxpr.constvars, *jaxpr.invars))
    steps = tuple(
        (
            eqn.primitive.name,
            tuple(map(atom, eqn.invars)),
            tuple((atom(var), *_aval(var)) for var in eqn.outvars),
            tuple((name, _parameter(value)) for name, value in eqn.params.items()),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, steps, tuple(map(atom, jaxpr.outvars))


def _aval(var: Any) -> tuple[tuple[int, ...], str]:
    """Shape and type of a variable."""
    return getattr(var.aval, "shape", ()), _name(getattr(var.aval, "dtype", None))


@functools.cache
def _name(dtype: Any) -> str:
    return str(dtype)


def _constant(value: Any) -> Any:
    """A number or an array of a jaxpr."""
    if jnp.issubdtype(getattr(value, "dtype", np.dtype(bool)), jax.dtypes.extended):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    data: bytes = array.tobytes()
    if len(data) > LONG_CONSTANT:
        data = hashlib.sha256(data).digest()
    return array.dtype.str, array.shape, data


def _parameter(value: Any) -> Any:
    """A parameter of an operation."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | complex | slice | range):
        return repr(value)  # NaN equals itself by its name only
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, ClosedJaxpr):
        return content(value)
    if isinstance(value, Jaxpr):
        return _jaxpr_content(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _constant(value)
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(map(_parameter, value))
    if isinstance(value, dict):
        return tuple((str(key), _parameter(part)) for key, part in value.items())
    if isinstance(value, enum.Enum | np.dtype):
        return str(value)
    return type(value).__name__
