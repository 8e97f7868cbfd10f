"""Questions of a search to all rows, and answers that add.

A question is a small value. Every task of a pass gets the question and answers it for some rows.
The answer for two sets of rows is the sum of their answers, so that an engine can split the rows in
any way. A search is a generator: it yields questions and is sent the answers of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations

FoundT = TypeVar("FoundT")

#: Name of the tasks of a search, to which an engine adds the number of the pass.
A_PASS = "pass"


class Adds(Protocol):
    """An answer: two of the same kind add."""

    def __add__(self, other: Any, /) -> Any: ...


AnswerT = TypeVar("AnswerT", bound=Adds)
AnswerT_co = TypeVar("AnswerT_co", bound=Adds, covariant=True)


class RowQuestion(Protocol[AnswerT_co]):
    """A question of staged rows: flat float64 buffers, without the rows that are left out.

    A value that can be pickled; all rows answer the question in one pass.
    """

    @property
    def task_name(self) -> str:
        """Name of the tasks that answer the question, as a dashboard shows it."""
        ...

    def zero(self, n_left_out: int = 0) -> AnswerT_co:
        """Answer for no rows, with a number of rows that are left out."""
        ...

    def of_rows(self, rows: Any, kernels: Any) -> AnswerT_co:
        """Answer for some rows.

        Parameters
        ----------
        rows : nlsq_dask.kernels.tiles.Rows
        kernels : nlsq_dask.kernels.table.Kernels
            ``kernels[model]`` is the compiled kernel of a model, by number.
        """
        ...


#: Puts a question to all rows: an engine's ``ask``.
Ask: TypeAlias = Callable[[RowQuestion[Any]], Any]

#: A search: yields questions, is sent their answers, and returns its result.
Search: TypeAlias = Generator[RowQuestion[Any], Any, FoundT]


@dataclass(frozen=True, slots=True)
class SumsAt:
    """The normal equations at a point.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
        Directions S along which the model is differentiated.
    observe : bool
        Whether to compute also the moments of y and the largest values, which do not depend on the
        parameters.
    scores : bool
        Whether to sum also the products of the scores, if the loss is robust.
    model : int
        Number of the model.
    """

    params: FloatArray
    basis: FloatArray
    observe: bool = False
    scores: bool = False
    model: int = 0
    task_name: ClassVar[str] = A_PASS

    def zero(self, n_left_out: int = 0) -> NormalEquations:
        """Sums over no rows."""
        return NormalEquations.zero(self.basis.shape[1], n_left_out)

    def of_rows(self, rows: Any, kernels: Any) -> NormalEquations:
        """Sums over some rows. A non-finite value of the model gives a non-finite cost."""
        sums: NormalEquations = kernels[self.model](
            self.params, self.basis, rows, self.observe, self.scores
        )
        return sums


@dataclass(frozen=True, slots=True)
class CostsAt:
    """The costs at several points.

    Attributes
    ----------
    candidates : ndarray, shape (k, p), float64
    model : int
        Number of the model.
    """

    candidates: FloatArray
    model: int = 0
    task_name: ClassVar[str] = A_PASS

    def zero(self, n_left_out: int = 0) -> FloatArray:  # noqa: ARG002 (of the protocol)
        """Costs (k,) over no rows."""
        return np.zeros(len(self.candidates))

    def of_rows(self, rows: Any, kernels: Any) -> FloatArray:
        """Costs (k,) over some rows; not finite where the model is not."""
        costs: FloatArray = kernels[self.model].costs(self.candidates, rows)
        return costs


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to several questions, in the order of the questions."""

    parts: tuple[Any, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __add__(self, other: Answers) -> Answers:
        return Answers(tuple(a + b for a, b in zip(self.parts, other.parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Several:
    """Several questions in one pass: of several models, or sums and costs of one model.

    The answer to each question has the same bits as if the question were asked alone.
    """

    questions: tuple[RowQuestion[Any], ...]

    @property
    def task_name(self) -> str:
        """The name of the first question's tasks."""
        return self.questions[0].task_name

    def zero(self, n_left_out: int = 0) -> Answers:
        """Answers for no rows."""
        return Answers(tuple(question.zero(n_left_out) for question in self.questions))

    def of_rows(self, rows: Any, kernels: Any) -> Answers:
        """Answers for some rows."""
        return Answers(tuple(question.of_rows(rows, kernels) for question in self.questions))


class RowsLostError(Exception):
    """Rows of earlier answers are left out of an answer, and of all answers to come.

    A search gets this in place of the answer. It never leaves the search.

    Attributes
    ----------
    answer : object
        The answer, of the rows that are left.
    """

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


def without_lost_rows(
    search: Search[FoundT],
    omitted: Callable[[], frozenset[Any]],
    known: frozenset[Any] | None = None,
) -> Search[FoundT]:
    """Tell a search where rows are lost that its earlier answers hold.

    Parameters
    ----------
    search : Search
    omitted : callable
        What is left out of answers now.
    known : frozenset, optional
        What is left out of the answers that the search goes on from; None where it begins.
    """
    try:
        question = next(search)
        while True:
            answer = yield question
            now = omitted()
            lost = known is not None and now != known
            known = now
            question = search.throw(RowsLostError(answer)) if lost else search.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def changed(question: RowQuestion[Any], change: Callable[[Any], Any]) -> RowQuestion[Any]:
    """Apply a change to a question, or to each of several questions."""
    if isinstance(question, Several):
        return Several(tuple(changed(part, change) for part in question.questions))
    return change(question)  # type: ignore[no-any-return]


def relayed(
    search: Search[FoundT],
    *,
    change: Callable[[Any], RowQuestion[Any]] | None = None,
    see: Callable[[Any], None] | None = None,
    lose: Callable[[], None] | None = None,
) -> Search[FoundT]:
    """Pass the questions of a search on, and their answers back.

    Parameters
    ----------
    search : Search
    change : callable, optional
        Maps a question that is not :class:`Several` to the question that is passed on.
    see : callable, optional
        Called with every answer before the search gets it.
    lose : callable, optional
        Called before `see` where rows of earlier answers are lost.
    """
    answer, lost = None, None
    while True:
        try:
            question = search.send(answer) if lost is None else search.throw(lost)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        lost = None
        try:
            answer = yield question if change is None else changed(question, change)
        except RowsLostError as error:
            answer, lost = error.answer, error
            if lose is not None:
                lose()
        if see is not None:
            see(answer)


def advanced(search: Search[Any], answer: Any) -> RowQuestion[Any]:
    """The next question of a search, which gets the answer to its last question.

    Products of numbers near the largest float64 overflow. A search judges its trials by whether
    their sums are finite.

    Raises
    ------
    StopIteration
        With what the search returns.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return search.send(answer)


def answered(search: Search[FoundT], ask: Ask) -> FoundT:
    """Run a search to its end.

    Parameters
    ----------
    search : Search
    ask : callable
        Answers a question for all rows.

    Returns
    -------
    object
        What the search returns.
    """
    answer = None
    while True:
        try:
            question = advanced(search, answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = ask(question)
