"""Results as datasets of xarray: their numbers, and their way through files."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from nlsq_dask._errors import MissingLibraryError
from tests.results.linear_result import linear_result

X = np.linspace(0.0, 3.0, 40)
RESULT = replace(
    linear_result(np.column_stack([np.ones_like(X), X]), np.sin(X)),
    names=("größe", "b"),
    fixed=("b",),
    bounds=np.array([[-np.inf, 2.0], [0.0, np.inf]]),
    data_units={"y": "K", "x": "s"},
    param_units={"größe": "K"},
)
RESULTS = {
    "finite": RESULT,
    "bare": replace(RESULT, bounds=None, data_units={}, param_units={}, workflow="fast"),
    "undetermined": replace(RESULT, pcov=np.full((2, 2), np.inf), undetermined=("b",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zarr", "h5netcdf"])
@pytest.mark.parametrize("name", RESULTS)
def test_files_give_the_same_dataset_back(name, form, tmp_path):
    dataset = RESULTS[name].to_dataset()
    path = tmp_path / "result"
    if form == "zarr":
        dataset.to_zarr(path, consolidated=False)
        loaded = xr.open_zarr(path, consolidated=False, chunks=None).load()
    else:
        dataset.to_netcdf(path, engine=form)
        with xr.open_dataset(path, engine=form) as file:
            loaded = file.load()
    xr.testing.assert_identical(loaded, dataset)


def test_names_are_those_of_curvefit_and_numbers_those_of_the_result():
    y = xr.DataArray(2.0 * X + 1.0, {"x": X}, dims="x")
    theirs = y.curvefit("x", lambda x, a, b: a + b * x)
    ours = replace(RESULT, names=("a", "b")).to_dataset()
    for name in ("curvefit_coefficients", "curvefit_covariance"):
        assert ours[name].dims == theirs[name].dims
        for dim in theirs[name].dims:
            assert ours[dim].values.tolist() == theirs[dim].values.tolist()
    np.testing.assert_array_equal(ours.curvefit_coefficients, RESULT.popt)
    assert ours.curvefit_covariance.sel(cov_i="a", cov_j="b") == RESULT.pcov[0, 1]
    np.testing.assert_array_equal(ours.standard_errors, RESULT.perr)
    np.testing.assert_array_equal(ours.confidence_95, RESULT.confidence_intervals(0.95))
    assert ours.bounds.sel(param="b", end="lower") == 0.0
    for name in ("chi2", "rmse", "aic", "dof", "n_points", "n_passes", "success"):
        assert ours[name].item() == getattr(RESULT, name)
    assert np.isnan(ours.chi2_p_value)
    assert ours.fixed.values.tolist() == [False, True]
    assert ours.attrs["status"] == "GRADIENT"
    assert ours.attrs["ftol"] == 1e-8
    assert (ours.attrs["y_units"], ours.attrs["x_units"], ours.rmse.units) == ("K", "s", "K")


def test_nothing_is_read_for_a_dataset():
    class Data:
        def abs_residuals(self, params):
            raise AssertionError("the data are read")

    moments = replace(RESULT.moments, abs_residuals=np.nan)
    collapsed = replace(RESULT, moments=moments, n_distinct=7, fitted=Data())
    dataset = collapsed.to_dataset()
    assert np.isnan(dataset.mae)
    assert dataset.n_distinct == 7


def test_without_xarray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingLibraryError, match=r"pip install nlsq_dask\[xarray\]"):
        RESULT.to_dataset()
