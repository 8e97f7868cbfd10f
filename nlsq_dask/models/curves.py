"""Decays, powers, oscillations, steps, and the constants and lines used as backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from nlsq_dask.models.base import Term
from nlsq_dask.models.search import (
    FloatArray,
    Samples,
    best_shape,
    centers_and_widths,
    coarse_places,
    geometric,
    spacing_of,
    span_of,
)

# exp(600) is finite, also when multiplied by an amplitude.
_LARGEST_EXPONENT = 600.0

# Frequencies are tried in steps of 1 / (16 T) for data of length T: a sine and cosine that are off
# by half a step lose 1 % of the sum of squares that they explain.
_STEPS_PER_CYCLE = 16

# Peaks of the spectrum that are compared.
_N_SPECTRAL_PEAKS = 8


class Constant(Term):
    """The same value everywhere, ``offset``; a background for other models.

    Takes x of any number of coordinates.

    Parameters
    ----------
    prefix : str
        Put before the name of the parameter.

    Attributes
    ----------
    names : tuple of str
        offset (in units of y).

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.Constant()(np.array([1.0, 3.0]), 0.5)
    array([0.5, 0.5])
    """

    base_names = ("offset",)
    is_linear = True
    n_coords = None

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the constant at each x."""
        shape = np.broadcast_shapes(*(np.shape(coord) for coord in coords), np.shape(params[0]))
        return xp.broadcast_to(params[0], shape)


class Linear(Term):
    """Straight line, ``slope * x + intercept``; a background for other models.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        slope (units of y per unit of x), intercept (value at x = 0, in units of y).

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.Linear()(np.array([1.0, 3.0]), 2.0, 0.5)
    array([2.5, 6.5])
    """

    base_names = ("slope", "intercept")
    is_linear = True

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:  # noqa: ARG002
        """Value of the line."""
        return params[0] * coords[0] + params[1]

    def columns(self, coords: tuple[Any, ...], *shape: Any) -> Sequence[Any]:  # noqa: ARG002
        """The coordinate and one."""
        return coords[0], np.ones_like(coords[0])


class ExponentialDecay(Term):
    """Exponential decay, ``amplitude * exp(-x / tau)``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (value at x = 0, in units of y), tau (lifetime, in which the value falls to 1/e;
        in units of x).

    Notes
    -----
    Half-life: ``tau * ln 2``. Rate: ``1 / tau``. A negative tau is growth; the guess looks for
    decays only. Where the data begin far from x = 0 (in lifetimes), shift x: otherwise the
    amplitude at 0 is ``exp(x / tau)`` times the values in the data.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.ExponentialDecay()(np.array([0.0, 3.0]), 2.0, 3.0).round(4)
    array([2.    , 0.7358])
    """

    base_names = ("amplitude", "tau")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the decay."""
        amplitude, tau = params
        return amplitude * xp.exp(-coords[0] / tau)

    def search(self, samples: Samples) -> FloatArray:
        """Lifetime, on a grid."""
        bins = samples.binned()
        return best_shape(bins, _lifetimes(bins.coords[0])[:, None], self.columns)[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 1)
        """Lifetimes."""
        return _lifetimes(coords[0], 2.0)[:, None]


class BiexponentialDecay(Term):
    """Two exponential decays, with a fast and a slow lifetime.

    ``amplitude_fast * exp(-x / tau_fast) + amplitude_slow * exp(-x / tau_slow)``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude_fast, tau_fast, amplitude_slow, tau_slow (amplitudes at x = 0, in units of y;
        lifetimes in units of x).

    Notes
    -----
    Exchanging the two decays does not change the value. The guess has ``tau_fast < tau_slow``, and
    a fit that starts there rarely leaves it. Lifetimes whose ratio is below about 2 can hardly be
    told apart in noise.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.BiexponentialDecay()(np.array([0.0, 3.0]), 2.0, 1.0, 1.0, 3.0).round(4)
    array([3.    , 0.4675])
    """

    base_names = ("amplitude_fast", "tau_fast", "amplitude_slow", "tau_slow")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the two decays."""
        amplitude_fast, tau_fast, amplitude_slow, tau_slow = params
        fast = amplitude_fast * xp.exp(-coords[0] / tau_fast)
        return fast + amplitude_slow * xp.exp(-coords[0] / tau_slow)

    @property
    def shape_places(self) -> tuple[int, ...]:
        """Places of the lifetimes."""
        return 1, 3

    def columns(self, coords: tuple[Any, ...], *shape: Any) -> Sequence[Any]:
        """The two decays, each from 1 at x = 0."""
        return [np.exp(-coords[0] / tau) for tau in shape]

    def assemble(self, shape: FloatArray, coefficients: FloatArray) -> Sequence[float]:
        """Amplitude and lifetime of each decay."""
        return coefficients[0], shape[0], coefficients[1], shape[1]

    def search(self, samples: Samples) -> FloatArray:
        """Pair of lifetimes, on a grid."""
        bins = samples.binned()
        return best_shape(bins, _pairs(_lifetimes(bins.coords[0])), self.columns)[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 2)
        """Pairs of lifetimes."""
        return _pairs(_lifetimes(coords[0], 2.0))


