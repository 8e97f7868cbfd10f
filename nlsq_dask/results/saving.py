"""Results in files: JSON that reads back to the same bits, and says when it does not.

A file is one JSON object: the name and version of the format, a checksum, and the fields of the
result. Numbers are written in the shortest form that reads back to the same bits (Python's
``repr``), those that are not finite as text. The size of a file is that of the p x p covariance,
the history and the starts, whatever the number of rows was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import FloatArray, Moments
from nlsq_dask.core.solver_state import IterationRecord
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.files import write_atomically
from nlsq_dask.results.record import FitRecord, PilotRecord, Start

FORMAT = "nlsq_dask result"
VERSION = 1

# The format's name stands this near to the beginning, so that a large file of something else is
# refused before it is read.
HEAD_BYTES = 256

_FIELDS = frozenset(f.name for f in fields(FitRecord))
# Fields that files of earlier releases lack have a default.
_REQUIRED = frozenset(f.name for f in fields(FitRecord) if f.default is MISSING)


def to_fields(record: FitRecord) -> dict[str, Any]:
    """The fields of a result in plain JSON types.

    Returns
    -------
    dict
        By field name; numbers that are not finite as the text "inf", "-inf" or "nan", the status as
        its number.
    """
    plain = {name: to_json(getattr(record, name)) for name in _FIELDS}
    plain["status"] = int(record.status)
    plain["scipy_status"] = None if record.scipy_status is None else int(record.scipy_status)
    plain["absolute_sigma"] = bool(record.absolute_sigma)
    plain["sandwich"] = bool(record.sandwich)
    plain["tolerances"] = _plain(record.tolerances)
    plain["moments"] = _plain(asdict(record.moments))
    plain["budget"] = _plain(asdict(record.budget))
    if record.pilot is not None:
        plain["pilot"] = _plain(record.pilot.to_dict())
    plain["starts"] = [_plain(start.to_dict()) for start in record.starts]
    plain["history"] = [_plain(asdict(entry)) for entry in record.history]
    return {f.name: plain[f.name] for f in fields(FitRecord)}


def from_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result, out of what :func:`to_fields` made.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a field is missing or unknown, or has no value of its kind.
    """
    wrong = (_REQUIRED - saved.keys()) | (saved.keys() - _FIELDS)
    if wrong:
        raise KeyError(*sorted(wrong))
    values = {name: _number(value) for name, value in saved.items() if name in _NUMBERS}
    values |= {name: _array(saved[name]) for name in ("popt", "pcov", "grad", "r_factor")}
    values |= {name: _array(saved[name]) for name in ("bounds",) if saved.get(name) is not None}
    return {
        **saved,
        **values,
        "names": tuple(saved["names"]),
        "fixed": tuple(saved["fixed"]),
        "active_mask": np.array(saved["active_mask"], np.int64),
        "status": Status(saved["status"]),
        "scipy_status": _status(saved.get("scipy_status")),
        "undetermined": tuple(saved.get("undetermined", ())),
        "tolerances": _numbers(saved["tolerances"]),
        "moments": Moments(**_numbers(saved["moments"])),
        "budget": MemoryBudget(**_numbers(saved["budget"])),
        "pilot": None if saved["pilot"] is None else PilotRecord.from_dict(saved["pilot"]),
        "starts": tuple(Start.from_dict(start) for start in saved["starts"]),
        "history": tuple(IterationRecord(**_numbers(entry)) for entry in saved["history"]),
    }


def write(record: FitRecord, path: Path) -> None:
    """Write a result to a file, which is replaced if there is one.

    Raises
    ------
    OSError
        If the file cannot be written; one that was there is as it was.
    """
    plain = to_fields(record)
    envelope = {"format": FORMAT, "version": VERSION, "sha256": _checksum(plain), "result": plain}
    write_atomically(path, json.dumps(envelope, allow_nan=False).encode())


def read(path: Path) -> dict[str, Any]:
    """Read the fields of a result from a file.

    Raises
    ------
    InputError
        If the file is of something else, damaged, or in a later version of the format.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if FORMAT.encode() not in head:
            raise _errors.not_a_result_file(path)
        raw = head + file.read()
    try:
        envelope = json.loads(raw)
        version = int(envelope["version"])
        saved = envelope["result"]
        intact = envelope["sha256"] == _checksum(saved)
        values = from_fields(saved) if intact and version <= VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _errors.result_file_damaged(path, error) from error
    if version > VERSION:
        raise _errors.result_file_newer(path, version, VERSION)
    if values is None:
        raise _errors.result_file_damaged(path, _errors.CHECKSUM_MISMATCH)
    return values


_NUMBERS = frozenset({"cost", "chi2", "optimality", "distance_to_optimum_sigma"})


def _status(number: int | None) -> Status | None:
    return None if number is None else Status(number)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_json(value) for name, value in values.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Any:
    """A number as it was; text stands for one that is not finite."""
    return float(value) if isinstance(value, str) else value


def _array(values: Any) -> FloatArray:
    return np.array(values, dtype=np.float64)  # text such as "inf" is read as a number


def _checksum(plain: Any) -> str:
    content = json.dumps(plain, allow_nan=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
