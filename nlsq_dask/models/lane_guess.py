"""First guesses of many series at once: variable projection on a coarse grid.

As in :mod:`nlsq_dask.models.search`, each shape of a grid is tried with the linear parameters at
their least-squares values. All series of a tile have the same coordinates, so the column E_g (n) of
a shape is computed once for all tiles. With the weights K (n, L) of the rows of L series, 0 for a
row that is left out, and an orthonormal basis b_j of the other terms of each series, a shape takes

    (E_g · K r)² / (E_g² · K - Σ_j (E_g · K b_j)²)

off the sum of squares of r, which is y without its part in the basis. So three products of matrices
judge all shapes for all series: E by K r, E² by K, and E by K b_j.

Bounds and fixed values leave some shapes out: those farther outside than a step of the grid. The
shape that is found is moved inside. Shapes are left out, too, for which the term has a sign that
its bounds exclude. So two peaks that are bounded to places of their own find these places,
whichever of them is higher.

A series gets the same guess in any place of a tile, and next to any other series. The shape is a
value of the grid: rounding has no part in the guess, except for two shapes that are equally good to
the last digits. The linear parameters come from sums over rows that NumPy adds lane by lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.models.base import N_SWEEPS, SLACK, Model, Term, search_orders
from nlsq_dask.models.curves import Sinusoid
from nlsq_dask.models.lane_limits import Limits, near_shapes, of_allowed_sign, reach_of
from nlsq_dask.models.peaks import Peak
from nlsq_dask.models.search import MAX_BINS, TIE, FloatArray

# Tables of the columns of a term, kept for the tiles of a fit. One takes 60 kB for a peak and 60
# rows, and at most a few MB.
_MAX_TABLES = 32

# Multiplications of a product that OpenBLAS computes in one thread, since each worker thread has
# its own tile: 65,536 times GEMM_MULTITHREAD_THRESHOLD, 4 (OpenBLAS, Makefile.rule).
_PRODUCT_SIZE = 1 << 18

# Least rows of a table in a product, and lanes in a product of long series: a product of a few rows
# is as slow as one of eight.
_LEAST_ROWS = 8
_FEW_LANES = 64

# A column of which less than 1e-4 is left after projecting out the others belongs to them. Of the
# columns of linear terms, which come first, all but rounding is kept: a line over x from 1e6 to
# 1e6 + 10 leaves 3e-6 next to a constant (the limit is that of `search.linear_fit`).
_LEFT = 1e-8
_LEFT_OF_LINEAR = 1e-20


@dataclass(frozen=True)
class _Tile:
    """Series as a search takes them.

    Attributes
    ----------
    coords : tuple of ndarray, each of shape (n,)
        Finite coordinates, a single one in ascending order.
    y : ndarray, shape (n, L)
        Observations, at most 1 in magnitude; 0 for rows left out.
    weights : ndarray, shape (n, L)
        How many rows of a series each row stands for: 0 where it is left out.
    """

    coords: tuple[FloatArray, ...]
    y: FloatArray
    weights: FloatArray

    def part(self, lane: NDArray[np.int64]) -> _Tile:
        """Some of the series, which may be repeated."""
        return _Tile(self.coords, self.y[:, lane], self.weights[:, lane])


@dataclass(frozen=True)
class _Table:
    """Columns of a term for the shapes of a coarse grid.

    Attributes
    ----------
    shapes : ndarray, shape (g, s)
    reach : ndarray, shape (g, s)
        Half of the step of the grid around each shape, and a little more.
    columns : tuple of ndarray, each of shape (g, n)
        The parts in which the term is linear, at most 1 in magnitude.
    scales : tuple of ndarray, each of shape (g,)
        What the columns were divided by.
    products : tuple of ndarray, each of shape (g, n)
        Products of two columns: of the first with itself, with the second, of the second with
        itself.
    """

    shapes: FloatArray
    reach: FloatArray
    columns: tuple[FloatArray, ...]
    scales: tuple[FloatArray, ...]
    products: tuple[FloatArray, ...]


@dataclass(frozen=True)
class _Found:
    """Shapes (s, L) of a term, its columns (n, L) for them, and their scales (L,)."""

    shapes: FloatArray
    columns: tuple[FloatArray, ...]
    scales: tuple[FloatArray, ...]

    @property
    def is_linear(self) -> bool:
        """Whether the term has no shape."""
        return not len(self.shapes)


def lane_guess(
    model: Model,
    coords: tuple[FloatArray, ...],
    y: FloatArray,
    limits: Limits | None = None,
    exchanged: tuple[int, int] | None = None,
) -> FloatArray:
    """Starting values for the fits of many series.

    Parameters
    ----------
    model : Model
    coords : tuple of ndarray, each of shape (m, 1) or (m, L), float64
        Coordinates of the rows, common to all series or of each series.
    y : ndarray, shape (m, L), float64
        Observations, one series a column. NaN is a row that is left out.
    limits : Limits, optional
        Of all parameters. Only shapes are kept inside.
    exchanged : pair of int, optional
        Two peaks, each of which gets the place and the width that were found for the other.

    Returns
    -------
    ndarray, shape (p, L), float64
        Values of ``model.names``; NaN for a series with fewer rows than parameters.
    """
    if all(coord.shape[1] == 1 for coord in coords):
        return _guess(model, coords, y, limits, exchanged)
    wide = np.broadcast_arrays(*coords, y)[:-1]
    guesses = np.full((len(model.names), y.shape[1]), np.nan)
    for lane in np.flatnonzero(np.isfinite(y).any(axis=0)):
        own = slice(lane, lane + 1)
        cut = None if limits is None else limits.part(own)
        alone = tuple(coord[:, own] for coord in wide)
        guesses[:, own] = _guess(model, alone, y[:, own], cut, exchanged)
    return guesses


def guess_within(
    model: Model, coords: Sequence[FloatArray], y: FloatArray, limits: Limits
) -> FloatArray | None:
    """Starting values (p,) for one fit with limits.

    Parameters
    ----------
    model : Model
    coords : sequence of ndarray, each of shape (n,), float64
    y : ndarray, shape (n,), float64
    limits : Limits
        Of all parameters.

    Returns
    -------
    ndarray, shape (p,), float64, or None
        None where a limit has no part in the search: without a limit, for rows of which a guess
        cannot be made, and for an oscillation of more rows than a search of series has bins.
    """
    is_long = y.size > MAX_BINS and any(isinstance(term, Sinusoid) for term in model.terms)
    if is_long or not limits.any:
        return None
    found = lane_guess(model, tuple(c[:, None] for c in coords), y[:, None], limits)[:, 0]
    return found if np.isfinite(found).all() else None


def _guess(
    model: Model,
    coords: tuple[FloatArray, ...],
    y: FloatArray,
    limits: Limits | None,
    exchanged: tuple[int, int] | None,
) -> FloatArray:
    """Guesses (p, L) for coordinates (m, 1) of all series."""
    finite = np.logical_and.reduce([np.isfinite(coord[:, 0]) for coord in coords])
    counted = np.isfinite(y) & finite[:, None]
    enough = counted.sum(axis=0) >= len(model.names)
    size = np.max(np.abs(y), axis=0, where=counted, initial=0.0)
    size = np.where(size > 0.0, size, 1.0)
    if not enough.any():
        return np.full((len(model.names), y.shape[1]), np.nan)
    rows = tuple(coord[finite, 0] for coord in coords)
    scaled = np.where(counted, y, 0.0)[finite] / size
    tile = _ordered(_Tile(rows, scaled, counted[finite].astype(np.float64)), model)
    with np.errstate(all="ignore"):
        found = _search(model.terms, tile, _limits_of(model.terms, limits))
        if exchanged is not None:
            found = _exchanged(found, exchanged, model.terms, tile)
        guesses = np.stack(_assembled(model.terms, found, tile, size))
    return np.where(enough & np.isfinite(guesses).all(axis=0), guesses, np.nan)


def _ordered(tile: _Tile, model: Model) -> _Tile:
    """The rows in ascending order; means over neighbours if there are many rows.

    An oscillation may have a cycle within a bin.
    """
    if len(tile.coords) > 1:
        return tile
    x, y, weights = tile.coords[0], tile.y, tile.weights
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        x, y, weights = x[order], y[order], weights[order]
    if x.size <= MAX_BINS or any(isinstance(term, Sinusoid) for term in model.terms):
        return _Tile((x,), y, weights)
    starts = np.arange(0, x.size, -(-x.size // MAX_BINS))
    counts = np.diff([*starts, x.size])
    totals, rows = np.add.reduceat(y, starts, axis=0), np.add.reduceat(weights, starts, axis=0)
    means = totals / np.maximum(rows, 1.0)
    return _Tile((np.add.reduceat(x, starts) / counts,), means, rows)


def _limits_of(terms: Sequence[Term], limits: Limits | None) -> list[Limits | None]:
    """Limits of the parameters of each term; None if it has none."""
    found: list[Limits | None] = []
    first = 0
    for term in terms:
        own = None if limits is None else limits.of(range(first, first + len(term.names)))
        found.append(own if own is not None and own.any else None)
        first += len(term.names)
    return found


def _search(terms: Sequence[Term], tile: _Tile, limits: Sequence[Limits | None]) -> list[_Found]:
    """Shape of each term in each series, from the order of the search that explains most."""
    first, *others = search_orders(terms)
    found = _searched_in(first, terms, tile, limits)
    for order in others:
        other = _searched_in(order, terms, tile, limits)
        better = _left(other, tile) < _left(found, tile) * (1.0 - TIE)
        found = [_chosen(better, b, a) for a, b in zip(found, other, strict=True)]
    return found


def _exchanged(
    found: Sequence[_Found], pair: tuple[int, int], terms: Sequence[Term], tile: _Tile
) -> list[_Found]:
    """What was found, with the places and widths of two peaks exchanged."""
    turned = list(found)
    for i, j in (pair, pair[::-1]):
        own, other = terms[i], terms[j]
        assert isinstance(own, Peak)
        assert isinstance(other, Peak)
        shapes = own.shape_of(found[j].shapes[0], other.half_width(found[j].shapes))
        turned[i] = _Found(shapes, *_columns_of(terms[i], shapes, tile.coords))
    return turned


def _chosen(first: NDArray[np.bool_], a: _Found, b: _Found) -> _Found:
    """What was found first where a flag (L,) is True, and the other elsewhere."""
    return _Found(
        np.where(first, a.shapes, b.shapes),
        tuple(np.where(first, c, d) for c, d in zip(a.columns, b.columns, strict=True)),
        tuple(np.where(first, c, d) for c, d in zip(a.scales, b.scales, strict=True)),
    )


def _left(found: Sequence[_Found], tile: _Tile) -> FloatArray:  # (L,)
    """Sum of squares that the terms leave of each series."""
    basis, _ = _orthonormal(_linear_first(found), tile.weights)
    rest = tile.y
    for column in basis:
        rest = rest - column * _sums(tile.weights, column, tile.y)
    return _sums(tile.weights, rest, rest)


def _searched_in(
    order: Sequence[int], terms: Sequence[Term], tile: _Tile, limits: Sequence[Limits | None]
) -> list[_Found]:
    """Shape of each term in each series, searched next to the other terms, in an order."""
    nothing = _Found(np.empty((0, tile.y.shape[1])), (), ())
    found = [_linear(term, tile) if term.is_linear else nothing for term in terms]
    n_sweeps = N_SWEEPS if len(order) > 1 else 1
    for sweep in range(n_sweeps):
        for i in order:
            # A term that cannot move to another peak takes all of its own.
            slack = SLACK if sweep < n_sweeps - 1 and limits[i] is None else TIE
            others = _linear_first([*found[:i], *found[i + 1 :]])
            basis, _ = _orthonormal(others, tile.weights)
            found[i] = _best(terms[i], tile, basis, slack, limits[i])
    return found


def _linear(term: Term, tile: _Tile) -> _Found:
    """Columns of a term without a shape."""
    found = _table_of(term, tile.coords)
    columns = tuple(np.broadcast_to(c[0][:, None], tile.y.shape) for c in found.columns)
    scales = tuple(np.broadcast_to(scale, tile.y.shape[1:]) for scale in found.scales)
    return _Found(np.empty((0, tile.y.shape[1])), columns, scales)


def _best(
    term: Term, tile: _Tile, basis: Sequence[FloatArray], slack: float, limits: Limits | None
) -> _Found:
    """The shape that explains most of each series; of almost equal ones the first."""
    table, rest = _table_of(term, tile.coords), tile.y
    for column in basis:
        rest = rest - column * _sums(tile.weights, column, tile.y)
    gains, along = _gains(table, tile.weights, basis, rest)
    if limits is not None:
        shape = limits.of(term.shape_places)
        near, outside = near_shapes(table.shapes, table.reach, shape)
        at = np.nonzero(near & outside)
        if at[0].size:
            numbers, lane = at
            inside = shape.part(lane).clipped(table.shapes[numbers].T)
            gains[at], along[at] = _gains_of(term, inside, tile.part(lane), basis, rest, lane)
        if len(table.columns) == 1:
            near = of_allowed_sign(near, along, limits.lower[0], limits.upper[0])
        gains[~np.broadcast_to(near, gains.shape)] = -1.0
    chosen = np.argmax(gains >= gains.max(axis=0) * (1.0 - slack), axis=0)
    found = _Found(
        table.shapes[chosen].T,
        tuple(np.ascontiguousarray(column[chosen].T) for column in table.columns),
        tuple(scale[chosen] for scale in table.scales),
    )
    return found if limits is None else _moved_inside(term, found, tile.coords, limits)


def _gains_of(
    term: Term,
    shapes: FloatArray,
    tile: _Tile,
    basis: Sequence[FloatArray],
    rest: FloatArray,
    lane: NDArray[np.int64],
) -> tuple[FloatArray, FloatArray]:
    """As `_gains`, for a shape (s, k) of each of k series of a tile: (k,) each.

    `lane` (k,) is the place of each series in the columns of `basis` and `rest`.
    """
    columns, _ = _columns_of(term, shapes, tile.coords)
    along = [_sums(tile.weights, column, rest[:, lane]) for column in columns]
    pairs = [(i, j) for i in range(len(columns)) for j in range(i, len(columns))]
    whole = [_sums(tile.weights, columns[i], columns[j]) for i, j in pairs]
    parts = [[_sums(tile.weights, column, b[:, lane]) for b in basis] for column in columns]
    return _gain(along, whole, parts), along[0]


def _columns_of(
    term: Term, shapes: FloatArray, coords: tuple[FloatArray, ...]
) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
    """Columns (n, k) of shapes (s, k), at most 1 in magnitude, and their scales (k,)."""
    with np.errstate(all="ignore"):
        parts = term.columns(tuple(coord[:, None] for coord in coords), *shapes)
    whole = (coords[0].size, shapes.shape[1])
    found = [_scaled(np.broadcast_to(part, whole).T) for part in parts]
    return tuple(column.T for column, _ in found), tuple(scale for _, scale in found)


def _moved_inside(
    term: Term, found: _Found, coords: tuple[FloatArray, ...], limits: Limits
) -> _Found:
    """What was found, with shapes that are clipped to the limits."""
    shape = limits.of(term.shape_places)
    clipped = shape.clipped(found.shapes)
    moved = np.any(clipped != found.shapes, axis=0)
    if not moved.any():
        return found
    return _chosen(moved, _Found(clipped, *_columns_of(term, clipped, coords)), found)


def _gains(
    table: _Table, weights: FloatArray, basis: Sequence[FloatArray], rest: FloatArray
) -> tuple[FloatArray, FloatArray]:  # (g, L) each
    """What each shape takes off the sum of squares of each series.

    Also a number with the sign of the coefficient of the first column.
    """
    along = [_product(column, weights * rest) for column in table.columns]
    whole = [_product(column, weights) for column in table.products]
    parts = [[_product(c, weights * b) for b in basis] for c in table.columns]
    return _gain(along, whole, parts), along[0]


def _gain(
    along: Sequence[FloatArray], whole: Sequence[FloatArray], parts: Sequence[Sequence[FloatArray]]
) -> FloatArray:
    """What one or two columns take off the sum of squares.

    Parameters
    ----------
    along : sequence of ndarray
        Products of each column and the rest.
    whole : sequence of ndarray
        Products of two columns, as in a table.
    parts : sequence of sequence of ndarray
        Products of each column and each vector of the basis.
    """
    first = whole[0] - sum(part**2 for part in parts[0])
    is_first = first > _LEFT * whole[0]
    gains = np.where(is_first, along[0] ** 2 / first, 0.0)
    if len(along) == 2:  # the second column without its part in the first
        cross = whole[1] - sum(p * q for p, q in zip(*parts, strict=True))
        share = np.where(is_first, cross / first, 0.0)
        second = whole[2] - sum(part**2 for part in parts[1]) - share * cross
        left = along[1] - share * along[0]
        gains += np.where(second > _LEFT * whole[2], left**2 / second, 0.0)
    return np.nan_to_num(gains, nan=-1.0, posinf=-1.0, copy=False)


def _product(table: FloatArray, values: FloatArray) -> FloatArray:
    """Product of a table (g, n) and values (n, L), in pieces that BLAS computes in one thread."""
    g, (n, n_lanes) = len(table), values.shape
    lanes = n_lanes if n * n_lanes * _LEAST_ROWS <= _PRODUCT_SIZE else _FEW_LANES
    rows = max(_PRODUCT_SIZE // (n * lanes), _LEAST_ROWS)
    total = np.empty((g, n_lanes))
    for j in range(0, n_lanes, lanes):
        cut = np.ascontiguousarray(values[:, j : j + lanes])
        for i in range(0, g, rows):
            np.matmul(table[i : i + rows], cut, out=total[i : i + rows, j : j + lanes])
    return total


def _assembled(
    terms: Sequence[Term], found: Sequence[_Found], tile: _Tile, size: FloatArray
) -> list[FloatArray]:
    """Parameters (p) of each series: the shapes, and the linear parameters that fit best."""
    order = sorted(range(len(found)), key=lambda i: not found[i].is_linear)
    fitted = iter(_linear_fit([found[i] for i in order], tile))
    own = {i: [next(fitted) / scale * size for scale in found[i].scales] for i in order}
    return [
        np.asarray(value)
        for i, term in enumerate(terms)
        for value in term.assemble(found[i].shapes, np.stack(own[i]))
    ]


def _linear_fit(found: Sequence[_Found], tile: _Tile) -> list[FloatArray]:
    """Least-squares coefficients (L,) of all columns; 0 for a column that depends on others."""
    basis, factor = _orthonormal(found, tile.weights)
    targets = [_sums(tile.weights, b, tile.y) for b in basis]
    coefficients: list[FloatArray] = []
    for j in reversed(range(len(basis))):  # back substitution, from the last column
        known = range(j + 1, len(basis))
        rest = sum(factor[j][k] * coefficients[len(basis) - 1 - k] for k in known)
        pivot = factor[j][j]
        coefficients.append(np.where(pivot > 0.0, (targets[j] - rest) / pivot, 0.0))
    return coefficients[::-1]


def _linear_first(found: Sequence[_Found]) -> list[_Found]:
    """The terms with those that are linear before the others."""
    return sorted(found, key=lambda f: not f.is_linear)


def _orthonormal(
    found: Sequence[_Found], weights: FloatArray
) -> tuple[list[FloatArray], list[list[Any]]]:
    """Orthonormal basis of all columns (n, L) in each lane, by modified Gram-Schmidt.

    Returns
    -------
    basis : list of ndarray, each of shape (n, L)
        0 for a column that depends on those before it.
    factor : list of list of ndarray, each of shape (L,)
        Upper triangle: ``columns[k] = Σ_j factor[j][k] basis[j]``.
    """
    columns = [(column, f.is_linear) for f in found for column in f.columns]
    basis: list[FloatArray] = []
    factor: list[list[Any]] = [[0.0] * len(columns) for _ in columns]
    for k, (column, is_linear) in enumerate(columns):
        rest, whole = column, _sums(weights, column, column)
        for j, b in enumerate(basis):
            factor[j][k] = _sums(weights, b, rest)
            rest = rest - factor[j][k] * b
        left = _sums(weights, rest, rest)
        least = (_LEFT_OF_LINEAR if is_linear else _LEFT) * whole
        norm = np.where(left > least, np.sqrt(left), 0.0)
        factor[k][k] = norm
        basis.append(np.where(norm > 0.0, rest / norm, 0.0))
    return basis, factor


def _sums(weights: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """Weighted products (L,) of columns (n, L), added row by row."""
    total: FloatArray = np.einsum("ij,ij->j", weights * a, b)
    return total


def _table_of(term: Term, coords: tuple[FloatArray, ...]) -> _Table:
    return _table(term, tuple(coord.tobytes() for coord in coords))


@lru_cache(_MAX_TABLES)
def _table(term: Term, blobs: tuple[bytes, ...]) -> _Table:
    """Table of a term for coordinates, which are passed as bytes: tables are kept by them."""
    coords = tuple(np.frombuffer(blob) for blob in blobs)
    shapes = np.empty((1, 0)) if term.is_linear else term.coarse_shapes(coords)
    with np.errstate(all="ignore"):
        parts = term.columns(coords, *shapes.T[:, :, None])
        whole = [np.broadcast_to(part, (len(shapes), coords[0].size)) for part in parts]
    columns, scales = zip(*map(_scaled, whole), strict=True)
    pairs = [(i, j) for i in range(len(columns)) for j in range(i, len(columns))]
    products = tuple(columns[i] * columns[j] for i, j in pairs)
    return _Table(shapes, reach_of(shapes), columns, scales, products)


def _scaled(columns: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Columns (g, n) of at most 1 in magnitude, 0 where they are not finite; and their scales."""
    finite = np.where(np.isfinite(columns), columns, 0.0)
    scale = np.max(np.abs(finite), axis=1)
    scale = np.where(scale > 0.0, scale, 1.0)
    return np.ascontiguousarray(finite / scale[:, None]), scale
