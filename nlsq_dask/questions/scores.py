"""Products of the rows' scores, of which a robust covariance is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.tiles import Rows


@dataclass(frozen=True, slots=True)
class ScoresAt:
    """``Σ (ρ'_i r_i)² j_i j_iᵀ`` of the weighted residuals and the rows of their Jacobian.

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
        """Products (p, p) over no rows."""
        return np.zeros((self.params.size, self.params.size))

    def of_rows(self, rows: Rows, kernels: Kernels) -> FloatArray:
        """Products (p, p) over some rows."""
        return kernels[self.model].score_products(self.params, rows)
