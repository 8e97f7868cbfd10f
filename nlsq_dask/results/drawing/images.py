"""Images of a fit: data, model and residuals side by side, for data of two or more dimensions.

Two dimensions of the data become the axes of the images. The others are averaged, or cut at an
index. The images have few pixels, each the mean of its rows, and are summed in one reading of the
data.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import argument_name
from nlsq_dask.io.chunks import broadcast_box
from nlsq_dask.io.frame import NO_LABEL, Label
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.questions.images import Images
from nlsq_dask.results.drawing.axis import DATE, Axis, coordinate_of, date_of, same_scale
from nlsq_dask.results.drawing.figures import (
    DIFFERENCES,
    NO_VALUE,
    SMALL,
    VALUES,
    colour_bar,
    largest,
    map_of,
    new_axes,
)
from nlsq_dask.results.drawing.plottable import Plottable, model_and_data
from nlsq_dask.results.drawing.rows import residual_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Most pixels along an axis of an image: more than a panel shows.
MAX_PIXELS = 240

# Share of the pixels whose values the colours span. The others have the colours of the ends.
SHOWN_SHARE = 0.995

# Largest coordinate in memory that is compared with its values along one dimension.
MOST_COMPARED_VALUES = 1 << 24

# Inches: width of a new figure, width of a panel, and height of all that is not a panel.
WIDTH, PANEL, AROUND = 10.0, 2.45, 1.1


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What images show; see :meth:`nlsq_dask.FitResult.plot`."""

    dims: Sequence[Hashable] | None = None
    at: Mapping[Any, int] | None = None
    log: bool = False


def plot_images(result: Plottable, options: ImageOptions | None = None, ax: Any = None) -> Figure:
    """Draw data, model and residuals as images; see :meth:`nlsq_dask.FitResult.plot`."""
    method = "plot()"
    shown = options or ImageOptions()
    model, data = model_and_data(result, method)
    names = dimension_names(data)
    dims = _chosen_dims(shown.dims, names)
    cuts = _chosen_cuts(shown.at, names, data.y.shape, dims)
    if cuts and (not model.row_wise or set(cuts) & set(data.series_axes)):
        raise _errors.slice_not_row_wise()
    sliced = _sliced(data, cuts)
    rows, columns = (min(data.y.shape[dim], MAX_PIXELS) for dim in dims)
    across, down = _axis(data, dims[1], names, columns), _axis(data, dims[0], names, rows)
    figure, axes = new_axes(method, ax, _size(across, down), 1, 3, sharex=True, sharey=True)
    of_slice = replace(model, data=sliced)
    at = np.asarray(result.popt, np.float64)
    question = Images(at, sliced.y.shape, dims, (rows, columns), of_slice.block_rows)
    images = of_slice.ask(question, method).means()
    titles = (data.labels.get("y", NO_LABEL).title("y"), residual_title(data))
    _draw(figure, axes, images, (across, down), titles, log=shown.log)
    down.describe(axes[0].yaxis)
    note = _note(data, names, dims, cuts)
    if note and ax is None:
        figure.suptitle(note, fontsize=SMALL, color="#555555")
    return figure


def _size(across: Axis, down: Axis) -> tuple[float, float]:
    """Size of a new figure, in inches; its height follows that of the images."""
    ratio = 1.0
    if same_scale(across, down):
        ratio = float(np.ptp(down.edges) / np.ptp(across.edges))
    return WIDTH, min(PANEL * ratio + AROUND, WIDTH)


def dimension_names(data: Observations) -> tuple[Hashable, ...]:
    """Names of the dimensions of ``y``; their numbers for data without labels."""
    return data.frame.dims if data.frame is not None else tuple(range(data.y.ndim))


def _chosen_dims(wanted: Sequence[Hashable] | None, names: tuple[Hashable, ...]) -> tuple[int, int]:
    """Dimensions along the ordinate and the abscissa; by default the last two."""
    if len(names) < 2:
        raise _errors.images_need_dimensions(len(names))
    if wanted is None:
        return len(names) - 2, len(names) - 1
    given = [wanted] if isinstance(wanted, str) else list(wanted)
    if len(given) != 2 or given[0] == given[1]:
        raise _errors.image_dims_form(given, names)
    first, second = (_number_of(dim, names) for dim in given)
    return first, second


def _number_of(dim: Hashable, names: tuple[Hashable, ...]) -> int:
    if dim not in names:
        raise _errors.no_such_dimension(dim, names)
    return names.index(dim)


def _chosen_cuts(
    at: Mapping[Any, int] | None,
    names: tuple[Hashable, ...],
    shape: tuple[int, ...],
    dims: tuple[int, int],
) -> dict[int, int]:
    """Index of each dimension that is cut, by the number of the dimension."""
    cuts: dict[int, int] = {}
    for name, value in (at or {}).items():
        dim = _number_of(name, names)
        try:
            index = operator.index(value)
        except TypeError:
            raise _errors.no_such_index(name, value, shape[dim]) from None
        if dim in dims or not -shape[dim] <= index < shape[dim]:
            raise _errors.no_such_index(name, value, shape[dim], drawn=dim in dims)
        cuts[dim] = index % shape[dim]
    return cuts


