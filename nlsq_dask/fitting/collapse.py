"""Whether a fit collapses its rows to one for each distinct coordinate, decided before any reading.

See :mod:`nlsq_dask.engines.collapsed` for how, and :mod:`nlsq_dask.questions.collapse` for why this
is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import GB, SOLVER_BYTES
from nlsq_dask.engines.collapsed import collapsed_shape, varies_along
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.memory import collapse_bytes, streaming_bytes
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.observations import Observations

CollapseChoice: TypeAlias = bool | Literal["auto"]

# "auto" collapses up to this number of distinct coordinates a row. The means at one coordinate are
# up to ten numbers, and a row is two: with more coordinates the means cost as much as the rows.
MOST_DISTINCT = 0.1


def checked_collapse(collapse: Any) -> CollapseChoice:
    """The choice, if it is one."""
    if isinstance(collapse, bool) or (isinstance(collapse, str) and collapse == "auto"):
        return collapse  # type: ignore[return-value]
    raise _errors.unknown_choice("collapse", collapse, ("auto", True, False))


def collapsed(job: Job, choice: CollapseChoice, *, stat_tol_is_auto: bool) -> Job:
    """The same fit, on the means at the distinct coordinates where that is possible and pays.

    Parameters
    ----------
    job : Job
    choice : "auto", True or False
    stat_tol_is_auto : bool
        Whether the tolerance is left to us. A trial costs no reading, so that a fit need not stop
        before the tolerances of a fit in memory are met.

    Raises
    ------
    InputError
        If True is chosen and the rows cannot be collapsed.
    """
    if choice is False or (choice == "auto" and not _shares_coordinates(job.data)):
        return job
    n_distinct = math.prod(collapsed_shape(job.data))
    options = replace(job.options, stat_tol=None) if stat_tol_is_auto else job.options
    found = replace(job, n_distinct=n_distinct, pilot=False, options=options)
    reason = next(_obstacles(found, choice), None)
    if reason is None:
        logger.info("%d rows collapse to %d coordinates", job.data.n_rows, n_distinct)
        return found
    if choice is True:
        raise _errors.not_collapsible(reason)
    return job


def _obstacles(job: Job, choice: CollapseChoice) -> Iterator[str]:
    """Reasons against collapsing the rows of a job. Callers tell the first reason alone."""
    data, spec = job.data, job.spec
    if not spec.loss.is_linear:
        yield _errors.collapse_of_loss(spec.loss.name)
    if spec.cholesky is not None:
        yield _errors.COLLAPSE_OF_CORRELATED
    if not job.row_wise:
        yield _errors.COLLAPSE_OF_DEPENDENT_ROWS
    if not _shares_coordinates(data):
        yield _errors.collapse_without_broadcast(data.y.shape)
    if choice == "auto" and job.n_distinct > MOST_DISTINCT * data.n_rows:
        yield _errors.collapse_of_few(job.n_distinct, data.n_rows)
    needed, limit = _bytes(job), job.plan.budget.threshold_gb * GB
    if needed > limit:
        yield _errors.collapse_too_large(job.n_distinct, needed, limit)


def _shares_coordinates(data: Observations) -> bool:
    """Whether several rows have the same coordinates along some dimension."""
    pairs = zip(data.y.shape, varies_along(data), strict=True)
    return any(n > 1 and not varies for n, varies in pairs)


def _bytes(job: Job) -> int:
    """Memory of a collapsed fit in this process, or in each worker."""
    strategy = job.strategy
    if isinstance(strategy, Streamed):
        return streaming_bytes(job, strategy)
    return SOLVER_BYTES + collapse_bytes(job)
