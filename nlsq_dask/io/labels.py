"""Rows of several arrays paired by their labels, as xarray and pandas pair them.

An array of xarray names its dimensions, and may have an index of labels along each. An array of
pandas has indexes without names of dimensions. Each array of a fit is brought into the order of
``y``: its dimensions by their names, and then its rows by their labels. Equal labels in another
order are put in order; other labels are refused, as ``xarray.align(join="exact")`` refuses them. An
array without labels is paired by position. If it has fewer dimensions than a labelled ``y``, it is
paired by the lengths of its dimensions, provided that they leave no choice. Where series run along
some axes of ``y``, the caller says to which axes such a position belongs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.announced import NUMBERS, checked
from nlsq_dask.io.libraries import is_dask, is_instance, is_plain, is_xarray

Array = Any
Shape = tuple[int, ...]
AxesOf = Callable[[Shape, str], Sequence[int] | None]

# Number of the axis along which the coordinates of one array are stacked. It is no axis of y.
STACK = -1

# Labels that a message shows.
SHOWN_LABELS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What an array says of its axes.

    Attributes
    ----------
    dims : tuple of hashable or None
        Names of the dimensions; None if they have no names.
    indexes : tuple of (pandas.Index or None)
        Labels along each axis.
    """

    dims: tuple[Hashable, ...] | None
    indexes: tuple[Any, ...]


def labels_of(value: Any) -> Labels | None:
    """Labels of an array of xarray or pandas; None if there are no names and no indexes."""
    if is_plain(value):
        return None
    if is_xarray(value):
        indexes = tuple(_index(value, dim) for dim in value.dims)
        if not any(index is not None for index in indexes) and _has_default_names(value.dims):
            return None
        return Labels(value.dims, indexes)
    if is_instance(value, "xarray", "Variable"):
        return None if _has_default_names(value.dims) else Labels(value.dims, (None,) * value.ndim)
    if is_instance(value, "pandas", "Series"):
        return Labels(None, (value.index,))
    if is_instance(value, "pandas", "DataFrame"):
        return Labels(None, (value.index, value.columns))
    return None


def _index(array: Any, dim: Hashable) -> Any:
    """The labels of an array of xarray along a dimension, as an index of pandas; None without."""
    index = array.xindexes.get(dim)
    try:
        return None if index is None else index.to_pandas_index()
    except TypeError:  # an index of xarray that is no list of labels
        return None


def _has_default_names(dims: Sequence[Hashable]) -> bool:
    """Whether dimensions have the names that xarray gives where the user gives none."""
    return all(dim == f"dim_{i}" for i, dim in enumerate(dims))


