"""Normal equations of a least-squares problem, and the evaluator that computes them.

With residuals ``r_i(θ) = (f(x_i; θ) - y_i) / σ_i``, their Jacobian ``J`` of shape (n, p) and a
basis ``S`` of shape (p, q), one pass over all rows gives the sums

    gram     = (J S)ᵀ (J S)      (q, q)
    gradient = (J S)ᵀ r          (q,)
    chi2     = Σ r²,   cost = ½ Σ r²

The basis is a choice of coordinates for the parameters' directions: the identity gives the plain
sums, and the inverse of a previous triangular factor of ``J`` gives sums that are close to the
identity matrix, whose factor carries no squared condition number (Cholesky QR applied twice:
Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44, 2015).

Sums of blocks of rows combine by adding: that is all an engine needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """Sums over rows, in the coordinates of a basis.

    Attributes
    ----------
    gram : ndarray, shape (q, q), float64
        ``(J S)ᵀ (J S)``.
    gradient : ndarray, shape (q,), float64
        ``(J S)ᵀ r``.
    cost : float
        Half the sum of squared weighted residuals; not finite where the model is not.
    chi2 : float
        Sum of squared weighted residuals.
    n_points : int
        Rows that entered the sums.
    n_skipped : int
        Rows left out.
    """

    gram: FloatArray
    gradient: FloatArray
    cost: float
    chi2: float
    n_points: int
    n_skipped: int = 0

    @classmethod
    def zero(cls, size: int) -> NormalEquations:
        """Sums over no rows, for ``size`` basis directions."""
        return cls(np.zeros((size, size)), np.zeros(size), 0.0, 0.0, 0)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.gram + other.gram,
            self.gradient + other.gradient,
            self.cost + other.cost,
            self.chi2 + other.chi2,
            self.n_points + other.n_points,
            self.n_skipped + other.n_skipped,
        )


class Evaluator(Protocol):
    """Whatever turns parameters into normal equations by one reading of all rows."""

    @property
    def n_passes(self) -> int:
        """Readings of all rows so far."""
        ...

    def evaluate(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
        """Sum over all rows.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        basis : ndarray, shape (p, q), float64

        Returns
        -------
        NormalEquations
            Sums for ``J @ basis``. A non-finite model value gives a non-finite cost, not an error.
        """
        ...
