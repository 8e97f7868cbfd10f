"""What a user passed is no array of real numbers: which error says what to pass instead."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.io.libraries import is_instance


def checked_kind(value: Any, name: str) -> Any:
    """Return a value that may be an array.

    Some objects would become an array, but another than their user means: a Zarr group is an empty
    one, and a table of Dask is read at once.

    Raises
    ------
    InputTypeError
        If the value is of a class that is known to be no array.
    """
    if _errors.has_remedy(value):
        raise _errors.no_array_kind(name, value, _first_name(value))
    return value


def to_numpy(value: Any, name: str) -> NDArray[Any]:
    """Convert to a NumPy array of any dtype, or a masked array.

    Raises
    ------
    InputTypeError
        If the value is no array.
    InputError
        If it is a list of lists of several lengths, or another array that NumPy does not convert.
    """
    if hasattr(value, "unmasked") and hasattr(value, "mask"):  # Masked of astropy
        return np.ma.MaskedArray(np.asarray(value.unmasked), np.asarray(value.mask))
    if hasattr(type(value), "magnitude"):  # pint: a mask, or the data of an array of xarray
        raise _errors.unit_not_expected(name)
    try:
        array = np.asanyarray(value)
        if array.dtype.kind == "O" and is_instance(value, "pandas", "DataFrame") and array.size:
            # The columns of pandas' nullable types become arrays of numbers one by one.
            array = np.stack([np.asarray(column) for _, column in value.items()], axis=1)
    except ValueError as error:  # ragged lists
        sizes = _sizes(value)
        raise _errors.ragged(name, sizes) if sizes else _errors.not_an_array(name, error) from error
    except (TypeError, RuntimeError, NotImplementedError) as error:  # arrays of other libraries
        raise _errors.no_array_kind(name, value) from error
    if array.dtype.kind == "O" and array.ndim == 0:
        raise _errors.no_array_kind(name, value)
    return array if isinstance(array, np.ma.MaskedArray) else np.asarray(array)


def not_real(array: Any, name: str) -> _errors.InputTypeError:
    """The error of an array that holds no real numbers."""
    if array.dtype.kind != "O" or not isinstance(array, np.ndarray) or not array.size:
        return _errors.not_real(name, array.dtype)
    places = itertools.product(*map(range, array.shape))
    wrong = (at for at, value in zip(places, array.flat, strict=True) if not _is_number(value))
    index = next(wrong, (0,) * array.ndim)
    return _errors.object_values(name, index, array[index])


def _is_number(value: Any) -> bool:
    """Whether a Python object is a real number: an int, a float, a Decimal or a Fraction."""
    return isinstance(value, int | float) or hasattr(value, "as_integer_ratio")


def _sizes(value: Any) -> list[int]:
    """Two lengths of the rows of a list; none if the rows are equally long."""
    if not isinstance(value, list | tuple):
        return []
    sizes = list(dict.fromkeys(len(row) for row in value if hasattr(row, "__len__")))
    return sizes[:2] if len(sizes) > 1 else []


def _first_name(value: Any) -> str:
    """Name of the first array in a Dataset or a group; empty for other values."""
    package, kind = _errors.class_key(type(value))
    if package == "xarray":
        return str(next(iter(value.data_vars), ""))
    return str(next(iter(value.array_keys()), "")) if (package, kind) == ("zarr", "Group") else ""
