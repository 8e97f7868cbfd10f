"""Certified digits on the NIST StRD problems, by every strategy, next to SciPy.

Measured, for each of the 14 problems and both starts: digits of the worst parameter and of the
worst standard deviation (``-log10`` of the relative error, 11 at most), by the strategies
"standard", "chunked" and "streaming" (in chunks of 7 rows), and by ``scipy.optimize.least_squares``
(TRF, exact, analytic Jacobian). One setting of tolerances for all, nothing tuned to a problem.

``--replicate R``: also with each problem's rows repeated R times, shuffled, and written to a Zarr
store in chunks of a random length, read by a cluster of 2 processes. The optimum is the same, and
each standard deviation is ``sqrt((n - p) / (R n - p))`` of the certified one.

Bar: 6 digits of parameters and 5 of standard deviations wherever SciPy gets there.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from scipy.optimize import least_squares

from benchmarks.common import Row, arguments, local_cluster, report
from benchmarks.problems import FloatArray
from nlsq_dask import ConvergenceWarning, FitResult, fit
from tests.support.dense_engine import model_functions
from tests.support.nist import MODELS, Problem, certified_digits, load

Strategy = Literal["standard", "chunked", "streaming"]

#: The gradient criterion is off because it knows no scale (the residuals of Lanczos1 are 1e-13).
SCIPY_TOLERANCES: dict[str, Any] = {"ftol": 1e-12, "xtol": 1e-12, "gtol": None, "max_nfev": 2000}
#: With `stat_tol` a streamed fit would end at a hundredth of a standard error, short of 6 digits.
TOLERANCES: dict[str, Any] = {**SCIPY_TOLERANCES, "stat_tol": None}
STRATEGIES: tuple[Strategy, ...] = ("standard", "chunked", "streaming")
CHUNK_ROWS = 7
PARAMETER_DIGITS, DEVIATION_DIGITS = 6.0, 5.0


@dataclass(frozen=True)
class Digits:
    """Certified digits of the worst parameter and the worst standard deviation."""

    params: float
    deviations: float

    @property
    def enough(self) -> bool:
        """Whether both are what the bar asks for."""
        return self.params >= PARAMETER_DIGITS and self.deviations >= DEVIATION_DIGITS

    def __str__(self) -> str:
        return f"{self.params:4.1f} {self.deviations:4.1f}"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, replicate=0)
    parser.add_argument("--problems", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args(argv)
    with warnings.catch_warnings():
        # A fit that ends at max_nfev shows in its digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = dict(original_rows(options.problems))
        if options.replicate:
            for key, digits in replicated_rows(options.problems, options.replicate):
                found[key] |= digits
    rows = [
        {"problem": name, "start": start + 1, **{k: str(d) for k, d in digits.items()}}
        | verdict(digits)
        for (name, start), digits in found.items()
    ]
    return report("nist: digits of parameters and of standard deviations", rows, options.json)


def verdict(digits: dict[str, Digits]) -> Row:
    """Whether every strategy has enough digits where SciPy has."""
    others = [d for who, d in digits.items() if who != "scipy"]
    if not digits["scipy"].enough:
        return {"met": "(SciPy is not there)"}
    return {"met": "yes" if all(d.enough for d in others) else "NO"}


def original_rows(names: Sequence[str]) -> Iterator[tuple[tuple[str, int], dict[str, Digits]]]:
    """Digits by every strategy and SciPy, for each problem and start."""
    for name in names:
        problem = load(name)
        for start in (0, 1):
            digits = {"scipy": scipy_digits(problem, start)}
            for strategy in STRATEGIES:
                digits[strategy] = digits_of(problem, fit_with(problem, start, strategy))
            yield (name, start), digits


def replicated_rows(
    names: Sequence[str], times: int
) -> Iterator[tuple[tuple[str, int], dict[str, Digits]]]:
    """Digits from replicated rows in Zarr stores, read by a cluster."""
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder, local_cluster(2, 1):
        for name in names:
            problem = load(name)
            x, y = write_replicated(problem, times, Path(folder) / name)
            for start in (0, 1):
                result = fit(problem.model, x, y, p0=problem.starts[start], **TOLERANCES)
                yield (name, start), {f"{times} x": digits_of(problem, result, times)}


def fit_with(problem: Problem, start: int, strategy: Strategy) -> FitResult:
    """Fit the certified rows by one strategy."""
    x, y = problem.x, problem.y
    if strategy == "streaming":
        y = da.from_array(y, chunks=CHUNK_ROWS)
    p0 = problem.starts[start]
    return fit(problem.model, x, y, p0=p0, strategy=strategy, progress=False, **TOLERANCES)


def digits_of(problem: Problem, result: FitResult, times: int = 1) -> Digits:
    """Digits of a fit to the rows, each taken so many times."""
    deviations = problem.standard_deviations * deviation_scale(problem, times)
    return Digits(
        certified_digits(result.popt, problem.params), certified_digits(result.perr, deviations)
    )


def deviation_scale(problem: Problem, times: int) -> float:
    """How standard deviations change when each row is taken so many times.

    χ² and JᵀJ are both multiplied by R, and the degrees of freedom go from n - p to R n - p.
    """
    n, p = problem.y.size, problem.params.size
    return float(np.sqrt((n - p) / (times * n - p)))


def scipy_digits(problem: Problem, start: int) -> Digits:
    """Digits of SciPy's TRF; standard deviations from the singular values of its Jacobian."""
    residuals, jacobian = model_functions(problem.model, problem.x, problem.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rejected trials may overflow
        solution = least_squares(
            residuals,
            problem.starts[start],
            jacobian,
            method="trf",
            x_scale="jac",
            tr_solver="exact",
            **SCIPY_TOLERANCES,
        )
    _, s, vt = np.linalg.svd(solution.jac, full_matrices=False)
    variances = np.sum((vt.T / s) ** 2, axis=1) * 2 * solution.cost / problem.degrees_of_freedom
    return Digits(
        certified_digits(solution.x, problem.params),
        certified_digits(np.sqrt(variances), problem.standard_deviations),
    )


def write_replicated(problem: Problem, times: int, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Write each row of a problem so many times, in random order and chunks of a random length.

    Returns
    -------
    x : zarr.Array, or tuple of them, one a predictor
    y : zarr.Array, shape (times * n,)
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.tile(np.arange(problem.y.size), times))
    chunk = int(rng.integers(order.size // 12, order.size // 4))
    group = zarr.create_group(folder)

    def stored(name: str, values: FloatArray) -> Any:
        return group.create_array(name, data=values[order], chunks=(chunk,))

    x = tuple(stored(f"x{i}", values) for i, values in enumerate(np.atleast_2d(problem.x)))
    return x if len(x) > 1 else x[0], stored("y", problem.y)


if __name__ == "__main__":
    main()
