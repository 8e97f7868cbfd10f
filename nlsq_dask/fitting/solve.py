"""The search of a fit: from a checkpoint, the pilot's answer, or the best start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.constraints import in_free
from nlsq_dask.core.minimize import PriorKnowledge, minimize
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import Search, without_lost_rows
from nlsq_dask.core.reopen import reopened
from nlsq_dask.core.solver_state import Solution, SolverState
from nlsq_dask.engines.in_memory import stays_in_place
from nlsq_dask.fitting.append import Appended
from nlsq_dask.fitting.checkpoint import Checkpoint
from nlsq_dask.fitting.first_look import looked_at
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.ledger import Ledger
from nlsq_dask.fitting.multi_start import best_end, draw_starts, run_starts
from nlsq_dask.fitting.omitted import Blocks
from nlsq_dask.fitting.pilot import Pilot, first_pass, run_pilot
from nlsq_dask.fitting.resume import Preparation
from nlsq_dask.fitting.same_data import (
    Knows,
    Look,
    nothing_known,
    same_in_all_passes,
)
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.io.observations import Observations


def solve(
    job: Job,
    sample: Callable[[], Observations],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Preparation], None],
    look: Look,
    omitted: Callable[[], Blocks],
    ledger: Ledger | None = None,
    before: Appended | None = None,
    knows: Knows | None = None,
) -> Search[tuple[Solution, Preparation]]:
    """Search for the optimum from a checkpoint, the pilot's answer, or the best start.

    Where rows were appended, from the answer before.
    """

    def find() -> Pilot | None:
        return run_pilot(job, sample())

    pilot = find if ledger is None else partial(ledger.pilot, find, job.box)
    if before is None:
        search = in_free(_solve(job, pilot, saved, observer), job.reduction)
    else:
        search = _solve_appended(job, before, observer)
    known = None if saved is None or saved.of_0_1 else saved
    state = None if known is None else known.state
    search = looked_at(search, job.data)
    is_new = state is None and knows is None and (ledger is None or not ledger.keeps)
    if is_new and isinstance(job.strategy, Standard) and not stays_in_place(job.data, job.kernels):
        return search  # the rows are copied in the first pass, and no row is lost
    changing = job.data.lazy and not job.data.propagates
    if knows is None:
        knows = nothing_known if ledger is None else ledger.knows
    columns = job.data.names[1:]
    same = same_in_all_passes(search, look if changing else None, state, knows, columns)
    if not isinstance(job.strategy, Streamed):
        return same
    return without_lost_rows(same, omitted, None if known is None else known.omitted)


def _solve_appended(
    job: Job, before: Appended, observer: Callable[[SolverState, Preparation], None]
) -> Search[tuple[Solution, Preparation]]:
    """Search from the answer before rows were appended."""
    sums = yield from before.sums()
    known = PriorKnowledge(before.basis, sums, sums.moments, sizes=job.start)
    options = replace(job.options, scores=not job.spec.loss.is_linear)

    def observe(state: SolverState) -> None:
        observer(state, Preparation())

    search = minimize(before.point, job.box, options, observe, known=known)
    solution = yield from in_free(search, job.reduction)
    return solution, Preparation()


def _solve(
    job: Job,
    find_pilot: Callable[[], Pilot | None],
    saved: Checkpoint | None,
    observer: Callable[[SolverState, Preparation], None],
) -> Search[tuple[Solution, Preparation]]:
    """Search in the free parameters."""
    state: SolverState | None = None
    point, known, preparation = job.start, PriorKnowledge(sizes=job.start), Preparation()
    options = job.options
    if options.scores == job.spec.loss.is_linear:
        options = replace(options, scores=not options.scores)
    if saved is not None:
        state, preparation = saved.state, Preparation.of(saved)
        logger.info("going on from a checkpoint after pass %d", saved.n_passes)
        if saved.of_0_1:
            state = yield from reopened(state, job.box, options)
    elif job.pilot and (pilot := find_pilot()) is not None:
        point, known, pilot, record = yield from first_pass(job, pilot)
        preparation = Preparation(pilot.starts, record)
    elif job.plan.n_starts > 1:
        points = draw_starts(job.start, job.lower, job.upper, job.plan.n_starts, job.seed)
        starts = yield from run_starts(points, job.box, job.options)
        point, preparation = best_end(starts), Preparation(tuple(starts))

    def observe(state: SolverState) -> None:
        observer(state, preparation)

    solution = yield from minimize(point, job.box, options, observe, state=state, known=known)
    stopped = solution.status is _errors.Status.CALLBACK
    if not stopped and (better := _better_end(preparation, solution.cost)) is not None:
        point, preparation = better
        known = PriorKnowledge(moments=solution.moments, sizes=job.start)
        solution = yield from minimize(point, job.box, options, observe, known=known)
    return solution, preparation


def _better_end(preparation: Preparation, cost: float) -> tuple[FloatArray, Preparation] | None:
    """The best end of several starts, if it costs less on all rows than the answer from p0.

    The fit goes on from p0 where the sample does not show all parameters; what the other starts
    found on it is not lost.
    """
    if preparation.pilot is None or preparation.pilot.used:
        return None
    least = min((s.cost for s in preparation.starts if s.cost is not None), default=np.inf)
    if least >= cost:
        return None
    logger.info("p0 led to a cost of %.6g, another start to %.6g: going on from there", cost, least)
    return best_end(preparation.starts), replace(
        preparation, pilot=replace(preparation.pilot, used=True)
    )
