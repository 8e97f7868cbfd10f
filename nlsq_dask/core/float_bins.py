"""Counts of values in bins that need no choice: by sign, exponent and leading bits of float64.

A bin holds the values whose float64 numbers agree in all but the last bits of the fraction. So each
factor of two has 2^BITS bins of one width, and all tasks of a pass have the same bins, whatever the
spread of the values: counts add. The edges of a bin are whole multiples of its width. So a bar
whose width is a power of two, and at least that of the bins in it, holds whole bins alone, and a
picture of bars is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray

Integers = NDArray[np.int64]

# Leading bits of the fraction by which values are told apart: bars are exact up to 128 times their
# width on either side of zero.
BITS = 6

# Bits of the fraction of a float64.
FRACTION = 52

# Quartiles of a normal distribution are so many standard deviations apart.
QUARTILES_APART = 1.349

# Standard deviations on either side of the median that bars show, by the quartiles.
SHOWN_DEVIATIONS = 5.0

# Fewest and most bars. Between them their number grows with the cubic root of the values, as the
# least error of a histogram asks for (Scott, Biometrika 66, 1979).
FEWEST_BARS, MOST_BARS, BARS_A_ROOT = 10, 50, 5.0

# Least exponent of the width of a bar, whose multiples are normal numbers.
LEAST_EXPONENT = -1000


@dataclass(frozen=True, slots=True)
class FloatBins:
    """Counts of values.

    Attributes
    ----------
    bins : ndarray, shape (k,), int64
        Numbers of the bins that are not empty, ascending as their values are.
    counts : ndarray, shape (k,), int64
    """

    bins: Integers
    counts: Integers

    @classmethod
    def of(cls, values: FloatArray) -> Self:
        """Counts of values (n,); those that are not finite do not count."""
        finite = np.asarray(values[np.isfinite(values)], np.float64)
        sizes = np.abs(finite).view(np.int64) >> (FRACTION - BITS)
        return cls(*np.unique(np.where(finite < 0.0, -1 - sizes, sizes), return_counts=True))

    @classmethod
    def from_bytes(cls, values: Mapping[str, Any]) -> Self:
        """Counts from :meth:`as_bytes`."""
        bins, counts = (np.frombuffer(values[name], "<i8") for name in ("bins", "counts"))
        return cls(bins.astype(np.int64), counts.astype(np.int64))

    def as_bytes(self) -> dict[str, bytes]:
        """The counts for a message: Dask looks at each number of a list, for a millisecond."""
        return {
            "bins": self.bins.astype("<i8").tobytes(),
            "counts": self.counts.astype("<i8").tobytes(),
        }

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def __add__(self, other: FloatBins) -> FloatBins:
        return total([self, other])

    def bars(self) -> tuple[FloatArray, Integers]:
        """Edges (k + 1,) and counts (k,) of bars of one width about the median, for a picture.

        The bars reach as far as the values, but at most SHOWN_DEVIATIONS to either side. Values
        that are farther off are not in the counts.
        """
        if not self.n:
            return np.zeros(0), np.zeros(0, np.int64)
        middles = _middles(self.bins)
        cumulated = np.cumsum(self.counts)
        at = np.searchsorted(cumulated, np.array([0.25, 0.5, 0.75]) * cumulated[-1])
        first, median, third = middles[at]
        with np.errstate(over="ignore"):  # of values near the largest of float64
            reach = SHOWN_DEVIATIONS / QUARTILES_APART * (third - first)
            near = np.abs(middles - median) <= reach
        shown, counts = middles[near], self.counts[near]
        exponent = _exponent(shown, self.n)
        numbers = np.floor(np.ldexp(shown, -exponent)).astype(np.int64)
        low = numbers[0]
        heights = np.zeros(numbers[-1] - low + 1, np.int64)
        np.add.at(heights, numbers - low, counts)
        edges = low + np.arange(heights.size + 1, dtype=np.float64)
        largest = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            return np.clip(np.ldexp(edges, exponent), -largest, largest), heights


def total(parts: Sequence[FloatBins]) -> FloatBins:
    """The sum of any number of counts."""
    none = np.zeros(0, np.int64)
    bins = np.concatenate([none, *(part.bins for part in parts)])
    counts = np.concatenate([none, *(part.counts for part in parts)])
    numbers, places = np.unique(bins, return_inverse=True)
    added = np.zeros(numbers.size, np.int64)
    np.add.at(added, places, counts)
    return FloatBins(numbers, added)


def _middles(bins: Integers) -> FloatArray:
    """The middle of each bin."""
    sizes = np.where(bins < 0, -1 - bins, bins)
    low = (sizes << (FRACTION - BITS)).view(np.float64)
    half = np.int64(1) << (FRACTION - BITS - 1)
    middles = ((sizes << (FRACTION - BITS)) + half).view(np.float64)
    return np.where(bins < 0, -1.0, 1.0) * np.where(low > 0.0, middles, 0.0)


def _exponent(middles: FloatArray, n: int) -> int:
    """Exponent of the width of bars for bins (k,) that are shown, of `n` values."""
    most = min(max(BARS_A_ROOT * n ** (1 / 3), FEWEST_BARS), MOST_BARS)
    width = float(middles[-1] / most - middles[0] / most)
    finest = float(np.max(np.abs(middles))) / (1 << BITS)
    # Powers of two above the width, and at least the width of the largest bin.
    found = [math.frexp(width)[1]] if width else []
    found += [math.frexp(finest)[1] - 1] if finest else []
    return max(max(found, default=0), LEAST_EXPONENT)
