"""A picture of a fit: data and model above, residuals below.

Up to some thousands of rows are drawn as points. More rows are counted in the cells of a grid, in
one reading of the data. So the size of the picture does not depend on the number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import argument_name
from nlsq_dask.io.frame import NO_LABEL, Label
from nlsq_dask.io.observations import Observations
from nlsq_dask.questions.histogram import Binned
from nlsq_dask.results.fitted_model import SHOWN_DEVIATIONS, FittedModel
from nlsq_dask.results.labelled import bare
from nlsq_dask.results.record import interval_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Most rows that are drawn as points. More points cover each other, and make files large.
MAX_POINTS = 10_000

# Intervals of the abscissa that show a mean residual.
N_MEANS = 25

# Colours that differ for every kind of colour vision (Okabe & Ito, "Color Universal Design", 2008).
# Counts are shown by shades of one hue, from light to dark.
BLUE, VERMILLION, BLACK = "#0072B2", "#D55E00", "#000000"
SHADES = ("#D3E5F2", "#08306B")

# The line hides a band that is narrower than this part of the axis.
VISIBLE = 0.01

SMALL = "small"
LEGEND_STYLE: dict[str, Any] = {"fontsize": SMALL, "frameon": False}
# Order of the entries of the legend, by their last words.
LEGEND = ("data", "fit", "fitted", "confidence")


class Plottable(Protocol):
    """The part of a result that a plot needs; see :class:`nlsq_dask.FitResult`."""

    @property
    def fitted(self) -> FittedModel | None:
        """The model and the data."""
        ...

    @property
    def popt(self) -> FloatArray:
        """Estimates, shape (p,)."""
        ...

    @property
    def pcov(self) -> FloatArray:
        """Their covariance, shape (p, p)."""
        ...

    @property
    def rmse(self) -> float:
        """Root mean square of the residuals, in the units of y."""
        ...

    @property
    def reduced_chi2(self) -> float:
        """Mean square of the weighted residuals."""
        ...

    @property
    def dof(self) -> int:
        """Degrees of freedom."""
        ...

    @property
    def absolute_sigma(self) -> bool:
        """Whether the sigma are known."""
        ...


def plot_fit(
    result: Plottable,
    bins: tuple[int, int] = (200, 120),
    level: float = 0.95,
) -> Figure:
    """Draw a fit.

    Parameters
    ----------
    result : FitResult
    bins : pair of int
        Number of cells along the abscissa and the ordinate, for counted rows. Residuals have half
        as many.
    level : float
        Probability of the confidence band of the curve.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know, so that it is not shown or kept by itself. Notebooks
        show it, and ``savefig`` writes it.

    Raises
    ------
    MissingLibraryError
        If matplotlib is not installed.
    InputError
        If the result has no model or no data, as after reading it from a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _errors.plot_needs_matplotlib() from error

    model = result.fitted
    if model is None:
        raise _errors.result_without_model("plot()")
    if model.data is None:
        raise _errors.result_without_data("plot()")
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1.0))
    if model.data.n_rows <= MAX_POINTS:
        x_range = _draw_points(top, bottom, result, model, model.data)
    else:
        x_range = _draw_counts(figure, top, bottom, result, model, bins)
    if model.has_curve:
        _draw_curve(top, result, model, x_range, level)
    else:
        ends = np.array(x_range)
        top.plot(ends, ends, color=VERMILLION, lw=1.5, label="observed = fitted")
    bottom.axhline(0.0, color=VERMILLION, lw=1.2, zorder=3)
    _set_titles(top, bottom, model.data, has_curve=model.has_curve)
    figure.align_ylabels()
    for axes in (top, bottom):
        axes.tick_params(labelsize=SMALL)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = top.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: LEGEND.index(labels[i].split(" ")[-1]))
    # The legend is above the axes: to find a free place among many points takes long.
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 4, **LEGEND_STYLE}
    top.legend([handles[i] for i in order], [labels[i] for i in order], **place)
    return figure


def _set_titles(top: Axes, bottom: Axes, data: Observations, *, has_curve: bool) -> None:
    """Write what the axes show, with the names and units of labelled data."""
    x = data.labels.get(argument_name(data.structure, data.names[1]), NO_LABEL)
    y = data.labels.get("y", NO_LABEL)
    unnamed = Label(unit=y.unit)
    bottom.set_xlabel(x.title("x") if has_curve else unnamed.title("fitted value"))
    # Residuals in standard deviations have no unit.
    bottom.set_ylabel("(y − f) / σ" if data.sigma is not None else unnamed.title("y − f"))
    top.set_ylabel(y.title("y") if has_curve else unnamed.title("observed value"))


