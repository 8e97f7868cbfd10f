"""What the tasks of a pass run to tell the scheduler's board of fits their sums and residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan
from typing import Any

from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import Answers, AnswerT
from nlsq_dask.engines.dask.look import Look, ShownSums
from nlsq_dask.engines.dask.signals import tell_board
from nlsq_dask.engines.dask.task import AnyGroup, Work, add_in_order
from nlsq_dask.engines.dask.tree import TREE_WIDTH
from nlsq_dask.engines.partial import Partial


def looking(
    function: Callable[..., AnswerT],
    look: Look | None,
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    *args: Any,
) -> AnswerT:
    """Run a function of a group, and tell the board the residuals of some rows."""
    return function(task_group, external, replace(work, look=look), *args)


def add_telling(shown: Sequence[ShownSums], number: int, answers: Sequence[AnswerT]) -> AnswerT:
    """Add answers of groups, and tell the board of fits the sum of squares a row of each.

    Parameters
    ----------
    shown : sequence of ShownSums
    number : int
        Number of the node among those that add answers of groups.
    answers : sequence
    """
    for own in shown:
        sums = [_sums_in(answer, own.path) for answer in answers]
        message = {
            "fit": own.fit,
            "kind": "groups",
            "first": number * TREE_WIDTH,
            "chi2_rows": [float(s.chi2) / s.n_points if s.n_points else nan for s in sums],
            "rows": [int(s.n_points) for s in sums],
        }
        tell_board(message)
    return add_in_order(answers)


def _sums_in(answer: Any, path: Sequence[int]) -> NormalEquations:
    """The normal equations in the answer of a group."""
    if isinstance(answer, Partial):
        answer = answer.answer
    for place in path:
        assert isinstance(answer, Answers), "an answer to several questions"
        answer = answer.parts[place]
    assert isinstance(answer, NormalEquations), "an answer to SumsAt"
    return answer
