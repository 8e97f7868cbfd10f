"""Maps of fits as a text: how many series converged, and the spread of each parameter."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.results.maps_record import MapsRecord
from nlsq_dask.results.tables import html_table

# Titles of the columns of a report.
HEAD = ["", "5 %", "median", "95 %", "median error"]

# Quantiles of the maps that a report shows.
SHOWN = (0.05, 0.5, 0.95)


def report(maps: MapsRecord) -> str:
    """The report that ``print(maps)`` shows. Lazy maps are not computed."""
    lines = _lines(maps)
    if maps.lazy:
        return "\n".join(lines)
    rows = [HEAD, *_rows(maps)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def html_report(maps: MapsRecord) -> str:
    """The same for notebooks."""
    lines = "<br>".join(map(html.escape, _lines(maps)))
    table = "" if maps.lazy else html_table(_rows(maps), HEAD, caption="")
    return f"<div><p>{lines}</p>{table}</div>"


def _lines(maps: MapsRecord) -> list[str]:
    """What was fitted, and how the fits ended."""
    axes = maps.axes
    along = [str(axes.dims[d] if axes.dims else f"axis {d}") for d in axes.fit]
    n_series = int(np.prod(maps.shape))
    lines = [
        f"{n_series:,} series of {axes.n_rows:,} rows, fitted along {', '.join(along)}",
        f"map of shape {maps.shape}",
    ]
    if maps.strategy == "frames":
        lines.append("read frame by frame")
    if maps.lazy and maps.stored is None:
        return [*lines, "not computed yet: call compute()"]
    lines.append(_errors.series_text(maps.counts()))
    if maps.lazy and maps.stored is not None:
        lines.append(f"stored in {maps.stored.place}: compute() reads all maps")
    return lines


def _rows(maps: MapsRecord) -> list[list[str]]:
    """A row of the table for each parameter."""
    return [_row(maps, i, name) for i, name in enumerate(maps.names)]


def _row(maps: MapsRecord, i: int, name: str) -> list[str]:
    good = np.asarray(maps.fields["status"]) > 0
    values, errors = (np.asarray(maps.fields[f][i])[good] for f in ("popt", "perr"))
    if not good.any():
        return [name, "-", "-", "-", "-"]
    numbers: Any = [*np.quantile(values, SHOWN), np.median(errors)]
    return [name, *(f"{number:.5g}" for number in numbers)]