def _sliced(data: Observations, cuts: Mapping[int, int]) -> Observations:
    """The rows at some indices; all dimensions stay, some with the length 1."""
    if not cuts:
        return data
    box = tuple(
        slice(cuts[d], cuts[d] + 1) if d in cuts else slice(0, n)
        for d, n in enumerate(data.y.shape)
    )

    def cut(array: Array) -> Array:
        return array[broadcast_box(box, array.shape)]

    return replace(
        data,
        y=cut(data.y),
        coords=tuple(map(cut, data.coords)),
        sigma=None if data.sigma is None else cut(data.sigma),
        masks=tuple(map(cut, data.masks)),
        arguments={},
        frame=None,
    )


def _note(
    data: Observations,
    names: tuple[Hashable, ...],
    dims: tuple[int, int],
    cuts: Mapping[int, int],
) -> str:
    """What became of the dimensions that are no axes."""
    parts = []
    for d in (d for d in range(data.y.ndim) if d not in dims):
        title = f"dimension {names[d]}" if isinstance(names[d], int) else str(names[d])
        found = coordinate_of(data.frame, names[d])
        if d not in cuts:
            parts.append(f"mean over {title} ({data.y.shape[d]:,})")
        elif found is None:
            parts.append(f"{title} at index {cuts[d]}")
        else:
            label, values = found
            at = values[cuts[d]]
            text = str(date_of(at)) if label.unit == DATE else f"{at:g} {label.unit}"
            parts.append(f"{title} = {text}".rstrip())
    return ", ".join(parts)


def _axis(data: Observations, dim: int, names: tuple[Hashable, ...], pixels: int) -> Axis:
    """An axis in the numbers of its coordinate, if it has a monotone one, else in indices."""
    found = coordinate_of(data.frame, names[dim]) or _of_coordinates(data, dim)
    return Axis.of(names[dim], data.y.shape[dim], found, pixels)


def _of_coordinates(data: Observations, dim: int) -> tuple[Label, FloatArray] | None:
    """The coordinate of the model that varies along a dimension of the data, and along no other."""
    for name, array in zip(data.names[1:], data.coords, strict=False):
        along = tuple(slice(None) if d == dim else slice(0, 1) for d in range(array.ndim))
        # Whether a lazy or a large array varies along others is not known before it is read.
        unknown = array.size != array.shape[dim] and (
            is_dask(array) or array.size > MOST_COMPARED_VALUES
        )
        if array.shape[dim] == 1 or unknown:
            continue
        line = np.asarray(array[along])
        if line.size == array.size or np.array_equal(np.broadcast_to(line, array.shape), array):
            label = data.labels.get(argument_name(data.structure, name), NO_LABEL)
            return replace(label, name=label.name or name), line.ravel().astype(np.float64)
    return None


def _draw(
    figure: Figure,
    axes: Sequence[Axes],
    images: tuple[FloatArray, FloatArray, FloatArray],
    of: tuple[Axis, Axis],
    labels: tuple[str, str],
    *,
    log: bool,
) -> None:
    """Draw the images: data and model with the same colours, residuals symmetric about zero.

    `of` are the abscissa and the ordinate, `labels` those of the values and of the residuals.
    """
    from matplotlib.colors import Normalize

    across, down = of
    most = largest(images[2], SHOWN_SHARE)
    norms = [_norm_of(images[0], log=log)] * 2 + [Normalize(-most, most)]
    titles, maps = ("data", "model", "residual"), (VALUES, VALUES, DIFFERENCES)
    meshes = []
    for each, image, title, norm, colours in zip(axes, images, titles, norms, maps, strict=False):
        shown = np.ma.masked_invalid(image)
        mesh = each.pcolormesh(
            across.edges, down.edges, shown, cmap=map_of(colours), norm=norm, rasterized=True
        )
        meshes.append(mesh)
        each.set_title(title, fontsize="medium")
        across.describe(each.xaxis)
        each.tick_params(labelsize=SMALL)
        each.set_facecolor(NO_VALUE)
        if same_scale(across, down):
            each.set_aspect("equal")
    groups = ((meshes[0], axes[:2], labels[0]), *((m, axes[2:], labels[1]) for m in meshes[2:]))
    for mesh, group, label in groups:
        colour_bar(figure, mesh, list(group), label, aspect=30, extend="both")


def _norm_of(image: FloatArray, *, log: bool) -> Any:
    """The colours that data and model share: those of nearly all pixels of the data."""
    from matplotlib.colors import LogNorm, Normalize

    finite = image[np.isfinite(image)]
    if log:
        finite = finite[finite > 0]
    if not finite.size:
        return LogNorm(0.1, 1.0) if log else Normalize(0.0, 1.0)
    low, high = np.quantile(finite, [1.0 - SHOWN_SHARE, SHOWN_SHARE])
    if low == high:
        low, high = (low / 2, low * 2) if log else (low - 0.5, high + 0.5)
    return LogNorm(low, high) if log else Normalize(low, high)
