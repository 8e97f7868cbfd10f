"""What a search asks of all rows, and the answers: sums at one point, and costs at others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading tells of several points.

    Attributes
    ----------
    sums : NormalEquations
        At the first point.
    costs : ndarray, shape (k,), float64
        At the others.
    """

    sums: NormalEquations
    costs: FloatArray

    def __add__(self, other: Survey) -> Survey:
        return Survey(self.sums + other.sums, self.costs + other.costs)


@dataclass(frozen=True, slots=True)
class Many:
    """What one reading tells several models.

    Attributes
    ----------
    answers : tuple
        For each of them normal equations, a survey, or the costs of candidates (k,).
    """

    answers: tuple[NormalEquations | Survey | FloatArray, ...]

    def __add__(self, other: Many) -> Many:
        pairs = zip(self.answers, other.answers, strict=True)
        return Many(tuple(mine + theirs for mine, theirs in pairs))  # type: ignore[operator]


class Evaluator(Protocol):
    """Whatever turns parameters into normal equations by one reading of all rows."""

    @property
    def n_passes(self) -> int:
        """Readings of all rows so far."""
        ...

    def evaluate(
        self, params: FloatArray, basis: FloatArray, scores: bool = False
    ) -> NormalEquations:
        """Sum over all rows.

        Parameters
        ----------
        params : ndarray, shape (p,), float64
        basis : ndarray, shape (p, q), float64
        scores : bool
            Whether to sum the products of the scores, too, where the loss is robust.

        Returns
        -------
        NormalEquations
            Sums for ``J @ basis``. A non-finite model value gives a non-finite cost, not an error.
        """
        ...


class CostEvaluator(Evaluator, Protocol):
    """An evaluator that also tells the costs of several points in one pass."""

    def costs(self, candidates: FloatArray) -> FloatArray:
        """Costs (k,) of candidates (k, p)."""
        ...

    def survey(self, params: FloatArray, basis: FloatArray, candidates: FloatArray) -> Survey:
        """Sums at a point, and the costs of candidates (k, p)."""
        ...
