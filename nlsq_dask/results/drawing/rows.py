"""A picture of a fit by rows: data and model above, residuals below.

Up to some thousands of rows are drawn as points. More rows are counted in the cells of a grid, in
one reading of the data. So the size of the picture does not depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import argument_name
from nlsq_dask.engines.dask.executor import running
from nlsq_dask.io.frame import NO_LABEL, Label
from nlsq_dask.io.observations import Observations
from nlsq_dask.questions.histogram import Binned
from nlsq_dask.results.binning import LINEAR_AXES, SHOWN_DEVIATIONS, Scales, binned
from nlsq_dask.results.drawing.figures import (
    BLACK,
    BLUE,
    LEGEND_STYLE,
    SMALL,
    VERMILLION,
    colour_bar,
    new_axes,
    note_outside,
    shades,
    tidy,
)
from nlsq_dask.results.drawing.plottable import Plottable, model_and_data
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.labelled import bare
from nlsq_dask.results.record import interval_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Most rows that are drawn as points. More points cover each other, and make files large.
MAX_POINTS = 10_000

# Intervals of the abscissa that show a mean residual.
N_MEANS = 25

# Fewest rows whose own scatter gives the standard error of their mean; fewer take that of all rows.
OWN_SCATTER = 10

# The line hides a band that is narrower than this part of the axis.
VISIBLE = 0.01

MEANS_TITLE = "mean ± standard error"

# Order of the entries of the legend, by their last words.
LEGEND = ("data", "fit", "fitted", "confidence")


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What a picture by rows shows; see :meth:`nlsq_dask.FitResult.plot`."""

    bins: tuple[int, int] = (200, 120)
    level: float = 0.95
    scales: Scales = LINEAR_AXES


def plot_rows(result: Plottable, options: RowOptions | None = None, ax: Any = None) -> Figure:
    """Draw the rows of a fit; see :meth:`nlsq_dask.FitResult.plot`."""
    method = "plot()"
    shown = options or RowOptions()
    model, data = model_and_data(result, method)
    counted = data.n_rows > MAX_POINTS
    heights = (2.6, 1.0, 0.8) if counted else (2.6, 1.0)
    size = (6.4, 6.2 if counted else 5.4)
    grid = {"sharex": True, "height_ratios": heights}
    figure, axes = new_axes(method, ax, size, len(heights), 1, **grid)
    top, others = axes[0], axes[1:]
    _set_scales(axes, model, shown.scales)
    if counted:
        x_range = _draw_counts(figure, axes, result, model, shown)
    else:
        x_range = _draw_points(top, others[0] if others else None, result, model, data)
    if model.has_curve:
        _draw_curve(top, result, model, x_range, shown)
    else:
        ends = np.array(x_range)
        top.plot(ends, ends, color=VERMILLION, lw=1.5, label="observed = fitted")
    for each in others:
        each.axhline(0.0, color=VERMILLION, lw=1.2, zorder=3)
    _set_titles(axes, data, has_curve=model.has_curve)
    if ax is None:
        figure.align_ylabels()
    tidy(axes)
    _add_legend(top)
    return figure


def _set_scales(axes: Sequence[Axes], model: FittedModel, scales: Scales) -> None:
    """Make axes logarithmic. Where the abscissa is the fitted value, it has the scale of y."""
    log_x = scales.log_x if model.has_curve else scales.log_y
    for each in axes:
        each.set_xscale("log" if log_x else "linear")
    axes[0].set_yscale("log" if scales.log_y else "linear")


def _add_legend(axes: Axes) -> None:
    """Add a legend above the axes: to find a free place among many points takes long."""
    handles, labels = axes.get_legend_handles_labels()
    known = [i for i in range(len(labels)) if labels[i].split(" ")[-1] in LEGEND]
    order = sorted(known, key=lambda i: LEGEND.index(labels[i].split(" ")[-1]))
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 4, **LEGEND_STYLE}
    axes.legend([handles[i] for i in order], [labels[i] for i in order], **place)


