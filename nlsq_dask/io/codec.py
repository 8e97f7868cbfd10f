"""Records as JSON values that read back to the same bits.

Numbers are written in the shortest form that reads back to the same bits (Python's ``repr``).
Numbers that are not finite are written as text. A record is a dataclass; its JSON value is an
object with the names of its fields, and the types of its fields say how they are read back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

RecordT = TypeVar("RecordT")


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
    KeyError, TypeError, ValueError
        If a field is missing or unknown, or has no value of its type.
    """
    return kind(**fields_from_json(kind, saved))


def fields_from_json(kind: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a record; parameters and errors as for :func:`from_json`."""
    saved = {name: item for name, item in saved.items() if name not in getattr(kind, "RETIRED", ())}
    hints, required = _types(kind)
    wrong = (required - saved.keys()) | (saved.keys() - hints.keys())
    if wrong:
        raise KeyError(*sorted(wrong))
    return {name: _read(hints[name], item) for name, item in saved.items()}


def checksum(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(value: Any) -> str:
    """The text of a JSON value, with sorted names: equal values have equal texts."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


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
    if origin in (Union, UnionType):
        return None if value is None else _read(_but_none(inner), value)
    if origin is np.ndarray:
        return np.array(value, dtype=get_args(inner[1])[0])  # reads text such as "inf" as a number
    if origin is tuple:
        return tuple(_read(inner[0], item) for item in value)
    if origin is dict:
        return {name: _read(inner[1], item) for name, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    if hint is float or (isinstance(hint, type) and issubclass(hint, IntEnum)):
        return hint(value)
    return value


def _without_alias(hint: Any) -> Any:
    """The type that an alias with parameters stands for: NumPy 2.5 defines NDArray as an alias."""
    stands_for = getattr(get_origin(hint), "__value__", None)
    return hint if stands_for is None else stands_for[get_args(hint)]


def _but_none(hints: tuple[Any, ...]) -> Any:
    (hint,) = (hint for hint in hints if hint is not NoneType)
    return hint
