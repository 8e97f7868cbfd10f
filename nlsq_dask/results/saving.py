"""Results in files: JSON that reads back to the same bits, and says when it does not.

A file is one JSON object: the name and version of the format, a checksum, and the fields of the
result as :mod:`nlsq_dask.io.codec` writes them. Its size follows from the number of parameters,
evaluations and starts; the number of rows does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.io.codec import checksum, dumps, fields_from_json, fields_to_json
from nlsq_dask.io.files import write_atomically
from nlsq_dask.results.earlier import judged_today
from nlsq_dask.results.record import FitRecord

FORMAT = "nlsq_dask result"
VERSION = 1

# The name of the format is within so many bytes of the beginning, so that a large file of something
# else is refused before it is read.
HEAD_BYTES = 256


def to_fields(record: FitRecord) -> dict[str, Any]:
    """The fields of a result in plain JSON types.

    Returns
    -------
    dict
        By field name. Numbers that are not finite are the text "inf", "-inf" or "nan"; the status
        is its number.
    """
    return fields_to_json(record, FitRecord)


def write(record: FitRecord, path: Path) -> None:
    """Write a result to a file, which is replaced if there is one.

    Raises
    ------
    OSError
        If the file cannot be written; one that was there is as it was.
    """
    plain = to_fields(record)
    envelope = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": checksum(dumps(plain)),
        "result": plain,
    }
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
        intact = envelope["sha256"] == checksum(dumps(saved))
        values = _values(saved) if intact and version <= VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _errors.result_file_damaged(path, error) from error
    if version > VERSION:
        raise _errors.result_file_newer(path, version, VERSION)
    if values is None:
        raise _errors.result_file_damaged(path, _errors.CHECKSUM_MISMATCH)
    return values


def _values(saved: Mapping[str, Any]) -> dict[str, Any]:
    values = fields_from_json(FitRecord, saved)
    return values if "scipy_status" in saved else judged_today(values)
