"""From what a user passes to observations with coordinates.

Observations ``y`` have any number of dimensions; their elements, in C order, are the rows. A
coordinate is an array that broadcasts to ``y``'s shape, and stays as small as it is given: a flat
``x`` of ``y``'s length is the simplest case. Standard deviations broadcast the same way.

Dask and Zarr arrays are recognised without importing either: if a library was never imported,
nothing can be an instance of its classes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors

if TYPE_CHECKING:
    from distributed import Client

Structure = Literal["single", "stacked", "tuple"]
# A NumPy array or a dask.array.Array: both have shape, ndim, dtype, size and basic indexing.
Array = Any


@dataclass(frozen=True, slots=True)
class Observations:
    """The data of a fit, checked and in one representation.

    Attributes
    ----------
    y : numpy or dask array, shape (...), real dtype
        Observations, of at least one dimension.
    coords : tuple of array
        Coordinates, each with ``y``'s number of dimensions and lengths equal to ``y``'s or 1.
    sigma : array or None
        Standard deviations, shaped like a coordinate.
    structure : {"single", "stacked", "tuple"}
        How the model takes its coordinates: one array, one (k, n) array, or a tuple.
    lazy : bool
        Whether any of the arrays is a Dask array.
    """

    y: Array
    coords: tuple[Array, ...]
    sigma: Array | None
    structure: Structure
    lazy: bool

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.y.size)

    @property
    def operands(self) -> tuple[Array, ...]:
        """All arrays: ``y``, the coordinates, and ``sigma`` where there is one."""
        return (self.y, *self.coords) + (() if self.sigma is None else (self.sigma,))

    @property
    def flat(self) -> bool:
        """Whether no coordinate is smaller than ``y``, so that rows are kept without growth."""
        return all(c.shape == self.y.shape for c in self.coords)


def observe(x: Any, y: Any, sigma: Any = None) -> Observations:
    """Check the data of a fit and bring them into one representation. Nothing is read.

    Parameters
    ----------
    x : array_like or tuple of array_like
        Coordinates: shape (n,) or ``y``'s shape, (k, n) with ``y`` (n,), or a tuple of arrays that
        broadcast to ``y``'s shape.
    y : array_like, shape (...)
        Observations.
    sigma : array_like or None
        Standard deviations, broadcasting to ``y``'s shape.

    Raises
    ------
    InputTypeError
        If an array is not of real numbers.
    InputError
        If shapes do not fit, an array is empty, masked, or of unknown chunk sizes.
    """
    observed = as_array(y, "y")
    if observed.ndim == 0:
        observed = observed.reshape(1)
    if observed.size == 0:
        raise _errors.no_rows("y", observed.shape)
    coords, structure = _coordinates(x, observed.shape)
    deviations = None
    if sigma is not None:
        deviations = _broadcastable(as_array(sigma, "sigma"), observed.shape, "sigma")
        _check_sigma(deviations)
    lazy = any(is_dask(a) for a in (observed, *coords, deviations))
    return Observations(observed, coords, deviations, structure, lazy)


def as_array(value: Any, name: str) -> Array:
    """A NumPy or Dask array of real numbers, without reading or copying where that is possible.

    Raises
    ------
    InputTypeError
        If the values are not real numbers.
    InputError
        If the array is masked, ragged, or has chunks of unknown size.
    """
    if _is_instance(value, "zarr", "Array"):
        return _wrap_zarr(value, name)
    if is_dask(value):
        if any(np.isnan(n) for n in value.shape):
            raise _errors.unknown_chunks(name)
        meta = value._meta
    else:
        try:
            value = meta = np.asanyarray(value)
        except ValueError as error:  # ragged lists
            raise _errors.not_an_array(name, error) from error
    if isinstance(meta, np.ma.MaskedArray):
        raise _errors.masked(name)
    if value.dtype.kind not in "fiub":
        raise _errors.not_real(name, value.dtype)
    return value if is_dask(value) else np.asarray(value)


def is_dask(value: Any) -> bool:
    """Whether a value is a Dask array."""
    return _is_instance(value, "dask.array", "Array")


def _is_instance(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of an optional library, which is not imported for it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _wrap_zarr(array: Any, name: str) -> Array:
    """A Dask array over a Zarr array, in the chunks (or shards) that one read decodes."""
    import dask.array as da

    if np.dtype(array.dtype).kind not in "fiub":
        raise _errors.not_real(name, array.dtype)
    return da.from_array(array, chunks=array.shards or array.chunks, inline_array=True)


def _coordinates(x: Any, shape: tuple[int, ...]) -> tuple[tuple[Array, ...], Structure]:
    if isinstance(x, tuple) and not all(np.isscalar(item) for item in x):
        named = [(as_array(item, f"x[{i}]"), f"x[{i}]") for i, item in enumerate(x)]
        return tuple(_broadcastable(a, shape, label) for a, label in named), "tuple"
    array = as_array(x, "x")
    if array.ndim == len(shape) + 1:
        if array.shape[1:] != shape:
            raise _errors.unequal_lengths("x", array.shape, shape)
        return tuple(array[i] for i in range(array.shape[0])), "stacked"
    return (_broadcastable(array, shape, "x"),), "single"


def _broadcastable(array: Array, shape: tuple[int, ...], name: str) -> Array:
    """The array with leading dimensions of length 1 added, as NumPy's broadcasting would."""
    missing = len(shape) - array.ndim
    padded = (1,) * missing + tuple(array.shape)
    if missing < 0 or any(n not in (1, full) for n, full in zip(padded, shape, strict=True)):
        raise _errors.unequal_lengths(name, array.shape, shape)
    return array[(None,) * missing] if missing else array


def _check_sigma(sigma: Array) -> None:
    """Refuse standard deviations that are not positive, where that is known without reading."""
    if is_dask(sigma):
        return
    values: NDArray[np.generic] = sigma
    if values.min() > 0:  # needs no memory, which a comparison of all values would; NaN fails it
        return
    bad = ~(values > 0)  # type: ignore[operator]
    raise _errors.sigma_not_positive(int(bad.sum()), float(values[bad][0]))


def finite_problem(data: Observations, client: Client | None = None) -> _errors.InputError | None:
    """Look for values that make a sum of squares not finite: NaN, infinities and sigma of zero.

    Reads lazy arrays once, block by block.

    Parameters
    ----------
    data : Observations
    client : distributed.Client, optional
        Cluster that reads lazy arrays.

    Returns
    -------
    InputError or None
        Naming the first array that has such values, their number, and the first one's index where
        the array is in memory. None if there is no such value.
    """

    def number(value: Any) -> float:
        if client is not None and is_dask(value):
            value = client.compute(value, sync=True)
        return float(value)

    n_coords = len(data.coords)
    names = ["y", *(f"x[{i}]" for i in range(n_coords)), "sigma"]
    if n_coords == 1:
        names[1] = "x"
    for name, array in zip(names, data.operands, strict=False):
        if array.dtype.kind != "f":
            continue
        bad = ~np.isfinite(array)
        count = int(number(bad.sum()))
        if count:
            first = None if is_dask(bad) else tuple(int(i) for i in np.argwhere(bad)[0])
            return _errors.not_finite(name, count, first)
    if data.sigma is not None and is_dask(data.sigma):
        count = int(number((~(data.sigma > 0)).sum()))
        if count:
            return _errors.sigma_not_positive(count, number(data.sigma.min()))
    return None
