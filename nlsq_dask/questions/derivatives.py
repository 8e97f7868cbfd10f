"""Question: the rows on which neither the derivative nor a difference quotient is finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.finite import Affected, affected_rows
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.questions.row_values import RowFunction, values_of_block


@dataclass(frozen=True, slots=True)
class LostDerivativesAt(BlockQuestion[Affected]):
    """Question: number and first of the rows without a finite derivative.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    model : int
        Number of the model.
    """

    params: FloatArray
    model: int = 0
    task_name: ClassVar[str] = "derivatives"

    def zero(self) -> Affected:
        """Answer for no rows."""
        return Affected()

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Affected:
        """Answer for the rows of a block.

        A row without a finite derivative has no finite standard error if the parameters have
        unit variance.
        """
        index, box, block = placed
        root = np.eye(self.params.size)
        errors = RowFunction.of(kernels, self.model, self.params, root)
        found = values_of_block(errors, block)
        lost = ~np.isfinite(found)
        if block.selects:
            lost &= ~block.left_out()
        return affected_rows(lost, found, index, box)
