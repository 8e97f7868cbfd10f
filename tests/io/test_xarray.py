"""Arrays of xarray, in memory and on Dask."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nlsq_dask import InputError, InputTypeError, fit
from nlsq_dask.io.sources import is_dask, observe

RNG = np.random.default_rng(3)
T, LAT, LON = np.linspace(0, 2, 20), np.linspace(1, 2, 20), np.linspace(0, 1, 15)
CUBE = 2.5 * np.exp(-1.3 * T)[:, None, None] + LAT[:, None] * LON
DIMS = ("time", "lat", "lon")


def model(x, a, b, c):
    t, lat, lon = x
    return a * np.exp(-b * t) + c * lat * lon


def cube(chunks=None):
    array = xr.DataArray(CUBE, dims=DIMS, coords={"time": T, "lat": LAT, "lon": LON})
    return array if chunks is None else array.chunk(chunks)


@pytest.mark.parametrize("chunks", [None, {"time": 4, "lat": 20, "lon": 5}])
def test_coordinates_broadcast_by_the_names_of_dimensions(chunks):
    """Also where the numbers of rows of two dimensions are equal."""
    y = cube(chunks)
    data = observe((y.time, y.lat, y.lon), y, sigma=1 + y.lat)
    assert [c.shape for c in data.coords] == [(20, 1, 1), (1, 20, 1), (1, 1, 15)]
    assert data.sigma.shape == (1, 20, 1)
    assert data.lazy == is_dask(data.y) == (chunks is not None)
    result = fit(model, (y.time, y.lat, y.lon), y, p0=[1, 1, 0])
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 1.0], rtol=1e-7)


def test_dask_stays_lazy_and_numpy_is_not_copied():
    y = cube({"time": 4})
    assert observe((y.time, y.lat, y.lon), y).y is y.data
    y = cube()
    assert np.shares_memory(observe((y.time, y.lat, y.lon), y).y, y.data)


def test_dimensions_in_another_order():
    y = cube()
    turned = y.transpose("lon", "time", "lat")
    data = observe(turned, y, mask=turned < 0.5)
    np.testing.assert_array_equal(data.coords[0], CUBE)
    np.testing.assert_array_equal(data.masks[0], CUBE < 0.5)


@pytest.mark.parametrize("lazily", [False, True])
def test_a_mask_of_some_dimensions(lazily):
    y = cube({"time": 5} if lazily else None)
    sea = (y.lat > 1.5) if not lazily else (y.lat > 1.5).chunk(7)
    data = observe((y.time, y.lat, y.lon), y, mask=sea, nan_policy="omit")
    assert data.masks[0].shape == (1, 20, 1)
    assert is_dask(data.masks[0]) == lazily


def test_by_position_where_y_has_no_names():
    data = observe((xr.DataArray(T[:, None, None]), LAT[:, None], xr.DataArray(LON)), CUBE)
    assert [c.shape for c in data.coords] == [(20, 1, 1), (1, 20, 1), (1, 1, 15)]


def test_several_coordinates_in_one_array():
    x = xr.DataArray(RNG.random((2, 30)), dims=("coordinate", "row"))
    y = xr.DataArray(RNG.random(30), dims="row")
    data = observe(x, y)
    assert data.structure == "stacked"
    np.testing.assert_array_equal(data.coords[1], x.data[1])


def test_names_of_arrays_in_errors():
    y = cube()
    with pytest.raises(InputError, match=r"x\[1\] lacks 1 label of y \(2.0\) along 'lat'"):
        observe((y.time, y.lat[:-1]), y)
    with pytest.raises(InputTypeError, match="x has dtype complex128"):
        observe(xr.DataArray(np.arange(20) * 1j, dims="time"), y)
