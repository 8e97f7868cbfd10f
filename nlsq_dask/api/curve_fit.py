"""``curve_fit``: :func:`nlsq_dask.fit` with the arguments and return values of SciPy."""

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
from nlsq_dask.core.checks import checked_flag
from nlsq_dask.core.constraints import reduce_parameters
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import EVALUATIONS_PER_PARAMETER, LARGEST_SCALE
from nlsq_dask.fitting.prepare import DIFFERENCES
from nlsq_dask.fitting.starting_values import starting_values
from nlsq_dask.io.units import bare_bounds
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.called_back import eager_value
from nlsq_dask.user_model.signature import parameter_names

# Values of `method`. "auto" stands for "trf" with the workflow "auto".
SCIPY_METHODS = ("lm", "trf", "dogbox", "auto")

# Defaults of `scipy.optimize.leastsq`: MINPACK's recommended tolerances, evaluations a parameter.
LM_TOLERANCES = {"ftol": 1.49012e-8, "xtol": 1.49012e-8, "gtol": 0.0}
LM_EVALUATIONS, LM_EVALUATIONS_WITH_JAC = 200, 100

# Arguments of SciPy's solvers that are ignored: difference steps, linear algebra, first steps.
MEANINGLESS = {
    "lm": ("epsfcn", "factor"),
    "trf": ("diff_step", "jac_sparsity", "tr_options", "tr_solver", "workers"),
}
MEANINGLESS["dogbox"] = MEANINGLESS["auto"] = MEANINGLESS["trf"]

# MINPACK's numbers for the reasons to end a search.
LM_STATUS = {
    _errors.Status.COST: 1,
    _errors.Status.STEP: 2,
    _errors.Status.COST_AND_STEP: 3,
    _errors.Status.GRADIENT: 4,
}

# SciPy has numbers for successes up to this one.
LAST_OF_SCIPY = _errors.Status.COST_AND_STEP


class IndeterminateCovarianceWarning(
    _errors.CovarianceWarning,
    OptimizeWarning,  # type: ignore[misc]  # SciPy has no types
):
    """The data do not determine the covariance.

    Also an OptimizeWarning, so that filters written for SciPy match.
    """


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
        Model ``f(x, a, b, ...)``, written with NumPy or jax.numpy. If JAX cannot trace the model
        and the data are in memory, Python calls it, with derivatives by central differences.
    xdata : array_like or object
        Coordinates in any form that :func:`nlsq_dask.fit` takes: shape (n,) or (k, n), Dask and
        Zarr arrays included. The model gets any other object as it is.
    ydata : array_like, shape (n,)
        Observations; see :func:`nlsq_dask.fit` for other shapes.
    p0 : sequence or dict, optional
        Starting values. The default is 1 for each parameter, moved inside the bounds.
    sigma : float or array_like, optional
        Standard deviations of ``ydata``, or their covariance matrix (n, n) in memory.
    absolute_sigma : bool
        True takes ``sigma`` as it is for the covariance. False (default) scales the covariance so
        that the reduced chi-square is one.
    check_finite : bool, optional
        Whether NaN and infinities in memory are refused before the fit. The default is True without
        a `nan_policy`, and False with one. Dask and Zarr arrays are checked while the fit reads
        them.
    bounds : pair, dict or scipy.optimize.Bounds
        Bounds of the parameters; none by default.
    method : {"lm", "trf", "dogbox", "auto"}, optional
        The default is "lm" without bounds and "trf" with bounds. "auto" is "trf" with
        ``workflow="auto"``, whose tolerances depend on the number of rows.
    jac : callable or str, optional
        Derivatives ``jac(x, a, b, ...)``, shape (n, p). The default is automatic differentiation.
        SciPy's names of difference schemes are accepted and mean the same.
    full_output : bool
        Whether to return `infodict`, `mesg` and `ier` as well; False by default.
    nan_policy : {"raise", "omit"}, optional
        "raise": NaN are an error. "omit": rows with NaN are left out.
    **kwargs
        For "lm": ``ftol, xtol, gtol, maxfev, diag`` and other arguments of
        ``scipy.optimize.leastsq``. For other methods: ``ftol, xtol, gtol, max_nfev, x_scale, loss,
        f_scale, verbose, callback`` and other arguments of ``scipy.optimize.least_squares``. For
        all: further arguments of :func:`nlsq_dask.fit`, such as ``workflow`` or ``client``.

    Returns
    -------
    popt : ndarray, shape (p,), float64
        Estimates.
    pcov : ndarray, shape (p, p), float64
        Covariance of the estimates; infinite if the data do not determine it. With a robust
        `loss` it follows SciPy's formula, which gives 0.27 to 2.4 times the true spread;
        :func:`nlsq_dask.fit` gives the true one.
    infodict : dict
        With `full_output`. ``nfev`` is the number of evaluations. ``fvec`` are the residuals
        ``(f(x, *popt) - y) / sigma``, a Dask array if ``ydata`` is one. For "lm" there are also
        ``fjac`` (p, p), ``ipvt`` (p,) and ``qtf`` (p,) of the pivoted QR factorisation of the
        Jacobian, unless parameters are fixed or tied.
    mesg : str
        With `full_output`: the reason why the fit ended.
    ier : int
        With `full_output`: the reason as a number from 1 to 4.

    Raises
    ------
    ConvergenceError
        If the fit finds no optimum. The error is also a ``RuntimeError``, as in SciPy.
    InputError, InputTypeError, ModelError
        As :func:`nlsq_dask.fit`.

    Warns
    -----
    CovarianceWarning
        If the data do not determine the covariance. The warning is also a
        ``scipy.optimize.OptimizeWarning``.

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
    full_output = checked_flag("full_output", full_output)
    if check_finite is None:
        check_finite = nan_policy is None
    check_finite = checked_flag("check_finite", check_finite)
    call = scipy_call(f, jacobian, xdata, ydata, sigma, start)
    call = checked(call, check_finite, nan_policy)
    if p0 is None and call.adapt is None and hasattr(f, "guess"):
        options["p0"] = None  # the model guesses its start
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
    """Raise if SciPy would raise; warn if the fit did not converge but SciPy would return.

    SciPy returns once one of its criteria is met. A fit that meets a criterion while its estimated
    distance from the optimum is still large goes on; if it can go no further, it returns, too.
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
    """Replace a robust covariance by SciPy's, which treats the robust cost as a sum of squares."""
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
    """Starting values and bounds as arrays (p,)."""
    given = starting_values(f, p0)
    p0 = given.p0
    named = p0 is None or isinstance(p0, Mapping)
    if not named:
        p0 = _flat(p0, _errors.p0_not_numbers)
    names = parameter_names(f, None if named else p0.size)
    lower, upper = normalize_bounds(bare_bounds(bounds, given.units(names), names), names)
    return normalize_p0(p0, names, lower, upper), (lower, upper)


