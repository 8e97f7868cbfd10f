"""What is known of a function that has not changed since the last fit.

The identity of a model (:mod:`nlsq_dask.user_model.identity`) is found by writing out everything
that the model's value depends on. Most models are small functions that depend on their code, on
numbers, and on functions of libraries. These parts cannot change within themselves. If each part is
the same object as before, then so is everything that was found out about the function.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from nlsq_dask.user_model.closed import is_library_of_arrays, names_of, values_of_libraries
from nlsq_dask.user_model.lru import LruTable

# Functions of which something is known, and facts of one function. Few facts differ by the fit: the
# number of rows of the data is part of some.
MAX_FUNCTIONS = 64
MAX_FACTS = 64


class _Missing:
    """Stands for a global that a function names and that does not exist."""


_MISSING = _Missing()

# Types of values that cannot change within themselves.
_FIXED = frozenset([bool, int, float, complex, str, bytes, types.NoneType, _Missing])


class Known(NamedTuple):
    """The parts of a function, and what is known of the function with these parts."""

    parts: list[Any]
    facts: dict[Hashable, Any]


_known: LruTable[types.FunctionType, Known] = LruTable(MAX_FUNCTIONS)


def facts_of(function: Callable[..., Any]) -> dict[Hashable, Any]:
    """What is known of a function as it is now; to be added to.

    Parameters
    ----------
    function : callable

    Returns
    -------
    dict
        The same object for the same function with the same parts. A new one, which is not kept, for
        a function with a part that may change within itself.
    """
    if type(function) is not types.FunctionType:
        return {}
    try:
        parts = _parts_of(function, ())
    except _MayChangeError:
        return {}
    known = _known.get(function)
    if known is None or not _are_same(known.parts, parts):
        known = Known(parts, {})
        _known.put(function, known)
    if len(known.facts) > MAX_FACTS:
        known.facts.clear()
    return known.facts


class _MayChangeError(Exception):
    """A part of a function may change within itself."""


def _are_same(before: list[Any], now: list[Any]) -> bool:
    """Whether two functions have the same objects as parts."""
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _parts_of(function: types.FunctionType, outer: tuple[types.FunctionType, ...]) -> list[Any]:
    """Everything that a function depends on, in parts that cannot change within themselves."""
    code, defaults = function.__code__, function.__defaults__
    if function.__kwdefaults__ or function.__dict__:
        raise _MayChangeError
    parts = [code, defaults, function.__module__, function.__qualname__]
    values = list(defaults or ())
    names, namespace = names_of(code), function.__globals__
    named = [namespace.get(name, _MISSING) for name in names]
    for value in named + _cells_of(function):
        kind = type(value)
        if kind is types.FunctionType and value is not function and value not in outer:
            parts += _parts_of(value, (*outer, function))
        elif kind is types.ModuleType and not is_library_of_arrays(value):
            raise _MayChangeError
        elif kind is not types.FunctionType and kind is not types.ModuleType:
            values.append(value)
        parts.append(value)
    if not _FIXED.issuperset(map(type, values)):
        raise _MayChangeError
    return parts + values + values_of_libraries(names)


def _cells_of(function: types.FunctionType) -> list[Any]:
    """Values of the variables of outer functions."""
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # assigned later
        raise _MayChangeError from None
