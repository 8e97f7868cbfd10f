"""Question: the sum of products of the scores of rows, for a robust covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows


@dataclass(frozen=True, slots=True)
class ScoresAt:
    """Question: ``Σ (ρ'_i r_i)² j_i j_iᵀ``, with weighted residuals r and rows j of their Jacobian.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    model : int
        Number of the model.
    """

    params: FloatArray
    model: int = 0
    task_name: ClassVar[str] = "scores"

    def zero(self, n_left_out: int = 0) -> FloatArray:  # noqa: ARG002 (of the protocol)
        """Sum over no rows, shape (p, p)."""
        return np.zeros((self.params.size, self.params.size))

    def of_rows(self, rows: Rows, kernels: Kernels) -> FloatArray:
        """Sum over some rows, shape (p, p)."""
        return kernels[self.model].score_products(self.params, rows)
