"""Searches of version 0.1, which ended by another rule, go on by the rule of today.

A state of version 0.1 has neither all numbers of today nor the same measure of what is left. So its
point is evaluated once more, and judged by that.
"""

from __future__ import annotations

from dataclasses import replace

from nlsq_dask.core.convergence import judged
from nlsq_dask.core.ending import METHODS, confirmed, restarted
from nlsq_dask.core.questions import Search, SumsAt
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.search import is_finite, moved_to, scales
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
    basis = state.linearization.whitening
    sums = yield SumsAt(state.params, basis.forward, observe=True, scores=options.scores)
    was_over = state.status is not None
    state = replace(state, status=None, n_refined=state.n_refined + 1, refined=True)
    if is_finite(sums):
        state = replace(state, moments=sums.moments)
        state = moved_to(state, state.params, sums, basis, box, options)
    # The radius of a search that goes on fits its last step; that of a finished one may be tiny.
    if was_over:
        state = restarted(state, box, options)
    else:
        optimality = METHODS[options.method].optimality(state, box)
        state = replace(state, scale_inv=scales(state, options), optimality=optimality)
    return (yield from confirmed(judged(state, box, options), box, options))
