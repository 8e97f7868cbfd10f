"""What a task and the fit that waits for it tell each other while the task runs.

A task tells that it waits, and for what. A fit that is over tells its tasks to end: a task looks
between two blocks, and while it waits. Tasks of this process find their fit in a table. On a
cluster, notes are events of the scheduler, and a task learns from its worker that nobody wants its
result any more.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("nlsq_dask")

# Called with a note in a few words, for a progress line.
Show: TypeAlias = Callable[[str], None]

# The topic of the scheduler's events to which workers send notes.
TOPIC = "nlsq_dask"

# The topic to which clients and workers tell of fits, for the scheduler's board.
BOARD_TOPIC = "nlsq_dask-fits"

# Seconds without another line in the log. In an outage all tasks of a cluster wait.
LOG_SECONDS = 10.0


def show_nothing(note: str) -> None:
    """Drop a note, which is in the log."""
    del note


class StoppedError(Exception):
    """Nobody waits for the task of a local scheduler; no caller sees the error."""


class Signals(Protocol):
    """The two sides, as a task sees them."""

    def check(self) -> None:
        """Raise an exception that ends the task, if nobody waits for its result."""
        ...

    def tell(self, text: str, short: str) -> None:
        """Send a sentence for the log, and a few words for the progress line."""
        ...

    def begin(self, block: tuple[int, ...]) -> None:
        """Tell that a block begins, by its index, before anything of it can kill the worker."""
        ...


class Ears:
    """What a fit hears of its tasks, and whether it still waits for them.

    Parameters
    ----------
    show : callable
        Called with the few words of each note.

    Attributes
    ----------
    fit : str
        Identifier of the fit, which its tasks have.
    """

    def __init__(self, show: Show) -> None:
        self.fit = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._show = show
        self._stopped = threading.Event()
        self._logged = -LOG_SECONDS
        _open[self.fit] = self

    def stop(self) -> None:
        """End the tasks of this process that still run."""
        self._stopped.set()

    def close(self) -> None:
        """Hear no more."""
        _open.pop(self.fit, None)

    def check(self) -> None:
        """Raise StoppedError if the fit is over; see :class:`Signals`."""
        if self._stopped.is_set():
            raise StoppedError

    def tell(self, text: str, short: str) -> None:
        """Log a note and show it; see :class:`Signals`."""
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.warning(text)
        self._show(short)

    def begin(self, block: tuple[int, ...]) -> None:
        """Tell nobody: this process dies with the task; see :class:`Signals`."""


_open: dict[str, Ears] = {}  # of the fits that run in this process


def listen(client: Client) -> None:
    """Hear the notes that the workers of a cluster send.

    One handler serves all fits of a client, which keeps its handlers for ever.
    """
    client.subscribe_topic(TOPIC, _hear)


def _hear(event: tuple[float, Any]) -> None:
    """Pass a worker's note to its fit, if the fit is not over."""
    _, note = event
    ears = _open.get(note["fit"])
    if ears is not None and "text" in note:
        ears.tell(note["text"], note["short"])


class _Nobody:
    """Signals of a task whose fit is in another process, out of reach."""

    def check(self) -> None:
        pass

    def tell(self, text: str, short: str) -> None:  # noqa: ARG002 (of the protocol)
        logger.warning(text)

    def begin(self, block: tuple[int, ...]) -> None:
        pass


NOBODY = _Nobody()


class _Over(_Nobody):
    """Signals of a task that begins after its fit has ended."""

    def check(self) -> None:
        raise StoppedError


class _OfWorker:
    """Signals of the task that runs now on a worker of a cluster."""

    def __init__(self, worker: Any, fit: str) -> None:
        self._worker = worker
        self._key = worker.get_current_task()
        self._fit = fit

    def check(self) -> None:
        from distributed import Reschedule

        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state == "cancelled":
            # Quiet, unlike an error; and if the worker is wrong, the task runs again.
            raise Reschedule

    def tell(self, text: str, short: str) -> None:
        self._worker.log_event(TOPIC, {"fit": self._fit, "text": text, "short": short})

    def begin(self, block: tuple[int, ...]) -> None:
        from distributed.utils import sync

        # The scheduler's answer is awaited: the worker may die at any moment after this.
        note = {"fit": self._fit, "task": str(self._key), "block": block}
        sync(self._worker.loop, self._worker.scheduler.log_event, topic=TOPIC, msg=note)


def worker_here() -> Any | None:
    """The Dask worker that runs the task of this thread; None for no task of a cluster."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        with suppress(ValueError):  # no task of a cluster
            return distributed.get_worker()
    return None


def tell_board(message: dict[str, Any]) -> None:
    """Tell the board of fits of a pass, from a task of a worker.

    Parameters
    ----------
    message : dict
        See :meth:`~nlsq_dask.engines.dask.fit_board.FitBoard.take`.
    """
    from distributed import get_worker

    get_worker().log_event(BOARD_TOPIC, message)


def signals_of(fit: str) -> Signals:
    """The signals of the task that runs now in this thread.

    Parameters
    ----------
    fit : str
        Identifier of its fit; see :class:`Ears`.
    """
    worker = worker_here()
    if worker is not None:
        return _OfWorker(worker, fit)
    if fit.startswith(f"{os.getpid()}-"):
        return _open.get(fit) or _Over()
    return NOBODY
