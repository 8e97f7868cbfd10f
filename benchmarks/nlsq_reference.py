"""The same fits in memory by the package NLSQ, in an environment of its own. For the record.

Measured, in seconds: the first fit of a fresh process, and the median of further ones, by NLSQ
(its ``CurveFit`` object kept, as its documentation advises) and by this package, with the data,
starts and tolerances of ``in_memory.py``; and how far NLSQ's parameters are from ours, in standard
errors. NLSQ comes from the package index and needs Python 3.12 or newer.

Bars, warm: p=3, 1e7 rows: 30 times faster; p=10, 1e6 rows: 45 times; p=3, 100 rows: 1.4 times, as
1.5 ms are where NLSQ takes 2.1 ms.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import problems
from benchmarks.common import Row, arguments, in_fresh_process, judge, report, stopwatch
from benchmarks.in_memory import SMALL_ROWS, ours
from benchmarks.problems import FloatArray

OLDEST_PYTHON = (3, 12)
PACKAGE = "NLSQ==0.7.6"
#: Times faster, warm, by problem and rows.
BARS = {
    ("EXPONENTIAL", 10_000_000): 30.0,
    ("GAUSSIANS", 1_000_000): 45.0,
    ("EXPONENTIAL", SMALL_ROWS): 1.4,
}
CANDIDATES = ("python3.12", "python3.13", "python3.14")


@dataclass(frozen=True)
class Timing:
    """Seconds of the first fit of a process and of each further one, and what was found."""

    cold: float
    warm: FloatArray
    popt: FloatArray
    perr: FloatArray | None = None


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=10_000_000, repeat=3)
    parser.add_argument("--python", help="interpreter, 3.12 or newer, to make the environment with")
    parser.add_argument("--environment", type=Path, help="interpreter that has NLSQ already")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
        interpreter = options.environment
        if interpreter is None:
            interpreter = make_environment(options.python or find_python(), Path(folder))
        rows = [
            compare(interpreter, "EXPONENTIAL", options.rows, options.repeat),
            compare(interpreter, "GAUSSIANS", options.rows // 10, options.repeat),
            compare(interpreter, "EXPONENTIAL", SMALL_ROWS, 20 * options.repeat),
        ]
    return report("nlsq_reference: seconds of a fit", rows, options.json)


def find_python() -> str:
    """An interpreter that NLSQ can be installed for.

    Raises
    ------
    SystemExit
        If there is none on the path.
    """
    if sys.version_info >= OLDEST_PYTHON:
        return sys.executable
    for name in CANDIDATES:
        path = shutil.which(name)
        # A shim of a version manager may be there and not run.
        if (
            path
            and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode
        ):
            return path
    raise SystemExit("NLSQ needs Python 3.12 or newer: name one with --python")


def make_environment(python: str, folder: Path) -> Path:
    """Make a virtual environment with NLSQ, and return its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
    interpreter = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(interpreter), "-m", "pip", "install", *quiet, PACKAGE], check=True)
    return interpreter


def compare(interpreter: Path, name: str, rows: int, repeat: int) -> Row:
    """Fit one problem with both packages, each in a fresh process."""
    version, theirs = by_nlsq(interpreter, name, rows, repeat)
    mine = in_fresh_process(by_us, name, rows, repeat)
    head: Row = {"problem": getattr(problems, name).label, "rows": rows}
    columns = {"ours": mine, f"NLSQ {version}": theirs}
    times = {
        f"{who}, {when}": value
        for who, timing in columns.items()
        for when, value in (("cold", timing.cold), ("warm", float(np.median(timing.warm))))
    }
    faster = float(np.median(theirs.warm) / np.median(mine.warm))
    bar = BARS.get((name, rows))
    verdict = {} if bar is None else judge(faster, at_least=bar)
    return (
        head
        | times
        | {"faster": faster}
        | verdict
        | {"apart": float(np.max(np.abs(theirs.popt - mine.popt) / mine.perr))}
    )


def by_nlsq(interpreter: Path, name: str, rows: int, repeat: int) -> tuple[str, Timing]:
    """Version and timing of NLSQ."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [str(interpreter), "-m", "benchmarks.nlsq_runner", name, str(rows), str(repeat)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    timing = Timing(found["cold"], np.array(found["warm"]), np.array(found["popt"]))
    return found["version"], timing


def by_us(name: str, rows: int, repeat: int) -> Timing:
    """Timing of this package, in a process that has not fitted yet."""
    problem: problems.Problem = getattr(problems, name)
    call = ours(problem, *problem.data(rows))
    cold, result = stopwatch(call)
    warm = [stopwatch(call)[0] for _ in range(repeat)]
    return Timing(cold, np.array(warm), result.popt, result.perr)


if __name__ == "__main__":
    main()
