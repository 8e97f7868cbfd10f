"""Checks of single numbers, with errors that name the argument."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from nlsq_dask import _errors

#: Larger counts than any array can have: sizes computed from counts below it stay finite.
MAX_COUNT = 2**63

#: Python's integers may be larger than any number of float64.
LARGEST = sys.float_info.max


def checked_count(name: str, value: Any) -> int:
    """A positive whole number, written as an integer or as a float such as ``1e7``.

    Raises
    ------
    InputError
        Naming the argument and the value.
    """
    number = _whole_number(value, 1)
    if number is None:
        raise _errors.count_invalid(name, value)
    return number


def checked_seed(value: Any) -> int:
    """A whole number of at least zero, for random numbers.

    Raises
    ------
    InputError
        Naming the value.
    """
    number = _whole_number(value, 0)
    if number is None:
        raise _errors.seed_invalid(value)
    return number


def checked_progress(value: Any) -> bool | None:
    """Whether to show progress; None leaves this to the place where the process runs.

    Raises
    ------
    InputError
        Naming the value.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise _errors.progress_invalid(value)


def checked_retries(value: Any) -> int:
    """A whole number of at least zero, of attempts after the first.

    Raises
    ------
    InputError
        Naming the value.
    """
    number = _whole_number(value, 0)
    if number is None:
        raise _errors.retries_invalid(value)
    return number


def checked_safety_factor(value: Any) -> float:
    """A share of memory, above 0 and at most 1.

    Raises
    ------
    InputError
        Naming the argument and the value.
    """
    number = _as_number(value)
    if number is None or not 0 < number <= 1:
        raise _errors.safety_factor_invalid(value)
    return float(number)


def checked_gigabytes(name: str, value: Any) -> float:
    """A positive finite amount of memory, in units of 1e9 bytes.

    Raises
    ------
    InputError
        Naming the argument and the value.
    """
    number = _as_number(value)
    if number is None or not 0 < number < math.inf:
        raise _errors.memory_invalid(name, value)
    return float(number)


def checked_tolerance(name: str, value: Any) -> float | None:
    """A tolerance of at least zero, or None.

    Raises
    ------
    InputError
        Naming the argument and the value.
    """
    if value is None:
        return None
    number = _as_number(value)
    if number is None or not number >= 0:
        raise _errors.tolerance_invalid(name, value)
    return float(number)


def checked_flag(name: str, value: Any) -> bool:
    """A truth value; None is False, and numbers are what Python takes them for.

    Raises
    ------
    InputError
        Naming the argument and the value.
    """
    if value is None or isinstance(value, bool | np.bool_ | int):
        return bool(value)
    raise _errors.unknown_choice(name, value, (True, False))


def checked_choice(argument: str, value: Any, choices: Sequence[str]) -> str:
    """The value, if it is one of the choices."""
    if isinstance(value, str) and value in choices:
        return value
    raise _errors.unknown_choice(argument, value, choices)


def _whole_number(value: Any, least: int) -> int | None:
    """The value as a whole number of at least so much; None for anything else."""
    number = _as_number(value)
    if number is None or not least <= number < MAX_COUNT or number != int(number):
        return None
    return int(number)


def _as_number(value: Any) -> Any:
    """The value if it is a real number of Python or NumPy and no truth value; else None.

    None also for a Python integer beyond float64.
    """
    if type(value) is float:
        return value
    if not isinstance(value, int | Real) or value is True or value is False:
        return None
    number: Any = value
    return None if isinstance(number, int) and abs(number) > LARGEST else number
