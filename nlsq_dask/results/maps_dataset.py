"""Maps of fits as an ``xarray.Dataset``.

Flags follow the Climate and Forecast conventions 1.11, section 3.5: ``flag_values`` for a status,
and ``flag_masks`` for the bits of the parameters at a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.observations import Array
from nlsq_dask.results.dataset import COEFFICIENTS, COLUMN, COVARIANCE, PARAM, ROW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

# Before the name of a variable that is also that of a coordinate, or of another variable.
RENAMED = "fit_"

#: Dimensions, values and attributes.
Variable: TypeAlias = "tuple[tuple[Any, ...], Array, dict[str, Any]]"

_MEANINGS = {
    "chi2": "sum of squared weighted residuals",
    "reduced_chi2": "chi2 over the degrees of freedom",
    "n_points": "rows that count",
    "nfev": "evaluations of the model",
    "status": "why the fit ended",
    "distance_to_optimum_sigma": "distance to the optimum in standard errors",
    "at_bound": "parameters on a bound",
}


class Maps(Protocol):
    """What a dataset takes of the maps."""

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def fields(self) -> Mapping[str, Array]: ...  # noqa: D102
    @property
    def frame(self) -> Frame | None: ...  # noqa: D102
    @property
    def units(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def pcov(self) -> Array: ...  # noqa: D102


def variable_names(maps: Maps) -> dict[tuple[str, int], str]:
    """Names of the variables of a dataset, by field and by number of the parameter.

    Dimensions and coordinates of the map keep their names, and then parameters. A variable whose
    name is taken gets the prefix ``fit_``.
    """
    wanted = {("popt", i): name for i, name in enumerate(maps.names)}
    wanted |= {("perr", i): f"{name}_stderr" for i, name in enumerate(maps.names)}
    wanted |= {(name, 0): name for name in _MEANINGS}
    taken = {str(dim) for dim in dims_of(maps)}
    if maps.frame is not None:
        taken |= {str(name) for name in maps.frame.coords}
    if "pcov" in maps.fields:
        wanted["pcov", 0] = "covariance"
        taken |= {ROW, COLUMN}
    names: dict[tuple[str, int], str] = {}
    for key, own in wanted.items():
        name = own
        while name in taken:
            name = RENAMED + name
        names[key] = name
        taken.add(name)
    return names


def variables_of(maps: Maps) -> dict[str, Variable]:
    """Dimensions, values and attributes of the variables of a dataset, by name."""
    dims, names = dims_of(maps), variable_names(maps)
    variables: dict[str, Variable] = {}
    for i, name in enumerate(maps.names):
        unit = {"units": maps.units[name]} if name in maps.units else {}
        variables[names["popt", i]] = (dims, maps.fields["popt"][i], unit)
        variables[names["perr", i]] = (
            dims,
            maps.fields["perr"][i],
            {"long_name": f"standard error of {name}", **unit},
        )
    for name, meaning in _MEANINGS.items():
        attrs = {"long_name": meaning, **_flags(name, maps.names, maps.fields[name].dtype)}
        variables[names[name, 0]] = (dims, maps.fields[name], attrs)
    if "pcov" in maps.fields:
        variables[names["pcov", 0]] = ((ROW, COLUMN, *dims), maps.pcov, {})
    return variables


def to_dataset(maps: Maps) -> xr.Dataset:
    """All maps; see :meth:`nlsq_dask.FitMaps.to_dataset`."""
    coords = {} if maps.frame is None else maps.frame.coords
    dataset: xr.Dataset = _xarray().Dataset(variables_of(maps), coords)
    if "pcov" in maps.fields:
        names = _texts(maps.names)
        dataset = dataset.assign_coords({ROW: names, COLUMN: names})
    return dataset


def to_curvefit(maps: Maps) -> xr.Dataset:
    """The variables of ``xarray.DataArray.curvefit``."""
    made, dims = _xarray().Dataset, dims_of(maps)
    n = len(dims)
    covariance = maps.pcov
    coefficients = maps.fields["popt"].transpose(*range(1, n + 1), 0)
    names = _texts(maps.names)
    dataset: xr.Dataset = made(
        {
            COEFFICIENTS: ((*dims, PARAM), coefficients),
            COVARIANCE: ((*dims, ROW, COLUMN), covariance.transpose(*range(2, n + 2), 0, 1)),
        },
        {} if maps.frame is None else maps.frame.coords,
    )
    return dataset.assign_coords({PARAM: names, ROW: names, COLUMN: names})


def _flags(name: str, names: Sequence[str], dtype: Any) -> dict[str, Any]:
    if name == "status":
        statuses = sorted(Status)
        return {
            "flag_values": np.array([int(s) for s in statuses], dtype),
            "flag_meanings": " ".join(s.name.lower() for s in statuses),
        }
    if name == "at_bound":
        bits = min(len(names), np.dtype(dtype).itemsize * 8)
        return {
            "flag_masks": np.array([1 << i for i in range(bits)], dtype),
            "flag_meanings": " ".join(names[:bits]),
        }
    return {}


def dims_of(maps: Maps) -> tuple[Any, ...]:
    """Names of the dimensions of the map."""
    if maps.frame is not None:
        return tuple(maps.frame.dims)
    return tuple(f"dim_{i}" for i in range(len(maps.shape)))


def _texts(texts: Sequence[str]) -> Any:
    """Texts as an array of objects: Zarr warns of texts of a fixed length."""
    return np.array(texts, dtype=object)


def _xarray() -> Any:
    try:
        import xarray as xr
    except ImportError as error:
        raise _errors.maps_need_xarray() from error
    return xr
