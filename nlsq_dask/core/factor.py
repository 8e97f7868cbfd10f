"""Triangular factors of the Jacobian, out of sums over rows.

The solver works with ``J = Q R`` through ``R`` (p, p) and ``Qᵀ r`` (p,) alone. A pass over the data
yields ``G = (J S)ᵀ (J S)`` and ``b = (J S)ᵀ r`` for a basis ``S``, from which they follow:

1. Equilibrate, ``C = E⁻¹ G E⁻¹`` with ``E`` the square roots of G's diagonal: within a factor p of
   the best diagonal scaling (van der Sluis, Numer. Math. 14, 1969).
2. ``C = V Λ Vᵀ``, so that ``F = Λ^½ Vᵀ E S⁻¹`` satisfies ``Fᵀ F = Jᵀ J``.
3. ``F = Q₂ R``, and ``Qᵀ r = Q₂ᵀ Λ^-½ Vᵀ E⁻¹ b``.

G loses all digits below the square root of the machine precision, unless ``J S`` is well
conditioned. The columns of ``J S`` are nearly orthonormal if ``S`` inverts the factor ``R`` of a
neighbouring point. This is the idea of Cholesky QR applied twice (Yamamoto, Nakatsukasa, Yanagisawa
& Fukaya, "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44, 2015). The second pass
over the data is the pass of the next trial. The smallest eigenvalue of ``C`` tells how many digits
are known.

A robust loss that is concave in large residuals has second derivatives ``H = G + N`` with N
negative semi-definite, so that G alone overestimates the curvature. ``H = Hᵀ`` need not be
definite. Steps use the absolute value of H in the metric of ``M = G - N``, in which every row
counts by the size of its curvature: from the factor ``F`` of M and ``F⁻ᵀ H F⁻¹ = U μ Uᵀ``, the
model of the cost has the factor ``|μ|^½ Uᵀ F``. Near an optimum all μ are positive, and this is
Newton's method. Elsewhere the steps leave saddles downhill (Dauphin et al., "Identifying and
attacking the saddle point problem in high-dimensional non-convex optimization", NeurIPS 27, 2014,
there with ``M = 1``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.decompositions import eigh, qr, svd
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.vectors import column_norms, nonzero

EPS = float(np.finfo(np.float64).eps)

#: Smallest singular value of the equilibrated factor in its inverse, relative to the largest one.
#: The rounding of the Gram matrix hides values below √EPS, and the inverse must not blow up a
#: direction without any effect.
BASIS_FLOOR = EPS**0.5

#: Least |μ|: a curvature below this part of the rows' absolute curvatures counts as zero.
LEAST_CURVATURE = 1e-4

#: Most rows that raise the threshold of :func:`rank_tolerance`. The rounding of a row of ``J`` is
#: relative to this row, so that the factor's relative error does not grow with n for ever.
MAX_RANK_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Basis:
    """Coordinates for the directions of the parameters, and their inverse.

    Attributes
    ----------
    forward : ndarray, shape (p, p), float64
        ``S``: its columns are the directions of differentiation.
    inverse : ndarray, shape (p, p), float64
        ``S⁻¹``.
    """

    forward: FloatArray
    inverse: FloatArray

    @classmethod
    def identity(cls, size: int) -> Basis:
        """The parameters themselves as coordinates."""
        return cls(np.eye(size), np.eye(size))


@dataclass(frozen=True)  # without slots, for the cached properties
class Linearization:
    """The least-squares problem around a point, in p × p numbers.

    Attributes
    ----------
    r_factor : ndarray, shape (p, p), float64
        Upper triangular ``R`` of ``J = Q R``; singular if the data do not determine a direction.
    qtr : ndarray, shape (p,), float64
        ``Qᵀ r``.
    gradient : ndarray, shape (p,), float64
        ``Jᵀ r``.
    resolution : float
        Smallest over largest eigenvalue of the equilibrated Gram matrix in its basis, at least
        zero. The relative error of the factor's weakest direction is about ``EPS / resolution``.
    curved : Linearization or None
        The problem with the curvature of a loss that is concave in some rows; None for other
        losses.
    downhill : ndarray, shape (p,), float64, or None
        Direction of the most negative curvature of such a loss, of length 1 in the metric M; None
        if the curvature is positive in all determined directions.
    sandwich : ndarray, shape (p, p), float64, or None
        Covariance of the estimates of a robust loss; see :func:`sandwich`. None without the score
        products.
    """

    r_factor: FloatArray
    qtr: FloatArray
    gradient: FloatArray
    resolution: float
    curved: Linearization | None = None
    downhill: FloatArray | None = None
    sandwich: FloatArray | None = None

    def rank_rtol(self, n_points: int) -> float:
        """Relative size below which a singular value of the equilibrated factor is zero."""
        return rank_tolerance(n_points, self.qtr.size)

    def is_determined(self, n_points: int) -> bool:
        """Whether no singular value of the equilibrated factor is zero."""
        return not has_zero(self.equilibrated_svd[1], self.rank_rtol(n_points))

    def without(self, columns: NDArray[np.bool_]) -> Linearization:
        """The problem in which some parameters, shape (p,), have no effect."""
        if True not in columns.tolist():
            return self
        return replace(
            self,
            r_factor=np.where(columns, 0.0, self.r_factor),
            gradient=np.where(columns, 0.0, self.gradient),
            curved=self.curved and self.curved.without(columns),
        )

    @property
    def quadratic(self) -> Linearization:
        """The problem for computing steps. Standard errors belong to the linearization itself."""
        return self.curved or self

    @cached_property
    def norms(self) -> FloatArray:
        """Norms of the columns of the Jacobian, shape (p,)."""
        return column_norms(self.r_factor)

    @cached_property
    def lengths(self) -> FloatArray:
        """The same norms, with 1 for a column of zeros: divisors, shape (p,)."""
        return nonzero(self.norms)

    @cached_property
    def equilibrated_svd(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``U``, ``Σ`` and ``Vᵀ`` of the factor with columns of length 1 (or 0), ``R D⁻¹``."""
        return svd(self.r_factor / self.lengths)

    @cached_property
    def whitening(self) -> Basis:
        """The basis in which the Jacobian has orthonormal columns.

        ``S = D⁻¹ V Σ⁻¹`` from the singular value decomposition ``R = U Σ Vᵀ D`` of the equilibrated
        factor. Unlike the inverse of a triangle, ``S`` and ``S⁻¹`` are inverse to rounding for any
        condition of ``R``, and a singular ``R`` is no special case.
        """
        norms = self.lengths
        _, singular, v_transposed = self.equilibrated_svd
        if has_zero(singular, BASIS_FLOOR):
            floor = BASIS_FLOOR * singular[0] if singular[0] > 0.0 else 1.0
            singular = np.maximum(singular, floor)
        return Basis(
            v_transposed.T / singular / norms[:, None],
            singular[:, None] * v_transposed * norms,
        )


