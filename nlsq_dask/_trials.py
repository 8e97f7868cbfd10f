"""Whether a trial is linearised in the reading that tells its cost, or only if that is lower.

Let R, C and J be the times that a row takes to be read, for its residual, and for its residual and
derivatives, and a the share of trials that are accepted. Then a trial costs

    fused        R + J
    cost first   R + C + a (R + J)

and a second reading pays where trials are rejected often and derivatives cost more than reading.
The first pass over all rows, which also computes the cost of one more point, takes T = R + J + C.
With that in place of R, cost first is faster where

    J > a T + (1 - a) C
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from nlsq_dask.core.factor import Basis
from nlsq_dask.core.normal_equations import CostEvaluator, FloatArray
from nlsq_dask.core.solver_state import IterationRecord

Trials = Literal["fused", "cost first"]


def accepted_share(history: Sequence[IterationRecord]) -> float:
    """Share of the trials of searches that were accepted; 1 where nothing was tried."""
    trials = [record.accepted for record in history if record.nfev > 1]
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
    basis = Basis.identity(point.size).forward
    derivative = _seconds_a_row(lambda: evaluator.evaluate(point, basis), n_rows)
    if derivative <= accepted * seconds:  # whatever C is, which has to be compiled to be known
        return "fused"
    residual = _seconds_a_row(lambda: evaluator.costs(point[None]), n_rows)
    pays = derivative > accepted * seconds + (1.0 - accepted) * residual
    return "cost first" if pays else "fused"


def _seconds_a_row(call: Callable[[], object], n_rows: int) -> float:
    call()  # compiles, where that was not done before
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) / n_rows
