"""The search for first guesses: variable projection on a grid.

The *shape* of a model is a part of its parameters. For a known shape, the model is linear in the
other parameters (Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973): a peak in its height, an
oscillation in its sine and cosine. A guess tries the shapes of a coarse grid. For each shape, it
computes how much of the sum of squares the model explains with the linear parameters of all terms
at their least-squares values. This needs no smoothing, edges or thresholds.

Many rows are first averaged into few bins. The shapes of the grid are too coarse to be affected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
# Columns of a model for shape parameters that broadcast against the rows.
Columns = Callable[..., Sequence[Any]]

# Bins of a search. With so many, a grid of a few thousand shapes takes some ten milliseconds.
MAX_BINS = 512

# Numbers in the temporary arrays of a search (8 MB).
_CHUNK_NUMBERS = 2**20

# A column of which less than 1e-4 is left after projecting out the other terms belongs to them.
_RIDGE = 1e-8

# Places of a coarse grid: as many as bins.
_MAX_PLACES = MAX_BINS

# Relative rounding of observations and of values: of residuals below it, all is rounding.
_ROUNDINGS = 16 * np.finfo(np.float64).eps

# Shapes whose gains differ by less than this part count as equal, and the first of them is taken.
# The ridge makes differences of this size between columns that span the same space.
TIE = 1e-6


@dataclass(frozen=True)
class Samples:
    """Data of a search.

    Attributes
    ----------
    coords : tuple of ndarray, each of shape (n,)
        Coordinates.
    y : ndarray, shape (n,)
        Observations.
    others : ndarray, shape (n, q)
        Columns of the other terms, whose coefficients are refitted with each shape.
    roots : ndarray, shape (n,)
        Square root of the number of rows in each sample, which is their mean.
    slack : float
        Fraction of the best gain by which a narrower peak may be worse and still be preferred.
    """

    coords: tuple[FloatArray, ...]
    y: FloatArray
    others: FloatArray
    roots: FloatArray
    slack: float = 0.0

    def rows(self, keep: NDArray[np.bool_]) -> Samples:
        """Samples of some rows."""
        coords = tuple(coord[keep] for coord in self.coords)
        return replace(
            self, coords=coords, y=self.y[keep], others=self.others[keep], roots=self.roots[keep]
        )

    def binned(self) -> Samples:
        """Means over at most `MAX_BINS` neighbours along one coordinate, in ascending order."""
        n = self.y.size
        order = np.argsort(self.coords[0], kind="stable")
        size = -(-n // MAX_BINS)
        groups = np.empty(n, dtype=np.int64)
        groups[order] = np.arange(n) // size
        return self.means(groups)

    def means(self, groups: NDArray[np.int64]) -> Samples:  # groups: (n,)
        """Means over the rows of each group, in the order of the groups' numbers."""
        counts = np.bincount(groups)
        kept = counts > 0

        def mean(values: FloatArray) -> FloatArray:
            return np.bincount(groups, weights=values)[kept] / counts[kept]

        others = [mean(column) for column in self.others.T]
        return Samples(
            tuple(mean(coord) for coord in self.coords),
            mean(self.y),
            np.stack(others, axis=1) if others else np.empty((kept.sum(), 0)),
            np.sqrt(counts[kept]),
            self.slack,
        )


