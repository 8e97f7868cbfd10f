"""Some of the rows, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.stage import Block


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows as 1-D float64 arrays; samples combine by adding, one behind the other."""

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


def thin(block: Block, step: int) -> Sample:
    """Every ``step``-th of the rows of a block that count."""
    shape = block.y.shape
    numbers = np.arange(0, block.y.size, step)
    if block.selects:
        numbers = np.flatnonzero(~block.left_out())[::step]
    rows = np.unravel_index(numbers, shape)

    def pick(array: np.ndarray[Any, Any]) -> FloatArray:
        return np.asarray(np.broadcast_to(array, shape)[rows], np.float64)

    sigma = None if block.sigma is None else pick(block.sigma)
    return Sample(pick(block.y), tuple(pick(c) for c in block.coords), sigma)
