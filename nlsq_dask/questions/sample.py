"""Questions: every k-th row in memory, or one series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock


@dataclass(frozen=True, slots=True)
class Sample:
    """Answer: rows as 1-D float64 arrays. Adding two samples joins their rows.

    Attributes
    ----------
    y : ndarray, shape (n,), float64
    coords : tuple of ndarray, shape (n,), float64
    sigma : ndarray, shape (n,), float64, or None
    """

    y: FloatArray
    coords: tuple[FloatArray, ...]
    sigma: FloatArray | None

    def __add__(self, other: Sample) -> Sample:
        pairs = zip(self.coords, other.coords, strict=True)
        coords = tuple(np.concatenate(pair) for pair in pairs)
        sigma = None
        if self.sigma is not None and other.sigma is not None:
            sigma = np.concatenate([self.sigma, other.sigma])
        return Sample(np.concatenate([self.y, other.y]), coords, sigma)


@dataclass(frozen=True)
class OneSeries:
    """Answer: the rows of a series that count, float64. Of two series the longer is kept.

    Attributes
    ----------
    y : ndarray, shape (n,)
    coords : tuple of ndarray, each (n,)
    """

    y: FloatArray
    coords: tuple[FloatArray, ...]

    def __add__(self, other: OneSeries) -> OneSeries:
        return other if other.y.size > self.y.size else self

    @classmethod
    def of(cls, block: Block) -> Self:
        """The first of the longest series of a block."""
        turned, n = block.in_series(), len(block.series_axes)
        shape = turned.y.shape
        rows = math.prod(shape[-n:])
        counted = (~turned.left_out()).reshape(-1, rows)
        which = int(np.argmax(counted.sum(axis=1)))

        def pick(array: np.ndarray[Any, Any]) -> FloatArray:
            series = np.unravel_index(which, shape[:-n])
            own = np.ma.getdata(np.broadcast_to(array, shape)[series])
            found: FloatArray = np.asarray(own, np.float64).ravel()[counted[which]]
            return found

        return cls(pick(turned.y), tuple(pick(c) for c in turned.coords))


@dataclass(frozen=True, slots=True)
class LongestSeries(BlockQuestion[OneSeries]):
    """Question: the series with the most rows that count.

    Attributes
    ----------
    n_coords : int
    """

    n_coords: int
    task_name: ClassVar[str] = "pilot"
    calls_model: ClassVar[bool] = False

    def zero(self) -> OneSeries:
        """No rows."""
        none = np.zeros(0)
        return OneSeries(none, (none,) * self.n_coords)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> OneSeries:  # noqa: ARG002
        """The longest series of a block."""
        block = placed[2]
        return OneSeries.of(block) if block.y.size else self.zero()


@dataclass(frozen=True, slots=True)
class Thinned(BlockQuestion[Sample]):
    """Question: every k-th row of each block, of those that are not left out.

    Attributes
    ----------
    step : int
        k.
    n_coords : int
    weighted : bool
        Whether the rows have a sigma.
    """

    step: int
    n_coords: int
    weighted: bool
    task_name: ClassVar[str] = "pilot"

    def zero(self) -> Sample:
        """A sample of no rows."""
        none = np.zeros(0)
        return Sample(none, (none,) * self.n_coords, none if self.weighted else None)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Sample:  # noqa: ARG002
        """Every k-th row of a block, of those that are not left out."""
        _, _, block = placed
        shape = block.y.shape
        rows: Any = slice(None, None, self.step)
        if block.selects:
            rows = np.unravel_index(np.flatnonzero(~block.left_out())[rows], shape)
        elif len(shape) != 1:
            rows = np.unravel_index(np.arange(0, block.y.size, self.step), shape)

        def pick(array: np.ndarray[Any, Any]) -> FloatArray:
            # A copy, so that the sample does not hold the memory of the block.
            return np.array(np.broadcast_to(array, shape)[rows], np.float64)

        sigma = None if block.sigma is None else pick(block.sigma)
        return Sample(pick(block.y), tuple(pick(c) for c in block.coords), sigma)
