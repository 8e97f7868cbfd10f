"""Quantities: arrays and numbers with a unit, of astropy, pint and libraries like these.

A fit computes with bare numbers. Here the numbers are taken out of quantities, and the units are
kept as texts. Standard deviations are converted to the unit of the observations, and bounds to the
units of the starting values; what cannot be converted is refused.

The libraries are not imported. A quantity is known by what it has: a method ``to``, and ``unit`` as
in astropy, or ``units`` and ``magnitude`` as in pint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.frame import Label
from nlsq_dask.io.refusals import checked_kind
from nlsq_dask.io.sources import is_xarray

# What a conversion raises: astropy a ValueError or a TypeError, pint a TypeError, and an
# AttributeError for the name of an unknown unit.
NOT_CONVERTED = (ValueError, TypeError, AttributeError)

# Types of values that have no unit.
_NUMBERS = frozenset([int, float, np.float64])


@dataclass(frozen=True)
class BareData:
    """Data of a fit as numbers, and the units that they had.

    Attributes
    ----------
    x, y, sigma : object
        As the user passed them, with the numbers of the quantities.
    labels : mapping of str to Label
        Units of the quantities, by "y", "x" or "x[i]".
    """

    x: Any
    y: Any
    sigma: Any
    labels: Mapping[str, Label] = field(default_factory=dict)


def is_quantity(value: Any) -> bool:
    """Whether a value has a unit."""
    return _unit_of(value) is not None


def numbers_of(value: Any) -> Any:
    """The numbers of a quantity; other values as they are."""
    if not is_quantity(value):
        return value
    return value.magnitude if hasattr(type(value), "magnitude") else getattr(value, "value", value)


def bare_data(x: Any, y: Any, sigma: Any) -> BareData:
    """Take the numbers out of the data of a fit, with sigma in the unit of y.

    A sigma without a unit is in the unit of y.

    Raises
    ------
    InputError
        If sigma has a unit that does not convert to the unit of y.
    InputTypeError
        If a value is no array, or a list of quantities.
    """
    several = isinstance(x, tuple) and not all(np.isscalar(item) for item in x)
    coords = {f"x[{i}]": item for i, item in enumerate(x)} if several else {"x": x}
    named = {"y": y} | coords | ({} if sigma is None else {"sigma": sigma})
    for name, value in named.items():
        checked_kind(value, name)
        refuse_lists_of_quantities(value, name)
    labels = {
        name: Label(unit=str(_unit_of(value)))
        for name, value in named.items()
        if is_quantity(value) and name != "sigma"
    }
    bare = [numbers_of(item) for item in coords.values()]
    return BareData(
        tuple(bare) if several else bare[0], numbers_of(y), sigma_in_unit_of(y, sigma), labels
    )


@dataclass(frozen=True)
class BareParameters:
    """Starting values as numbers, and the units that they had.

    Attributes
    ----------
    p0 : object
        As the user passed it, with the numbers of the quantities.
    by_name : mapping of str to str
        Units of starting values that were given by name.
    in_order : sequence of str
        Units of starting values that were given in order, empty for a value without a unit.
    """

    p0: Any
    by_name: Mapping[str, str] = field(default_factory=dict)
    in_order: Sequence[str] = ()

    @classmethod
    def of(cls, p0: Any) -> BareParameters:
        """Take the numbers out of starting values."""
        if is_quantity(p0):
            numbers = numbers_of(p0)
            return cls(numbers, in_order=[str(_unit_of(p0))] * int(np.size(numbers)))
        if isinstance(p0, Mapping):
            units = {name: _text(value) for name, value in p0.items() if is_quantity(value)}
            return cls({name: numbers_of(value) for name, value in p0.items()}, units)
        if isinstance(p0, list | tuple) and _has_quantity(p0):
            return cls([numbers_of(value) for value in p0], in_order=[_text(v) for v in p0])
        return cls(p0)

    def units(self, names: Sequence[str]) -> dict[str, str]:
        """Units of the parameters that have one, by name."""
        in_order = zip(names, self.in_order, strict=False)
        return {name: unit for name, unit in (*in_order, *self.by_name.items()) if unit}


def bare_bounds(bounds: Any, units: Mapping[str, str], names: Sequence[str]) -> Any:
    """Bounds as numbers, in the units of the parameters.

    Parameters
    ----------
    bounds : object
        As the user passed it.
    units : mapping of str to str
        Units of the parameters that have one, by name.
    names : sequence of str
        The parameters, in the model's order.

    Raises
    ------
    InputError
        If a bound does not convert to the unit of its parameter, or the parameter has no unit.
    """
    if isinstance(bounds, Mapping):
        if not any(is_quantity(end) for pair in bounds.values() for end in _ends(pair)):
            return bounds
        return {
            name: tuple(_in_unit(end, units.get(name, ""), f"bounds[{name!r}]") for end in pair)
            if isinstance(pair, list | tuple)
            else pair
            for name, pair in bounds.items()
        }
    if not _has_quantity([end for side in _ends(bounds) for end in (side, *_ends(side))]):
        return bounds
    return tuple(_side_in_units(side, units, names) for side in bounds)


def bare_fixed(fixed: Any, units: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """Fixed values as numbers, and the units of the parameters with those of fixed values.

    A fixed value is converted to the unit of its starting value, if this has one.
    """
    if not isinstance(fixed, Mapping) or not any(map(is_quantity, fixed.values())):
        return fixed, dict(units)
    own = {name: _text(value) for name, value in fixed.items() if is_quantity(value)}
    all_units = own | dict(units)
    bare = {
        name: _in_unit(value, all_units.get(name, ""), f"fixed[{name!r}]")
        for name, value in fixed.items()
    }
    return bare, all_units


def bare_coordinates(x: Any, units: Mapping[str, str], *, several: bool) -> Any:
    """Coordinates of a prediction as numbers, in the units of the fit.

    Parameters
    ----------
    x : object
        As the user passed it.
    units : mapping of str to str
        Units of the coordinates of the fit that have one, by "x" or "x[i]".
    several : bool
        Whether the coordinates are a tuple.

    Raises
    ------
    InputError
        If a coordinate has another unit, and does not convert.
    """
    if several and isinstance(x, tuple | list):
        return tuple(
            _coordinate_in(item, units.get(f"x[{i}]", ""), f"x[{i}]") for i, item in enumerate(x)
        )
    return _coordinate_in(x, units.get("x", ""), "x")


def refuse_lists_of_quantities(value: Any, name: str) -> None:
    """Refuse a list in which each number has a unit of its own.

    Raises
    ------
    InputTypeError
        If the first item of a list is a quantity.
    """
    if isinstance(value, list) and len(value) and is_quantity(value[0]):
        raise _errors.list_of_quantities(name)


def _unit_of(value: Any) -> Any:
    """The unit of a quantity, as its library has it; None for other values."""
    kind = type(value)  # some objects have any attribute: Delayed of Dask, arrays of xarray
    if not callable(getattr(kind, "to", None)):
        return None
    return value.units if hasattr(kind, "magnitude") else getattr(value, "unit", None)


def _text(value: Any) -> str:
    """The unit of a value as a text; empty without a unit."""
    unit = _unit_of(value)
    return "" if unit is None else str(unit)


def _unit_text(value: Any) -> str:
    """The unit of a quantity, or that in the attributes of an array of xarray, as a text."""
    return Label.of(value).unit if is_xarray(value) else _text(value)


def sigma_in_unit_of(y: Any, sigma: Any) -> Any:
    """Standard deviations, or a covariance matrix, as numbers in the unit of y.

    Raises
    ------
    InputError
        If sigma has a unit that does not convert to the unit of y.
    """
    of_y, of_sigma = _unit_text(y), _unit_text(sigma)
    if not is_quantity(sigma):
        if of_sigma and of_y and of_sigma != of_y:
            raise _errors.sigma_unit(of_sigma, of_y)
        return sigma
    numbers = numbers_of(sigma)
    squared = np.ndim(numbers) == 2 and np.ndim(numbers_of(y)) < 2  # a covariance matrix
    try:
        if squared:
            unit = _unit_of(y)
            factor = _scale(sigma, unit**2 if is_quantity(y) else f"({of_y})**2")
        else:
            factor = _scale(sigma, _unit_of(y) if is_quantity(y) else of_y)
    except NOT_CONVERTED as error:
        raise _errors.sigma_unit(of_sigma, f"({of_y})**2" if squared else of_y) from error
    return numbers if factor == 1.0 else numbers * factor


def _scale(value: Any, unit: Any) -> float:
    """Factor from differences in the unit of a quantity to differences in another unit.

    Units may have offsets, as degrees Celsius have. A difference has none.
    """
    own = _unit_of(value)
    if callable(getattr(own, "to", None)):
        return float(own.to(unit))
    made: Callable[..., Any] = type(value)
    difference = made(1.0, own) - made(0.0, own)
    target = made(1.0, unit) - made(0.0, unit)
    return float(difference.to(target.units).magnitude)


def _in_unit(value: Any, unit: str, where: str) -> Any:
    """A number in a unit; a value without a unit is in this unit already."""
    if not is_quantity(value):
        return value
    if unit:
        return _converted(value, unit, where, "p0")
    try:
        return numbers_of(value.to(""))
    except NOT_CONVERTED as error:
        raise _errors.unit_without_p0(where, _text(value)) from error


def _coordinate_in(value: Any, unit: str, name: str) -> Any:
    """A coordinate in the unit of the fit."""
    checked_kind(value, name)
    if is_quantity(value):
        return _converted(value, unit, name, "the fit")
    own = _unit_text(value)
    if own and unit and own != unit:
        raise _errors.unit_differs(name, own, wanted=unit, of="the fit")
    return value


def _converted(value: Any, unit: str, where: str, of: str) -> Any:
    if _text(value) == unit:
        return numbers_of(value)
    try:
        return numbers_of(value.to(unit))
    except NOT_CONVERTED as error:
        raise _errors.unit_differs(where, _text(value), wanted=unit, of=of) from error


def _has_quantity(values: Sequence[Any]) -> bool:
    """Whether any value has a unit."""
    return not _NUMBERS.issuperset(map(type, values)) and any(map(is_quantity, values))


def _ends(pair: Any) -> Sequence[Any]:
    """The items of a list or a tuple; none of another value."""
    return pair if isinstance(pair, list | tuple) else ()


def _side_in_units(side: Any, units: Mapping[str, str], names: Sequence[str]) -> Any:
    """Lower or upper bounds of all parameters, or one number for all."""
    if is_quantity(side) and np.ndim(numbers_of(side)) == 0:
        side = [side] * len(names)
    if is_quantity(side):
        made = type(side)
        side = [made(number, _unit_of(side)) for number in numbers_of(side)]
    if not isinstance(side, list | tuple):
        return side
    if len(side) != len(names):
        return [numbers_of(end) for end in side]
    return [
        _in_unit(end, units.get(name, ""), f"bounds of {name}")
        for end, name in zip(side, names, strict=True)
    ]