def _draw_points(
    top: Axes, bottom: Axes, result: Plottable, model: FittedModel, data: Observations
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
    if data.sigma is None:
        top.errorbar(x, y, label="data", **style)
        bottom.errorbar(x, residuals, **style)
    else:
        sigma = np.asarray(others[-1][counted], np.float64)
        top.errorbar(x, y, sigma, label="data", **style)
        bottom.errorbar(x, residuals / sigma, np.ones(x.size), **style)
    largest = np.max(np.abs(bottom.get_ylim()))
    bottom.set_ylim(-largest, largest)
    return (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)


def _draw_counts(
    figure: Figure,
    top: Axes,
    bottom: Axes,
    result: Plottable,
    model: FittedModel,
    bins: tuple[int, int],
) -> tuple[float, float]:
    """Draw counts of rows in cells, and mean residuals; return the ends of the abscissa."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    weighted = model.data is not None and model.data.sigma is not None
    deviations = SHOWN_DEVIATIONS
    if weighted and np.isfinite(result.reduced_chi2):
        deviations *= max(1.0, float(np.sqrt(result.reduced_chi2)))
    binned = model.binned(
        result.popt,
        result.rmse,
        bins=(bins[0], bins[1], max(bins[1] // 2, 1)),
        deviations=deviations,
    )
    unit = 1.0 if weighted else binned.grid.scale
    observed, residuals = binned.sums.observed, binned.sums.residuals
    most = max(observed.max(), residuals.max(), 2)
    shades = LinearSegmentedColormap.from_list("counts", SHADES)
    for axes, counts, edges in (
        (top, observed, binned.y_edges),
        (bottom, residuals, binned.z_edges * unit),
    ):
        mesh = axes.pcolormesh(
            binned.x_edges,
            edges,
            np.ma.masked_equal(counts.T, 0),
            cmap=shades,
            norm=LogNorm(1, most),
            rasterized=True,
        )
    bar = figure.colorbar(mesh, ax=[top, bottom], aspect=40, pad=0.02)
    bar.set_label("rows per cell", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    _draw_means(bottom, binned, unit)
    bottom.set_ylim(*(end * unit for end in binned.grid.z))
    _trim(top, binned)
    if binned.sums.n_outside:
        count = binned.sums.n_outside
        note = f"{count:,} {'row' if count == 1 else 'rows'} beyond the axes"
        top.set_title(note, loc="left", fontsize=SMALL, color="#555555")
    return binned.grid.x


def _trim(axes: Axes, binned: Binned) -> None:
    """Limit the axis of the observations to cells with rows."""
    used = np.flatnonzero(binned.sums.observed.any(axis=0))
    if used.size:
        margin = 0.02 * (binned.y_edges[used[-1] + 1] - binned.y_edges[used[0]])
        axes.set_ylim(binned.y_edges[used[0]] - margin, binned.y_edges[used[-1] + 1] + margin)


def _draw_means(axes: Axes, binned: Binned, unit: float) -> None:
    """Draw the mean residual ± root mean square in intervals of the abscissa."""
    starts = np.unique(np.linspace(0, binned.grid.n_x, N_MEANS + 1)[:-1].astype(int))
    n, total, squares = (
        np.add.reduceat(sums, starts).astype(np.float64)
        for sums in (binned.sums.n, binned.sums.total, binned.sums.squares)
    )
    edges = binned.x_edges[[*starts, binned.grid.n_x]]
    some = n > 0
    centres = (0.5 * (edges[1:] + edges[:-1]))[some]
    means, spreads = total[some] / n[some], np.sqrt(squares[some] / n[some])
    axes.errorbar(
        centres,
        means * unit,
        spreads * unit,
        fmt="o",
        ms=2.5,
        color=BLACK,
        elinewidth=0.8,
        zorder=4,
        label="mean ± rms",
    )
    axes.legend(loc="upper right", borderpad=0.1, **LEGEND_STYLE)


def _draw_curve(
    axes: Axes,
    result: Plottable,
    model: FittedModel,
    x_range: tuple[float, float],
    level: float,
) -> None:
    """Draw the model, and its confidence band if that is wider than the line."""
    x, values, errors = model.curve(result.popt, result.pcov, x_range)
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
    from nlsq_dask.engines.dask.scheduler import computed  # Dask, loaded for use

    return computed(model.client, array)[0]
