"""Peaks: Gaussian, Lorentzian and Voigt lines, and the Gaussian of two coordinates.

The amplitude of each is its height, so that peaks of different kinds can be exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from nlsq_dask.models.base import Term
from nlsq_dask.models.faddeeva import faddeeva_real
from nlsq_dask.models.search import (
    MAX_BINS,
    FloatArray,
    Samples,
    best_shape,
    centers_and_widths,
    coarse_places,
    geometric,
    span_of,
)

# Voigt lines of one full width at half maximum, as σ and γ in its units: almost Gaussian, of equal
# parts, almost Lorentzian. From f = 0.5346 f_L + sqrt(0.2166 f_L² + f_G²), f_L = 2γ, f_G = 2.3548σ
# (Olivero & Longbothum, J. Quant. Spectrosc. Radiat. Transfer 17, 1977) for f_L / f_G = 1/4, 1, 4.
_VOIGT_PARTS = np.array([[0.3684, 0.1085], [0.2593, 0.3053], [0.1003, 0.4723]])
_FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))

# σ / γ of a line that is the Lorentzian to rounding.
_NO_SIGMA = 1e-8

# Cells a coordinate, in which the rows of two coordinates are averaged; their number is MAX_BINS.
_CELLS = math.isqrt(MAX_BINS)

# Closer looks at a feature that is small beside the range: each takes in a few cells of the last.
_MAX_ZOOMS = 3


class Peak(Term):
    """A peak of one coordinate, with a center and a width that a peak of another kind may have."""

    def half_width(self, shape: FloatArray) -> FloatArray:
        """Half of the full width at half maximum (...) of shapes (s, ...)."""
        raise NotImplementedError

    def shape_of(self, center: FloatArray, half_width: FloatArray) -> FloatArray:
        """Shapes (s, ...) of centers and half widths at half maximum, (...) each."""
        raise NotImplementedError


def exchanges(terms: Sequence[Term]) -> list[tuple[int, int]]:
    """Pairs of peaks of two kinds: a fit rarely finds out that each has the place of the other."""
    peaks = [i for i, term in enumerate(terms) if isinstance(term, Peak)]
    return [(i, j) for i in peaks for j in peaks if i < j and type(terms[i]) is not type(terms[j])]


class Gaussian(Peak):
    r"""Gaussian peak, ``amplitude * exp(-(x - center)² / (2 sigma²))``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (height, in units of y), center, sigma (standard deviation; both in units of x).

    Notes
    -----
    Full width at half maximum: ``2.3548 sigma``, with 2.3548 = 2 sqrt(2 ln 2). Area:
    ``amplitude * sigma * sqrt(2 pi)``. The sign of sigma does not matter: take its absolute value,
    or fit with ``bounds={"sigma": (0, inf)}``.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> peak = models.Gaussian()
    >>> peak.names
    ('amplitude', 'center', 'sigma')
    >>> peak(np.array([1.0, 3.0]), 2.0, 1.0, 2.0).round(4)
    array([2.    , 1.2131])
    """

    base_names = ("amplitude", "center", "sigma")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the peak."""
        amplitude, center, sigma = params
        return amplitude * xp.exp(-0.5 * ((coords[0] - center) / sigma) ** 2)

    def search(self, samples: Samples) -> FloatArray:
        """Center and width, on a grid."""
        return _search_peak(self, samples)

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 2)
        """Centers and widths."""
        return coarse_places(coords[0])

    def half_width(self, shape: FloatArray) -> FloatArray:
        """Half width at half maximum."""
        return np.asarray(0.5 * _FWHM_OF_SIGMA * np.abs(shape[1]))

    def shape_of(self, center: FloatArray, half_width: FloatArray) -> FloatArray:
        """Center and sigma."""
        return np.stack([center, 2.0 * half_width / _FWHM_OF_SIGMA])


