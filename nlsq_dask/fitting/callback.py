"""Callback and printed table of the iterations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.solver_state import IterationRecord, SolverState

HEADER = f"{'Iteration':>10}{'nfev':>8}{'Cost':>16}{'Reduction':>14}{'Step':>12}{'Optimality':>14}"


def wrap_callback(
    callback: Callable[..., Any] | None, names: Sequence[str], reduction: Reduction
) -> Callable[[SolverState, Sequence[IterationRecord]], None]:
    """Wrap the user's callback as a function of a state and of its new records.

    Parameters
    ----------
    callback : callable or None
        Called after every step that was accepted: as ``callback(intermediate_result=result)`` if
        that is the name of its one parameter, as ``callback(x)`` else. That is the convention of
        ``scipy.optimize``.
    names : sequence of str
    reduction : Reduction

    Raises
    ------
    InputTypeError
        If it cannot be called.
    """
    if callback is None:
        return lambda _, __: None
    if not callable(callback):
        raise _errors.callback_not_callable(callback)
    from scipy.optimize import OptimizeResult

    by_keyword = _takes_result(callback)

    def show(state: SolverState, records: Sequence[IterationRecord]) -> None:
        if not any(record.accepted and record.nfev > 1 for record in records):
            return
        x = reduction.expand(state.params).copy()
        if not by_keyword:
            callback(x)
            return
        callback(
            intermediate_result=OptimizeResult(
                x=x,
                params=dict(zip(names, x.tolist(), strict=True)),
                cost=state.cost,
                chi2=state.chi2,
                optimality=state.optimality,
                nit=state.njev - 1,
                nfev=state.nfev,
            )
        )

    return show


def _takes_result(callback: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(callback).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    return set(parameters) == {"intermediate_result"}


class NewRecords:
    """Records of a search that were not shown yet. An iteration may try several points.

    Parameters
    ----------
    n_shown : int
        Records that were shown before the search was interrupted.
    """

    def __init__(self, n_shown: int) -> None:
        self._n_shown = n_shown

    def of(self, state: SolverState) -> tuple[IterationRecord, ...]:
        """New records of a state; they count as shown from now on."""
        history = state.history
        shown = self._n_shown if self._n_shown <= len(history) else 0  # else of another search
        self._n_shown = len(history)
        return history[shown:]


class IterationTable:
    """Table of the iterations on standard output, as ``verbose`` asks.

    Parameters
    ----------
    verbose : {0, 1, 2}
        0 prints nothing, 1 why the fit ended, 2 a line for every evaluation besides.
    stream : text file, optional
        Where to write; standard output by default.

    Raises
    ------
    InputError
        If `verbose` is none of these.
    """

    def __init__(self, verbose: int, stream: TextIO | None = None) -> None:
        if not (isinstance(verbose, int | np.integer) and 0 <= verbose <= 2):
            raise _errors.verbose_invalid(verbose)
        self._verbose = int(verbose)
        self._stream = stream or sys.stdout
        self._cost: float | None = None

    def row(self, record: IterationRecord) -> None:
        """Print an evaluation. The length of a rejected step is left out."""
        if self._verbose < 2:
            return
        if self._cost is None:
            self._write(HEADER)
        reduction = "" if self._cost is None else f"{self._cost - record.cost:.2e}"
        step = f"{record.step_norm:.2e}" if record.accepted else "rejected"
        self._write(
            f"{record.iteration:>10}{record.nfev:>8}{record.cost:>16.8e}{reduction:>14}"
            f"{step:>12}{record.optimality:>14.2e}"
        )
        if record.accepted or self._cost is None:
            self._cost = record.cost

    def end(self, message: str, nfev: int, costs: tuple[float, float], optimality: float) -> None:
        """Print why the fit ended, and the costs."""
        if not self._verbose:
            return
        first, last = costs
        self._write(message)
        self._write(
            f"Function evaluations {nfev}, initial cost {first:.4e}, final cost {last:.4e}, "
            f"first-order optimality {optimality:.2e}."
        )

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
