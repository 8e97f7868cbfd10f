"""What pictures need of a result."""

from __future__ import annotations

from typing import Protocol

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.observations import Observations
from nlsq_dask.results.fitted_model import FittedModel


class Plottable(Protocol):
    """The part of a result that a plot needs; see :class:`nlsq_dask.FitResult`."""

    @property
    def fitted(self) -> FittedModel | None:
        """The model and the data."""
        ...

    @property
    def popt(self) -> FloatArray:
        """Estimates, shape (p,)."""
        ...

    @property
    def pcov(self) -> FloatArray:
        """Their covariance, shape (p, p)."""
        ...

    @property
    def rmse(self) -> float:
        """Root mean square of the residuals, in the units of y."""
        ...

    @property
    def reduced_chi2(self) -> float:
        """Mean square of the weighted residuals."""
        ...

    @property
    def dof(self) -> int:
        """Degrees of freedom."""
        ...

    @property
    def absolute_sigma(self) -> bool:
        """Whether the sigma are known."""
        ...


def model_and_data(result: Plottable, method: str) -> tuple[FittedModel, Observations]:
    """The model of a result, and the data of the fit.

    Raises
    ------
    InputError
        If the result has no model or no data, as after reading it from a file.
    """
    model = result.fitted
    if model is None:
        raise _errors.result_without_model(method)
    if model.data is None:
        raise _errors.result_without_data(method)
    return model, model.data
