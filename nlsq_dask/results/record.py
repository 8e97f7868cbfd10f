"""The numbers of a fit: its answer, and the statistics that follow without the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core import statistics
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import FloatArray, Moments
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.core.solver_state import IterationRecord
from nlsq_dask.core.structure import Structure
from nlsq_dask.io.codec import from_json
from nlsq_dask.io.times import TimeAxis


@dataclass(frozen=True, slots=True)
class Parameter:
    """An estimate and its standard error; ``float()`` gives the estimate.

    Attributes
    ----------
    value : float
        The estimate.
    stderr : float
        Its standard error: infinite if the data do not determine the parameter, 0 if it is fixed.
    """

    value: float
    stderr: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return format_uncertain(self.value, self.stderr)


@dataclass(frozen=True)
class Start:
    """One starting point, and the end of its search.

    Attributes
    ----------
    p0 : ndarray, shape (p,), float64
        The start.
    start_cost : float
        Cost there; infinite where the model is not finite.
    params : ndarray, shape (p,), float64, or None
        End of its search; None if the search was given up.
    cost : float or None
        Cost at the end. For streamed data, ``start_cost`` is the cost on the sample, and ``cost``
        is the cost on all rows at the best end of the basin.
    basin : int or None
        Number of its basin; 0 is the best. Ends within a standard error share a basin.
    status : Status or None
        Why its search ended.
    """

    p0: FloatArray
    start_cost: float
    params: FloatArray | None = None
    cost: float | None = None
    basin: int | None = None
    status: Status | None = None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote, infinities given as text."""
        return from_json(cls, saved)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, the status as a number."""
        fields = dict(vars(self))
        fields["status"] = None if self.status is None else int(self.status)
        return fields


@dataclass(frozen=True)
class PilotRecord:
    """Outcome of the pilot fit.

    Attributes
    ----------
    n_rows : int
        Rows of the sample.
    params : ndarray, shape (p,), float64
        Answer of the pilot fit.
    cost : float
        Cost of the answer on all rows.
    start_cost : float
        Cost of `p0` on all rows.
    used : bool
        Whether the fit started from the answer.
    """

    # What version 0.1 computed in a pass.
    RETIRED: ClassVar = frozenset({"trials"})

    n_rows: int
    params: FloatArray
    cost: float
    start_cost: float
    used: bool

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote, infinities given as text."""
        return from_json(cls, saved)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


