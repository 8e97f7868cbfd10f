"""A result as one file of HTML, which needs no network and no other file.

The page says first whether the fit converged, why it ended, and what to do. Every text is escaped:
names and messages come from the user's code.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlsq_dask import _errors
from nlsq_dask._errors import in_units
from nlsq_dask.core.installed import library_versions, machine
from nlsq_dask.io.observations import Observations
from nlsq_dask.results import report, saving
from nlsq_dask.results.drawing.course import plot_correlation, plot_history
from nlsq_dask.results.drawing.residuals import plot_residuals
from nlsq_dask.results.fit_plan import FitPlan, in_time
from nlsq_dask.results.pictures import Pictures
from nlsq_dask.results.provenance import Provenance
from nlsq_dask.results.tables import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, str]

_STYLE = """
:root { color-scheme: light dark; --line: #bbb; --good: #0072B2; --bad: #D55E00; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { border-left: 0.5rem solid var(--good); padding: 0.6rem 1rem; background: #8882; }
.verdict.bad { border-color: var(--bad); }
.verdict strong { font-size: 1.2rem; } .verdict.bad strong { color: var(--bad); }
table { border-collapse: collapse; margin: 0.5rem 0; }
td, th { border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
caption { color: #888; } figure { margin: 1rem 0; }
img { max-width: 100%; background: white; } figcaption { color: #888; font-size: 0.9rem; }
pre { overflow-x: auto; padding: 0.8rem; background: #8882; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of the report: its title, a description for readers who do not see it, and how."""

    title: str
    description: str
    draw: Callable[[], Figure]


def page(result: Pictures, title: str = "Report of a fit") -> str:
    """The report of a result as a page of HTML.

    Parameters
    ----------
    result : FitResult
    title : str

    Returns
    -------
    str
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _verdict(result),
        _section("Parameters", report.estimates_table(result)),
        _section("Remarks", _list(report.remarks(result))),
        _section("Statistics", _table(report.statistics_rows(result))),
        _section("Pictures", "".join(_pictures(result))),
        _section("Plan and course", _course(result)),
        _section("Data", _table(_data_rows(result))),
        _section("Search", _table(report.solver_rows(result))),
        _section("How to make it again", _again(_provenance(result))),
        _section("Versions", _table([*library_versions().items(), ("machine", machine())])),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    size = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{size}{head}</head>\n<body>\n{body}\n'
        "</body></html>\n"
    )


def write(result: Pictures, place: str | os.PathLike[str]) -> None:
    """Write the report of a result to a file. An existing file is replaced.

    Raises
    ------
    InputError, InputTypeError
        If the place is unusable.
    OSError
        If the file cannot be written.
    """
    saving.put(place, page(result).encode())


def _verdict(result: Pictures) -> str:
    """Whether the fit converged, why it ended, and what to do."""
    good = result.success
    said = "The fit converged." if good else "The fit DID NOT converge."
    status = f"{result.status.name}, {int(result.status)}"
    lines = [
        f"<p><strong>{said}</strong></p><p>{html.escape(result.message)} ({status})</p>",
        "" if good else f"<p>{html.escape(_errors.NO_OPTIMUM)}</p>",
    ]
    return f'<div class="verdict {"good" if good else "bad"}" role="status">{"".join(lines)}</div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    return html_table(rows, head, caption="") if rows else ""


def _provenance(result: Pictures) -> Provenance | None:
    return None if result.fitted is None else result.fitted.provenance


def _pictures(result: Pictures) -> Iterator[str]:
    """The pictures; a sentence where matplotlib or the data are missing."""
    has_data = result.fitted is not None and result.fitted.data is not None
    if not has_data:
        yield "<p>Pictures of the data need the result that fit() returned.</p>"
    for shown in _shown(result, has_data=has_data):
        try:
            image = _encoded(shown.draw())
        except _errors.MissingLibraryError as error:
            yield f"<p>{html.escape(str(error))}</p>"
            return
        title, text = html.escape(shown.title), html.escape(shown.description, quote=True)
        yield f'<figure><img alt="{text}" src="{image}"><figcaption>{title}</figcaption></figure>'


def _shown(result: Pictures, *, has_data: bool) -> Iterator[Shown]:
    if has_data:
        yield Shown("Data, fit and residuals", "The data with the fit.", result.plot)
        text = "Histogram, quantiles and mean residuals."
        yield Shown("Residuals", text, lambda: plot_residuals(result))
    if result.has_blocks:
        text = "How well each block fits, and how far it moves the estimates."
        yield Shown("Blocks", text, result.plot_blocks)
    if result.n_free > 1:
        text = "A map of the correlations of the estimates."
        yield Shown("Correlations", text, lambda: plot_correlation(result))
    if len(result.history) > 1:
        text = "Cost and distance to the optimum over the evaluations."
        yield Shown("Course of the search", text, lambda: plot_history(result))


def _encoded(figure: Figure) -> str:
    """A figure as text that HTML shows as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _course(result: Pictures) -> str:
    """What the plan predicted, beside what happened."""
    made = _provenance(result)
    plan = None if made is None else made.planned()
    passes = f"{result.n_passes}"
    if result.n_passes_before:
        passes += f", {result.n_passes_before} of them in earlier runs"
    rows = [
        ("strategy", "" if plan is None else plan.strategy, result.strategy),
        ("passes over all rows", "" if plan is None else _span(plan.passes), passes),
        ("evaluations", "", f"{result.nfev:,}"),
        ("rows", "" if plan is None else f"{plan.rows:,}", _rows_text(result)),
    ]
    if plan is not None:
        rows += _planned_rows(plan, result)
    if made is not None:
        rows.append(("time", "" if plan is None else _seconds(plan), in_time(made.seconds)))
    notes = _list(() if plan is None else plan.warnings)
    return _table(rows, ("", "planned", "happened")) + notes


def _planned_rows(plan: FitPlan, result: Pictures) -> list[tuple[str, str, str]]:
    """What is planned in bytes."""
    before = plan.bytes_once + plan.pilot_bytes + plan.bytes_per_pass
    later = max(result.n_passes - result.n_passes_before - 1, 0) * plan.bytes_per_later_pass
    read = [("bytes read", _span_of_bytes(plan.total_bytes), f"about {in_units(before + later)}")]
    available = result.budget.available_gb
    limit = "" if math.isinf(available) else f"limit {in_units(available * 1e9)}"
    memory = ("memory", f"at most {in_units(plan.memory_bytes)}", limit)
    return [*(read if plan.strategy == "streaming" else []), memory]


def _seconds(plan: FitPlan) -> str:
    return "" if plan.total_seconds is None else " to ".join(map(in_time, plan.total_seconds))


def _rows_text(result: Pictures) -> str:
    skipped = f", and {result.n_skipped:,} left out" if result.n_skipped else ""
    return f"{result.n_points:,}{skipped}"


def _span(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _span_of_bytes(ends: tuple[int, int]) -> str:
    low, high = map(in_units, ends)
    return low if low == high else f"{low} to {high}"


def _data_rows(result: Pictures) -> list[Row]:
    """Shapes, types and chunks of the data, units, and how stored numbers were decoded."""
    data = None if result.fitted is None else result.fitted.data
    rows = [] if data is None else [*_array_rows(data)]
    rows += [(f"unit of {name}", unit) for name, unit in result.data_units.items()]
    rows += [("decoded", line) for line in result.decoded]
    rows += [("times", str(axis)) for axis in result.times if axis is not None]
    return rows


def _array_rows(data: Observations) -> Iterator[Row]:
    for name, array in zip(data.names, data.values, strict=True):
        shape = " × ".join(f"{n:,}" for n in array.shape)
        chunks = getattr(array, "chunksize", None)
        cut = "" if chunks is None else f", in chunks of {' × '.join(f'{n:,}' for n in chunks)}"
        yield name, f"{shape} of {array.dtype}, {in_units(array.nbytes)}{cut}"


def _again(made: Provenance | None) -> str:
    """The call of the fit as code, and the source of the model."""
    if made is None:
        return ""
    texts = [text for text in (made.source(), made.call()) if text]
    return "".join(f"<pre><code>{html.escape(text)}</code></pre>" for text in texts)
