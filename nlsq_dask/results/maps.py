"""The result of one fit for each series: maps of estimates, errors and statuses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.observations import Array
from nlsq_dask.results import maps_dataset, maps_report
from nlsq_dask.results.drawing.maps import plot_maps
from nlsq_dask.results.maps_record import MapsRecord, fitted_series
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class FitMaps(MapsRecord):
    """The result of :func:`nlsq_dask.fit_each`: a map for each quantity.

    Maps have the axes of ``y`` that were not fitted along. They are arrays of xarray with the
    labels of ``y`` if ``y`` has labels, and lazy Dask arrays if any of the data is lazy. All maps
    of a lazy result come from one task for each block: compute them together, by :meth:`compute`
    or ``to_dataset()``. ``maps["lifetime"]`` is the map of the estimates of a parameter.

    Attributes
    ----------
    names : tuple of str, length p
        Parameters in the model's order.
    fields : mapping of str to array
        The maps without labels, by name.
    axes : SeriesAxes
        The fitted axes of ``y`` and those of the map.
    strategy : {"standard", "streaming", "frames"}
        How the data are read: in memory; in tasks that read whole series; or frame by frame, where
        whole series do not fit in memory. Sums of each series are then added up over its frames,
        some five times.
    """

    problem: SeriesProblem | None = field(repr=False)
    packed: Array | None = field(default=None, repr=False)

    def compute(self, **options: Any) -> Self:
        """The same maps in memory.

        Parameters
        ----------
        **options : object
            Of ``dask.compute``.

        Warns
        -----
        ConvergenceWarning
            If series have no answer: with the number of each status.
        MissingDataWarning
            If chunks of the data are not in their Zarr store; see :func:`fit_each`.
        """
        if not self.lazy:
            return self
        from dask.base import compute  # loaded for use

        # One array takes one task for each block, and the fields a task for each field and block.
        if self.packed is not None and self.problem is not None:
            (packed,) = compute(self.packed, **options)
            done = replace(self, fields=self.problem.unpacked(packed), packed=None)
        else:
            arrays = compute(*self.fields.values(), **options)
            done = replace(self, fields=dict(zip(self.fields, arrays, strict=True)))
        done.warn()
        if self.fitted is not None and self.stored is None:
            self.fitted.warn_of_missing_chunks()
        return done

    def warn(self) -> None:
        """Warn if series have no answer. For maps in memory."""
        counts = self.counts()
        if any(not status.success for status in counts):
            _errors.warn_caller(_errors.series_not_converged(counts))

    def raise_for_status(self) -> None:
        """Raise an error unless all fits were a success.

        Raises
        ------
        ConvergenceError
            With the number of series of each status.
        """
        counts = self.counts()
        if any(not status.success for status in counts):
            raise _errors.series_error(counts)

    def predict(self, x: Any = None) -> Any:
        """Values of the model at the estimates of each series.

        Parameters
        ----------
        x : array_like or tuple of array_like, optional
            Coordinates in the form that the fit took, also names, times and quantities: with the
            fitted axes for all series, or with all axes of ``y``. An array of xarray has dimensions
            of ``y``, or other dimensions in place of the fitted ones. By default, the coordinates
            of the data.

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            With the axes of ``y``, and an array of xarray if ``y`` is. NaN for series without an
            answer. Lazy if the maps are.

        Raises
        ------
        InputError, InputTypeError
            If `x` are not the coordinates of the model and of the series.
        """
        return fitted_series(self, "predict()").values(self.fields, x)

    def residuals(self) -> Any:
        """Residuals ``y - f``, unweighted, with the axes of ``y``; NaN for missing rows."""
        return fitted_series(self, "residuals()").values(self.fields, None, residuals=True)

    def at(self, *index: int, **by_name: int) -> FitResult:
        """The fit of one series as an ordinary result, by :func:`nlsq_dask.fit`.

        The result of a series that :func:`nlsq_dask.fit` refuses, or judges otherwise, has the
        numbers of the map, its status included.

        Parameters
        ----------
        *index : int
            An index for each axis of the map.
        **by_name : int
            The same by the names of the dimensions, for maps with labels.

        Raises
        ------
        InputError
            If the index is not that of a series.
        """
        place = self._index(index, by_name)
        result: FitResult = fitted_series(self, "at()").refit(self.fields, place)
        return result

    def plot(self) -> Figure:
        """Draw the map of each parameter, the statuses, and the median and the worst series.

        The colours of a map vary between its quantiles of 2 and 98 %.

        Returns
        -------
        matplotlib.figure.Figure
            A figure that pyplot does not know, as :meth:`FitResult.plot` returns it.

        Raises
        ------
        MissingLibraryError
            Without matplotlib.
        InputError
            If the map has neither one nor two dimensions.
        """
        return plot_maps(self.compute())

    def to_dataset(self) -> xr.Dataset:
        """All maps as an ``xarray.Dataset``, for Zarr and NetCDF.

        Returns
        -------
        xarray.Dataset
            A variable for each parameter by its name, and for its standard error with ``_stderr``.
            A variable whose name is that of a coordinate, or taken, gets the prefix ``fit_``.
            ``status`` has the attributes ``flag_values`` and ``flag_meanings`` of the CF
            conventions, ``at_bound`` has ``flag_masks``. Lazy if the maps are.

        Raises
        ------
        MissingLibraryError
            Without xarray.
        """
        return maps_dataset.to_dataset(self)

    def to_curvefit(self) -> xr.Dataset:
        """The two variables that ``xarray.DataArray.curvefit`` returns.

        Returns
        -------
        xarray.Dataset
            ``curvefit_coefficients`` (..., param) and ``curvefit_covariance`` (..., cov_i, cov_j).

        Raises
        ------
        InputError
            Without ``covariance=True``.
        MissingLibraryError
            Without xarray.
        """
        return maps_dataset.to_curvefit(self)

    def __str__(self) -> str:
        return maps_report.report(self)

    def _repr_html_(self) -> str:
        return maps_report.html_report(self)

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the data, for their size, and the model: many models cannot be pickled.
        problem = None if self.packed is None else self.problem
        return {**vars(self), "fitted": None, "problem": problem}

    def _index(self, index: Sequence[int], by_name: Mapping[str, int]) -> tuple[int, ...]:
        dims: tuple[Hashable, ...] = () if self.frame is None else self.frame.dims
        if by_name and not index and set(by_name) == set(dims):
            index = [by_name[str(dim)] for dim in dims]
        shape = self.shape
        fits = len(index) == len(shape) and all(
            isinstance(i, int | np.integer) and -n <= i < n
            for i, n in zip(index, shape, strict=False)
        )
        if not fits:
            raise _errors.series_index(index, by_name, shape, dims=dims)
        return tuple(int(i) % n for i, n in zip(index, shape, strict=True))
