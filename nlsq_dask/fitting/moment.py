"""What is known of a fit at one moment, and the words that tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.fitting.pace import Seconds

Phase: TypeAlias = Literal["examining", "pilot", "pass", "series", "final"]

# Seconds of the units in which longer times are told, the longest first.
UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))

PREFIXES = ("", "k", "M", "G", "T", "P")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesDone:
    """How far the fits of many series are.

    Attributes
    ----------
    done, total : int
        Series.
    per_second : float
    converged : float
        Which part of the fitted series has converged.
    left : float
        Seconds to the end.
    """

    done: int
    total: int
    per_second: float
    converged: float
    left: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where a fit is.

    Attributes
    ----------
    phase : {"examining", "pilot", "pass", "series", "final"}
    seconds : float
        Time since the fit began.
    number : int
        Number of the pass, from 1; 0 before the first.
    passes : pair of int
        Passes that most fits of this kind take.
    blocks : pair of int or None
        Blocks that are done in the pass or in the sample, and all its blocks.
    rows_per_second, bytes_per_second : float or None
        Of the pass so far; bytes are those of the decoded arrays. None before a block is measured.
    cost, distance : float or None
        Of the best point so far: the cost, and the distance to the optimum in standard errors.
    pass_left, fit_left : Seconds or None
        Time to the end of the pass, and of the fit. None before a block is measured.
    wait : str
        What the fit waits for, in a few words.
    outcome : str
        How the fit ended; empty while it runs.
    state : SolverState or None
        The best point so far, of the model that was told of last.
    model : str
        The name of this model, among several.
    series : SeriesDone or None
        How far the fits of many series are.
    """

    phase: Phase
    seconds: float
    number: int = 0
    passes: tuple[int, int] = (0, 0)
    blocks: tuple[int, int] | None = None
    rows_per_second: float | None = None
    bytes_per_second: float | None = None
    cost: float | None = None
    distance: float | None = None
    pass_left: Seconds | None = None
    fit_left: Seconds | None = None
    wait: str = ""
    outcome: str = ""
    state: SolverState | None = field(default=None, repr=False, compare=False)
    model: str = ""
    series: SeriesDone | None = None


# A part of a line: its rank and its text. If a line is too long, the parts of the highest rank
# are left out first.
Part: TypeAlias = tuple[int, str]


def heading(moment: Moment) -> str:
    """The phase, as ``pass 2 of about 2-4``."""
    if moment.outcome:
        return moment.outcome
    if moment.series is not None:
        return f"{moment.series.done:,}/{moment.series.total:,} series"
    if moment.phase != "pass":
        return {"examining": "examining the fit", "pilot": "pilot", "final": "final"}[moment.phase]
    few, many = moment.passes
    if many < moment.number:
        return f"pass {moment.number}, more than most fits take"
    about = f"{many}" if few == many or few < moment.number == many else f"{few}–{many}"
    return f"pass {moment.number} of about {about}"


def parts(moment: Moment) -> list[Part]:
    """What a line tells, in order. Parts of the highest rank are the first to be left out."""
    told: list[Part] = [(0, heading(moment))]
    if moment.series is not None:
        return told + _parts_of_series(moment.series, moment)
    if moment.outcome:
        passes = "1 pass" if moment.number == 1 else f"{moment.number} passes"
        told += [(1, passes)]
    elif moment.wait:
        told += [(1, moment.wait)]
    if moment.blocks is not None and not moment.outcome:
        told += [(2, "{}/{} blocks".format(*moment.blocks))]
    told += [(7, rate) for rate in rates(moment)[:1]] + [(8, rate) for rate in rates(moment)[1:]]
    if moment.cost is not None:
        told += [(4, f"cost {moment.cost:.6g}")]
    if moment.distance is not None and math.isfinite(moment.distance):
        told += [(6, f"distance {moment.distance:.2g} σ")]
    told += [(5, time_text(moment.seconds))]
    if moment.pass_left is not None and moment.phase in ("pass", "pilot"):
        what = "pass" if moment.phase == "pass" else "sample"
        told += [(3, f"{what} ends in {range_text(moment.pass_left)}")]
    if moment.fit_left is not None:
        told += [(4, f"fit in {range_text(moment.fit_left)}")]
    return told


def _parts_of_series(series: SeriesDone, moment: Moment) -> list[Part]:
    told = [
        (3, f"{scaled(series.per_second)}series/s"),
        (2, f"{100 * series.converged:.1f} % converged"),
        (4, time_text(moment.seconds)),
    ]
    return told if moment.outcome else [*told, (1, f"ends in {time_text(series.left)}")]


def rates(moment: Moment) -> list[str]:
    """Bytes and rows a second, if they are measured."""
    told = []
    if moment.bytes_per_second is not None:
        told += [f"{scaled(moment.bytes_per_second)}B/s"]
    if moment.rows_per_second is not None:
        told += [f"{scaled(moment.rows_per_second)}rows/s"]
    return told


def line_of(moment: Moment, width: int | None = None) -> str:
    """One line, of at most so many characters: what matters least is left out first."""
    told = parts(moment)
    line = " · ".join(text for _, text in told)
    while width is not None and len(line) > width and len(told) > 1:
        told.remove(max(told, key=lambda part: part[0]))
        line = " · ".join(text for _, text in told)
    return line if width is None else line[: max(width, 0)]


def scaled(value: float) -> str:
    """A rate to three digits, with the prefix of its unit: ``"12.3 M"``."""
    step = 0
    while value >= 999.5 and step < len(PREFIXES) - 1:
        value, step = value / 1000.0, step + 1
    return f"{value:.3g} {PREFIXES[step]}"


def time_text(seconds: float) -> str:
    """A time in its largest unit: ``"12 s"``, ``"1.5 h"``."""
    number, unit = _in_unit(seconds)
    return f"{number} {unit}"


def range_text(span: Seconds) -> str:
    """A range of time: ``"8–10 s"``, ``"40 s–2 min"``, ``"at least 3 min"``."""
    low, unit_low = _in_unit(span.low)
    if span.high is None:
        return f"at least {low} {unit_low}"
    high, unit_high = _in_unit(span.high)
    if (low, unit_low) == (high, unit_high):
        return f"{high} {unit_high}"
    return (
        f"{low}–{high} {unit_high}"
        if unit_low == unit_high
        else (f"{low} {unit_low}–{high} {unit_high}")
    )


def _in_unit(seconds: float) -> tuple[str, str]:
    for size, unit in UNITS:
        if seconds >= 1.5 * size:
            number = seconds / size
            return (f"{number:.1f}" if number < 9.95 and unit != "min" else f"{number:.0f}"), unit
    return f"{seconds:.0f}", "s"
