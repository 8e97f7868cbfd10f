"""Weighted means of the rows of a block at each coordinate, and the scatter about the means.

A block is cut into tiles. The sums of a tile are taken while its values are in the cache of a core.
Means and scatters of two sets of rows are combined after Chan, Golub & LeVeque ("Algorithms for
computing the sample variance", Am. Stat. 37, 1983, equation 2.1), without a difference of large
squares.
"""

from __future__ import annotations

import math
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

# Ones for sums by products.
ONES = np.ones(DOT_ROWS)

# A rough mean, from which distances are measured, is that of one row in so many.
ROUGH_PART = 64


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
    if y.shape == shape:  # one row at each coordinate
        return Spread(np.ones(shape), np.array(y, np.float64), np.zeros(shape))
    axes = _averaged(y.shape, shape)
    rough = _rough_mean(y, axes)
    first, second = np.zeros(shape), np.zeros(shape)
    long = [axis in axes for axis, n in enumerate(y.shape) if n > 1]
    if y.flags.c_contiguous and long == sorted(long):  # the rows of a coordinate are neighbours
        matrix = y.reshape(first.size, -1)
        _add_rows(matrix, rough.reshape(-1, 1), first.reshape(-1), second.reshape(-1))
    else:
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
    rows = Spread.zero(shape)
    weighted = None if block.sigma is None else Spread.zero(shape)
    variance = 0.0
    buffers = aligned_empty(3, min(TILE_ROWS, block.y.size))
    for _, box in block_boxes(regular_chunks(block.y.shape, TILE_ROWS)):
        tile = _Tile.of(block, box, shape, buffers)
        at = broadcast_box(box, shape)
        if weighted is None:
            rows.add_at(at, tile.spread())
            variance = float(rows.weight.sum())
        else:
            variance += tile.variance()
            weighted.add_at(at, tile.weighted_spread())
            rows.add_at(at, tile.spread())
    return rows, weighted, variance


def weights_of(sigma: FloatArray) -> None:
    """Turn σ into weights 1/σ, in place: as in the staging buffer, infinite for an unusable σ."""
    if not sigma.min(initial=1.0) > 0.0:
        np.maximum(sigma, 0.0, out=sigma)
    np.reciprocal(sigma, out=sigma)
    if not sigma.min(initial=1.0) > 0.0:
        sigma[sigma == 0.0] = np.inf


@dataclass(slots=True)
class _Tile:
    """The rows of a tile in buffers, which its methods overwrite.

    Attributes
    ----------
    y : ndarray
        Observations, and later their distances from `origin`.
    sigma : ndarray or None
    product : ndarray
        Room for a product.
    left_out : ndarray of bool, or None
        Rows that are left out. Their observations and weights are zeros.
    axes : tuple of int
        Dimensions that are averaged over.
    origin : ndarray or float
    """

    y: FloatArray
    sigma: FloatArray | None
    product: FloatArray
    left_out: NDArray[np.bool_] | None
    axes: tuple[int, ...]
    origin: FloatArray | float = 0.0

    @classmethod
    def of(cls, block: Block, box: Box, shape: Shape, buffers: FloatArray) -> Self:
        """Copy the rows of a box of a block."""
        tile = block.y[box]
        y, sigma, product = (buffer[: tile.size].reshape(tile.shape) for buffer in buffers)
        left_out = block.left_out(box) if block.selects else None
        made = cls(y, None, product, left_out, _averaged(block.y.shape, shape))
        np.copyto(y, tile, casting="unsafe")
        made._blank(y)
        if block.sigma is not None:
            np.copyto(sigma, block.sigma[broadcast_box(box, block.sigma.shape)], casting="unsafe")
            made._blank(sigma)
            made.sigma = sigma
        return made

    def variance(self) -> float:
        """``Σ σ²``."""
        assert self.sigma is not None, "a tile with sigma"
        return float(_sum_of_products(self.sigma, self.sigma, self.axes).sum())

    def weighted_spread(self) -> Spread:
        """Means and scatters with the weights 1/σ², in two passes over the tile.

        The second pass corrects the mean of the first one for rounding.
        """
        weights = self.sigma
        assert weights is not None, "a tile with sigma"
        weights_of(weights)
        np.multiply(weights, weights, out=weights)
        self._blank(weights)
        weight = _sum(weights, self.axes)
        self._move(_over(_sum_of_products(weights, self.y, self.axes), weight))
        np.multiply(weights, self.y, out=self.product)
        first = _sum(self.product, self.axes)
        return self._about(weight, first, _sum_of_products(self.product, self.y, self.axes))

    def spread(self) -> Spread:
        """Means and scatters with equal weights."""
        shape = _kept(self.y.shape, self.axes)
        n_rows = np.full(shape, self.y.size / math.prod(shape))
        if self.left_out is not None:
            n_rows -= self.left_out.sum(axis=self.axes, keepdims=True)
        if self.sigma is None:  # else the distances are from the weighted means already
            self._move(_over(_sum(self.y, self.axes), n_rows))
        first = _sum(self.y, self.axes)
        return self._about(n_rows, first, _sum_of_squares(self.y, self.axes))

    def _about(self, weight: FloatArray, first: FloatArray, second: FloatArray) -> Spread:
        """Means and scatters of the sums of the distances and of their squares."""
        shift = _over(first, weight)
        scatter = np.maximum(second - shift * first, 0.0)
        return Spread(weight, self.origin + shift, scatter)

    def _move(self, origin: FloatArray) -> None:
        """Turn observations into distances."""
        self.origin = origin
        self.y -= origin
        self._blank(self.y)

    def _blank(self, values: FloatArray) -> None:
        if self.left_out is not None:
            np.copyto(values, 0.0, where=self.left_out)


