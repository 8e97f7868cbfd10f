"""The estimates of a result as parameters of lmfit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results.record import FitRecord, estimates_of

# Step of a difference, in standard errors. The expressions of lmfit are smooth over such a step.
STEP = 1e-3


def to_lmfit_params(record: FitRecord, expressions: Mapping[str, str]) -> Any:
    """Estimates with errors, bounds and correlations; see ``FitResult.to_lmfit_params``.

    Parameters
    ----------
    record : FitRecord
    expressions : mapping of str to str
        Expressions of parameters by name, of parameters of the model and of derived ones.

    Raises
    ------
    MissingLibraryError
        If lmfit is not installed.
    """
    try:
        import lmfit
    except ImportError as error:
        raise _errors.lmfit_missing() from error

    params = lmfit.Parameters()
    bounds = record.bounds
    if bounds is None:
        bounds = np.tile([-np.inf, np.inf], (len(record.names), 1))
    for name, value in estimates_of(record).items():
        if name not in expressions:
            params.add(name, value, vary=name not in record.fixed)
    _add_expressions(params, expressions)
    for name, (low, high) in zip(record.names, bounds, strict=True):
        params[name].set(min=float(low), max=float(high))
    params.update_constraints()
    for name, parameter in record.params.items():
        params[name].stderr = parameter.stderr
    free = [name for name in record.names if name not in expressions and name not in record.fixed]
    places = [record.names.index(name) for name in free]
    correlation = record.correlation()[np.ix_(places, places)]
    for i, name in enumerate(free):
        others = ((o, float(correlation[i, j])) for j, o in enumerate(free) if j != i)
        params[name].correl = {other: r for other, r in others if np.isfinite(r)}
    pcov = record.pcov[np.ix_(places, places)]
    for name in expressions:
        if name not in record.names:
            params[name].stderr = _derived_error(params, name, free, pcov)
    return params


def _add_expressions(params: Any, expressions: Mapping[str, str]) -> None:
    """Add expressions, each after the parameters that it needs."""
    waiting = dict(expressions)
    while waiting:
        ready = [n for n, expr in waiting.items() if not _names_in(expr) & (waiting.keys() - {n})]
        for name in ready or list(waiting):
            params.add(name, expr=waiting.pop(name))


def _names_in(expr: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in expr).split())


def _derived_error(params: Any, name: str, free: list[str], pcov: FloatArray) -> float:
    """Standard error of an expression, ``√(g C gᵀ)`` with its gradient by central differences."""
    gradient = np.zeros(len(free))
    moved = params.copy()
    for i, other in enumerate(free):
        step = STEP * float(np.sqrt(pcov[i, i]))
        if not np.isfinite(step):
            return float("inf")
        if step == 0.0:  # a perfect fit
            return 0.0
        ends = []
        for side in (1.0, -1.0):
            moved[other].set(value=params[other].value + side * step, min=-np.inf, max=np.inf)
            moved.update_constraints()
            ends.append(float(moved[name].value))
        moved[other].set(value=params[other].value)
        gradient[i] = (ends[0] - ends[1]) / (2.0 * step)
    return float(np.sqrt(gradient @ pcov @ gradient))
