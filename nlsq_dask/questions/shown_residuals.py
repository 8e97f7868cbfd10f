"""Question: the sums of a pass, and on the way the residuals of some rows, for a dashboard.

The rows are in memory for the sums. The residuals of a few of them cost a call of the model, and no
reading. They are no part of the answer, which has the bits that it has without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.float_bins import FloatBins, total
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import AnswerT, RowQuestion, SumsAt
from nlsq_dask.io.stage import MIN_PART_ROWS
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.questions.row_values import RowFunction

# Fractional part of the golden ratio, whose multiples are spread most evenly.
GOLDEN = 0.618033988749895


@dataclass
class WithResiduals(Generic[AnswerT]):
    """A question, and the residuals of some of the rows that it is asked of.

    Attributes
    ----------
    question : RowQuestion
    sums : sequence of SumsAt
        Points at which there are residuals, of row-wise models.
    step : int
        One row of so many is looked at.
    found : list of list of FloatBins
        Weighted residuals ``(y - f) / sigma``, of each point, of each call.
    """

    question: RowQuestion[AnswerT]
    sums: tuple[SumsAt, ...]
    step: int
    found: list[list[FloatBins]] = field(default_factory=list)

    @property
    def task_name(self) -> str:
        """The name of the question's tasks."""
        return self.question.task_name

    def zero(self, n_left_out: int = 0) -> AnswerT:
        """The question's answer for no rows."""
        return self.question.zero(n_left_out)

    def of_rows(self, rows: Rows, kernels: Kernels) -> AnswerT:
        """The question's answer for some rows."""
        answer = self.question.of_rows(rows, kernels)
        some = _some(rows, self.step)
        self.found.append([FloatBins.of(_residuals(at, some, kernels)) for at in self.sums])
        return answer

    def residuals(self) -> list[FloatBins]:
        """The residuals of all calls, of each point."""
        return [total([own[i] for own in self.found]) for i in range(len(self.sums))]


def _residuals(at: SumsAt, rows: Rows, kernels: Kernels) -> FloatArray:
    """Weighted residuals (n,) at a point."""
    # One short buffer for all fits, so that a model is compiled once.
    values = RowFunction.of(kernels, at.model, at.params).for_blocks_of(MIN_PART_ROWS)
    residuals = np.asarray(rows.y) - values([np.asarray(c) for c in rows.coords], (rows.n,))
    return residuals if rows.weights is None else residuals * np.asarray(rows.weights)


def _some(rows: Rows, step: int) -> Rows:
    """One row of each `step` neighbours."""
    numbers = chosen_rows(rows.n, step)
    weights = None if rows.weights is None else rows.weights[numbers]
    return Rows(tuple(c[numbers] for c in rows.coords), rows.y[numbers], weights, numbers.size)


def chosen_rows(n: int, step: int) -> NDArray[np.intp]:
    """Numbers of one row of each `step` neighbours among `n`, at another place in each.

    Rows at equal distances would all be in one column of an image whose width divides the distance.
    """
    strata = np.arange(-(-n // step))
    places = (GOLDEN * strata % 1.0 * step).astype(np.intp)
    chosen: NDArray[np.intp] = np.minimum(strata * step + places, n - 1)
    return chosen