def factorize(sums: NormalEquations, basis: Basis) -> Linearization:
    """Factorise the Jacobian from the sums of a pass.

    Parameters
    ----------
    sums : NormalEquations
        Finite sums in the coordinates of `basis`.
    basis : Basis

    Returns
    -------
    Linearization
        In the coordinates of the parameters.
    """
    root = _SquareRoot.of(sums.gram)
    rotated = root.solve(sums.gradient)
    gradient = basis.inverse.T @ sums.gradient
    linear = _linearization(
        root.factor @ basis.inverse,
        rotated=rotated,
        gradient=gradient,
        resolution=root.resolution,
        covariance=sandwich(sums, basis),
    )
    if sums.concave is None:
        return linear
    root = _SquareRoot.of(sums.gram - sums.concave)
    mu, u = eigh(root.solve(root.solve(sums.gram + sums.concave).T))
    strengths = np.sqrt(np.maximum(np.abs(mu), LEAST_CURVATURE))
    factor = strengths[:, None] * (u.T @ root.factor) @ basis.inverse
    rotated = u.T @ root.solve(sums.gradient) / strengths
    curved = _linearization(factor, rotated=rotated, gradient=gradient, resolution=root.resolution)
    downhill = None
    if mu[0] < -LEAST_CURVATURE:
        downhill = basis.forward @ root.solve_transposed(u[:, 0])
    return replace(linear, curved=curved, downhill=downhill)