class PowerLaw(Term):
    """Power law, ``amplitude * x ** exponent``, for x > 0.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (value at x = 1, in units of y), exponent.

    Notes
    -----
    Where x < 0 the value is NaN, and so is a derivative at x = 0: leave such rows out. Where x is
    far from 1, amplitude and exponent are strongly correlated; divide x by a typical value.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.PowerLaw()(np.array([1.0, 4.0]), 2.0, -0.5)
    array([2., 1.])
    """

    base_names = ("amplitude", "exponent")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the power law."""
        amplitude, exponent = params
        return amplitude * xp.power(coords[0], exponent)

    def search(self, samples: Samples) -> FloatArray:
        """Exponent between -10 and 10, on a grid of 0.1."""
        positive = samples.coords[0] > 0
        if not positive.any():
            return np.array([1.0])
        bins = samples.rows(positive).binned()
        # Powers of a ratio do not overflow, and span the same space.
        ratios = bins.coords[0] / np.exp(np.mean(np.log(bins.coords[0])))
        candidates = np.arange(-100, 101)[:, None] / 10
        return best_shape(bins, candidates, lambda _, exponent: [ratios**exponent])[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # noqa: ARG002
        """Exponents between -10 and 10, (g, 1)."""
        return np.arange(-20, 21)[:, None] / 2


class Sinusoid(Term):
    """Sinusoidal oscillation, ``amplitude * sin(2 pi frequency x + phase)``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (half of the distance from trough to crest, in units of y), frequency (cycles per
        unit of x), phase (at x = 0, in radians).

    Notes
    -----
    Period: ``1 / frequency``. Angular frequency: ``2 pi frequency``. A phase that is larger by
    ``2 pi``, or by ``pi`` with the other sign of the amplitude, is the same oscillation; the guess
    has a positive amplitude and a phase between -pi and pi. It looks at frequencies from a quarter
    of a cycle in the range of x to half a cycle per sample.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.Sinusoid()(np.array([0.0, 0.25]), 2.0, 1.0, np.pi / 6).round(4)
    array([1.    , 1.7321])
    """

    base_names = ("amplitude", "frequency", "phase")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the oscillation."""
        amplitude, frequency, phase = params
        return amplitude * xp.sin(2 * np.pi * frequency * coords[0] + phase)

    @property
    def shape_places(self) -> tuple[int, ...]:
        """Place of the frequency."""
        return (1,)

    def columns(self, coords: tuple[Any, ...], *shape: Any) -> Sequence[Any]:
        """Sine and cosine."""
        angle = 2 * np.pi * shape[0] * coords[0]
        return np.sin(angle), np.cos(angle)

    def assemble(self, shape: FloatArray, coefficients: FloatArray) -> Sequence[float]:
        """Amplitude and phase of a sum of sine and cosine."""
        of_sine, of_cosine = coefficients
        return np.hypot(of_sine, of_cosine), shape[0], np.arctan2(of_cosine, of_sine)

    def search(self, samples: Samples) -> FloatArray:
        """Frequency: the largest peaks of the spectrum, compared by what they explain."""
        step = 1 / (_STEPS_PER_CYCLE * span_of(samples.coords[0]))
        # Low frequencies are tried on a grid, as the peak of the other terms at zero hides them.
        # Only they can use bins: a faster oscillation has cycles within a bin.
        cycles = np.arange(0.25, 3.0, 1 / _STEPS_PER_CYCLE, dtype=np.float64)[:, None]
        slow = np.multiply(cycles, _STEPS_PER_CYCLE * step, dtype=np.float64)
        slowest = best_shape(samples.binned(), slow, self.columns)[0]
        fast = _spectral_peaks(samples)[:, None]
        coarse, _ = best_shape(samples, np.concatenate([slowest[None], fast]), self.columns)
        around: FloatArray = np.arange(-4, 5)[:, None] * step + coarse
        return best_shape(samples, around[around[:, 0] >= slow[0, 0]], self.columns)[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 1)
        """Frequencies up to half a cycle per sample: four for each further cycle in the range."""
        x = coords[0]
        highest = 0.5 * (np.unique(x).size - 1)
        cycles = np.arange(0.25, max(highest, 0.25) + 0.125, 0.25, dtype=np.float64)
        return cycles[:, None] / span_of(x)


