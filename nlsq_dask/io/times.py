"""Times as numbers: from dates and durations to float64, at the fit and at predictions.

Dates (``datetime64``, ``datetime``, the times of pandas and cftime) become the time since the first
date, in seconds or another unit. Float64 holds such differences to a nanosecond for 104 days;
seconds since 1970 it holds to 240 ns. Durations (``timedelta64``) have a zero of their own, and
keep it: a model of a lag would have another meaning from the first lag on. A missing time is NaN.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.io.lazy_arrays import data_of_variable
from nlsq_dask.io.libraries import is_dask, is_instance, is_xarray

Array = Any
FloatArray = NDArray[np.float64]

# Nanoseconds of the units of time, by the names that a user may pass.
UNITS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "D": 86_400 * 10**9,
    "W": 7 * 86_400 * 10**9,
}

# Kinds of dtypes that may hold times: datetime64, timedelta64, and objects.
KINDS = "MmO"

# Units of datetime64 without a fixed length: years and months.
MONTHS = ("Y", "M")

# Unit of timedelta64 that NumPy gives to integers of which nobody says what they count.
NO_UNIT = "generic"

# Calendars of cftime whose dates, after 1582, are those of datetime64.
COMMON_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """How the times of a coordinate became numbers.

    Attributes
    ----------
    unit : str
        Unit of the numbers.
    origin : str or None
        Date of the number 0, in ISO format and UTC; None for durations.
    calendar : str or None
        Calendar of cftime to which the origin belongs; None for dates of ``datetime64``.
    """

    unit: str
    origin: str | None = None
    calendar: str | None = None

    def __str__(self) -> str:
        if self.origin is None:
            return self.unit
        calendar = "" if self.calendar is None else f" ({self.calendar} calendar)"
        return f"{self.unit} since {self.origin}{calendar}"

    def numbers(self, times: Array, name: str) -> Array:
        """Times as numbers of this axis.

        Parameters
        ----------
        times : numpy or dask array of times
        name : str
            Name of the array in messages.

        Returns
        -------
        numpy or dask array, float64

        Raises
        ------
        InputTypeError
            If dates are given for durations, durations for dates, or dates of another calendar.
        """
        if is_dask(times):
            import dask.array as da

            meta = np.empty((0,) * times.ndim)
            if isinstance(times._meta, np.ma.MaskedArray):
                meta = np.ma.masked_array(meta)
            return da.map_blocks(self._elapsed, times, name, dtype=np.float64, meta=meta)
        return self._elapsed(times, name)

    def _elapsed(self, times: Array, name: str) -> Array:
        mask, plain = np.ma.getmask(times), _plain(np.ma.getdata(times))
        is_date = self.origin is not None
        common = self.calendar is None or self.calendar in COMMON_CALENDARS
        numbers: FloatArray
        if plain.dtype.kind == "m" and not is_date:
            numbers = _in_unit(plain, self.unit)
        elif plain.dtype.kind == "M" and is_date and common:
            numbers = _in_unit(plain - np.datetime64(self.origin), self.unit)
        elif plain.dtype.kind == "O" and _missing(plain).all():
            numbers = np.full(plain.shape, np.nan)
        elif plain.dtype.kind == "O" and self.calendar is not None:
            numbers = self._elapsed_in_calendar(plain, name)
        else:
            raise _errors.times_of_another_kind(name, str(self), plain.dtype)
        return numbers if mask is np.ma.nomask else np.ma.masked_array(numbers, mask)

    def _elapsed_in_calendar(self, dates: NDArray[Any], name: str) -> FloatArray:
        """Elapsed time of objects that may be dates of cftime."""
        import cftime  # an optional library, which made the dates

        fields = [int(part) for part in re.split(r"[-T:.]", str(self.origin))]
        origin = cftime.datetime(*fields, calendar=self.calendar)

        def elapsed(date: Any) -> float:
            return np.nan if _is_missing(date) else float((date - origin).total_seconds())

        try:
            seconds = np.array([elapsed(date) for date in dates.flat], np.float64)
        except (TypeError, ValueError, AttributeError) as error:  # of another calendar, or no dates
            raise _errors.times_of_another_kind(name, str(self), dates.dtype) from error
        return seconds.reshape(dates.shape) * (1e9 / UNITS[self.unit])


def with_time_axis(array: Array, name: str, unit: str) -> tuple[Array, TimeAxis | None]:
    """Numbers of an array that may hold times, and how they were made.

    Parameters
    ----------
    array : numpy or dask array
        Of a Dask array of dates, the first chunk is computed, to find the origin.
    name : str
        Name of the array in messages.
    unit : str
        Unit of the numbers, of those in ``UNITS``.

    Returns
    -------
    array : numpy or dask array
        Numbers as float64, if the array holds times; else the array as it is.
    axis : TimeAxis or None
        None if the array does not hold times.

    Raises
    ------
    InputError
        If the unit is unknown.
    InputTypeError
        If times are mixed with something else, or are durations in months or without a unit.
    """
    if not isinstance(unit, str) or unit not in UNITS:
        raise _errors.unknown_choice("time_unit", unit, tuple(UNITS))
    if array.dtype.kind not in KINDS:
        return array, None
    if array.dtype.kind == "m":
        _check_durations(name, array.dtype)
    first: Any = None if array.dtype.kind == "m" else _first_time(array)
    axis = None
    if array.dtype.kind == "m" or isinstance(first, np.timedelta64):
        axis = TimeAxis(unit)
    elif isinstance(first, np.datetime64):
        axis = TimeAxis(unit, _short(first))
    elif is_instance(first, "cftime", "datetime"):
        axis = TimeAxis(unit, first.isoformat(), str(first.calendar))
    return (array, None) if axis is None else (axis.numbers(array, name), axis)


def _check_durations(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse durations whose unit has no fixed length, or that have no unit."""
    unit = np.datetime_data(dtype)[0]
    if unit in MONTHS:
        raise _errors.durations_of_months(name, dtype)
    if unit == NO_UNIT:
        raise _errors.durations_without_unit(name)