# Compared by identity: comparing arrays gives no single truth value.
@dataclass(frozen=True, eq=False)
class FitRecord:
    """The numbers of :class:`nlsq_dask.FitResult`, whose documentation lists the fields."""

    names: tuple[str, ...]
    popt: FloatArray
    pcov: FloatArray
    cost: float
    chi2: float
    n_points: int
    n_skipped: int
    n_free: int
    fixed: tuple[str, ...]
    moments: Moments
    grad: FloatArray
    optimality: float
    distance_to_optimum_sigma: float
    active_mask: NDArray[np.int64]
    method: str
    loss: str
    absolute_sigma: bool
    r_factor: FloatArray = field(repr=False)
    nfev: int
    njev: int
    nit: int
    n_passes: int
    status: Status
    strategy: str
    workflow: str | None
    budget: MemoryBudget
    tolerances: dict[str, float | None]
    structure: Structure
    n_coords: int
    pilot: PilotRecord | None = field(repr=False)
    starts: tuple[Start, ...] = field(repr=False)
    checkpoint: str | None
    history: tuple[IterationRecord, ...] = field(repr=False)
    scipy_status: Status | None = field(default=None, kw_only=True)
    undetermined: tuple[str, ...] = field(default=(), kw_only=True)
    n_differenced: int = field(default=0, kw_only=True)
    n_passes_before: int = field(default=0, kw_only=True)
    bounds: FloatArray | None = field(default=None, repr=False, kw_only=True)
    sandwich: bool = field(default=False, kw_only=True)
    decoded: tuple[str, ...] = field(default=(), kw_only=True)
    param_units: dict[str, str] = field(default_factory=dict, kw_only=True)
    data_units: dict[str, str] = field(default_factory=dict, kw_only=True)
    n_distinct: int = field(default=0, kw_only=True)
    times: tuple[TimeAxis | None, ...] = field(default=(), kw_only=True)
    blocks_omitted: tuple[tuple[int, ...], ...] = field(default=(), kw_only=True)

    @property
    def n_blocks_omitted(self) -> int:
        """Number of blocks that were left out, since they could not be read."""
        return len(self.blocks_omitted)

    vector_bits: int = field(default=XLA_VECTOR_BITS, kw_only=True)

    @property
    def perr(self) -> FloatArray:
        """Standard errors of the estimates, shape (p,): square roots of ``pcov``'s diagonal."""
        with np.errstate(invalid="ignore"):  # a variance below zero has no root: NaN
            errors: FloatArray = np.sqrt(np.diagonal(self.pcov))
        return errors

    @property
    def params(self) -> dict[str, Parameter]:
        """Estimates and standard errors by name."""
        pairs = zip(self.names, self.popt, self.perr, strict=True)
        return {name: Parameter(float(value), float(error)) for name, value, error in pairs}

    @property
    def dof(self) -> int:
        """Degrees of freedom: rows less free parameters."""
        return self.n_points - self.n_free

    @property
    def reduced_chi2(self) -> float:
        """``chi2 / dof``; NaN where there are no degrees of freedom."""
        return self.chi2 / self.dof if self.dof > 0 else math.nan

    @property
    def chi2_p_value(self) -> float:
        """Probability of a `chi2` at least as large, if the model and the sigma are right.

        Upper tail of the χ² distribution with `dof` degrees of freedom. NaN unless
        `absolute_sigma`: an unknown scale of the errors explains any `chi2`.
        """
        from scipy.special import chdtrc  # loaded when asked for: a fit does without

        known = self.absolute_sigma and self.dof > 0
        return float(chdtrc(self.dof, self.chi2)) if known else math.nan

    @property
    def rmse(self) -> float:
        """Root of the mean squared residual ``sqrt(Σ (y - f)² / n)``, unweighted, in y's units."""
        return math.sqrt(statistics.mean(self.moments.sq_residuals, self.n_points))

    @property
    def mae(self) -> float:
        """Mean absolute residual ``Σ |y - f| / n``, unweighted, in y's units; NaN if not summed."""
        return statistics.mean(self.moments.abs_residuals, self.n_points)

    @property
    def r_squared(self) -> float:
        """Share of y's scatter explained: ``1 - chi2 / Σ w² (y - ȳ)²``, w = 1/σ.

        ȳ is the weighted mean, also for models without a constant. NaN if y is constant.
        """
        return statistics.r_squared(self.chi2, self.moments.scatter)

    @property
    def adj_r_squared(self) -> float:
        """R² adjusted for the parameters: ``1 - (1 - R²) (n - 1) / dof``."""
        return statistics.adjusted_r_squared(self.r_squared, self.n_points, self.dof)

    @property
    def aic(self) -> float:
        """Akaike's information criterion.

        ``n ln(chi2 / n) + 2 k`` with k free parameters; ``chi2 + 2 k`` if `absolute_sigma`. Compare
        it only between fits of the same rows with the same `sigma`.
        """
        return self._deviance() + 2.0 * self.n_free

    @property
    def bic(self) -> float:
        """Bayesian (Schwarz's) information criterion: as `aic`, with ``k ln n`` for ``2 k``."""
        return self._deviance() + self.n_free * math.log(max(self.n_points, 1))

    @property
    def success(self) -> bool:
        """Whether the fit is at an optimum that the data determine."""
        return self.status.success

    @property
    def message(self) -> str:
        """Why the fit ended."""
        return _errors.end_of_fit(self.status, self.undetermined)

    def raise_for_status(self) -> None:
        """Raise an error unless the fit was a success, as ``requests.Response`` does.

        Raises
        ------
        ConvergenceError
            With :attr:`message`.
        """
        if not self.success:
            raise _errors.optimum_not_found(self.message)

    def confidence_intervals(self, level: float = 0.95) -> FloatArray:
        """Confidence intervals of the parameters, ``popt ± t perr``.

        t is the quantile of Student's distribution with `dof` degrees of freedom. If
        `absolute_sigma`, no variance is estimated, and t is the quantile of the normal
        distribution. The intervals assume that the model is linear within a few standard errors of
        the answer (Seber & Wild, "Nonlinear Regression", 1989, section 5.1). At an active bound the
        interval ends at the bound, and is one-sided.

        Parameters
        ----------
        level : float
            Probability with which an interval covers the true value, in (0, 1).

        Returns
        -------
        ndarray, shape (p, 2), float64
            Lower and upper ends. They are equal for a fixed parameter, and infinite for a parameter
            that the data do not determine.

        Raises
        ------
        InputError
            If `level` is no probability in (0, 1).
        """
        quantile = interval_quantile(level, self.dof, known_scale=self.absolute_sigma)
        ends = statistics.intervals(self.popt, self.perr, quantile)
        return statistics.clipped(ends, self.popt, self.active_mask, self.bounds)

    def correlation(self) -> FloatArray:
        """Correlation of the estimates.

        Returns
        -------
        ndarray, shape (p, p), float64
            Ones on the diagonal. The other elements are NaN in the rows and columns of parameters
            that are fixed, or that the data do not determine.
        """
        return statistics.correlation(self.pcov)

    def _deviance(self) -> float:
        return statistics.deviance(self.chi2, self.n_points, known_scale=self.absolute_sigma)


