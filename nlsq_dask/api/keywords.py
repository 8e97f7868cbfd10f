"""Keyword arguments that a function does not have: the error names what takes their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

from nlsq_dask import _errors

P = ParamSpec("P")
T = TypeVar("T")

# Least similarity of a name that is proposed, by difflib's ratio: "max_nfevs" is like "max_nfev".
SIMILAR = 0.7


def naming_unknown_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function say what takes the place of a keyword argument that it does not have.

    Without this, Python names the argument alone. Other libraries have arguments for the same
    purposes, with other names.
    """
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse_unknown_keywords(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return called


def refuse_unknown_keywords(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse keyword arguments that a function does not have.

    Raises
    ------
    InputTypeError
        Which is a TypeError, as Python raises.
    """
    for keyword in given:
        if keyword not in known:
            similar = get_close_matches(keyword, known, n=2, cutoff=SIMILAR)
            raise _errors.unknown_keyword(function, keyword, similar)
