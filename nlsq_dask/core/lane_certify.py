"""Series whose parameters are nearly exchangeable, judged again in a basis of their own.

JᵀJ loses all digits of a direction whose pivot is below the rounding of its elements, although the
data may determine it: a cubic of years from 2000 to 2020 is of this kind. In the coordinates φ of
``θ = θ₀ + S φ``, where S is the inverse of the Cholesky factor of JᵀJ, the columns of J S are
nearly orthonormal, and a search in φ has the digits (:mod:`nlsq_dask.core.factor`). A pivot that is
lost is replaced by the least pivot, so that S exists. The search starts at φ = 0, and its JᵀJ tells
whether the data determine the direction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.convergence import FINAL_RESOLUTION
from nlsq_dask.core.factor import EPS, MAX_RANK_ROWS
from nlsq_dask.core.lane_algebra import (
    LaneFactor,
    backward,
    inverse_columns,
    lane_factor,
    total,
    triangle,
)
from nlsq_dask.core.lane_answer import SeriesAnswers, lost_in_rounding
from nlsq_dask.core.lane_step import RUNNING, Lanes, LaneState, least_pivot, variance_of_rows
from nlsq_dask.core.normal_equations import FloatArray


def doubtful(state: LaneState, lower: FloatArray, upper: FloatArray) -> NDArray[np.bool_]:
    """Series (n,) off their bounds, with few digits in some pivot, that ended well or not at all.

    Parameters
    ----------
    state : LaneState
        Of NumPy arrays (n,).
    lower, upper : ndarray, shape (q, n), float64
        Bounds.
    """
    params = np.asarray(state.params)
    factor, norms = _factor(state, 0.0)
    with np.errstate(invalid="ignore"):
        few = np.any([~(pivot > FINAL_RESOLUTION) for pivot in factor.pivots], axis=0)
        inside = np.all((params > lower) & (params < upper), axis=0)
        known = np.all((norms > 0) & np.isfinite(norms), axis=0)
    return np.asarray((state.status > 0) & few & inside & known)


def basis_of(state: LaneState) -> FloatArray:
    """S, its upper triangle column after column, (q (q + 1) / 2, n)."""
    size = len(state.params)
    least = least_pivot(size)
    factor, norms = _factor(state, least)
    floored = [np.where(inverse > 0, inverse, least**-0.5) for inverse in factor.inverse]
    whole = LaneFactor(factor.lower, floored, factor.pivots)
    zero, one = np.zeros_like(norms[0]), np.ones_like(norms[0])
    rows = []
    for k in range(size):
        column = backward(whole, [one if i == k else zero for i in range(size)])
        rows += [column[j] / norms[j] for j in range(k + 1)]
    return np.stack(rows)


def _factor(state: LaneState, least: float) -> tuple[LaneFactor, FloatArray]:
    """Factor of the equilibrated JᵀJ, and the norms (q, n) of the columns of J."""
    size = len(state.params)
    gram = triangle(state.gram, size)
    with np.errstate(all="ignore"):
        norms = np.sqrt([gram[i][i] for i in range(size)])
        scaled = [[gram[i][j] / norms[i] / norms[j] for j in range(i + 1)] for i in range(size)]
        return lane_factor(np, scaled, least), norms


def certified(
    answers: SeriesAnswers,
    number: NDArray[np.int64],
    state: LaneState,
    lanes: Lanes,
    params: FloatArray,
    basis: FloatArray,
    start: FloatArray,
) -> SeriesAnswers:
    """Answers with those of the series that were judged again.

    Parameters
    ----------
    answers : SeriesAnswers
        Of all series.
    number : ndarray, shape (n,)
        Which series these are.
    state : LaneState
        Where their searches in φ ended.
    lanes : Lanes
        Of these series, with their bounds.
    params : ndarray, shape (q, n), float64
        θ there.
    basis : ndarray
        As :func:`basis_of`.
    start : ndarray, shape (q, n), float64
        Starting values.
    """
    size = len(params)
    upper = [[basis[k * (k + 1) // 2 + j] for k in range(j, size)] for j in range(size)]
    gram = triangle(state.gram, size)
    least = np.minimum(lanes.n_points, MAX_RANK_ROWS) * EPS
    # What is left of a direction of length 1; a pivot of θ that was lost is the least pivot.
    known = np.all([gram[i][i] * least_pivot(size) > least**2 for i in range(size)], axis=0)
    factor, norms = _factor(state, least_pivot(size))
    known &= np.all([pivot > least_pivot(size) for pivot in factor.pivots], axis=0)
    inside = np.all((params >= lanes.lower) & (params <= lanes.upper), axis=0)
    rows = inverse_columns(factor, norms[0])
    inner = [
        [rows[max(a, b)][min(a, b)] / norms[a] / norms[b] for b in range(size)] for a in range(size)
    ]
    variance = variance_of_rows(np, state.chi2, lanes, size)
    covariance = []
    for i in range(size):
        for j in range(i + 1):
            terms = [
                upper[i][a - i] * upper[j][b - j] * inner[a][b]
                for a in range(i, size)
                for b in range(j, size)
            ]
            covariance.append(total(terms) * variance)
    diagonal = np.stack([covariance[i * (i + 3) // 2] for i in range(size)]) / variance
    known &= ~lost_in_rounding(
        np.asarray(state.chi2), lanes, params=params, diagonal=diagonal, start=start
    )
    ended = np.asarray(state.status)
    good = known & inside & (ended > 0) & (ended < RUNNING)
    good &= ~(np.isnan(lanes.variance) & (lanes.n_points <= size))
    chosen = number[good]
    found = replace(
        answers,
        params=answers.params.copy(),
        covariance=answers.covariance.copy(),
        chi2=answers.chi2.copy(),
        distance=answers.distance.copy(),
        nfev=answers.nfev.copy(),
        status=answers.status.copy(),
    )
    found.params[:, chosen] = params[:, good]
    found.covariance[:, chosen] = np.stack(covariance)[:, good]
    found.chi2[chosen], found.distance[chosen] = state.chi2[good], state.distance[good]
    found.status[chosen] = ended[good].astype(np.int64)
    found.nfev[number] += np.asarray(state.nfev).astype(np.int64)
    lost = np.zeros(found.status.shape, np.bool_)
    lost[number[~known & np.isfinite(state.chi2)]] = True
    return found.undetermined(lost)