def sandwich(sums: NormalEquations, basis: Basis) -> FloatArray | None:
    """Covariance of the estimates of a robust loss, ``H⁻¹ (Σ ψ² j jᵀ) H⁻¹``.

    H are the second derivatives of the cost, ψ the derivative of the loss by the residual (Huber &
    Ronchetti, "Robust Statistics", 2nd ed. 2009, section 7.6, without assumptions on the variances
    of the rows, as White's of least squares).

    Parameters
    ----------
    sums : NormalEquations
        Finite sums in the coordinates of `basis`.
    basis : Basis

    Returns
    -------
    ndarray, shape (p, p), float64, or None
        In the coordinates of the parameters, symmetric. Infinite if H is not positive definite, so
        that the point is no minimum. None without the score products.
    """
    if sums.scores is None:
        return None
    hessian = sums.gram if sums.concave is None else sums.gram + sums.concave
    lengths = nonzero(np.sqrt(np.maximum(np.diagonal(sums.gram), 0.0)))
    curvatures, vectors = eigh(hessian / lengths / lengths[:, None])
    if not curvatures[0] > EPS * curvatures.size * curvatures[-1]:
        return np.full_like(hessian, np.inf)
    inverse = (vectors / curvatures) @ vectors.T / lengths
    bread = basis.forward @ (inverse / lengths[:, None])
    covariance = bread @ sums.scores @ bread.T
    symmetric: FloatArray = (covariance + covariance.T) / 2.0
    return symmetric


@dataclass(frozen=True, slots=True)
class _SquareRoot:
    """``F`` with ``Fᵀ F = G``, for a positive semi-definite G: steps 1 and 2 above for ``S = 1``.

    Holds ``E``, with 1 for a length of zero as divisors, ``V`` and the roots of Λ. A root that is
    lost in rounding is zero.
    """

    lengths: FloatArray
    divisors: FloatArray
    vectors: FloatArray
    roots: FloatArray
    resolution: float
    is_regular: bool

    @classmethod
    def of(cls, gram: FloatArray) -> _SquareRoot:
        lengths = np.sqrt(np.maximum(gram.diagonal(), 0.0))
        divisors = nonzero(lengths)
        equilibrated = gram / divisors / divisors[:, None]
        # A column of zeros is decoupled. The eigenvalue 1 keeps it out of the resolution.
        equilibrated.flat[:: len(lengths) + 1] = 1.0
        eigenvalues, vectors = eigh(equilibrated)
        least, largest = float(eigenvalues[0]), float(eigenvalues[-1])
        floor = EPS * eigenvalues.size * largest
        is_regular = least > floor
        if not is_regular:
            eigenvalues = np.where(eigenvalues > floor, eigenvalues, 0.0)
        roots = np.sqrt(eigenvalues)
        return cls(lengths, divisors, vectors, roots, max(least / largest, 0.0), is_regular)

    @property
    def factor(self) -> FloatArray:
        return self.roots[:, None] * self.vectors.T * self.lengths

    def solve(self, columns: FloatArray) -> FloatArray:
        """``F⁻ᵀ`` times columns (p,) or (p, k); 0 for directions of a zero root."""
        across = (self.vectors.T @ (columns.T / self.divisors).T).T
        return self._over_roots(across).T

    def solve_transposed(self, vector: FloatArray) -> FloatArray:
        """``F⁻¹`` times a vector (p,); 0 for directions of a zero root."""
        solved: FloatArray = self.vectors @ self._over_roots(vector) / self.divisors
        return solved

    def _over_roots(self, rows: FloatArray) -> FloatArray:
        """Rows (..., p) over the roots; 0 for a zero root."""
        if self.is_regular:
            return rows / self.roots
        known = self.roots > 0.0
        over: FloatArray = np.divide(rows, self.roots, where=known, out=np.zeros_like(rows))
        return over


def _linearization(
    factor: FloatArray,
    *,
    rotated: FloatArray,
    gradient: FloatArray,
    resolution: float,
    covariance: FloatArray | None = None,
) -> Linearization:
    """Linearization with the triangle of a factor, by QR."""
    q_factor, r_factor = qr(factor)
    qtr = q_factor.T @ rotated
    return Linearization(r_factor, qtr, gradient, resolution, sandwich=covariance)


def has_zero(singular: FloatArray, rank_rtol: float) -> bool:
    """Whether the least of singular values (p,), largest first, is zero relative to the largest."""
    return not float(singular[-1]) > rank_rtol * float(singular[0])


def rank_tolerance(n_points: int, size: int) -> float:
    """Relative size below which a singular value of a (n, p) factor counts as zero.

    The usual ``EPS * max(n, p)`` (Golub & Van Loan, "Matrix Computations", 5.4.1), with n capped.
    Without the cap, 10¹² rows would lose directions that are known to ten digits.
    """
    return EPS * max(min(n_points, MAX_RANK_ROWS), size)
