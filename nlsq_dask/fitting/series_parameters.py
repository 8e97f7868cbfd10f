"""Starting values, bounds and fixed values of many series: numbers, and maps of numbers.

A number holds for all series. A map has a number for each series: an array that broadcasts to the
axes of the map. The numbers are checked here, as for :func:`nlsq_dask.fit`. The maps are not read:
a series whose numbers cannot be used gets the status BAD_INPUT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.bounds import normalize_bounds
from nlsq_dask.core.constraints import (
    Reduction,
    reduce_bounds,
    reduce_parameters,
    reduce_start,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.fitting.starting_values import starting_values
from nlsq_dask.io.observations import Array
from nlsq_dask.io.series import SeriesAxes
from nlsq_dask.io.units import bare_bounds, bare_fixed
from nlsq_dask.user_model.signature import parameter_names


@dataclass(frozen=True)
class SeriesParameters:
    """The parameters of many series.

    Attributes
    ----------
    names : tuple of str, length p
    reduction : Reduction
    start : ndarray, shape (p,), float64
        Starting values that are numbers; NaN for none.
    lower, upper : ndarray, shape (p,), float64
        Bounds that are numbers; infinite in the places of maps.
    carried : ndarray, shape (p, p), float64
        Column i is what a fixed value of parameter i adds to the offsets of all parameters, those
        tied to it included.
    maps : dict of (str, int) to array
        Maps of "p0", "lower", "upper" and "fixed", by the parameter's number, with the axes of y.
    units : dict of str
        Units of the parameters that have one, by name.
    """

    names: tuple[str, ...]
    reduction: Reduction
    start: FloatArray
    lower: FloatArray
    upper: FloatArray
    carried: FloatArray
    maps: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Reader:
    """Takes maps out of arguments, and leaves numbers."""

    axes: SeriesAxes
    y: Any
    maps: dict[tuple[str, int], Array] = field(default_factory=dict)

    def number(self, value: Any, kind: str, index: int, name: str, instead: Any) -> Any:
        """A number as it is. A map is kept, and `instead` takes its place."""
        if value is None or not hasattr(value, "ndim") or value.ndim == 0:
            return value
        found = self.axes.map_of(value, name, self.y)
        if isinstance(found, float):
            return found
        self.maps[kind, index] = found
        return instead


def series_parameters(
    model: Any, axes: SeriesAxes, y: Any, *, p0: Any, bounds: Any, fixed: Any, ties: Any
) -> SeriesParameters:
    """Check the parameters of many series.

    Parameters
    ----------
    model : callable
    axes : SeriesAxes
    y : object
        Observations, whose labels the maps are compared with.
    p0, bounds, fixed, ties : object
        As for :func:`nlsq_dask.fit`, with maps in place of numbers, except in `ties`.

    Raises
    ------
    InputError, InputTypeError
        As :func:`nlsq_dask.fit`, and if a map does not fit to the map of y.
    """
    start = starting_values(model, p0)
    p0 = _in_order(start.p0)
    names = parameter_names(model, None if p0 is None or isinstance(p0, Mapping) else len(p0))
    fixed, units = bare_fixed(fixed, start.units(names))
    bounds = bare_bounds(bounds, units, names)
    reader = _Reader(axes, y)
    place = {name: i for i, name in enumerate(names)}
    if isinstance(fixed, Mapping):
        fixed = {
            name: reader.number(value, "fixed", place.get(name, 0), f"fixed[{name!r}]", 0.0)
            for name, value in fixed.items()
        }
    reduction = reduce_parameters(names, fixed, ties)
    lower, upper = _numbers_of_bounds(reader, bounds, names)
    p0 = _numbers_of_p0(reader, p0, names)
    low, high = _checked_bounds(reader, reduction, names, lower, upper)
    numbers = np.full(len(names), np.nan)
    if p0 is not None:
        _check_start(reader, reduction, p0, names, low, high)
        given = p0 if isinstance(p0, Mapping) else dict(zip(names, p0, strict=True))
        for name, value in given.items():
            numbers[place[name]] = np.nan if ("p0", place[name]) in reader.maps else float(value)
    carried = _carried(reader, reduction, names, fixed, ties)
    return SeriesParameters(
        names=names,
        reduction=reduction,
        start=numbers,
        lower=lower,
        upper=upper,
        carried=carried,
        maps=reader.maps,
        units=units,
    )


def _carried(
    reader: _Reader, reduction: Reduction, names: Sequence[str], fixed: Any, ties: Any
) -> FloatArray:
    """What fixed values that are maps add to the offsets (p, p); a map stands as 0 in `fixed`."""
    carried = np.eye(len(names))
    for kind, i in reader.maps:
        if kind == "fixed":
            one = reduce_parameters(names, {**fixed, names[i]: 1.0}, ties)
            carried[:, i] = one.offset - reduction.offset
    return carried


def _in_order(p0: Any) -> Any:
    """Starting values as a list with an item for each parameter, or by name."""
    if p0 is None or isinstance(p0, Mapping):
        return p0
    if isinstance(p0, str | bytes):
        raise _errors.p0_not_numbers(p0)
    if isinstance(p0, list | tuple):
        return list(p0)
    array = p0 if hasattr(p0, "ndim") and hasattr(p0, "__getitem__") else np.asarray(p0)
    return [p0] if array.ndim == 0 else [array[i] for i in range(array.shape[0])]


def _numbers_of_p0(reader: _Reader, p0: Any, names: Sequence[str]) -> Any:
    """Starting values with 1 in place of maps."""
    if isinstance(p0, Mapping):
        return {
            name: reader.number(
                value, "p0", names.index(name) if name in names else 0, f"p0[{name!r}]", 1.0
            )
            for name, value in p0.items()
        }
    if p0 is None:
        return None
    return [reader.number(value, "p0", i, f"p0[{i}]", 1.0) for i, value in enumerate(p0)]


def _numbers_of_bounds(
    reader: _Reader, bounds: Any, names: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Bounds (p,) that are numbers; infinite in place of maps."""

    def one(value: Any, side: str, i: int) -> Any:
        missing = -np.inf if side == "lower" else np.inf
        return reader.number(value, side, i, f"the {side} bound of {names[i]}", missing)

    if isinstance(bounds, Mapping):
        found = {}
        for name, pair in bounds.items():
            i = names.index(name) if name in names else 0
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            found[name] = (one(pair[0], "lower", i), one(pair[1], "upper", i)) if is_pair else pair
        return normalize_bounds(found, names)
    if isinstance(bounds, list | tuple) and len(bounds) == 2:
        sides = []
        for side, values in zip(("lower", "upper"), bounds, strict=True):
            is_stack = isinstance(values, np.ndarray) and values.ndim > 1
            if (is_stack or isinstance(values, list | tuple)) and len(values) == len(names):
                sides.append([one(value, side, i) for i, value in enumerate(values)])
            else:
                sides.append(values)
        return normalize_bounds(tuple(sides), names)
    return normalize_bounds(bounds, names)


