"""Normal equations of a least-squares problem.

With residuals ``r_i(θ) = (f(x_i; θ) - y_i) / σ_i``, their Jacobian ``J`` of shape (n, p) and a
basis ``S`` of shape (p, q), one pass over all rows gives the sums

    gram     = (J S)ᵀ (J S)      (q, q)
    gradient = (J S)ᵀ r          (q,)
    chi2     = Σ r²,   cost = ½ Σ r²

The basis is a choice of coordinates for the directions of the parameters. The identity gives the
plain sums. The inverse of a previous triangular factor of ``J`` gives sums close to the identity
matrix, whose factor does not suffer from a squared condition number (Cholesky QR applied twice:
Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44, 2015).

Sums over two sets of rows add. An engine needs no other property.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows for the statistics of a fit.

    Attributes
    ----------
    abs_residuals : float
        ``Σ |y_i - f_i|``, in the units of y.
    sq_residuals : float
        ``Σ (y_i - f_i)²``, in the units of y squared.
    weight : float
        ``Σ w_i²`` with ``w_i = 1/σ_i``; the number of rows without σ.
    mean : float
        Weighted mean of y, ``Σ w_i² y_i / Σ w_i²``; 0 for no rows.
    scatter : float
        ``Σ w_i² (y_i - mean)²``, the total sum of squares.
    variance : float
        ``Σ σ_i²``; the number of rows without σ. 0 in results of earlier releases.
    n_small : float
        Rows with ``|r_i|`` of at most ``0.6745 f_scale``: half of the rows, if they are normal with
        the standard deviation `f_scale`. 0 for linear loss.
    """

    abs_residuals: float = 0.0
    sq_residuals: float = 0.0
    weight: float = 0.0
    mean: float = 0.0
    scatter: float = 0.0
    variance: float = 0.0
    n_small: float = 0.0

    def with_y_of(self, other: Moments) -> Moments:
        """Replace the moments of y by other moments of the same rows."""
        return Moments(
            abs_residuals=self.abs_residuals,
            sq_residuals=self.sq_residuals,
            weight=other.weight,
            mean=other.mean,
            scatter=other.scatter,
            variance=other.variance,
            n_small=self.n_small,
        )

    def __add__(self, other: Moments) -> Moments:
        """Combine the moments of two sets of rows.

        Means and scatters after Chan, Golub & LeVeque ("Algorithms for computing the sample
        variance", Am. Stat. 37, 1983, equation 2.1), without a difference of large squares.
        """
        weight = self.weight + other.weight
        share = other.weight / weight if weight else 0.0
        distance = other.mean - self.mean
        try:
            square = distance**2
        except OverflowError:  # Python's square overflows; NumPy's product has other bits
            square = math.inf
        return Moments(
            abs_residuals=self.abs_residuals + other.abs_residuals,
            sq_residuals=self.sq_residuals + other.sq_residuals,
            weight=weight,
            mean=self.mean + distance * share,
            scatter=self.scatter + other.scatter + square * self.weight * share,
            variance=self.variance + other.variance,
            n_small=self.n_small + other.n_small,
        )


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
        Half the sum of squared weighted residuals, or of a robust loss of them; not finite if the
        model is not.
    chi2 : float
        Sum of squared weighted residuals.
    n_points : int
        Rows that entered the sums.
    n_skipped : int
        Rows left out: masked or missing.
    moments : Moments
        The moments of y may come from the first pass.
    concave : ndarray, shape (q, q), float64, or None
        Second derivatives of a robust loss over the rows where the loss is concave: negative
        semi-definite, and not part of `gram`. None for zero.
    largest : ndarray, shape (k + 1,) or (k + 2,), float64, or None
        Largest magnitudes of y, of each of k coordinates, and of the weights if there are any; NaN
        for a NaN among the values; upper bounds between 2**-53 and 2**53. Only from the first pass.
    n_differenced : int
        Rows with a difference of values in place of a derivative that is not finite.
    sample_of_y : float
        Sum of a few values of y: the same in every pass, if the data are.
    sample_of_columns : ndarray, shape (k,) or (k + 1,), float64, or None
        Sums of the magnitudes of a few values of each of k coordinates, and of the weights if there
        are any. None where rows never change.
    scores : ndarray, shape (q, q), float64, or None
        Score products ``Σ ψ_i² (J S)_iᵀ (J S)_i`` with the derivative ``ψ_i`` of a robust loss by
        the residual; None if not asked for.
    """

    gram: FloatArray
    gradient: FloatArray
    cost: float
    chi2: float
    n_points: int
    _: KW_ONLY
    n_skipped: int = 0
    moments: Moments = Moments()
    concave: FloatArray | None = None
    largest: FloatArray | None = None
    n_differenced: int = 0
    sample_of_y: float = 0.0
    sample_of_columns: FloatArray | None = None
    scores: FloatArray | None = None

    @classmethod
    def zero(cls, size: int, n_skipped: int = 0) -> NormalEquations:
        """Sums over no rows, for ``size`` basis directions."""
        return cls(np.zeros((size, size)), np.zeros(size), 0.0, 0.0, 0, n_skipped=n_skipped)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        # The users of the sums check whether they are finite.
        with np.errstate(invalid="ignore", over="ignore"):
            return NormalEquations(
                self.gram + other.gram,
                self.gradient + other.gradient,
                self.cost + other.cost,
                self.chi2 + other.chi2,
                self.n_points + other.n_points,
                n_skipped=self.n_skipped + other.n_skipped,
                moments=self.moments + other.moments,
                concave=_of_known(np.add, self.concave, other.concave),
                largest=_of_known(np.maximum, self.largest, other.largest),
                n_differenced=self.n_differenced + other.n_differenced,
                sample_of_y=self.sample_of_y + other.sample_of_y,
                sample_of_columns=_of_known(
                    np.add, self.sample_of_columns, other.sample_of_columns
                ),
                scores=_of_known(np.add, self.scores, other.scores),
            )


def _of_known(
    combine: Callable[[FloatArray, FloatArray], FloatArray],
    a: FloatArray | None,
    b: FloatArray | None,
) -> FloatArray | None:
    """Combine two arrays; None does not count."""
    if a is None or b is None:
        return b if a is None else a
    return combine(a, b)
