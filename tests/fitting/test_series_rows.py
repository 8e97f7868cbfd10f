"""Coordinates of many series: those of the fit, and those of a prediction."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nlsq_dask import InputError, fit_each
from tests.support.series import START, decay, decay_in_numpy

pytestmark = pytest.mark.versions

MINUTES = np.arange(30.0)
DATES = np.datetime64("2020-01-01", "ns") + MINUTES.astype("m8[m]")
TRUE = np.stack([np.linspace(1.0, 2.0, 12), np.linspace(4.0, 9.0, 12), np.linspace(-1.0, 1.0, 12)])
CUBE = xr.DataArray(
    decay_in_numpy(MINUTES[:, None], *TRUE).reshape(30, 3, 4)
    + np.random.default_rng(0).normal(0.0, 0.02, (30, 3, 4)),
    {"time": DATES, "row": [2, 1, 0], "column": np.arange(4), "place": ("row", list("abc"))},
    ("time", "row", "column"),
    "signal",
    {"units": "V"},
)


@pytest.fixture(scope="module", params=["arrays", "lazy", "another order"])
def maps(request):
    kinds = {"lazy": CUBE.chunk(row=2), "another order": CUBE.transpose("row", "column", "time")}
    y = kinds.get(request.param, CUBE)
    return fit_each(decay, "time", y, (1, 5, 0), dim="time", time_unit="min")


def test_dates_and_names_are_taken_as_in_the_fit(maps):
    known = maps.predict().compute()
    later = slice(7, 20)  # the first date of x is not that of the fit
    expected = decay_in_numpy(MINUTES[later, None, None], *(maps[name].data for name in maps.names))
    dated = maps.predict(DATES[later]).transpose("time", "row", "column")
    np.testing.assert_allclose(dated, expected, rtol=1e-12)
    xr.testing.assert_allclose(maps.predict("time"), known)
    labelled = maps.predict(CUBE["time"][later])
    xr.testing.assert_allclose(labelled, known.isel(time=later))
    assert labelled.attrs["units"] == "V"


def test_rows_are_paired_by_the_labels_of_the_map(maps):
    known = maps.predict().compute()
    minutes = xr.DataArray(MINUTES, {"time": DATES}, ("time",)) + 0.0 * CUBE.isel(time=0, drop=True)
    other = minutes.isel(row=[2, 0, 1], time=slice(0, 9)).transpose("column", "time", "row")
    xr.testing.assert_allclose(maps.predict(other), known.isel(time=slice(0, 9)))
    with pytest.raises(InputError, match="x lacks 1 label of y"):
        maps.predict(other.assign_coords(row=[0, 1, 3]))


def test_another_dimension_takes_the_place_of_the_fitted_one(maps):
    known = maps.predict().transpose("time", "row", "column")
    delay = xr.DataArray([0.0, 5.0], {"delay": [0, 5]}, ("delay",))
    found = maps.predict(delay)
    assert set(found.coords) == {"delay", "row", "column", "place"}
    found = found.transpose("delay", "row", "column")
    np.testing.assert_allclose(found, known.isel(time=[0, 5]), rtol=1e-12)
    for number in 5.0, xr.DataArray(np.full(3, 5.0), dims="row"):
        alone = maps.predict(number).transpose("time", "row", "column")
        np.testing.assert_allclose(alone, known.isel(time=[5]), rtol=1e-12)


def test_shapes_that_tell_no_series_apart_are_refused(maps):
    with pytest.raises(InputError, match="does not tell the series apart"):
        maps.predict(np.ones((3, 2)))
    with pytest.raises(InputError, match="x has the dimension"):
        maps.predict(xr.DataArray(np.ones((2, 2)), dims=("one", "two")))
    with pytest.raises(InputError, match="x has shape"):
        maps.predict(np.ones(tuple(n + 1 for n in CUBE.shape)))


def peak(x, height, center_x, center_y):
    return height / (1.0 + (x[0] - center_x) ** 2 + 2.0 * (x[1] - center_y) ** 2)


X, Y = np.linspace(-2.0, 2.0, 6), np.linspace(-1.0, 1.5, 6)
CENTERS = np.linspace(-0.5, 0.5, 6)
FRAMES = peak((X, Y[:, None]), 2.0, CENTERS[:, None, None], CENTERS[::-1, None, None])
FRAMES = FRAMES + np.random.default_rng(1).normal(0.0, 0.02, FRAMES.shape)


@pytest.mark.parametrize("dim", [(0, 1), (0, 2), (1, 2)])
def test_coordinates_broadcast_to_the_fitted_axes(dim):
    """All axes are as long as each other, so that no length tells them apart."""
    expected = fit_each(peak, np.meshgrid(X, Y), FRAMES, (1, 0, 0), dim=(1, 2))
    y = np.moveaxis(FRAMES, 0, 3 - sum(dim))
    for x in (X, Y[:, None]), (X[None], Y[:, None]):
        maps = fit_each(peak, x, y, (1, 0, 0), dim=dim)
        np.testing.assert_array_equal(maps.popt.array, expected.popt.array)
        np.testing.assert_array_equal(maps.predict(x), maps.predict())
        part = maps.predict((X[:3], Y[2:4, None]))
        few = tuple(
            slice(2, 4) if d == dim[0] else slice(3) if d == dim[1] else slice(None)
            for d in range(3)
        )
        np.testing.assert_allclose(part, maps.predict()[few], rtol=1e-12)


def test_sigma_broadcasts_to_the_fitted_axes():
    sigma, x = np.linspace(0.01, 0.03, 6)[:, None], (X, Y[:, None])
    expected = fit_each(peak, x, FRAMES, (1, 0, 0), dim=(1, 2), sigma=np.tile(sigma, 6))
    y = np.moveaxis(FRAMES, 0, 2)
    maps = fit_each(peak, x, y, (1, 0, 0), dim=(0, 1), sigma=sigma)
    np.testing.assert_array_equal(maps.popt.array, expected.popt.array)


def test_several_coordinates_in_one_array():
    both = np.stack(np.meshgrid(X, Y))
    maps = fit_each(peak, both, FRAMES, (1, 0, 0), dim=(1, 2))
    np.testing.assert_allclose(maps.predict(both[:, 1:4]), maps.predict()[:, 1:4], rtol=1e-12)
    with pytest.raises(InputError, match="the model was fitted with 2 coordinates"):
        maps.predict(both[0])


def test_quantities_are_converted_to_the_units_of_the_fit():
    pint = pytest.importorskip("pint")
    quantity = pint.get_application_registry().Quantity
    maps = fit_each(decay, quantity(MINUTES, "minute"), CUBE.values, START)
    found = maps.predict(quantity(60.0 * MINUTES, "second"))
    np.testing.assert_allclose(found, maps.predict(), rtol=1e-12)
