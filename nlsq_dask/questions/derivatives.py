"""Rows in which neither a derivative nor a difference in its place is finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.finite import Affected, affected_rows
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import PlacedBlock
from nlsq_dask.questions.row_values import RowFunction, values_of_block


@dataclass(frozen=True, slots=True)
class LostDerivativesAt:
    """How many rows have no derivative at a point, and where the first is.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    model : int
        Number of the model.
    """

    params: FloatArray
    model: int = 0
    task_name: ClassVar[str] = "derivatives"

    def zero(self, n_left_out: int = 0) -> Affected:  # noqa: ARG002 (of the protocol)
        """No rows."""
        return Affected()

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Affected:
        """Rows of a block with infinite errors, for parameters of unit variance."""
        index, box, block = placed
        root = np.eye(self.params.size)
        errors = RowFunction.of(kernels, self.model, self.params, root)
        found = values_of_block(errors, block)
        lost = ~np.isfinite(found)
        if block.selects:
            lost &= ~block.left_out()
        return affected_rows(lost, found, index, box)
