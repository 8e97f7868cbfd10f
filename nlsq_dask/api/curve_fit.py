"""SciPy's face of :func:`nlsq_dask.fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.linalg import cholesky, qr, solve_triangular
from scipy.optimize import OptimizeWarning

from nlsq_dask import _errors
from nlsq_dask.api.scipy_call import ScipyCall, checked, fitted, scipy_call
from nlsq_dask.api.scipy_models import TransposedJacobian
from nlsq_dask.core.bounds import normalize_bounds, normalize_p0
from nlsq_dask.core.constraints import reduce_parameters
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import EVALUATIONS_PER_PARAMETER
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.called_back import eager_value
from nlsq_dask.user_model.signature import parameter_names

# "auto" is the workflow's name where the method is left to it.
METHODS = ("lm", "trf", "dogbox", "auto")

# SciPy's names for differences where there is no Jacobian. The derivatives here are exact.
DIFFERENCES = ("2-point", "3-point", "cs")

# Tolerances and evaluations of `scipy.optimize.leastsq`, MINPACK's recommendation among them.
LM_TOLERANCES = {"ftol": 1.49012e-8, "xtol": 1.49012e-8, "gtol": 0.0}
LM_EVALUATIONS, LM_EVALUATIONS_WITH_JAC = 200, 100

# What SciPy's solvers take about derivatives, linear algebra and first steps, and this one chooses.
MEANINGLESS = {
    "lm": ("epsfcn", "factor"),
    "trf": ("diff_step", "jac_sparsity", "tr_options", "tr_solver", "workers"),
}
MEANINGLESS["dogbox"] = MEANINGLESS["auto"] = MEANINGLESS["trf"]

# How MINPACK numbers the ends of a search.
LM_STATUS = {
    _errors.Status.COST: 1,
    _errors.Status.STEP: 2,
    _errors.Status.COST_AND_STEP: 3,
    _errors.Status.GRADIENT: 4,
}


# The last of the numbers that SciPy has for a success.
LAST_OF_SCIPY = _errors.Status.COST_AND_STEP


class IndeterminateCovarianceWarning(
    _errors.CovarianceWarning,
    OptimizeWarning,  # type: ignore[misc]  # SciPy has no types
):
    """The data do not determine the covariance; heard by who listens for SciPy's warning."""


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    jac: Callable[..., Any] | str | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Fit a model as ``scipy.optimize.curve_fit`` does, to data of any size.

    Parameters
    ----------
    f : callable
        ``f(x, a, b, ...)``, written with NumPy or jax.numpy. A model that JAX cannot trace is
        called as it is, with derivatives by central differences, where the data are in memory.
    xdata : array_like or object
        Coordinates, in any of the forms that :func:`nlsq_dask.fit` takes: (n,), (k, n), Dask and
        Zarr arrays. Anything else is passed to the model as it is.
    ydata : array_like, shape (n,)
        Observations; see :func:`nlsq_dask.fit` for other shapes.
    p0 : sequence or dict, optional
        Starting values; ones by default, or inside the bounds.
    sigma : float or array_like, optional
        Standard deviations of ``ydata``, or their covariance matrix (n, n) in memory.
    absolute_sigma : bool
        Whether ``sigma`` is taken as it is for the covariance.
    check_finite : bool, optional
        Whether NaN and infinities in memory are refused before the fit; True by default unless
        there is a `nan_policy`. Dask and Zarr arrays are read only by the fit, which refuses what
        makes its sums not finite.
    bounds : pair, dict or scipy.optimize.Bounds
        Bounds of the parameters.
    method : {"lm", "trf", "dogbox", "auto"}, optional
        "lm" without bounds and "trf" with bounds, by default. "auto": "trf" with
        ``workflow="auto"``, whose tolerances depend on the number of rows.
    jac : callable or str, optional
        ``jac(x, a, b, ...)``, shape (n, p). The names of difference schemes are taken, too, but
        the derivatives of a model that can be traced are exact.
    full_output : bool
        Whether to return `infodict`, `mesg` and `ier`, too.
    nan_policy : {"raise", "omit"}, optional
        Whether NaN are an error, or rows with NaN are left out.
    **kwargs
        ``ftol, xtol, gtol, maxfev, diag`` and others of ``scipy.optimize.leastsq`` for "lm", or
        ``ftol, xtol, gtol, max_nfev, x_scale, loss, f_scale, verbose, callback`` and others of
        ``scipy.optimize.least_squares``; and further arguments of :func:`nlsq_dask.fit`, such as
        ``workflow`` or ``client``.

    Returns
    -------
    popt : ndarray, shape (p,), float64
        Estimates.
    pcov : ndarray, shape (p, p), float64
        Covariance of the estimates; infinite where the data do not determine it. With a robust
        `loss` by SciPy's formula, which is 0.27 to 2.4 times the true spread: :func:`nlsq_dask.fit`
        has the right one.
    infodict : dict
        With `full_output`: ``nfev``, the evaluations, and ``fvec``, the residuals
        ``(f(x, *popt) - y) / sigma``, a Dask array where the data are one. For "lm" also
        ``fjac`` (p, p), ``ipvt`` (p,) and ``qtf`` (p,), of the QR factorisation with pivoting of
        the Jacobian, unless parameters are fixed or tied.
    mesg : str
        With `full_output`: why the fit ended.
    ier : int
        With `full_output`: the same as a number from 1 to 4.

    Raises
    ------
    ConvergenceError
        If no optimum was found; also a ``RuntimeError``, as in SciPy.
    InputError, InputTypeError, ModelError
        As :func:`nlsq_dask.fit`.

    Warns
    -----
    CovarianceWarning
        If the data do not determine the covariance; also a ``scipy.optimize.OptimizeWarning``.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_dask import curve_fit
    >>> x = np.linspace(0, 1, 20)
    >>> popt, pcov = curve_fit(lambda x, a, b: a * x + b, x, 3 * x + 1)
    >>> popt.round(6)
    array([3., 1.])
    """
    if "args" in kwargs:
        raise _errors.args_refused()
    start, bounds = _start_and_bounds(f, p0, bounds)
    method = _method(method, *bounds)
    options = _options(method, kwargs, start.size, callable(jac))
    options |= {"absolute_sigma": absolute_sigma, "bounds": bounds, "p0": start}
    jacobian = _jacobian(jac, options.pop("col_deriv", False))
    if check_finite is None:
        check_finite = nan_policy is None
    call = scipy_call(f, jacobian, xdata, ydata, sigma, start)
    call = checked(call, check_finite, nan_policy)
    if p0 is None and call.adapt is None and hasattr(f, "guess"):
        options["p0"] = None  # the model knows better than ones
    result = fitted(call, options)
    _check_end(result, method, options["max_nfev"] or EVALUATIONS_PER_PARAMETER * start.size)
    result = _with_covariance_of_scipy(result, options)
    if np.isinf(result.pcov).any():
        text = str(_errors.covariance_undetermined(result.undetermined))
        warnings.warn(IndeterminateCovarianceWarning(text), stacklevel=2)
    if result.n_differenced:
        differenced = _errors.derivatives_differenced(result.n_differenced, result.n_points)
        warnings.warn(differenced, stacklevel=2)
    if not full_output:
        return result.popt, result.pcov
    return result.popt, result.pcov, *_full_output(method, call, result)


def _check_end(result: FitResult, method: str, limit: int) -> None:
    """Raise where SciPy does; warn where SciPy would have returned too early.

    Where a criterion of SciPy's was met and only the distance from the optimum was missing, SciPy
    returns. So does `curve_fit`, once it can go no further.
    """
    if result.success or result.status == _errors.Status.UNDETERMINED:
        return
    message = result.message
    if result.status == _errors.Status.MAX_EVALUATIONS:
        message = _errors.evaluations_spent(method, limit)
    if result.scipy_status is None or result.status == _errors.Status.CALLBACK:
        raise _errors.optimum_not_found(message)
    warnings.warn(_errors.not_converged(message), stacklevel=3)


def _with_covariance_of_scipy(result: FitResult, options: Mapping[str, Any]) -> FitResult:
    """The covariance by SciPy's formula, which takes a robust cost for a sum of squares."""
    if not result.sandwich:
        return result
    pcov, _ = covariance(
        result.r_factor, result.cost, result.n_points, absolute_sigma=result.absolute_sigma
    )
    free = reduce_parameters(result.names, options.get("fixed"), options.get("ties"))
    return replace(result, pcov=free.expand_covariance(pcov), sandwich=False)


