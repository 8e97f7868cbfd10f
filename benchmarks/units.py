"""Fits of the same data in other units and with offsets: do they end where they should?

Seven models (line, decay, peak, two decays, saturation, step, damped wave) x units of x and y from
1e-18 to 1e18 x offsets of y and of x of 0, 1e3, 1e6 and 1e9 of the signal x "trf", "lm", "dogbox" x
in memory, streamed x default tolerances and each workflow x bounds none, active, from 0 x starts:
``--fits`` combinations, drawn so that every two levels meet. SciPy's ``least_squares`` fits the
same rounded data in natural units, the offset subtracted exactly.

- success: fits that call themselves one;
- false: those of them with finite covariance that are not at an optimum: more than 0.05 standard
  errors, or 1e-3 s² of cost, from where SciPy's "lm" goes from their answer;
- other: those that are at an optimum, but not at the best one;
- scipy there: fits in which SciPy's same method gets to the best optimum from the same start, by
  default;
- not there: how many of these fits are no success, of them;
- raised: fits that end with an error.

Bars: no false one; at most 2 % not there. Each false success and each fit that is not there is
listed on standard error with its number, ``--case NUMBER`` shows one of them, ``--by`` other lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.common import Row, arguments, judge, report
from nlsq_dask import FitResult
from tests.support.unit_oracle import Away
from tests.support.unit_sweep import Case, Task, design

#: Largest share of fits that are no success where SciPy is there.
NOT_THERE = 0.02


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes
    ----------
    number : int
    case : Case
    success, determined : bool
        Whether the fit calls itself a success; whether its covariance is finite.
    away : Away or None
        None if the fit raised an error.
    scipy_there : bool
    what : str
        Status and distance that the fit reports, or its error.
    evaluations : int
    """

    number: int
    case: Case
    success: bool
    determined: bool
    away: Away | None
    scipy_there: bool
    what: str
    evaluations: int

    @property
    def false(self) -> bool:
        """Whether it is a success that is none."""
        return self.at_optimum is False

    @property
    def other(self) -> bool:
        """Whether it is at an optimum that is not the best."""
        return self.at_optimum is True and not (self.away is not None and self.away.at_best)

    @property
    def at_optimum(self) -> bool | None:
        """Whether a success with finite covariance is at an optimum; None for other fits."""
        if self.away is None or not (self.success and self.determined):
            return None
        return self.away.arrived

    @property
    def not_there(self) -> bool:
        """Whether it is no success where SciPy is there."""
        return self.scipy_there and not self.success

    def __str__(self) -> str:
        away = ""
        if self.away is not None:
            away = (
                f" {self.away.sigmas:.3g} standard errors and {self.away.excess:.3g} s² away, "
                f"{self.away.above_best:.3g} s² above the best;"
            )
        case = self.case
        kind = "false" if self.false else "not there" if self.not_there else "other"
        return (
            f"{self.number} {kind}:{away} {self.what}; {case.shape}, x 1e{case.x_power} "
            f"+{case.x_offset:.0e}, y 1e{case.y_power} +{case.y_offset:.0e}, {case.method}, "
            f"{case.tier}, {case.workflow}, bounds {case.bounds}, start {case.start}"
        )


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, fits=3000, seed=0)
    _add_options(parser)
    options = parser.parse_args(argv)
    cases = list(enumerate(design(options.fits, options.seed)))
    if options.case is not None:
        show(*cases[options.case])
        return []
    if options.method is not None:
        cases = [(number, case) for number, case in cases if case.method == options.method]
    began = time.perf_counter()
    outcomes = []
    for number, case in cases:
        outcomes.append(outcome(number, case))
        if outcomes[-1].false or outcomes[-1].not_there:
            print(outcomes[-1], file=sys.stderr, flush=True)
    minutes = (time.perf_counter() - began) / 60
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(str(getattr(one.case, options.by)), []).append(one)
    rows = [row(options.by, level, group) for level, group in sorted(groups.items())]
    rows.append(row(options.by, "all", outcomes))
    title = f"units: {len(outcomes)} fits of data in other units, {minutes:.1f} minutes"
    report(title, rows, options.json)
    print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _add_options(parser: argparse.ArgumentParser) -> None:
    levels = [name for name in Case.__dataclass_fields__ if name != "seed"]
    parser.add_argument("--method", choices=("trf", "lm", "dogbox"), help="these fits alone")
    parser.add_argument("--by", choices=levels, default="shape", help="a line a level of this")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="run and show one fit alone")


def outcome(number: int, case: Case) -> Outcome:
    """Run one case."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Fits that do not converge, and trials that overflow, show in the table.
        warnings.simplefilter("ignore")
        task = Task.of(case)
        there = task.natural.scipy_gets_there(case.method)
        try:
            result = task.run()
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            what = "".join(traceback.format_exception_only(error)).strip()
            return Outcome(number, case, False, False, None, there, what[:200], 0)
        away = task.natural.away(task.natural_params(result.popt))
    return Outcome(
        number,
        case,
        result.success,
        bool(np.isfinite(result.pcov).all()),
        away,
        there,
        f"{result.status.name} after {result.nfev}, says {result.distance_to_optimum_sigma:.2g}",
        result.nfev,
    )


def row(factor: str, level: str, outcomes: Sequence[Outcome]) -> Row:
    """The line of some of the cases."""
    there = _count(one.scipy_there for one in outcomes)
    false, missing = _count(o.false for o in outcomes), _count(o.not_there for o in outcomes)
    share = missing / max(there, 1)
    met = judge(false, at_most=0)["met"] == judge(share, at_most=NOT_THERE)["met"] == "yes"
    return {
        factor: level,
        "fits": len(outcomes),
        "success": _count(one.success for one in outcomes),
        "false": false,
        "other": _count(one.other for one in outcomes),
        "scipy there": there,
        "not there": missing,
        "share": share,
        "met": "yes" if met else "NO",
        "raised": _count(one.away is None for one in outcomes),
        "evaluations": sum(one.evaluations for one in outcomes),
    }


def _count(truths: Iterable[bool]) -> int:
    return sum(map(bool, truths))


def show(number: int, case: Case) -> None:
    """Print one case, its fit and the optimum."""
    for name, value in asdict(case).items():
        print(f"{name:10} {value}")
    task = Task.of(case)
    natural = task.natural
    print("p0        ", task.p0, "lower", task.lower, "upper", task.upper)
    print("in natural", natural.p0, "lower", natural.lower, "upper", natural.upper)
    print("optimum   ", natural.best, "s", natural.variance**0.5)
    result: FitResult = task.run()
    print("answer    ", task.natural_params(result.popt))
    for record in result.history:
        print(record)
    print(result.summary())
    print(outcome(number, case))


if __name__ == "__main__":
    main()
