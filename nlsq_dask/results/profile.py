"""Profiles of the sum of squares: its rise where one parameter is held away from its estimate.

Let S(θ_j) be the least sum of squares over all other parameters, S its minimum, and s² the variance
of the rows (1 if sigma is absolute, else S / dof). For a linear model the signed root

    τ(θ_j) = sign(θ_j - θ̂_j) √((S(θ_j) - S) / s²)

is the difference of θ_j from its estimate, in standard errors. For other models, τ follows
Student's (or the normal) distribution far better than θ_j does. The likelihood interval of θ_j
holds the values with |τ| up to the quantile t. It does not depend on how the model is parametrised
(Bates & Watts, "Nonlinear Regression Analysis and Its Applications", 1988, section 6.1).
``lmfit.conf_interval`` computes the same interval from F(1, dof) = t².

A first round of points covers the interval of a linear model. Further rounds add points where τ is
still below the quantile, and close to where τ crosses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray

# Points of the first round on each side. The last but one is at the quantile of a linear model.
POINTS_A_SIDE = 8
# Largest distance between the points on both sides of the quantile, as a part of the quantile. The
# cubic through these points and their neighbours is then off by some 0.0001 standard errors.
CLOSE = 0.25
# Largest factor by which a round extends the reach of the rounds before.
REACH_GROWTH = 3.0
# A further round goes to this multiple of the quantile, if τ rises in a straight line.
OVERSHOOT = 1.1
# A bound nearer than this to a point, in standard errors, leaves no room for another point.
NO_ROOM = 1e-3


@dataclass(frozen=True, eq=False)
class Profile:
    """Rise of the sum of squares where one parameter is held away from its estimate.

    Attributes
    ----------
    name : str
        The parameter.
    values : ndarray, shape (m,), float64
        Values of the parameter, ascending, including its estimate.
    tau : ndarray, shape (m,), float64
        Signed root of the rise of the sum of squares, in standard deviations of the rows:
        ``sign(θ - θ̂) √((S(θ) - S) / s²)``. A straight line for a linear model.
    params : ndarray, shape (m, p), float64
        All parameters of the best fit with each value.
    n_passes : int
        Readings of all rows for this profile and the profiles computed together with it.
    limits : tuple of float
        Ends of the possible values: the bounds of the parameter, or values at which the model is
        not finite. Infinite if there are none.
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
            Quantile of Student's distribution, or of the normal distribution if sigma are absolute.
            Positive and finite.

        Returns
        -------
        low, high : float
            Ends of the interval. On a side where τ stays below the quantile, the end of `limits`,
            which may be infinite. Monotone cubics interpolate θ over τ between the points.
        """
        low, high = (crossing(self.values, self.tau, side * quantile) for side in (-1, 1))
        first, last = self.limits
        return first if low is None else low, last if high is None else high


@dataclass(frozen=True)
class Point:
    """The best fit with one free coordinate held at `value`: all coordinates (q,), and the cost.

    `arrived` tells whether the search met a criterion. `n_passes` counts its readings.
    """

    value: float
    params: FloatArray
    cost: float
    arrived: bool = True
    n_passes: int = 0


@dataclass
class Curve:
    """Points of one free coordinate, ascending, on both sides of its estimate.

    Attributes
    ----------
    centre : Point
        The fit.
    slope : ndarray, shape (q,), float64
        Derivative of the best coordinates by this coordinate, at the fit.
    error : float
        Standard error of the coordinate.
    variance : float
        s² of the rows.
    bounds : pair of float
        Bounds of the coordinate.
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
        """Values of the coordinate, (m,)."""
        return np.array([point.value for point in self.points])

    @property
    def params(self) -> FloatArray:
        """All coordinates of the best fit with each value, (m, q)."""
        return np.array([point.params for point in self.points])

    @property
    def rises(self) -> FloatArray:
        """τ² (m,); negative where the cost is below that of the fit."""
        costs = np.array([point.cost for point in self.points])
        rises: FloatArray = 2.0 * (costs - self.centre.cost) / self.variance
        return rises

    @property
    def tau(self) -> FloatArray:
        """τ (m,)."""
        signs = np.sign(self.values - self.centre.value)
        return np.asarray(signs * np.sqrt(np.maximum(self.rises, 0.0)))

    def add(self, point: Point) -> None:
        """Add a point. Values end where the model is not finite."""
        if math.isfinite(point.cost):
            self.points = sorted([*self.points, point], key=lambda p: p.value)
        elif point.value < self.centre.value:
            self.limits[0] = max(self.limits[0], point.value)
        else:
            self.limits[1] = min(self.limits[1], point.value)

    def wanted(self, quantile: float) -> list[float]:
        """Values of the next round; none if τ is known up to the quantile."""
        values = [
            min(max(self.centre.value + side * float(step), self.bounds[0]), self.bounds[1])
            for side in (-1, 1)
            for step in self._steps(side, quantile)
        ]
        # Drop steps that are lost in rounding.
        return [value for value in dict.fromkeys(values) if value not in self.values]

    def guess(self, value: float) -> FloatArray:
        """Guess of the best coordinates (q,) with a value, interpolated between the points."""
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
        """Coordinates (q,) of the point nearest to a value."""
        found: FloatArray = self.params[np.argmin(np.abs(self.values - value))]
        return found

    def _steps(self, side: int, quantile: float) -> FloatArray:
        """Distances of the next points on one side from the estimate."""
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
    """Distances of further points: to where τ passes the quantile if it rises linearly."""
    rise, run = heights[-1] - heights[-2], reached[-1] - reached[-2]
    most = (REACH_GROWTH - 1.0) * reached[-1]
    missing = (OVERSHOOT * quantile - heights[-1]) * run
    step = missing / rise if rise * most > missing else most
    return np.array([reached[-1] + step / 2.0, reached[-1] + step])


def crossing(values: FloatArray, tau: FloatArray, at: float) -> float | None:
    """The value nearest to the estimate at which τ has a given value.

    Parameters
    ----------
    values : ndarray, shape (m,), float64
        Ascending.
    tau : ndarray, shape (m,), float64
        At the values.
    at : float
        Value of τ; negative for values below the estimate.

    Returns
    -------
    float or None
        None if τ does not reach it.
    """
    from scipy.interpolate import PchipInterpolator  # loaded when asked for

    side = 1 if at > 0.0 else -1
    outward, heights = values[::side], side * tau[::side]
    known = np.maximum.accumulate(heights)
    beyond = np.flatnonzero(known >= abs(at))
    if not beyond.size:
        return None
    rising = np.append(True, known[1:] > known[:-1])
    # Only the first crossing counts: another minimum further out is not part of the interval.
    rising[beyond[0] + 2 :] = False
    return float(PchipInterpolator(known[rising], outward[rising])(abs(at)))