class Lorentzian(Peak):
    """Lorentzian peak, ``amplitude * gamma² / ((x - center)² + gamma²)``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (height, in units of y), center, gamma (half width at half maximum; both in units
        of x).

    Notes
    -----
    Full width at half maximum: ``2 gamma``. Area: ``pi * amplitude * gamma``. The sign of gamma
    does not matter.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.Lorentzian()(np.array([1.0, 3.0]), 2.0, 1.0, 2.0)
    array([2., 1.])
    """

    base_names = ("amplitude", "center", "gamma")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the peak."""
        amplitude, center, gamma = params
        return amplitude / (1 + xp.square((coords[0] - center) / gamma))

    def search(self, samples: Samples) -> FloatArray:
        """Center and width, on a grid."""
        return _search_peak(self, samples)

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 2)
        """Centers and widths."""
        return coarse_places(coords[0])

    def half_width(self, shape: FloatArray) -> FloatArray:
        """Half width at half maximum."""
        return np.asarray(np.abs(shape[1]))

    def shape_of(self, center: FloatArray, half_width: FloatArray) -> FloatArray:
        """Center and gamma."""
        return np.stack([center, half_width])


class Voigt(Peak):
    """Voigt peak: a Lorentzian line, broadened by a Gaussian, scaled to a height.

    ``amplitude * Re w(z) / Re w(z₀)``, with ``z = (x - center + i gamma) / (sigma sqrt(2))``,
    ``z₀ = i gamma / (sigma sqrt(2))`` and the Faddeeva function w.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (height, in units of y), center, sigma (standard deviation of the Gaussian), gamma
        (half width at half maximum of the Lorentzian; all three in units of x).

    Notes
    -----
    Area: ``amplitude / scipy.special.voigt_profile(0, sigma, gamma)``. Full width at half maximum
    to 0.03 %: ``f = 0.5346 f_L + sqrt(0.2166 f_L² + f_G²)`` with ``f_L = 2 gamma`` and
    ``f_G = 2.3548 sigma`` (Olivero & Longbothum, J. Quant. Spectrosc. Radiat. Transfer 17, 1977).

    With gamma = 0 it is the `Gaussian`, with sigma = 0 the `Lorentzian`; with both zero it is NaN.
    The sign of sigma does not matter. That of gamma does: below zero the function goes on
    analytically, so that a fit of a line without Lorentzian part is not stopped at a kink; it
    means nothing there, and ``bounds={"gamma": (0, inf)}`` keeps it out.

    w is computed by Weideman's expansion (SIAM J. Numer. Anal. 31, 1994) and its asymptotic series;
    the error of the value is about 2e-15 of w(0) = 1.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> line = models.Voigt()
    >>> line(np.array([1.0, 3.0]), 2.0, 1.0, 1.5, 0.5).round(4)
    array([2.    , 1.0315])
    """

    base_names = ("amplitude", "center", "sigma", "gamma")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the peak."""
        amplitude, center, sigma, gamma = params
        width = xp.where(sigma == 0, _NO_SIGMA * gamma, xp.abs(sigma)) * math.sqrt(2)
        height = faddeeva_real(xp, 0.0, gamma / width)
        return amplitude * faddeeva_real(xp, (coords[0] - center) / width, gamma / width) / height

    def search(self, samples: Samples) -> FloatArray:
        """Center and width of a Gaussian, on a grid, and then the two widths there."""
        bins = samples.binned()
        center, sigma = _search_peak(Gaussian(), bins)
        widths = geometric(sigma / 3, 3 * sigma, 1.3) * _FWHM_OF_SIGMA
        pairs = (widths[:, None, None] * _VOIGT_PARTS).reshape(-1, 2)
        candidates = np.column_stack([np.full(len(pairs), center), pairs])
        return best_shape(bins, candidates, self.columns)[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 3)
        """Centers, and widths in equal parts."""
        centers, widths = coarse_places(coords[0]).T
        parts = _FWHM_OF_SIGMA * widths[:, None] * _VOIGT_PARTS[1]
        return np.column_stack([centers, parts])

    def half_width(self, shape: FloatArray) -> FloatArray:
        """Half width at half maximum, to 0.03 % (Olivero and Longbothum 1977, JQSRT 17, 233)."""
        gaussian, lorentzian = _FWHM_OF_SIGMA * shape[1], 2.0 * shape[2]
        whole = 0.5346 * lorentzian + np.sqrt(0.2166 * lorentzian**2 + gaussian**2)
        return np.asarray(0.5 * whole)

    def shape_of(self, center: FloatArray, half_width: FloatArray) -> FloatArray:
        """Center, and widths in equal parts."""
        sigma, gamma = 2.0 * _VOIGT_PARTS[1]
        return np.stack([center, sigma * half_width, gamma * half_width])


