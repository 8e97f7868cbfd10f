"""The trust-region subproblem: minimise ``½‖A s + r‖²`` subject to ``‖s‖ ≤ Δ``.

With the singular value decomposition ``A = U Σ Vᵀ`` the minimiser is
``s(α) = -V (Σ² + α)⁻¹ Σ Uᵀ r``, where either α = 0, or α > 0 solves ``‖s(α)‖ = Δ`` (Moré, "The
Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes in Mathematics 630, 1978).
Only Σ, V and ``Uᵀ r`` enter. They are equal for ``A`` and for the p × p factor of ``A``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlsq_dask.core.decompositions import svd
from nlsq_dask.core.factor import has_zero
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.vectors import length

#: The subproblem is solved once ``|‖s‖ - Δ|`` is within this fraction of Δ, or after as many
#: iterations of Newton's method: the values of ``scipy.optimize.least_squares``.
RADIUS_RTOL = 0.01
MAX_ITERATIONS = 10

#: Least α to restart from, as a fraction of its upper bound (Moré 1978, algorithm 5.5).
LEAST_ALPHA_FRACTION = 0.001

#: Ratios of actual to predicted reduction below and above which the radius shrinks to, or grows by,
#: the factors given (Branch, Coleman & Li 1999, figure 6, with SciPy's constants).
POOR_RATIO, SHRINK = 0.25, 0.25
GOOD_RATIO, GROW = 0.75, 2.0
#: A step longer than this fraction of the radius counts as cut by the radius.
AT_RADIUS = 0.95


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A linear least-squares problem in the coordinates of its singular vectors.

    Attributes
    ----------
    singular : ndarray, shape (p,), float64
        Singular values, largest first.
    v : ndarray, shape (p, p), float64
        Right singular vectors in columns.
    utr : ndarray, shape (p,), float64
        ``Uᵀ r``.
    """

    singular: FloatArray
    v: FloatArray
    utr: FloatArray

    @classmethod
    def of(cls, matrix: FloatArray, rhs: FloatArray, rank_rtol: float) -> Spectrum:
        """Decompose a matrix, without the directions that it does not determine.

        Parameters
        ----------
        matrix : ndarray, shape (k, p), float64
        rhs : ndarray, shape (k,), float64
        rank_rtol : float
            Singular values up to this fraction of the largest count as zero. Without their
            directions the step for α = 0 is the shortest minimiser.
        """
        u, singular, v_transposed = svd(matrix)
        utr = u.T @ rhs
        if has_zero(singular, rank_rtol):
            kept = singular > rank_rtol * singular[0]
            singular, v_transposed, utr = singular[kept], v_transposed[kept], utr[kept]
        return cls(singular, v_transposed.T, utr)

    def step(self, alpha: float) -> FloatArray:
        """Return ``s(α)``, shape (p,)."""
        return -self.v @ (self.singular * self.utr / (self.singular**2 + alpha))

    def excess_length(self, alpha: float, radius: float) -> tuple[float, float]:
        """Return ``φ(α) = ‖s(α)‖ - Δ`` and ``φ'(α)``."""
        shifted = self.singular**2 + alpha
        step = self.singular * self.utr / shifted
        size = length(step)
        return size - radius, -size * float(np.sum((step / size) ** 2 / shifted))


def solve(
    spectrum: Spectrum, radius: float, alpha: float, slack: float = 0.0
) -> tuple[FloatArray, float]:
    """Solve the subproblem.

    Parameters
    ----------
    spectrum : Spectrum
    radius : float
        Δ > 0.
    alpha : float
        First guess of α, such as the solution of the last, similar subproblem.
    slack : float
        Largest difference between the length of the step and Δ, as a fraction of Δ. Zero asks for Δ
        itself.

    Returns
    -------
    step : ndarray, shape (p,), float64
        ``s(α)`` of a length up to ``(1 + slack) * radius``; without slack, ``s(α)`` scaled to the
        boundary.
    alpha : float
        The Levenberg-Marquardt parameter; 0 if the step lies within the radius.
    """
    full = spectrum.step(0.0)
    if length(full) <= (1.0 + slack) * radius:
        return full, 0.0
    # Now ‖s(0)‖ > Δ > 0, so that the root lies between the bounds of Moré's section 5.
    phi, slope = spectrum.excess_length(0.0, radius)
    least = -phi / slope
    most = length(spectrum.singular * spectrum.utr) / radius
    for _ in range(MAX_ITERATIONS):
        if not least <= alpha <= most:
            alpha = max(LEAST_ALPHA_FRACTION * most, (least * most) ** 0.5)
        phi, slope = spectrum.excess_length(alpha, radius)
        if phi < 0.0:
            most = alpha
        if slack and abs(phi) <= slack * radius:
            return spectrum.step(alpha), alpha
        least = max(least, alpha - phi / slope)
        # Newton's method on 1/‖s(α)‖ - 1/Δ, which is nearly linear in α.
        alpha -= (phi + radius) / radius * (phi / slope)
        if abs(phi) < RADIUS_RTOL * radius:
            break
    step = spectrum.step(alpha)
    if slack:
        return step, alpha
    # Exactly on the boundary, so that a smaller radius always gives another step.
    return step * (radius / np.linalg.norm(step)), alpha


def reduction_ratio(actual: float, predicted: float) -> float:
    """Ratio of the actual to the predicted reduction of the cost.

    1 if both are zero (the model and the cost agree), 0 if none was predicted.
    """
    if predicted > 0.0:
        return actual / predicted
    return 1.0 if predicted == actual == 0.0 else 0.0


def update_radius(radius: float, ratio: float, step_length: float) -> float:
    """Choose the next trust-region radius.

    Parameters
    ----------
    radius : float
        Δ of the step that was tried.
    ratio : float
        From :func:`reduction_ratio`.
    step_length : float
        Length of the step in the trust region's norm.
    """
    if ratio < POOR_RATIO:
        return SHRINK * step_length
    if ratio > GOOD_RATIO and step_length > AT_RADIUS * radius:
        return GROW * radius
    return radius
