"""A fitted model on rows: values, their standard errors, residuals, sums, histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import AnswerT, SumsAt
from nlsq_dask.core.structure import Series, Structure, model_input
from nlsq_dask.engines.dask.executor import LOCAL, Executor, running
from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.chunks import largest_block
from nlsq_dask.io.finite import Affected
from nlsq_dask.io.frame import Frame
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.times import TimeAxis
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.values import covariance_root
from nlsq_dask.questions.bad_rows import BadRows, BadRowsAt
from nlsq_dask.questions.derivatives import LostDerivativesAt
from nlsq_dask.questions.question import AnyQuestion
from nlsq_dask.questions.row_values import (
    RowFunction,
    residuals_of_block,
    values_of_block,
)
from nlsq_dask.questions.scores import ScoresAt
from nlsq_dask.results.provenance import Provenance
from nlsq_dask.results.rows import Rows, numbers_at, rows_at
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import ModelSpec
from nlsq_dask.user_model.row_wise import row_dependence
from nlsq_dask.user_model.signature import model_label, parameter_names

# Values of x at which a curve is computed to find its range.
CURVE_POINTS = 512


@dataclass(frozen=True)
class FittedModel:
    """A fitted model, and the data of the fit.

    Arrays in memory give arrays in memory, computed buffer by buffer. Dask and Zarr arrays give
    lazy Dask arrays. Arrays of xarray give arrays of xarray, which are as lazy.

    Attributes
    ----------
    spec : ModelSpec
        The model.
    data : Observations or None
        Data of the fit; None for a loaded result.
    device : str, tuple of str or None
        Device that computes the model.
    executor : Executor
        Where lazy data are read for sums over rows.
    row_wise : bool
        Whether the model may be evaluated block by block.
    profiles : callable, optional
        ``profiles(record, names, quantile)`` computes profiles of the named parameters.
    provenance : Provenance or None
        How the result was made.
    times : tuple of (TimeAxis or None)
        For each coordinate, how times become numbers.
    units : mapping of str to str
        Units of y and the coordinates without data, by "y", "x" or "x[i]".
    """

    spec: ModelSpec
    data: Observations | None = None
    device: DeviceChoice = None
    executor: Executor = LOCAL
    row_wise: bool = True
    profiles: Callable[..., Any] | None = None
    provenance: Provenance | None = None
    times: tuple[TimeAxis | None, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_model(
        cls,
        model: Callable[..., Any],
        names: Sequence[str],
        structure: Structure,
        n_coords: int,
        params: ArrayLike | None = None,
        fixed: Sequence[str] = (),
        units: Mapping[str, str] | None = None,
    ) -> Self:
        """Fitted model without data, for a loaded result.

        Parameters
        ----------
        model : callable
            ``model(x, *params)``, as in the fit.
        names : sequence of str, length p
            Names of the parameters.
        structure : {"single", "stacked", "tuple"}
            How the model takes its coordinates.
        n_coords : int
            Number of coordinates.
        params : array_like, shape (p,), optional
            Parameters at which the row structure of the model is examined; ones by default.
        fixed : sequence of str
            Names of the parameters that were fixed.
        units : mapping of str to str, optional
            Units of y and the coordinates of the fit, by "y", "x" or "x[i]".

        Raises
        ------
        ModelError
            If the model cannot be traced, or does not take these parameters in this order.
        """
        taken = parameter_names(model, len(names))
        if any(name in taken and taken.index(name) != i for i, name in enumerate(names)):
            raise _errors.parameter_order(model_label(model), names, taken)
        spec = prepare_model(model, tuple(names), structure, n_coords)
        at = np.ones(len(names)) if params is None else np.asarray(params, np.float64)
        spec = replace(spec, constant=tuple(i for i, name in enumerate(names) if name in fixed))
        return cls(spec, row_wise=row_dependence(spec, at) is None, units=units or {})

    def without_data(self) -> Self | None:
        """The model for a pickle, with the times and units of its coordinates.

        Returns
        -------
        FittedModel or None
            None if the model, its Jacobian or its loss cannot be pickled.
        """
        if not self.spec.is_picklable:
            return None
        jacobian = self.spec.jacobian and replace(self.spec.jacobian, series=None)
        spec = replace(self.spec, jacobian=jacobian, cholesky=None, series=None)
        times, units = self.times, self.units
        if self.data is not None:
            times, units = self.data.times, self.data.units
        return type(self)(spec, row_wise=self.row_wise, times=times, units=units)

    def values(self, params: ArrayLike, x: Any = None) -> Array:
        """Values of the model.

        Parameters
        ----------
        params : array_like, shape (p,)
        x : array_like or tuple of array_like, optional
            Coordinates in the form that the model takes: an array of any shape, an array
            (k, ...) of k coordinates, or a tuple of k arrays that broadcast together. Arrays of
            xarray broadcast by the names of their dimensions. The coordinates of the data by
            default.

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            Of the shape that the coordinates broadcast to; of y's shape by default. An array of
            xarray, with coordinates, if the coordinates are, or y by default.

        Raises
        ------
        InputError, InputTypeError
            If the coordinates are not those of the model, or there are no data to take them from.
        NotRowWiseError
            If the coordinates are in chunks and the model's rows depend on each other.
        """
        rows = self._rows(x)
        values = self._on_rows(rows, params, None)
        return _framed(rows.frame, values, "prediction", "prediction of")

    def standard_errors(self, params: ArrayLike, pcov: ArrayLike, x: Any = None) -> Array:
        """Standard errors of the model's values, ``√(j C jᵀ)`` with j the row of ``∂f/∂θ``.

        Parameters
        ----------
        params : array_like, shape (p,)
        pcov : array_like, shape (p, p)
            Covariance C of the parameters; with infinities, all errors are infinite.
        x : optional
            As in :meth:`values`.

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            As :meth:`values`.

        Raises
        ------
        InputError, InputTypeError, NotRowWiseError
            As :meth:`values`.
        """
        rows, covariance = self._rows(x), np.asarray(pcov, np.float64)
        if np.all(np.isfinite(covariance)):
            errors = self._on_rows(rows, params, covariance_root(covariance))
        else:
            # Zero times the values, so that the result is lazy where the values are, plus infinity.
            no_errors = np.zeros((len(self.spec.names), 0))
            errors = self._on_rows(rows, params, no_errors) + np.inf
        return _framed(
            rows.frame, errors, "standard_error", "standard error of", same_quantity=False
        )

    def residuals(self, params: ArrayLike) -> Array:
        """Residuals ``y - f``, in the units of y.

        Parameters
        ----------
        params : array_like, shape (p,)

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            Of y's shape, with its labels, and in its chunks; NaN for rows that were left out.

        Raises
        ------
        InputError
            If there are no data.
        """
        data = self._data("residuals()")
        function = self._function(params, None)
        if data.lazy:
            from nlsq_dask.engines.dask.lazy_values import residuals_of_rows  # Dask, loaded for use

            residuals: Array = residuals_of_rows(function, data)
        else:
            residuals = residuals_of_block(function, data.layout.block(data.operands))
        return _framed(data.frame, residuals, "residuals", "residuals of", same_quantity=False)

    def without_derivatives(self, params: ArrayLike) -> Affected:
        """Rows with a derivative that is not finite, and whose difference is not finite either.

        Parameters
        ----------
        params : array_like, shape (p,)

        Returns
        -------
        Affected
            Number of the rows, and place of the first. Reads all rows once.

        Raises
        ------
        InputError
            If there are no data.
        """
        at = np.asarray(params, np.float64)
        return self.ask(LostDerivativesAt(at), "without_derivatives()")

    def score_products(self, params: ArrayLike) -> FloatArray:
        """Sum of outer products of the rows' scores, for a robust covariance.

        Parameters
        ----------
        params : array_like, shape (p,)

        Returns
        -------
        ndarray, shape (p, p), float64
            ``Σ r_i² j_i j_iᵀ`` of weighted residuals and rows of their Jacobian: the middle of the
            sandwich (White, "A heteroskedasticity-consistent covariance matrix estimator",
            Econometrica 48, 1980). One reading of all rows.

        Raises
        ------
        InputError
            If there are no data.
        """
        return self.ask(ScoresAt(np.asarray(params, np.float64)), "robust_pcov()")

    def abs_residuals(self, params: ArrayLike) -> float:
        """Sum of absolute residuals in the units of y, in one reading of all rows.

        Parameters
        ----------
        params : array_like, shape (p,)

        Raises
        ------
        InputError
            If there are no data.
        """
        at = np.asarray(params, np.float64)
        return self.ask(SumsAt(at, np.eye(at.size)), "mae").moments.abs_residuals

    def bad_rows(self, params: ArrayLike) -> BadRows:
        """Rows without a finite squared residual, found in one reading of all rows.

        Parameters
        ----------
        params : array_like, shape (p,)
        """
        at = np.asarray(params, np.float64)
        return self.ask(BadRowsAt(at, self.block_rows), "a fit")

    def ask(self, question: AnyQuestion[AnswerT], what: str) -> AnswerT:
        """Answer a question in one reading of the data.

        Parameters
        ----------
        question : AnyQuestion
        what : str
            What is computed, in the words of messages.

        Raises
        ------
        InputError
            If there are no data.
        """
        with self._engine(self._data(what)) as engine:
            return engine.ask(question)

    @property
    def block_rows(self) -> int:
        """Rows of the largest block, or of all data in memory."""
        data = self._data("a fit")
        if not data.lazy:
            return data.n_rows
        from nlsq_dask.engines.dask.groups import common_chunks  # Dask, loaded for use

        return largest_block(common_chunks(data))

    @property
    def has_curve(self) -> bool:
        """Whether the model has one coordinate, so that it can be drawn as a curve."""
        return self.spec.n_coords == 1 and self.row_wise and self.spec.series is None

    def curve(
        self,
        params: ArrayLike,
        pcov: ArrayLike,
        x_range: tuple[float, float],
        *,
        log: bool = False,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """A model of one coordinate along a range.

        Parameters
        ----------
        params : array_like, shape (p,)
        pcov : array_like, shape (p, p)
        x_range : pair of float
        log : bool
            Whether the coordinate has equal steps on a logarithmic axis.

        Returns
        -------
        x, values, errors : ndarray, shape (512,), float64
            The coordinate, the model's values, and their standard errors.
        """
        line: FloatArray = (np.geomspace if log else np.linspace)(*x_range, CURVE_POINTS)
        x = model_input(self.spec.structure, [line], np.stack)
        return line, self.values(params, x), self.standard_errors(params, pcov, x)

    def _data(self, what: str) -> Observations:
        if self.data is None:
            raise _errors.result_without_data(what)
        return self.data

    def _engine(self, data: Observations) -> Engine:
        kernels = Kernels((self.spec,), self.device, whole=not self.row_wise)
        return open_engine(data, kernels, running(self.executor))

    def _function(self, params: ArrayLike, root: FloatArray | None) -> RowFunction:
        at = np.asarray(params, np.float64)
        return RowFunction(self.spec, at, root, self.device, self.row_wise)

    def _rows(self, x: Any) -> Rows:
        """The rows of some coordinates, or of the data."""
        if x is None:
            data = self._data("predict() without x")
            return Rows(data, data.y.shape, data.frame)
        dims = None if self.data is None or self.data.frame is None else self.data.frame.dims
        numbers = numbers_at(x, self.spec, self.data, times=self.times, units=self.units)
        rows = rows_at(self.spec, numbers, dims)
        if self.spec.series is not None:
            axes = self._series_axes_of(rows)
            rows = replace(rows, data=replace(rows.data, series_axes=axes))
        if rows.frame is None or self.data is None:
            return rows
        return replace(rows, frame=rows.frame.describing(self.data.frame))

    def _series_axes_of(self, rows: Rows) -> tuple[int, ...]:
        """Axes of new coordinates along which series run: by name, or as in y, or all axes."""
        assert self.spec.series is not None, "a model of series"
        assert self.data is not None, "a fitted model of series has its data"
        own, ndim, frame = self.spec.series.axes, self.data.y.ndim, self.data.frame
        if frame is not None and rows.frame is not None:
            names = [frame.dims[d] for d in own]
            if all(name in rows.frame.dims for name in names):
                return tuple(rows.frame.dims.index(name) for name in names)
        elif rows.data.y.ndim == ndim:
            return own
        elif rows.data.y.ndim == len(own):
            return tuple(range(len(own)))
        raise _errors.series_of_new_x(rows.shape, ndim, own)

    def _on_rows(self, rows: Rows, params: ArrayLike, root: FloatArray | None) -> Array:
        data = rows.data
        function = self._function(params, root)
        if data.series_axes:
            series = Series(data.series_rows, data.series_axes)
            function = replace(function, spec=self.spec.in_series(series))
        several = sum(n > 1 for n in data.y.shape) > 1
        if not self.row_wise and several and not data.lazy:
            reason = row_dependence(self.spec, function.params)
            if reason is not None:
                raise _errors.prediction_across_series(reason, data.y.shape)
        if not data.lazy:
            block = data.layout.block(data.operands)
            return values_of_block(function, block).reshape(rows.shape)
        if not self.row_wise:
            reason = row_dependence(self.spec, function.params)
            raise _errors.not_row_wise(reason or "depends on all rows")
        from nlsq_dask.engines.dask.lazy_values import of_rows  # Dask, loaded for use

        return of_rows(function, data)


def _framed(
    frame: Frame | None, values: Array, name: str, meaning: str, *, same_quantity: bool = True
) -> Array:
    """Values in their frame, if there is one."""
    if frame is None:
        return values
    return frame.filled(values, name, meaning, same_quantity=same_quantity)
