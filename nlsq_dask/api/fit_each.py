"""``fit_each``: one fit for each series of an array of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.api.fit import fit
from nlsq_dask.api.keywords import naming_unknown_keywords
from nlsq_dask.api.lmfit_input import naming_lmfit, without_lmfit
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.series_values import values_of_block
from nlsq_dask.fitting.each import (
    SERIES_STAT_TOL,
    EachJob,
    EachOptions,
    OneSeries,
    packed_answer,
    prepare_each,
    series_reading,
)
from nlsq_dask.fitting.each_missing_chunks import (
    refuse_missing_chunks,
    warn_of_missing_chunks,
)
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.fitting.series_reading import SeriesReading
from nlsq_dask.fitting.series_result import (
    WITHOUT_FIT,
    agrees,
    result_of_answer,
    with_labels,
)
from nlsq_dask.fitting.series_values import map_values
from nlsq_dask.io.frame import NO_LABEL
from nlsq_dask.io.libraries import is_dask
from nlsq_dask.kernels.devices import DeviceArgument
from nlsq_dask.results.drawing.rows import abscissa_title
from nlsq_dask.results.maps import FitMaps
from nlsq_dask.results.maps_record import InStore
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from distributed import Client


@naming_unknown_keywords
def fit_each(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: Any = None,
    *,
    dim: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: Literal["raise", "omit"] | None = "omit",
    fill_value: float | None = None,
    decode: Literal["cf", False] = "cf",
    storage_options: Mapping[str, Any] | None = None,
    data: Any = None,
    time_unit: str = "s",
    bounds: Any = (-np.inf, np.inf),
    fixed: Mapping[str, Any] | None = None,
    ties: Any = None,
    stat_tol: float = SERIES_STAT_TOL,
    max_nfev: int | None = None,
    refine: Literal["neighbours"] | None = None,
    covariance: bool = False,
    store: Any = None,
    resume: bool = False,
    memory_limit_gb: float | None = None,
    retries: int = 3,
    missing_chunks: Literal["warn", "raise", "fill"] = "warn",
    client: Client | None = None,
    progress: bool | None = None,
    device: DeviceArgument = None,
) -> FitMaps:
    """Fit a model to each series of an array by itself: one fit a pixel, spectrum or light curve.

    Each series is fitted by nonlinear least squares as by :func:`fit`, with projected
    Levenberg-Marquardt steps for many series at once (Kanzow, Yamashita & Fukushima, J. Comput.
    Appl. Math. 172, 2004). The answer of a series depends on its own rows alone: it has the same
    bits in any order and in any chunks. A series that cannot be fitted gets a status, not an error.

    Parameters
    ----------
    model : callable
        ``model(x, a, b, ...)``, as for :func:`fit`. A model may mix the rows of a series, as a
        convolution does: it is then called with whole series.
    x : array_like or tuple of array_like
        Coordinates of the rows: the shape of the fitted axes for all series, or the shape of ``y``
        for each series. Several coordinates are a tuple.
    y : array_like, shape (...)
        Observations, as for :func:`fit`, in memory or lazy.
    p0 : sequence, dict, FitMaps or FitResult, optional
        Starting values, in order or by name: numbers, or maps with a number for each series. The
        result of an earlier fit, or its ``to_dataset()``, stands for its estimates. The default is
        a guess for each series for the models of :mod:`nlsq_dask.models`, and 1 for each parameter
        of another model, moved inside the bounds. A series with NaN in a map gets the default.
    dim : name, int, or sequence of these, optional
        Dimensions of ``y`` that are fitted along: names for an array of xarray, else axes. The
        default is the dimension of a labelled 1-D ``x``, or else the first axis.
    sigma : float or array_like, optional
        Standard deviations of ``y``: a number, a number for each row, for each series, or for each
        element of ``y``.
    absolute_sigma : bool
        As for :func:`fit`.
    mask : array_like of bool, optional
        True leaves a row out; shaped as `sigma`.
    nan_policy : {"omit", "raise"}
        "omit" (default): rows with NaN in ``y``, ``x`` or ``sigma`` are left out. "raise": such
        series get the status ``BAD_INPUT``.
    fill_value, decode, storage_options, data, time_unit
        As for :func:`fit`.
    bounds : pair, dict or scipy.optimize.Bounds
        As for :func:`fit`, with numbers or maps.
    fixed : dict, optional
        Values of parameters that are not fitted: numbers or maps.
    ties : dict or array_like of shape (p, q), optional
        As for :func:`fit`.
    stat_tol : float
        Distance from the optimum, in standard errors, at which a series has converged.
    max_nfev : int, optional
        Most evaluations of a series; by default 100 for each free parameter.
    refine : "neighbours", optional
        Fit some series again, from the estimates of a neighbour in the map: series without an
        answer, and series for which these estimates lead to a better minimum. The answer of a
        series then depends on the series up to six steps away, and not on the chunks.
    covariance : bool
        Whether to keep the covariance of the parameters of each series. False by default.
    store : path-like, str or zarr.Group, optional
        Where the maps are written, region by region as they come: a directory, the URL of a place
        in an object store, or a group. Then all fits run now, and the maps of the result are lazy
        arrays of what is stored. The names are those of ``to_dataset()``, so that
        ``xarray.open_zarr(store, consolidated=False)`` opens the store.
    resume : bool
        Whether to go on with the maps that an earlier run left in the store: only the regions that
        this run did not finish are fitted. The maps have the same bits, whatever memory there is
        now. A store of another problem is refused, and a store of other data: a series of some
        stored regions is fitted again and compared. Where frames are read, this needs a region
        that is left.
    memory_limit_gb : float, optional
        Memory of this process, or of each worker, in GB; by default the free memory. Series in
        several chunks that do not fit are read frame by frame, see :attr:`FitMaps.strategy`.
    retries : int
        How often a failed reading or writing is tried again, as for :func:`fit`.
    missing_chunks : {"warn", "raise", "fill"}
        What happens to chunks of Zarr arrays that are not in the store, as for :func:`fit`. "warn"
        (default) takes them for data, and gives their number when the maps are computed or
        written. "raise" is an error before the first fit. "fill" takes them for data without a
        warning.
    client : distributed.Client, optional
        Cluster that the fits run on, where there is a store; by default the active one.
    progress : bool, optional
        Whether to show a line of progress, where there is a store; by default on a terminal.
    device : str, jax.Device or a list of devices, optional
        Where the fits run, as for :func:`fit`.

    Returns
    -------
    FitMaps
        Arrays for arrays in memory, lazy arrays for Dask and Zarr arrays, and arrays of xarray for
        arrays of xarray.

    Raises
    ------
    InputError, InputTypeError, ModelError
        As :func:`fit`, and if the shape of a map does not match ``y``.

    Warns
    -----
    ConvergenceWarning
        If series have no answer: once, with the number of each status. For lazy data when the maps
        are computed by :meth:`FitMaps.compute`.
    MissingDataWarning
        If chunks are not in a Zarr store: when the maps are computed or written.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import fit_each, models
    >>> x = np.linspace(0, 4, 40)
    >>> tau = np.array([[0.5, 1.0], [1.5, 2.0]])
    >>> y = 3 * np.exp(-x[:, None, None] / tau)
    >>> maps = fit_each(models.ExponentialDecay(), x, y)
    >>> maps["tau"].round(6)
    array([[0.5, 1. ],
           [1.5, 2. ]])
    """
    inputs = InputOptions(
        sigma=sigma,
        absolute_sigma=absolute_sigma,
        mask=mask,
        nan_policy=nan_policy,
        fill_value=fill_value,
        decode=decode,
        storage_options=storage_options,
        data=data,
        time_unit=time_unit,
        bounds=bounds,
        fixed=fixed,
        ties=ties,
        missing_chunks=missing_chunks,
    )
    options = EachOptions(
        stat_tol=stat_tol,
        max_nfev=max_nfev,
        covariance=covariance,
        device=device,
        memory_limit_gb=memory_limit_gb,
        retries=retries,
        refine=refine,
        store=store,
    )
    job = checked_job(model, x, y, p0=p0, dim=dim, inputs=inputs, options=options)
    refuse_missing_chunks(job)
    if store is not None:
        return _stored_maps(job, store, resume, storage_options, client, progress)
    if resume:
        raise _errors.resume_without_store()
    reading = series_reading(job, executor_of(client, lazy=job.lazy))
    packed = packed_answer(job, reading)
    fields = job.problem.unpacked(packed)
    maps = maps_of(job, fields, reading, packed if job.lazy else None)
    if not maps.lazy:
        maps.warn()
    return maps


def checked_job(
    model: Any, x: Any, y: Any, *, p0: Any, dim: Any, inputs: InputOptions, options: EachOptions
) -> EachJob:
    """The job of a call of :func:`fit_each`, whose model and `p0` may be those of lmfit."""
    call = without_lmfit(model, x, p0, inputs)
    with naming_lmfit(call.model):
        return prepare_each(
            call.model, call.x, y, p0=call.p0, dim=dim, inputs=call.inputs, options=options
        )


def _stored_maps(
    job: EachJob,
    store: Any,
    resume: bool,
    storage_options: Mapping[str, Any] | None,
    client: Client | None,
    progress: bool | None,
) -> FitMaps:
    """The maps of a job, written to a store."""
    from nlsq_dask.fitting.each_store import (  # with Zarr, loaded for use
        StoreOptions,
        in_regions,
        open_target,
        unread_answer,
    )

    job = in_regions(job)
    options = StoreOptions(
        store=store,
        resume=resume,
        storage_options=storage_options,
        executor=executor_of(client),
        progress=progress,
        retries=job.retries,
    )
    target = open_target(job, options)
    reading = target.reading
    lazy = maps_of(job, job.problem.unpacked(unread_answer(job)), reading)
    fields, counts = target.written(lazy)
    if any(not status.success for status in counts):
        _errors.warn_caller(_errors.series_not_converged(counts))
    warn_of_missing_chunks(job)
    in_store = InStore(place=str(target.group.store_path), counts=counts)
    return maps_of(job, fields, reading, stored=in_store)


def maps_of(
    job: EachJob,
    fields: Mapping[str, Any],
    reading: SeriesReading | None = None,
    packed: Any = None,
    stored: InStore | None = None,
) -> FitMaps:
    """The result of a job, from the fields of its answer.

    Parameters
    ----------
    job : EachJob
    fields : mapping
    reading : SeriesReading, optional
    packed : dask.array.Array, optional
        The lazy array that holds all fields.
    stored : InStore, optional
        The store that holds the fields.
    """
    return FitMaps(
        names=job.parameters.names,
        fields=fields,
        axes=job.axes,
        problem=job.problem,
        strategy="standard" if reading is None else reading.strategy,
        frame=job.frame,
        units=job.parameters.units,
        fitted=_Fitted(job),
        packed=packed,
        stored=stored,
    )


@dataclass(frozen=True)
class _Fitted:
    """The job of maps; see :class:`~nlsq_dask.results.maps_record.FittedSeries`."""

    job: EachJob

    def warn_of_missing_chunks(self) -> None:
        """Warn of chunks that are not in their store, and count as data."""
        warn_of_missing_chunks(self.job)

    def values(self, fields: Mapping[str, Any], x: Any, *, residuals: bool = False) -> Any:
        """Values of the model, or residuals, of all series."""
        return map_values(self.job, fields, x, residuals)

    def rows(self, fields: Mapping[str, Any], index: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Abscissa, observations and values of the model of one series, each (m,).

        The abscissa of several coordinates is the number of the row.
        """
        job = self.job
        series = job.series(index)
        single = job.problem.spec.structure == "single"
        coords = [series.x] if single else list(series.x)
        block = [np.reshape(c, job.axes.fit_shape) for c in coords]
        order = np.argsort(job.axes.fit)
        axes = range(len(job.axes.shape))
        places = tuple(slice(None) if d in job.axes.fit else None for d in axes)
        full = [np.transpose(c, order)[places] for c in block]
        one = np.asarray(fields["popt"][(slice(None), *index)]).reshape(-1, *(1,) * len(index))
        values = values_of_block(job.problem, full, one, job.axes.fit_shape)
        turned = values.transpose(job.axes.fit + job.axes.map).ravel()
        y = np.ma.filled(np.ma.asarray(series.y, np.float64), np.nan)
        return (coords[0] if len(coords) == 1 else np.arange(len(y))), y, turned

    def titles(self) -> tuple[str, str]:
        """Titles of the abscissa and of the ordinate of :meth:`rows`."""
        data = self.job.data
        single = data.structure == "single"
        x = abscissa_title(data, has_curve=True) if single else "number of the row"
        return x, data.labels.get("y", NO_LABEL).title("y")

    def refit(self, fields: Mapping[str, Any], index: tuple[int, ...]) -> FitResult:
        """The fit of one series, from its answer, or else from its start.

        An answer that is exact to rounding is not used: it tells nothing of the sizes of
        parameters. Where the fit gives no result, or one that the map contradicts, the result is
        the answer of the map. The result of a success has the status of the map.
        """
        series = self.job.series(index)
        answer = _at(fields, index)
        found, status = answer["popt"], Status(int(answer["status"]))
        result = None
        if status not in WITHOUT_FIT:
            result = _fit_alone(self.job, series, found, is_exact=status == Status.ROUNDING)
        if result is None or not agrees(result, status):
            _, y, values = self.rows(fields, index)
            result = result_of_answer(self.job, index, series, answer, (y, values))
        elif status.success:
            result = replace(result, status=status)
        return with_labels(result, self.job, index)


