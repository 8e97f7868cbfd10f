"""What the board of fits shows of a pass: the sums of each model, and residuals of some rows.

A group that tells residuals has its rows in memory for the sums, so that none are read for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlsq_dask.core.questions import AnswerT, RowQuestion, Several, SumsAt
from nlsq_dask.engines.dask.signals import tell_board
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.io.chunks import spread_blocks
from nlsq_dask.questions.question import AnyQuestion
from nlsq_dask.questions.shown_residuals import WithResiduals

# Groups that tell residuals, each in a message in each pass, and rows of all of them together. Few
# groups, since a look takes about as long as Dask takes for a task. The error of a bar of a
# thousand rows is 3 %.
MOST_GROUPS = 32
MOST_ROWS = 32_000


@dataclass(frozen=True, slots=True)
class ShownSums:
    """Sums of a pass that the board shows.

    Attributes
    ----------
    fit : str
        Identifier of the fit on the board.
    path : tuple of int
        Place of the question among the questions of the pass, and of its answer among the answers.
    """

    fit: str
    path: tuple[int, ...]

    def sums(self, question: Any) -> SumsAt:
        """The sums that are asked for."""
        for place in self.path:
            question = question.questions[place]
        assert isinstance(question, SumsAt), "a question with sums at this place"
        return question


@dataclass(frozen=True, slots=True)
class Look:
    """The look at some rows of a group.

    Attributes
    ----------
    shown : tuple of ShownSums
        Points at which the residuals are told.
    group : int
        Number of the group.
    step : int
        One row of so many is looked at.
    """

    shown: tuple[ShownSums, ...]
    group: int
    step: int

    def during(self, question: RowQuestion[AnswerT]) -> WithResiduals[AnswerT]:
        """A question that looks at rows while it is answered."""
        return WithResiduals(question, tuple(own.sums(question) for own in self.shown), self.step)

    def tell(self, question: WithResiduals[Any]) -> None:
        """Tell the board what the question has seen."""
        for own, residuals in zip(self.shown, question.residuals(), strict=True):
            told = {"fit": own.fit, "kind": "residuals", "group": self.group}
            tell_board(told | residuals.as_bytes())


def shown_sums(question: AnyQuestion[Any], fits: Sequence[str]) -> tuple[ShownSums, ...]:
    """The sums that a question asks for, of each model that the board shows.

    Parameters
    ----------
    question : RowQuestion or BlockQuestion
    fits : sequence of str
        Identifiers of the models' fits on the board; empty where it does not show them.
    """
    found = _paths(question) if fits else []
    return tuple(ShownSums(fits[sums.model], path) for path, sums in found)


def _paths(question: Any) -> list[tuple[tuple[int, ...], SumsAt]]:
    """All sums in a question, each after its place among the parts."""
    if isinstance(question, Several):
        parts = enumerate(map(_paths, question.questions))
        return [((i, *path), sums) for i, part in parts for path, sums in part]
    return [((), question)] if isinstance(question, SumsAt) else []


def steps_of(groups: Sequence[Group]) -> dict[int, int]:
    """Groups that tell residuals, by number; with how many of their rows there are for one told."""
    chosen = spread_blocks([len(groups)], MOST_GROUPS)
    n_rows = sum(groups[number].n_rows for number in chosen)
    return dict.fromkeys(chosen, max(-(-n_rows // MOST_ROWS), 1))
