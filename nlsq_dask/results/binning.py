"""Histograms of a fit for pictures: what the bins span, and the counts in one reading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.dask.executor import running
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.questions.histogram import Binned, Grid, Histogram
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.labelled import bare

# Standard deviations around the model that histograms show. Of normal rows, one in 1.7 million lies
# outside of five.
SHOWN_DEVIATIONS = 5.0

# A logarithmic axis reaches down to the least value of the model, divided by this.
LOG_MARGIN = 10.0


@dataclass(frozen=True, slots=True)
class Scales:
    """Whether the axes of a picture are logarithmic."""

    log_x: bool = False
    log_y: bool = False

    @classmethod
    def of(cls, xscale: object, yscale: object) -> Scales:
        """Scales by the names of matplotlib, "linear" and "log".

        Raises
        ------
        InputError
            If a name is another.
        """
        for name, value in (("xscale", xscale), ("yscale", yscale)):
            if not (isinstance(value, str) and value in ("linear", "log")):
                raise _errors.unknown_choice(name, value, ("linear", "log"))
        return cls(xscale == "log", yscale == "log")


LINEAR_AXES = Scales()


def binned(
    model: FittedModel,
    params: ArrayLike,
    scale: float,
    *,
    bins: tuple[int, int, int] = (200, 120, 60),
    deviations: float = SHOWN_DEVIATIONS,
    x_range: tuple[float, float] | None = None,
    scales: Scales = LINEAR_AXES,
) -> Binned:
    """Histograms of observations and residuals, in one reading of all rows.

    The abscissa is the coordinate of a model with one coordinate, and otherwise the fitted value.
    One more reading of the coordinates finds its ends.

    Parameters
    ----------
    model : FittedModel
    params : array_like, shape (p,)
    scale : float
        Typical size of a residual in the units of y, such as the root mean square. The histogram of
        observations extends beyond the model by ``deviations`` times this size. Without sigma,
        residuals are divided by it.
    bins : triple of int
        Bins of the abscissa, of the observations, and of the residuals.
    deviations : float
        Largest standardised residual that the histogram shows, on either side of zero.
    x_range : pair of float, optional
        Ends of the abscissa.
    scales : Scales
        Axes on which the bins have equal lengths.

    Raises
    ------
    InputError
        If there are no data.
    """
    at = np.asarray(params, np.float64)
    grid = grid_of(model, at, scale, bins, deviations, x_range, scales)
    return Binned(grid, model.ask(Histogram(at, grid, model.block_rows), "plot()"))


def grid_of(
    model: FittedModel,
    params: FloatArray,
    scale: float,
    bins: tuple[int, int, int],
    deviations: float,
    x_range: tuple[float, float] | None = None,
    scales: Scales = LINEAR_AXES,
) -> Grid:
    """The bins of the histograms of a fit; parameters as for :func:`binned`."""
    if x_range is None:
        x_range = _abscissa(model, params, scales)
    x_range = y_range = _widened(*x_range, log=scales.log_x)
    margin = deviations * scale
    if model.has_curve:
        no_errors = np.zeros((params.size,) * 2)
        curve = model.curve(params, no_errors, x_range, log=scales.log_x)[1]
        y_range = _finite_range(curve, positive=scales.log_y)
    low, high = y_range[0] - margin, y_range[1] + margin
    if scales.log_y:
        low = max(low, y_range[0] / LOG_MARGIN)
    return Grid(
        x=x_range,
        y=_widened(low, high, log=scales.log_y),
        z=(-deviations, deviations),
        n_x=bins[0],
        n_y=bins[1],
        n_z=bins[2],
        scale=scale if scale > 0 else 1.0,
        fitted=not model.has_curve,
        log_x=scales.log_x,
        log_y=scales.log_y,
    )


def _abscissa(model: FittedModel, params: FloatArray, scales: Scales) -> tuple[float, float]:
    """Ends of the abscissa of all rows, in one reading of the coordinates."""
    data: Observations | None = model.data
    if data is None:
        raise _errors.result_without_data("plot()")
    values: Array = data.coords[0] if model.has_curve else bare(model.values(params))
    if not is_dask(values):
        return _finite_range(values, positive=scales.log_x)
    import dask.array as da

    from nlsq_dask.engines.dask.lazy_values import finite_range  # Dask, loaded for use

    if scales.log_x:
        values = da.where(values > 0, values, np.nan)
    return finite_range(values, running(model.executor))


def _finite_range(array: Array, *, positive: bool = False) -> tuple[float, float]:
    """Smallest and largest finite value of an array in memory; infinite if there is none."""
    low, high = np.inf, -np.inf
    for piece in np.array_split(array.reshape(-1), max(array.size // STAGE_ROWS, 1)):
        counted = np.isfinite(piece)
        if positive:
            counted &= piece > 0
        low = np.min(piece, where=counted, initial=low)
        high = np.max(piece, where=counted, initial=high)
    return float(low), float(high)


def _widened(low: float, high: float, *, log: bool = False) -> tuple[float, float]:
    """A range of positive length: an infinite or empty range gets a length of 1 or more."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return (0.1, 1.0) if log else (-0.5, 0.5)
    if high > low:
        return low, high
    if log:
        return low / 2.0, low * 2.0
    half = 0.5 * max(abs(low), 1.0)
    return low - half, high + half
