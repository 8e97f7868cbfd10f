"""Arguments by name: variables of a data set, and coordinates of y.

A name is a string. With ``data``, the names of y, x, sigma and mask are those of the variables in
``data``: an ``xarray.Dataset``, a ``pandas.DataFrame``, a dictionary, or a group of Zarr, HDF5 or
netCDF. Without, they are names of coordinates of y.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.io.libraries import is_instance, is_xarray

Arguments = tuple[Any, Any, Any, Any]


def named_arguments(x: Any, y: Any, *, sigma: Any, mask: Any, data: Any) -> Arguments:
    """Arrays in place of the names in x, y, sigma and mask.

    Parameters
    ----------
    x, y, sigma, mask : object
        Arguments of a fit. A tuple x may hold names.
    data : mapping or None
        Data set whose variables the names are.

    Returns
    -------
    x, y, sigma, mask : object
        Arguments that are no names stay as they are.

    Raises
    ------
    InputError
        If there is no variable or coordinate of a name.
    InputTypeError
        If x or y is a data set, or `data` is none.
    """
    for name, value in (("x", x), ("y", y), ("sigma", sigma), ("mask", mask)):
        if is_instance(value, "xarray", "DataTree"):
            raise _errors.tree_as_array(name, _groups(value))
        if is_instance(value, "xarray", "Dataset"):
            raise _errors.data_set_as_array(name, list(value.data_vars), list(value.dims))
    if data is None:
        return _by_coordinate(x, y), y, _by_coordinate(sigma, y), _by_coordinate(mask, y)
    if isinstance(data, str) or not hasattr(data, "__getitem__"):
        raise _errors.not_a_data_set(data)
    found = _variables(x, "x", data), _variables(y, "y", data)
    return *found, _variables(sigma, "sigma", data), _variables(mask, "mask", data)


def _variables(value: Any, argument: str, data: Any) -> Any:
    """Variables of a data set in place of their names."""
    if isinstance(value, tuple):
        return tuple(_variables(v, f"{argument}[{i}]", data) for i, v in enumerate(value))
    if not isinstance(value, str):
        return value
    if _errors.class_key(type(data)) == ("polars", "LazyFrame"):  # its property `columns` warns
        raise _errors.not_a_data_set(data)
    is_table = hasattr(type(data), "columns")  # of pandas, Dask, polars; each has its own error
    if is_table and value not in data.columns:
        levels = _levels(data.index) if is_instance(data, "pandas", "DataFrame") else {}
        if value in levels:
            return levels[value].to_series(index=data.index)
        raise _errors.variable_unknown(argument, value, [*data.columns, *levels])
    try:
        return data[value]
    except TypeError:  # a query that is not run
        raise _errors.not_a_data_set(data) from None
    except (KeyError, IndexError, ValueError):  # netCDF4 raises IndexError
        if is_instance(data, "xarray", "DataTree") and data.children:
            raise _errors.variable_of_tree(argument, value, _groups(data)) from None
        raise _errors.variable_unknown(argument, value, _names(data)) from None


def _by_coordinate(value: Any, y: Any) -> Any:
    """Coordinates of y in place of their names, if y has coordinates."""
    if isinstance(value, tuple):
        return tuple(_by_coordinate(item, y) for item in value)
    # A path is left to others.
    if not isinstance(value, str) or "/" in value:
        return value
    if is_xarray(y):
        if value not in y.coords and value not in y.dims:
            raise _errors.coordinate_unknown(value, list(dict.fromkeys([*y.dims, *y.coords])))
        return y[value]
    if is_instance(y, "pandas", "Series"):
        levels = _levels(y.index)
        if value not in levels:
            raise _errors.coordinate_unknown(value, list(levels))
        return levels[value].to_series(index=y.index)
    return value


def _levels(index: Any) -> dict[Hashable, Any]:
    """The labels of an index of pandas by the names of its levels."""
    return {n: index.get_level_values(i) for i, n in enumerate(index.names) if n is not None}


def _groups(tree: Any) -> list[str]:
    """The groups of a tree of xarray that have variables."""
    return [str(node.path) for node in tree.subtree if node.data_vars]


def _names(data: Any) -> list[Hashable]:
    """Names of the variables of a data set."""
    variables = getattr(data, "variables", None)
    if variables is None:
        names = getattr(getattr(data, "dtype", None), "names", None)
        keys = data.keys if hasattr(data, "keys") else tuple
        variables = names or keys()
    return list(variables) if isinstance(variables, Iterable) else []
