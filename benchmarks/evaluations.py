"""How many evaluations fits take: certified problems, test functions, curves from poor starts.

Fits with default tolerances, in memory, by "trf" and "lm": the 14 problems of NIST from both
starts; the functions of Moré, Garbow and Hillstrom from 1, 10 and 100 times their standard start,
apart those with a minimum of zero; a dozen families of noisy curves from ``--starts`` poor starts
each. ``--save FILE`` keeps evaluations and costs, ``--compare FILE`` holds them against those of
another version of the package:

- evaluations: of the fits that end in the same minimum both times; without a comparison of all;
- before, ratio: those of the other version, and by how much there are more now;
- moved: fits that end at another cost than before, or only one of the two times.

Bar: at most 1.1 times as many, but for exact data.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, arguments, judge, report
from benchmarks.families import FAMILIES
from nlsq_dask import InputError, fit
from tests.support.mgh import FACTORS, PROBLEMS
from tests.support.nist import MODELS, load

METHODS = ("trf", "lm")
EXACT = "test functions, minimum 0"
#: Costs that are as near as this, relatively or absolutely, belong to the same minimum.
SAME_COST, ZERO = 1e-5, 1e-10
MOST_MORE = 1.1

GROUPS = ("nist", "functions", "families")

#: What a fit left: "evaluations", "cost" and "success".
Count = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, starts=10)
    _add_options(parser)
    options = parser.parse_args(argv)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Fits from far away may overflow, or end without success.
        warnings.simplefilter("ignore")
        counts = dict(counted(options.starts, options.groups))
    if options.save is not None:
        options.save.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    before = None
    if options.compare is not None:
        before = json.loads(options.compare.read_text(encoding="utf-8"))
    groups = dict.fromkeys(group_of(key) for key in counts)
    rows = [row(group, counts, before) for group in groups]
    if options.compare is not None:
        list_changes(counts, before or {})
    return report(f"evaluations: {len(counts)} fits", rows, options.json)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the counts there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="counts of another version")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))


def counted(starts: int, groups: Sequence[str]) -> Iterator[tuple[str, Count]]:
    """Counts by a key of the group, the problem, its start and the method."""
    if "nist" in groups:
        for name in MODELS:
            problem = load(name)
            for number, start in enumerate(problem.starts):
                data = problem.model, problem.x, problem.y, start
                yield from by_method(f"NIST | {name} {number + 1}", *data)
    if "functions" in groups:
        for function in PROBLEMS.values():
            group = EXACT if function.minima[0] == 0.0 else "test functions"
            for factor in FACTORS:
                data = function.model, function.x, function.y, function.start(factor)
                yield from by_method(f"{group} | {function.name} x{factor}", *data)
    if "families" in groups:
        for family in FAMILIES:
            for seed in range(starts):
                data = family.model, *family.draw(seed)
                yield from by_method(f"families | {family.label} {seed}", *data)


def by_method(key: str, model: Any, x: Any, y: Any, start: Any) -> Iterator[tuple[str, Count]]:
    """The counts of one problem."""
    for method in METHODS:
        try:
            result = fit(model, x, y, start, method=method)
        except InputError:  # the start overflows
            continue
        yield (
            f"{key} | {method}",
            {"evaluations": result.nfev, "cost": result.cost, "success": result.success},
        )


def group_of(key: str) -> str:
    """Group and method of a key."""
    group, _, method = key.split(" | ")
    return f"{group}, {method}"


def row(group: str, counts: Mapping[str, Count], before: Mapping[str, Count] | None) -> Row:
    """The line of one group."""
    keys = [key for key in counts if group_of(key) == group]
    line: Row = {"group": group, "fits": len(keys)}
    line["success"] = sum(bool(counts[key]["success"]) for key in keys)
    if before is None:
        return line | {"evaluations": _total(counts, keys)}
    same = [key for key in keys if key in before and are_same(counts[key], before[key])]
    now, then = _total(counts, same), _total(before, same)
    ratio = now / then if then else math.nan
    judged = {} if group.startswith(EXACT) else judge(ratio, at_most=MOST_MORE)
    moved = len(keys) - len(same)
    return line | {"evaluations": now, "before": then, "ratio": ratio, **judged, "moved": moved}


def _total(counts: Mapping[str, Count], keys: Sequence[str]) -> int:
    return sum(counts[key]["evaluations"] for key in keys)


def are_same(one: Count, other: Count) -> bool:
    """Whether two fits ended in the same minimum."""
    return math.isclose(one["cost"], other["cost"], rel_tol=SAME_COST, abs_tol=ZERO)


def list_changes(counts: Mapping[str, Count], before: Mapping[str, Count]) -> None:
    """Say on standard error which fits ended elsewhere, or took a different number."""
    for key, now in counts.items():
        then = before.get(key)
        if then is not None and now != then:
            kind = "same" if are_same(now, then) else "moved"
            changes = ", ".join(
                f"{name} {then[name]:.10g} to {now[name]:.10g}"
                for name in now
                if now[name] != then[name]
            )
            print(f"{kind}: {key}: {changes}", file=sys.stderr)


if __name__ == "__main__":
    main()
