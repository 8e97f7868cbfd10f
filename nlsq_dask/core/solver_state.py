"""What a search for the least sum of squares is told, knows between evaluations, and returns.

One vocabulary for all methods, so that whoever observes, stores or resumes a search need not ask
which method it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.checks import checked_count, checked_tolerance
from nlsq_dask.core.distance import Remainder
from nlsq_dask.core.factor import EPS, Linearization
from nlsq_dask.core.normal_equations import FloatArray, Moments

#: The methods, by the names of ``scipy.optimize.least_squares``.
MethodName = Literal["trf", "lm", "dogbox"]
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)

#: Evaluations allowed by default, per parameter: the value of ``scipy.optimize.least_squares``.
EVALUATIONS_PER_PARAMETER = 100


@dataclass(frozen=True)
class SolverOptions:
    """How to search, when to stop, and the units of the parameters.

    Attributes
    ----------
    ftol : float or None
        Stop when a step lowers the cost by at most ``ftol`` times the cost that is left, as the
        model predicted.
    xtol : float or None
        Stop when a step changes no parameter by more than ``xtol |θ_j|``.
    gtol : float or None
        Stop when the cosine between the residuals and every column of the Jacobian is at most
        `gtol`; see :func:`nlsq_dask.core.convergence.relative_gradient` for bounds.
    max_nfev : int or None
        Most points to evaluate; None allows 100 per parameter.
    x_scale : "jac" or ndarray, shape (p,) or ()
        Characteristic size of each parameter; "jac" takes the inverse of the largest norm that its
        column of the Jacobian has had so far.
    method : {"trf", "lm", "dogbox"}
        See :mod:`nlsq_dask.core.trf`, :mod:`nlsq_dask.core.lm`, :mod:`nlsq_dask.core.dogbox`.
    stat_tol : float or None
        Distance from the optimum, in standard errors, at which a search ends without another
        evaluation if the next step would lower the cost by less than ``ftol * cost``. None always
        tries that step.
    arrival_tol : float
        Distance from the optimum that counts as none, in standard errors: `ftol`, `xtol` and `gtol`
        end the search only nearer than that. See :mod:`nlsq_dask.core.convergence`.
    model_eps : float
        Relative precision of the model's values: that of the coarsest type of float in it.
    residual_variance : float or None
        s², the variance of the weighted residuals, in which the distance is measured: 1 where the
        weights are absolute; None estimates it by ``2 cost / (n - p)``.
    scores : bool
        Whether the solution needs the sums of the scores of a robust loss.

    Raises
    ------
    InputError
        If a value is out of its range. None, and any value below the machine precision, disables a
        criterion; one at least must stay.
    """

    ftol: float | None = 1e-8
    xtol: float | None = 1e-8
    gtol: float | None = 1e-8
    max_nfev: int | None = None
    x_scale: Literal["jac"] | FloatArray = "jac"
    method: MethodName = "trf"
    stat_tol: float | None = None
    arrival_tol: float = 0.1
    model_eps: float = EPS
    residual_variance: float | None = None
    scores: bool = False

    def __post_init__(self) -> None:
        tolerances = {"ftol": self.ftol, "xtol": self.xtol, "gtol": self.gtol}
        for name, value in (tolerances | {"stat_tol": self.stat_tol}).items():
            checked_tolerance(name, value)
        if all(value is None or value < EPS for value in tolerances.values()):
            raise _errors.tolerances_disabled(EPS)
        if self.max_nfev is not None:
            checked_count("max_nfev", self.max_nfev)
        if self.method not in METHOD_NAMES:
            raise _errors.unknown_choice("method", self.method, METHOD_NAMES)
        if not (isinstance(self.x_scale, str) and self.x_scale == "jac"):
            _check_sizes(self.x_scale)

    def evaluations(self, size: int) -> int:
        """Most points to evaluate for a model of `size` parameters."""
        return EVALUATIONS_PER_PARAMETER * size if self.max_nfev is None else self.max_nfev


@dataclass(frozen=True, slots=True)
class IterationRecord:
    """What one evaluation led to.

    Attributes
    ----------
    iteration : int
        Points that the search has moved to so far, this one included.
    nfev : int
        Points evaluated so far.
    cost : float
        Cost at the point tried, whether accepted or not.
    step_norm : float
        Length of the step, in the parameters' units.
    optimality : float
        Infinity norm of the scaled gradient at the best point so far.
    radius : float
        Trust-region radius that the step was computed for; 0 for the start.
    accepted : bool
    distance : float
        How far the best point so far is from the optimum of its linearisation, in standard errors.
    """

    iteration: int
    nfev: int
    cost: float
    step_norm: float
    optimality: float
    radius: float
    accepted: bool
    distance: float


@dataclass(frozen=True, slots=True)
class SolverState:
    """All that a method knows between two evaluations.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
        The best point so far, within the bounds ("trf": strictly between them).
    linearization : Linearization
        Of the residuals at `params`.
    cost, chi2 : float
        At `params`.
    n_points, n_skipped : int
        Rows in and left out of the sums.
    moments : Moments
        At `params`.
    left : Remainder
        What lies between `params` and the optimum of the linearisation within the bounds.
    scale_inv : ndarray, shape (p,), float64
        Inverse characteristic sizes of the parameters: the diagonal of D.
    radius : float
        Trust-region radius Δ of the next step.
    alpha : float
        First guess of the next step's Levenberg-Marquardt parameter; 0 where there is none.
    optimality : float
        Infinity norm of the scaled gradient at `params`.
    nfev, njev, n_refined : int
        Points evaluated, linearisations used, and evaluations at a known point in another basis.
    status : Status or None
        Why the search is over; None while it is not.
    history : tuple of IterationRecord
        One a point evaluated.
    n_differenced : int
        Most rows of which a derivative was a difference, at any point that the search moved to.
    sizes : ndarray, shape (p,), float64
        Sizes of the parameters, as far as the user's start tells them; 0 where it does not.
    n_rejected : int
        Trials refused in a row.
    n_contradicted : int
        Of those, trials that cost more although the derivatives there promise that they cost less.
    n_probed : int
        Displacements that were tried before an end: along directions that the data do not
        determine, and down from a saddle.
    refined : bool
        Whether the best point was evaluated again in its own basis.
    met : Status or None
        The criterion of SciPy's that was met first, wherever the search went on to.
    """

    params: FloatArray
    linearization: Linearization
    cost: float
    chi2: float
    n_points: int
    n_skipped: int
    moments: Moments
    left: Remainder
    scale_inv: FloatArray
    radius: float
    alpha: float
    optimality: float
    nfev: int
    njev: int
    n_refined: int
    status: Status | None
    history: tuple[IterationRecord, ...] = field(repr=False)
    n_differenced: int = 0
    sizes: FloatArray = field(default_factory=lambda: np.zeros(()))
    n_rejected: int = 0
    n_contradicted: int = 0
    n_probed: int = 0
    refined: bool = False
    met: Status | None = None


@dataclass(frozen=True)
class Solution:
    """The result of a minimisation.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    cost : float
        Half the sum of squared weighted residuals (or the robust cost) at `params`.
    chi2 : float
        Sum of squared weighted residuals at `params`.
    r_factor : ndarray, shape (p, p), float64
        Upper-triangular factor of the Jacobian at `params`.
    gradient : ndarray, shape (p,), float64
        ``Jᵀ r``.
    optimality : float
        Infinity norm of the gradient, scaled for the bounds.
    distance : float
        How far `params` is from the optimum of its linearisation, in standard errors.
    active_mask : ndarray, shape (p,), int
        -1 where the lower bound is active, 1 where the upper is, 0 elsewhere.
    nfev : int
        Points evaluated.
    njev : int
        Linearisations used: 1 + `nit`.
    nit : int
        Points that the search moved to.
    n_refined : int
        Evaluations at a known point in another basis. Passes over the data are ``nfev +
        n_refined``.
    status : Status
    met : Status or None
        The criterion of SciPy's that was met first.
    undetermined : ndarray, shape (p,), bool
        Parameters of which the data leave a combination open.
    n_points, n_skipped : int
        Rows in and left out of the sums.
    moments : Moments
        At `params`.
    history : tuple of IterationRecord
    n_differenced : int
        Most rows of which a derivative was a difference, at any point that the search moved to.
    sandwich : ndarray, shape (p, p), float64, or None
        Covariance of the estimates of a robust loss; see :func:`~nlsq_dask.core.factor.sandwich`.
    """

    params: FloatArray
    cost: float
    chi2: float
    r_factor: FloatArray
    gradient: FloatArray
    optimality: float
    distance: float
    active_mask: NDArray[np.int64]
    nfev: int
    njev: int
    nit: int
    n_refined: int
    status: Status
    met: Status | None
    undetermined: NDArray[np.bool_]
    n_points: int
    n_skipped: int
    moments: Moments
    history: tuple[IterationRecord, ...] = field(repr=False)
    n_differenced: int = 0
    sandwich: FloatArray | None = None


def _check_sizes(x_scale: Any) -> None:
    try:
        sizes = np.asarray(x_scale, dtype=np.float64)
    except (TypeError, ValueError):
        raise _errors.x_scale_invalid(x_scale) from None
    if not (np.isfinite(sizes) & (sizes > 0.0)).all():
        raise _errors.x_scale_invalid(x_scale)
