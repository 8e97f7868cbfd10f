"""Progress of a fit: what its engine and its search tell, as one model that any face can show."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from nlsq_dask import _errors
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.fitting.expected import Expected
from nlsq_dask.fitting.faces import Event, Face
from nlsq_dask.fitting.moment import Moment, Phase, SeriesDone
from nlsq_dask.fitting.pace import Pace, Seconds

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")

# Seconds between two looks at the clock. They show a pass whose first block takes long.
TICK = 0.5

# What a fit does until the first block of all is summed.
COMPILING = "compiling"
FIRST_BLOCKS = "compiling and reading the first blocks"
READING_SAMPLE = "reading a sample"
FITTING_SAMPLE = "compiling and fitting the sample"


class Progress:
    """The model of progress: phase, blocks, rates, cost, distance, and time left.

    Without a face nothing is measured.

    Parameters
    ----------
    faces : sequence of Face
        Where to show.
    clock : callable
        The time in seconds.
    """

    def __init__(
        self, faces: Sequence[Face] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._faces = list(faces)
        self._clock = clock
        self._lock = threading.RLock()
        self._began = self._since = clock()
        self._expected = Expected()
        self._phase: Phase = "examining"
        self._number = 0
        self._blocks: tuple[int, int] | None = None
        self._pace: Pace | None = None
        self._of_block: Seconds | None = None  # by what was measured last
        self._rate = 0.0  # blocks a second, likewise
        self._costs: dict[str, float] = {}
        self._distances: dict[str, float] = {}
        self._state: SolverState | None = None
        self._model = ""
        self._series: SeriesDone | None = None
        self._wait = self._outcome = ""
        self._is_closed = False

    def __enter__(self) -> Self:
        if self._faces:
            _ticker.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show the outcome, and no more."""
        if not self._faces or self._is_closed:
            return
        _ticker.remove(self)
        with self._lock:
            self._is_closed = True
            moment = self.moment()
            for face in self._faces:
                if moment.seconds >= face.delay and self._outcome:
                    face.end(moment)
                else:
                    face.leave()

    def add(self, faces: Sequence[Face]) -> None:
        """Show on other faces, too."""
        if faces and not self._faces:
            _ticker.add(self)
        self._faces += faces

    def expect(self, known: Callable[[], Expected]) -> None:
        """Take note of what is known of the fit before it runs."""
        if not self._faces:
            return
        expected = known()
        self._expected, self._since = expected, self._clock()
        if expected.pilot:
            self._phase = "pilot"
            self._wait = READING_SAMPLE if expected.blocks > 1 else FITTING_SAMPLE

    def asking(
        self, ask: Callable[[QuestionT], AnswerT], number: Callable[[], int]
    ) -> Callable[[QuestionT], AnswerT]:
        """Take note of the passes in which questions are answered.

        Parameters
        ----------
        ask : callable
        number : callable
            The number of the pass that begins.
        """

        def noted(question: QuestionT) -> AnswerT:
            begun = number()
            if (self._phase, self._number) == ("pass", begun):  # collapsed rows are read once
                return ask(question)
            with self._lock:
                self._begin(begun)
                self._show()
            answer = ask(question)
            with self._lock:
                self._end_pass()
            return answer

        return noted if self._faces else ask

    def blocks(self, number: int, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` blocks of a pass are summed; 0 reads a sample."""
        if not self._faces:
            return
        with self._lock:
            is_sample = number == 0
            if is_sample and (self._phase != "pilot" or self._pace is None):
                self._phase, self._pace = "pilot", Pace(self._since)
            elif not is_sample and (self._phase, self._number) != ("pass", number):
                self._begin(number)
            self._measure(done)
            self._blocks = (done, total)
            self._wait = READING_SAMPLE if is_sample else ""
            self._show("blocks" if done == total else "")
            if is_sample and done == total:
                self._blocks, self._pace, self._since = None, None, self._clock()
                self._wait = FITTING_SAMPLE if self._expected.pilot else ""

    def state(self, state: SolverState, model: str = "") -> None:
        """Take note of the best point so far, of one of several models."""
        if not self._faces:
            return
        with self._lock:
            self._state, self._model = state, model
            self._costs[model] = state.cost
            self._distances[model] = state.history[-1].distance
            self._show("point")
            if state.status is not None:
                self._phase, self._wait = "final", ""

    def series(self, series: SeriesDone) -> None:
        """Take note of how far the fits of many series are."""
        if not self._faces:
            return
        with self._lock:
            self._phase, self._series = "series", series
            self._show("blocks" if series.done == series.total else "")

    def note(self, text: str) -> None:
        """Show what the fit waits for, until the next block is done."""
        if not self._faces:
            return
        with self._lock:
            self._wait = text
            self._show()

    def end(self, outcome: str, n_passes: int) -> None:
        """Show how the fit ended, and no more."""
        self._outcome, self._number, self._blocks = outcome, n_passes, None
        self.close()

    def end_of_series(self) -> None:
        """Show that the fits of many series are done, if any ran, and no more."""
        if self._series is not None:
            self.end(_errors.series_ended(self._series.total), 0)

    def tick(self) -> None:
        """Show that time has passed."""
        with self._lock:
            if not self._is_closed:
                self._show()

    def moment(self) -> Moment:
        """Where the fit is now."""
        now = self._clock()
        known, a_pass, rate = self._expected, self._of_pass(), self._rate
        many = len(self._costs) > 1
        return Moment(
            phase=self._phase,
            seconds=now - self._began,
            number=self._number,
            passes=known.passes,
            blocks=self._blocks,
            rows_per_second=None if not rate else rate * known.rows / known.blocks,
            bytes_per_second=None if not rate else rate * known.n_bytes / known.blocks,
            cost=None if many else next(iter(self._costs.values()), None),
            distance=max(self._distances.values(), default=None),
            pass_left=self._pass_left(now),
            fit_left=None if self._outcome or a_pass is None else self._fit_left(now, a_pass),
            wait=self._wait,
            outcome=self._outcome,
            state=self._state,
            model=self._model,
            series=self._series,
        )

    def _begin(self, number: int) -> None:
        """A pass begins."""
        self._phase, self._number = "pass", number
        self._blocks = None
        self._pace = Pace(self._clock())
        first = FIRST_BLOCKS if self._expected.blocks > 1 else COMPILING
        self._wait = "" if self._of_block or number > 1 else first

    def _measure(self, done: int) -> None:
        pace = self._pace
        assert pace is not None, "a pass or a sample that has begun"
        pace.report(self._clock(), done)
        if self._expected.blocks == 1 and self._number < 2:
            return  # most of the first pass over data in memory is the compilation
        self._of_block = pace.of_block or self._of_block
        self._rate = pace.blocks / pace.seconds if pace.seconds > 0.0 else self._rate

    def _end_pass(self) -> None:
        """All blocks are summed, also those of an engine that tells no blocks."""
        if self._pace is not None and self._phase == "pass":
            self._measure(self._expected.blocks)
        self._blocks, self._pace, self._since = None, None, self._clock()
        self._wait = ""

    def _of_pass(self) -> Seconds | None:
        """Time of a pass that follows."""
        if self._of_block is None:
            return None
        n = self._expected.blocks
        # Rows that are kept are not read again. How much faster this is, the next pass tells.
        few = n * (1.0 - self._expected.kept) if self._number < 2 else n
        return self._of_block.times(few, n)

    def _pass_left(self, now: float) -> Seconds | None:
        """Time to the end of the pass, or of the sample; None before a block is measured."""
        if self._of_block is None or self._pace is None or self._outcome:
            return None
        done, total = self._blocks or (0, self._expected.blocks)
        left = self._of_block.times(total - done, total - done)
        spent = now - self._pace.last  # since the last block was done
        high = None if left.high is None else max(left.high - spent, 0.0)
        return Seconds(max(left.low - spent, 0.0), high)

    def _fit_left(self, now: float, a_pass: Seconds) -> Seconds:
        """Time to the end of the fit, by the passes that most fits take."""
        if self._phase == "final":
            return self._pass_left(now) or Seconds(0.0, 0.0)
        few, many = (max(n - self._number, 0) for n in self._expected.passes)
        left = a_pass.times(few, many)
        if self._number > self._expected.passes[1]:
            left = Seconds(left.low, None)
        begun = self._pass_left(now)
        return left if begun is None or self._phase == "pilot" else left + begun

    def _show(self, event: Event = "") -> None:
        now = self._clock()
        due = [face for face in self._faces if now - self._began >= face.delay]
        if due:
            moment = self.moment()
            for face in due:
                face.show(moment, now, event)


class _Ticker:
    """A thread that lets open fits show that time passes. It is started by the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Progress] = []
        self._any = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, progress: Progress) -> None:
        """Look after a fit that begins."""
        with self._lock:
            self._open.append(progress)
            self._any.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nlsq-clock", daemon=True)
                self._thread.start()

    def remove(self, progress: Progress) -> None:
        """A fit is over."""
        with self._lock:
            self._open.remove(progress)

    def _run(self) -> None:
        while self._any.wait():
            time.sleep(TICK)
            with self._lock:
                now_open = list(self._open)
                if not now_open:
                    self._any.clear()
            for progress in now_open:
                progress.tick()


_ticker = _Ticker()
