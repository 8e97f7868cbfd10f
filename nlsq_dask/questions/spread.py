"""Weighted means of the rows of a block at each coordinate, and the scatter about the means.

A block is cut into tiles. The sums of a tile are taken while its values are in the cache of a core.
Means and scatters of two sets of rows are combined after Chan, Golub & LeVeque ("Algorithms for
computing the sample variance", Am. Stat. 37, 1983, equation 2.1), without a difference of large
squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import Box, block_boxes, broadcast_box, regular_chunks
from nlsq_dask.io.stage import Block, Shape, aligned_empty
from nlsq_dask.kernels.moments import DOT_ROWS

# Rows of a tile: its float64 values take 512 KiB, which the cache of a core holds. With fewer rows
# the calls of NumPy take longer than their loops.
TILE_ROWS = 1 << 16

# A rough mean, from which distances are measured, is that of one row in so many.
ROUGH_PART = 16


@dataclass(frozen=True, slots=True)
class Spread:
    """Weighted mean of the observations at each coordinate, and their scatter about it.

    Attributes
    ----------
    weight : ndarray, shape (...), float64
        ``Σ w²``; 0 without rows.
    mean : ndarray, shape (...), float64
        ``Σ w² y / Σ w²``; without meaning where the weight is 0.
    scatter : ndarray, shape (...), float64
        ``Σ w² (y - mean)²``.
    """

    weight: FloatArray
    mean: FloatArray
    scatter: FloatArray

    @classmethod
    def zero(cls, shape: Shape) -> Self:
        """Of no rows."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def __add__(self, other: Spread) -> Spread:
        # NaN is expected here for values that are not finite: the cost is not finite either.
        with np.errstate(invalid="ignore", over="ignore"):
            weight = self.weight + other.weight
            share = np.zeros(weight.shape)
            np.divide(other.weight, weight, out=share, where=weight != 0.0)
            distance = other.mean - self.mean
            scatter = self.scatter + other.scatter + distance**2 * self.weight * share
            return Spread(weight, self.mean + distance * share, scatter)

    def add_at(self, box: Box, other: Spread) -> None:
        """Add other rows at the coordinates of a box, in place."""
        total = Spread(self.weight[box], self.mean[box], self.scatter[box]) + other
        self.weight[box], self.mean[box], self.scatter[box] = (
            total.weight,
            total.mean,
            total.scatter,
        )


def spread_of_all(y: NDArray[Any], shape: Shape) -> Spread:
    """Means and scatters of all values of a block, with equal weights.

    With the distances d from a rough mean, the scatter is ``Σ d² - (Σ d)² / n``. The rough mean is
    that of a part k of the n values, so that by the inequality of Cauchy and Schwarz the first term
    is at most ``1 + n / k`` times the difference: few digits are lost, whatever the values are.

    Parameters
    ----------
    y : ndarray, shape (...), any real dtype
        At least one value.
    shape : tuple of int
        Shape of the means: 1 along the dimensions that are averaged over.
    """
    axes = _averaged(y.shape, shape)
    rough = _rough_mean(y, axes)
    first, second = np.zeros(shape), np.zeros(shape)
    for box, distances in _tiles(y, rough):
        at = broadcast_box(box, shape)
        first[at] += _sum(distances, axes)
        second[at] += _sum_of_squares(distances, axes)
    n = y.size / first.size
    shift = first / n
    scatter = np.maximum(second - shift * first, 0.0)
    return Spread(np.full(shape, n), rough + shift, scatter)


def spreads_of_some(block: Block, shape: Shape) -> tuple[Spread, Spread | None, float]:
    """Means and scatters of the rows of a block that are not left out.

    Parameters
    ----------
    block : Block
    shape : tuple of int
        As for :func:`spread_of_all`.

    Returns
    -------
    rows : Spread
        With equal weights.
    weighted : Spread or None
        With the weights 1/σ²; None without σ.
    variance : float
        ``Σ σ²``; the number of rows without σ.
    """
    axes = _averaged(block.y.shape, shape)
    rows = Spread.zero(shape)
    weighted = None if block.sigma is None else Spread.zero(shape)
    variance = 0.0
    for box, values in _tiles(block.y, np.zeros((1,) * block.y.ndim)):
        at = broadcast_box(box, shape)
        counted = ~block.left_out(box) if block.selects else np.ones(values.shape, np.bool_)
        values[~counted] = 0.0
        own = _centred(values, counted.astype(np.float64), axes)
        rows.add_at(at, own)
        if weighted is None or block.sigma is None:
            variance += float(own.weight.sum())
            continue
        sigma = np.broadcast_to(block.sigma[broadcast_box(box, block.sigma.shape)], values.shape)
        weights = weights_of(sigma)
        weights[~counted] = 0.0
        # The values are now distances from the means of equal weights.
        part = _centred(values, weights**2, axes)
        mean = own.mean + np.where(part.weight == 0.0, 0.0, part.mean)
        weighted.add_at(at, Spread(part.weight, mean, part.scatter))
        variance += float(np.sum(np.asarray(sigma[counted], np.float64) ** 2))
    return rows, weighted, variance


