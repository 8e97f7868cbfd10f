"""A question written outside of the package: the sum of |r|³."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.questions.row_values import RowFunction


@dataclass(frozen=True)
class CubesAt:
    """``Σ |r_i|³`` of the weighted residuals at a point."""

    params: np.ndarray
    model: int = 0
    task_name: ClassVar[str] = "cubes"

    def zero(self, n_left_out=0):
        return 0.0

    def of_rows(self, rows, kernels):
        function = RowFunction.of(kernels, self.model, self.params)
        values = function([c[: rows.n] for c in rows.coords], (rows.n,))
        residuals = values - rows.y[: rows.n]
        if rows.weights is not None:
            residuals = residuals * rows.weights[: rows.n]
        return float(np.sum(np.abs(residuals) ** 3))
