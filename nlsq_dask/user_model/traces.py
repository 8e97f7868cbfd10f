"""The content of a trace: a value that can be compared and hashed.

A jaxpr has no equality of its own: two traces of one function are two objects. The content of a
jaxpr is a nested tuple of the operations in their order, the numbers of their inputs and outputs,
their parameters, and the values of all constants. Two models with equal contents compute the same
bits, and the digest of a content is the same in every process.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.user_model.jaxprs import ClosedJaxpr, Jaxpr, Literal

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn

Content = tuple[Any, ...]

# Constants with more bytes are replaced by their digest.
LONG_CONSTANT = 256


def content(closed: ClosedJaxpr, n_rows: int | None = None) -> Content:
    """The content of a jaxpr.

    Parameters
    ----------
    closed : ClosedJaxpr
    n_rows : int, optional
        Number of rows of the trace. A symbol takes its place in all sizes, so that the contents for
        two numbers of rows can be compared. A number in a computation, as in ``x / len(x)``, stays.

    Returns
    -------
    tuple
        Hashable; equal for equal computations. Python functions among the parameters of operations
        (rules of derivatives, callbacks) count by their type alone.
    """
    constants = tuple(_constant(value, n_rows) for value in closed.consts)
    return _jaxpr_content(closed.jaxpr, n_rows), constants


def digest(found: Content) -> str:
    """SHA-256 of a content."""
    return hashlib.sha256(repr(found).encode()).hexdigest()


def count_operations(closed: ClosedJaxpr) -> int:
    """Number of operations that a jaxpr's result depends on, with those of inner jaxprs."""
    needed = set(filter(_is_variable, closed.jaxpr.outvars))
    count = 0
    for eqn in reversed(closed.jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(filter(_is_variable, eqn.invars))
            count += 1 + sum(map(_count, _inner_jaxprs(eqn)))
    return count


def operations(closed: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """All operations of a jaxpr and of its inner jaxprs."""
    return (eqn for jaxpr in _all_jaxprs(closed.jaxpr) for eqn in jaxpr.eqns)


def coarsest_epsilon(closed: ClosedJaxpr) -> float:
    """Machine precision of the coarsest floating-point type in a jaxpr, at least float64's.

    Constants and all results count, of real and complex types.
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
    """A jaxpr and the jaxprs within its operations."""
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


def _jaxpr_content(jaxpr: Jaxpr, n_rows: int | None) -> Content:
    numbers: dict[Any, Any] = {}

    def atom(value: Any) -> Any:
        if isinstance(value, Literal):
            return _constant(value.val, None)
        return numbers.setdefault(value, len(numbers))

    inputs = tuple((atom(var), *_aval(var, n_rows)) for var in (*jaxpr.constvars, *jaxpr.invars))
    steps = tuple(
        (
            eqn.primitive.name,
            tuple(map(atom, eqn.invars)),
            tuple((atom(var), *_aval(var, n_rows)) for var in eqn.outvars),
            tuple((name, _parameter(value, n_rows)) for name, value in eqn.params.items()),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, steps, tuple(map(atom, jaxpr.outvars))


def _aval(var: Any, n_rows: int | None) -> tuple[Content, str]:
    """Shape and type of a variable."""
    shape = getattr(var.aval, "shape", ())
    return _open_shape(shape, n_rows), _name(getattr(var.aval, "dtype", None))


def _open_shape(shape: tuple[int, ...], n_rows: int | None) -> Content:
    return shape if n_rows is None else tuple("rows" if n == n_rows else n for n in shape)


@functools.cache
def _name(dtype: Any) -> str:
    return str(dtype)


def _constant(value: Any, n_rows: int | None) -> Any:
    """Content of a number or an array of a jaxpr.

    For an array as long as the rows, the part that arrays of other lengths can have in common.
    """
    if jnp.issubdtype(getattr(value, "dtype", np.dtype(bool)), jax.dtypes.extended):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    data: bytes = (array.ravel()[:1] if n_rows in array.shape else array).tobytes()
    if len(data) > LONG_CONSTANT:
        data = hashlib.sha256(data).digest()
    return array.dtype.str, _open_shape(array.shape, n_rows), data


def _parameter(value: Any, n_rows: int | None) -> Any:
    """Content of a parameter of an operation."""
    if value is None or isinstance(value, str):
        return value
    if n_rows is not None and isinstance(value, slice | range):
        value = value.start, value.stop, value.step
    if isinstance(value, bool | int | float | complex | slice | range):
        return "rows" if value == n_rows else repr(value)  # as text, NaN equals itself
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, ClosedJaxpr):
        return content(value, n_rows)
    if isinstance(value, Jaxpr):
        return _jaxpr_content(value, n_rows)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _constant(value, n_rows)
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(_parameter(part, n_rows) for part in value)
    if isinstance(value, dict):
        return tuple((str(key), _parameter(part, n_rows)) for key, part in value.items())
    if isinstance(value, enum.Enum | np.dtype):
        return str(value)
    return type(value).__name__
