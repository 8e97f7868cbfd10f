"""Several starting points at the cost of few passes.

A fit from one start ends in the basin of that start. Several starts are tried in four stages:

1. The costs at a Latin hypercube of starts are computed in one pass.
2. Every start at which the model is finite takes a few steps. The cost after a few steps says much
   about the end. The cost at the start says little: a wave of the wrong frequency costs least with
   amplitude 0.
3. The starts with the least cost after these steps are run to convergence.
4. Ends in the same basin are counted once.

Small data are used whole. For large data all stages use a sample (:mod:`nlsq_dask.fitting.pilot`).
The first pass over all rows compares the best end of each basin, so that more starts do not mean
more passes. The fit goes on from the best end. Where the sample does not show all parameters the
fit starts at p0, and then goes on from an end of another start if that end costs less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.minimize import PriorKnowledge, advance, minimize, start
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import CostsAt, Search
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import Solution, SolverOptions, SolverState
from nlsq_dask.results.record import Start

# Half the width of the box around p0 in a direction without bound, in units of |p0|; 1 where p0
# is 0. Wide enough to reverse a sign, or to triple a guess of the right order of magnitude.
BOX_HALF_WIDTH = 2.0

# Evaluations that every start gets, and the part of the starts that then run to convergence (and at
# least so many), besides p0. For two sinusoids of close frequency and 20 starts this finds the
# optimum with 88 seeds of 100, in 200 passes; all 20 runs find it with 38 of 40, in 500; the better
# half by the cost at the start, with 33 of 40, in 250.
FIRST_EVALUATIONS = 8
RUN_FRACTION = 1 / 4
MIN_RUNS = 4

# Two ends are in the same basin if their distance is at most this many standard errors, or at most
# this part of their values (for data without noise).
SAME_BASIN_SIGMA = 1.0
SAME_BASIN_RTOL = 1e-4


def search_box(
    p0: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Box of the starts: the bounds, and a range around p0 where a bound is infinite.

    Parameters
    ----------
    p0, lower, upper : ndarray, shape (p,), float64
        A side without bound lies ``2 |p0|`` away from p0, or 1 where p0 is 0.

    Returns
    -------
    low, high : ndarray, shape (p,), float64
    """
    half = np.where(p0 == 0.0, 1.0, BOX_HALF_WIDTH * np.abs(p0))
    low = np.where(np.isfinite(lower), lower, p0 - half)
    high = np.where(np.isfinite(upper), upper, p0 + half)
    return low, high


def draw_starts(
    p0: FloatArray, lower: FloatArray, upper: FloatArray, count: int, seed: int
) -> FloatArray:
    """Draw starts: p0, and a Latin hypercube in the search box (McKay et al., 1979).

    Returns
    -------
    ndarray, shape (count, p), float64
        The same for the same seed.
    """
    if count == 1:
        return p0[None]
    from scipy.stats import qmc

    low, high = search_box(p0, lower, upper)
    unit = qmc.LatinHypercube(p0.size, rng=np.random.default_rng(seed)).random(count - 1)
    # The form low + unit * (high - low) overflows for the widest bounds.
    return np.vstack([p0, (1.0 - unit) * low + unit * high])


def run_starts(points: FloatArray, box: Box, options: SolverOptions) -> Search[list[Start]]:
    """Screen starts, run the most promising to convergence, and number the basins they end in.

    Parameters
    ----------
    points : ndarray, shape (k, p), float64
        The starts; the first is always run.
    box : Box
    options : SolverOptions

    Returns
    -------
    list of Start
        In the order of `points`.

    Raises
    ------
    StartNotFiniteError
        If the model is not finite at any start.
    """
    costs = yield CostsAt(points)
    costs = np.nan_to_num(costs, nan=np.inf)
    if not np.isfinite(costs).any():
        raise _errors.start_not_finite(points[0])
    finite = [i for i in range(len(points)) if np.isfinite(costs[i])]
    states = yield from _first_steps({i: points[i] for i in finite}, box, options)
    ends = {}
    for i in _promising(states, max(MIN_RUNS, round(RUN_FRACTION * len(points)))):
        ends[i] = yield from minimize(points[i], box, options, state=states[i])
    basins = _number_basins(ends)
    starts = [Start(p, float(c)) for p, c in zip(points, costs, strict=True)]
    for i, end in ends.items():
        starts[i] = replace(
            starts[i], params=end.params, cost=end.cost, basin=basins[i], status=end.status
        )
    return starts


def ranked(starts: Sequence[Start], costs: FloatArray) -> tuple[Start, ...]:
    """Renumber the basins of a sample by their costs (k,) on all rows."""
    order = np.argsort(costs, kind="stable").tolist()
    return tuple(
        start
        if start.basin is None
        else replace(start, cost=float(costs[start.basin]), basin=order.index(start.basin))
        for start in starts
    )


def best_end(starts: Sequence[Start]) -> FloatArray:
    """Start of the full fit: the best end, or the best start if no search has ended."""
    best = min(starts, key=lambda s: (s.cost is None, s.start_cost if s.cost is None else s.cost))
    return best.p0 if best.params is None else best.params


def _first_steps(
    points: Mapping[int, FloatArray], box: Box, options: SolverOptions
) -> Search[dict[int, SolverState]]:
    """Take a few steps from each start, by number."""
    states: dict[int, SolverState] = {}
    known = PriorKnowledge()
    for i, point in points.items():
        try:
            state = yield from start(point, box, options, known)
        except _errors.StartNotFiniteError:  # its derivatives: there is no way to go on from it
            continue
        while state.status is None and state.nfev < FIRST_EVALUATIONS:
            state = yield from advance(state, box, options)
        states[i] = state
        known = PriorKnowledge(moments=state.moments)
    return states


def _promising(states: Mapping[int, SolverState], count: int) -> list[int]:
    """Numbers of the first start, the starts of least cost, and the starts that have converged."""
    best = set(sorted(states, key=lambda i: (states[i].cost, i))[:count])
    return [i for i in states if i == 0 or i in best or states[i].status is not None]


def _number_basins(ends: Mapping[int, Solution]) -> dict[int, int]:
    """Basin of each end. Basins are numbered by cost; an end joins the first basin near the end."""
    basins: list[Solution] = []
    numbers = {}
    for i in sorted(ends, key=lambda i: (ends[i].cost, i)):
        near = [b for b, other in enumerate(basins) if _same_basin(other, ends[i])]
        if not near:
            basins.append(ends[i])
        numbers[i] = near[0] if near else len(basins) - 1
    return numbers


def _same_basin(a: Solution, b: Solution) -> bool:
    difference = b.params - a.params
    if np.allclose(a.params, b.params, rtol=SAME_BASIN_RTOL, atol=0.0):
        return True
    variance = 2.0 * a.cost / max(a.n_points - a.params.size, 1)
    distance = float(np.linalg.norm(a.r_factor @ difference))
    return distance <= SAME_BASIN_SIGMA * float(np.sqrt(variance))
