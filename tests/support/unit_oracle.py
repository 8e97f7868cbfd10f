"""Where a fit of the sweep should end, by SciPy in natural units and without offsets.

The optimum is that of ``scipy.optimize.least_squares(method="lm", x_scale="jac")`` with tolerances
of rounding and the exact Jacobian. With bounds, "trf" says first which of them are active; the
other parameters are then found by "lm", as "trf" stops short of a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from tests.support.unit_shapes import SHAPES, FloatArray, functions

#: Standard errors, and s² of cost, that a success may be away from the optimum.
STANDARD_ERRORS, COST = 0.05, 1e-3
TIGHT: dict[str, Any] = {"x_scale": "jac", "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
MAX_NFEV = 20_000
#: A parameter is at a bound within this fraction of its size.
AT_BOUND = 1e-5


@dataclass(frozen=True)
class Away:
    """How far an answer is from the optimum that SciPy finds from it.

    Attributes
    ----------
    sigmas : float
        Distance ``‖J d‖ / s`` in standard errors.
    excess : float
        Cost above that of the optimum, in units of s².
    above_best : float
        The same, above that of the best optimum known.
    """

    sigmas: float
    excess: float
    above_best: float

    @property
    def arrived(self) -> bool:
        """Whether this is an optimum, the best or another one."""
        return self.sigmas <= STANDARD_ERRORS and self.excess <= COST

    @property
    def at_best(self) -> bool:
        """Whether the optimum is the best one."""
        return self.above_best <= COST


@dataclass(frozen=True)
class Natural:
    """Data, start and bounds in natural units.

    Attributes
    ----------
    name : str
        Of the model.
    x, y : ndarray, shape (n,), float64
    p0, lower, upper : ndarray, shape (p,), float64
    """

    name: str
    x: FloatArray
    y: FloatArray
    p0: FloatArray
    lower: FloatArray
    upper: FloatArray

    def residuals(self, params: FloatArray) -> FloatArray:
        """Residuals, shape (n,)."""
        return functions(self.name)[0](self.x, params) - self.y

    def jacobian(self, params: FloatArray) -> FloatArray:
        """Their derivatives, shape (n, p)."""
        return functions(self.name)[1](self.x, params)

    def cost(self, params: FloatArray) -> float:
        """Half the sum of squares."""
        r = self.residuals(params)
        return 0.5 * float(r @ r)

    @cached_property
    def best(self) -> FloatArray:
        """The optimum next to the true parameters."""
        return self.optimum_from(np.array(SHAPES[self.name].truth))

    @property
    def variance(self) -> float:
        """s² at the best optimum."""
        return 2.0 * self.cost(self.best) / (self.y.size - self.best.size)

    def optimum_from(self, start: FloatArray) -> FloatArray:
        """The optimum that SciPy finds from a point; the point itself if there is no lower one."""
        candidates = [start] if self.allows(start) else []
        if np.isfinite([*self.lower, *self.upper]).any():
            inside = np.clip(start, self.lower, self.upper)
            box = (self.lower, self.upper)
            found = least_squares(
                self.residuals, inside, self.jacobian, box, "trf", max_nfev=MAX_NFEV, **TIGHT
            )
            candidates += [inside, found.x, *self._on_bounds(found.x)]
        else:
            candidates += self._free(start, np.ones(start.size, bool))
        return min(candidates, key=self.cost)

    def allows(self, params: FloatArray) -> bool:
        """Whether parameters are within the bounds."""
        return bool(np.all((self.lower <= params) & (params <= self.upper)))

    def _on_bounds(self, params: FloatArray) -> list[FloatArray]:
        """The optimum with parameters that are nearly at a bound exactly there."""
        held = params.copy()
        free = np.ones(params.size, bool)
        for bound in (self.lower, self.upper):
            finite = np.isfinite(bound)
            size = np.maximum(np.abs(params), np.abs(np.where(finite, bound, 0.0)))
            at = finite & (np.abs(params - bound) <= AT_BOUND * size)
            held[at], free[at] = bound[at], False
        return [held, *self._free(held, free)] if free.any() else [held]

    def _free(self, start: FloatArray, free: Any) -> list[FloatArray]:
        """The optimum by "lm" in some of the parameters, if it is within the bounds."""

        def whole(some: FloatArray) -> FloatArray:
            params = start.copy()
            params[free] = some
            return params

        if not np.isfinite(self.cost(start)):
            return []
        found = least_squares(
            lambda some: self.residuals(whole(some)),
            start[free],
            lambda some: self.jacobian(whole(some))[:, free],
            method="lm",
            max_nfev=MAX_NFEV,
            **TIGHT,
        )
        params = whole(found.x)
        return [params] if np.isfinite(found.cost) and self.allows(params) else []

    def away(self, params: FloatArray) -> Away:
        """How far parameters are from the optimum."""
        there = self.optimum_from(params)
        distance = float(np.linalg.norm(self.jacobian(there) @ (params - there)))
        cost = self.cost(params)
        return Away(
            distance / self.variance**0.5,
            (cost - self.cost(there)) / self.variance,
            (cost - self.cost(self.best)) / self.variance,
        )

    def scipy_gets_there(self, method: str) -> bool:
        """Whether SciPy's method finds the best optimum from the same start, by default."""
        bounds = {} if method == "lm" else {"bounds": (self.lower, self.upper)}
        try:
            found = least_squares(
                self.residuals, self.p0, self.jacobian, method=method, x_scale="jac", **bounds
            )
        except (ValueError, np.linalg.LinAlgError):
            return False  # a trial was not finite
        excess = (float(found.cost) - self.cost(self.best)) / self.variance
        return bool(found.success) and excess <= COST
