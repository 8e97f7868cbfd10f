"""The seasons of the sea, from a NetCDF file of packed 16-bit integers.

The data are temperatures of the surface of a sea (time, lat, lon) over two years. The file stores
integers: hundredths of a kelvin above 10 °C (``scale_factor``, ``add_offset``). Land has the number
-32768 (``_FillValue``).

The mean, its fall towards the pole, and the height and day of the summer are fitted to all cells of
the sea together. The file is opened in two ways: by xarray, which decodes the integers, and by
h5py, which does not, so that the fit decodes them. Neither loads the variable. The answers are the
same.

The picture shows the map of one day, and the mean of three latitudes with the fitted curves.

Run with ``python examples/packed_netcdf.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from common import BLUE, COLOR_MAP, ORANGE, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.dates import MonthLocator
from matplotlib.figure import Figure

from nlsq_dask import FitResult, fit

TRUTH = {"mean": 17.2, "gradient": -0.42, "swing": 6.3, "warmest": 228.0}
START = {"mean": 10.0, "gradient": 0.0, "swing": 3.0, "warmest": 200.0}
DATES = np.arange("2022-01-01", "2024-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
LATITUDES = np.linspace(32.0, 46.0, 48)
LONGITUDES = np.linspace(-4.0, 24.0, 64)
YEAR = 365.25  # days
MIDDLE = 39.0  # degrees of latitude
NOISE = 0.8  # kelvin
PACKING = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 10.0, "_FillValue": -32768}
SHOWN = {6: VERMILION, 24: ORANGE, 42: BLUE}  # indexes of latitudes in the picture
# Most distance of two answers, in standard errors. Some versions of xarray decode to float32.
SAME = 1e-3


def seasons(
    x: tuple[jax.Array, jax.Array],
    mean: float,
    gradient: float,
    swing: float,
    warmest: float,
) -> jax.Array:
    """Temperature in °C: days since 1 January, and degrees of latitude."""
    day, latitude = x
    wave = jnp.cos(2 * jnp.pi * (day - warmest) / YEAR)
    return mean + gradient * (latitude - MIDDLE) + swing * wave


def write_file(path: Path) -> None:
    """Write the temperatures packed into integers, in chunks of about two months."""
    rng = np.random.default_rng(29)
    days = np.arange(DATES.size, dtype=float)
    clean = np.asarray(seasons((days[:, None, None], LATITUDES[:, None]), **TRUTH))
    shape = (DATES.size, LATITUDES.size, LONGITUDES.size)
    sst = rng.normal(clean, NOISE, shape)
    coast = MIDDLE + 4 + 2.5 * np.sin(LONGITUDES / 3)
    island = np.hypot(LATITUDES[:, None] - 38, LONGITUDES - 12) < 2
    sst[:, (LATITUDES[:, None] > coast) | island] = np.nan
    attrs = {"long_name": "sea surface temperature", "units": "degC"}
    data = xr.Dataset(
        {"sst": (("time", "lat", "lon"), sst, attrs)},
        {"time": DATES, "lat": LATITUDES, "lon": LONGITUDES},
    )
    chunks = (60, LATITUDES.size, LONGITUDES.size)
    encoding = {"sst": {**PACKING, "chunksizes": chunks}}
    data.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def fit_with_xarray(path: Path) -> FitResult:
    """Fit the variable that xarray decodes. Its times are dates."""
    with xr.open_dataset(path, engine="h5netcdf") as data:
        return fit(seasons, ("time", "lat"), data["sst"], START, nan_policy="omit", time_unit="D")


def fit_with_h5py(path: Path) -> FitResult:
    """Fit the stored integers, which the fit decodes. The file counts its times in days."""
    with h5py.File(path) as file:
        x = (file["time"][:][:, None, None], file["lat"][:][:, None])
        return fit(seasons, x, file["sst"], START, nan_policy="omit")


def draw(path: Path, result: FitResult) -> Figure:
    """The map of one day, and the seasons of three latitudes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    values = dict(zip(result.names, result.popt, strict=True))
    with xr.open_dataset(path, engine="h5netcdf") as data:
        day = data["sst"].sel(time="2023-08-15").squeeze()
        mesh = left.pcolormesh(data.lon, data.lat, day, cmap=COLOR_MAP)
        for k, color in SHOWN.items():
            mean = data["sst"].isel(lat=k, time=slice(None, None, 6)).mean("lon")
            right.plot(mean.time, mean, ".", ms=4, color=color)
            place = (np.arange(DATES.size), np.full(DATES.size, LATITUDES[k]))
            curve = np.asarray(seasons(place, **values))
            right.plot(DATES, curve, color=color, label=f"{LATITUDES[k]:.0f}° N")
    figure.colorbar(mesh, ax=left, label="sea surface temperature (°C)")
    left.set_facecolor("0.8")
    left.set(xlabel="longitude (°E)", ylabel="latitude (°N)", title="15 August 2023; land is grey")
    right.set(ylabel="mean over longitudes (°C)", xlabel="date")
    right.set_title(f"warmest {result.params['warmest']} days after 1 January")
    right.legend(frameon=False, loc="upper right", ncols=3)
    right.set_ylim(6, 33)
    right.xaxis.set_major_locator(MonthLocator((1, 7)))
    return figure


def main() -> None:
    """Write the file, fit it as it is opened in two ways, compare, draw the picture."""
    output = picture_path(__doc__, "packed_netcdf.png")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sea.nc"
        write_file(path)
        result, other = fit_with_xarray(path), fit_with_h5py(path)
        print(result)
        check(result, TRUTH)
        apart = np.abs(result.popt - other.popt) / result.perr
        print(f"\nopened by h5py: at most {apart.max():.1e} standard errors away from xarray")
        if apart.max() > SAME or result.n_points != other.n_points:
            sys.exit("xarray and h5py lead to different answers")
        save(draw(path, result), output)


if __name__ == "__main__":
    main()
