"""The answer for each series: estimates, errors and status, from the sums where its search ended.

The covariance is ``s² (JᵀJ)⁻¹``, of all free parameters, as in :func:`nlsq_dask.fit`. A series
whose data do not determine all parameters has the status UNDETERMINED and no error bars. Two signs
show this, whatever the residuals are:

- a pivot of the equilibrated JᵀJ that is lost in rounding;
- for residuals that are themselves rounding, an error by rounding alone that leaves no digit of a
  parameter. A constant series fits a decay of amplitude 1e-17 exactly, with any lifetime, and a
  decay without an offset exactly, with any lifetime that is long enough.

The second sign is one of the quadratic model of χ², which may not hold over such an error. A
constant series fits ``a (1 - exp(-x/τ))`` exactly with any τ that is short enough, and τ ends where
the exponential is just a rounding error. So χ² is evaluated some errors by rounding to either side
of a parameter that has few digits (:func:`steps_of_rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask.core.factor import EPS
from nlsq_dask.core.lane_algebra import inverse_columns, lane_factor, triangle
from nlsq_dask.core.lane_step import (
    FLOOR,
    NO_DIGITS,
    NO_SLOPE,
    Lanes,
    LaneState,
    least_pivot,
    variance_of_rows,
)
from nlsq_dask.core.normal_equations import FloatArray

#: Residuals count as rounding up to this multiple of the rounding of the observations.
NEAR_FLOOR = 100.0

#: Size of a parameter, in errors by rounding, below which it has no digit.
NO_DIGIT = 10.0

#: Steps of so many errors by rounding, of which the longest is more than this part of a parameter,
#: and the least part of the predicted rise of χ² that shows that the data determine the parameter.
STEP, FEW_DIGITS, LEAST_RISE = 10.0, 1e-2, 0.1

# The search leaves a direction alone whose pivot is lost in rounding, and its distance then says
# nothing of it. The pivot may come out a few roundings larger here: in doubt it is lost.
DOUBT = 16.0


@dataclass(frozen=True, slots=True)
class SeriesAnswers:
    """Answers for n series.

    Attributes
    ----------
    params : ndarray, shape (q, n), float64
        Free parameters; NaN where there is no answer.
    covariance : ndarray, shape (q (q + 1) / 2, n), float64
        Lower triangle, row after row; NaN without success.
    chi2 : ndarray, shape (n,), float64
        In the units of the lanes.
    distance : ndarray, shape (n,), float64
    nfev, status : ndarray, shape (n,), int64
    at_bound : ndarray, shape (q, n), bool
        Free parameters that lie on a bound.
    """

    params: FloatArray
    covariance: FloatArray
    chi2: FloatArray
    distance: FloatArray
    nfev: NDArray[np.int64]
    status: NDArray[np.int64]
    at_bound: NDArray[np.bool_]

    def part(self, chosen: slice) -> SeriesAnswers:
        """Some of the series."""
        return SeriesAnswers(*(getattr(self, f.name)[..., chosen] for f in fields(self)))

    @property
    def chi2_of_success(self) -> FloatArray:
        """χ² (n,) of series whose search was a success, infinite for the others."""
        found: FloatArray = np.where(self.status > 0, self.chi2, np.inf)
        return found

    def replaced(self, other: Self, chosen: NDArray[np.bool_]) -> Self:
        """The answers, with those of another search for some series (n,)."""
        return type(self)(
            *(np.where(chosen, getattr(other, f.name), getattr(self, f.name)) for f in fields(self))
        )

    def undetermined(self, chosen: NDArray[np.bool_]) -> Self:
        """The answers, of which some (n,) are not determined."""
        return replace(
            self,
            params=np.where(chosen, np.nan, self.params),
            covariance=np.where(chosen, np.nan, self.covariance),
            status=np.where(chosen, int(Status.UNDETERMINED), self.status),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The series of all parts, of one part at least."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(cls)]
        return cls(*(np.concatenate([getattr(p, n) for p in parts], axis=-1) for n in names))


def answers_of(state: LaneState, lanes: Lanes, start: FloatArray) -> SeriesAnswers:
    """Answers of searches that are over.

    Parameters
    ----------
    state : LaneState
        Of NumPy arrays (n,).
    lanes : Lanes
    start : ndarray, shape (q, n), float64
        Starting values: the sizes of parameters that are zero.
    """
    params = np.asarray(state.params)
    status = np.asarray(state.status).astype(np.int64)
    status[status == NO_SLOPE] = Status.START_NOT_FINITE
    status[status == NO_DIGITS] = Status.UNDETERMINED
    with np.errstate(all="ignore"):
        inverse, is_singular = _inverse(state)
        diagonal = inverse[[i * (i + 3) // 2 for i in range(len(params))]]
        lost = is_singular | lost_in_rounding(
            np.asarray(state.chi2), lanes, params=params, diagonal=diagonal, start=start
        )
        status[(status > 0) & lost] = Status.UNDETERMINED
        variance = variance_of_rows(np, state.chi2, lanes, len(params))
        exact = np.isnan(lanes.variance) & (lanes.n_points <= len(params))
        covariance = inverse * np.where(exact, np.inf, variance)
    success = status > 0
    evaluated = np.isfinite(state.chi2)
    kept = success | (status == Status.MAX_EVALUATIONS) & evaluated
    on = (params <= np.asarray(lanes.lower)) | (params >= np.asarray(lanes.upper))
    return SeriesAnswers(
        params=np.where(kept, params, np.nan),
        covariance=np.where(success, covariance, np.nan),
        chi2=np.where(evaluated, state.chi2, np.nan),
        distance=np.where(evaluated, state.distance, np.nan),
        nfev=np.asarray(state.nfev).astype(np.int64),
        status=status,
        at_bound=on & kept,
    )


def _inverse(state: LaneState) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Inverse of JᵀJ, lower triangle row after row, and which series have a singular one."""
    size = len(state.params)
    gram = triangle(state.gram, size)
    norms = [np.sqrt(gram[i][i]) for i in range(size)]
    scaled = [[gram[i][j] / norms[i] / norms[j] for j in range(i + 1)] for i in range(size)]
    factor = lane_factor(np, scaled, least_pivot(size))
    rows = inverse_columns(factor, norms[0])
    inverse = [rows[i][j] / norms[i] / norms[j] for i in range(size) for j in range(i + 1)]
    least = DOUBT * least_pivot(size)
    singular = np.any([~(pivot > least) for pivot in factor.pivots], axis=0)
    return np.stack(inverse), singular


