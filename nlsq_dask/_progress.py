"""One line that shows where a long fit is."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self, TextIO

from nlsq_dask.core.trf import IterationRecord

# Seconds between two redraws: below it a terminal only flickers.
REDRAW_INTERVAL = 0.1

# A fit that ends within these seconds shows nothing unless it was asked to.
QUIET_SECONDS = 2.0


class ProgressLine:
    """Pass, blocks done, cost, time spent and time left, redrawn in place.

    Parameters
    ----------
    show : bool or None
        True shows the line from the start; None only on a terminal, and only once the fit has
        taken two seconds; False never.
    stream : text file, optional
        Where to write; standard error by default.
    """

    def __init__(self, show: bool | None, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._delay = 0.0 if show else QUIET_SECONDS
        self._wanted = self._stream.isatty() if show is None else show
        self._start = self._pass_start = time.monotonic()
        self._drawn_at = -1.0
        self._width = 0
        self._pass = 0
        self._cost: float | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._width:
                self._stream.write("\n")
                self._stream.flush()
                self._width = 0

    def blocks(self, number: int, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` blocks of a pass are summed."""
        if not self._wanted:
            return
        with self._lock:
            now = time.monotonic()
            if number != self._pass:
                self._pass, self._pass_start = number, now
            if now - self._start < self._delay or (
                now - self._drawn_at < REDRAW_INTERVAL and done < total
            ):
                return
            spent = now - self._pass_start
            left = f"{spent / done * (total - done):.0f} s" if done else "?"
            cost = "" if self._cost is None else f" · cost {self._cost:.6g}"
            self._draw(
                f"pass {number} · {done}/{total} blocks{cost} · "
                f"{now - self._start:.0f} s · pass ends in {left}"
            )
            self._drawn_at = now

    def iteration(self, record: IterationRecord) -> None:
        """Remember the cost of the best point so far."""
        if record.accepted:
            self._cost = record.cost

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
