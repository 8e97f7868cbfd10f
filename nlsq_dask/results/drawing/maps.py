"""A picture of many fits: a map of each parameter, the status of each series, and two series.

The two series are those whose reduced χ² is the largest and the middle one of all successes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.results.drawing.axis import INDEX, Axis, coordinate_of, same_scale
from nlsq_dask.results.drawing.figures import (
    BLUE,
    NO_VALUE,
    SMALL,
    VALUES,
    VERMILLION,
    colour_bar,
    map_of,
    new_figure,
    tidy,
)
from nlsq_dask.results.maps_record import MapsRecord, fitted_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Quantiles of a map between which its colours vary: single wild pixels would leave the rest alike.
COLOURED = (0.02, 0.98)

# Maps in a row of the picture, and width and height of one of them in inches.
MAPS_A_ROW = 4
SIZE = 2.8


def plot_maps(maps: MapsRecord) -> Figure:
    """Draw the maps; see :meth:`nlsq_dask.FitMaps.plot`."""
    if len(maps.shape) not in (1, 2):
        raise _errors.maps_not_drawn(maps.shape)
    names, status = maps.names, np.asarray(maps.fields["status"])
    n_maps = len(names) + 1
    columns = min(MAPS_A_ROW, n_maps)
    height = math.ceil(n_maps / columns) + 1
    figure = new_figure("plot()", (SIZE * columns, SIZE * height))
    grid = figure.add_gridspec(height, columns)
    places = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(n_maps)]
    sides = _axes_of_map(maps)
    for axes, name, values in zip(places, names, np.asarray(maps.fields["popt"]), strict=False):
        _draw_map(figure, axes, sides, np.where(status > 0, values, np.nan), _title(maps, name))
    _draw_status(figure, places[-1], sides, status)
    for axes in places:
        _label(axes, sides)
    half = max(columns // 2, 1)
    for part, (title, index) in zip(
        (slice(0, half), slice(half, columns)), _shown(maps, status), strict=False
    ):
        _draw_series(figure.add_subplot(grid[height - 1, part]), maps, title, index)
    return figure


def _title(maps: MapsRecord, name: str) -> str:
    unit = maps.units.get(name)
    return f"{name} [{unit}]" if unit else name


def _axes_of_map(maps: MapsRecord) -> list[Axis]:
    """The axes of the map, in the numbers of its coordinates where it has such."""
    frame = maps.frame
    names = maps.axes.map if frame is None else frame.dims
    return [
        Axis.of(name, n, coordinate_of(frame, name))
        for name, n in zip(names, maps.shape, strict=True)
    ]


def _draw_map(figure: Figure, axes: Axes, sides: list[Axis], values: Any, title: str) -> None:
    axes.set_title(title, fontsize=SMALL)
    known = values[np.isfinite(values)]
    if values.ndim == 1:
        axes.plot(sides[0].values, values, color=BLUE, lw=1.0)
        return
    low, high = np.quantile(known, COLOURED) if known.size else (0.0, 1.0)
    image = _image(axes, sides, values, map_of(VALUES), (low, high))
    colour_bar(figure, image, axes, "", shrink=0.8)


def _draw_status(figure: Figure, axes: Axes, sides: list[Axis], status: Any) -> None:
    """The statuses that occur, each in a colour of its own."""
    found = np.unique(status)
    numbers = np.searchsorted(found, status)
    axes.set_title("status", fontsize=SMALL)
    names = [Status(int(value)).name.lower() for value in found]
    if status.ndim == 1:
        axes.plot(sides[0].values, numbers, ".", color=BLUE, ms=3)
        axes.set_yticks(range(len(found)), names, fontsize=SMALL)
        return
    from matplotlib import colormaps

    colours = colormaps["cividis"].resampled(len(found))
    image = _image(axes, sides, numbers, colours, (-0.5, len(found) - 0.5))
    bar = figure.colorbar(image, ax=axes, ticks=range(len(found)), shrink=0.8)
    bar.ax.set_yticklabels(names, fontsize=SMALL)


def _image(
    axes: Axes, sides: list[Axis], values: Any, colours: Colormap, ends: tuple[float, float]
) -> QuadMesh:
    """The pixels of a map. Indices run from the top, as those of a matrix; coordinates rise."""
    down, across = sides
    low, high = ends
    shown = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(
        across.edges, down.edges, shown, vmin=low, vmax=high, cmap=colours, rasterized=True
    )
    axes.set_facecolor(NO_VALUE)  # a series without an answer is grey
    if down.kind == INDEX:
        axes.invert_yaxis()
    if same_scale(across, down):
        axes.set_aspect("equal")
    return mesh


def _label(axes: Axes, sides: list[Axis]) -> None:
    """Titles along the sides of a map."""
    axes.tick_params(labelsize=SMALL)
    sides[-1].describe(axes.xaxis, SMALL)
    if len(sides) == 2:
        sides[0].describe(axes.yaxis, SMALL)


def _shown(maps: MapsRecord, status: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Titles and indexes of the series to draw."""
    good = np.flatnonzero(status.ravel() > 0)
    if not good.size:
        return []
    ratio = np.asarray(maps.fields["reduced_chi2"]).ravel()[good]
    order = good[np.argsort(np.nan_to_num(ratio), kind="stable")]
    chosen = {"median": order[(len(order) - 1) // 2], "worst": order[-1]}
    return [
        (name, tuple(int(i) for i in np.unravel_index(k, status.shape)))
        for name, k in chosen.items()
    ]


def _draw_series(axes: Axes, maps: MapsRecord, title: str, index: tuple[int, ...]) -> None:
    """Rows of a series, and the model at its estimates."""
    series = fitted_series(maps, "plot()")
    x, y, values = series.rows(maps.fields, index)
    order = np.argsort(x, kind="stable")
    axes.plot(x, y, ".", color=BLUE, ms=3, label="data")
    axes.plot(x[order], values[order], color=VERMILLION, lw=1.2, label="fit")
    ratio = float(np.asarray(maps.fields["reduced_chi2"])[index])
    axes.set_title(f"{title}: {index}, reduced chi-square {ratio:.3g}", fontsize=SMALL)
    for side, text in zip((axes.xaxis, axes.yaxis), series.titles(), strict=True):
        side.set_label_text(text, fontsize=SMALL)
    tidy([axes])
