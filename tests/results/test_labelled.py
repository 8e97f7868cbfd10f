"""Results of labelled data: arrays of xarray with the same labels, as lazy as the data."""

from __future__ import annotations

from dataclasses import dataclass, field

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nlsq_dask import CovarianceWarning, FitResult, InputError, fit
from nlsq_dask.io.sources import is_dask

T, LAT, LON = np.linspace(0, 2, 12), np.linspace(1, 2, 6), np.linspace(0, 1, 5)
CUBE = 2.5 * np.exp(-1.3 * T)[:, None, None] + LAT[:, None] * LON
DIMS = ("time", "lat", "lon")
NOISE = 0.01 * np.random.default_rng(5).standard_normal(CUBE.shape)
ATTRS = {"long_name": "power", "units": "mW", "standard_name": "power", "valid_range": [0.0, 9.0]}


def surface(x, a, b, c):
    t, lat, lon = x
    return a * jnp.exp(-b * t) + c * lat * lon


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def plane(x, a, b):
    return a * x[0] + b * x[1]


def constant(x, a):
    return a + 0.0 * x


def cube(chunks=None):
    coords = {
        "time": ("time", T, {"units": "s", "long_name": "delay"}),
        "lat": LAT,
        "lon": LON,
        "site": ("lat", list("abcdef")),
        "run": 7,
    }
    array = xr.DataArray(CUBE + NOISE, coords, DIMS, "power", ATTRS)
    return array if chunks is None else array.chunk(chunks)


@pytest.fixture(scope="module", params=[None, {"time": 5, "lat": 3}], ids=["memory", "chunks"])
def fitted(request):
    y = cube(request.param)
    return y, fit(surface, (y.time, y.lat, y.lon), y, p0=[1, 1, 0])


def assert_labelled(array, y, expected):
    """Dimensions, coordinates, chunks and laziness of y; units of y; the expected numbers."""
    assert isinstance(array, xr.DataArray)
    assert array.dims == y.dims
    assert array.chunks == y.chunks
    assert array.coords.identical(y.coords)
    assert array.attrs["units"] == "mW"
    assert "valid_range" not in array.attrs
    np.testing.assert_allclose(array.values, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_results_have_the_labels_and_chunks_of_y(fitted):
    y, result = fitted
    a, b, c = result.popt
    dense = a * np.exp(-b * T)[:, None, None] + c * LAT[:, None] * LON
    prediction, residuals = result.predict(), result.residuals()
    assert_labelled(prediction, y, dense)
    assert_labelled(residuals, y, CUBE + NOISE - dense)
    assert (prediction.name, residuals.name) == ("prediction", "residuals")
    assert prediction.attrs["long_name"] == "prediction of power"
    assert residuals.attrs == {"units": "mW", "long_name": "residuals of power"}
    lower, upper = result.confidence_band()
    assert_labelled(0.5 * (lower + upper.values).assign_attrs(lower.attrs), y, dense)
    assert bool((lower < upper).all())
    assert (lower.name, upper.name) == ("lower", "upper")
    assert is_dask(lower.data) == is_dask(y.data)


def test_predictions_at_coordinates_have_the_dimensions_of_the_coordinates(fitted):
    """A tuple that the fit took, and coordinates in another order or of fewer points."""
    y, result = fitted
    expected = result.predict()
    xr.testing.assert_allclose(result.predict((y.time, y.lat, y.lon)), expected)
    turned = result.predict((y.time, y.lat, y.transpose("lon", ...).lon))
    assert turned.dims == DIMS
    few = y.isel(time=slice(2, 5), lat=0, drop=True)
    at = result.predict((few.time, y.lat, 0.5))
    assert at.sizes == {"time": 3, "lat": 6}
    np.testing.assert_array_equal(at.time, T[2:5])
    a, b, c = result.popt
    np.testing.assert_allclose(at, a * np.exp(-b * T[2:5])[:, None] + c * LAT * 0.5, rtol=1e-12)
    assert at.attrs["units"] == "mW"
    lower, _ = result.confidence_band((few.time, y.lat, 0.5))
    assert lower.coords.identical(at.coords)


@pytest.mark.slow
def test_coordinates_are_paired_by_their_labels():
    lat, lon = xr.DataArray(LAT, dims="row"), xr.DataArray(LAT**2, dims="row")
    lat, lon = (v.assign_coords(row=list("abcdef")) for v in (lat, lon))
    result = fit(plane, np.stack([LAT, LAT**2]), 2 * LAT + 3 * LAT**2)
    expected = 2 * LAT + 3 * LAT**2
    tupled = fit(plane, (lat, lon), xr.DataArray(expected, dims="row"))
    turned = tupled.predict((lat, lon[::-1]))
    assert turned.row.values.tolist() == list("abcdef")
    np.testing.assert_allclose(turned, expected, rtol=1e-9)
    for other in (lon[1:], lon.assign_coords(row=list("abcdeg"))):
        with pytest.raises(InputError, match=r"x\[1\] .* label.* along 'row'"):
            tupled.predict((lat, other))
    for other in (lon[1:], lon[1:].drop_vars("row")):  # nothing says which rows belong together
        with pytest.raises(InputError, match="do not broadcast together"):
            tupled.predict((lat.drop_vars("row"), other))
    np.testing.assert_allclose(tupled.predict((lat, lon[:1].drop_vars("row"))), 2 * LAT + 3)
    # Several coordinates in one array: the first dimension counts them.
    stacked = xr.DataArray([LAT, LAT**2], dims=("coordinate", "row"), coords={"row": lat.row})
    at = result.predict(stacked)
    assert at.dims == ("row",)
    np.testing.assert_allclose(at, expected, rtol=1e-9)
    assert at.row.identical(lat.row)
    # The fit took coordinates along the last dimension by the names, and so does the prediction.
    x = stacked.transpose("row", "coordinate")
    turned = fit(plane, x, xr.DataArray(expected, dims="row"))
    np.testing.assert_allclose(turned.predict(x), expected, rtol=1e-9)


@pytest.mark.slow
def test_names_and_dates_are_coordinates_of_a_prediction_as_of_a_fit():
    dates = pd.date_range("2026-01-01", periods=12, freq="s", name="time")
    y = cube({"time": 5}).assign_coords(time=dates)
    result = fit(surface, ("time", "lat", "lon"), y, p0=[1, 1, 0])
    named = result.predict(("time", "lat", "lon"))
    xr.testing.assert_allclose(named, result.predict())
    few = y.isel(time=slice(2, 4), lat=1, lon=2, drop=True).time
    at = result.predict((few, 1.2, 0.5))
    assert at.indexes["time"].equals(dates[2:4])
    a, b, c = result.popt
    seconds = np.array([2.0, 3.0])
    np.testing.assert_allclose(at, a * np.exp(-b * seconds) + c * 1.2 * 0.5, rtol=1e-12)
    with pytest.raises(InputError, match="'height'"):
        result.predict(("time", "lat", "height"))
    line = y.isel(lat=0, lon=0)
    axes = fit(decay, "time", line, p0=[1, 1, 1]).plot().axes
    assert axes[1].get_xlabel() == "time [s since 2026-01-01T00:00:00]"


def test_labels_of_several_levels_and_of_times():
    index = pd.MultiIndex.from_product([["u", "v"], range(6)], names=["run", "point"])
    y = xr.DataArray(2 * T + 1, xr.Coordinates.from_pandas_multiindex(index, "row"), dims="row")
    result = fit(plane, np.stack([T, np.ones(12)]), y)
    assert result.predict().indexes["row"].equals(index)
    np.testing.assert_allclose(result.residuals().sel(run="v"), 0, atol=1e-9)
    days = y.drop_vars(["row", "run", "point"]).assign_coords(row=pd.date_range("2026", periods=12))
    result = fit(plane, np.stack([T, np.ones(12)]), days)
    assert result.predict().indexes["row"].equals(days.indexes["row"])


@dataclass
class Counted:
    """An array on a disk that counts its readings."""

    shape: tuple = (12,)
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float64))
    ndim: int = 1
    read: int = 0

    def __getitem__(self, key):
        self.read += 1
        return np.zeros(self.shape)[key]


