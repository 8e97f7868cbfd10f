"""Searches of version 0.1, which ended by another rule, go on by the rule of today.

A state of version 0.1 has neither all numbers of today nor the same measure of what is left. So its
point is evaluated once more, and judged by that.
"""

from __future__ import annotations

from dataclasses import replace

from nlsq_dask.core.convergence import judged
from nlsq_dask.core.ending import confirmed, refined, rescaled, restarted
from nlsq_dask.core.questions import Search
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import SolverOptions, SolverState


def reopened(state: SolverState, box: Box, options: SolverOptions) -> Search[SolverState]:
    """Judge the best point of an earlier search by the rule of today.

    Parameters
    ----------
    state : SolverState
        What version 0.1 knew, with its status.
    box : Box
    options : SolverOptions

    Returns
    -------
    SolverState
        Of the generator. With a status if the search is over, or without where it has to go on.
    """
    was_over = state.status is not None
    state = yield from refined(replace(state, status=None), box, options, observe=True)
    # The radius of a search that goes on fits its last step; that of a finished one may be tiny.
    scaled = restarted if was_over else rescaled
    state = scaled(state, box, options)
    return (yield from confirmed(judged(state, box, options), box, options))
