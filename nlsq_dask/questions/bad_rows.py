"""Question: the rows on which the residual at the starting point is not finite.

It is asked only after a sum at the starting point is not finite, so good data are not read for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.finite import Affected, Place
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.questions.row_values import RowFunction, values_of_block


@dataclass(frozen=True, slots=True)
class BadRows:
    """Answer: the rows without a finite squared residual.

    Attributes
    ----------
    found : Affected
        Number of rows, and place and model value of the first.
    coords : tuple of float
        Coordinates of the first row.
    """

    found: Affected = field(default_factory=Affected)
    coords: tuple[float, ...] = ()

    def error(
        self, names: Sequence[str], error: _errors.StartNotFiniteError, *, in_series: bool
    ) -> _errors.StartNotFiniteError:
        """The error, naming the first row and its coordinates if there is such a row."""
        if not self.found.count or error.params is None:
            return error
        coords = ", ".join(f"{n} = {v:.6g}" for n, v in zip(names, self.coords, strict=True))
        return _errors.start_not_finite_at_row(
            error.params,
            self.found.count,
            str(self.found.first),
            coords,
            self.found.value,
            in_series=in_series,
        )

    def __add__(self, other: BadRows) -> BadRows:
        leading = self if self.found.count else other
        return BadRows(self.found + other.found, leading.coords)


@dataclass(frozen=True, slots=True)
class BadRowsAt(BlockQuestion[BadRows]):
    """Question: number and first of the rows without a finite squared residual.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    block_rows : int
        Rows of the largest block.
    model : int
        Number of the model.
    """

    params: FloatArray
    block_rows: int
    model: int = 0
    task_name: ClassVar[str] = "bad rows"

    def zero(self) -> BadRows:
        """Answer for no rows."""
        return BadRows()

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> BadRows:
        """Answer for the rows of a block."""
        function = RowFunction.of(kernels, self.model, self.params)
        return _of_block(function.for_blocks_of(self.block_rows), placed)


def _of_block(function: RowFunction, placed: PlacedBlock) -> BadRows:
    """Check the rows of a block that are not left out."""
    index, box, block = placed
    shape = block.y.shape
    values = values_of_block(function, block)
    with np.errstate(all="ignore"):
        residuals = np.subtract(values, block.y)
        if block.sigma is not None:
            residuals = residuals / block.sigma
        bad = ~np.isfinite(residuals**2)
    if block.selects:
        bad &= ~block.left_out()
    count = int(np.count_nonzero(bad))
    if not count:
        return BadRows()
    at = np.unravel_index(int(np.argmax(bad)), shape)
    place = Place(tuple(int(i) + s.start for i, s in zip(at, box, strict=True)), index, box)
    coords = tuple(float(np.broadcast_to(c, shape)[at]) for c in block.coords)
    return BadRows(Affected(count, place, float(values[at])), coords)