def _start_and_bounds(
    f: Callable[..., Any], p0: Any, bounds: Any
) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """Starting values and bounds as arrays, with which the number of parameters is known."""
    by_name = p0 is None or isinstance(p0, Mapping)
    if not by_name:
        p0 = np.ravel(p0)
    names = parameter_names(f, None if by_name else p0.size)
    lower, upper = normalize_bounds(bounds, names)
    return normalize_p0(p0, names, lower, upper), (lower, upper)


def _method(method: Any, lower: FloatArray, upper: FloatArray) -> str:
    """SciPy's choice: Levenberg-Marquardt where there are no bounds."""
    if method is not None and (not isinstance(method, str) or method not in METHODS):
        raise _errors.unknown_choice("method", method, METHODS)
    bounded = np.isfinite(lower) | np.isfinite(upper)
    if method == "lm" and bounded.any():
        raise _errors.lm_bounded()
    return method or ("trf" if bounded.any() else "lm")


def _options(method: str, kwargs: Mapping[str, Any], size: int, with_jac: bool) -> dict[str, Any]:
    """Arguments of ``fit`` for those of SciPy's solvers."""
    options = {name: value for name, value in kwargs.items() if name not in MEANINGLESS[method]}
    maxfev = options.pop("maxfev", None)
    options.setdefault("max_nfev", maxfev)
    options["method"] = "trf" if method == "auto" else method
    if method == "auto":
        options.setdefault("workflow", "auto")
    planned = options.get("workflow") is not None or options.get("goal") is not None
    if not planned:
        options.setdefault("stat_tol", None)  # SciPy's criteria alone
    if method != "lm":
        return options
    if not options["max_nfev"]:
        each = LM_EVALUATIONS_WITH_JAC if with_jac else LM_EVALUATIONS
        options["max_nfev"] = each * (size + 1)
    if not planned:
        options = LM_TOLERANCES | options
    diag = options.pop("diag", None)
    if diag is not None:
        options["x_scale"] = 1.0 / np.asarray(diag, np.float64)
    return options


