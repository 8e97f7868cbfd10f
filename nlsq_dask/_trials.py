"""Whether a trial is linearised in the reading that tells its cost, or only if that is lower.

Let R, C and J be the times that a row takes to be read, for its residual, and for its residual and
derivatives, and a the share of trials that are accepted. Then a trial costs

    fused        R + J
    cost first   R + C + a (R + J)

and a second reading pays where trials are rejected often and derivatives cost more than reading.
The first pass over all rows, which also computes the cost of one more point, takes T = R + J + C.
With that in place of R, cost first is faster where

    J > a T + (1 - a) C

by more than what times vary by. A fit that goes on from the pilot's answer tries points near the
optimum alone, where trials are accepted that would not be further off: a is that of the pilot's
trials from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from nlsq_dask.core.factor import Basis
from nlsq_dask.core.memory_budget import CALL_ROWS
from nlsq_dask.core.normal_equations import CostEvaluator, FloatArray
from nlsq_dask.core.solver_state import IterationRecord

Trials = Literal["fused", "cost first"]

# Standard errors from the optimum, of the pilot's own, that count as near. The optimum of all rows
# is some of them off.
NEAR = 10.0

# The kernel is timed so often, and the least time taken: others that use the machine only add.
REPEATS = 3

# Part of the time that cost first has to save.
LEAST_GAIN = 0.1


def accepted_share(history: Sequence[IterationRecord], *, near: bool = False) -> float:
    """Share of the trials of searches that were accepted; 1 where nothing was tried.

    Parameters
    ----------
    history : sequence of IterationRecord
        Of one or more searches.
    near : bool
        Whether to count the trials alone that were made near the optimum.
    """
    trials = [
        record.accepted
        for before, record in pairwise(history)
        if record.nfev > 1 and (before.distance <= NEAR or not near)
    ]
    return sum(trials) / len(trials) if trials else 1.0


def choose_trials(
    evaluator: CostEvaluator, point: FloatArray, n_rows: int, accepted: float, seconds: float
) -> Trials:
    """Choose by timing the kernel.

    Parameters
    ----------
    evaluator : CostEvaluator
        Of rows in memory, few enough for one thread, which has evaluated before.
    point : ndarray, shape (q,), float64
    n_rows : int
        Rows of the evaluator.
    accepted : float
        The share a.
    seconds : float
        T, in seconds of a thread.
    """
    if n_rows < CALL_ROWS:  # too few to be timed: calling the kernel costs more than the rows
        return "fused"
    basis = Basis.identity(point.size).forward
    derivative = _seconds_a_row(lambda: evaluator.evaluate(point, basis), n_rows)
    derivative = min(derivative, seconds)  # in noise; reading takes no less than nothing
    if derivative <= accepted * seconds:  # whatever C is, which has to be compiled to be known
        return "fused"
    residual = _seconds_a_row(lambda: evaluator.costs(point[None]), n_rows)
    fused = seconds - residual
    cost_first = seconds - derivative + accepted * fused
    return "cost first" if cost_first < (1.0 - LEAST_GAIN) * fused else "fused"


def _seconds_a_row(call: Callable[[], object], n_rows: int) -> float:
    call()  # compiles, where that was not done before
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) / n_rows
