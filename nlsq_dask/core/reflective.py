"""Bounds in the trust-region-reflective method: scaling, reflection and the choice of a step.

After Coleman & Li (SIAM J. Optim. 6, 1996) and Branch, Coleman & Li ("A subspace, interior, and
conjugate gradient method for large-scale bound-constrained minimization problems", SIAM J. Sci.
Comput. 21, 1999). First-order optimality for ``lower ≤ θ ≤ upper`` is ``v_i g_i = 0`` for all i,
where ``v_i`` is the distance to the bound that the negative gradient points at, and 1 if it points
at none. Newton's method on that system is a trust-region step in the variables ``θ̂ = θ / d``,
``d = √v``, for the quadratic model

    m(ŝ) = ĝᵀ ŝ + ½ ‖J D ŝ‖² + ½ ŝᵀ C ŝ,    ĝ = D g,   C = diag(g_i v'_i) ≥ 0

whose second-order term in C comes from the bounds. Without bounds, v = 1 and C = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.vectors import length

#: Fraction of the way to a bound that a step may go far from the optimum (Branch, Coleman & Li
#: 1999, section 4: θ → 1 near the optimum, for fast convergence).
LEAST_STEP_BACK = 0.995

#: If a step lowers the quadratic model by less than this part of the possible reduction within the
#: bounds, the step to the model's minimum replaces it. This does not happen in ordinary problems.
LEAST_SHARE = 0.1


@dataclass(frozen=True)  # without slots, for the cached properties
class Box:
    """The feasible region, ``lower < upper``, each of shape (p,)."""

    lower: FloatArray
    upper: FloatArray

    @cached_property
    def is_open(self) -> bool:
        """Whether no parameter has a bound, so that nothing need be computed for the bounds."""
        return not (np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @cached_property
    def _without_bounds(self) -> tuple[FloatArray, FloatArray]:
        """Coleman and Li's scaling vector, and its derivative, where no bound is."""
        return np.ones(self.lower.size), np.zeros(self.lower.size)

    def contains(self, params: FloatArray) -> bool:
        """Whether the parameters lie within or on the bounds."""
        return bool(((params >= self.lower) & (params <= self.upper)).all())

    def stride_to(
        self, params: FloatArray, direction: FloatArray
    ) -> tuple[float, NDArray[np.bool_]]:
        """Largest stride along a direction within the box.

        Returns
        -------
        stride : float
            The largest t with ``params + t * direction`` in the box; infinite without a bound on
            the way.
        hit : ndarray, shape (p,), bool
            The parameters that reach their bounds there.
        """
        moving = direction != 0.0
        distance = np.where(direction > 0.0, self.upper - params, self.lower - params)
        strides = np.divide(distance, direction, where=moving, out=np.full(params.size, np.inf))
        stride = float(np.min(strides))
        return stride, (strides == stride) & np.isfinite(strides)

    def distance_along_descent(
        self, params: FloatArray, gradient: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Coleman and Li's scaling vector, and its derivative.

        Returns
        -------
        v : ndarray, shape (p,), float64
            Distance to the bound that ``-gradient`` points at; 1 without such a bound.
        derivative : ndarray, shape (p,), float64
            ``dv_i / dθ_i``: -1 for an upper bound, 1 for a lower bound, 0 for no bound.
        """
        if self.is_open:
            return self._without_bounds
        to_upper = (gradient < 0.0) & np.isfinite(self.upper)
        to_lower = (gradient > 0.0) & np.isfinite(self.lower)
        v, derivative = np.ones(params.size), np.zeros(params.size)
        v[to_upper] = (self.upper - params)[to_upper]
        v[to_lower] = (params - self.lower)[to_lower]
        derivative[to_upper], derivative[to_lower] = -1.0, 1.0
        return v, derivative


@dataclass(frozen=True, slots=True)
class QuadraticModel:
    """The change of the cost, to second order, in the scaled variables ``ŝ = s / scale``.

    Attributes
    ----------
    factor : ndarray, shape (k, p), float64
        ``R D``.
    gradient : ndarray, shape (p,), float64
        ``ĝ = D g``.
    curvature : ndarray, shape (p,), float64
        The diagonal of C.
    scale : ndarray, shape (p,), float64
        The diagonal of D.
    """

    factor: FloatArray
    gradient: FloatArray
    curvature: FloatArray
    scale: FloatArray

    def value(self, step: FloatArray) -> float:
        """``m(ŝ)`` for a scaled step of shape (p,)."""
        image = self.factor @ step
        return float(0.5 * (image @ image + step @ (self.curvature * step)) + self.gradient @ step)

    def change_of_cost(self, step: FloatArray) -> float:
        """The model without C, which is no part of the cost."""
        image = self.factor @ step
        return float(0.5 * (image @ image) + self.gradient @ step)

    def best_along(
        self, origin: FloatArray, direction: FloatArray, least: float, most: float
    ) -> tuple[FloatArray, float]:
        """Minimise ``m(origin + t * direction)`` over ``least ≤ t ≤ most``.

        Returns
        -------
        step : ndarray, shape (p,), float64
        value : float
        """
        image = self.factor @ direction
        quadratic = 0.5 * (image @ image + direction @ (self.curvature * direction))
        linear = (
            self.gradient @ direction
            + (self.factor @ origin) @ image
            + origin @ (self.curvature * direction)
        )
        strides = [least, most]
        if quadratic > 0.0 and least < -0.5 * linear / quadratic < most:
            strides.append(float(-0.5 * linear / quadratic))
        changes = [stride * (quadratic * stride + linear) for stride in strides]
        best = int(np.argmin(changes))
        return origin + strides[best] * direction, self.value(origin) + float(changes[best])


def choose_step(
    model: QuadraticModel,
    params: FloatArray,
    newton: FloatArray,
    radius: float,
    box: Box,
    step_back: float,
    bounded: Callable[[], FloatArray],
) -> tuple[FloatArray, float]:
    """Choose the step within the bounds with the largest predicted reduction.

    Parameters
    ----------
    model : QuadraticModel
    params : ndarray, shape (p,), float64
        The current, strictly feasible point.
    newton : ndarray, shape (p,), float64
        The scaled solution of the trust-region subproblem, within the radius.
    radius : float
        Δ, in the scaled variables.
    box : Box
    step_back : float
        Fraction of the way to a bound that a step may go, so that the point stays in the interior.
    bounded : callable
        Computes the scaled step to the minimum of the cost's quadratic model within the bounds.

    Returns
    -------
    step : ndarray, shape (p,), float64
        The scaled step: `newton` if it is feasible, and else the best of three steps: `newton` cut
        short at the bound, reflected there, or along the negative gradient. If this step promises
        far less than the step towards the minimum within the bounds, the latter step. Then columns
        are nearly collinear, and a parameter has to follow another parameter to its bound.
    predicted : float
        The predicted reduction of the cost.
    """
    step, predicted = _interior_step(model, params, newton, radius, box, step_back)
    if box.is_open or not model.curvature.any():
        return step, predicted
    inside = step_back * bounded()
    promise = -model.change_of_cost(inside)
    reachable = length(inside) <= radius
    if reachable and -model.change_of_cost(step) < LEAST_SHARE * promise:
        return inside, promise
    return step, predicted


def _interior_step(
    model: QuadraticModel,
    params: FloatArray,
    newton: FloatArray,
    radius: float,
    box: Box,
    step_back: float,
) -> tuple[FloatArray, float]:
    """The step of Branch, Coleman & Li: `newton`, or the best of three where that is infeasible."""
    if box.contains(params + model.scale * newton):
        return newton, -model.value(newton)
    stride, hit = box.stride_to(params, model.scale * newton)
    at_bound = stride * newton
    cut = step_back * at_bound
    candidates = [(cut, model.value(cut))]
    reflected = _reflected_step(
        model, params, at_bound, np.where(hit, -newton, newton), radius, box, stride, step_back
    )
    if reflected is not None:
        candidates.append(reflected)
    candidates.append(_gradient_step(model, params, radius, box, step_back))
    # Of equal steps the last: the gradient step, which does not depend on the guess of a bound.
    step, value = min(reversed(candidates), key=lambda candidate: candidate[1])
    return step, -value


def _reflected_step(
    model: QuadraticModel,
    params: FloatArray,
    at_bound: FloatArray,
    direction: FloatArray,
    radius: float,
    box: Box,
    stride: float,
    step_back: float,
) -> tuple[FloatArray, float] | None:
    """Best point on the path that leaves the bound along the reflected direction, if any."""
    to_radius = _stride_to_sphere(at_bound, direction, radius)
    to_bound, _ = box.stride_to(params + model.scale * at_bound, model.scale * direction)
    reach = min(to_radius, to_bound)
    if not reach > 0.0:
        return None
    # The same relative distance from the first bound as from the second bound.
    least = (1.0 - step_back) * stride / reach
    most = step_back * to_bound if reach == to_bound else to_radius
    if least > most:
        return None
    return model.best_along(at_bound, direction, least, most)


def _gradient_step(
    model: QuadraticModel, params: FloatArray, radius: float, box: Box, step_back: float
) -> tuple[FloatArray, float]:
    """Best point along the scaled negative gradient, within the radius and the bounds."""
    descent = -model.gradient
    steepness = length(descent)
    to_radius = radius / steepness if steepness > 0.0 else 0.0
    to_bound, _ = box.stride_to(params, model.scale * descent)
    most = step_back * to_bound if to_bound < to_radius else to_radius
    return model.best_along(np.zeros_like(descent), descent, 0.0, most)


def _stride_to_sphere(origin: FloatArray, direction: FloatArray, radius: float) -> float:
    """Return the t ≥ 0 with ``‖origin + t * direction‖ = radius``; the origin is in the ball."""
    a = float(direction @ direction)
    b = float(origin @ direction)
    # An origin on the sphere can be outside of it by rounding.
    c = min(float(origin @ origin) - radius * radius, 0.0)
    root = (b * b - a * c) ** 0.5
    # The form without cancellation for either sign of b.
    return float(-c / (b + root) if b > 0.0 else (root - b) / a)
