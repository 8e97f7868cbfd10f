"""Starting values in the forms in which callers have them.

The result of an earlier fit, of one or of many series, stands for its estimates by name, in their
units. So does an ``xarray.Dataset`` with the estimates, which may have other variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlsq_dask.core.bounds import by_name
from nlsq_dask.io.libraries import is_instance
from nlsq_dask.io.units import BareParameters
from nlsq_dask.results.dataset import COEFFICIENTS
from nlsq_dask.results.maps_dataset import RENAMED
from nlsq_dask.results.maps_record import MapsRecord
from nlsq_dask.results.record import FitRecord, estimates_of
from nlsq_dask.user_model.signature import parameter_names


def starting_values(model: Callable[..., Any], p0: Any) -> BareParameters:
    """Starting values as numbers, or as maps of numbers, and the units that they had.

    Parameters
    ----------
    model : callable
    p0 : object
        As for :func:`nlsq_dask.fit` and :func:`nlsq_dask.fit_each`.

    Raises
    ------
    ModelError
        If `p0` is an ``xarray.Dataset`` and the model's signature does not name its parameters.
    """
    if isinstance(p0, FitRecord):
        return BareParameters(estimates_of(p0), p0.param_units)
    if isinstance(p0, MapsRecord):
        return BareParameters(dict(p0.popt), p0.units)
    if is_instance(p0, "xarray", "Dataset"):
        p0 = _estimates(p0.data_vars, parameter_names(model))
    return BareParameters.of(by_name(p0))


def _estimates(variables: Mapping[Any, Any], names: Sequence[str]) -> Any:
    """The estimates among the variables of a Dataset."""
    if COEFFICIENTS in variables:
        return variables[COEFFICIENTS]
    stored = {name: key for name in names for key in (RENAMED + name, name) if key in variables}
    return {name: variables[key] for name, key in stored.items()} or variables
