"""Question: values that make a sum not finite, which are NaN, infinities, and sigma of zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nlsq_dask.io.finite import Affected, Findings, scan
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock


@dataclass(frozen=True, slots=True)
class BadValues(BlockQuestion[Findings]):
    """Question: number of bad values of each array, and the place of the first.

    Attributes
    ----------
    n_arrays : int
        Number of arrays: y, the coordinates, and sigma where there is one.
    """

    n_arrays: int
    task_name: ClassVar[str] = "bad values"

    def zero(self) -> Findings:
        """Answer for no rows."""
        return Findings((Affected(),) * self.n_arrays, Affected(), 0, 0)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Findings:  # noqa: ARG002
        """Answer for the rows of a block."""
        index, box, block = placed
        return scan(block, index, box)
