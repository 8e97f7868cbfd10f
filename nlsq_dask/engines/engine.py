"""The contract of every engine."""

from __future__ import annotations

from typing import Protocol, Self

from nlsq_dask.core.questions import AnswerT
from nlsq_dask.questions.question import AnyQuestion


class Engine(Protocol):
    """Answers questions, each in one reading of all rows.

    Every engine fulfils this contract, and ``tests/engines/conformance.py`` checks it:

    1. All rows are read, never a sample.
    2. Sums are in float64 whatever the dtype of the data.
    3. The same question gives the same bits, for any number of workers and threads.
    4. Any chunks give the same sums to rounding.
    5. A question costs one reading of the data, or none if an earlier reading answers it.
    6. A model value that is not finite gives an answer that is not finite, and no exception.
    7. Inputs are never changed.
    8. A block whose arrays do not have the announced lengths is an error that names the block.

    Attributes
    ----------
    n_passes : int
        Readings of all rows so far.
    """

    n_passes: int

    def ask(self, question: AnyQuestion[AnswerT]) -> AnswerT:
        """Answer a question for all rows."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