def _checked_bounds(
    reader: _Reader,
    reduction: Reduction,
    names: Sequence[str],
    lower: FloatArray,
    upper: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Bounds of the free parameters that are numbers alone, checked."""
    mapped = [index for kind, index in reader.maps if kind == "fixed"]
    if mapped:  # a placeholder stands for the fixed values
        involved = np.any(reduction.matrix, axis=1)
        keep = [i for i in range(len(names)) if i not in mapped and involved[i]]
        lower, upper = (_only(side, keep, inf) for side, inf in ((lower, -np.inf), (upper, np.inf)))
    bounded = [index for kind, index in reader.maps if kind in ("lower", "upper")]
    for i in bounded:
        if np.count_nonzero(reduction.matrix[i]) > 1:
            raise _errors.bounds_on_combination(names[i])
    return reduce_bounds(reduction, names, lower, upper)


def _only(side: FloatArray, keep: Sequence[int], instead: float) -> FloatArray:
    found = np.full_like(side, instead)
    found[list(keep)] = side[list(keep)]
    return found


def _check_start(
    reader: _Reader,
    reduction: Reduction,
    p0: Any,
    names: Sequence[str],
    low: FloatArray,
    high: FloatArray,
) -> None:
    """Check the starting values that are numbers; those that are maps may lie anywhere."""
    if any(kind == "p0" for kind, _ in reader.maps):
        low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    reduce_start(reduction, p0, names, low, high)
