"""Figures, axes and colours that all pictures of a fit share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Colours that differ for every kind of colour vision (Okabe & Ito, "Color Universal Design", 2008).
# Counts are shown by shades of one hue, from light to dark.
BLUE, VERMILLION, BLACK, GREY = "#0072B2", "#D55E00", "#000000", "#999999"
SHADES = ("#D3E5F2", "#08306B")

# Maps of values and of differences. Both are safe for every kind of colour vision, and neither has
# the grey of a place without a value (Crameri, Shephard & Heron, Nature Comm. 11, 2020).
VALUES, DIFFERENCES, NO_VALUE = "viridis", "PuOr_r", "#BBBBBB"

SMALL = "small"
LEGEND_STYLE: dict[str, Any] = {"fontsize": SMALL, "frameon": False}


def new_figure(method: str, size: tuple[float, float]) -> Figure:
    """A figure that notebooks show by itself.

    Parameters
    ----------
    method : str
        Method that draws, for messages.
    size : pair of float
        Width and height, in inches.

    Raises
    ------
    MissingLibraryError
        If matplotlib is not installed.
    """
    try:
        from nlsq_dask.results.drawing.picture import Picture  # matplotlib, loaded for use
    except ImportError as error:
        raise _errors.plot_needs_matplotlib(method) from error
    return Picture(figsize=size, layout="constrained")


def new_axes(
    method: str,
    ax: Any,
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    **grid: Any,
) -> tuple[Figure, list[Axes]]:
    """Axes of a new figure, or the axes of the caller.

    Parameters
    ----------
    method : str
        Method that draws, for messages.
    ax : Axes, sequence of Axes or None
        Axes of the caller. There may be fewer than the picture has; the last ones are then left
        out.
    size : pair of float
        Width and height of a new figure, in inches.
    rows, columns : int
        Axes of a new figure.
    **grid
        Further arguments of ``Figure.subplots``.

    Returns
    -------
    figure : Figure
    axes : list of Axes
        In reading order.

    Raises
    ------
    MissingLibraryError
        If matplotlib is not installed.
    InputTypeError, InputError
        If `ax` are no axes, or more than the picture has.
    """
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _errors.plot_needs_matplotlib(method) from error

    count = rows * columns
    if ax is None:
        figure = new_figure(method, size)
        made = figure.subplots(rows, columns, squeeze=False, **grid)
        return figure, list(made.ravel())
    given = [ax] if isinstance(ax, Axes) else list(np.ravel(ax))
    if not all(isinstance(axes, Axes) for axes in given):
        raise _errors.axes_form(method, ax)
    if not 1 <= len(given) <= count:
        raise _errors.axes_count(method, len(given), count)
    of = given[0].get_figure(root=True)
    assert isinstance(of, Figure), "axes belong to a figure"
    return of, given


def tidy(axes: Sequence[Axes]) -> None:
    """Small labels of ticks, and no lines above and to the right."""
    for each in axes:
        each.tick_params(labelsize=SMALL)
        each.spines[["top", "right"]].set_visible(False)


def shades() -> Colormap:
    """Colours of counts."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("counts", SHADES)


def map_of(name: str) -> Colormap:
    """A map of colours in which a place without a value is grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad=NO_VALUE)


def largest(values: FloatArray, share: float = 1.0) -> float:
    """Largest size of finite values, or the size that a share of them does not exceed; 1 if 0."""
    sizes = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(sizes, share)) if sizes.size else 0.0
    return most if most > 0.0 else 1.0


def colour_bar(figure: Figure, mesh: Any, axes: Any, label: str, **place: Any) -> None:
    """Add a bar of colours with a small label, beside some axes."""
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, **place)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def note_outside(axes: Axes, count: int) -> None:
    """Say above axes how many rows they do not show."""
    note = f"{count:,} {'row' if count == 1 else 'rows'} beyond the axes"
    axes.set_title(note, loc="left", fontsize=SMALL, color="#555555")