def _set_titles(axes: Sequence[Axes], data: Observations, *, has_curve: bool) -> None:
    """Write what the axes show, with the names and units of labelled data."""
    y = data.labels.get("y", NO_LABEL)
    axes[-1].set_xlabel(abscissa_title(data, has_curve=has_curve))
    titles = [y.title("y") if has_curve else Label(unit=y.unit).title("observed value")]
    titles += [residual_title(data), "mean"]
    for each, title in zip(axes, titles, strict=False):
        each.set_ylabel(title)


def abscissa_title(data: Observations, *, has_curve: bool) -> str:
    """What the abscissa is: the coordinate, or the fitted value."""
    x = data.labels.get(argument_name(data.structure, data.names[1]), NO_LABEL)
    unnamed = Label(unit=data.labels.get("y", NO_LABEL).unit)
    return x.title("x") if has_curve else unnamed.title("fitted value")


def residual_title(data: Observations) -> str:
    """What residuals are: in standard deviations, which have no unit, or in the units of y."""
    unnamed = Label(unit=data.labels.get("y", NO_LABEL).unit)
    return "(y − f) / σ" if data.sigma is not None else unnamed.title("y − f")


def _draw_points(
    top: Axes, bottom: Axes | None, result: Plottable, model: FittedModel, data: Observations
) -> tuple[float, float]:
    """Draw every row as a point; return the ends of the abscissa."""
    shape = data.y.shape
    y, *others = (np.broadcast_to(_loaded(a, model), shape) for a in data.values)
    residuals = _loaded(bare(model.residuals(result.popt)), model)
    counted = np.isfinite(residuals)
    y, residuals = np.asarray(y[counted], np.float64), residuals[counted]
    x = np.asarray(others[0][counted], np.float64) if model.has_curve else y - residuals
    crowd = np.sqrt(max(x.size, 1) / MAX_POINTS)
    style: dict[str, Any] = {
        "fmt": "o",
        "color": BLUE,
        "ecolor": BLUE + "80",
        "ms": float(np.clip(1.6 / crowd**0.5, 1.6, 4.0)),
        "mew": 0,
        "alpha": float(np.clip(1.0 - 0.5 * crowd, 0.5, 1.0)),
        "elinewidth": 0.7,
    }
    sigma = None if data.sigma is None else np.asarray(others[-1][counted], np.float64)
    top.errorbar(x, y, sigma, label="data", **style)
    if bottom is not None:
        of_z = (residuals, None) if sigma is None else (residuals / sigma, np.ones(x.size))
        bottom.errorbar(x, *of_z, **style)
        largest = np.max(np.abs(bottom.get_ylim()))
        bottom.set_ylim(-largest, largest)
    drawn = x[x > 0] if top.get_xscale() == "log" else x
    return (float(drawn.min()), float(drawn.max())) if drawn.size else (0.1, 1.0)


