"""Pictures that need no data: correlations, the course of the search, profiles, and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import IterationRecord
from nlsq_dask.results.blocks import BlockDiagnostics
from nlsq_dask.results.drawing.figures import (
    BLACK,
    BLUE,
    DIFFERENCES,
    GREY,
    LEGEND_STYLE,
    SMALL,
    VERMILLION,
    colour_bar,
    map_of,
    new_axes,
    tidy,
)
from nlsq_dask.results.profile import Profile
from nlsq_dask.results.record import FitRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Most parameters whose correlations are also written as numbers.
MOST_NUMBERS = 12

# Most characters of a name that is written along the row.
SHORT_NAME = 6

# Correlations beyond this are dark, and their numbers are white.
DARK = 0.65

# Inches of a row of the picture of correlations, and of all else.
ROW, FRAME = 0.42, 2.2

# Standard errors of χ² a row that are drawn around that of all rows.
DEVIATIONS = 3.0

# Least rise of the cost above the lowest that is drawn, as a share of the lowest: rounding.
LEAST_RISE = 1e-16


def plot_correlation(record: FitRecord, ax: Any = None) -> Figure:
    """Draw the correlations; see :meth:`nlsq_dask.FitResult.plot_correlation`."""
    names, matrix = record.names, record.correlation()
    side = FRAME + ROW * min(len(names), 40)
    figure, (axes,) = new_axes("plot_correlation()", ax, (side + 0.8, side))
    mesh = axes.imshow(np.ma.masked_invalid(matrix), cmap=map_of(DIFFERENCES), vmin=-1, vmax=1)
    upright = len(names) <= MOST_NUMBERS and max(map(len, names)) <= SHORT_NAME
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=SMALL)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(matrix):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            colour = "white" if abs(value) > DARK else BLACK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL)
    colour_bar(figure, mesh, axes, "correlation", shrink=0.8)
    return figure


def plot_history(record: FitRecord, ax: Any = None) -> Figure:
    """Draw cost and distance; see :meth:`nlsq_dask.FitResult.plot_history`."""
    figure, axes = new_axes("plot_history()", ax, (6.4, 4.8), 2, 1, sharex=True)
    nfev = np.array([r.nfev for r in record.history], np.float64)
    accepted = np.array([r.accepted or i == 0 for i, r in enumerate(record.history)], bool)
    rise = rises(record.history)
    _draw_course(axes[0], nfev[accepted], rise[accepted], BLUE, "best point so far")
    if not accepted.all():
        style: dict[str, Any] = {"color": GREY, "ms": 5, "ls": "none", "label": "rejected trial"}
        axes[0].plot(nfev[~accepted], rise[~accepted], "x", **style)
    axes[0].set_ylabel("cost above the lowest")
    _draw_limits(axes[0])
    if len(axes) > 1:
        distance = np.array([r.distance for r in record.history])
        _draw_course(axes[1], nfev, distance, BLUE, "distance")
        tolerance = record.tolerances.get("stat_tol")
        if tolerance is not None:
            label = f"stat_tol = {tolerance:g}"
            axes[1].axhline(tolerance, color=VERMILLION, lw=1.2, ls="--", label=label)
        axes[1].set_ylabel("distance to the optimum\n[standard errors]")
        _draw_limits(axes[1])
    axes[-1].set_xlabel("evaluation")
    axes[-1].locator_params(axis="x", integer=True)
    tidy(axes)
    return figure


def rises(history: Sequence[IterationRecord]) -> FloatArray:
    """Cost of each evaluation above the lowest cost, and not below rounding.

    A cost that is not finite, of a trial where the model has no value, is NaN.
    """
    costs = np.array([r.cost for r in history], np.float64)
    costs[~np.isfinite(costs)] = np.nan
    if not np.isfinite(costs).any():
        return costs
    lowest = float(np.nanmin(costs))
    least = max(LEAST_RISE * abs(lowest), np.finfo(np.float64).tiny)
    return np.maximum(costs - lowest, least)


def _draw_course(axes: Axes, x: FloatArray, values: FloatArray, colour: str, label: str) -> None:
    """Draw a course on a logarithmic axis; what is not positive and finite is left out."""
    shown = np.isfinite(values) & (values > 0)
    axes.plot(x[shown], values[shown], "o-", color=colour, ms=4, lw=1.2, label=label)
    axes.set_yscale("log")


def _draw_limits(axes: Axes) -> None:
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.legend(loc="upper right", **LEGEND_STYLE)


def plot_blocks(blocks: BlockDiagnostics, ax: Any = None) -> Figure:
    """Draw how the blocks fit; see :meth:`nlsq_dask.FitResult.plot_blocks`."""
    figure, axes = new_axes("plot_blocks()", ax, (7.2, 4.8), 2, 1, sharex=True)
    numbers = np.arange(len(blocks))
    some = blocks.n_points > 0
    n, chi2 = blocks.n_points[some], blocks.chi2_per_row[some]
    overall = float(np.sum(n * chi2) / max(n.sum(), 1))
    # Of n normal residuals, χ² / n scatters by √(2 / n).
    half = DEVIATIONS * overall * np.sqrt(2.0 / n)
    band: dict[str, Any] = {"color": VERMILLION, "alpha": 0.25, "lw": 0, "step": "mid"}
    axes[0].fill_between(numbers[some], overall - half, overall + half, label="normal", **band)
    axes[0].axhline(overall, color=VERMILLION, lw=1.2, label="all rows")
    axes[0].plot(numbers[some], chi2, ".", color=BLUE, ms=4, label="block")
    axes[0].set_ylabel("χ² / row")
    axes[0].legend(loc="upper right", ncols=3, **LEGEND_STYLE)
    if len(axes) > 1:
        shift = np.max(np.abs(blocks.shift), axis=1, initial=0.0)
        axes[1].vlines(numbers, 0.0, shift, color=BLUE, lw=1.0)
        axes[1].set_ylim(bottom=0.0)
        axes[1].set_ylabel("largest shift if left out\n[standard errors]")
    axes[-1].set_xlabel("block number")
    axes[-1].locator_params(axis="x", integer=True)
    tidy(axes)
    return figure


def plot_profile(
    record: FitRecord, profile: Profile, quantile: float, level: float, ax: Any = None
) -> Figure:
    """Draw a profile; see :meth:`nlsq_dask.FitResult.plot_profile`.

    The interval reaches the quantile, and has the level as its probability.
    """
    figure, (axes,) = new_axes("plot_profile()", ax, (6.0, 4.2))
    estimate = record.params[profile.name]
    values = np.linspace(profile.values[0], profile.values[-1], 201)
    parabola = ((values - estimate.value) / estimate.stderr) ** 2
    axes.plot(values, parabola, color=GREY, lw=1.2, ls="--", label="if the model were linear")
    axes.plot(profile.values, profile.tau**2, "o-", color=BLUE, ms=4, lw=1.4, label="profile")
    axes.axhline(quantile**2, color=VERMILLION, lw=1.0)
    ends = [end for end in profile.interval(quantile) if np.isfinite(end)]
    for end in ends:
        axes.axvline(end, color=VERMILLION, lw=1.0)
    # An entry of the legend for the lines of the interval.
    axes.plot([], [], color=VERMILLION, lw=1.0, label=f"{100 * level:g} % interval")
    axes.axvline(estimate.value, color=BLACK, lw=0.8, ls=":")
    axes.set_ylim(0.0, 1.3 * max(quantile**2, float(np.min(profile.tau[[0, -1]] ** 2))))
    unit = record.param_units.get(profile.name)
    axes.set_xlabel(f"{profile.name} [{unit}]" if unit else profile.name)
    axes.set_ylabel("rise of the sum of squares / s²")
    axes.legend(loc="upper center", **LEGEND_STYLE)
    tidy([axes])
    return figure
