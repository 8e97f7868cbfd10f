"""Question: the mean of the observations at each distinct coordinate, and their scatter about it.

Where no coordinate varies along some dimensions of y, many rows have one value of the model. With
weights w² = 1/σ², the rows i at a coordinate c have

    Σ w_i² (y_i - f_c)² = W_c (ȳ_c - f_c)² + S_c,
    W_c = Σ w_i²,   ȳ_c = Σ w_i² y_i / W_c,   S_c = Σ w_i² (y_i - ȳ_c)²

for every value f_c of the model. So the least squares of all rows follow from one row for each
distinct coordinate, and from the constant Σ S_c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import A_PASS
from nlsq_dask.io.chunks import Box, broadcast_box
from nlsq_dask.io.stage import Block, Shape
from nlsq_dask.kernels.moments import ORDINARY
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.questions.spread import Spread, spread_of_all, spreads_of_some, weights_of

#: A box of coordinates as a key: start and stop along each dimension.
BoxKey: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """Observations at the coordinates of a box.

    Attributes
    ----------
    rows : Spread
        With equal weights: the weight is the number of rows.
    weighted : Spread or None
        With the weights 1/σ²; None without σ.
    coords : tuple of ndarray, float64
        The coordinates, each with as many dimensions as y.
    """

    rows: Spread
    weighted: Spread | None
    coords: tuple[FloatArray, ...]

    def __add__(self, other: Cell) -> Cell:
        weighted = None
        if self.weighted is not None and other.weighted is not None:
            weighted = self.weighted + other.weighted
        return Cell(self.rows + other.rows, weighted, self.coords)


@dataclass(frozen=True, slots=True)
class Means:
    """Answer: cells, by the boxes that the blocks cut out of the distinct coordinates.

    Attributes
    ----------
    cells : dict of Cell
    n_left_out : int
        Rows that were left out.
    variance : float
        ``Σ σ²`` of the other rows; their number without σ.
    largest : ndarray, shape (2,), float64
        Largest magnitudes of y and of 1/σ; upper bounds between 2**-53 and 2**53.
    """

    cells: dict[BoxKey, Cell] = field(default_factory=dict)
    n_left_out: int = 0
    variance: float = 0.0
    largest: FloatArray = field(default_factory=lambda: np.zeros(2))

    def __add__(self, other: Means) -> Means:
        cells = dict(self.cells)
        for key, cell in other.cells.items():
            cells[key] = cells[key] + cell if key in cells else cell
        return Means(
            cells,
            self.n_left_out + other.n_left_out,
            self.variance + other.variance,
            np.maximum(self.largest, other.largest),
        )

    def whole(self, shape: Shape, coords: Sequence[Shape], weighted: bool) -> Cell:
        """One cell of all distinct coordinates.

        Parameters
        ----------
        shape : tuple of int
            Numbers of distinct coordinates along each dimension.
        coords : sequence of tuple of int
            Shapes of the coordinates.
        weighted : bool
            Whether there is a σ.
        """
        found = Cell(
            Spread.zero(shape),
            Spread.zero(shape) if weighted else None,
            tuple(np.zeros(own) for own in coords),
        )
        for key, cell in self.cells.items():
            box = tuple(slice(*ends) for ends in key)
            # An engine may cut some of the rows at other places: boxes may overlap.
            found.rows.add_at(box, cell.rows)
            if found.weighted is not None and cell.weighted is not None:
                found.weighted.add_at(box, cell.weighted)
            for whole, part in zip(found.coords, cell.coords, strict=True):
                whole[broadcast_box(box, whole.shape)] = part
        return found


@dataclass(frozen=True, slots=True)
class MeansOf(BlockQuestion[Means]):
    """Question: mean and scatter of the observations at each distinct coordinate.

    Attributes
    ----------
    varies : tuple of bool
        For each dimension of y, whether a coordinate varies along it.
    shape : tuple of int
        Numbers of distinct coordinates along each dimension. This and what follows tell one
        question from another, and are not needed for an answer.
    coords : tuple of tuple of int
        Shapes of the coordinates.
    weighted : bool
        Whether there is a σ.
    """

    varies: tuple[bool, ...]
    shape: Shape = ()
    coords: tuple[Shape, ...] = ()
    weighted: bool = False
    task_name: ClassVar[str] = A_PASS
    calls_model: ClassVar[bool] = False

    def zero(self) -> Means:
        """Answer for no rows."""
        return Means()

    def left_out(self, n_rows: int) -> Means:
        """Answer for rows of blocks that are left out as a whole."""
        return Means(n_left_out=n_rows)

    def key(self, box: Box) -> BoxKey:
        """The box that rows cut out of the distinct coordinates."""
        ends = zip(box, self.varies, strict=True)
        return tuple((s.start, s.stop) if varies else (0, 1) for s, varies in ends)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Means:  # noqa: ARG002
        """Answer for the rows of a block."""
        _, box, block = placed
        if not block.y.size:
            return self.zero()
        key = self.key(box)
        shape = tuple(stop - start for start, stop in key)
        weighted, n_left_out, variance = None, 0, float(block.y.size)
        # NaN is expected here for values that are not finite: the cost is not finite either.
        with np.errstate(all="ignore"):
            if block.selects or block.sigma is not None:
                rows, weighted, variance = spreads_of_some(block, shape)
                n_left_out = block.y.size - int(rows.weight.sum())
            else:
                rows = spread_of_all(block.y, shape)
            largest = _largest(block, rows, weighted)
        coords = tuple(np.array(c, np.float64) for c in block.coords)
        return Means({key: Cell(rows, weighted, coords)}, n_left_out, variance, largest)


def _largest(block: Block, rows: Spread, weighted: Spread | None) -> FloatArray:
    """Largest magnitudes of y and of 1/σ in the rows of a block that are not left out, shape (2,).

    The root of the sum of squares is an upper bound. It takes the place of the magnitude where only
    the bound matters, as in the kernel.
    """
    y = math.sqrt(float(np.sum(rows.weight * rows.mean**2 + rows.scatter)))
    weight = 0.0 if weighted is None else math.sqrt(float(np.sum(weighted.weight)))
    if not 1.0 / ORDINARY < y < ORDINARY:
        y = _maximum(block, np.asarray(block.y, np.float64))
    if block.sigma is not None and not 1.0 / ORDINARY < weight < ORDINARY:
        weights = np.array(block.sigma, np.float64)
        weights_of(weights)
        weight = _maximum(block, weights)
    return np.array([y, weight])


def _maximum(block: Block, values: NDArray[np.float64]) -> float:
    """Largest magnitude of values of a block in the rows that are not left out; 0 for no rows."""
    if not block.selects:
        return float(np.max(np.abs(values)))
    counted = np.broadcast_to(values, block.y.shape)[~block.left_out()]
    return float(np.max(np.abs(counted), initial=0.0))