def _at(fields: Mapping[str, Any], index: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """The fields of one series, read together: lazy fields fit the series of a block once."""
    found = [field[(..., *index)] for field in fields.values()]
    if any(map(is_dask, found)):
        from dask.base import compute  # loaded for use

        found = compute(*found)
    return dict(zip(fields, map(np.asarray, found), strict=True))


def _fit_alone(
    job: EachJob, series: OneSeries, found: FloatArray, *, is_exact: bool
) -> FitResult | None:
    """The fit of one series by ``fit``; None if there is none in the units of the data."""
    is_known = np.isfinite(found).all() and not is_exact
    names = job.parameters.names
    start = found if is_known else series.start
    problem = job.problem
    options: dict[str, Any] = {
        "sigma": series.sigma,
        "absolute_sigma": problem.absolute_sigma,
        "mask": series.mask,
        "nan_policy": "omit",
        "fill_value": problem.rule.fill_value,
        "bounds": series.bounds,
        "fixed": series.fixed or None,
        "ties": job.ties,
        "stat_tol": problem.stat_tol,
        "max_nfev": problem.max_nfev,
        "strategy": "standard",
        "pilot": False,
        "collapse": False,
        "device": problem.device,
    }
    p0 = None if np.isnan(start).any() else dict(zip(names, start.tolist(), strict=True))
    try:
        result = fit(job.model, series.x, series.y, p0, **options)
    except _errors.StartNotFiniteError:
        return None
    assert isinstance(result, FitResult)
    return result
