"""What fits that read together ask of one reading: for each model sums, a survey, or costs.

While rows are in memory the kernels of all models run on them, one after the other. Each model's
sums are made of the same numbers in the same order as if it had read the rows alone, so that they
have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Many, Survey
from nlsq_dask.kernels.sums import BlockKernel
from nlsq_dask.kernels.tiles import Rows


class Request(Protocol):
    """What one model asks; it goes to every task of a reading, and so does not hold the model."""

    @property
    def model(self) -> int:
        """Number of the model among those that read together."""
        ...

    def of_rows(self, kernel: BlockKernel, rows: Rows) -> Any:
        """The answer of some rows."""
        ...

    def nothing(self, n_left_out: int) -> Any:
        """The answer of no rows, given how many were left out."""
        ...


@dataclass(frozen=True, slots=True)
class SumsRequest:
    """Normal equations at parameters (p,) in a basis (p, q)."""

    model: int
    params: FloatArray
    basis: FloatArray
    observe_y: bool
    scores: bool = False

    def of_rows(self, kernel: BlockKernel, rows: Rows) -> NormalEquations:
        """The sums over some rows."""
        return kernel(self.params, self.basis, rows, self.observe_y, self.scores)

    def nothing(self, n_left_out: int) -> NormalEquations:
        """The sums over no rows."""
        return no_rows(self.basis.shape[1])(n_left_out)


@dataclass(frozen=True, slots=True)
class SurveyRequest:
    """Normal equations at parameters (p,), and the costs of candidates (k, p)."""

    model: int
    params: FloatArray
    basis: FloatArray
    candidates: FloatArray
    observe_y: bool

    def of_rows(self, kernel: BlockKernel, rows: Rows) -> Survey:
        """What some rows tell."""
        return kernel.survey(self.params, self.basis, self.candidates, rows, self.observe_y)

    def nothing(self, n_left_out: int) -> Survey:
        """What no rows tell."""
        return no_survey(self.basis.shape[1], len(self.candidates))(n_left_out)


@dataclass(frozen=True, slots=True)
class CostsRequest:
    """Costs of candidates (k, p)."""

    model: int
    candidates: FloatArray

    def of_rows(self, kernel: BlockKernel, rows: Rows) -> FloatArray:
        """The costs of some rows."""
        return kernel.costs(self.candidates, rows)

    def nothing(self, n_left_out: int) -> FloatArray:
        """The costs of no rows."""
        return no_costs(len(self.candidates))(n_left_out)


def answers_of_rows(
    requests: Sequence[Request], kernels: Mapping[int, BlockKernel]
) -> tuple[Callable[[Rows], Many], Callable[[int], Many]]:
    """All answers of some rows, and of none, as an engine adds them up.

    Parameters
    ----------
    requests : sequence of Request
    kernels : mapping of BlockKernel
        Of the models that ask, by number.

    Returns
    -------
    of_rows, nothing : callable
        Given rows, and the number of rows that were left out.
    """

    def of_rows(rows: Rows) -> Many:
        return Many(tuple(asked.of_rows(kernels[asked.model], rows) for asked in requests))

    def nothing(n_left_out: int) -> Many:
        return Many(tuple(asked.nothing(n_left_out) for asked in requests))

    return of_rows, nothing


def no_rows(size: int) -> Callable[[int], NormalEquations]:
    """Normal equations over no rows, given how many were left out, for ``size`` directions."""

    def nothing(n_left_out: int) -> NormalEquations:
        return replace(NormalEquations.zero(size), n_skipped=n_left_out)

    return nothing


def no_costs(size: int) -> Callable[[int], FloatArray]:
    """Costs of ``size`` candidates over no rows, however many were left out."""
    return lambda _: np.zeros(size)


def no_survey(size: int, n_candidates: int) -> Callable[[int], Survey]:
    """What a survey finds in no rows, given how many were left out."""
    nothing, costs = no_rows(size), np.zeros(n_candidates)
    return lambda n_left_out: Survey(nothing(n_left_out), costs)


def no_meat(size: int) -> Callable[[int], FloatArray]:
    """Products of scores of ``size`` parameters over no rows, however many were left out."""
    return lambda _: np.zeros((size, size))
