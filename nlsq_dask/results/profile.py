"""Profiles of the sum of squares: how it rises where one parameter is held off its estimate.

With S(θ_j) the least sum of squares over all other parameters, S its minimum and s² the variance of
the rows (1 where sigma is absolute, else S / dof), the signed root

    τ(θ_j) = sign(θ_j - θ̂_j) √((S(θ_j) - S) / s²)

is θ_j less its estimate in standard errors if the model is linear. If it is not, τ still follows
Student's (or the normal) distribution far better than θ_j does. The values with |τ| at most the
quantile t are the likelihood interval of θ_j, which does not depend on how the model is
parametrised (Bates & Watts, "Nonlinear Regression Analysis and Its Applications", 1988, section
6.1). It is the interval of ``lmfit.conf_interval``, which solves F(1, dof) = t² for it.

A first round of points covers what a linear model would need; further rounds go on where τ has not
come to the quantile yet, and put a point where it is about to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray

# Points of the first round on either side, the last but one of them at the quantile of a linear
# model.
POINTS_A_SIDE = 8
# Points on both sides of the quantile that are no further apart than this part of it need none
# between them: the cubic through them and their neighbours is off by some 0.0001 standard errors.
CLOSE = 0.25
# Most that a round multiplies the reach of the rounds before by.
GROWTH = 3.0
# Where τ stays short of the quantile, go on to this multiple of it if it rose in a straight line.
OVERSHOOT = 1.1
# A bound nearer than this to a point, in standard errors, leaves no room for another one.
NO_ROOM = 1e-3


@dataclass(frozen=True, eq=False)
class Profile:
    """How the sum of squares rises where one parameter is held off its estimate.

    Attributes
    ----------
    name : str
        The parameter.
    values : ndarray, shape (m,), float64
        Its values, ascending; its estimate is among them.
    tau : ndarray, shape (m,), float64
        Signed root of the rise of the sum of squares, in standard deviations of the rows:
        ``sign(θ - θ̂) √((S(θ) - S) / s²)``. A straight line for a linear model.
    params : ndarray, shape (m, p), float64
        All parameters that fit best with each value.
    n_passes : int
        Readings of all rows that were made for this profile and those that were asked for with it.
    limits : tuple of float
        Ends of the values that are possible: the bounds of the parameter, or where the model is no
        longer finite; else infinite.
    """

    name: str
    values: FloatArray = field(repr=False)
    tau: FloatArray = field(repr=False)
    params: FloatArray = field(repr=False)
    n_passes: int
    limits: tuple[float, float]

    def interval(self, quantile: float) -> tuple[float, float]:
        """Values between which ``|τ|`` is at most the quantile.

        Parameters
        ----------
        quantile : float
            Of Student's distribution, or of the normal distribution if sigma are absolute; positive
            and finite.

        Returns
        -------
        low, high : float
            An end of the `limits`, which may be infinite, on a side where τ does not come to the
            quantile. Between the points θ is interpolated over τ by monotone cubics.
        """
        low, high = (crossing(self.values, self.tau, side * quantile) for side in (-1, 1))
        first, last = self.limits
        return first if low is None else low, last if high is None else high


@dataclass(frozen=True)
class Point:
    """The best fit with one free coordinate held at `value`: all of them (q,), and the cost.

    `arrived` says whether the search met a criterion; `n_passes` are the readings that it took.
    """

    value: float
    params: FloatArray
    cost: float
    arrived: bool = True
    n_passes: int = 0


@dataclass
class Curve:
    """Points of one free coordinate, ascending, from its estimate outwards.

    Attributes
    ----------
    centre : Point
        The fit.
    slope : ndarray, shape (q,), float64
        Change of the coordinates that fit best by a change of this one, at the fit.
    error : float
        Standard error of the coordinate.
    variance : float
        s² of the rows.
    bounds : pair of float
        Of the coordinate.
    """

    centre: Point
    slope: FloatArray
    error: float
    variance: float
    bounds: tuple[float, float]

    def __post_init__(self) -> None:
        self.points = [self.centre]
        self.limits = list(self.bounds)

    @property
    def values(self) -> FloatArray:
        """Of the coordinate, (m,)."""
        return np.array([point.value for point in self.points])

    @property
    def params(self) -> FloatArray:
        """All coordinates that fit best with each value, (m, q)."""
        return np.array([point.params for point in self.points])

    @property
    def rises(self) -> FloatArray:
        """τ² (m,), below zero where the cost is lower than that of the fit."""
        costs = np.array([point.cost for point in self.points])
        rises: FloatArray = 2.0 * (costs - self.centre.cost) / self.variance
        return rises

    @property
    def tau(self) -> FloatArray:
        """τ (m,)."""
        signs = np.sign(self.values - self.centre.value)
        return np.asarray(signs * np.sqrt(np.maximum(self.rises, 0.0)))

    def add(self, point: Point) -> None:
        """Take a point in; where the model is not finite the values end."""
        if math.isfinite(point.cost):
            self.points = sorted([*self.points, point], key=lambda p: p.value)
        elif point.value < self.centre.value:
            self.limits[0] = max(self.limits[0], point.value)
        else:
            self.limits[1] = min(self.limits[1], point.value)

    def wanted(self, quantile: float) -> list[float]:
        """Values of the next round; none where τ is known up to the quantile."""
        values = [
            min(max(self.centre.value + side * float(step), self.bounds[0]), self.bounds[1])
            for side in (-1, 1)
            for step in self._steps(side, quantile)
        ]
        # A step that is lost in rounding leads nowhere new.
        return [value for value in dict.fromkeys(values) if value not in self.values]

    def guess(self, value: float) -> FloatArray:
        """Coordinates (q,) that may fit best with a value, out of the points there are."""
        from scipy.interpolate import PchipInterpolator  # loaded when asked for

        values, params = self.values, self.params
        if values.size == 1:
            return self.centre.params + self.slope * (value - self.centre.value)
        if values[0] <= value <= values[-1]:
            return np.asarray(PchipInterpolator(values, params)(value))
        last, before = (0, 1) if value < values[0] else (-1, -2)
        slope = (params[last] - params[before]) / (values[last] - values[before])
        return np.asarray(params[last] + slope * (value - values[last]))

    def nearest(self, value: float) -> FloatArray:
        """Coordinates (q,) of the point that is nearest to a value."""
        found: FloatArray = self.params[np.argmin(np.abs(self.values - value))]
        return found

    def _steps(self, side: int, quantile: float) -> FloatArray:
        """Distances from the estimate of the next round's points on one side."""
        outward = side * (self.values - self.centre.value)[::side]
        heights = side * self.tau[::side]
        reached, heights = outward[outward >= 0.0], heights[outward >= 0.0]
        limit, bound = self.limits[(side + 1) // 2], self.bounds[(side + 1) // 2]
        room = side * (limit - self.centre.value)
        crossed = crossing(self.values, self.tau, side * quantile)
        if crossed is not None:
            known = np.maximum.accumulate(heights)
            gap = known[known >= quantile][0] - known[known < quantile][-1]
            close = gap <= CLOSE * quantile
            return np.array([] if close else [side * (crossed - self.centre.value)])
        if room - reached[-1] <= NO_ROOM * self.error:
            return np.array([])
        if reached.size == 1:
            parts = np.arange(1, POINTS_A_SIDE + 1) / (POINTS_A_SIDE - 1)
            steps = quantile * self.error * parts
        else:
            steps = _further(reached, heights, quantile)
        inside = steps[steps < room]
        if inside.size < steps.size and limit == bound:
            return np.append(inside, room)
        return inside if inside.size else np.array([(reached[-1] + room) / 2.0])


def _further(reached: FloatArray, heights: FloatArray, quantile: float) -> FloatArray:
    """Distances to go on to: to where τ would pass the quantile if it rose in a straight line."""
    rise, run = heights[-1] - heights[-2], reached[-1] - reached[-2]
    most = (GROWTH - 1.0) * reached[-1]
    missing = (OVERSHOOT * quantile - heights[-1]) * run
    step = missing / rise if rise * most > missing else most
    return np.array([reached[-1] + step / 2.0, reached[-1] + step])


def crossing(values: FloatArray, tau: FloatArray, at: float) -> float | None:
    """The value at which τ, going out from the estimate, first is as given.

    Parameters
    ----------
    values : ndarray, shape (m,), float64
        Ascending.
    tau : ndarray, shape (m,), float64
        At the values.
    at : float
        Below zero for values below the estimate.

    Returns
    -------
    float or None
        None where τ stays short of it.
    """
    from scipy.interpolate import PchipInterpolator  # loaded when asked for

    side = 1 if at > 0.0 else -1
    outward, heights = values[::side], side * tau[::side]
    known = np.maximum.accumulate(heights)
    beyond = np.flatnonzero(known >= abs(at))
    if not beyond.size:
        return None
    rising = np.append(True, known[1:] > known[:-1])
    # What comes after the first crossing, such as another minimum, is none of the interval's.
    rising[beyond[0] + 2 :] = False
    return float(PchipInterpolator(known[rising], outward[rising])(abs(at)))
