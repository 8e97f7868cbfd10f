"""A progress line for long fits."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self, TextIO

# Seconds between two redraws. A terminal flickers at shorter intervals.
REDRAW_INTERVAL = 0.1

# A fit that ends within these seconds shows no line, unless the caller asks for the line.
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
        """Show that ``done`` of ``total`` blocks of a pass are summed; pass 0 reads a sample."""
        if not self._wanted:
            return
        with self._lock:
            now = time.monotonic()
            redraw = done == total or now - self._drawn_at >= REDRAW_INTERVAL
            if redraw and now - self._start >= self._delay:
                self._draw_blocks(number, done, total, now)
            if done == total:
                self._pass_start = now  # of the next one

    def series(self, done: int, total: int, rate: float, converged: float, left: float) -> None:
        """Show how many series are fitted, how many a second, and which part has converged."""
        if not self._wanted:
            return
        with self._lock:
            now = time.monotonic()
            redraw = done == total or now - self._drawn_at >= REDRAW_INTERVAL
            if redraw and now - self._start >= self._delay:
                share = f"{100 * converged:.1f} % converged"
                self._draw(
                    f"{done:,}/{total:,} series · {rate:,.0f}/s · {share} · "
                    f"{now - self._start:.0f} s · ends in {left:.0f} s"
                )
                self._drawn_at = now

    def cost(self, value: float) -> None:
        """Remember the cost of the best point so far."""
        self._cost = value

    def note(self, text: str) -> None:
        """Show what the fit waits for, until the next block is done."""
        if not self._wanted:
            return
        with self._lock:
            now = time.monotonic()
            if now - self._start >= self._delay:
                self._draw(f"{text} · {now - self._start:.0f} s")

    def _draw_blocks(self, number: int, done: int, total: int, now: float) -> None:
        left = f"{(now - self._pass_start) / done * (total - done):.0f} s" if done else "?"
        cost = "" if self._cost is None else f" · cost {self._cost:.6g}"
        what = f"pass {number}" if number else "sample"
        self._draw(
            f"{what} · {done}/{total} blocks{cost} · "
            f"{now - self._start:.0f} s · {what.partition(' ')[0]} ends in {left}"
        )
        self._drawn_at = now

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
