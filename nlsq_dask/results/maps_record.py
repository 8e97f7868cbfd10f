"""The maps of one fit for each series: estimates, errors and statuses, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.libraries import is_dask
from nlsq_dask.io.observations import Array
from nlsq_dask.io.series import SeriesAxes


class ParameterMaps(Mapping[str, Any]):
    """Maps by the names of the parameters.

    Attributes
    ----------
    array : numpy or dask array, shape (p, ...)
        All maps, in the order of the parameters.
    """

    def __init__(
        self, names: Sequence[str], array: Array, framed: Callable[[str, Array], Any]
    ) -> None:
        self._names = tuple(names)
        self.array = array
        self._framed = framed

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise _errors.unknown_map(name, self._names)
        return self._framed(name, self.array[self._names.index(name)])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<maps of {', '.join(self._names)}, each {self.array.shape[1:]}>"


class FittedSeries(Protocol):
    """The model and the data of maps, where they were fitted. Fields are maps by name."""

    def warn_of_missing_chunks(self) -> None:
        """Warn of chunks that are not in their store, and count as data."""
        ...

    def values(self, fields: Mapping[str, Array], x: Any, *, residuals: bool = False) -> Any:
        """Values of the model, or residuals, of all series, with the axes of y."""
        ...

    def rows(self, fields: Mapping[str, Array], index: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Abscissa, observations and values of the model of one series, each (m,)."""
        ...

    def titles(self) -> tuple[str, str]:
        """Titles of the abscissa and of the ordinate of :meth:`rows`."""
        ...

    def refit(self, fields: Mapping[str, Array], index: tuple[int, ...]) -> Any:
        """The fit of one series as a :class:`nlsq_dask.FitResult`."""
        ...


@dataclass(frozen=True, kw_only=True)
class InStore:
    """What is known of maps in a store without reading them.

    Attributes
    ----------
    place : str
        Where the store is.
    counts : dict
        Number of series of each status.
    """

    place: str
    counts: Mapping[Status, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class MapsRecord:
    """The maps of :class:`nlsq_dask.FitMaps`, which says what they are."""

    names: tuple[str, ...]
    fields: Mapping[str, Array]
    axes: SeriesAxes
    strategy: Literal["standard", "streaming", "frames"] = "standard"
    frame: Frame | None = field(default=None, repr=False)
    units: Mapping[str, str] = field(default_factory=dict, repr=False)
    fitted: FittedSeries | None = field(default=None, repr=False)
    stored: InStore | None = field(default=None, repr=False)

    @property
    def popt(self) -> ParameterMaps:
        """Estimates by name; NaN for series without an answer."""
        return self._by_parameter("popt", "")

    @property
    def perr(self) -> ParameterMaps:
        """Standard errors by name.

        NaN for series without success. Zero for fixed parameters, and infinite for series with as
        many rows as free parameters, unless `absolute_sigma`.
        """
        return self._by_parameter("perr", "_stderr")

    @property
    def chi2(self) -> Any:
        """Sum of squared weighted residuals."""
        return self._map("chi2")

    @property
    def reduced_chi2(self) -> Any:
        """`chi2` over the degrees of freedom; NaN where there are none."""
        return self._map("reduced_chi2")

    @property
    def n_points(self) -> Any:
        """Rows that count."""
        return self._map("n_points")

    @property
    def nfev(self) -> Any:
        """Evaluations of the model."""
        return self._map("nfev")

    @property
    def status(self) -> Any:
        """Why each fit ended: the numbers of :class:`nlsq_dask.Status`, int8."""
        return self._map("status")

    @property
    def distance_to_optimum_sigma(self) -> Any:
        """How far the estimates are from the optimum, in standard errors."""
        return self._map("distance_to_optimum_sigma")

    @property
    def at_bound(self) -> Any:
        """A number whose bit i says that parameter i lies on a bound."""
        return self._map("at_bound")

    @property
    def success(self) -> Any:
        """Which fits are at an optimum that the data determine."""
        return self.status > 0

    @property
    def pcov(self) -> Array:
        """Covariances (p, p, ...), without labels.

        Raises
        ------
        InputError
            Without ``covariance=True``.
        """
        if "pcov" not in self.fields:
            raise _errors.covariance_not_kept()
        packed, p = self.fields["pcov"], len(self.names)
        first, second = np.indices((p, p))
        high, low = np.maximum(first, second), np.minimum(first, second)
        order = (high * (high + 1) // 2 + low).ravel()
        return packed[order].reshape(p, p, *packed.shape[1:])

    @property
    def lazy(self) -> bool:
        """Whether the maps are Dask arrays, which are computed, or read from a store, on demand."""
        return any(map(is_dask, self.fields.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the map."""
        return self.axes.map_shape

    def __getitem__(self, name: str) -> Any:
        return self.popt[name]

    def counts(self) -> dict[Status, int]:
        """Number of series of each status; computes the status of lazy maps without a store."""
        if self.stored is not None:
            return dict(self.stored.counts)
        status = np.asarray(self.fields["status"])
        found = Counter(dict(zip(*np.unique(status, return_counts=True), strict=True)))
        return {Status(int(number)): int(n) for number, n in sorted(found.items())}

    def _by_parameter(self, name: str, suffix: str) -> ParameterMaps:
        def framed(parameter: str, values: Array) -> Any:
            unit = self.units.get(parameter)
            return self._framed(f"{parameter}{suffix}", values, {"units": unit} if unit else {})

        return ParameterMaps(self.names, self.fields[name], framed)

    def _map(self, name: str) -> Any:
        return self._framed(name, self.fields[name], {})

    def _framed(self, name: str, values: Array, attrs: Mapping[str, Any]) -> Any:
        if self.frame is None:
            return values
        import xarray as xr  # an optional library, which made the frame

        return xr.DataArray(values, self.frame.coords, self.frame.dims, name, dict(attrs))


def fitted_series(maps: MapsRecord, method: str) -> FittedSeries:
    """The model and the data of maps, for a method; maps that were pickled have none.

    Raises
    ------
    InputError
        If there are none.
    """
    if maps.fitted is None:
        raise _errors.maps_without_model(method)
    return maps.fitted
