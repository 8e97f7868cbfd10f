"""The trust-region-reflective method, on normal equations.

Minimises ``½ Σ r_i(θ)²`` (or a robust cost in its place) subject to
``lower ≤ θ ≤ upper`` after Branch, Coleman & Li (SIAM J. Sci. Comput. 21, 1999) and Coleman & Li
(SIAM J. Optim. 6, 1996), with the subproblem solved exactly after Moré (Lecture Notes in
Mathematics 630, 1978). Options, termination criteria and their numbers have the meaning of
``scipy.optimize.least_squares(method="trf")``.

The method needs the Jacobian ``J = Q R`` through ``R`` and ``Qᵀ r`` alone
(:mod:`nlsq_dask.core.factor`): the singular value decomposition of ``R D`` has the singular values
and right vectors of ``J D``.
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.bounds import next_inside
from nlsq_dask.core.distance import step_to_optimum
from nlsq_dask.core.factor import rank_tolerance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import LEAST_STEP_BACK, Box, QuadraticModel, choose_step
from nlsq_dask.core.search import (
    SimpleDecrease,
    Trial,
    first_radius,
    relative_gradient,
    residual_length,
)
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.core.trust_region import Spectrum, solve
from nlsq_dask.core.vectors import all_finite, largest_size, length


class TrustRegionReflective(SimpleDecrease):
    """The method "trf"; see :class:`nlsq_dask.core.search.Method`."""

    interior = True

    def optimality(self, state: SolverState, box: Box) -> float:
        """Infinity norm of the gradient times Coleman and Li's scaling vector."""
        gradient = state.linearization.gradient
        v, _ = box.distance_along_descent(state.params, gradient)
        return largest_size(gradient * v)

    def first_radius(self, state: SolverState, box: Box) -> float:
        """The length of the start, in the scaled variables."""
        root_v, _ = _coleman_li(state, box)
        return first_radius(state, length(state.params * state.scale_inv / root_v))

    def propose(self, state: SolverState, box: Box) -> Trial:
        """Solve the subproblem, and keep its step within the bounds."""
        linear = state.linearization
        root_v, curvature = _coleman_li(state, box)
        scale = root_v / state.scale_inv
        quadratic = linear.quadratic
        model = QuadraticModel(
            factor=quadratic.r_factor * scale,
            gradient=scale * linear.gradient,
            curvature=curvature,
            scale=scale,
        )
        size = scale.size
        augmented, rhs = np.zeros((2 * size, size)), np.zeros(2 * size)
        augmented[:size], rhs[:size] = model.factor, quadratic.qtr
        if not box.is_open:
            augmented[size:].flat[:: size + 1] = np.sqrt(curvature)
        spectrum = Spectrum.of(augmented, rhs, rank_tolerance(state.n_points, size))
        newton, alpha = solve(spectrum, state.radius, state.alpha)
        if box.is_open:  # no bound is in the way
            scaled_step, predicted = newton, -model.value(newton)
        else:
            scaled_step, predicted = choose_step(
                model,
                state.params,
                newton,
                state.radius,
                box,
                max(LEAST_STEP_BACK, 1.0 - relative_gradient(state, box)),
                lambda: step_to_optimum(linear, state.params, box, state.n_points) / scale,
            )
        step = scale * scaled_step
        params = state.params + step
        if not (box.is_open and all_finite(params)):
            params = next_inside(params, box.lower, box.upper)
        return Trial(
            params=params,
            step_norm=length(step),
            scaled_step_norm=length(scaled_step),
            predicted=predicted,
            slope=float(linear.gradient @ step),
            alpha=alpha,
        )


def _coleman_li(state: SolverState, box: Box) -> tuple[FloatArray, FloatArray]:
    """Square root of the scaling vector in units of x_scale, and the diagonal of C.

    The distance to a bound is measured in residuals, ``v_j D_j / ‖r‖``. A distance of more than 1
    counts as no bound. So the trust region does not depend on the units of the parameters or of the
    data. C is ``|g_j| / v_j`` in the parameters' units, for any scale.
    """
    gradient = state.linearization.gradient
    v, derivative = box.distance_along_descent(state.params, gradient)
    if box.is_open:
        return v, derivative
    residuals = residual_length(state) or 1.0
    bounded = derivative != 0.0
    relative = np.where(bounded, np.minimum(v * (state.scale_inv / residuals), 1.0), 1.0)
    curvature = np.where(bounded, np.abs(gradient) * relative / v / state.scale_inv**2, 0.0)
    return np.sqrt(relative), curvature
