"""Pictures of residuals: their distribution, and what they depend on.

All four pictures come from sums of one reading of the data. Quantiles come from a histogram with
narrow bins, and not from sorted rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.observations import Observations
from nlsq_dask.questions.histogram import Grid
from nlsq_dask.questions.residuals import Residuals, ResidualSums, RowSums
from nlsq_dask.results.binning import LINEAR_AXES, SHOWN_DEVIATIONS, Scales, grid_of
from nlsq_dask.results.drawing.figures import (
    BLUE,
    LEGEND_STYLE,
    VERMILLION,
    new_axes,
    note_outside,
    tidy,
)
from nlsq_dask.results.drawing.plottable import Plottable, model_and_data
from nlsq_dask.results.drawing.rows import N_MEANS, abscissa_title, draw_mean_points, middles
from nlsq_dask.results.fitted_model import FittedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Narrow bins up to so many standard deviations: quantiles are exact to a hundredth of one. Rows
# beyond count in the outer bins.
REACH, FINE_BINS = 10.0, 2000

# Fewest and most bars of the histogram, from -5 to 5 standard deviations. Between them their number
# grows with the cubic root of the rows, as the least error of a histogram asks for (Scott,
# Biometrika 66, 1979).
FEWEST_BARS, MOST_BARS, BARS_A_ROOT = 10, 50, 5.0

# Most positions of blocks, and positions of data in memory, which have no blocks.
MAX_POSITIONS, POSITIONS_IN_MEMORY = 200, 50


def plot_residuals(
    result: Plottable,
    scales: Scales = LINEAR_AXES,
    ax: Any = None,
) -> Figure:
    """Draw the residuals; see :meth:`nlsq_dask.FitResult.plot_residuals`."""
    method = "plot_residuals()"
    model, data = model_and_data(result, method)
    figure, axes = new_axes(method, ax, (9.0, 6.2), 2, 2)
    weighted = data.sigma is not None
    # Relative sigma are right up to a factor, which the fit estimates.
    spread = 1.0
    if weighted and not result.absolute_sigma and np.isfinite(result.reduced_chi2):
        spread = math.sqrt(result.reduced_chi2) or 1.0
    at = np.asarray(result.popt, np.float64)
    bins = (N_MEANS, 1, FINE_BINS)
    grid = grid_of(model, at, result.rmse, bins, REACH * spread, scales=scales)
    # One bin of y, which holds all finite numbers.
    grid = replace(grid, y=(-8e307, 8e307), log_y=False, clip_z=True)
    shape, positions, rows = _positions(model, data)
    sums = model.ask(Residuals(at, grid, rows, shape, positions), method)
    title = "(y − f) / σ" if weighted else "(y − f) / rms"
    _draw_histogram(axes[0], sums, grid, spread, title)
    if len(axes) > 1:
        _draw_quantiles(axes[1], sums, grid, spread)
    if len(axes) > 2:
        axes[2].set_xscale("log" if grid.log_x else "linear")
        _draw_means(axes[2], sums.by_x, middles(grid.x_edges, log=grid.log_x))
        axes[2].set_xlabel(abscissa_title(data, has_curve=model.has_curve))
    if len(axes) > 3:
        count, size = math.prod(shape), sums.by_position.n.size
        numbers = (np.arange(size) + 0.5) * count / size - 0.5
        _draw_means(axes[3], sums.by_position, numbers)
        axes[3].set_xlabel("block number" if data.lazy else "row number")
    for each in axes[2:]:
        each.axhline(0.0, color=VERMILLION, lw=1.2, zorder=3)
        each.set_ylabel(f"mean of {title}")
    tidy(axes)
    return figure


def _positions(model: FittedModel, data: Observations) -> tuple[tuple[int, ...], int, int]:
    """Shape whose elements are numbered, positions that they form, and rows looked at together."""
    if data.lazy:
        from nlsq_dask.engines.dask.groups import common_chunks  # Dask, loaded for use

        shape = tuple(map(len, common_chunks(data)))
        return shape, min(math.prod(shape), MAX_POSITIONS), model.block_rows
    positions = min(data.n_rows, POSITIONS_IN_MEMORY)
    return data.y.shape, positions, -(-data.n_rows // positions)


def _draw_histogram(axes: Axes, sums: ResidualSums, grid: Grid, spread: float, title: str) -> None:
    """Draw the share of rows by residual, and the normal distribution."""
    counts = sums.counts
    n = max(int(counts.sum()), 1)
    n_bars = 2 * round(np.clip(BARS_A_ROOT * np.cbrt(n), FEWEST_BARS, MOST_BARS) / 2)
    edges = np.linspace(-SHOWN_DEVIATIONS, SHOWN_DEVIATIONS, n_bars + 1) * spread
    bars, _ = np.histogram(0.5 * (grid.z_edges[1:] + grid.z_edges[:-1]), edges, weights=counts)
    width = edges[1] - edges[0]
    axes.stairs(bars / (n * width), edges, fill=True, color=BLUE, alpha=0.6, label="rows")
    z = np.linspace(edges[0], edges[-1], 201)
    normal = np.exp(-0.5 * (z / spread) ** 2) / (math.sqrt(2 * math.pi) * spread)
    axes.plot(z, normal, color=VERMILLION, lw=1.5, label="normal")
    axes.set_xlabel(title)
    axes.set_ylabel("density")
    outside = n - int(bars.sum())
    if outside > 0:
        note_outside(axes, outside)
    axes.legend(loc="upper right", **LEGEND_STYLE)


def _draw_quantiles(axes: Axes, sums: ResidualSums, grid: Grid, spread: float) -> None:
    """Draw quantiles of the residuals over those of the normal distribution."""
    expected, found = quantiles(sums.counts, grid.z_edges)
    axes.plot(expected, found / spread, ".", color=BLUE, ms=4, label="rows")
    most = float(np.max(np.abs(expected), initial=1.0))
    axes.plot([-most, most], [-most, most], color=VERMILLION, lw=1.5, label="normal")
    axes.set_xlabel("quantile of the normal distribution")
    axes.set_ylabel("quantile of the residuals")
    axes.legend(loc="upper left", **LEGEND_STYLE)


def quantiles(counts: Sequence[int] | Any, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Quantiles of a histogram, and those of the normal distribution for the same shares.

    Parameters
    ----------
    counts : array_like, shape (n,), int
    edges : ndarray, shape (n + 1,), float64

    Returns
    -------
    expected, found : ndarray, shape (m,), float64
        One for each upper edge of a bin with rows but the last.
    """
    from scipy.special import ndtri  # loaded when asked for: a fit does without

    counts = np.asarray(counts)
    below = np.cumsum(counts)
    ends = (counts > 0) & (below < below[-1])
    shares = below[ends] / max(int(below[-1]), 1)
    return np.asarray(ndtri(shares), np.float64), edges[1:][ends]


def _draw_means(axes: Axes, sums: RowSums, x: FloatArray) -> None:
    """Draw the mean residual of each set with rows."""
    some = sums.n > 0
    n = sums.n[some].astype(np.float64)
    draw_mean_points(axes, x[some], n=n, total=sums.total[some], squares=sums.squares[some])
