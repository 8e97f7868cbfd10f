"""Where fits of the test functions of Moré, Garbow and Hillstrom end, beside SciPy's.

29 functions from 1, 10 and 100 times their standard start, by "trf" and "lm" of ``fit`` and by
``scipy.optimize.least_squares`` ("trf" with ``x_scale="jac"`` and 1, "lm"), all with their default
tolerances, the exact Jacobian and 100 evaluations a parameter:

- false: fits that call themselves a success, from whose answer SciPy's "trf" or "lm" with
  tolerances of 1e-15 lowers the sum of squares by more than 1e-6 of it (by more than 1e-6 where the
  published minimum is zero);
- least, any: fits that reach the least of the published minima, or any one of them;
- evaluations: of all fits together;
- refused: starts at which the sum of squares is not finite.

Bar: no false one by our methods. What is false or not at the least minimum is listed on standard
error.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.common import Row, arguments, judge, report
from benchmarks.problems import FloatArray
from nlsq_dask import InputError, fit
from tests.support.mgh import FACTORS, PROBLEMS, Problem, functions_of

OURS = ("trf", "lm")
#: Name, and options of least_squares.
THEIRS: dict[str, dict[str, Any]] = {
    "scipy trf, x_scale jac": {"method": "trf", "x_scale": "jac"},
    "scipy trf, x_scale 1": {"method": "trf", "x_scale": 1.0},
    "scipy lm, x_scale jac": {"method": "lm", "x_scale": "jac"},
    "scipy lm, x_scale 1": {"method": "lm", "x_scale": 1.0},
}


@dataclass(frozen=True)
class Ended:
    """Where a fit ended.

    Attributes
    ----------
    problem : Problem
    factor : int
        Of the standard start.
    params : ndarray, shape (n,), float64, or None
        None if the start was refused.
    sum_of_squares : float
    success : bool
    reason : str
    evaluations : int
    """

    problem: Problem
    factor: int
    params: FloatArray | None
    sum_of_squares: float
    success: bool
    reason: str
    evaluations: int

    @property
    def at_least_minimum(self) -> bool:
        """Whether the sum of squares is the least of the published."""
        return self.problem.is_minimum(self.sum_of_squares, self.problem.minima[:1])

    @property
    def at_any_minimum(self) -> bool:
        """Whether it is any one of them."""
        return self.problem.is_minimum(self.sum_of_squares)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    options = parser.parse_args(argv)
    problems = [PROBLEMS[name] for name in options.problems]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Starts far away overflow, and some fits end at max_nfev: the table counts them.
        warnings.simplefilter("ignore")
        rows = [row_of(name, list(our_fits(problems, name)), judged=True) for name in OURS]
        rows += [row_of(name, list(scipy_fits(problems, name)), judged=False) for name in THEIRS]
    title = f"mgh: {len(problems) * len(FACTORS)} fits of test functions"
    return report(title, rows, options.json)


def our_fits(problems: Sequence[Problem], method: str, **options: Any) -> Iterator[Ended]:
    """Fit every problem from every start."""
    for problem in problems:
        for factor in FACTORS:
            yield our_fit(problem, factor, method, **options)


def our_fit(problem: Problem, factor: int, method: Any, **options: Any) -> Ended:
    """Fit a problem from one start."""
    start = problem.start(factor)
    try:
        result = fit(problem.model, problem.x, problem.y, start, method=method, **options)
    except InputError:
        return Ended(problem, factor, None, math.inf, False, "refused", 1)
    return Ended(
        problem,
        factor,
        result.popt,
        2.0 * result.cost,
        result.success,
        f"{result.status.name}, {result.distance_to_optimum_sigma:.2g} from the optimum",
        result.nfev,
    )


def scipy_fits(problems: Sequence[Problem], name: str) -> Iterator[Ended]:
    """Fit every problem from every start by least_squares."""
    for problem in problems:
        for factor in FACTORS:
            yield scipy_fit(problem, factor, name)


def scipy_fit(problem: Problem, factor: int, name: str) -> Ended:
    """Fit a problem from one start by least_squares."""
    start = problem.start(factor)
    residuals, jacobian = functions_of(problem.name)
    try:
        found = least_squares(residuals, start, jacobian, max_nfev=100 * start.size, **THEIRS[name])
    except (ValueError, np.linalg.LinAlgError):
        return Ended(problem, factor, None, math.inf, False, "refused", 1)
    return Ended(
        problem,
        factor,
        found.x,
        2.0 * float(found.cost),
        bool(found.success and np.isfinite(found.cost)),
        f"status {found.status}",
        int(found.nfev),
    )


def is_false_success(ended: Ended) -> bool:
    """Whether a fit says that it has converged where SciPy goes on."""
    if not ended.success or ended.params is None:
        return False
    lower = ended.problem.lower_from(ended.params)
    if lower is None:
        return False
    print(f"  goes on to {lower:.6g} from {description(ended)}", file=sys.stderr)
    return True


def description(ended: Ended) -> str:
    """A fit in one line."""
    return (
        f"{ended.sum_of_squares:.6g}: {ended.problem.name} x{ended.factor}, {ended.reason}, "
        f"{ended.evaluations} evaluations"
    )


def row_of(name: str, fits: Sequence[Ended], *, judged: bool) -> Row:
    """The line of one method; one that is not ours has no bar."""
    print(name, file=sys.stderr)
    for ended in fits:
        if not ended.at_least_minimum:
            least = ended.problem.minima[0]
            print(f"  not at {least:g} but at {description(ended)}", file=sys.stderr)
    false = sum(map(is_false_success, fits))
    return {
        "method": name,
        "fits": len(fits),
        **({"false": false, **judge(false, at_most=0)} if judged else {"false": false}),
        "success": sum(ended.success for ended in fits),
        "least": sum(ended.at_least_minimum for ended in fits),
        "any": sum(ended.at_any_minimum for ended in fits),
        "refused": sum(ended.params is None for ended in fits),
        "evaluations": sum(ended.evaluations for ended in fits),
    }


if __name__ == "__main__":
    main()