def _draw_counts(
    figure: Figure, axes: Sequence[Axes], result: Plottable, model: FittedModel, shown: RowOptions
) -> tuple[float, float]:
    """Draw counts of rows in cells, and mean residuals; return the ends of the abscissa."""
    from matplotlib.colors import LogNorm

    top, others = axes[0], axes[1:]
    weighted = model.data is not None and model.data.sigma is not None
    found = binned(
        model,
        result.popt,
        result.rmse,
        bins=(*shown.bins, max(shown.bins[1] // 2, 1)),
        deviations=shown_deviations(result, weighted=weighted),
        scales=Scales(top.get_xscale() == "log", top.get_yscale() == "log"),
    )
    unit = 1.0 if weighted else found.grid.scale
    counts = [(top, found.sums.observed, found.y_edges)]
    if others:
        counts.append((others[0], found.sums.residuals, found.z_edges * unit))
    norm = LogNorm(1, max(*(cells.max() for _, cells, _ in counts), 2))
    for each, cells, edges in counts:
        shown_cells = np.ma.masked_equal(cells.T, 0)
        mesh = each.pcolormesh(
            found.x_edges, edges, shown_cells, cmap=shades(), norm=norm, rasterized=True
        )
    colour_bar(figure, mesh, list(axes), "rows per cell", aspect=40)
    if others:
        others[0].set_ylim(*(end * unit for end in found.grid.z))
    if len(others) > 1:
        _draw_means(others[1], found, unit)
    _trim(top, found)
    if found.sums.n_outside:
        note_outside(top, found.sums.n_outside)
    return found.grid.x


def shown_deviations(result: Plottable, *, weighted: bool) -> float:
    """Largest standardised residual that a picture shows."""
    if weighted and np.isfinite(result.reduced_chi2):
        return SHOWN_DEVIATIONS * max(1.0, float(np.sqrt(result.reduced_chi2)))
    return SHOWN_DEVIATIONS


def _trim(axes: Axes, found: Binned) -> None:
    """Limit the axis of the observations to cells with rows."""
    used = np.flatnonzero(found.sums.observed.any(axis=0))
    if used.size:
        low, high = found.y_edges[used[0]], found.y_edges[used[-1] + 1]
        margin = 0.0 if axes.get_yscale() == "log" else 0.02 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def middles(edges: FloatArray, *, log: bool) -> FloatArray:
    """Middles of intervals (n,) on a straight or a logarithmic axis, from their edges (n + 1,)."""
    found: FloatArray = np.sqrt(edges[1:] * edges[:-1]) if log else 0.5 * (edges[1:] + edges[:-1])
    return found


def _draw_means(axes: Axes, found: Binned, unit: float) -> None:
    """Draw the mean residual ± its standard error, ``rms / √n``, in intervals of the abscissa."""
    starts = np.unique(np.linspace(0, found.grid.n_x, N_MEANS + 1)[:-1].astype(int))
    n, total, squares = (
        np.add.reduceat(sums, starts).astype(np.float64)
        for sums in (found.sums.n, found.sums.total, found.sums.squares)
    )
    edges = found.x_edges[[*starts, found.grid.n_x]]
    centres = middles(edges, log=found.grid.log_x)
    some = n > 0
    draw_mean_points(
        axes,
        centres[some],
        n=n[some],
        total=total[some] * unit,
        squares=squares[some] * unit**2,
    )


def draw_mean_points(
    axes: Axes, x: FloatArray, *, n: FloatArray, total: FloatArray, squares: FloatArray
) -> None:
    """Draw means with their standard errors, on an axis that is symmetric about zero.

    The sums are those of positive numbers of rows, shape (k,).
    """
    means = total / n
    overall = squares.sum() / max(n.sum(), 1.0)
    errors = np.sqrt(np.where(n < OWN_SCATTER, overall, squares / n) / n)
    axes.errorbar(x, means, errors, fmt="o", ms=2.5, color=BLACK, elinewidth=0.8, zorder=4)
    high = float(np.max(np.abs(means) + errors, initial=0.0))
    if high > 0.0:
        axes.set_ylim(-1.15 * high, 1.15 * high)
    axes.set_title(MEANS_TITLE, loc="right", fontsize=SMALL, color="#555555", pad=2.0)


def _draw_curve(
    axes: Axes,
    result: Plottable,
    model: FittedModel,
    x_range: tuple[float, float],
    shown: RowOptions,
) -> None:
    """Draw the model, and its confidence band if that is wider than the line."""
    log, level = axes.get_xscale() == "log", shown.level
    x, values, errors = model.curve(result.popt, result.pcov, x_range, log=log)
    with np.errstate(invalid="ignore"):  # infinite errors times zero
        quantile = interval_quantile(level, result.dof, known_scale=result.absolute_sigma)
        half = quantile * errors
    low, high = axes.get_ylim()
    if _is_visible(half, high - low):
        label = f"{100 * level:g} % confidence"
        axes.fill_between(
            x, values - half, values + half, color=VERMILLION, alpha=0.3, lw=0, label=label
        )
    axes.plot(x, values, color=VERMILLION, lw=1.5, label="fit", zorder=3)
    axes.set_ylim(low, high)


def _is_visible(half_widths: FloatArray, axis_length: float) -> bool:
    return bool(np.all(np.isfinite(half_widths)) and half_widths.max() > VISIBLE * axis_length)


def _loaded(array: Any, model: FittedModel) -> Any:
    """Load an array of few rows into memory."""
    if isinstance(array, np.ndarray):
        return array
    return running(model.executor).compute(array)[0]
