"""Reports of a result: short, in full, and as HTML for notebooks."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import NO_OPTIMUM
from nlsq_dask.core.statistics import mean
from nlsq_dask.core.structure import argument_name, coordinate_names
from nlsq_dask.results.record import FitRecord, Parameter, n_basins
from nlsq_dask.results.tables import aligned, html_table

# Least correlation that the report lists: above it, a standard error alone says little. The report
# lists at most MOST_CORRELATIONS, as p parameters have p² / 2 pairs.
NOTABLE_CORRELATION = 0.5
# From this correlation on, the data hardly tell two parameters apart. The standard error of each is
# 1 / sqrt(1 - 0.99²) = 7 times as large as if the other parameter were known.
DEPENDENT_CORRELATION = 0.99
MOST_CORRELATIONS = 10
# Least difference between the ends of two intervals that the report mentions, in half-widths.
NOTABLE_DIFFERENCE = 0.1

LEVEL = 0.95

# Omitted blocks that a report lists.
LISTED_BLOCKS = 6

_BOUNDS = {-1: "at its lower bound", 0: "", 1: "at its upper bound"}

Row = tuple[str, str]


def short_report(record: FitRecord) -> str:
    """A table of the estimates, and the cost of the fit."""
    titles = [_title(record, name) for name in record.names]
    width = max(map(len, titles))
    lines = [_outcome(record)]
    for name, (_, parameter, remark) in zip(titles, _estimates(record), strict=True):
        note = f"  ({remark})" if remark else ""
        lines.append(f"  {name:<{width}} = {parameter}{note}")
    skipped = f"  ({record.n_skipped:,} left out)" if record.n_skipped else ""
    rows = [
        ("rows", f"{record.n_points:,}{skipped}"),
        *_time_rows(record),
        ("chi2", f"{record.chi2:.8g}"),
        ("reduced chi2", f"{record.reduced_chi2:.6g}  ({record.dof:,} degrees of freedom)"),
        ("strategy", record.strategy),
        *_cost_rows(record),
    ]
    return "\n".join([*lines, *_indented(rows)])


def full_report(
    record: FitRecord, profiled: Mapping[str, tuple[float, float]] | None = None
) -> str:
    """Estimates with their intervals, statistics, correlations, and the cost of the fit.

    `profiled` holds the known intervals by profiles, at the level of the report.
    """
    sections = [
        _outcome(record),
        _section("Parameters", _parameter_lines(record)),
        _section("Statistics", _indented(statistics_rows(record))),
        _section(
            f"Correlations above {NOTABLE_CORRELATION:g} in absolute value",
            _correlation_lines(record),
        ),
        _section("Remarks", [*_remark_lines(record), *_profile_lines(record, profiled or {})]),
        _section("Solver", _indented(solver_rows(record))),
    ]
    return "\n\n".join(section for section in sections if section)


def html_report(record: FitRecord) -> str:
    """A table of estimates and one of statistics, for notebooks."""
    summary: list[Row] = [
        ("rows", f"{record.n_points:,}"),
        *_time_rows(record),
        ("reduced chi2", f"{record.reduced_chi2:.6g}"),
        ("R²", f"{record.r_squared:.6g}"),
        ("RMSE", f"{record.rmse:.6g}"),
        *_cost_rows(record),
    ]
    statistics = html_table(summary, caption="Statistics")
    if record.success:
        return f"<div>{estimates_table(record, _outcome(record))}{statistics}</div>"
    # The border and the weight of the text show on light and dark pages.
    verdict = f"<strong>{html.escape(_outcome(record))}</strong><br>{html.escape(NO_OPTIMUM)}"
    return (
        f'<div style="border-left:0.4em solid #D55E00;padding-left:0.8em">'
        f'<p role="status">{verdict}</p>{estimates_table(record)}{statistics}</div>'
    )


def estimates_table(record: FitRecord, caption: str = "") -> str:
    """The estimates with errors, intervals and remarks, as a table of HTML."""
    value = "Estimate" if record.success else "Last value, no optimum"
    head = ["Parameter", value, "Standard error", f"{LEVEL:.0%} interval", "Remark"]
    body = [
        [title, f"{p.value:.8g}", f"{p.stderr:.3g}", _interval(low, high, p.stderr), remark]
        for title, (_, p, remark), (low, high) in zip(
            [_title(record, name) for name in record.names],
            _estimates(record),
            record.confidence_intervals(LEVEL),
            strict=True,
        )
    ]
    if not any(row[-1] for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    return html_table(body, head, caption=caption)


def remarks(record: FitRecord) -> list[str]:
    """Remarks on the estimates: active bounds, strong correlations, differenced rows."""
    lines = _remark_lines(record)
    if record.undetermined:
        lines.append(str(_errors.covariance_undetermined(record.undetermined)))
    if record.n_differenced:
        lines.append(str(_errors.derivatives_differenced(record.n_differenced, record.n_points)))
    return lines


def _outcome(record: FitRecord) -> str:
    how = "Fit converged" if record.success else "Fit DID NOT converge"
    return f"{how}: {record.message}"


def _estimates(record: FitRecord) -> list[tuple[str, Parameter, str]]:
    """Name, estimate and remark of each parameter."""
    return [
        (name, parameter, "fixed" if name in record.fixed else _BOUNDS[int(active)])
        for (name, parameter), active in zip(record.params.items(), record.active_mask, strict=True)
    ]


def _title(record: FitRecord, name: str) -> str:
    """Name of a parameter, with its unit if there is one."""
    unit = record.param_units.get(name)
    return f"{name} [{unit}]" if unit else name


def _parameter_lines(record: FitRecord) -> list[str]:
    rows = [("", "estimate", f"{LEVEL:.0%} confidence interval", "")]
    ends = record.confidence_intervals(LEVEL)
    for (name, parameter, remark), (low, high) in zip(_estimates(record), ends, strict=True):
        title = _title(record, name)
        if remark == "fixed":
            rows.append((title, f"{parameter.value:.10g}", "", f"({remark})"))
        else:
            note = f"({remark})" if remark else ""
            rows.append((title, str(parameter), _interval(low, high, parameter.stderr), note))
    return aligned(rows)


def statistics_rows(record: FitRecord) -> list[Row]:
    """Statistics of a fit, by name."""
    skipped = f"  ({record.n_skipped:,} left out)" if record.n_skipped else ""
    fixed = f", {len(record.names) - record.n_free} fixed or tied"
    scale = "sigma are absolute" if record.absolute_sigma else "scaled by the reduced chi2"
    differenced = [("derivatives", f"differences in {record.n_differenced:,} rows")]
    if record.sandwich:
        scale = "sandwich of the loss"
    return [
        ("rows", f"{record.n_points:,}{skipped}"),
        *_omitted_rows(record),
        *(("decoded", line) for line in record.decoded),
        *_time_rows(record),
        *(differenced if record.n_differenced else []),
        ("parameters", f"{record.n_free} free{fixed if record.n_free < len(record.names) else ''}"),
        ("degrees of freedom", f"{record.dof:,}"),
        ("chi2", f"{record.chi2:.8g}"),
        ("reduced chi2", f"{record.reduced_chi2:.6g}"),
        *_p_value_rows(record),
        ("covariance", scale),
        ("R²", f"{record.r_squared:.8g}  (adjusted {record.adj_r_squared:.8g})"),
        ("RMSE", f"{record.rmse:.6g}"),
        ("MAE", _mae(record)),
        ("AIC", f"{record.aic:.8g}"),
        ("BIC", f"{record.bic:.8g}"),
    ]


def _mae(record: FitRecord) -> str:
    mae = mean(record.moments.abs_residuals, record.n_points)
    return (
        "not summed; `mae` of the result reads the data once" if math.isnan(mae) else f"{mae:.6g}"
    )


def _time_rows(record: FitRecord) -> list[Row]:
    """Unit and origin of the numbers that stand for times. Stacked coordinates share them."""
    names = coordinate_names(record.structure, record.n_coords)
    named = [argument_name(record.structure, name) for name in names]
    times = {n: t for n, t in zip(named, record.times, strict=False) if t is not None}
    return [("times", f"{name} in {axis}") for name, axis in times.items()]


def _p_value_rows(record: FitRecord) -> list[Row]:
    p_value = record.chi2_p_value
    return [] if math.isnan(p_value) else [("p-value of chi2", f"{p_value:.3g}")]


def _correlation_lines(record: FitRecord) -> list[str]:
    """The strongest correlations, strongest first."""
    pairs = [
        (f"{first}, {second}", f"{r:+.4f}")
        for first, second, r in _correlations(record)
        if abs(r) > NOTABLE_CORRELATION
    ]
    lines = _indented(pairs[:MOST_CORRELATIONS])
    if len(pairs) > MOST_CORRELATIONS:
        lines.append(f"  and {len(pairs) - MOST_CORRELATIONS} weaker ones")
    return lines


def _remark_lines(record: FitRecord) -> list[str]:
    """Remarks on bounds and on strong correlations."""
    sides = {-1: "lower", 1: "upper"}
    lines = [
        f"{name} is at its {sides[int(active)]} bound: its interval ends there, and is one-sided"
        for name, active in zip(record.names, record.active_mask, strict=True)
        if active and name not in record.fixed
    ]
    dependent = [
        f"{first} and {second} have a correlation of {r:+.4f}: the data hardly tell them apart"
        for first, second, r in _correlations(record)
        if abs(r) >= DEPENDENT_CORRELATION
    ]
    lines += dependent[:MOST_CORRELATIONS]
    if len(dependent) > MOST_CORRELATIONS:
        lines.append(f"and {_count(len(dependent) - MOST_CORRELATIONS, 'other pair')} likewise")
    if dependent:
        lines.append("to tell two apart, fix one, choose other parameters, or add data")
    return lines


def _profile_lines(record: FitRecord, profiled: Mapping[str, tuple[float, float]]) -> list[str]:
    """Remarks on intervals by profiles that differ from the symmetric ones."""
    lines = []
    ends = dict(zip(record.names, record.confidence_intervals(LEVEL), strict=True))
    for name, found in profiled.items():
        low, high = ends[name]
        apart = 2.0 * max(abs(found[0] - low), abs(found[1] - high))
        if apart > NOTABLE_DIFFERENCE * (high - low):
            written = _interval(*found, record.params[name].stderr)
            off = f"is off by {apart / (high - low):.0%} of its half-width"
            if math.isinf(apart):
                off = "ends where the sum of squares has not risen so far"
            lines.append(f"{name}: the profile interval is {written}; the symmetric one {off}")
    return lines


def _correlations(record: FitRecord) -> list[tuple[str, str, float]]:
    """Pairs of parameters and their known correlations, strongest first."""
    matrix, names = record.correlation(), record.names
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    known = [
        (names[i], names[j], float(matrix[i, j])) for i, j in pairs if not np.isnan(matrix[i, j])
    ]
    return sorted(known, key=lambda pair: -abs(pair[2]))


def _omitted_rows(record: FitRecord) -> list[Row]:
    """Blocks that were left out."""
    few = ", ".join(map(str, record.blocks_omitted[:LISTED_BLOCKS]))
    more = record.n_blocks_omitted - LISTED_BLOCKS
    listed = f"{few} and {more:,} more" if more > 0 else few
    count = _count(record.n_blocks_omitted, "block")
    return [("omitted", f"{count}: {listed}")] if record.blocks_omitted else []


def solver_rows(record: FitRecord) -> list[Row]:
    """Method, tolerances and cost of the search, by name."""
    preset = "" if record.workflow is None else f"  (workflow {record.workflow!r})"
    tolerances = (f"{name} {value}" for name, value in record.tolerances.items())
    return [
        ("method", record.method),
        ("loss", record.loss),
        ("cost", f"{record.cost:.8g}"),
        ("optimality", f"{record.optimality:.3g}"),
        ("distance", _distance(record.distance_to_optimum_sigma)),
        ("tolerances", ", ".join(tolerances)),
        ("strategy", record.strategy + preset),
        *_cost_rows(record),
    ]


def _distance(sigma: float) -> str:
    if np.isnan(sigma):
        return "not known, as the standard errors are not"
    return f"{sigma:.2g} standard errors from the optimum"


def _cost_rows(record: FitRecord) -> list[Row]:
    """Passes, starts, status and checkpoints of a fit."""
    counts = f"{_count(record.nfev, 'evaluation')}, {_count(record.nit, 'step')}"
    rows = [("passes", f"{record.n_passes}  ({counts}){_resumed(record)}")]
    if record.n_distinct:
        collapsed = f"{record.n_points:,} rows at {_count(record.n_distinct, 'coordinate')}"
        rows.append(("collapsed", collapsed))
    if record.starts:
        ran, basins = sum(s.basin is not None for s in record.starts), n_basins(record.starts)
        ends = f"{ran} run to the end, in {basins} {'basin' if basins == 1 else 'basins'}"
        rows.append(("starts", f"{len(record.starts)}, {ends}"))
    rows.append(("status", f"{int(record.status)} ({record.status.name})"))
    if record.checkpoint is not None:
        rows.append(("checkpoints", record.checkpoint))
    return rows


def _resumed(record: FitRecord) -> str:
    """Which passes were made before the fit was resumed."""
    before, passes = record.n_passes_before, record.n_passes
    if not before:
        return ""
    if before == passes:
        return "; resumed from a finished checkpoint, in this run none"
    return f"; resumed from a checkpoint, {passes - before} of them in this run"


def _interval(low: float, high: float, error: float) -> str:
    """Write an interval to two digits of the standard error."""
    if not (math.isfinite(error) and error > 0.0 and math.isfinite(low) and math.isfinite(high)):
        return f"[{low:.8g}, {high:.8g}]"
    largest = max(abs(low), abs(high))
    digits = math.floor(math.log10(largest)) - math.floor(math.log10(error)) + 2
    digits = min(max(digits, 2), 17)
    written = (f"{end:#.{digits}g}".removesuffix(".") for end in (low, high))
    return f"[{', '.join(written)}]"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line.removeprefix('  ')}" for line in lines)]) if lines else ""


def _indented(rows: Sequence[Row]) -> list[str]:
    return [f"  {line}" for line in aligned(rows)]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
