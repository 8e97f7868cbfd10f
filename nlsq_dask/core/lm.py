"""The Levenberg-Marquardt method of Moré, on normal equations.

Minimises ``½ Σ r_i(θ)²`` without bounds after Moré ("The Levenberg-Marquardt algorithm:
implementation and theory", Lecture Notes in Mathematics 630, 1978): steps of the least-squares
model within the trust region ``‖D s‖ ≤ Δ``, where D holds the largest norms that the columns of J
have had. Constants, criteria and their order are those of MINPACK's ``lmder`` (Moré, Garbow &
Hillstrom, "User guide for MINPACK-1", ANL-80-74, 1980), and the criteria are numbered as
``scipy.optimize.least_squares(method="lm")`` numbers them.

Reductions are relative to the cost, and the gradient criterion is the cosine of the angle between
the residuals and the columns of J, so that the method does not depend on the units of the data.
``R`` and ``Qᵀ r`` stand for J, as in :mod:`nlsq_dask.core.trf`.
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.factor import rank_tolerance
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import LEAST_RADIUS, Trial, first_radius
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.core.trust_region import Spectrum, reduction_ratio, solve

#: First radius, in units of ``‖D θ‖`` (ANL-80-74: "factor", recommended value 100).
FIRST_RADIUS = 100.0
#: Largest difference between the length of a step and Δ, as a fraction of Δ (Moré 1978, section 5).
RADIUS_SLACK = 0.1
#: Least ratio of the actual to the predicted reduction at which a step is taken (Moré 1978, 7.1).
LEAST_RATIO = 1e-4
#: Ratios below and above which the radius shrinks or grows, and the limits of its shrinking
#: (Moré 1978, section 4).
POOR_RATIO, GOOD_RATIO = 0.25, 0.75
MOST_SHRINK, LEAST_SHRINK = 0.1, 0.5
#: A trial with more than this many times the cost gives no information on the best step length.
HOPELESS_COST = 100.0


class LevenbergMarquardt:
    """The method "lm"; see :class:`nlsq_dask.core.search.Method`."""

    interior = False

    def optimality(self, state: SolverState, box: Box) -> float:  # noqa: ARG002 (of the protocol)
        """Infinity norm of the gradient."""
        return float(np.max(np.abs(state.linearization.gradient)))

    def first_radius(self, state: SolverState, box: Box) -> float:  # noqa: ARG002
        """A hundred times the length of the start, in the scaled variables."""
        length = float(np.linalg.norm(state.scale_inv * state.params))
        return FIRST_RADIUS * first_radius(state, length)

    def propose(self, state: SolverState, box: Box) -> Trial:  # noqa: ARG002
        """Solve the subproblem."""
        linear = state.linearization
        spectrum = Spectrum.of(
            linear.r_factor / state.scale_inv,
            linear.qtr,
            rank_tolerance(state.n_points, linear.qtr.size),
        )
        scaled_step, alpha = solve(spectrum, state.radius, state.alpha, RADIUS_SLACK)
        step = scaled_step / state.scale_inv
        image = linear.r_factor @ step
        length = float(np.linalg.norm(scaled_step))
        # As (RᵀR + α D²) s = -g, gᵀ s is minus a sum of squares.
        descent = float(image @ image) + alpha * length**2
        return Trial(
            params=state.params + step,
            step_norm=float(np.linalg.norm(step)),
            scaled_step_norm=length,
            predicted=0.5 * float(image @ image) + alpha * length**2,
            slope=-descent,
            alpha=alpha,
        )

    def resized(self, state: SolverState, trial: Trial, actual: float) -> tuple[float, float]:
        """Shrink the radius to the minimum of a parabola along the step, or grow the radius."""
        length = trial.scaled_step_norm
        # The first radius is a guess. A Gauss-Newton step within it is a better guess.
        radius = min(state.radius, length) if state.njev == 1 else state.radius
        alpha = state.alpha
        ratio = reduction_ratio(actual, trial.predicted)
        if ratio <= POOR_RATIO:
            shrink = LEAST_SHRINK
            if actual < 0.0:
                shrink *= trial.slope / (trial.slope + max(actual, -HOPELESS_COST * state.cost))
            if state.cost - actual >= HOPELESS_COST * state.cost:
                shrink = MOST_SHRINK
            shrink = max(shrink, MOST_SHRINK)
            radius = shrink * min(radius, length / MOST_SHRINK)
            alpha /= shrink
        elif alpha == 0.0 or ratio >= GOOD_RATIO:
            radius, alpha = 2.0 * length, 0.5 * alpha
        return max(radius, LEAST_RADIUS), alpha

    def accepts(self, trial: Trial, actual: float) -> bool:
        """Accept a point that lowers the cost by a part of the predicted reduction."""
        return actual > 0.0 and reduction_ratio(actual, trial.predicted) >= LEAST_RATIO