def test_no_lazy_coordinate_is_read():
    counted = Counted()
    height = da.from_array(counted, chunks=4)
    y = xr.DataArray(da.from_array(T, chunks=4), {"time": T, "height": ("time", height)}, ("time",))
    counted.read = 0
    result = fit(plane, np.stack([T, np.ones(12)]), y)
    prediction = result.predict()
    band = result.confidence_band(
        xr.DataArray(np.stack([T, T]), dims=("k", "time"), coords=y.coords)
    )
    assert is_dask(prediction.height.data)
    assert is_dask(band[0].height.data)
    assert counted.read == 0


@pytest.mark.slow
def test_results_without_labels_have_none(tmp_path):
    with pytest.warns(CovarianceWarning):
        one = fit(constant, 1.0, xr.DataArray(3.0))
    np.testing.assert_array_equal(one.predict(), [3.0])
    result = fit(decay, T, 2 * np.exp(-T) + 1, p0=[1, 0.5, 0])
    assert type(result.predict()) is type(result.residuals()) is np.ndarray
    at = xr.DataArray(T[:4], dims="time", name="delay")
    assert isinstance(result.predict(at), xr.DataArray)
    assert result.predict(at).attrs == {"long_name": "prediction of y"}
    result.save(tmp_path / "decay.json")
    loaded = FitResult.load(tmp_path / "decay.json", model=decay)
    xr.testing.assert_identical(loaded.predict(at), result.predict(at))


def test_plots_name_quantities_and_units():
    y = cube().isel(lat=0, lon=1)
    top, bottom = fit(decay, y.time, y, p0=[1, 1, 1]).plot().axes
    assert bottom.get_xlabel() == "delay [s]"
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("power [mW]", "y − f [mW]")
    top, bottom = fit(decay, y.time, y, p0=[1, 1, 1], sigma=0.01).plot().axes
    assert bottom.get_ylabel() == "(y − f) / σ"
    y = cube()
    top, bottom = fit(surface, (y.time, y.lat, y.lon), y, p0=[1, 1, 0]).plot("rows").axes
    assert bottom.get_xlabel() == "fitted value [mW]"
    assert top.get_ylabel() == "observed value [mW]"
