"""Times as coordinates: seconds or another unit since the first date, and back in predictions."""

from __future__ import annotations

import datetime as dt

import cftime
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import FitResult, InputError, InputTypeError, curve_fit, fit, fit_models, plan
from nlsq_dask.io.sources import observe
from nlsq_dask.io.times import UNITS

N = 24
SECONDS = np.arange(N) * 3600.0
DATES = np.datetime64("2020-02-28T06:00:00.5", "ns") + np.arange(N) * np.timedelta64(1, "h")
Y = 2.0 - 1e-5 * SECONDS
OBJECTS = pd.DatetimeIndex(DATES)
CALENDAR = [cftime.DatetimeNoLeap(2020, 2, 28, 6) + i * dt.timedelta(hours=1) for i in range(N)]
SINCE = "s since 2020-02-28T06:00:00.500"


def line(x, a, b):
    return a + b * x


FORMS = {
    "datetime64": DATES,
    "coarse": DATES.astype("M8[h]"),
    "index": OBJECTS,
    "of a zone": OBJECTS.tz_localize("UTC").tz_convert("Asia/Tokyo"),
    "series": pd.Series(DATES),
    "python": OBJECTS.to_pydatetime().tolist(),
    "dask": da.from_array(DATES, chunks=7),
    "masked": np.ma.masked_array(DATES, False),
    "xarray": xr.DataArray(DATES, {"t": DATES}, ("t",)),
    "cftime": CALENDAR,
    "cftime index": xr.date_range("2020-02-28T06", periods=N, freq="h", use_cftime=True),
    "cftime in dask": da.from_array(np.array(CALENDAR), chunks=7),
}


@pytest.mark.parametrize("form", FORMS)
def test_dates_become_seconds_since_the_first_and_come_back(form):
    x = FORMS[form]
    data = observe(x, Y)
    np.testing.assert_array_equal(data.coords[0], SECONDS)
    assert data.coords[0].dtype == np.float64
    result = fit(line, x, Y, time_unit="h")
    np.testing.assert_allclose(result.popt, [2.0, -0.036], rtol=1e-9)
    np.testing.assert_allclose(result.predict(x), Y, rtol=1e-9)
    np.testing.assert_allclose(result.predict(x[3:5]), Y[3:5], rtol=1e-9)
    np.testing.assert_allclose(result.predict(np.array([3.0, 4.0])), Y[3:5], rtol=1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_units(unit):
    found = observe(DATES, Y, time_unit=unit).coords[0]
    np.testing.assert_allclose(found, SECONDS * (1e9 / UNITS[unit]), rtol=1e-15)


@given(st.sampled_from([("ns", "ns", 2**51), ("ms", "ms", 2**51), ("D", "ns", 10**7)]), st.data())
def test_differences_have_one_rounding(case, drawn):
    """Also over more than the 292 years that 64 bits hold in nanoseconds."""
    own, unit, most = case
    ticks = drawn.draw(st.lists(st.integers(-most, most), min_size=1, max_size=9))
    found = observe(np.array(ticks, f"M8[{own}]"), np.zeros(len(ticks)), time_unit=unit).coords[0]
    exact = [(tick - ticks[0]) * UNITS[own] / UNITS[unit] for tick in ticks]
    np.testing.assert_array_equal(found, exact)


def test_durations_keep_their_zero():
    x = DATES - DATES[0] + np.timedelta64(5, "s")
    for form in (x, pd.TimedeltaIndex(x), pd.Series(x), pd.TimedeltaIndex(x).to_pytimedelta()):
        data = observe(form, Y)
        np.testing.assert_array_equal(data.coords[0], SECONDS + 5.0)
        assert str(data.times[0]) == "s"
    result = fit(line, x, Y)
    assert result.predict(x[:1])[0] == pytest.approx(2.0)
    with pytest.raises(InputTypeError, match="do not become numbers in s, as"):
        result.predict(DATES)


def test_the_origin_is_the_date_of_the_first_row_of_y():
    y = xr.DataArray(Y, {"t": DATES}, ("t",))
    turned = y[::-1].t
    np.testing.assert_array_equal(observe(turned, y).coords[0], SECONDS)
    np.testing.assert_array_equal(observe(turned, y[::-1]).coords[0], SECONDS[::-1] - SECONDS[-1])


def test_a_missing_time_is_a_missing_value():
    for missing in (DATES.copy(), np.array([*CALENDAR], object), da.from_array(DATES, chunks=5)):
        missing[[0, 7]] = None if missing.dtype == object else np.datetime64("NaT", "s")
        with pytest.raises(InputError, match="x has 2 values that are NaN"):
            fit(line, missing, Y)
        result = fit(line, missing, Y, nan_policy="omit")
        assert result.n_skipped == 2
        np.testing.assert_allclose(result.popt, [2.0 - 0.036, -1e-5], rtol=1e-7)


def test_all_callers_take_times():
    popt, _ = curve_fit(line, DATES, Y, time_unit="D")
    np.testing.assert_allclose(popt, [2.0, -0.864])
    assert fit_models([line], DATES, Y, time_unit="D")[0].popt[1] == pytest.approx(-0.864)
    assert plan(line, DATES, Y, p0=[1, 1], time_unit="D").rows == N


def test_the_result_says_what_the_numbers_are(tmp_path):
    result = fit(line, DATES, Y)
    for text in (str(result), result.summary(), result._repr_html_()):
        assert f"x in {SINCE}" in text
    _, bottom = result.plot().axes
    assert bottom.get_xlabel() == f"x [{SINCE}]"
    result.save(tmp_path / "r.json")
    again = FitResult.load(tmp_path / "r.json", model=line)
    assert again.times == result.times
    np.testing.assert_array_equal(again.predict(DATES[2:4]), result.predict(DATES[2:4]))


def test_several_coordinates_have_axes_of_their_own():
    def plane(x, a, b, c):
        t, row = x
        return a + b * t + c * row

    y = xr.DataArray(
        Y[:, None] + np.arange(3.0), {"t": DATES, "row": [0.0, 1.0, 2.0]}, ("t", "row")
    )
    result = fit(plane, ("t", "row"), y)
    np.testing.assert_allclose(result.popt, [2.0, -1e-5, 1.0], rtol=1e-8)
    assert list(map(str, result.times)) == [SINCE, "None"]
    found = result.predict((DATES[:4], np.ones(4)))
    np.testing.assert_allclose(found, Y[:4] + 1.0, rtol=1e-8)


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.arange(N).astype("m8[M]"), InputTypeError, "months and years have no fixed length"),
        (np.arange(N).astype("m8"), InputTypeError, r"x.astype\('timedelta64\[s\]'\)"),
        ([OBJECTS[0].to_pydatetime(), *range(N - 1)], InputTypeError, "x has dtype object"),
        ([*CALENDAR[1:], cftime.Datetime360Day(2020, 2, 30)], InputTypeError, "of one calendar"),
    ],
)
def test_what_is_no_time_axis_is_refused(x, kind, message):
    with pytest.raises(kind, match=message):
        fit(line, x, Y)


def test_wrong_units_and_times_elsewhere_are_refused():
    with pytest.raises(InputError, match="time_unit"):
        fit(line, DATES, Y, time_unit="fortnight")
    with pytest.raises(InputTypeError, match="y has dtype datetime64"):
        fit(line, SECONDS, DATES)
    with pytest.raises(InputTypeError, match="x has dtype datetime64"):
        fit(line, SECONDS, Y).predict(DATES)
