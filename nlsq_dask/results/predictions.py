"""What a result computes on rows: values of the model, their intervals, and residuals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.observations import Array
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.labelled import bare, framed_like
from nlsq_dask.results.record import FitRecord, interval_quantile


class Predictions(FitRecord):
    """What :class:`nlsq_dask.FitResult` computes on rows."""

    fitted: FittedModel | None

    def predict(self, x: Any = None) -> Array:
        """Values of the model at the estimates.

        Parameters
        ----------
        x : array_like or tuple of array_like, optional
            Coordinates in the form that the fit took, of any shape. Arrays of xarray broadcast by
            the names of their dimensions. Times are taken where the fit had times, and names of
            coordinates of y. By default, the coordinates of the data.

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            Values in the shape of the coordinates; by default in the shape of y. Lazy if the
            coordinates are. With the labels of the coordinates, or of y by default, and the
            attributes of y, if these are arrays of xarray.

        Raises
        ------
        InputError, InputTypeError
            If the result has no model, no data to predict by default, or `x` are not the model's
            coordinates.
        """
        return self._model("predict()").values(self.popt, x)

    def residuals(self) -> Array:
        """Residuals ``y - f``, unweighted.

        Returns
        -------
        numpy or dask array or xarray.DataArray, float64
            Residuals in the shape and the units of y. NaN for rows that were left out. Lazy if the
            data are, and with the labels of y if it is an array of xarray.

        Raises
        ------
        InputError
            If the result has no model or no data.
        """
        return self._model("residuals()").residuals(self.popt)

    def confidence_band(self, x: Any = None, level: float = 0.95) -> tuple[Array, Array]:
        """Interval for the model's value at each x, ``f ± t √(j C jᵀ)``.

        j is the row of derivatives by the parameters and C is `pcov`. t is the quantile of
        Student's distribution with `dof` degrees of freedom, or of the normal distribution if
        `absolute_sigma` (the delta method: Seber & Wild, "Nonlinear Regression", 1989, section
        5.1). The probability holds at each x, and not for the whole curve at once.

        Parameters
        ----------
        x : array_like or tuple of array_like, optional
            As in :meth:`predict`.
        level : float
            Probability with which an interval covers the true value, in (0, 1).

        Returns
        -------
        lower, upper : numpy or dask array or xarray.DataArray, float64
            As :meth:`predict`; infinite where the data do not determine the parameters.

        Raises
        ------
        InputError, InputTypeError
            As :meth:`predict`, or if `level` is no probability in (0, 1).
        """
        return self._around("confidence_band()", x, level, 0.0)

    def prediction_interval(self, x: Any = None, level: float = 0.95) -> tuple[Array, Array]:
        """Interval for a new observation at each x, ``f ± t √(j C jᵀ + s²)``.

        As :meth:`confidence_band`, with the variance s² of a new observation in y's units:
        ``Σ (y - f)² / dof`` of the residuals, or ``Σ sigma² / n`` if `absolute_sigma`. The
        interval assumes that the new observation has the mean variance of the fitted ones, also if
        their sigma differ.

        Parameters
        ----------
        x : array_like or tuple of array_like, optional
            As in :meth:`predict`.
        level : float
            Probability with which an interval covers the new observation, in (0, 1).

        Returns
        -------
        lower, upper : numpy or dask array or xarray.DataArray, float64
            As :meth:`predict`.

        Raises
        ------
        InputError, InputTypeError
            As :meth:`confidence_band`.
        """
        return self._around("prediction_interval()", x, level, self._variance_of_a_row())

    def _model(self, method: str) -> FittedModel:
        if self.fitted is None:
            raise _errors.result_without_model(method)
        return self.fitted

    def _variance_of_a_row(self) -> float:
        """Mean variance of the rows, in the units of y squared."""
        if self.absolute_sigma and self.moments.variance > 0.0:
            return self.moments.variance / self.n_points
        return self.moments.sq_residuals / self.dof if self.dof > 0 else math.inf

    def _around(self, method: str, x: Any, level: float, variance: float) -> tuple[Array, Array]:
        """The values of the model, less and plus a multiple of their standard errors."""
        quantile = interval_quantile(level, self.dof, known_scale=self.absolute_sigma)
        model = self._model(method)
        prediction = model.values(self.popt, x)
        values, errors = bare(prediction), bare(model.standard_errors(self.popt, self.pcov, x))
        if variance:
            errors = np.sqrt(errors**2 + variance)
        # An infinite quantile times an error of zero is NaN.
        half = quantile * errors if math.isfinite(quantile) else errors + math.inf
        return (
            framed_like(prediction, values - half, "lower", "lower end of the interval of the"),
            framed_like(prediction, values + half, "upper", "upper end of the interval of the"),
        )