def as_numbers(x: Any, axes: Sequence[TimeAxis | None]) -> Any:
    """Coordinates for a prediction, with times as the numbers of the fit.

    Parameters
    ----------
    x : array_like or tuple of array_like
        Coordinates in the form that the model takes.
    axes : sequence of (TimeAxis or None)
        One for each coordinate of the fit.

    Returns
    -------
    object
        Arrays of xarray keep their labels. Arrays without times stay as they are.
    """
    if not any(axes):
        return x
    if isinstance(x, tuple | list) and len(x) == len(axes) > 1:
        pairs = enumerate(zip(x, axes, strict=True))
        return tuple(_as_numbers(item, axis, f"x[{i}]") for i, (item, axis) in pairs)
    return _as_numbers(x, axes[0], "x")


def _as_numbers(value: Any, axis: TimeAxis | None, name: str) -> Any:
    if axis is None:
        return value
    if is_xarray(value):
        if value.dtype.kind not in KINDS:
            return value
        return value.copy(data=axis.numbers(data_of_variable(value.variable), name))
    array = value if is_dask(value) else np.asanyarray(value)
    return axis.numbers(array, name) if array.dtype.kind in KINDS else value


def holds_times(value: Any) -> bool:
    """Whether an array, a list or a column of a table in memory holds times."""
    if isinstance(value, list | tuple):
        return bool(len(value)) and isinstance(value[0], _TIMES)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind != "O":
        return kind in ("M", "m")
    return _plain(np.asarray(value)).dtype.kind in "Mm"


_OBJECTS = (dt.date, dt.timedelta)  # the times of pandas are datetimes, too
_TIMES = (*_OBJECTS, np.datetime64, np.timedelta64)


def _first_time(array: Array) -> Any:
    """The first time that is not missing: a NumPy scalar, a date of cftime, or None."""
    if is_dask(array):
        blocks = (array.blocks[index].compute() for index in np.ndindex(array.numblocks))
        return next((t for t in map(_first_time, blocks) if t is not None), None)
    plain = _plain(np.ma.getdata(array))
    known = ~np.ma.getmaskarray(array)
    known &= ~(_missing(plain) if plain.dtype.kind == "O" else np.isnat(plain))
    return plain.flat[int(np.argmax(known))] if known.any() else None


def _plain(times: NDArray[Any]) -> NDArray[Any]:
    """Times as ``datetime64`` or ``timedelta64``, if their values are times of Python or pandas."""
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] in MONTHS:
        return times.astype("M8[D]")  # months differ in length, so that they have no difference
    if times.dtype.kind != "O":
        return times
    first = next((t for t in times.flat if not _is_missing(t)), None)
    if not isinstance(first, _OBJECTS):
        return times
    kind: Any = np.datetime64 if isinstance(first, dt.date) else np.timedelta64
    try:
        values = [kind("NaT") if _is_missing(t) else _scalar(t, kind) for t in times.flat]
    except (TypeError, ValueError):  # times and something else
        return times
    return np.array(values).reshape(times.shape)


def _scalar(time: Any, kind: Any) -> Any:
    """A time of Python or pandas as a NumPy scalar; a time of a zone is in UTC."""
    for convert in ("to_datetime64", "to_timedelta64"):  # of pandas, to the nanosecond
        if hasattr(time, convert):
            return getattr(time, convert)()
    if getattr(time, "tzinfo", None) is not None:
        time = time.astimezone(dt.UTC).replace(tzinfo=None)
    return kind(time)


def _in_unit(durations: NDArray[Any], unit: str) -> FloatArray:
    """Durations of ``timedelta64`` as numbers. NumPy's own division would overflow at 292 years."""
    own, count = np.datetime_data(durations.dtype)
    own = "min" if own == "m" else own
    if own not in UNITS:  # finer than nanoseconds
        return np.asarray(durations / np.timedelta64(UNITS[unit], "ns"), np.float64)
    numbers = durations.astype(np.int64).astype(np.float64)
    size = UNITS[own] * count
    # A multiplication or division by a whole number has one rounding.
    if size % UNITS[unit] == 0:
        numbers = numbers * (size // UNITS[unit])
    else:
        numbers = numbers / (UNITS[unit] / size)
    return np.where(np.isnat(durations), np.nan, numbers)


def _missing(times: NDArray[Any]) -> NDArray[np.bool_]:
    return np.array([_is_missing(t) for t in times.flat], np.bool_).reshape(times.shape)


def _is_missing(time: Any) -> bool:
    """Whether an object is None, NaN or NaT, which differs from itself, or NA of pandas."""
    try:
        return time is None or bool(time != time)
    except (TypeError, ValueError):  # NA of pandas is neither equal nor unequal, as are arrays
        return True


def _short(date: np.datetime64) -> str:
    """A date in ISO format, without digits that are all zero."""
    coarse = (date.astype(f"M8[{unit}]") for unit in ("s", "ms", "us"))
    return str(next((d for d in coarse if d == date), date))