@dataclass(slots=True, eq=False)
class RowLabels:
    """Labels of the rows of a fit: those of y, and those that other arrays add.

    Attributes
    ----------
    shape : tuple of int
        Shape of y.
    dims : tuple of hashable or None
        Names of y's dimensions.
    indexes : dict of int to (str, pandas.Index)
        Labels along axes of y, each with the name of the array that they are from.
    whole : str
        What has this shape, in messages: y, or the map.
    axes_of : callable or None
        ``axes_of(shape, name)`` gives the axes of y that the position of an array belongs to, or
        None for the last axes.
    """

    shape: Shape
    dims: tuple[Hashable, ...] | None = None
    indexes: dict[int, tuple[str, Any]] = field(default_factory=dict)
    whole: str = "y"
    axes_of: AxesOf | None = None

    @classmethod
    def of(cls, y: Any, shape: Shape, axes_of: AxesOf | None = None) -> RowLabels:
        """Labels of y, as the user passed it. `shape` has at least one dimension."""
        labels = labels_of(y)
        if labels is None or not labels.indexes:
            return cls(shape, axes_of=axes_of)
        known = {d: ("y", index) for d, index in enumerate(labels.indexes) if index is not None}
        return cls(shape, labels.dims, known, axes_of=axes_of)

    def placed(self, array: Array, value: Any, name: str, *, stacks: bool = False) -> Array:
        """Bring an array into the order of the rows of y.

        Parameters
        ----------
        array : numpy or dask array
            Numbers of `value`, in its own order.
        value : object
            The array as the user passed it, which may have labels.
        name : str
            Name of the array in messages.
        stacks : bool
            Whether the array may have one more dimension than y, for stacked coordinates.

        Returns
        -------
        numpy or dask array
            As many dimensions as y, or those of `array` if it is paired by position. Stacked
            coordinates come first.

        Raises
        ------
        InputError
            If names, labels or lengths do not fit to those of y, or leave a choice.
        """
        labels = labels_of(value)
        if labels is None:
            return self._placed_by_lengths(array, name)
        if self.dims is not None and labels.dims is not None:
            axes = self._axes_by_name(labels.dims, name, stacks=stacks)
        elif self.dims is not None and array.ndim < len(self.shape):
            axes = self._axes_of_series(array, labels.indexes[0], name)
        else:
            axes = self._axes_with_labels(labels)
            axes = axes or self._axes_by_position(array, name, stacks=stacks)
            if self.dims is None and array.shape == self.shape:
                self.dims = labels.dims
        for own, axis in enumerate(axes):
            if axis != STACK:
                array = self._in_order(array, own, axis, labels.indexes[own], name)
        return self._broadcast(array, axes)

    def _axes_by_name(self, dims: tuple[Hashable, ...], name: str, *, stacks: bool) -> list[int]:
        """The axis of y that each dimension belongs to."""
        known = self.dims or ()
        unknown = [dim for dim in dims if dim not in known]
        if unknown and not (stacks and len(unknown) == 1 and len(dims) == len(known) + 1):
            raise _errors.dimensions_unknown(name, unknown, known)
        return [known.index(dim) if dim in known else STACK for dim in dims]

    def _axes_by_position(self, array: Array, name: str, *, stacks: bool) -> list[int]:
        """The axes that `axes_of` gives, or the last axes of y, as NumPy's broadcasting does."""
        known = None if self.axes_of is None else self.axes_of(array.shape, name)
        if known is not None:
            return list(known)
        missing = len(self.shape) - array.ndim
        is_stack = stacks and missing == -1 and array.shape[1:] == self.shape
        if missing < 0 and not is_stack:
            raise _errors.unequal_lengths(name, array.shape, self.shape, of=self.whole)
        return [d + missing for d in range(array.ndim)]

    def _axes_with_labels(self, labels: Labels) -> list[int]:
        """The one axis of y that has the labels of a Series; empty if there is none, or several."""
        if self.dims is not None or len(labels.indexes) != 1 or len(self.shape) == 1:
            return []
        own = labels.indexes[0]
        found = [
            axis
            for axis, (_, known) in self.indexes.items()
            if len(own) == len(known) and own.isin(known).all()
        ]
        return found if len(found) == 1 else []

    def _axes_of_series(self, array: Array, index: Any, name: str) -> list[int]:
        """The axis of y that the index of a Series names, or that is as long."""
        if self.dims is not None and index.name in self.dims and array.ndim == 1:
            return [self.dims.index(index.name)]
        return self._axes_by_lengths(array.shape, name) or self._axes_by_position(
            array, name, stacks=False
        )

    def _placed_by_lengths(self, array: Array, name: str) -> Array:
        """Place an array without labels."""
        if self.dims is None or not 0 < array.ndim < len(self.shape):
            return array
        axes = self._axes_by_lengths(array.shape, name)
        return array if axes is None else self._broadcast(array, axes)

    def _axes_by_lengths(self, shape: Shape, name: str) -> list[int] | None:
        """Axes of y, in their order, that have these lengths; None if there are none."""
        numbers = range(len(self.shape))
        found = [
            list(axes)
            for axes in itertools.combinations(numbers, len(shape))
            if tuple(self.shape[d] for d in axes) == shape
        ]
        if len(found) > 1 and math.prod(shape) > 1:
            names = [tuple((self.dims or numbers)[d] for d in axes) for axes in found]
            raise _errors.dimension_ambiguous(name, shape, names)
        return found[0] if found else None

    def _broadcast(self, array: Array, axes: Sequence[int]) -> Array:
        """The array with its axes in the order of y's, and of length 1 where it has none."""
        order = sorted(range(len(axes)), key=lambda own: axes[own])
        if order != list(range(len(axes))):
            array = array.transpose(order)
        full = ([STACK] if STACK in axes else []) + list(range(len(self.shape)))
        return array[tuple(slice(None) if d in axes else None for d in full)]

    def _in_order(self, array: Array, own: int, axis: int, index: Any, name: str) -> Array:
        """The array with its rows along one axis in the order of y's."""
        n, wanted = array.shape[own], self.shape[axis]
        other, known = self.indexes.get(axis, ("y", None))
        if index is None or known is None:
            if n not in (1, wanted) and self.dims is None:
                raise _errors.unequal_lengths(name, array.shape, self.shape, of=self.whole)
            if n not in (1, wanted):
                raise _errors.lengths_differ(name, n, wanted, self._title(axis))
            if index is not None and n == wanted:
                self.indexes[axis] = (name, index)
            return array
        order = _order(index, known, name, other, self._title(axis))
        if order is None:
            return array
        if (
            is_dask(array) and array.dtype.kind in NUMBERS
        ):  # a chunk that is too long would lose its last rows unseen
            array = checked(array, name)
        return array[(slice(None),) * own + (order,)]

    def _title(self, axis: int) -> str:
        return f"axis {axis}" if self.dims is None else f"{self.dims[axis]!r}"