def weights_of(sigma: NDArray[Any]) -> FloatArray:
    """Weights 1/σ; infinite for a σ that is no positive number, as in the staging buffer."""
    weights = np.maximum(np.asarray(sigma, np.float64), 0.0)
    np.reciprocal(weights, out=weights)
    weights[weights == 0.0] = np.inf
    return weights


def _averaged(full: Shape, shape: Shape) -> tuple[int, ...]:
    """The dimensions that are averaged over; all dimensions of length 1 count as such."""
    return tuple(axis for axis in range(len(full)) if shape[axis] == 1)


def _rough_mean(y: NDArray[Any], axes: tuple[int, ...]) -> FloatArray:
    """Mean of a part of the rows at each coordinate, with the dimensions of y."""
    if not axes:
        return np.asarray(y, np.float64).copy()
    longest = max(axes, key=lambda axis: y.shape[axis])
    part = [slice(None)] * y.ndim
    part[longest] = slice(0, -(-y.shape[longest] // ROUGH_PART))
    return np.asarray(y[tuple(part)].mean(axis=axes, keepdims=True, dtype=np.float64))


def _tiles(y: NDArray[Any], origin: FloatArray) -> Iterator[tuple[Box, FloatArray]]:
    """Boxes that cover a block, and the distances of their values from the origin, in a buffer."""
    (buffer,) = aligned_empty(1, min(TILE_ROWS, y.size))
    for _, box in block_boxes(regular_chunks(y.shape, TILE_ROWS)):
        tile = y[box]
        distances = buffer[: tile.size].reshape(tile.shape)
        if tile.dtype != np.float64:  # a copy that casts, before a difference that need not
            np.copyto(distances, tile, casting="unsafe")
            tile = distances
        np.subtract(tile, origin[broadcast_box(box, origin.shape)], out=distances)
        yield box, distances


def _centred(values: FloatArray, weights: FloatArray, axes: tuple[int, ...]) -> Spread:
    """Mean and scatter of a tile. The values become the distances from the means, 0 of no weight.

    The second pass corrects the mean of the first one for rounding.
    """
    weight = _sum(weights, axes)
    known = weight != 0.0
    mean = np.zeros(weight.shape)
    np.divide(_sum(values * weights, axes), weight, out=mean, where=known)
    values -= mean
    values[weights == 0.0] = 0.0
    weighted = values * weights
    first = _sum(weighted, axes)
    shift = np.zeros(weight.shape)
    np.divide(first, weight, out=shift, where=known)
    scatter = np.maximum(_sum(weighted * values, axes) - shift * first, 0.0)
    return Spread(weight, mean + shift, scatter)


def _sum(tile: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sum along some dimensions, which stay with length 1."""
    if tile.ndim - 1 not in axes:
        return np.asarray(tile.sum(axis=axes, keepdims=True))
    return _dots(tile, None, axes)


def _sum_of_squares(tile: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sum of the squares along some dimensions, which stay with length 1; may change the tile."""
    if tile.ndim - 1 not in axes:
        np.multiply(tile, tile, out=tile)
        return _sum(tile, axes)
    return _dots(tile, tile, axes)


def _dots(a: FloatArray, b: FloatArray | None, axes: tuple[int, ...]) -> FloatArray:
    """``Σ a b`` along some dimensions, among them the last; None stands for ones.

    NumPy computes the products of rows one by one by BLAS, in one thread for so few rows.
    """
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(a.shape))
    last = a.ndim - 1
    while last and last - 1 in axes:
        last -= 1
    outer, n = a.shape[:last], int(np.prod(a.shape[last:]))
    a = a.reshape(*outer, n)
    b = np.ones(n) if b is None else b.reshape(*outer, n)
    most = n - n % DOT_ROWS if n > DOT_ROWS else 0
    total = np.matmul(a[..., None, most:], b[..., most:, None])[..., 0, 0]
    if most:
        pieces = (-1, DOT_ROWS)
        left = a[..., :most].reshape(*outer, *pieces)
        right = b[..., :most].reshape(*b.shape[:-1], *pieces)
        total = total + np.matmul(left[..., None, :], right[..., None])[..., 0, 0].sum(axis=-1)
    rest = tuple(axis for axis in axes if axis < last)
    return np.asarray(total.sum(axis=rest, keepdims=True)).reshape(kept)
