"""Records as JSON values that read back to the same bits.

Numbers are written in the shortest form that reads back to the same bits (Python's ``repr``).
Numbers that are not finite are written as text. A record is a dataclass; its JSON value is an
object with the names of its fields, and the types of its fields say how they are read back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors

RecordT = TypeVar("RecordT")

# Dimensions of the largest arrays of records: matrices.
MOST_DIMENSIONS = 2

# Largest count: rows are counted in 64 bits.
MOST_COUNTED = 2**63 - 1

# Levels of lists and objects in a file. The files of this package have at most ten, so that a file
# with more is not theirs, and what reads values level by level stays far from Python's limit.
MOST_LEVELS = 32

# Texts of the numbers that are not finite.
_NOT_FINITE = ("inf", "-inf", "nan")


def to_json(value: Any) -> Any:
    """Write a record, an array, a mapping, a sequence or a number as JSON values."""
    if is_dataclass(value):
        return fields_to_json(value, type(value))
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer | IntEnum):
        return int(value)
    return value


def fields_to_json(record: Any, kind: Any) -> dict[str, Any]:
    """Write the fields of a record that its base class, `kind`, has."""
    return {f.name: to_json(getattr(record, f.name)) for f in fields(kind)}


def from_json(kind: type[RecordT], saved: Mapping[str, Any]) -> RecordT:
    """Read a record that :func:`to_json` wrote.

    Parameters
    ----------
    kind : type
        A dataclass. Its class attribute ``RETIRED`` names fields of earlier releases, which are
        left out.
    saved : mapping
        A field that has a default may be missing.

    Raises
    ------
    KeyError, ValueError
        If a field is missing or unknown, or has no value of its type.
    """
    return kind(**fields_from_json(kind, saved))


def fields_from_json(kind: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a record; parameters and errors as for :func:`from_json`."""
    retired = getattr(kind, "RETIRED", ())
    saved = {name: item for name, item in _of_object(saved).items() if name not in retired}
    hints, required = _types(kind)
    wrong = (required - saved.keys()) | (saved.keys() - hints.keys())
    if wrong:
        raise _errors.fields_differ(sorted(wrong))
    return {name: _read(hints[name], item) for name, item in saved.items()}


def floats_from_json(value: Any) -> NDArray[np.float64]:
    """Read an array of at most two dimensions.

    Raises
    ------
    ValueError
        If the value is something else.
    """
    return _array(np.float64, value)


def check_shape(name: str, array: NDArray[Any], expected: tuple[int, ...]) -> None:
    """Refuse an array of another shape by a ValueError; of no numbers, JSON keeps no shape."""
    if array.shape != expected and (array.size or math.prod(expected)):
        raise _errors.shape_differs(name, array.shape, expected)


def checksum(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(value: Any) -> str:
    """The text of a JSON value, with sorted names: equal values have equal texts."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


def loads(raw: bytes | str) -> Any:
    """Read a JSON text that :func:`dumps` may have written.

    Raises
    ------
    ValueError
        If it is no JSON text in UTF-8, has a name twice or a number beyond float64 or not finite,
        or is nested too deeply.
    """
    text = raw.decode() if isinstance(raw, bytes) else raw
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise _errors.nested_too_deeply() from None
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [item for parent in level for item in _inner(parent)]
        if not level:
            return value
    raise _errors.nested_too_deeply()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _errors.name_twice(name)
            seen.add(name)
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _errors.not_a_json_number(text)
    return number


def _inner(parent: Any) -> list[Any]:
    """The lists and objects among the values of a list or an object."""
    if not isinstance(parent, list | dict):
        return []
    values = parent.values() if isinstance(parent, dict) else parent
    return [item for item in values if isinstance(item, list | dict)]


@cache
def _types(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of the fields of a kind of records, and the names of those without a default."""
    hints = get_type_hints(kind)
    required = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
    return {f.name: hints[f.name] for f in fields(kind)}, frozenset(required)


def _read(hint: Any, value: Any) -> Any:
    """Read a value of a type."""
    hint = _without_alias(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if origin in (Union, UnionType):
        return None if value is None else _read(_but_none(inner), value)
    if origin is np.ndarray:
        return _array(get_args(inner[1])[0], value)
    if origin is tuple:
        return tuple(_read(inner[0], item) for item in _of_kind(value, (list, tuple), "a list"))
    if origin is dict:
        return {name: _read(inner[1], item) for name, item in _of_object(value).items()}
    if origin is Literal:
        if value not in inner:
            raise _errors.value_of_another_kind(value, f"one of {inner}")
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return hint(_count_or_code(value))
    return _PLAIN[hint](value) if hint in _PLAIN else value


def _array(dtype: Any, value: Any) -> NDArray[Any]:
    """Read the numbers of an array of at most two dimensions."""
    read = {np.float64: _number, np.int64: _count_or_code}[dtype]
    return np.array(_items(value, read, MOST_DIMENSIONS), dtype=dtype)  # refuses ragged lists


def _items(value: Any, read: Callable[[Any], Any], levels: int) -> Any:
    if levels and isinstance(value, list | tuple):
        return [_items(item, read, levels - 1) for item in value]
    return read(value)


def _number(value: Any) -> float:
    """Read a float; one that is not finite is a text."""
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and value in _NOT_FINITE):
        raise _errors.value_of_another_kind(value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise _errors.value_of_another_kind(value, "a number") from None


def _count_or_code(value: Any) -> int:
    """Read a whole number of 64 bits."""
    if isinstance(value, IntEnum) or (type(value) is int and abs(value) <= MOST_COUNTED):
        return int(value)
    raise _errors.value_of_another_kind(value, "a whole number")


def _count(value: Any) -> int:
    """Read a count; all whole numbers of records are counts."""
    if type(value) is int and 0 <= value <= MOST_COUNTED:
        return value
    raise _errors.value_of_another_kind(value, "a count")


def _text(value: Any) -> str:
    text: str = _of_kind(value, str, "a text")
    return text


def _flag(value: Any) -> bool:
    flag: bool = _of_kind(value, bool, "true or false")
    return flag


def _of_object(value: Any) -> Mapping[str, Any]:
    saved: Mapping[str, Any] = _of_kind(value, Mapping, "an object of names and values")
    return saved


def _of_kind(value: Any, kinds: Any, name: str) -> Any:
    if not isinstance(value, kinds):
        raise _errors.value_of_another_kind(value, name)
    return value


# How values of plain types are read.
_PLAIN: dict[Any, Callable[[Any], Any]] = {float: _number, int: _count, str: _text, bool: _flag}


def _without_alias(hint: Any) -> Any:
    """The type that an alias with parameters stands for: NumPy 2.5 defines NDArray as an alias."""
    stands_for = getattr(get_origin(hint), "__value__", None)
    return hint if stands_for is None else stands_for[get_args(hint)]


def _but_none(hints: tuple[Any, ...]) -> Any:
    (hint,) = (hint for hint in hints if hint is not NoneType)
    return hint
