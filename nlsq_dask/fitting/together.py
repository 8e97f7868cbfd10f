"""Several fits on the same readings of the data.

A reading of the data is what a fit waits for, whatever is computed while the rows are in memory. So
fits of several models take their seats at one table: each runs in a thread of its own, as it would
alone, but where it would read the data it hands in a request and waits. When every fit that is
still running has handed one in, the rows are read once for all of them, each is given its answer,
and they go on. A fit that has ended leaves the table: k fits take the readings of the slowest one.

What a fit computes between readings it computes alone, by turns with the others: a fit of a sample
has all cores and their buffers to itself, however many models there are. Readings are made by the
thread that called, with the settings that hold there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from nlsq_dask._errors import all_left_out
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import Survey
from nlsq_dask.engines.first_look import look_at
from nlsq_dask.io.observations import Observations
from nlsq_dask.questions.question import CostsRequest, Request, SumsRequest, SurveyRequest

FoundT = TypeVar("FoundT")

# Makes one reading: the answers, in the order of the requests.
Read = Callable[[Sequence[Request]], Sequence[Any]]


class Reader(Protocol):
    """An engine that answers requests of several models in one pass."""

    def together(self, requests: Sequence[Request]) -> tuple[Any, ...]:
        """The answers over all rows, in the order of the requests."""
        ...


class _Stopped(Exception):  # noqa: N818  # no failure: it ends a fit when another one has failed
    """The reading that a fit waits for will not be made."""


class Table:
    """Where fits hand in requests and wait for the answers.

    Parameters
    ----------
    n_fits : int
        Fits that take part.

    Attributes
    ----------
    turn : Lock
        Held by the fit that computes.
    """

    def __init__(self, n_fits: int) -> None:
        self.turn = threading.Lock()
        self._changed = threading.Condition()
        self._n_running = n_fits
        self._requests: dict[int, Request] = {}
        self._answers: dict[int, Any] = {}
        self._closed = False
        self._failed = False

    def ask(self, request: Request) -> Any:
        """Hand in a model's request, and wait for its answer, while others have their turn."""
        self.turn.release()
        try:
            with self._changed:
                self._requests[request.model] = request
                self._changed.notify_all()
                self._changed.wait_for(lambda: request.model in self._answers or self._closed)
                if self._closed:
                    raise _Stopped
                return self._answers.pop(request.model)
        finally:
            self.turn.acquire()

    def sit_down(self) -> None:
        """One fit begins; it is its turn. None begins once the table is closed."""
        if self._closed:
            raise _Stopped

    def leave(self, *, failed: bool) -> None:
        """One fit takes part no more."""
        with self._changed:
            self._n_running -= 1
            self._failed |= failed
            self._changed.notify_all()

    def requests(self) -> list[Request]:
        """Wait for the requests of all fits that are running, by model.

        Returns
        -------
        list of Request
            Empty once all fits have ended, or one of them has failed: what is raised does not
            depend on which of them was faster.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._requests) == self._n_running)
            return [] if self._failed else [self._requests[i] for i in sorted(self._requests)]

    def answer(self, requests: Sequence[Request], answers: Sequence[Any]) -> None:
        """Let the fits go on."""
        with self._changed:
            self._requests.clear()
            self._answers = {r.model: a for r, a in zip(requests, answers, strict=True)}
            self._changed.notify_all()

    def close(self) -> None:
        """End the fits that wait for an answer, or will."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Seat:
    """One fit's place at the table: the evaluator that it sees.

    Parameters
    ----------
    table : Table
    model : int
        Number of the fit's model.
    data : Observations
        What is read.
    moments : Moments, optional
        Those of an earlier pass, which need not be made again.

    Attributes
    ----------
    n_passes : int
        Readings that the fit took part in.
    """

    def __init__(
        self, table: Table, model: int, data: Observations, moments: Moments | None = None
    ) -> None:
        self._table = table
        self._model = model
        self._data = data
        self._moments = moments  # known after the first pass
        self.n_passes = 0

    def evaluate(
        self, params: FloatArray, basis: FloatArray, scores: bool = False
    ) -> NormalEquations:
        """One pass over all rows; see :class:`~nlsq_dask.core.questions.Evaluator`."""
        observe_y = self._moments is None
        sums = self._ask(SumsRequest(self._model, params, basis, observe_y, scores))
        return self._with_moments(sums)

    def survey(self, params: FloatArray, basis: FloatArray, candidates: FloatArray) -> Survey:
        """Sums at a point and the costs of candidates (k, p), in one pass over all rows."""
        observe_y = self._moments is None
        found: Survey = self._ask(SurveyRequest(self._model, params, basis, candidates, observe_y))
        return replace(found, sums=self._with_moments(found.sums))

    def costs(self, candidates: FloatArray) -> FloatArray:
        """Half the sum of squared residuals of candidates (k, p), in one pass over all rows."""
        costs: FloatArray = self._ask(CostsRequest(self._model, candidates))
        return costs

    def _ask(self, request: Request) -> Any:
        self.n_passes += 1
        return self._table.ask(request)

    def _with_moments(self, sums: NormalEquations) -> NormalEquations:
        """Sums of at least one row, with the moments of y that the first pass found."""
        if not sums.n_points:
            raise all_left_out(self._data.n_rows, self._data.causes)
        if self._moments is None:
            look_at(sums, self._data)
        self._moments = self._moments or sums.moments
        return replace(sums, moments=sums.moments.with_y_of(self._moments))


def run_together(
    searches: Sequence[Callable[[Seat], FoundT]],
    read: Read,
    data: Observations,
    moments: Moments | None = None,
) -> list[FoundT]:
    """Run fits that read the data together.

    Parameters
    ----------
    searches : sequence of callable
        Each a fit, given the evaluator to use; its number is that of its model.
    read : callable
        Makes a reading for a sequence of requests. Called in this thread.
    data : Observations
        What is read.
    moments : Moments, optional
        Those of an earlier pass, which need not be made again.

    Returns
    -------
    list
        What each search returned.

    Raises
    ------
    Exception
        What a search raised, the first by number if several did between the same two readings; or
        what `read` raised. The other fits are ended first.
    """
    table = Table(len(searches))

    def attend(search: Callable[[Seat], FoundT], model: int) -> FoundT:
        failed = True
        try:
            with table.turn:
                table.sit_down()
                found = search(Seat(table, model, data, moments))
            failed = False
        finally:
            table.leave(failed=failed)
        return found

    with ThreadPoolExecutor(len(searches), "nlsq-fit") as threads:
        try:
            futures = [
                threads.submit(copy_context().run, attend, search, model)
                for model, search in enumerate(searches)
            ]
            while requests := table.requests():
                table.answer(requests, read(requests))
        finally:
            table.close()
    return _results(futures)


def _results(futures: Sequence[Future[FoundT]]) -> list[FoundT]:
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, _Stopped):
            raise error
    return [future.result() for future in futures]


def read_by(readers: Sequence[Reader]) -> Read:
    """One reading by all engines: where models need the rows in other pieces, several have them.

    Parameters
    ----------
    readers : sequence of Reader
        The engine of each model, by number; mostly the same one.
    """

    def read(requests: Sequence[Request]) -> Sequence[Any]:
        answers: dict[int, Any] = {}
        for reader in dict.fromkeys(readers):
            own = [request for request in requests if readers[request.model] is reader]
            if own:
                found = reader.together(own)
                answers |= {r.model: a for r, a in zip(own, found, strict=True)}
        return [answers[request.model] for request in requests]

    return read