def best_shape(
    samples: Samples, candidates: FloatArray, columns: Columns, slack: float = 0.0
) -> tuple[FloatArray, float]:
    """Shape that explains most of the observations next to the other terms.

    Parameters
    ----------
    samples : Samples
        Data of n rows.
    candidates : ndarray, shape (g, s)
        Shapes. Of equally good shapes the first is taken.
    columns : callable
        ``columns(coords, *shape)``: the model's linear parts, each of shape (g, n), for shapes
        (g, 1).
    slack : float
        Fraction of the best gain by which an earlier shape may be worse.

    Returns
    -------
    shape : ndarray, shape (s,)
    gain : float
        Reduction of the sum of squares by the shape.
    """
    basis = _orthonormal(samples.others * samples.roots[:, None])
    target = samples.y * samples.roots
    target = target - basis @ (basis.T @ target)
    step = max(1, _CHUNK_NUMBERS // max(1, samples.y.size))
    gains = np.concatenate(
        [
            _gains(samples, candidates[i : i + step], columns, basis, target)
            for i in range(0, len(candidates), step)
        ]
    )
    gains = np.nan_to_num(gains, nan=-1.0, posinf=-1.0)
    best = int(np.argmax(gains >= gains.max() * (1 - max(slack, TIE))))
    return candidates[best], float(gains[best])


def _gains(
    samples: Samples,
    candidates: FloatArray,  # (g, s)
    columns: Columns,
    basis: FloatArray,  # (n, q)
    target: FloatArray,  # (n,)
) -> FloatArray:  # (g,)
    """Sum of squares that each shape explains, by its normal equations."""
    with np.errstate(all="ignore"):
        parts = columns(samples.coords, *candidates.T[:, :, None])
        J = np.stack([np.broadcast_to(p, (len(candidates), target.size)) for p in parts], axis=1)
        J = J * samples.roots
        J = J / np.linalg.norm(J, axis=2, keepdims=True)
    J = np.where(np.isfinite(J), J, 0.0)  # (g, c, n)
    J = J - (J @ basis) @ basis.T
    gram = J @ J.swapaxes(1, 2) + _RIDGE * np.eye(J.shape[1])
    gradient = J @ target
    solved = np.linalg.solve(gram, gradient[:, :, None])[:, :, 0]
    gains: FloatArray = np.sum(gradient * solved, axis=1)
    return gains


def linear_fit(columns: FloatArray, y: FloatArray) -> FloatArray:
    """Least-squares coefficients (c,) of columns (n, c); the shortest for dependent columns.

    A coefficient that an exact fit does not tell from zero is zero: a start of zero tells a fit no
    size of the parameter, and a start of 1e-17 a wrong size.
    """
    columns = np.where(np.isfinite(columns), columns, 0.0)
    norms = np.linalg.norm(columns, axis=0)
    norms = np.where(norms > 0, norms, 1.0)
    scaled = columns / norms
    solution = np.asarray(np.linalg.lstsq(scaled, y, rcond=1e-10)[0], np.float64)
    rounding = _ROUNDINGS * float(np.linalg.norm(y))
    if solution.size and np.linalg.norm(y - scaled @ solution) <= rounding:
        errors = rounding * np.linalg.norm(np.linalg.pinv(scaled, rcond=1e-10), axis=1)
        solution[np.abs(solution) <= errors] = 0.0
    return solution / norms


def _orthonormal(columns: FloatArray) -> FloatArray:
    """Orthonormal basis (n, rank) of the span of columns (n, q)."""
    if columns.shape[1] == 0:
        return columns
    columns = np.where(np.isfinite(columns), columns, 0.0)
    norms = np.linalg.norm(columns, axis=0)
    U, s, _ = np.linalg.svd(columns / np.where(norms > 0, norms, 1.0), full_matrices=False)
    basis: FloatArray = U[:, s > 1e-10 * max(s[0], 1e-300)]
    return basis


def span_of(x: FloatArray) -> float:
    """Length of the range of x, or 1 if the range is a point."""
    return float(np.ptp(x)) or 1.0


def spacing_of(x: FloatArray) -> float:
    """Typical distance of neighbours in sorted x."""
    gaps = np.diff(x)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if gaps.size else span_of(x)


def geometric(low: float, high: float, factor: float) -> FloatArray:
    """Numbers from low to at least high, in steps of a factor of about `factor`."""
    steps = max(1, int(np.ceil(np.log(max(high / low, 1.0)) / np.log(factor))))
    return np.geomspace(low, max(high, low), steps + 1)


def coarse_places(x: FloatArray, margin: float = 0.0) -> FloatArray:  # (g, 2)
    """Few places and widths of features, of which one leads a fit to any feature in x.

    Neighbouring widths differ by a factor of 1.7, and neighbouring places by a width: a fit of a
    peak goes the right way from a place on its flank.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Sorted coordinates.
    margin : float
        Distance by which places extend beyond x, in ranges of x.
    """
    span = span_of(x)
    grids = []
    for width in geometric(0.7 * min(spacing_of(x), span), 0.5 * span, 1.7):
        # A wide peak beside a constant looks like a wide dip elsewhere, unless it is met closely.
        step = width if width < span / 8 else width / 2
        n_steps = min(int(np.ceil((1 + 2 * margin) * span / step)), x.size, _MAX_PLACES)
        centers = np.linspace(x[0] - margin * span, x[-1] + margin * span, n_steps + 1)
        grids.append(np.stack([centers, np.full_like(centers, width)], axis=1))
    return np.concatenate(grids)


def centers_and_widths(x: FloatArray, margin: float = 0.0) -> FloatArray:  # (g, 2)
    """Grid of places and widths of features. Neighbouring places are half a width apart.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Sorted coordinates.
    margin : float
        Distance by which places extend beyond x, in ranges of x.
    """
    span = span_of(x)
    grids = []
    for width in geometric(0.5 * min(spacing_of(x), span), span, 1.5):
        n_steps = int(np.ceil((1 + 2 * margin) * span / (0.5 * width)))
        if n_steps > x.size:  # finer than the samples, although these may be dense in places
            centers = x
        else:
            centers = np.linspace(x[0] - margin * span, x[-1] + margin * span, n_steps + 1)
        grids.append(np.stack([centers, np.full_like(centers, width)], axis=1))
    return np.concatenate(grids)
