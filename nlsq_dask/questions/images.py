"""Question: images of the observations, of the model and of the residuals, for pictures.

Two dimensions of ``y`` become rows and columns of pixels. A pixel is the mean over its rows, and
over all other dimensions. So an image of any number of rows has few pixels. Sums of blocks add, so
that one reading of the data is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import Box
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.questions.row_values import RowFunction, values_of_block


@dataclass(frozen=True)
class PixelSums:
    """Answer: sums over the rows of each pixel.

    Attributes
    ----------
    n : ndarray, shape (h, w), int64
        Rows with finite numbers that are not left out.
    y, fitted, residuals : ndarray, shape (h, w), float64
        Sums of observations, of values of the model, and of residuals ``y - f``, which are divided
        by sigma if there are sigma.
    """

    n: NDArray[np.int64]
    y: FloatArray
    fitted: FloatArray
    residuals: FloatArray

    @classmethod
    def zero(cls, pixels: tuple[int, int]) -> Self:
        """Sums over no rows."""
        return cls(np.zeros(pixels, np.int64), *(np.zeros(pixels) for _ in range(3)))

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(
            self.n + other.n,
            self.y + other.y,
            self.fitted + other.fitted,
            self.residuals + other.residuals,
        )

    def means(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean observation, value and residual of each pixel; NaN in a pixel without rows."""
        y, fitted, residuals = (
            np.divide(sums, self.n, out=np.full(self.n.shape, np.nan), where=self.n > 0)
            for sums in (self.y, self.fitted, self.residuals)
        )
        return y, fitted, residuals


@dataclass(frozen=True, slots=True)
class Images(BlockQuestion[PixelSums]):
    """Question: mean observation, value and residual in each pixel.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
        Parameters of the model.
    shape : tuple of int
        Shape of ``y``.
    dims : pair of int
        Dimensions of ``y`` that become the rows and the columns of pixels.
    pixels : pair of int
        Number of rows and columns of pixels, at most the lengths of these dimensions.
    block_rows : int
        Rows of the largest block.
    model : int
        Number of the model.
    """

    params: FloatArray
    shape: tuple[int, ...]
    dims: tuple[int, int]
    pixels: tuple[int, int]
    block_rows: int
    model: int = 0
    task_name: ClassVar[str] = "images"

    def zero(self) -> PixelSums:
        """Sums over no rows."""
        return PixelSums.zero(self.pixels)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> PixelSums:
        """Sums over the rows of a block."""
        _, box, block = placed
        function = RowFunction.of(kernels, self.model, self.params).for_blocks_of(self.block_rows)
        fitted = values_of_block(function, block)
        y = np.asarray(np.ma.getdata(block.y), np.float64)
        sigma = 1.0 if block.sigma is None else np.ma.getdata(block.sigma)
        with np.errstate(invalid="ignore", over="ignore"):  # such rows are left out below
            residuals = (y - fitted) / sigma
        counted = ~block.left_out() & np.isfinite(residuals)
        pixel = self._pixel(box)[counted]

        def total(values: FloatArray) -> FloatArray:
            # np.bincount returns integers if there are no rows.
            sums = np.bincount(pixel, values[counted], minlength=self.pixels[0] * self.pixels[1])
            return sums.astype(np.float64).reshape(self.pixels)

        n = np.bincount(pixel, minlength=self.pixels[0] * self.pixels[1]).reshape(self.pixels)
        return PixelSums(n, total(y), total(fitted), total(residuals))

    def _pixel(self, box: Box) -> NDArray[np.intp]:
        """Number of the pixel of each row of a box."""
        lines = []
        for dim, pixels in zip(self.dims, self.pixels, strict=True):
            line = np.arange(box[dim].start, box[dim].stop) * pixels // self.shape[dim]
            across = [1] * len(self.shape)
            across[dim] = -1
            lines.append(line.reshape(across))
        row, column = lines
        sizes = tuple(part.stop - part.start for part in box)
        return np.broadcast_to(row * self.pixels[1] + column, sizes)
