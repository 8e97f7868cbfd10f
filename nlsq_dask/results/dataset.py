"""A result as an ``xarray.Dataset``, for Zarr, NetCDF and tables of many fits.

The names of the estimates, of their covariance and of their dimensions are those of
``xarray.DataArray.curvefit``. Everything is a number, a text or an array of numbers, so that files
give the same dataset back. Truth values and counts are variables and not attributes: NetCDF has no
attribute for them that reads back the same.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.results.record import FitRecord

if TYPE_CHECKING:
    import xarray as xr

# Names in datasets of xarray.DataArray.curvefit.
PARAM, ROW, COLUMN = "param", "cov_i", "cov_j"
COEFFICIENTS, COVARIANCE = "curvefit_coefficients", "curvefit_covariance"

# Numbers of a fit that become variables without a dimension.
STATISTICS = (
    "cost",
    "chi2",
    "reduced_chi2",
    "chi2_p_value",
    "r_squared",
    "adj_r_squared",
    "aic",
    "bic",
    "optimality",
    "distance_to_optimum_sigma",
)
COUNTS = (
    "n_points",
    "n_skipped",
    "n_blocks_omitted",
    "n_distinct",
    "n_free",
    "dof",
    "nfev",
    "njev",
    "nit",
    "n_passes",
)
FLAG_FIELDS = ("success", "absolute_sigma")


def to_dataset(record: FitRecord) -> xr.Dataset:
    """Estimates, errors, covariance, statistics and provenance; see ``FitResult.to_dataset``."""
    try:
        import xarray as xr
    except ImportError as error:
        raise _errors.dataset_needs_xarray() from error

    names = _texts(record.names)
    coords: dict[str, Any] = {PARAM: names, ROW: names, COLUMN: names}
    if record.param_units:
        units = [record.param_units.get(name, "") for name in record.names]
        coords["param_units"] = (PARAM, _texts(units))
    fixed = np.isin(np.array(record.names), list(record.fixed))
    variables: dict[str, Any] = {
        COEFFICIENTS: (PARAM, record.popt),
        COVARIANCE: ((ROW, COLUMN), record.pcov),
        "standard_errors": (PARAM, record.perr),
        "confidence_95": ((PARAM, "end"), record.confidence_intervals(0.95)),
        "fixed": (PARAM, fixed),
        "active_mask": (PARAM, record.active_mask),
    }
    coords["end"] = _texts(("lower", "upper"))
    if record.bounds is not None:
        variables["bounds"] = ((PARAM, "end"), record.bounds)
    of_y = {"units": record.data_units["y"]} if "y" in record.data_units else {}
    variables |= {name: ((), float(getattr(record, name))) for name in STATISTICS}
    variables["rmse"] = ((), record.rmse, of_y)
    # Where it was not summed, the result's own `mae` would read the data.
    variables["mae"] = ((), record.moments.abs_residuals / record.n_points, of_y)
    variables |= {name: ((), np.int64(getattr(record, name))) for name in COUNTS}
    variables |= {name: ((), np.bool_(getattr(record, name))) for name in FLAG_FIELDS}
    return xr.Dataset(variables, coords, _provenance(record))


def _provenance(record: FitRecord) -> dict[str, str | float]:
    """How the fit was run and how it ended, as texts and numbers."""
    own: str = sys.modules["nlsq_dask"].__version__
    texts = {
        "source": f"nlsq_dask {own}",
        "status": record.status.name,
        "message": record.message,
        "undetermined": ", ".join(record.undetermined),
        "method": record.method,
        "loss": record.loss,
        "strategy": record.strategy,
        "workflow": record.workflow or "",
        "checkpoint": record.checkpoint or "",
    }
    texts |= {f"{name}_units": unit for name, unit in record.data_units.items()}
    tolerances = {
        name: float(value) for name, value in record.tolerances.items() if value is not None
    }
    return {name: text for name, text in texts.items() if text} | tolerances


def _texts(texts: tuple[str, ...] | list[str]) -> Any:
    """Texts as an array of objects: Zarr warns of texts of a fixed length."""
    return np.array(texts, dtype=object)