def lost_in_rounding(
    chi2: FloatArray,
    lanes: Lanes,
    *,
    params: FloatArray,
    diagonal: FloatArray,
    start: FloatArray,
) -> NDArray[np.bool_]:
    """Series whose residuals are rounding, with a parameter of which rounding leaves no digit.

    Parameters
    ----------
    chi2 : ndarray, shape (n,), float64
    lanes : Lanes
    params, diagonal, start : ndarray, shape (q, n), float64
        Estimates, diagonal of the inverse of JᵀJ, and starting values: the sizes of parameters that
        are zero.
    """
    n_points = np.maximum(lanes.n_points, 1.0)
    rounding = FLOOR**2 * lanes.square / n_points
    exact = chi2 <= NEAR_FLOOR**2 * rounding * n_points
    errors = np.sqrt(rounding * diagonal)
    # A parameter that starts at zero is often one in the unit of the observations. The slope of a
    # guess for a constant is zero to rounding.
    at_zero = np.abs(start) <= NO_DIGIT * errors
    sizes = np.where(at_zero, np.maximum(1.0, np.sqrt(lanes.square)), np.abs(start))
    sizes = np.maximum(sizes, np.abs(params))
    return np.asarray(exact & np.any(NO_DIGIT * errors > sizes, axis=0))


class RoundingSteps(NamedTuple):
    """Steps from exact fits, some of whose parameters have few digits.

    Attributes
    ----------
    number : ndarray, shape (k,), int64
        Which series these are.
    steps : ndarray, shape (q, q, k), float64
        One of each parameter, along which the other parameters follow.
    rise : ndarray, shape (k,), float64
        Least rise of χ² along a step in either direction, if the data determine the parameter.
    """

    number: NDArray[np.int64]
    steps: FloatArray
    rise: FloatArray


def steps_of_rounding(answers: SeriesAnswers, lanes: Lanes) -> RoundingSteps | None:
    """Steps that show whether the quadratic model of χ² holds over the errors by rounding.

    Parameters
    ----------
    answers : SeriesAnswers
        Of n series.
    lanes : Lanes
        Of these series.

    Returns
    -------
    RoundingSteps or None
        None if all parameters of all exact fits have their digits.
    """
    size = len(answers.params)
    with np.errstate(all="ignore"):
        exact = answers.chi2 <= (NEAR_FLOOR * FLOOR) ** 2 * lanes.square
        exact &= answers.status > 0
        if not exact.any():
            return None
        level = np.maximum(answers.chi2, EPS**2 * lanes.square)
        rows = triangle(list(answers.covariance), size)
        whole = np.array([[rows[max(i, j)][min(i, j)] for i in range(size)] for j in range(size)])
        diagonal = np.array([whole[j, j] for j in range(size)])
        variance = variance_of_rows(np, answers.chi2, lanes, size)
        steps = whole * (STEP * np.sqrt(level / (diagonal * variance)))[:, None]
        longest = np.array([np.abs(steps[j, j]) for j in range(size)])
        few = np.any(longest > FEW_DIGITS * np.abs(answers.params), axis=0)
    number = np.flatnonzero(exact & few & np.isfinite(steps).all(axis=(0, 1)))
    if not number.size:
        return None
    return RoundingSteps(number, steps[:, :, number], LEAST_RISE * STEP**2 * level[number])
