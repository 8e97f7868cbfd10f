"""The faces of progress: a line of a terminal, an element of a notebook, lines of a file."""

from __future__ import annotations

import contextvars
import html
import os
import sys
from contextlib import suppress
from typing import Any, Literal, Protocol, TextIO, TypeAlias

from nlsq_dask.fitting.moment import Moment, heading, line_of, parts

# A fit that ends within these seconds shows nothing, unless the caller asks for progress.
SILENT_SECONDS = 2.0

# Seconds between two redraws. A terminal flickers at shorter intervals; a notebook stores each
# update as a message; a file keeps every line.
TERMINAL_INTERVAL = 0.1
NOTEBOOK_INTERVAL = 0.5
FILE_INTERVAL = 60.0

# Characters of a terminal that does not tell its width.
USUAL_WIDTH = 80

# What stands for the characters that a stream cannot encode.
PLAIN = str.maketrans({"·": "|", "–": "-", "σ": "sigma"})


# What has just happened: all blocks of a pass were summed; the search has a new point; or only a
# block was summed, or time has passed.
Event: TypeAlias = Literal["", "blocks", "point"]


class Face(Protocol):
    """Shows where a fit is.

    Attributes
    ----------
    delay : float
        Seconds of a fit before which nothing is shown.
    """

    delay: float

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Show a moment, unless another was shown just before `now`."""
        ...

    def end(self, moment: Moment) -> None:
        """Show the last moment of a fit."""
        ...

    def leave(self) -> None:
        """Show no more of a fit that failed."""
        ...


def faces_of(progress: bool | None) -> tuple[Face, ...]:
    """The faces that suit the place where this process runs: one, or none.

    Parameters
    ----------
    progress : bool or None
        True shows progress from the start. None shows progress once a fit has taken two seconds,
        and nothing in a file that is no terminal. False shows nothing.
    """
    if progress is False:
        return ()
    delay = 0.0 if progress else SILENT_SECONDS
    if in_notebook():
        return (NotebookDisplay(delay),)
    stream = sys.stderr
    if stream is None:  # a process without a console
        return ()
    if stream.isatty():
        return (TerminalLine(stream, delay),)
    return (PlainLines(stream),) if progress else ()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class _Writer:
    """Writes to a stream. A stream that is closed or broken is no reason for a fit to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a text, in characters that the stream has."""
        with suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                plain = text.translate(PLAIN)
                self._stream.write(plain.encode("ascii", "replace").decode("ascii"))
            self._stream.flush()

    @property
    def width(self) -> int:
        """Columns of the terminal, less the last, which may break the line."""
        columns = 0
        with suppress(OSError, ValueError):  # no terminal, or closed
            columns = os.get_terminal_size(self._stream.fileno()).columns
        return (columns or USUAL_WIDTH) - 1


class TerminalLine:
    """A line that is redrawn in place, and that fits the terminal.

    Parameters
    ----------
    stream : text file
        A terminal.
    delay : float
        Seconds of a fit before which nothing is shown.
    """

    def __init__(self, stream: TextIO, delay: float = 0.0) -> None:
        self.delay = delay
        self._to = _Writer(stream)
        self._drawn: float | None = None
        self._length = 0

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Redraw the line; see :class:`Face`."""
        if event or self._drawn is None or now - self._drawn >= TERMINAL_INTERVAL:
            self._drawn = now
            self._draw(moment)

    def end(self, moment: Moment) -> None:
        """Draw the last line, and go to the next; see :class:`Face`."""
        self._draw(moment)
        self._to.write("\n")

    def leave(self) -> None:
        """Leave the line as it is; see :class:`Face`."""
        if self._drawn is not None:
            self._to.write("\n")

    def _draw(self, moment: Moment) -> None:
        width = self._to.width
        text = line_of(moment, width)
        # Spaces cover what is left of a longer line.
        self._to.write("\r" + text.ljust(min(self._length, width)))
        self._length = len(text)


class PlainLines:
    """Lines of a file that is no terminal: one a pass, at most one a minute, and one at the end.

    Fits of many series have no passes, and a line a minute.

    Parameters
    ----------
    stream : text file
    """

    delay = 0.0

    def __init__(self, stream: TextIO) -> None:
        self._to = _Writer(stream)
        self._written: float | None = None

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Write a line where a pass has ended, or the fit waits; see :class:`Face`."""
        if self._written is None:
            self._written = now - moment.seconds  # when the fit began
        is_news = event == "point" or moment.wait or moment.series is not None
        if is_news and now - self._written >= FILE_INTERVAL:
            self._written = now
            self._to.write(line_of(moment) + "\n")

    def end(self, moment: Moment) -> None:
        """Write the last line; see :class:`Face`."""
        self._to.write(line_of(moment) + "\n")

    def leave(self) -> None:
        """Write nothing; see :class:`Face`."""


class NotebookDisplay:
    """One element of a notebook, updated in place. A saved notebook has its last state, a line.

    Parameters
    ----------
    delay : float
        Seconds of a fit before which nothing is shown.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self._handle: Any = None
        self._drawn: float | None = None
        # IPython looks into the context of a thread for the cell that its output belongs to.
        self._cell = contextvars.copy_context()

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Update the element; see :class:`Face`."""
        del event
        if self._drawn is None or now - self._drawn >= NOTEBOOK_INTERVAL:
            self._drawn = now
            self._draw(_Element(moment))

    def end(self, moment: Moment) -> None:
        """Leave one line; see :class:`Face`."""
        self._draw(_Element(moment))

    def leave(self) -> None:
        """Leave the element as it is; see :class:`Face`."""

    def _draw(self, element: _Element) -> None:
        self._cell.copy().run(self._display, element)

    def _display(self, element: _Element) -> None:
        from IPython.display import display  # a notebook has it

        if self._handle is None:
            self._handle = display(element, display_id=True)
        else:
            self._handle.update(element)


class _Element:
    """A moment as text and as HTML."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def __repr__(self) -> str:
        return line_of(self._moment)

    def _repr_html_(self) -> str:
        return html_of(self._moment)


def html_of(moment: Moment) -> str:
    """A moment as one element of HTML: a bar and a line; at the end the line alone."""
    line = html.escape(line_of(moment))
    if moment.outcome:
        return f'<div class="nlsq-progress">{line}</div>'
    bar = "<progress></progress>"
    if moment.blocks is not None:
        done, total = moment.blocks
        bar = f'<progress value="{done}" max="{total}"></progress>'
    details = html.escape(" · ".join(text for _, text in parts(moment)[1:]))
    title = html.escape(heading(moment))
    return (
        f'<div class="nlsq-progress"><b>{title}</b> {bar}<br>'
        f'<span style="font-variant-numeric: tabular-nums">{details}</span></div>'
    )
