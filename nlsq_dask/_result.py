"""What a fit returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nlsq_dask._errors import Status
from nlsq_dask._multi_start import Start, n_basins
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.trf import IterationRecord


@dataclass(frozen=True, slots=True)
class Parameter:
    """An estimate and its standard error.

    Attributes
    ----------
    value : float
        The estimate.
    stderr : float
        Its standard error; infinite where the data do not determine it.
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return format_uncertain(self.value, self.stderr)


@dataclass(frozen=True)
class FitResult:
    """The result of :func:`nlsq_dask.fit`.

    Unpacks as the result of ``scipy.optimize.curve_fit`` does: ``popt, pcov = result``.

    Attributes
    ----------
    names : tuple of str, length p
        Parameters in the model's order.
    popt : ndarray, shape (p,), float64
        Estimates.
    pcov : ndarray, shape (p, p), float64
        Covariance of the estimates; infinite where the data do not determine it.
    cost : float
        Half the sum of squared weighted residuals.
    chi2 : float
        Sum of squared weighted residuals.
    n_points : int
        Rows that entered the fit.
    optimality : float
        Infinity norm of the gradient, scaled for the bounds.
    active_mask : ndarray, shape (p,), int
        -1 where a lower bound is active, 1 where an upper one is, 0 elsewhere.
    nfev : int
        Points at which the model was evaluated.
    njev : int
        Linearisations used.
    nit : int
        Steps accepted.
    n_passes : int
        Readings of all rows.
    status : Status
        Why the fit ended, numbered as in ``scipy.optimize.least_squares``.
    strategy : str
        "standard", "chunked" or "streaming".
    workflow : str or None
        The preset that was asked for.
    budget : MemoryBudget
        Memory that the strategy was chosen by, in GB.
    tolerances : dict
        "ftol", "xtol" and "gtol" as used.
    starts : tuple of Start
        Where each starting point led; empty for a single start.
    checkpoint : str or None
        Directory of the checkpoints.
    history : tuple of IterationRecord
        One entry an evaluation.
    """

    names: tuple[str, ...]
    popt: FloatArray
    pcov: FloatArray
    cost: float
    chi2: float
    n_points: int
    optimality: float
    active_mask: NDArray[np.int64]
    nfev: int
    njev: int
    nit: int
    n_passes: int
    status: Status
    strategy: str
    workflow: str | None
    budget: MemoryBudget
    tolerances: dict[str, float | None]
    starts: tuple[Start, ...] = field(repr=False)
    checkpoint: str | None
    history: tuple[IterationRecord, ...] = field(repr=False)

    @property
    def perr(self) -> FloatArray:
        """Standard errors of the estimates, shape (p,): square roots of ``pcov``'s diagonal."""
        errors: FloatArray = np.sqrt(np.diagonal(self.pcov))
        return errors

    @property
    def params(self) -> dict[str, Parameter]:
        """Estimates and standard errors by name."""
        pairs = zip(self.names, self.popt, self.perr, strict=True)
        return {name: Parameter(float(value), float(error)) for name, value, error in pairs}

    @property
    def dof(self) -> int:
        """Degrees of freedom: rows less parameters."""
        return self.n_points - len(self.names)

    @property
    def reduced_chi2(self) -> float:
        """``chi2 / dof``; NaN where there are no degrees of freedom."""
        return self.chi2 / self.dof if self.dof > 0 else math.nan

    @property
    def success(self) -> bool:
        """Whether a convergence criterion was met."""
        return self.status.success

    @property
    def message(self) -> str:
        """Why the fit ended."""
        return self.status.message

    def __iter__(self) -> Iterator[FloatArray]:
        yield self.popt
        yield self.pcov

    def __str__(self) -> str:
        return _report(self)


def format_uncertain(value: float, error: float) -> str:
    """Write ``value ± error`` with two significant digits of the error.

    The convention of the Particle Data Group's Review (section "Rounding"), with two digits always.
    """
    if not math.isfinite(error):
        return f"{value:.8g} ± {error}"
    if error == 0.0:
        return f"{value:.10g} ± 0"
    exponent = math.floor(math.log10(error))
    decimals = 1 - exponent
    if exponent >= -4 and decimals >= 0 and abs(value) < 1e7:
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    power = math.floor(math.log10(max(abs(value), error)))
    digits = max(power - exponent + 1, 1)
    scale = 10.0**power
    return f"({value / scale:.{digits}f} ± {error / scale:.{digits}f})e{power:+03d}"


def _report(result: FitResult) -> str:
    """A table of estimates, and how they were found."""
    width = max(len(name) for name in result.names)
    bounds = {-1: "  (at its lower bound)", 0: "", 1: "  (at its upper bound)"}
    lines = ["Fit converged" if result.success else "Fit DID NOT converge"]
    lines[0] += f": {result.message}"
    for (name, parameter), active in zip(result.params.items(), result.active_mask, strict=True):
        lines.append(f"  {name:<{width}} = {parameter}{bounds[int(active)]}")
    rows = [
        ("rows", f"{result.n_points:,}"),
        ("chi2", f"{result.chi2:.8g}"),
        ("reduced chi2", f"{result.reduced_chi2:.6g}  ({result.dof:,} degrees of freedom)"),
        ("strategy", result.strategy),
        ("passes", f"{result.n_passes}  ({result.nfev} evaluations, {result.nit} steps)"),
        ("status", f"{int(result.status)} ({result.status.name})"),
    ]
    if result.starts:
        ran, basins = sum(s.basin is not None for s in result.starts), n_basins(result.starts)
        ends = f"{ran} run to the end, in {basins} {'basin' if basins == 1 else 'basins'}"
        rows.insert(-1, ("starts", f"{len(result.starts)}, {ends}"))
    if result.checkpoint is not None:
        rows.append(("checkpoints", result.checkpoint))
    lines += [f"  {label:<13} {text}" for label, text in rows]
    return "\n".join(lines)