def _flat(value: Any, refusal: Callable[[object], _errors.FitError]) -> Any:
    """The value as a flat array of any dtype; `refusal` makes the error of ragged lists."""
    try:
        return np.ravel(value)
    except ValueError:
        raise refusal(value) from None


def _method(method: Any, lower: FloatArray, upper: FloatArray) -> str:
    """The method; by default SciPy's choice, "lm" without bounds and "trf" with bounds."""
    if method is not None and (not isinstance(method, str) or method not in SCIPY_METHODS):
        raise _errors.unknown_choice("method", method, SCIPY_METHODS)
    bounded = np.isfinite(lower) | np.isfinite(upper)
    if method == "lm" and bounded.any():
        raise _errors.lm_bounded()
    return method or ("trf" if bounded.any() else "lm")


def _options(method: str, kwargs: Mapping[str, Any], size: int, with_jac: bool) -> dict[str, Any]:
    """Translate arguments of SciPy's solvers to arguments of ``fit``."""
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
    if options["max_nfev"] is None or _is_zero(options["max_nfev"]):
        each = LM_EVALUATIONS_WITH_JAC if with_jac else LM_EVALUATIONS
        options["max_nfev"] = each * (size + 1)
    if not planned:
        options = LM_TOLERANCES | options
    diag = options.pop("diag", None)
    if diag is not None:
        options["x_scale"] = 1.0 / _checked_diag(diag)
    return options


def _is_zero(value: Any) -> bool:
    """Whether a value is the number 0, which stands for the default as in SciPy."""
    return isinstance(value, int | float | np.number) and value == 0


def _checked_diag(diag: Any) -> FloatArray:
    """The factors of MINPACK by which the variables are multiplied."""
    try:
        factors = np.asarray(diag, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _errors.diag_invalid(diag) from None
    if not ((factors >= 1.0 / LARGEST_SCALE) & (factors <= LARGEST_SCALE)).all():
        raise _errors.diag_invalid(diag)
    return factors


def _jacobian(jac: Any, transposed: bool) -> Callable[..., Any] | None:
    """The user's derivatives with one column a parameter; None for automatic differentiation."""
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
    if not 1 <= status <= LAST_OF_SCIPY:  # a status without a number in SciPy
        status = result.scipy_status or _errors.Status.COST
    if method != "lm":
        return infodict, result.message, int(status)
    tolerances = (result.tolerances[name] or 0.0 for name in ("ftol", "xtol", "gtol"))
    message = _errors.lm_message(result.status, *tolerances)
    if result.r_factor.shape[1] < result.popt.size:  # parameters are fixed or tied
        return infodict, message, LM_STATUS[status]
    _, r_factor, pivots = qr(result.r_factor, mode="economic", pivoting=True)
    # Rᵀ Qᵀ r = Pᵀ Jᵀ r; R is singular if the data do not determine all parameters.
    qtf = np.linalg.lstsq(r_factor.T, result.grad[pivots], rcond=None)[0]
    infodict |= {"fjac": r_factor.T, "ipvt": pivots, "qtf": qtf}
    return infodict, message, LM_STATUS[status]


def _weighted_residuals(call: ScipyCall, result: FitResult) -> Any:
    """``(f - y) / sigma`` at the estimates."""
    if call.plain and not isinstance(call.x, tuple):
        residuals = eager_value(call.function, call.given_x, result.popt) - call.y
    else:
        residuals = -result.residuals()
    if np.ndim(call.sigma) == 2 and call.plain:
        return solve_triangular(cholesky(call.sigma, lower=True), residuals, lower=True)
    return residuals if call.sigma is None else residuals / call.sigma