class Gaussian2D(Term):
    """Gaussian peak over two coordinates, with axes of any direction.

    ``amplitude * exp(-(u² - 2 rho u v + v²) / (2 (1 - rho²)))`` with
    ``u = (x - center_x) / sigma_x`` and ``v = (y - center_y) / sigma_y``, for coordinates
    ``(x, y)``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (height), center_x, center_y, sigma_x, sigma_y (standard deviations along the
        coordinates), rho (their correlation, between -1 and 1).

    Notes
    -----
    The correlation describes what an angle would, but also of a round peak, where an angle is
    undetermined: the covariance matrix of the peak is ``[[sigma_x², c], [c, sigma_y²]]`` with
    ``c = rho * sigma_x * sigma_y``; the roots of its eigenvalues are the widths along the principal
    axes, and the major axis is ``0.5 * arctan2(2 c, sigma_x² - sigma_y²)`` from the x axis.
    Volume: ``2 pi * amplitude * sigma_x * sigma_y * sqrt(1 - rho²)``. The signs of both sigmas
    together do not matter, and that of one is that of rho.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> x, y = np.meshgrid([0.0, 1.0], [0.0, 2.0])
    >>> models.Gaussian2D()((x, y), 2.0, 0.0, 0.0, 1.0, 2.0, 0.0).round(4)
    array([[2.    , 1.2131],
           [1.2131, 0.7358]])
    """

    base_names = ("amplitude", "center_x", "center_y", "sigma_x", "sigma_y", "rho")
    n_coords = 2

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the peak."""
        amplitude, center_x, center_y, sigma_x, sigma_y, rho = params
        u = (coords[0] - center_x) / sigma_x
        v = (coords[1] - center_y) / sigma_y
        return amplitude * xp.exp(-0.5 * (u * u - 2 * rho * u * v + v * v) / (1 - rho * rho))

    def search(self, samples: Samples) -> FloatArray:
        """Center and widths, on a grid of the range and then of what a peak takes up of it."""
        shape = self._search_range(samples)
        for _ in range(_MAX_ZOOMS):
            cell = np.array([span_of(coord) for coord in samples.coords]) / _CELLS
            center, sigma = shape[:2], shape[2:4]
            if samples.y.size <= MAX_BINS or np.all(sigma > 2 * cell):
                break
            reach = np.maximum(4 * sigma, 3 * cell)
            inside = np.logical_and.reduce(
                [np.abs(samples.coords[i] - center[i]) <= reach[i] for i in range(2)]
            )
            samples = samples.rows(inside)
            shape = self._search_range(samples)
        return shape

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 5)
        """Centers and widths of round peaks, in units of the ranges of the coordinates."""
        low = np.array([coord.min() for coord in coords])
        span = np.array([span_of(coord) for coord in coords])
        grids = []
        for width in geometric(max(1 / _CELLS, coords[0].size ** -0.5), 0.5, 2.0):
            steps = np.linspace(0, 1, int(np.ceil(1 / width)) + 1)
            places = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
            widths = np.broadcast_to(width * span, places.shape)
            grids.append(np.column_stack([low + places * span, widths, np.zeros(len(places))]))
        return np.concatenate(grids)

    def _search_range(self, samples: Samples) -> FloatArray:
        """Shape found on the whole range of the samples."""
        low = np.array([coord.min() for coord in samples.coords])
        span = np.array([span_of(coord) for coord in samples.coords])
        bins = _cells(samples)
        steps = np.linspace(0, 1, _CELLS)
        widths = geometric(0.5 / _CELLS, 0.5, 1.6)
        grid = np.stack(np.meshgrid(steps, steps, widths, indexing="ij"), axis=-1).reshape(-1, 3)
        center = low + grid[:, :2] * span
        round_ones = np.column_stack([center, grid[:, 2:] * span, np.zeros(len(grid))])
        shape, _ = best_shape(bins, round_ones, self.columns)
        factors = np.geomspace(0.25, 4, 9)
        rhos = np.array([0.0, -0.8, -0.5, 0.5, 0.8])
        grid = np.stack(np.meshgrid(factors, factors, rhos, indexing="ij"), axis=-1).reshape(-1, 3)
        place = np.broadcast_to(shape[:2], (len(grid), 2))
        ovals = np.column_stack([place, grid[:, :2] * shape[2:4], grid[:, 2:]])
        return best_shape(bins, ovals, self.columns)[0]


def _search_peak(peak: Term, samples: Samples) -> FloatArray:
    bins = samples.binned()
    return best_shape(bins, centers_and_widths(bins.coords[0]), peak.columns, samples.slack)[0]


def _cells(samples: Samples) -> Samples:
    """Means over the cells of a lattice; the samples themselves if they are few."""
    if samples.y.size <= MAX_BINS:
        return samples
    indices = []
    for coord in samples.coords:
        fraction = (coord - coord.min()) / span_of(coord)
        indices.append(np.minimum((fraction * _CELLS).astype(np.int64), _CELLS - 1))
    return samples.means(indices[0] * _CELLS + indices[1])
