"""Several searches on the same readings of the data.

A reading of the data is what a fit waits for, whatever is computed while the rows are in memory. So
the questions of several searches are asked together: each search is taken to its next question, one
reading answers them all, and each search goes on with its own answer. A search that has ended asks
no more: k searches take the readings of the slowest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from nlsq_dask.core.questions import FoundT, RowQuestion, Search, Several, advanced, changed


class Asks(Protocol):
    """An engine, or what keeps the answers of an engine."""

    def ask(self, question: Any) -> Any:
        """Answer a question for all rows."""
        ...


#: Answers questions by the number of the search, in one reading.
AskAll: TypeAlias = Callable[[Mapping[int, RowQuestion[Any]]], Mapping[int, Any]]


def answered_together(searches: Sequence[Search[FoundT]], ask: AskAll) -> list[FoundT]:
    """Run searches to their ends, in lock-step.

    Parameters
    ----------
    searches : sequence of Search
        The number of a search is that of its model.
    ask : callable
        Answers the questions of the searches that are not over, by the number of the search, in one
        reading.

    Returns
    -------
    list
        What each search returns.

    Raises
    ------
    Exception
        What a search raises, the first by number if several do between the same two readings; or
        what `ask` raises.
    """
    found: dict[int, FoundT] = {}
    answers: Mapping[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        questions: dict[int, RowQuestion[Any]] = {}
        for number, answer in answers.items():
            try:
                questions[number] = advanced(searches[number], answer)
            except StopIteration as end:
                found[number] = end.value
        answers = ask(questions) if questions else {}
    return [found[number] for number in range(len(searches))]


def together(engines: Sequence[Asks], models: Sequence[int]) -> AskAll:
    """Ask the questions of several searches together.

    Parameters
    ----------
    engines : sequence of Asks
        The engine of each search, or its ledger; mostly one engine for all. Where models need the
        rows in other pieces there are several, and each reads the rows once.
    models : sequence of int
        The number of each search's model in its engine.
    """

    def ask(questions: Mapping[int, RowQuestion[Any]]) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        for engine in dict.fromkeys(engines):
            own = [number for number in questions if engines[number] is engine]
            if own:
                asked = [_of_model(questions[number], models[number]) for number in own]
                answers |= dict(zip(own, engine.ask(Several(tuple(asked))), strict=True))
        return answers

    return ask


def _of_model(question: RowQuestion[Any], model: int) -> Any:
    """The same question of another model."""
    return changed(question, lambda part: replace(part, model=model))