def estimates_of(record: FitRecord) -> dict[str, float]:
    """The estimates by name."""
    return dict(zip(record.names, record.popt.tolist(), strict=True))


def n_basins(starts: Sequence[Start]) -> int:
    """Number of different basins of the starts."""
    return len({start.basin for start in starts if start.basin is not None})


def interval_quantile(level: object, dof: int, *, known_scale: bool) -> float:
    """Half the width, in standard errors, of the interval that covers with probability `level`.

    Parameters
    ----------
    level : float
        Probability in (0, 1).
    dof : int
        Degrees of freedom of the estimated variance of the rows.
    known_scale : bool
        Whether the variance is known, and not estimated.

    Returns
    -------
    float
        Quantile of the normal distribution for a known scale, else of Student's distribution.
        Infinite without degrees of freedom.

    Raises
    ------
    InputError
        If `level` is no probability in (0, 1).
    """
    from scipy.special import ndtri, stdtrit  # loaded when asked for: a fit does without

    probability = float(level) if isinstance(level, SupportsFloat) else math.nan
    if not 0.0 < probability < 1.0:
        raise _errors.level_invalid(level)
    # Use the lower tail: probabilities close to 1 lose digits.
    tail = (1.0 - probability) / 2.0
    if known_scale:
        return -float(ndtri(tail))
    return -float(stdtrit(dof, tail)) if dof > 0 else math.inf


def format_uncertain(value: float, error: float) -> str:
    """Write ``value ± error`` with two significant digits of the error.

    The convention of the Particle Data Group's Review (section "Rounding"), with two digits always.
    """
    if not (math.isfinite(error) and math.isfinite(value)):
        return f"{value:.8g} ± {error}"
    if error == 0.0:
        return f"{value:.10g} ± 0"
    exponent = math.floor(math.log10(error))
    decimals = 1 - exponent
    power = math.floor(math.log10(max(abs(value), error)))
    # The larger number decides: a value of common size stays readable with a tiny error.
    if power >= -4 and decimals >= 0 and abs(value) < 1e7:
        return f"{value:z.{decimals}f} ± {error:.{decimals}f}"
    digits = max(power - exponent + 1, 1)
    scale = 10.0**power
    return f"({value / scale:z.{digits}f} ± {error / scale:.{digits}f})e{power:+03d}"
