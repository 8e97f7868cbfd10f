"""The dogleg method in a rectangular trust region, on normal equations.

Minimises ``½ Σ r_i(θ)²`` subject to ``lower ≤ θ ≤ upper`` after Voglis & Lagaris ("A rectangular
trust region dogleg approach for unconstrained and bound constrained nonlinear optimization", WSEAS
International Conference on Applied Mathematics, 2004) and Nocedal & Wright ("Numerical
Optimization", 2006, chapter 4). The trust region is a box, ``|s_i| ≤ Δ / D_i``, so that its
intersection with the bounds is a box as well. A parameter on a bound stays there while the gradient
points outwards. For the other parameters the path leads from the current point along steepest
descent to the minimum of the model (the Cauchy point), and on to the Gauss-Newton point. The step
ends where the path leaves the box. Options and termination criteria have the meaning of
``scipy.optimize.least_squares(method="dogbox")``.

Iterates may lie on bounds. The method is fast if the optimum is on several bounds and the search
finds these bounds soon. It cannot follow a valley that a bound cuts off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.factor import rank_tolerance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box, QuadraticModel
from nlsq_dask.core.search import SimpleDecrease, Trial, first_radius
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.core.trust_region import Spectrum


class Dogbox(SimpleDecrease):
    """The method "dogbox"; see :class:`nlsq_dask.core.search.Method`."""

    interior = False

    def optimality(self, state: SolverState, box: Box) -> float:
        """Infinity norm of the gradient of the free parameters."""
        return float(np.max(np.abs(state.linearization.gradient[_free(state, box)]), initial=0.0))

    def first_radius(self, state: SolverState, box: Box) -> float:  # noqa: ARG002 (of the protocol)
        """The length of the start, in the scaled variables and in the norm of the box."""
        return first_radius(state, float(np.max(np.abs(state.params * state.scale_inv))))

    def propose(self, state: SolverState, box: Box) -> Trial:
        """Follow the dogleg to where it leaves the box."""
        free = _free(state, box)
        scale = 1.0 / state.scale_inv[free]
        linear = state.linearization.quadratic
        model = QuadraticModel(
            factor=linear.r_factor[:, free] * scale,
            gradient=linear.gradient[free] * scale,
            curvature=np.zeros(scale.size),
            scale=scale,
        )
        params = state.params[free]
        to_lower, to_upper = (box.lower[free] - params) / scale, (box.upper[free] - params) / scale
        room = Box(np.maximum(to_lower, -state.radius), np.minimum(to_upper, state.radius))
        rank_rtol = rank_tolerance(state.n_points, state.params.size)
        newton = Spectrum.of(model.factor, linear.qtr, rank_rtol).step(0.0)
        scaled_step = _dogleg(model, newton, room)
        tried = state.params.copy()
        tried[free] = np.where(
            scaled_step <= to_lower,
            box.lower[free],
            np.where(scaled_step >= to_upper, box.upper[free], params + scale * scaled_step),
        )
        tried = np.clip(tried, box.lower, box.upper)
        step = tried - state.params
        return Trial(
            params=tried,
            step_norm=float(np.linalg.norm(step)),
            scaled_step_norm=float(np.max(np.abs(scaled_step))),
            predicted=-model.value(scaled_step),
            slope=float(model.gradient @ scaled_step),
            alpha=0.0,
        )


def _free(state: SolverState, box: Box) -> NDArray[np.bool_]:
    """Parameters that are not on a bound with the negative gradient pointing outwards."""
    gradient = state.linearization.gradient
    held_below = (state.params <= box.lower) & (gradient > 0.0)
    held_above = (state.params >= box.upper) & (gradient < 0.0)
    free: NDArray[np.bool_] = ~(held_below | held_above)
    return free


def _dogleg(model: QuadraticModel, newton: FloatArray, room: Box) -> FloatArray:
    """Step from zero via the Cauchy point to the Gauss-Newton point, within a box around zero.

    Returns
    -------
    ndarray, shape (k,), float64
        Scaled step, exactly on the limits of the box where it ends at them.
    """
    if room.contains(newton):
        return newton
    origin, descent = np.zeros(newton.size), -model.gradient
    reach, hit = room.stride_to(origin, descent)
    cauchy, value = model.best_along(origin, descent, 0.0, reach)
    if np.array_equal(cauchy, reach * descent):
        cauchy = _at_limits(cauchy, descent, hit, room)
    # On the second part of the path the model falls all the way to the Gauss-Newton point.
    onwards = newton - cauchy
    stride, hit = room.stride_to(cauchy, onwards)
    step = _at_limits(cauchy + stride * onwards, onwards, hit, room)
    # If J is nearly singular, the Gauss-Newton point may consist of rounding errors.
    return step if model.value(step) < value else cauchy


def _at_limits(
    step: FloatArray, direction: FloatArray, hit: NDArray[np.bool_], room: Box
) -> FloatArray:
    """Put parameters that have hit their limits exactly on the limits."""
    return np.where(hit, np.where(direction > 0.0, room.upper, room.lower), step)