def in_order_of(y: Any, value: Any, name: str) -> Any:
    """An array of pandas or xarray in the order of the labels of y, along each axis of its length.

    For arguments that keep their type: tables of coordinates (n, k), and covariances (n, n).

    Parameters
    ----------
    y : object
        Observations, as the user passed them.
    value : object
        A list or tuple may hold such arrays.
    name : str
        Name of the array in messages.

    Raises
    ------
    InputError
        If the labels differ.
    """
    rows = labels_of(y)
    if rows is None or len(rows.indexes) != 1 or rows.indexes[0] is None:
        return value
    if isinstance(value, list | tuple) and any(labels_of(item) is not None for item in value):
        ordered = (in_order_of(y, item, f"{name}[{i}]") for i, item in enumerate(value))
        return type(value)(ordered)
    labels, known = labels_of(value), rows.indexes[0]
    if labels is None:
        return value
    axes = [d for d, n in enumerate(value.shape) if n == len(known)]
    covers = len(axes) == 2 and name == "sigma"  # both axes of a covariance are rows
    for axis in axes if covers else axes[:1]:
        index = labels.indexes[axis]
        order = None if index is None else _order(index, known, name, "y", f"axis {axis}")
        if order is not None:
            chosen = (slice(None),) * axis + (order,)
            value = value[chosen] if labels.dims is not None else value.iloc[chosen]
    return value


def _order(
    index: Any, wanted: Any, name: str, other: str, title: str
) -> slice | np.ndarray[Any, Any] | None:
    """Positions in an index of the labels of another; None if all are where they are wanted."""
    if index.equals(wanted):
        return None
    if index.has_duplicates or wanted.has_duplicates:
        repeated = index if index.has_duplicates else wanted
        raise _errors.labels_repeated(name, other, title, repeated[repeated.duplicated()][0])
    positions = np.asarray(index.get_indexer(wanted))
    if len(index) != len(wanted) or (positions < 0).any():
        missing, more = (_differing(a, b) for a, b in ((wanted, index), (index, wanted)))
        raise _errors.row_labels_differ(name, other, title, missing, more)
    n = len(positions)
    if np.array_equal(positions, np.arange(n)):
        return None
    if np.array_equal(positions, np.arange(n)[::-1]):
        return slice(None, None, -1)  # a slice keeps the chunks of a Dask array
    return positions


def _differing(index: Any, other: Any) -> tuple[int, list[str]]:
    """Number of the labels that another index lacks, and the first ones as text."""
    lost = index[~index.isin(other)]
    return len(lost), [str(label) for label in lost[:SHOWN_LABELS]]
