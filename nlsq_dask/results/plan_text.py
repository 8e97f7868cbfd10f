"""What plans of all kinds print: a title, a table of names and texts, and warnings."""

from __future__ import annotations

import html
from collections.abc import Sequence

from nlsq_dask.results.tables import LEFT, html_rows, plural, wrapped

#: Names and texts of the rows of the table of a plan, in order.
Rows = Sequence[tuple[str, str]]


def plan_text(title: str, rows: Rows, warnings: Sequence[str]) -> str:
    """A plan as lines of text."""
    width = max(len(name) for name, _ in rows)
    lines = [title]
    for name, text in rows:
        lines += wrapped(text, f"  {name:<{width}}  ")
    for text in warnings:
        lines += wrapped(text, "  Warning: ")
    return "\n".join(lines)


def plan_html(title: str, rows: Rows, warnings: Sequence[str]) -> str:
    """A plan as HTML for notebooks."""
    table = html_rows(rows, scope="", style=LEFT)
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in warnings)
    listed = f"<p>Warnings</p><ul>{notes}</ul>" if notes else ""
    return f"<p>{html.escape(title)}</p><table>{table}</table>{listed}"


def where_text(threads: int, workers: int) -> str:
    """Where tasks run: on so many threads, of workers if there are workers."""
    where = f"{threads} thread{plural(threads)}" if threads else "no worker yet"
    return where + (f" of {workers} worker{plural(workers)}" if workers else "")
