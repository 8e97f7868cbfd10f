"""The options, the state and the result of a search for the least sum of squares.

They are the same for all methods, so that code that observes, stores or resumes a search does not
depend on the method.
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

#: Largest size of a variable, and inverse of the smallest, whose square float64 can hold with room
#: for the derivatives that it is multiplied by.
LARGEST_SCALE = 1e150


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How to search, when to stop, and the units of the parameters.

    Attributes
    ----------
    ftol : float or None
        Stop when a step lowers the cost by at most ``ftol`` times the present cost, as the model
        predicted.
    xtol : float or None
        Stop when a step changes no parameter by more than ``xtol |θ_j|``.
    gtol : float or None
        Stop when the cosine between the residuals and every column of the Jacobian is at most
        `gtol`; see :func:`nlsq_dask.core.convergence.relative_gradient` for bounds.
    max_nfev : int or None
        Most points to evaluate; None allows 100 per parameter.
    x_scale : "jac" or ndarray, shape (p,) or ()
        Characteristic size of each parameter. "jac" takes the inverse of the largest norm so far
        of the parameter's column of the Jacobian.
    method : {"trf", "lm", "dogbox"}
        See :mod:`nlsq_dask.core.trf`, :mod:`nlsq_dask.core.lm`, :mod:`nlsq_dask.core.dogbox`.
    stat_tol : float or None
        Distance from the optimum, in standard errors, at which a search ends without another
        evaluation if the next step promises less than ``ftol * cost``. None always tries that step.
    arrival_tol : float
        Largest distance from the optimum, in standard errors, at which `ftol`, `xtol` and `gtol`
        end the search. See :mod:`nlsq_dask.core.convergence`.
    model_eps : float
        Relative precision of the model's values: the precision of its coarsest type of float.
    residual_variance : float or None
        s², the variance of the weighted residuals: the unit of the distance. 1 for absolute
        weights; None estimates s² by ``2 cost / (n - p)``.
    scores : bool
        Whether to sum the score products of a robust loss at the solution.

    Raises
    ------
    InputError
        If a value is out of its range. None, and any value below the machine precision, disables a
        criterion; at least one criterion must stay.
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
    """The result of one evaluation.

    Attributes
    ----------
    iteration : int
        Number of the best point so far, counted from 0 at the start.
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
        Distance of the best point so far from the optimum of its linearisation, in standard errors.
    """

    iteration: int
    nfev: int
    cost: float
    step_norm: float
    optimality: float
    radius: float
    accepted: bool
    distance: float


@dataclass(frozen=True, kw_only=True)  # without slots, for quick copies
class BestPoint:
    """The best point of a search, and how the search came there.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
        The point, within the bounds ("trf": strictly between them).
    cost : float
        Half the sum of squared weighted residuals (or the robust cost) at `params`.
    chi2 : float
        Sum of squared weighted residuals at `params`.
    optimality : float
        Infinity norm of the gradient at `params`, scaled for the bounds.
    n_points, n_skipped : int
        Rows in and left out of the sums.
    moments : Moments
        At `params`.
    nfev, njev : int
        Points evaluated, and linearisations used.
    n_refined : int
        Evaluations at a known point in another basis. Passes over the data are ``nfev +
        n_refined``.
    n_differenced : int
        Largest number of rows with a differenced derivative, over all points moved to.
    met : Status or None
        The first of SciPy's criteria that was met, even if the search went on.
    history : tuple of IterationRecord
        A record for each point evaluated.
    """

    params: FloatArray
    cost: float
    chi2: float
    optimality: float
    n_points: int
    n_skipped: int
    moments: Moments
    nfev: int
    njev: int
    n_refined: int
    n_differenced: int = 0
    met: Status | None = None
    history: tuple[IterationRecord, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)  # without slots, for quick copies
class SolverState(BestPoint):
    """The state of a search between two evaluations.

    Attributes
    ----------
    linearization : Linearization
        Of the residuals at `params`.
    left : Remainder
        The step from `params` to the optimum of the linearisation within the bounds.
    scale_inv : ndarray, shape (p,), float64
        Inverse characteristic sizes of the parameters: the diagonal of D.
    radius : float
        Trust-region radius Δ of the next step.
    alpha : float
        First guess of the next step's Levenberg-Marquardt parameter; 0 for no guess.
    status : Status or None
        Why the search is over; None during the search.
    sizes : ndarray, shape (p,), float64
        Sizes of the parameters by the user's start; 0 where the start tells no size.
    n_rejected : int
        Trials rejected in a row.
    n_contradicted : int
        Rejected trials whose derivatives promise a lower cost.
    n_probed : int
        Displacements tried before an end: along undetermined directions, and down from a saddle.
    refined : bool
        Whether the best point was evaluated again in its own basis.
    """

    linearization: Linearization
    left: Remainder
    scale_inv: FloatArray
    radius: float
    alpha: float
    status: Status | None
    sizes: FloatArray = field(default_factory=lambda: np.zeros(()))
    n_rejected: int = 0
    n_contradicted: int = 0
    n_probed: int = 0
    refined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution(BestPoint):
    """The result of a minimisation.

    Attributes
    ----------
    status : Status
    r_factor : ndarray, shape (p, p), float64
        Upper-triangular factor of the Jacobian at `params`.
    gradient : ndarray, shape (p,), float64
        ``Jᵀ r``.
    distance : float
        Distance of `params` from the optimum of its linearisation, in standard errors.
    active_mask : ndarray, shape (p,), int
        -1 where the lower bound is active, 1 where the upper is, 0 elsewhere.
    undetermined : ndarray, shape (p,), bool
        Parameters in a direction that the data do not determine.
    sandwich : ndarray, shape (p, p), float64, or None
        Covariance of the estimates of a robust loss; see :func:`~nlsq_dask.core.factor.sandwich`.
    """

    status: Status
    r_factor: FloatArray
    gradient: FloatArray
    distance: float
    active_mask: NDArray[np.int64]
    undetermined: NDArray[np.bool_]
    sandwich: FloatArray | None = None

    @property
    def nit(self) -> int:
        """Points that the search moved to."""
        return self.njev - 1


def _check_sizes(x_scale: Any) -> None:
    try:
        sizes = np.asarray(x_scale, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _errors.x_scale_invalid(x_scale) from None
    if not ((sizes >= 1.0 / LARGEST_SCALE) & (sizes <= LARGEST_SCALE)).all():
        raise _errors.x_scale_invalid(x_scale)
