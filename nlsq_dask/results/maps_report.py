"""Maps of fits as a text: how many series converged, and the spread of each parameter."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.results.maps_record import MapsRecord

# Quantiles of the maps that a report shows.
SHOWN = (0.05, 0.5, 0.95)


def report(maps: MapsRecord) -> str:
    """The report that ``print(maps)`` shows. Lazy maps are not computed."""
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
        return "\n".join([*lines, "not computed yet: call compute()"])
    lines.append(_errors.series_text(maps.counts()))
    if maps.lazy and maps.stored is not None:
        return "\n".join([*lines, f"stored in {maps.stored.place}: compute() reads all maps"])
    header = ["", "5 %", "median", "95 %", "median error"]
    rows = [header, *(_row(maps, i, name) for i, name in enumerate(maps.names))]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _row(maps: MapsRecord, i: int, name: str) -> list[str]:
    good = np.asarray(maps.fields["status"]) > 0
    values, errors = (np.asarray(maps.fields[f][i])[good] for f in ("popt", "perr"))
    if not good.any():
        return [name, "-", "-", "-", "-"]
    numbers: Any = [*np.quantile(values, SHOWN), np.median(errors)]
    return [name, *(f"{number:.5g}" for number in numbers)]
