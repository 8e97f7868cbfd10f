"""Arrays by their location on a command line: files are opened here, Zarr arrays by the fit."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_dask import _errors

# A file of several arrays, and the name of the array in it.
_NAMED = re.compile(r"(?P<path>.+\.(?P<kind>npz|csv|h5|hdf5|nc|nc4))(?:::(?P<name>.+))?")


def located(option: str, text: str) -> Any:
    """An array at a location.

    Parameters
    ----------
    option : str
        Option that gives the location, for messages.
    text : str
        Path of a .npy file, which is mapped into memory; ``file.npz::name``, ``file.csv::column``,
        ``file.h5::name`` or ``file.nc::name``; or path or URL of a Zarr array.

    Returns
    -------
    array, or str
        The text itself for a Zarr array, which the fit opens.

    Raises
    ------
    InputError
        If the file holds no such array.
    MissingLibraryError
        If HDF5 is to be read without h5py.
    OSError
        If the file cannot be opened.
    """
    match = _NAMED.fullmatch(text)
    if match is None and not text.endswith(".npy"):
        return text
    try:
        if match is None:
            return np.load(text, mmap_mode="r")
        path, name = match["path"], match["name"]
        if match["kind"] == "npz":
            return _of_npz(option, path, name)
        if match["kind"] == "csv":
            return _of_csv(option, path, name)
        return _of_hdf5(option, path, name)
    except _errors.InputError:  # a ValueError, too
        raise
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise _errors.file_not_understood(option, text, error) from error


def sigma_of(text: str | None) -> Any:
    """Standard deviations: a number, or an array at a location."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return located("--sigma", text)


def coordinates_of(texts: Sequence[str]) -> Any:
    """The coordinate of a model, or the tuple of its coordinates."""
    arrays = tuple(located("--x", text) for text in texts)
    return arrays[0] if len(arrays) == 1 else arrays


def _of_npz(option: str, path: str, name: str | None) -> Any:
    with np.load(path) as file:
        return file[_named(option, path, name, list(file.files))]


def _of_csv(option: str, path: str, name: str | None) -> Any:
    """A column of a table with names in its first line; empty cells are NaN."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        titles = [title.strip() for title in next(csv.reader(file), [])]
    columns = [titles.index(_named(option, path, name, titles))]
    table = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=columns, ndmin=1)
    return np.asarray(table, np.float64)


def _of_hdf5(option: str, path: str, name: str | None) -> Any:
    """A variable of HDF5 or netCDF 4, whose attributes the fit decodes."""
    try:
        import h5py
    except ImportError:
        raise _errors.file_needs_h5py(option, path) from None
    file = h5py.File(path, "r")  # stays open while the fit reads it
    names: list[str] = []
    file.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
    return file[_named(option, path, name and name.strip("/"), names)]


def _named(option: str, path: str, name: str | None, names: Sequence[str]) -> str:
    """The name of an array that the file has."""
    if name is None:
        raise _errors.file_needs_a_name(option, path, names)
    if name not in names:
        raise _errors.array_not_in_file(option, path, name, names)
    return name
