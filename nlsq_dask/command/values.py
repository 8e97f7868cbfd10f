"""Numbers, bounds and options as they are written on a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlsq_dask import _errors


def numbers(option: str, text: str) -> dict[str, float] | list[float]:
    """Numbers by name, ``a=1,b=2``, or in order, ``1,2``.

    Raises
    ------
    InputError
        If the text is neither.
    """
    parts = text.split(",")
    if not any("=" in part for part in parts):
        return [_number(part, option, text) for part in parts]
    return numbers_by_name(option, text)


def numbers_by_name(option: str, text: str) -> dict[str, float]:
    """Numbers by name, ``a=1,b=2``.

    Raises
    ------
    InputError
        If the text is something else, or names a parameter twice.
    """
    found: dict[str, float] = {}
    for name, value in _pairs(text):
        if not name or name in found:
            raise _errors.numbers_by_name_form(option, text)
        found[name] = _number(value, option, text)
    return found


def bounds(text: str) -> dict[str, tuple[float, float]]:
    """Lower and upper bounds by name, ``a=0:10,b=:5``.

    Raises
    ------
    InputError
        If the text is something else, or names a parameter twice.
    """
    found: dict[str, tuple[float, float]] = {}
    for name, value in _pairs(text):
        ends = value.split(":")
        if not name or name in found or len(ends) != 2:
            raise _errors.bounds_by_name_form(text)
        try:
            lower, upper = (float(end) if end.strip() else math.inf for end in ends)
        except ValueError:
            raise _errors.bounds_by_name_form(text) from None
        found[name] = (lower if ends[0].strip() else -math.inf, upper)
    return found


def options(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Options by name, each written as ``name=value``.

    Raises
    ------
    InputError
        If a text has no "=".
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise _errors.option_pair_form(option, text)
        found[name] = value
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    """Names and values, both without blanks; a part without "=" has an empty name."""
    split = (part.partition("=") for part in text.split(","))
    return [(name.strip() if sign else "", value.strip()) for name, sign, value in split]


def _number(text: str, option: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _errors.numbers_by_name_form(option, whole) from None
