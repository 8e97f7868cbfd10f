"""Names in place of arrays: coordinates of y, and variables of data sets of several libraries."""

from __future__ import annotations

import h5py
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from nlsq_dask import InputError, InputTypeError, curve_fit, fit, fit_models, plan

T = np.linspace(0.0, 3.0, 30)
POWER = 2.0 + 0.5 * T + 0.01 * np.sin(40 * T)
ERR = 0.01 + 0.01 * np.cos(T) ** 2
FLAG = np.arange(30) % 7 == 3
COLUMNS = {"time": T, "power": POWER, "err": ERR, "flag": FLAG}
KNOWN, _ = curve_fit(
    lambda x, a, b: a + b * x, T[~FLAG], POWER[~FLAG], sigma=ERR[~FLAG], absolute_sigma=True
)


def line(x, a, b):
    return a + b * x


def dataset(_):
    variables = {name: ("time", COLUMNS[name]) for name in ("power", "err", "flag")}
    return xr.Dataset(variables, {"time": T})


def zarr_group(_):
    group = zarr.create_group({})
    for name, values in COLUMNS.items():
        group[name] = values
    return group


def hdf5_group(path):
    file = h5py.File(path / "a.h5", "w")
    for name, values in COLUMNS.items():
        file[name] = values
    return file


def netcdf_group(path):
    file = netCDF4.Dataset(path / "a.nc", "w")
    file.createDimension("time", 30)
    for name in ("time", "power", "err"):
        file.createVariable(name, "f8", ("time",))[:] = COLUMNS[name]
    return file


SETS = {
    "xarray": dataset,
    "pandas": lambda _: pd.DataFrame(COLUMNS),
    "index of pandas": lambda _: pd.DataFrame(COLUMNS).set_index("time"),
    "dictionary": lambda _: COLUMNS,
    "zarr": zarr_group,
    "hdf5": hdf5_group,
    "netcdf": netcdf_group,
}


@pytest.mark.parametrize("library", SETS)
def test_variables_of_a_data_set(library, tmp_path):
    data = SETS[library](tmp_path)
    mask = FLAG if library == "netcdf" else "flag"  # netCDF has no truth values
    result = fit(line, "time", "power", data=data, sigma="err", mask=mask)
    np.testing.assert_allclose(result.popt, KNOWN, rtol=1e-8)
    with pytest.raises(InputError, match=r"sigma = 'error' is no variable of data, .*'power'"):
        fit(line, "time", "power", data=data, sigma="error")
    if library in ("hdf5", "netcdf"):
        data.close()


class Table:
    """A table with names of columns, and an error of its own, as that of polars."""

    columns = ("time", "power")

    def __getitem__(self, name):
        return {"time": T, "power": POWER}[name]


class Query(Table):
    """What stands for a table, as polars' LazyFrame."""

    def __getitem__(self, name):
        raise TypeError(name)


class LazyFrame(Query):
    """The query of polars, whose property warns."""

    __module__ = "polars.lazyframe.frame"

    @property
    def columns(self):
        raise AssertionError("polars warns here")


def test_a_query_is_not_asked_for_its_columns():
    with pytest.raises(InputTypeError, match=r"holds no variables by name: .*\.collect\(\)"):
        fit(line, "time", "power", data=LazyFrame())


def test_a_variable_of_a_tree_is_named_in_its_group():
    tree = xr.DataTree.from_dict({"/night": dataset(None)})
    assert fit(line, "time", "power", data=tree["night"]).success
    with pytest.raises(InputError, match=r"'time' .* a DataTree with variables in '/night': pass"):
        fit(line, "time", "power", data=tree)
    with pytest.raises(InputTypeError, match=r"y is a DataTree .*data=tree\['/night'\]"):
        fit(line, "time", tree)


def test_tables_of_other_libraries():
    assert fit(line, "time", "power", data=Table()).success
    with pytest.raises(InputError, match=r"x = 'when' is no variable .* 'time' and 'power'"):
        fit(line, "when", "power", data=Table())
    with pytest.raises(InputTypeError, match=r"holds no variables by name: .*\.collect\(\)"):
        fit(line, "time", "power", data=Query())


def test_all_callers_take_names():
    data, options = dataset(None), {"sigma": "err"}
    popt, _ = curve_fit(line, "time", "power", data=data, **options)
    found = fit_models([line], "time", "power", data=data, **options)[0].popt
    np.testing.assert_allclose(found, popt, rtol=1e-8)
    assert plan(line, "time", "power", p0=[1, 1], data=data, **options).rows == 30


@pytest.mark.slow
def test_coordinates_of_y():
    y = xr.DataArray(
        POWER[:, None] + np.arange(4.0),
        {"time": T, "err": ("time", ERR), "height": ("row", np.arange(4.0) * 2)},
        ("time", "row"),
    )

    def plane(x, a, b, c):
        t, row = x
        return a + b * t + c * row

    wanted = fit(plane, (T[:, None], np.arange(4.0)), y.values, sigma=ERR[:, None]).popt
    for x in (("time", "row"), (T, "row"), (y.time, np.arange(4.0)[None])):
        np.testing.assert_allclose(fit(plane, x, y, sigma="err").popt, wanted, rtol=1e-9)
    half = fit(plane, ("time", "height"), y.transpose("row", "time"), sigma=y.err).popt
    np.testing.assert_allclose(half, wanted * [1, 1, 0.5], rtol=1e-9)
    series = pd.Series(POWER, pd.Index(T, name="t"))
    np.testing.assert_allclose(fit(line, "t", series).popt, fit(line, T, POWER).popt, rtol=1e-9)
    for wrong in (y, series):
        with pytest.raises(InputError, match="'tine' is no coordinate of y, which has 't"):
            fit(line, "tine", wrong)


def test_a_bare_data_set_is_refused_with_its_variables():
    data = dataset(None)
    match = r"y is a Dataset of 'power', 'err' and 'flag'.*fit\(model, 'time', 'power', data=ds\)"
    with pytest.raises(InputTypeError, match=match):
        fit(line, "time", data)
    with pytest.raises(InputTypeError, match="x is a Dataset of 'power'"):
        fit(line, data, POWER)
    with pytest.raises(InputTypeError, match="data = 'a.nc' holds no variables by name"):
        fit(line, "time", "power", data="a.nc")
