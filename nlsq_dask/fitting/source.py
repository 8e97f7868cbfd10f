"""The data of a fit, from the arguments of the caller, without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nlsq_dask.core.process import check_not_forked
from nlsq_dask.fitting.job import Source
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.io.correlation import split_sigma
from nlsq_dask.io.frame import Label
from nlsq_dask.io.libraries import is_plain
from nlsq_dask.io.named import named_arguments
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.refusals import checked_kind, to_numpy
from nlsq_dask.io.series import SeriesAxes
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stored import (
    check_options,
    in_blocks,
    options_of_checkpoint,
    stored_argument,
    with_fill_value,
)
from nlsq_dask.io.units import bare_data


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """Arrays and numbers in place of names, paths and quantities.

    Attributes
    ----------
    x, y, sigma, mask : object
        Arrays or lists; y is an array. A tuple x holds arrays.
    inputs : InputOptions
        Arguments of the fit. The fill value is NaN if decoding makes NaN of the marked values.
    labels : mapping of str to Label
        Units of the quantities.
    checkpoint_options : mapping or None
        Options of the object store of the checkpoints, or of the maps.
    """

    x: Any
    y: Any
    sigma: Any
    mask: Any
    inputs: InputOptions
    labels: Mapping[str, Label]
    checkpoint_options: Mapping[str, Any] | None

    def observed(
        self, axes: SeriesAxes | None, *, chosen: bool = True, deviations: bool = True
    ) -> Observations:
        """The data in one representation.

        Parameters
        ----------
        axes : SeriesAxes or None
            An array of one series gets the axes that the series run along.
        chosen : bool
            Whether the caller chose the axes.
        deviations : bool
            Whether to refuse standard deviations that are not positive and finite.
        """
        inputs = self.inputs
        coords, stacked, sigma, mask = self.x, False, self.sigma, self.mask
        if axes is not None:
            coords, stacked = axes.coordinates(coords)
            sigma, mask = axes.rows(sigma, "sigma"), axes.rows(mask, "mask")
        data = observe(
            coords,
            self.y,
            sigma,
            mask=mask,
            nan_policy=inputs.nan_policy,
            fill_value=inputs.fill_value,
            time_unit=inputs.time_unit,
            deviations=deviations,
            axes_of=None if axes is None else axes.axes_of,
        )
        if axes is not None:
            axes.check_coordinates(self.x, data.coords, chosen=chosen)
        return replace(
            data,
            decode=inputs.decode,
            storage_options=inputs.storage_options,
            labels={**data.labels, **self.labels},
            structure="stacked" if stacked else data.structure,
        )


def opened_data(
    x: Any, y: Any, inputs: InputOptions, output: Any, *, join: bool = False
) -> OpenedData:
    """Open the arrays of a fit.

    Parameters
    ----------
    x, y : object
        Arguments of the fit.
    inputs : InputOptions
    output : path-like or None
        Where checkpoints or maps are written.
    join : bool
        Whether small chunks of Zarr arrays are read several at one time.
    """
    x, y, sigma, mask = named_arguments(
        x, y, sigma=inputs.sigma, mask=inputs.mask, data=inputs.data
    )
    named = {"x": x, "y": y, "sigma": sigma, "mask": mask}
    options = inputs.storage_options
    check_options(options, named.values(), output)
    x, y, sigma, mask = (stored_argument(a, n, inputs.decode, options) for n, a in named.items())
    bare = bare_data(x, y, sigma)
    arrays = (bare.x, bare.y, bare.sigma, None if mask is None else checked_kind(mask, "mask"))
    x, y, sigma, mask = in_blocks(*arrays) if join else arrays
    y, fill_value = with_fill_value(y, inputs.fill_value)
    return OpenedData(
        x=x,
        y=y if hasattr(y, "shape") else to_numpy(y, "y"),
        sigma=sigma,
        mask=mask,
        inputs=replace(inputs, fill_value=fill_value),
        labels=bare.labels,
        checkpoint_options=options_of_checkpoint(options, named.values(), output),
    )


def open_source(x: Any, y: Any, inputs: InputOptions) -> Source:
    """Check the data of a fit, without reading them."""
    check_not_forked()
    if _are_plain(x, y, inputs):
        return _plain_source(x, y, inputs)
    # With "omit" a missing chunk costs the rows of its block.
    join = inputs.missing_chunks != "omit"
    opened = opened_data(x, y, inputs, inputs.checkpoint, join=join)
    sigma, correlated = split_sigma(opened.sigma, opened.y)
    axes = None if inputs.dim is None else SeriesAxes.of(opened.y, opened.x, inputs.dim)
    data = replace(opened, sigma=sigma).observed(axes)
    if axes is not None:
        data = replace(data, series_axes=axes.fit)
    return Source(data, correlated, opened.checkpoint_options)


def _are_plain(x: Any, y: Any, inputs: InputOptions) -> bool:
    """Whether all data are NumPy arrays, which have no names, units, chunks or attributes."""
    if x is None or y is None or not all(map(is_plain, (x, y, inputs.sigma, inputs.mask))):
        return False
    others = (inputs.data, inputs.storage_options, inputs.dim)
    is_decoded = isinstance(inputs.decode, str) and inputs.decode == "cf"
    return is_decoded and all(value is None for value in others)


def _plain_source(x: Any, y: Any, inputs: InputOptions) -> Source:
    """The data, where all are NumPy arrays."""
    sigma, correlated = split_sigma(inputs.sigma, y)
    data = observe(
        x,
        y,
        sigma,
        mask=inputs.mask,
        nan_policy=inputs.nan_policy,
        fill_value=inputs.fill_value,
        time_unit=inputs.time_unit,
    )
    return Source(data, correlated)
