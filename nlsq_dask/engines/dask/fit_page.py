"""The page of a scheduler's dashboard that shows fits, in Bokeh."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    Div,
    LinearColorMapper,
    NumeralTickFormatter,
    Select,
    Whisker,
)
from bokeh.plotting import figure
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from nlsq_dask.engines.dask.fit_board import BoardFit, FitBoard, Histogram

# Milliseconds between two looks at the board.
LOOK_MILLISECONDS = 500

# Parameters that are drawn.
MOST_PARAMETERS = 12

# Columns of the table of fits: name of the field, and title.
COLUMNS = (
    ("title", "Model"),
    ("began", "Began"),
    ("state", "State"),
    ("number", "Pass"),
    ("cost", "Cost"),
    ("distance", "Distance [σ]"),
    ("seconds", "Seconds"),
    ("left", "Left [s]"),
    ("rate", "MB/s"),
    ("client", "Client"),
)

# Choice of the fit that is shown in detail, unless one is chosen.
NEWEST = "the newest fit"

Columns = dict[str, list[Any]]


def add_page(scheduler: Any, board: FitBoard, prefix: str) -> None:
    """Add the page to the dashboard of a scheduler, and to the menu of all pages."""
    variables = template_variables(scheduler)
    if "fits" not in variables["pages"]:
        variables["pages"].append("fits")
    documents = {"/fits": partial(_document, board)}
    app = BokehApplication(documents, scheduler, prefix=prefix, template_variables=variables)
    scheduler.http_application.add_application(app)
    app.initialize(IOLoop.current())
    app.start()


def _document(board: FitBoard, _: Any, extra: dict[str, Any], document: Any) -> None:
    """Make the page for one browser."""
    page = Page(board)
    page.update()
    add_periodic_callback(document, page, LOOK_MILLISECONDS)
    document.title = "Dask: Fits"
    document.add_root(page.root)
    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)


def table_of(fits: Sequence[BoardFit]) -> str:
    """The table of fits in HTML, the newest first."""
    head = "".join(f"<th>{title}</th>" for _, title in COLUMNS)
    rows = (
        "".join(f"<td>{escape(row_of(fit)[name])}</td>" for name, _ in COLUMNS)
        for fit in reversed(fits)
    )
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    style = "<style>td, th {text-align: left; padding: 2px 12px 2px 0}</style>"
    return f"{style}<table><tr>{head}</tr>{body}</table>"


def row_of(fit: BoardFit) -> dict[str, str]:
    """A line of the table of fits, by the names of the columns."""
    moment, last = fit.moment, fit.points[-1] if fit.points else None
    now = (_phase(fit), *_series(fit), _blocks(fit), fit.wait)
    state = fit.outcome or " · ".join(filter(None, now))
    left = "" if fit.is_over else _left(moment.get("fit_left"))
    rate = moment.get("bytes_per_second")
    return {
        "title": fit.title,
        "began": time.strftime("%H:%M:%S", time.localtime(fit.began)),
        "state": state,
        "number": "" if "series" in moment else str(moment.get("number", 0)),
        "cost": f"{last.cost:.6g}" if last else "",
        "distance": f"{last.distance:.2g}" if last and math.isfinite(last.distance) else "",
        "seconds": f"{fit.seconds:.0f}",
        "left": left,
        "rate": f"{rate / 1e6:.3g}" if rate else "",
        "client": moment.get("host", fit.client),
    }


def _phase(fit: BoardFit) -> str:
    few, many = fit.moment.get("passes") or (0, 0)
    number = fit.moment.get("number", 0)
    return f"pass {number} of about {few}–{many}" if fit.phase == "pass" else fit.phase


def _series(fit: BoardFit) -> tuple[str, ...]:
    """How far the fits of many series are."""
    series = fit.moment.get("series")
    if series is None:
        return ()
    return (
        "{done:,}/{total:,}".format(**series),
        f"{100 * series['converged']:.1f} % converged",
        f"{series['per_second']:,.0f} series/s",
    )


def _left(ends: Sequence[float | None] | None) -> str:
    """Seconds to the end, of the two ends of a range."""
    low, high = ends or (None, None)
    if low is None:
        return ""
    least, most = f"{low:.0f}", "?" if high is None else f"{high:.0f}"
    return least if least == most else f"{least}–{most}"


def _blocks(fit: BoardFit) -> str:
    blocks = fit.moment.get("blocks")
    return "{}/{} blocks".format(*blocks) if blocks else ""


def points_of(fit: BoardFit) -> Columns:
    """Costs and distances by pass; what a logarithmic axis cannot show is left out."""
    return {
        "number": [p.number for p in fit.points],
        "cost": [_positive(p.cost) for p in fit.points],
        "distance": [_positive(p.distance) for p in fit.points],
    }


def _positive(value: float) -> float:
    return value if value > 0.0 and math.isfinite(value) else math.nan


def parameter_of(fit: BoardFit, j: int) -> Columns:
    """Values of a parameter by pass, with the ends of its error bars."""
    values = [p.params[j] for p in fit.points]
    errors = [p.errors[j] if math.isfinite(p.errors[j]) else 0.0 for p in fit.points]
    return {
        "number": [p.number for p in fit.points],
        "value": values,
        "lower": [v - e for v, e in zip(values, errors, strict=True)],
        "upper": [v + e for v, e in zip(values, errors, strict=True)],
    }


def map_of(fit: BoardFit) -> Columns:
    """Sum of squares a row of each block of the last pass, by its place in the chunk grid.

    The last dimension is drawn to the right; all others together upwards.
    """
    width = fit.grid[-1] if fit.grid else 1
    if len(fit.grid) == 1:
        width = math.ceil(math.sqrt(4 * width)) if width > 100 else width
    cells: Columns = {"x": [], "y": [], "block": [], "chi2_row": []}
    for number, value in sorted(fit.chi2_rows.items()):
        for block in fit.groups[number] if number < len(fit.groups) else ():
            cells["x"].append(block % width)
            cells["y"].append(block // width)
            cells["block"].append(block)
            cells["chi2_row"].append(value)
    return cells


def title_of(histogram: Histogram) -> str:
    """The title of a histogram of residuals, with the number of its rows."""
    shown, n_rows = histogram.n_shown, histogram.n_rows
    beyond = shown - sum(histogram.counts)
    which = f"all {shown:,}" if shown == n_rows else f"{shown:,}"
    which += f" of {n_rows:,}" if shown < n_rows else ""
    return f"Residuals of {which} rows, last pass" + (f"; {beyond:,} beyond" if beyond else "")


class Page:
    """The models of the page, and what they show.

    Parameters
    ----------
    board : FitBoard
    """

    def __init__(self, board: FitBoard) -> None:
        self._board = board
        self._seen = -1
        self._names: list[str] = []
        self._parameters: list[ColumnDataSource] = []
        self._table = Div(text="No fit has run on this cluster yet.", name="fits")
        self._choice = Select(title="Show", options=[("", NEWEST)], value="", width=400)
        self._points = ColumnDataSource(points_of(BoardFit("")), name="points")
        self._rates = ColumnDataSource({"seconds": [], "rate": []}, name="rates")
        self._map = ColumnDataSource(map_of(BoardFit("")), name="map")
        self._histogram = ColumnDataSource({"left": [], "right": [], "count": []}, name="residuals")
        self._title = Div(text="", name="title")
        self._below = column(name="parameters", sizing_mode="stretch_width")
        self._choice.on_change("value", self._on_choice)
        self._residuals = self._histogram_of_residuals()
        self.root = self._layout()

    def update(self) -> None:
        """Show what is new on the board."""
        if self._seen == self._board.version:
            return
        self._seen = self._board.version
        fits = list(self._board.fits.values())
        if not fits:
            return
        self._table.text = table_of(fits)
        choices = [(fit.fit, f"{fit.title}, {row_of(fit)['began']}") for fit in reversed(fits)]
        self._choice.options = [("", NEWEST), *choices]
        self._show(self._board.fits.get(self._choice.value, fits[-1]))

    def _on_choice(self, attr: str, old: str, new: str) -> None:
        del attr, old, new  # Bokeh wants these names
        self._seen = -1
        self.update()

    def _show(self, fit: BoardFit) -> None:
        """Show one fit in detail."""
        if self._names != list(fit.names):
            self._names = list(fit.names)
            self._draw_parameters(fit)
        told = ": ".join(filter(None, (row_of(fit)["state"], fit.message)))
        self._title.text = f"<b>{escape(fit.title)}</b>: {escape(told)}"
        self._points.data = points_of(fit)
        self._rates.data = {
            "seconds": [s for s, _ in fit.rates],
            "rate": [rate / 1e6 for _, rate in fit.rates],
        }
        self._map.data = map_of(fit)
        self._show_residuals(fit)
        for j, source in enumerate(self._parameters):
            source.data = parameter_of(fit, j)

    def _show_residuals(self, fit: BoardFit) -> None:
        """Show the histogram of residuals, if any residual is told."""
        found = fit.histogram()
        self._residuals.visible = bool(found.counts)
        self._residuals.title.text = title_of(found)
        self._residuals.xaxis.axis_label = "(y − f) / σ" if fit.weighted else "y − f"
        edges = {"left": found.edges[:-1], "right": found.edges[1:]}
        self._histogram.data = edges | {"count": found.counts}

    def _draw_parameters(self, fit: BoardFit) -> None:
        """Draw a figure for each parameter of another fit."""
        self._parameters, figures = [], []
        for j in range(min(len(fit.names), MOST_PARAMETERS)):
            source = ColumnDataSource(parameter_of(BoardFit(""), j), name=f"parameter-{j}")
            plot = _figure(fit.names[j], "pass", width=285, height=200)
            plot.scatter("number", "value", source=source, size=6)
            plot.line("number", "value", source=source, alpha=0.4)
            bars = Whisker(base="number", upper="upper", lower="lower", source=source)
            plot.add_layout(bars)
            self._parameters.append(source)
            figures.append(plot)
        more = len(fit.names) - len(figures)
        note = [Div(text=f"and {more} more parameters")] if more > 0 else []
        grid = [gridplot(figures, ncols=4, toolbar_location=None)] if figures else []
        self._below.children = [*grid, *note]

    def _layout(self) -> Any:
        lines = [
            self._line(
                "Cost", "pass", x="number", y="cost", source=self._points, y_axis_type="log"
            ),
            self._line(
                "Distance to the optimum [σ]",
                "pass",
                x="number",
                y="distance",
                source=self._points,
                y_axis_type="log",
            ),
            self._line("MB/s", "seconds", x="seconds", y="rate", source=self._rates),
        ]
        return column(
            self._table,
            self._choice,
            self._title,
            row(*lines),
            row(self._chi2_map(), self._residuals),
            self._below,
            name="nlsq_dask",
            sizing_mode="stretch_width",
        )

    def _line(
        self, title: str, label: str, *, x: str, y: str, source: ColumnDataSource, **options: Any
    ) -> Any:
        plot = _figure(title, label, **options)
        plot.line(x, y, source=source)
        plot.scatter(x, y, source=source, size=6)
        return plot

    def _chi2_map(self) -> Any:
        plot = _figure("χ² a row, by block, last pass", "block", tooltips=MAP_TIPS)
        mapper = LinearColorMapper("Viridis256")
        plot.rect(
            "x",
            "y",
            1.0,
            1.0,
            source=self._map,
            line_color=None,
            fill_color={"field": "chi2_row", "transform": mapper},
        )
        plot.add_layout(ColorBar(color_mapper=mapper), "right")
        plot.yaxis.visible = False
        plot.xgrid.visible = plot.ygrid.visible = False
        return plot

    def _histogram_of_residuals(self) -> Any:
        plot = _figure(
            "Residuals", "y − f", name="histogram", visible=False, width=570, tooltips=BAR_TIPS
        )
        plot.quad(
            left="left",
            right="right",
            top="count",
            bottom=0.0,
            source=self._histogram,
            fill_alpha=0.6,
            line_color="white",
        )
        plot.y_range.start = 0.0
        plot.yaxis.axis_label = "rows"
        return plot


MAP_TIPS = [("block", "@block"), ("χ² a row", "@chi2_row")]
BAR_TIPS = [("from", "@left"), ("to", "@right"), ("rows", "@count{0,0}")]


def _figure(title: str, label: str, **options: Any) -> Any:
    sizes = {"width": 380, "height": 240} | options
    plot = figure(title=title, x_axis_label=label, toolbar_location=None, **sizes)
    if label == "pass":
        plot.xaxis.formatter = NumeralTickFormatter(format="0")
        plot.xaxis.ticker.min_interval = 1.0
        plot.xaxis.minor_tick_line_color = None
    return plot