def _over(sums: FloatArray, weight: FloatArray) -> FloatArray:
    """Quotients; 0 without weight."""
    quotient = np.zeros(weight.shape)
    np.divide(sums, weight, out=quotient, where=weight != 0.0)
    return quotient


def _averaged(full: Shape, shape: Shape) -> tuple[int, ...]:
    """The dimensions that are averaged over; all dimensions of length 1 count as such."""
    return tuple(axis for axis in range(len(full)) if shape[axis] == 1)


def _rough_mean(y: NDArray[Any], axes: tuple[int, ...]) -> FloatArray:
    """Mean of a part of the rows at each coordinate, with the dimensions of y."""
    longest = max(axes, key=lambda axis: y.shape[axis])
    part = [slice(None)] * y.ndim
    part[longest] = slice(0, -(-y.shape[longest] // ROUGH_PART))
    return np.asarray(y[tuple(part)].mean(axis=axes, keepdims=True, dtype=np.float64))


def _add_rows(y: NDArray[Any], origin: FloatArray, first: FloatArray, second: FloatArray) -> None:
    """Add sums along the rows of a matrix to k totals each, with few calls for each tile.

    The sums are those of the distances of y (k, n) from an origin (k, 1), and of their squares.
    """
    width = min(y.shape[1], DOT_ROWS)
    height = max(TILE_ROWS // width, 1)
    (buffer,) = aligned_empty(1, width * height)
    for i in range(0, y.shape[0], height):
        here = slice(i, i + height)
        for j in range(0, y.shape[1], width):
            tile = y[here, j : j + width]
            distances = buffer[: tile.size].reshape(tile.shape)
            if tile.dtype != np.float64:
                np.copyto(distances, tile, casting="unsafe")
                tile = distances
            np.subtract(tile, origin[here], out=distances)
            lines = distances[:, None, :]
            first[here] += np.matmul(lines, ONES[: tile.shape[1]])[:, 0]
            second[here] += np.matmul(lines, distances[:, :, None])[:, 0, 0]


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


def _sum(tile: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sum along some dimensions, which stay with length 1."""
    if tile.ndim - 1 not in axes:
        return np.asarray(tile.sum(axis=axes, keepdims=True))
    return _dots(tile, None, axes)


def _sum_of_squares(tile: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sum of the squares along some dimensions, which stay with length 1; may change the tile."""
    if tile.ndim - 1 in axes:
        return _dots(tile, tile, axes)
    np.multiply(tile, tile, out=tile)
    return _sum(tile, axes)


def _sum_of_products(a: FloatArray, b: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sum of the products along some dimensions, which stay with length 1."""
    return _dots(a, b, axes) if a.ndim - 1 in axes else _sum(a * b, axes)


def _kept(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """A shape with the dimensions that are averaged over of length 1."""
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


def _dots(a: FloatArray, b: FloatArray | None, axes: tuple[int, ...]) -> FloatArray:
    """``Σ a b`` along some dimensions, among them the last; None stands for ones.

    NumPy computes the products of rows one by one by BLAS, in one thread for so few rows.
    """
    kept = _kept(a.shape, axes)
    last = a.ndim - 1
    while last and last - 1 in axes:
        last -= 1
    outer, n = a.shape[:last], math.prod(a.shape[last:])
    a = a.reshape(*outer, n)
    total = np.zeros(outer)
    for start in range(0, n, DOT_ROWS):
        left = a[..., None, start : start + DOT_ROWS]
        right = ONES[: left.shape[-1]]
        if b is not None:
            right = b.reshape(*outer, n)[..., start : start + DOT_ROWS]
        total += np.matmul(left, right[..., None])[..., 0, 0]
    rest = tuple(axis for axis in axes if axis < last)
    return np.asarray(total.sum(axis=rest, keepdims=True)).reshape(kept)
