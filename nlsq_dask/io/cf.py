"""Packed values and missing values, as attributes of a stored array declare them.

The attributes are those of the CF conventions (https://cfconventions.org, version 1.11). Section
8.1 packs numbers as integers: ``value = stored * scale_factor + add_offset``. By section 2.5.1 a
stored value is missing if it equals ``_FillValue`` or a ``missing_value``, or if it is outside of
``valid_range``, or of ``valid_min`` to ``valid_max``. ``_Unsigned`` is the older convention of
netCDF, whose classic format has no unsigned integers ("Best practices" of the NetCDF Users' Guide).

Missing values become NaN. The dtype of the values, and the numbers themselves, are those that
``xarray.open_zarr`` gives. xarray ignores the valid range.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors

# Attributes that change what a stored number means. xarray removes the first five from `attrs`
# when it decodes.
PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
MISSING_ATTRIBUTES = ("_FillValue", "missing_value")
VALID = ("valid_range", "valid_min", "valid_max")

# How JSON of Zarr writes numbers that are not finite.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# Number of an attribute; its type counts: an integer is exact.
Number = int | float


@dataclass(frozen=True, slots=True)
class Decoding:
    """How stored numbers become values.

    Attributes
    ----------
    stored : str
        Dtype of the stored numbers, as NumPy writes it.
    integers : str
        Dtype as which the bytes are read; another than `stored` for ``_Unsigned``.
    scale, offset : float or None
        ``value = stored * scale + offset``.
    missing : tuple of (str, number)
        Numbers that mean NaN, in the dtype `integers`, and the attribute that names each.
    valid : tuple of (number or None, number or None)
        Smallest and largest valid number.
    valid_unpacked : bool
        Whether `valid` is in the unit of the values, and not of the stored numbers.
    """

    stored: str
    integers: str
    scale: float | None = None
    offset: float | None = None
    missing: tuple[tuple[str, Number], ...] = ()
    valid: tuple[Number | None, Number | None] = (None, None)
    valid_unpacked: bool = False

    @classmethod
    def of(cls, attributes: Mapping[str, Any], dtype: np.dtype[Any], name: str) -> Decoding | None:
        """What the attributes of an array declare; None if its numbers are the values.

        Parameters
        ----------
        attributes : mapping of str to object
        dtype : dtype
            Of the stored numbers.
        name : str
            Name of the array in messages.

        Raises
        ------
        InputError
            If an attribute does not hold the numbers that it should.
        """
        found = {key: attributes[key] for key in (*PACKING, *VALID) if key in attributes}
        if dtype.kind not in "iuf" or not found:
            return None
        given = _Attributes(found, name)
        integers = _read_as(dtype, found.get("_Unsigned"))
        scale, offset = given.number("scale_factor"), given.number("add_offset")
        valid, are_floats = given.valid_range()
        # Unpacked limits have the type of scale_factor (NetCDF Users' Guide, "Attribute
        # Conventions", on valid_range); those of stored integers are integers.
        unpacked = dtype.kind in "iu" and are_floats and not (scale is offset is None)
        if not unpacked:
            low, high = (_wrapped(limit, dtype, integers) for limit in valid)
            valid = (low, high)
        missing = []
        for key in MISSING_ATTRIBUTES:
            for number in given.numbers(key):
                held = held_in(_wrapped(number, dtype, integers), integers)
                if held is not None:
                    missing.append((key, held))
        decoding = cls(
            dtype.str,
            integers.str,
            None if scale is None else float(scale),
            None if offset is None else float(offset),
            tuple(missing),
            valid,
            unpacked,
        )
        return None if decoding == cls(dtype.str, dtype.str) else decoding

    @property
    def makes_nan(self) -> bool:
        """Whether some stored numbers become NaN."""
        return bool(self.missing) or self.valid != (None, None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values, which is that of xarray.

        Packed numbers become float64: attributes of Zarr are JSON, whose numbers are float64. Where
        NaN alone makes floats of integers, those of up to 16 bits become float32.
        """
        integers = np.dtype(self.integers)
        if not (self.scale is self.offset is None):
            return np.dtype(np.float64)
        if integers.kind == "f" or not self.makes_nan:
            return integers.newbyteorder("=")
        return np.dtype(np.float32 if integers.itemsize <= 2 else np.float64)

    def __call__(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Values of stored numbers, of the same shape. The stored numbers stay as they are."""
        numbers = np.asarray(stored)
        if self.integers != self.stored:
            numbers = numbers.astype(self.integers)  # wraps, as C does
        values = numbers.astype(self.dtype)
        if self.scale is not None:
            values *= self.scale
        if self.offset is not None:
            values += self.offset
        for flags in self._missing(numbers, values):
            np.copyto(values, np.nan, where=flags)
        return values

    def _missing(self, numbers: NDArray[Any], values: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
        """Flags of the numbers that mean NaN, one attribute after the other."""
        for _, number in self.missing:
            yield numbers == number
        low, high = self.valid
        compared = values if self.valid_unpacked else numbers
        if low is not None:
            yield compared < low
        if high is not None:
            yield compared > high

    def with_fill_value(self, number: Number) -> Decoding:
        """The decoding that also makes NaN of the stored number that `fill_value` names."""
        held = held_in(_wrapped(number, np.dtype(self.stored), np.dtype(self.integers)), None)
        assert held is not None
        return replace(self, missing=(*self.missing, ("fill_value", held)))

    @property
    def nan_text(self) -> str:
        """The attributes that make NaN, with their values; empty if there are none."""
        texts = [f"{key} = {number:.10g}" for key, number in dict.fromkeys(self.missing)]
        low, high = self.valid
        if low is not None or high is not None:
            ends = ("" if end is None else f"{end:.10g}" for end in (low, high))
            texts.append("valid range = [{}, {}]".format(*ends))
        return ", ".join(texts)

    def __str__(self) -> str:
        """The attributes that are followed, with their values."""
        texts = [] if self.integers == self.stored else [f"read as {np.dtype(self.integers)}"]
        packing = (("scale_factor", self.scale), ("add_offset", self.offset))
        texts += [f"{key} = {number:.10g}" for key, number in packing if number is not None]
        return f"{np.dtype(self.stored)}, " + ", ".join(filter(None, [*texts, self.nan_text]))


def decoded(stored: Any, decoding: Decoding | None) -> Any:
    """A Dask array of the values of stored numbers. The task that reads a chunk also decodes it."""
    if decoding is None:
        return stored
    import dask.array as da

    axes, meta = tuple(range(stored.ndim)), np.empty((0,) * stored.ndim, decoding.dtype)
    return da.blockwise(
        decoding, axes, stored, axes, dtype=decoding.dtype, meta=meta, token="nlsq-decoded"
    )


def declares_packing(attributes: Mapping[str, Any], dtype: np.dtype[Any], name: str) -> str:
    """The attributes that say that numbers are stored, and not values; empty if there are none.

    NaN as ``_FillValue`` of floats changes nothing, and neither does the valid range: xarray leaves
    it where it is when it decodes.
    """
    packing = {key: attributes[key] for key in PACKING if key in attributes}
    decoding = Decoding.of(packing, dtype, name)
    return "" if decoding is None else str(decoding)


def held_in(number: Number | None, dtype: np.dtype[Any] | None) -> Number | None:
    """The number as a dtype holds it; None if no value of the dtype equals the number."""
    if number is None or math.isnan(number):
        return None
    if dtype is None:
        return number
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(number))
    limits = np.iinfo(dtype)
    if math.isinf(number) or int(number) != number or not limits.min <= number <= limits.max:
        return None
    return int(number)


def _read_as(dtype: np.dtype[Any], unsigned: Any) -> np.dtype[Any]:
    """The dtype as which integers are read, by ``_Unsigned``."""
    text = unsigned.decode() if isinstance(unsigned, bytes) else str(unsigned)
    wanted = {"true": "u", "false": "i"}.get(text.lower())
    if wanted is None or dtype.kind == "f":
        return dtype
    return np.dtype(dtype.str.replace(dtype.kind, wanted))


def _wrapped(
    number: Number | None, stored: np.dtype[Any], integers: np.dtype[Any]
) -> Number | None:
    """A number of the stored dtype as the dtype `integers` reads it: -1 as 255, for example."""
    if number is None or stored == integers or math.isinf(number) or int(number) != number:
        return number
    held, limits, period = int(number), np.iinfo(integers), 1 << 8 * stored.itemsize
    if limits.min <= held <= limits.max or not -period // 2 <= held < period:
        return held
    return held + period if held < limits.min else held - period


@dataclass(frozen=True, slots=True)
class _Attributes:
    """Attributes as numbers."""

    found: Mapping[str, Any]
    name: str

    def number(self, key: str) -> Number | None:
        numbers = self.numbers(key)
        if len(numbers) > 1:
            raise _errors.attribute_not_a_number(self.name, key, self.found[key])
        return numbers[0] if numbers else None

    def numbers(self, key: str) -> list[Number]:
        value = self.found.get(key)
        if value is None:
            return []
        listed = value if isinstance(value, list | tuple | np.ndarray) else [value]
        return [self._one(key, item) for item in listed]

    def valid_range(self) -> tuple[tuple[Number | None, Number | None], bool]:
        """Smallest and largest valid number, and whether one of them was written as a float."""
        key = "valid_range"
        both = self.numbers(key)
        if len(both) not in (0, 2):
            raise _errors.attribute_not_a_number(self.name, key, self.found[key])
        low, high = both or (self.number("valid_min"), self.number("valid_max"))
        limits = [
            None if limit is None or math.isnan(limit) or math.isinf(limit) else limit
            for limit in (low, high)
        ]
        return (limits[0], limits[1]), any(isinstance(limit, float) for limit in limits)

    def _one(self, key: str, value: Any) -> Number:
        """A number. xarray writes ``_FillValue`` of floats in Zarr 3 as base64 of a float64."""
        if isinstance(value, bool | np.bool_):
            raise _errors.attribute_not_a_number(self.name, key, value)
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(value)
        number = _NOT_FINITE.get(value) if isinstance(value, str) else None
        if number is None and isinstance(value, str) and key == "_FillValue":
            number = _from_base64(value)
        if number is None:
            raise _errors.attribute_not_a_number(self.name, key, value)
        return number


def _from_base64(text: str) -> float | None:
    try:
        (number,) = struct.unpack("<d", base64.b64decode(text, validate=True))
    except (binascii.Error, struct.error, ValueError):
        return None
    return float(number)
