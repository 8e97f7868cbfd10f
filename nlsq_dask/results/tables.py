"""Tables of texts: lines of aligned columns, and HTML for notebooks."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence

# Characters of a line of a plan.
WIDTH = 96

# Styles for light and dark pages alike: they set no colours.
LEFT = "text-align:left"
CELL = f"{LEFT};padding:0.1em 1em 0.1em 0"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line for each row: columns of equal widths, two spaces between them."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def wrapped(text: str, head: str) -> list[str]:
    """Lines of at most WIDTH characters: the first begins with a head, the others below its end."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def plural(count: int) -> str:
    """The ending of a noun after a number: "s" unless the number is 1."""
    return "" if count == 1 else "s"


def html_table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), *, caption: str, titled: bool = True
) -> str:
    """A table with a caption and a head.

    Parameters
    ----------
    rows : iterable of sequences of str
    head : sequence of str
        Titles of the columns; none for a table without a head.
    caption : str
        None is written for an empty text.
    titled : bool
        Whether the first cell of a row is its title.
    """
    titles = "".join(_cell("th", title, scope=' scope="col"', style=CELL) for title in head)
    above = f"<thead><tr>{titles}</tr></thead>" if head else ""
    captioned = f'<caption style="{LEFT}">{html.escape(caption)}</caption>' if caption else ""
    return f"<table>{captioned}{above}<tbody>{html_rows(rows, titled=titled)}</tbody></table>"


def html_rows(
    rows: Iterable[Sequence[str]],
    *,
    titled: bool = True,
    scope: str = ' scope="row"',
    style: str = CELL,
) -> str:
    """Rows of a table; parameters as for :func:`html_table`."""
    written = []
    for row in rows:
        title = [_cell("th", row[0], scope=scope, style=style)] if titled else []
        cells = [_cell("td", text, scope="", style=style) for text in row[titled:]]
        written.append(f"<tr>{''.join([*title, *cells])}</tr>")
    return "".join(written)


def _cell(tag: str, text: str, *, scope: str, style: str) -> str:
    return f'<{tag}{scope} style="{style}">{html.escape(text)}</{tag}>'
