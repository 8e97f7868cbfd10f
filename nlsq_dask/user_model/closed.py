"""Functions that are closed: their trace depends on their identity and on JAX's settings alone.

The identity of a function (:mod:`nlsq_dask.user_model.identity`) covers its code, and all values
that the code names. The trace may depend on more: files, the environment, the clock, the state of a
library. A function is closed if its code names only functions of numbers and arrays, and if it
holds only numbers, arrays and closed functions. The lists below say which names these are. Code
with any other name is open, and each preparation traces an open function again.
"""

from __future__ import annotations

import builtins
import functools
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules whose public names, below, are functions of numbers and arrays.
_MODULES = (jnp, jnp.linalg, jnp.fft, jax.lax, jax.nn, jax.scipy.special, math, jax.Array)
_MODULE_NAMES = frozenset(["jax", "jax.lax", "jax.nn", "jax.numpy", "jax.scipy", "math", "numpy"])

# Ways from one module to another, transformations, and methods of ``x.at[i]``.
_MORE_NAMES = _words("fft grad jit jvp lax linalg nn numpy scipy special vmap apply get mul set")

# Public names of these modules that read or write files, or depend on more than their arguments.
_STATEFUL_NAMES = _words(
    "device devices fromfile frompyfunc get_printoptions infeed load outfeed "
    "platform_dependent printoptions rng_bit_generator rng_uniform save savez "
    "set_printoptions random"
)

_BUILTINS = _words(
    "abs all any bool complex divmod enumerate filter float int isinstance len list map "
    "max min pow range reversed round slice sorted sum tuple type zip AssertionError "
    "ValueError TypeError dict set str"
)

# Functions by which arrays and numbers are pickled.
_RECONSTRUCTORS = frozenset(["_frombuffer", "_reconstruct", "_reconstruct_array", "scalar"])

_PLAIN_TYPES = (np.ndarray, functools.partial, types.CodeType)

# Codes whose names are kept.
MOST_CODES = 256


@functools.lru_cache(MOST_CODES)
def names_of(code: types.CodeType) -> tuple[str, ...]:
    """Names of globals and attributes in code, with those of nested functions."""
    names = dict.fromkeys(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names.update(dict.fromkeys(names_of(const)))
    return tuple(names)


def is_closed_code(function: types.FunctionType) -> bool:
    """Whether the code of a function names only functions of numbers and arrays, and own globals.

    The values of the globals are to be looked at by :func:`is_closed_value`.
    """
    names = names_of(function.__code__)
    return all(_is_closed_name(n, function.__globals__) and _is_as_imported(n) for n in names)


def is_closed_value(value: Any) -> bool:
    """Whether a value that a function holds cannot bring in anything from outside.

    The parts of a value are looked at one by one: elements, attributes, and the functions that
    rebuild the value.
    """
    if type(value) in _PLAIN_TYPES or value is functools.partial:
        return True
    if isinstance(value, np.generic | np.dtype | jax.Array):
        return not isinstance(value, jax.core.Tracer)
    if isinstance(value, types.ModuleType):
        return is_library_of_arrays(value)
    module = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__name__", None)
    if module.startswith("nlsq_dask.models."):  # the models of this package are closed
        return True
    if module == "builtins":
        return name in _BUILTINS and getattr(builtins, name) is value
    package = module.partition(".")[0]
    if package == "cloudpickle":
        return name == "subimport"  # rebuilds a module, which is looked at by itself
    return package in ("jax", "math", "numpy") and (
        name in _closed_names() or name in _RECONSTRUCTORS
    )


def _is_closed_name(name: str, namespace: dict[str, Any]) -> bool:
    if name in namespace:
        value = namespace[name]
        if isinstance(value, types.ModuleType):
            return is_library_of_arrays(value)
        # Elsewhere in the code the name may be an attribute of a module.
        return name in _closed_names() or name not in _open_names()
    if name in _closed_names():
        return True
    return name in _BUILTINS and name not in _open_names()


def is_library_of_arrays(value: Any) -> bool:
    """Whether a value is a module whose public names are functions of numbers and arrays."""
    return isinstance(value, types.ModuleType) and (
        value.__name__ in _MODULE_NAMES or value.__name__.startswith("jax.scipy.")
    )


def values_of_libraries(names: tuple[str, ...]) -> list[Any]:
    """What the names stand for now in each of these modules; None where a module has no such name.

    Somebody may have set an attribute of a module to another value.
    """
    return [owner.get(name) for owner in _attributes_now() for name in names]


def _is_as_imported(name: str) -> bool:
    """Whether nobody has set an attribute of a module to another value since the first call."""
    return all(vars(owner).get(name) is first.get(name) for owner, first in _first_attributes())


@functools.cache
def _first_attributes() -> tuple[tuple[Any, dict[str, Any]], ...]:
    return tuple((owner, dict(vars(owner))) for owner in (*_MODULES, jax, np))


@functools.cache
def _attributes_now() -> tuple[Mapping[str, Any], ...]:
    """The attributes of these modules, as they are whenever they are looked at."""
    return tuple(vars(owner) for owner, _ in _first_attributes())


@functools.cache
def _closed_names() -> frozenset[str]:
    """Names in code that stand for functions of numbers and arrays, or attributes of arrays."""
    public = (name for owner in _MODULES for name in dir(owner) if not name.startswith("_"))
    return (frozenset(public) | _MORE_NAMES) - _STATEFUL_NAMES


@functools.cache
def _open_names() -> frozenset[str]:
    """Other attributes that a module or an array has."""
    return frozenset(_attributes()) - _closed_names()


def _attributes() -> Iterator[str]:
    for owner in (*_MODULES, jax, jax.scipy, np, np.ndarray):
        yield from dir(owner)
