"""An engine of data in memory without blocks or tiles: J whole, as plainly as can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import Moments, NormalEquations
from nlsq_dask.core.questions import SumsAt

FloatArray = NDArray[np.float64]


class DenseEngine:
    """Normal equations out of a residual function and its Jacobian; remembers the points."""

    def __init__(
        self,
        residuals: Callable[[FloatArray], FloatArray],
        jacobian: Callable[[FloatArray], FloatArray],
        y: FloatArray | None = None,
    ) -> None:
        mean = 0.0 if y is None else float(np.mean(y))
        scatter = 0.0 if y is None else float(np.sum((y - mean) ** 2))
        self.moments = Moments(0.0, 0.0, 0.0 if y is None else float(y.size), mean, scatter)
        self.residuals = residuals
        self.jacobian = jacobian
        self.points: list[FloatArray] = []

    @property
    def n_passes(self) -> int:
        return len(self.points)

    def ask(self, question: SumsAt) -> NormalEquations:
        return self.sums(question.params, question.basis)

    def sums(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
        self.points.append(params.copy())
        # What a model does out of its domain is data here, not a warning.
        with np.errstate(all="ignore"):
            r = self.residuals(params)
            js = self.jacobian(params) @ basis
            chi2 = float(r @ r)
            return NormalEquations(
                js.T @ js, js.T @ r, 0.5 * chi2, chi2, r.size, moments=self.moments
            )


def model_functions(
    model: Callable[..., Any], x: FloatArray, y: FloatArray
) -> tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]]:
    """Residuals and exact Jacobian of ``model(x, *params) - y``, in float64."""
    value, derivative = _compiled(model)

    def residuals(params: FloatArray) -> FloatArray:
        with jax.enable_x64(True):
            return np.asarray(value(params, x, y))

    def jacobian(params: FloatArray) -> FloatArray:
        with jax.enable_x64(True):
            return np.asarray(derivative(params, x, y))

    return residuals, jacobian


@lru_cache(maxsize=256)
def _compiled(model: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Residuals and Jacobian by (params, x, y), compiled once for all data of one shape."""

    def residual(params, x, y):
        return model(x, *params) - y

    return jax.jit(residual), jax.jit(jax.jacfwd(residual))