class Logistic(Term):
    """Logistic step, ``amplitude / (1 + exp(-rate (x - center)))``.

    Parameters
    ----------
    prefix : str
        Put before the names of the parameters.

    Attributes
    ----------
    names : tuple of str
        amplitude (value that is approached on one side, with 0 on the other; in units of y), center
        (where half of it is reached, in units of x), rate (per unit of x; negative for a step
        down).

    Notes
    -----
    Steepest slope: ``amplitude * rate / 4``. Distance from 10 % to 90 %: ``4.394 / rate``, with
    4.394 = 2 ln 9. Beside a `Constant`, a step up is also a step down of the other sign on another
    constant; the guess has the positive rate then.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import models
    >>> models.Logistic()(np.array([1.0, 3.0]), 2.0, 1.0, 0.5).round(4)
    array([1.    , 1.4621])
    """

    base_names = ("amplitude", "center", "rate")

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the step, accurate in both tails."""
        amplitude, center, rate = params
        return amplitude * xp.exp(-xp.logaddexp(0.0, -rate * (coords[0] - center)))

    def search(self, samples: Samples) -> FloatArray:
        """Center, also half a range beyond the data, and rate of either sign, on a grid."""
        bins = samples.binned()
        centers, widths = centers_and_widths(bins.coords[0], margin=0.5).T
        rates = 2 / widths
        candidates = np.column_stack([np.tile(centers, 2), np.concatenate([rates, -rates])])
        return best_shape(bins, candidates, self.columns)[0]

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, 2)
        """Centers and rates of either sign."""
        centers, widths = coarse_places(coords[0], margin=0.5).T
        rates = 2 / widths
        return np.column_stack([np.tile(centers, 2), np.concatenate([rates, -rates])])


def _pairs(lifetimes: FloatArray) -> FloatArray:  # (g, 2)
    """Pairs of a shorter and a longer lifetime."""
    fast, slow = np.triu_indices(lifetimes.size, k=1)
    return np.column_stack([lifetimes[fast], lifetimes[slow]])


def _lifetimes(x: FloatArray, factor: float = 1.25) -> FloatArray:
    """Lifetimes visible in sorted x, for which the decay is finite at x = 0."""
    least = max(0.5 * spacing_of(x), np.abs(x).max() / _LARGEST_EXPONENT)
    return geometric(min(least, span_of(x)), 30 * span_of(x), factor)


def _spectral_peaks(samples: Samples) -> FloatArray:
    """Frequencies of the largest peaks of the spectrum, largest first.

    Each row is added to the nearest point of a mesh that is four times as fine and four times as
    long as the rows. The spectrum of the mesh equals that of the rows within a few percent, up to
    half a cycle per sample. A choice of candidates needs no more.
    """
    x, span = samples.coords[0], span_of(samples.coords[0])
    rest = samples.y - samples.others @ np.linalg.lstsq(samples.others, samples.y, rcond=1e-10)[0]
    n_distinct = np.unique(x).size
    n_mesh = 1 << int(np.ceil(np.log2(4 * n_distinct)))
    cell = np.round((x - x.min()) / span * (n_mesh - 1)).astype(np.int64)
    mesh = np.bincount(cell, weights=rest, minlength=4 * n_mesh)
    highest = 2 * n_distinct + 1  # half a cycle per sample, in units of 1 / (4 span)
    power = np.abs(np.fft.rfft(mesh))[: highest + 1] ** 2
    inner = power[1:-1]
    peaks = np.flatnonzero((inner >= power[:-2]) & (inner > power[2:])) + 1
    largest = peaks[np.argsort(-power[peaks], kind="stable")[:_N_SPECTRAL_PEAKS]]
    return largest * (n_mesh - 1) / (4 * n_mesh * span)
