"""Arguments of fits of many series: which axes are fitted along, and where each array belongs.

Some axes of y are fitted along; the others are the axes of the map, and each element of the map is
a series of its own. Arrays without labels are placed by their shape: that of the fitted axes, that
of the map, or that of y. Arrays of xarray are placed by the names of their dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.labels import RowLabels, labels_of
from nlsq_dask.io.libraries import is_dask, is_xarray, is_zarr
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import as_array, broadcastable, broadcasts
from nlsq_dask.io.stored import StoredArray

Shape = tuple[int, ...]

# Arguments that have a number for each row, or for each series.
MAPS_OF_ROWS = ("sigma", "mask")


@dataclass(frozen=True, slots=True)
class SeriesAxes:
    """The axes of y.

    Attributes
    ----------
    shape : tuple of int
        Shape of y.
    fit : tuple of int
        Axes that are fitted along, in the order in which the rows of a series run.
    dims : tuple of hashable or None
        Names of all axes.
    """

    shape: Shape
    fit: tuple[int, ...]
    dims: tuple[Hashable, ...] | None = None

    @classmethod
    def of(cls, y: Any, x: Any, dim: Any) -> SeriesAxes:
        """The axes of y.

        Parameters
        ----------
        y, x : object
            Arguments of the fit.
        dim : None, hashable, int, or sequence of these
            Names or numbers of the axes to fit along. None is the dimension of a labelled `x`, or
            else the first axis.

        Raises
        ------
        InputError
            If there is no such axis, an axis is named twice, or y has no axes.
        """
        shape = tuple(np.shape(y))
        if not shape:
            raise _errors.series_without_axes()
        dims = tuple(y.dims) if is_xarray(y) else None
        if dim is None:
            named = dims is not None and is_xarray(x) and x.ndim == 1 and x.dims[0] in dims
            dim = x.dims[0] if named else (0 if dims is None else dims[0])
        wanted = list(dim) if isinstance(dim, list | tuple) else [dim]
        axes = tuple(_axis(item, dims, len(shape)) for item in wanted)
        if not axes or len(set(axes)) < len(axes):
            raise _errors.fitted_axes_repeated(dim)
        return cls(shape, axes, dims)

    @property
    def map(self) -> tuple[int, ...]:
        """Axes of the map."""
        return tuple(d for d in range(len(self.shape)) if d not in self.fit)

    @property
    def fit_shape(self) -> Shape:
        """Lengths of the fitted axes."""
        return tuple(self.shape[d] for d in self.fit)

    @property
    def map_shape(self) -> Shape:
        """Lengths of the map's axes."""
        return tuple(self.shape[d] for d in self.map)

    @property
    def n_rows(self) -> int:
        """Rows of a series, including rows that are left out."""
        return math.prod(self.fit_shape)

    def coordinates(self, x: Any) -> tuple[Any, bool]:
        """Coordinates with as many axes as y, and whether they were stacked in one array.

        Arrays with labels stay as they are.
        """
        if isinstance(x, tuple) and not all(np.isscalar(item) for item in x):
            return tuple(self._placed(item, f"x[{i}]") for i, item in enumerate(x)), False
        if labels_of(x) is not None:
            return x, False
        array = _array(x, "x")
        n = len(self.fit)
        is_stacked = array.ndim == n + 1 and array.shape[1:] == self.fit_shape
        if is_stacked and array.shape != self.shape:
            parts = (array[i] for i in range(array.shape[0]))
            return tuple(self._placed(part, "x") for part in parts), True
        return self._placed(array, "x"), False

    def check_coordinates(self, x: Any, coords: Sequence[Array], *, chosen: bool) -> None:
        """Refuse coordinates without the fitted axes, which belong to other axes of y.

        Parameters
        ----------
        x : object
            As the caller passed it.
        coords : sequence of array
            The coordinates with as many axes as y.
        chosen : bool
            Whether the caller chose the axes to fit along. Dimensions that have names can then be
            any.

        Raises
        ------
        InputError
            If no coordinate differs between the rows of a series. Coordinates that are passed with
            all axes of y may be so.
        """
        items = x if isinstance(x, tuple) else (x,)
        labelled = (labels_of(item) for item in items)
        named = self.dims is not None and any(label and label.dims for label in labelled)
        full = all(np.ndim(item) >= len(self.shape) for item in items)
        varying = sorted({d for c in coords for d, n in enumerate(c.shape) if n > 1})
        if self.n_rows == 1 or full or not varying or set(varying) & set(self.fit):
            return
        if not (named and chosen):
            raise _errors.coordinates_of_other_axes(
                [tuple(np.shape(item)) for item in items],
                self.shape,
                fit=self._named(self.fit),
                varying=self._named(varying),
            )

    def _named(self, axes: Sequence[int]) -> list[Hashable]:
        """Names of axes, as the argument `dim` takes them."""
        return [d if self.dims is None else self.dims[d] for d in axes]

    def rows(self, value: Any, name: str) -> Any:
        """Standard deviations or a mask with as many axes as y; arrays with labels as they are."""
        if value is None:
            return None
        placed = self._placed(value, name)
        if labels_of(value) is None and not broadcasts(placed.shape, self.shape):
            raise _errors.row_values_shape(
                name, placed.shape, series=self.fit_shape, map_shape=self.map_shape, full=self.shape
            )
        return placed

    def _placed(self, value: Any, name: str) -> Any:
        if labels_of(value) is not None:
            return value
        array = _array(value, name)
        axes = self.axes_of(array.shape, name)
        return array if axes is None else self._onto(array, axes)

    def axes_of(self, shape: Shape, name: str) -> tuple[int, ...] | None:
        """The axes of y that an array without names of dimensions belongs to.

        An array of fewer axes than y broadcasts to the fitted axes, in the order of the fit. If it
        may be a map, too, it needs their lengths.

        Parameters
        ----------
        shape : tuple of int
            Shape of the array.
        name : str
            Name of the argument. Standard deviations and masks may be maps.

        Returns
        -------
        tuple of int or None
            None if the array broadcasts to y as it is.

        Raises
        ------
        InputError
            If the shape is both that of a series and that of the map.
        """
        n = len(self.fit)
        if not shape or shape == self.shape:
            return None
        maps = name in MAPS_OF_ROWS
        if maps and (len(shape) != n or len(self.map) == n):
            along = shape == self.fit_shape
        else:
            along = len(shape) <= n and broadcasts(shape, self.fit_shape)
        if maps and self.map and shape == self.map_shape:
            if along:
                raise _errors.axes_ambiguous(name, shape, self.shape, self.fit)
            return self.map
        return self.fit[n - len(shape) :] if along else None

    def spread(self, array: Any) -> Any:
        """An array of the fitted axes, or of the last of them, with the axes of y."""
        return self._onto(array, self.fit[len(self.fit) - array.ndim :])

    def _onto(self, array: Any, axes: Sequence[int]) -> Any:
        """An array of some axes of y, in any order, with the axes of y."""
        order = np.argsort(axes)
        turned = array if list(order) == sorted(order) else array.transpose(order)
        return turned[self._expanding(axes)]

    def _expanding(self, axes: Sequence[int]) -> tuple[Any, ...]:
        """An index that gives an array of some axes the axes of y."""
        return tuple(slice(None) if d in axes else None for d in range(len(self.shape)))

    def map_of(self, value: Any, name: str, y: Any) -> Array | float:
        """A number for each series, or one number for all.

        Parameters
        ----------
        value : object
            A number, or an array that broadcasts to the map.
        name : str
            Name of the argument in messages.
        y : object
            Observations, whose labels the map's are compared with.

        Returns
        -------
        float or array
            The array has the axes of y.
        """
        array = as_array(value, name)
        if array.ndim == 0 and not is_dask(array):
            return float(array)
        if labels_of(value) is None:
            self._check_map(array.shape, name)
        rows = RowLabels.of(y, self.shape)
        own = dict(enumerate(self.map))
        dims = None if rows.dims is None else tuple(rows.dims[d] for d in self.map)
        known = {i: rows.indexes[d] for i, d in own.items() if d in rows.indexes}
        of_map = RowLabels(self.map_shape, dims, known, "the map")
        placed = broadcastable(
            of_map.placed(array, value, name), self.map_shape, name, of=of_map.whole
        )
        return placed[self._expanding(self.map)]

    def _check_map(self, shape: Shape, name: str) -> None:
        """Refuse an array without labels whose shape does not belong to the map.

        With names of dimensions an array may have some of the map's axes, in their order.
        """
        rest = iter(self.map_shape)
        in_order = self.dims is not None and all(n in rest for n in shape)
        if in_order or broadcasts(shape, self.map_shape):
            return
        other = self._other_axes(shape) if len(self.fit) == 1 else None
        raise _errors.map_shape(
            name,
            shape,
            map_shape=self.map_shape,
            full=self.shape,
            fit=self._named(self.fit),
            other=None if other is None else self._named([other])[0],
        )

    def _other_axes(self, shape: Shape) -> int | None:
        """The axis without which y has the given shape, if there is one."""
        axes = range(len(self.shape))
        found = [d for d in axes if self.shape[:d] + self.shape[d + 1 :] == shape]
        return found[0] if len(found) == 1 else None

    def map_frame(self, y: Any) -> Frame | None:
        """Dimensions and coordinates of the map, if y is an array of xarray."""
        if self.dims is None:
            return None
        fitted = [self.dims[d] for d in self.fit]
        along = [name for name, c in y.coords.items() if set(c.dims) & set(fitted)]
        return Frame.of(y.drop_vars(along).isel(dict.fromkeys(fitted, 0), drop=True))


def _axis(item: Any, dims: tuple[Hashable, ...] | None, ndim: int) -> int:
    """Number of an axis that has a name or a number."""
    if dims is not None and item in dims:
        return dims.index(item)
    is_number = isinstance(item, int | np.integer) and not isinstance(item, bool)
    if not is_number or not -ndim <= item < ndim:
        raise _errors.no_such_axis(item, dims, ndim)
    return int(item) % ndim


def _array(value: Any, name: str) -> Any:
    """An array that can be indexed; its dtype is not looked at."""
    if is_zarr(value) or isinstance(value, StoredArray):
        return as_array(value, name)
    return value if is_dask(value) else np.asanyarray(value)
