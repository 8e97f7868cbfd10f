"""Results in files: JSON that reads back to the same bits, with a checksum.

A file is one JSON object: the name and version of the format, a checksum, and the fields of the
result as :mod:`nlsq_dask.io.codec` writes them. Its size follows from the number of parameters,
evaluations and starts; the number of rows does not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.codec import check_shape, checksum, dumps, fields_from_json, fields_to_json, loads
from nlsq_dask.io.files import opened, read_rest, write_atomically
from nlsq_dask.io.folders import checked_place, folder_and_name
from nlsq_dask.io.locations import shown_url
from nlsq_dask.results.earlier import judged_today
from nlsq_dask.results.record import FitRecord

FORMAT = "nlsq_dask result"
VERSION = 1

# The name of the format is in the first bytes of a file. So a large file of something else is
# refused before it is read.
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


def write(record: FitRecord, place: str | os.PathLike[str]) -> None:
    """Write a result to a file. An existing file is replaced.

    Raises
    ------
    InputError, InputTypeError
        If the place is unusable.
    OSError
        If the file cannot be written. An existing file then stays as it was.
    """
    plain = to_fields(record)
    envelope = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": checksum(dumps(plain)),
        "result": plain,
    }
    put(place, json.dumps(envelope, allow_nan=False).encode())


def put(place: str | os.PathLike[str], raw: bytes) -> None:
    """Write a file here or in a store. An existing file is replaced.

    Raises
    ------
    InputError, InputTypeError
        If the place is unusable.
    OSError
        If the file cannot be written. An existing file then stays as it was.
    """
    path = checked_place(place, "path", _errors.result_not_a_path)
    if isinstance(path, Path):
        write_atomically(path, raw)
    else:
        folder, name = folder_and_name(path)
        folder.write(name, raw)


def read(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a result from a file.

    Raises
    ------
    InputError
        If the file is of something else, damaged, or in a later version of the format; or if the
        place is unusable.
    OSError
        If the file cannot be read.
    """
    path = checked_place(place, "path", _errors.result_not_a_path)
    shown = str(path) if isinstance(path, Path) else shown_url(path)
    try:
        raw = _raw(path)
        if FORMAT.encode() not in raw[:HEAD_BYTES]:
            raise _errors.not_a_result_file(shown)
        return _decode(shown, raw)
    except _errors.InputError:  # a ValueError, too
        raise
    except (ValueError, KeyError, ArithmeticError) as error:
        raise _errors.result_file_damaged(shown, error) from error


def _raw(path: str | Path) -> bytes:
    """The bytes of a file; of a file of something else only the first."""
    if not isinstance(path, Path):
        folder, name = folder_and_name(path)
        return folder.read(name)
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
        return head + read_rest(file) if FORMAT.encode() in head else head


def _decode(path: str, raw: bytes) -> dict[str, Any]:
    """Read the fields of a result; KeyError, ValueError or ArithmeticError if it is damaged."""
    envelope = loads(raw)
    match envelope:
        case {"format": "nlsq_dask result", "version": int(version)} if version > VERSION:
            raise _errors.result_file_newer(path, version, VERSION)
        case {"format": "nlsq_dask result", "version": int(), "sha256": digest, "result": saved}:
            if digest != checksum(dumps(saved)):
                raise ValueError(_errors.CHECKSUM_MISMATCH)
        case _:
            raise _errors.value_of_another_kind(envelope, "a format, a checksum and a result")
    values = fields_from_json(FitRecord, saved)
    _check_shapes(values)
    return values if "scipy_status" in saved else judged_today(values)


def _check_shapes(values: Mapping[str, Any]) -> None:
    """Refuse arrays that do not fit the number of parameters."""
    size = len(values["names"])
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("popt", "grad", "active_mask"), (size,)),
        "pcov": (size, size),
        "bounds": (size, 2),
    }
    for name, expected in shapes.items():
        array = values.get(name)
        if array is not None:
            check_shape(name, array, expected)
    factor = values["r_factor"]  # of the free parameters
    check_shape("r_factor", factor, (min(factor.shape[0] if factor.ndim else 1, size),) * 2)
    if (np.abs(values["active_mask"]) > 1).any():
        raise _errors.value_out_of_range("active_mask")
    for start in values["starts"]:
        check_shape("p0", start.p0, (size,))
        if start.params is not None:
            check_shape("params", start.params, (size,))
    if values["pilot"] is not None:
        params = values["pilot"].params
        check_shape("params", params, (min(params.size, size),))