def _jacobian(jac: Any, transposed: bool) -> Callable[..., Any] | None:
    """The user's derivatives, one column a parameter."""
    if jac is None or (isinstance(jac, str) and jac in DIFFERENCES):
        return None
    if not callable(jac):
        raise _errors.unknown_choice("jac", jac, (*DIFFERENCES, "a callable"))
    return TransposedJacobian(jac) if transposed else jac


def _full_output(
    method: str, call: ScipyCall, result: FitResult
) -> tuple[dict[str, Any], str, int]:
    """``infodict``, ``mesg`` and ``ier``."""
    infodict = {"nfev": result.nfev, "fvec": _weighted_residuals(call, result)}
    status = result.status
    if not 1 <= status <= LAST_OF_SCIPY:  # SciPy has no number for it
        status = result.scipy_status or _errors.Status.COST
    if method != "lm":
        return infodict, result.message, int(status)
    tolerances = (result.tolerances[name] or 0.0 for name in ("ftol", "xtol", "gtol"))
    message = _errors.lm_message(result.status, *tolerances)
    if result.r_factor.shape[1] < result.popt.size:  # parameters are fixed or tied
        return infodict, message, LM_STATUS[status]
    _, r_factor, pivots = qr(result.r_factor, mode="economic", pivoting=True)
    # Rᵀ Qᵀ r = Pᵀ Jᵀ r, with R singular where the data do not determine all parameters.
    qtf = np.linalg.lstsq(r_factor.T, result.grad[pivots], rcond=None)[0]
    infodict |= {"fjac": r_factor.T, "ipvt": pivots, "qtf": qtf}
    return infodict, message, LM_STATUS[status]


def _weighted_residuals(call: ScipyCall, result: FitResult) -> Any:
    """``(f - y) / sigma`` at the answer."""
    if call.plain and not isinstance(call.x, tuple):
        residuals = eager_value(call.function, call.given_x, result.popt) - call.y
    else:
        residuals = -result.residuals()
    if np.ndim(call.sigma) == 2 and call.plain:
        return solve_triangular(cholesky(call.sigma, lower=True), residuals, lower=True)
    return residuals if call.sigma is None else residuals / call.sigma
