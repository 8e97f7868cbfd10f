"""Missing rows: the rule by which values leave rows out, in addition to masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors

NanPolicy = Literal["raise", "omit"]
NAN_POLICIES: tuple[NanPolicy, ...] = ("raise", "omit")


class Unlooked(Enum):
    """The policy of ``curve_fit(..., check_finite=False)``: do not search coordinates for NaN.

    It is an enum, so that no name that a user passes selects it: SciPy's ``curve_fit`` refuses a
    policy "propagate", too.
    """

    UNLOOKED = "unlooked"


UNLOOKED = Unlooked.UNLOOKED


@dataclass(frozen=True, slots=True)
class MissingRule:
    """The values by which a row is missing.

    Attributes
    ----------
    omit_nan : bool
        Whether NaN in y, a coordinate or sigma makes a row missing. Infinities never do.
    fill_value : number of y's dtype or None
        Value of y that makes a row missing. NaN means NaN in y.
    """

    omit_nan: bool = False
    fill_value: Any = None

    @property
    def active(self) -> bool:
        """Whether any value makes a row missing."""
        return self.omit_nan or self.fill_value is not None

    def flags(self, arrays: Sequence[NDArray[np.generic]]) -> Iterator[NDArray[np.bool_]]:
        """Flags of missing values, one array after the other.

        Parameters
        ----------
        arrays : sequence of ndarray
            Pieces of y, of the coordinates and of sigma. They broadcast to the piece of y.

        Yields
        ------
        ndarray of bool
            Flags in the shape of one of the arrays.
        """
        if self.fill_value is not None and not (self.omit_nan and np.isnan(self.fill_value)):
            y = arrays[0]
            yield np.isnan(y) if np.isnan(self.fill_value) else y == self.fill_value
        if self.omit_nan:
            yield from (np.isnan(a) for a in arrays if a.dtype.kind == "f")


NO_RULE = MissingRule()


def missing_rule(nan_policy: Any, fill_value: Any, dtype: np.dtype[Any]) -> MissingRule:
    """The rule of ``nan_policy`` and ``fill_value`` for observations of a dtype.

    Raises
    ------
    InputError
        If the policy is unknown, or the dtype cannot hold the fill value.
    InputTypeError
        If the fill value is not a real number.
    """
    policy = "raise" if nan_policy is None or nan_policy is UNLOOKED else nan_policy
    if not isinstance(policy, str) or policy not in NAN_POLICIES:
        raise _errors.unknown_choice("nan_policy", nan_policy, NAN_POLICIES)
    return MissingRule(policy == "omit", number_in(fill_value, dtype))


def number_in(value: Any, dtype: np.dtype[Any]) -> Any:
    """A number as a scalar of a dtype. Comparisons need the dtype: float32 holds no -999.9.

    Raises
    ------
    InputTypeError
        If the value is not a real number.
    InputError
        If the dtype does not hold the number.
    """
    if value is None:
        return None
    try:
        number = np.asarray(value)
    except (TypeError, ValueError) as error:  # ragged lists, and objects of other libraries
        raise _errors.fill_value_not_a_number(value) from error
    held: Any
    if number.ndim or number.dtype.kind not in "fiub":
        raise _errors.fill_value_not_a_number(value)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = number.astype(dtype)[()]
        fits = bool(np.isfinite(held)) or not np.isfinite(number)
    else:
        whole = math.isfinite(number) and int(number) == number
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        fits = bool(whole) and low <= int(number) <= high
        held = dtype.type(int(number) if fits else 0)
    if not fits:
        raise _errors.fill_value_does_not_fit(value, dtype)
    return held
