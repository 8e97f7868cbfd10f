"""Labels: what an array of xarray says beside its numbers, and arrays that get the same labels.

The frame of an array holds its dimensions, coordinates, name and attributes, without its numbers.
The values of a model on the same rows are put into the frame. The label of an array is its name and
its unit, as texts for the axis of a plot.

Coordinates are held as they are: no coordinate that is lazy is read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

# Attributes about the stored numbers of a file, and not about the quantity (Climate and Forecast
# conventions 1.11, sections 2.5 and 8.1; "NUG" conventions). Other numbers are not stored so: the
# reader of a file would take residuals outside of `valid_range` for missing.
OF_STORED_NUMBERS = frozenset(
    {
        "scale_factor",
        "add_offset",
        "_FillValue",
        "missing_value",
        "valid_min",
        "valid_max",
        "valid_range",
        "actual_range",
        "_Unsigned",
        "flag_values",
        "flag_masks",
        "flag_meanings",
    }
)


@dataclass(frozen=True, slots=True)
class Label:
    """Name and unit of a quantity, for the axis of a plot.

    Attributes
    ----------
    name : str
        Name in words; empty if there is none.
    unit : str
        Unit; empty if there is none.
    """

    name: str = ""
    unit: str = ""

    @classmethod
    def of(cls, array: Any) -> Self:
        """Label of an array of xarray, from its attributes ``long_name`` and ``units``."""
        attrs = array.attrs
        name = attrs.get("long_name", attrs.get("standard_name", array.name))
        return cls("" if name is None else str(name), str(attrs.get("units", "")))

    def title(self, otherwise: str) -> str:
        """Title of an axis, ``name [unit]``; `otherwise` is the name if there is none."""
        name = self.name or otherwise
        return f"{name} [{self.unit}]" if self.unit else name


NO_LABEL = Label()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An array of xarray without its numbers.

    Attributes
    ----------
    dims : tuple of hashable
        Names of the dimensions.
    shape : tuple of int
    coords : xarray.Coordinates
        Coordinates with their indexes, as they are: none is read.
    name : hashable or None
    attrs : mapping
        Attributes of the quantity.
    """

    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    coords: Any
    name: Hashable | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, array: Any) -> Self:
        """Frame of an array of xarray."""
        attrs = {key: value for key, value in array.attrs.items() if key not in OF_STORED_NUMBERS}
        return cls(array.dims, array.shape, array.coords.to_dataset().coords, array.name, attrs)

    def at(self, index: Mapping[Hashable, int]) -> Frame:
        """The frame of one place along some dimensions."""
        coords = self.coords.to_dataset().isel(index, missing_dims="ignore").coords
        kept = [(d, n) for d, n in zip(self.dims, self.shape, strict=True) if d not in index]
        dims, shape = zip(*kept, strict=True)
        return Frame(dims, shape, coords, self.name, self.attrs)

    def describing(self, other: Frame | None) -> Frame:
        """The same rows, with the name and the attributes of another frame."""
        if other is None:
            return Frame(self.dims, self.shape, self.coords)
        return Frame(self.dims, self.shape, self.coords, other.name, other.attrs)

    def filled(self, values: Any, name: str, meaning: str, *, same_quantity: bool = True) -> Any:
        """An array of xarray with these numbers.

        Parameters
        ----------
        values : numpy or dask array
            In the shape of the frame.
        name : str
            Name of the new array.
        meaning : str
            What the values are of the quantity, as in "prediction of".
        same_quantity : bool
            Whether the values may stand for the quantity itself, as an error of it does not.

        Returns
        -------
        xarray.DataArray
            With the dimensions and coordinates of the frame. It has the attributes of the quantity,
            such as its ``units``; its ``long_name`` begins with the meaning.
        """
        import xarray as xr  # an optional library, which made the frame

        attrs = dict(self.attrs)
        if not same_quantity:
            attrs.pop("standard_name", None)
        of = self.attrs.get("long_name", self.attrs.get("standard_name", self.name))
        attrs["long_name"] = f"{meaning} {'y' if of is None else of}"
        return xr.DataArray(values, self.coords, self.dims, name, attrs)


def frame_of_all(arrays: Sequence[Any]) -> Frame:
    """Frame of the rows to which arrays of xarray broadcast by the names of their dimensions.

    Parameters
    ----------
    arrays : sequence of xarray.DataArray
        Arrays with the same labels along the same dimension, which may be in another order.

    Returns
    -------
    Frame
        Dimensions in the order in which they first occur. The coordinates are those of all arrays;
        if two arrays have a coordinate of the same name, that of the first.
    """
    import xarray as xr  # an optional library, which made the arrays

    sizes = sizes_of_all(arrays)
    # The one value along a dimension holds for all labels.
    single = [[d for d, n in array.sizes.items() if n == 1 < sizes[d]] for array in arrays]
    full = [
        array.isel(dict.fromkeys(dims, 0), drop=True)
        for array, dims in zip(arrays, single, strict=True)
    ]
    # "override" compares no values, which might have to be read.
    merged = xr.merge(
        [array.coords.to_dataset() for array in full],
        compat="override",
        join="override",
        combine_attrs="override",
    )
    return Frame(tuple(sizes), tuple(sizes.values()), merged.coords)


def sizes_of_all(arrays: Sequence[Any]) -> dict[Hashable, int]:
    """The largest length along each dimension of some arrays of xarray."""
    sizes: dict[Hashable, int] = {}
    for array in arrays:
        sizes |= {dim: max(n, sizes.get(dim, 0)) for dim, n in array.sizes.items()}
    return sizes
