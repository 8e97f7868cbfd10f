"""SciPy's face of :func:`nlsq_dask.fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, qr, solve_triangular
from scipy.optimize import OptimizeWarning

from nlsq_dask import _errors
from nlsq_dask.api.fit import fit
from nlsq_dask.api.scipy_models import (
    ClosedModel,
    HostModel,
    ReshapedModel,
    RowsFirstModel,
    TransposedJacobian,
)
from nlsq_dask.core.bounds import normalize_bounds, normalize_p0
from nlsq_dask.core.constraints import reduce_parameters
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import EVALUATIONS_PER_PARAMETER
from nlsq_dask.fitting.job import logger
from nlsq_dask.io.missing import UNLOOKED, Unlooked
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

# Libraries whose arrays ``fit`` understands and SciPy does not.
PASSED_ON = ("dask", "xarray", "zarr")

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


class IndeterminateCovarianceWarning(
    _errors.CovarianceWarning,
    OptimizeWarning,  # type: ignore[misc]  # SciPy has no types
):
    """The data do not determine the covariance; heard by who listens for SciPy's warning."""


# The last of the numbers that SciPy has for a success.
LAST_OF_SCIPY = _errors.Status.COST_AND_STEP

# Makes a function of `x` as ``fit`` hands it over of a function of SciPy's x.
Adapt = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Problem:
    """A call of ``curve_fit``.

    Attributes
    ----------
    function, jacobian : callable
        What the user passed; `jacobian` may be None.
    x, y, sigma : object
        Data as :func:`nlsq_dask.fit` takes them.
    given_x : object
        What SciPy calls the model with.
    nan_policy : str or None
        What is left of it for ``fit``.
    plain : bool
        Whether the data are such as SciPy takes: in memory, with a flat y.
    adapt : callable or None
        Makes of `function` and `jacobian` what takes `x`.
    """

    function: Callable[..., Any]
    jacobian: Callable[..., Any] | None
    x: Any
    y: Any
    sigma: Any
    given_x: Any
    nan_policy: Literal["raise", "omit"] | Unlooked | None
    plain: bool
    adapt: Adapt | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the model closes on its x, so that its value has all rows or none."""
        return isinstance(self.adapt, partial) and self.adapt.func is ClosedModel

    def given_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Arrays in memory by name, of which SciPy checks the values."""
        for name, array in (("y", self.y), ("x", self.given_x)):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                yield name, array

    def fit(self, options: Mapping[str, Any]) -> FitResult:
        """Fit the model as it is."""
        model, jac = self.function, self.jacobian
        if self.adapt is not None:
            model = self.adapt(model)
            jac = None if jac is None else self.adapt(jac)
        return self._fit(model, self.x, dict(options, jac=jac))

    def fit_on_host(self, options: Mapping[str, Any], traced: _errors.ModelError) -> FitResult:
        """Fit the model by calling it from compiled code, after it could not be traced."""
        n = self.y.size
        lower, upper = options["bounds"]
        host = HostModel(self.function, self.given_x, n, lower, upper, self.jacobian)
        try:
            result = self._fit(host, np.arange(n, dtype=np.float64), options)
        except _errors.NotRowWiseError:  # chunks were asked for
            raise traced from None
        except (jax.errors.JaxRuntimeError, ValueError):  # JAX has several for a failing callback
            if host.error is None:
                raise
            if host.calls == 0 and not isinstance(host.error, _errors.FitError):
                raise traced from host.error  # it fails for numbers, too: the first says more
            raise host.error from None
        finally:
            host.release()
        return replace(result, n_differenced=host.n_differenced)

    def attributes(self) -> list[dict[str, Any]]:
        """What the user's functions keep."""
        return [dict(getattr(f, "__dict__", {})) for f in (self.function, self.jacobian)]

    def restore(self, attributes: list[dict[str, Any]]) -> None:
        """Put back what the user's functions kept."""
        for f, kept in zip((self.function, self.jacobian), attributes, strict=True):
            if isinstance(getattr(f, "__dict__", None), dict):
                f.__dict__.clear()
                f.__dict__.update(kept)

    def _fit(self, model: Any, x: Any, options: Mapping[str, Any]) -> FitResult:
        with warnings.catch_warnings():  # told by curve_fit, in SciPy's way
            warnings.simplefilter("ignore", _errors.ConvergenceWarning)
            warnings.simplefilter("ignore", _errors.CovarianceWarning)
            warnings.simplefilter("ignore", _errors.DerivativeWarning)
            warnings.simplefilter("ignore", _errors.LossScaleWarning)
            sigma = _with_least_weight(self.sigma) if self.plain else self.sigma
            found: FitResult = fit(
                model,
                x,
                self.y,
                sigma=sigma,
                nan_policy=cast("Any", self.nan_policy),
                **options,
            )
        return found


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
    problem = _problem(f, jacobian, xdata, ydata, sigma, start)
    problem = _checked(problem, check_finite, nan_policy)
    if p0 is None and problem.adapt is None and hasattr(f, "guess"):
        options["p0"] = None  # the model knows better than ones
    result = _fitted(problem, options)
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
    return result.popt, result.pcov, *_full_output(method, problem, result)


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


def _problem(
    f: Callable[..., Any],
    jacobian: Callable[..., Any] | None,
    x: Any,
    y: Any,
    sigma: Any,
    start: FloatArray,
) -> Problem:
    """Find out how the data are to be passed to ``fit``, and the model with them."""
    if _is_passed_on(y) or any(
        _is_passed_on(part) for part in (sigma, *(x if isinstance(x, tuple) else (x,)))
    ):
        return Problem(f, jacobian, x, y, sigma, x, None, plain=False)
    x, y = _numbers(x) if _is_list(x) or isinstance(x, jax.Array) else x, _numbers(y)
    if y.size == 0:
        raise _errors.ydata_empty(y.shape)
    if y.size == 1 and not (
        isinstance(x, np.ndarray) and x.size == 1
    ):  # it stands for as many rows as the model has
        value = eager_value(f, x, start)
        y = np.full(value.shape, y.item()) if value.size != 1 else y
    if y.ndim == 0:
        y = y.reshape(1)
    if y.ndim != 1 or isinstance(y, np.ma.MaskedArray):
        return Problem(f, jacobian, x, y, sigma, x, None, plain=False)
    sigma = _deviations(sigma, y.size)
    rows, adapt = _rows(f, x, y, start)
    return Problem(f, jacobian, rows, y, sigma, x, None, True, adapt)


def _is_passed_on(value: Any) -> bool:
    """Whether a value is lazy or has named dimensions, which ``fit`` understands."""
    return type(value).__module__.partition(".")[0] in PASSED_ON


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _numbers(value: Any) -> Any:
    """An array of numbers; what else can be converted to numbers is, as in SciPy."""
    try:
        array = np.asanyarray(value)
    except ValueError:  # coordinates of several shapes, which broadcast
        return value
    return array.astype(np.float64) if array.dtype.kind in "OSU" else array


def _deviations(sigma: Any, n: int) -> Any:
    """Standard deviations: one number, one a row, or a covariance matrix."""
    if sigma is None:
        return None
    sigma = _numbers(sigma)
    if np.size(sigma) == 1:
        return sigma.reshape(())
    if sigma.shape not in ((n,), (n, n)):
        raise _errors.sigma_shape(sigma.shape, n)
    return sigma


def _with_least_weight(sigma: Any) -> Any:
    """Finite standard deviations in place of infinite ones, by which rows weigh as little."""
    if np.ndim(sigma) != 1 or not np.isposinf(sigma).any():
        return sigma
    return np.minimum(sigma, np.finfo(sigma.dtype).max)


def _rows(
    f: Callable[..., Any], x: Any, y: NDArray[Any], start: FloatArray
) -> tuple[Any, Adapt | None]:
    """Coordinates with y's rows, and what makes a function of x one of these."""
    closed = partial(ClosedModel, x=x)
    row_numbers = np.arange(y.size, dtype=np.float64)
    if isinstance(x, tuple):  # coordinates of several shapes
        return x, None
    if not isinstance(x, np.ndarray):
        array = np.asanyarray(x)  # such as a column of a table
        is_rows = array.dtype.kind in "fiub" and array.shape == y.shape
        return (array, None) if is_rows else (row_numbers, closed)
    if x.shape in ((1,), y.shape) or (x.ndim == 2 and x.shape[1:] == y.shape):
        return x, None
    if x.ndim > 2 and x.shape[-1] == y.size:
        return x.reshape(-1, y.size), partial(ReshapedModel, leading=x.shape[:-1])
    if x.ndim == 2 and x.shape[0] == y.size:
        return x.T, RowsFirstModel
    if eager_value(f, x, start).shape not in ((), (1,), y.shape):
        raise _errors.unequal_lengths("x", x.shape, y.shape)
    return row_numbers, closed


def _checked(problem: Problem, check_finite: bool, policy: str | None) -> Problem:
    """Look for NaN and infinities in memory, and leave out rows where that is asked for."""
    if check_finite:
        for name, array in problem.given_arrays():
            bad = ~np.isfinite(array)
            if bad.any():
                raise _errors.infinite_or_nan(name, int(bad.sum()), _first(bad))
    if policy is None and not check_finite:
        return replace(problem, nan_policy=UNLOOKED)
    if check_finite or policy is None:
        return problem
    if policy == "propagate":
        raise _errors.nan_policy_propagate()
    if policy not in ("raise", "omit"):
        raise _errors.nan_policy_unknown(policy)
    if policy == "raise":
        for name, array in problem.given_arrays():
            if np.isnan(array).any():
                raise _errors.contains_nan(name, int(np.isnan(array).sum()))
    if not problem.plain or isinstance(problem.x, tuple):
        return replace(problem, nan_policy=cast("Literal['raise', 'omit']", policy))
    return _without_nan(problem) if policy == "omit" else problem


def _first(flags: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def _without_nan(problem: Problem) -> Problem:
    """Leave out rows with NaN in x or y; those of sigma are left out with them."""
    x, y, sigma = problem.x, problem.y, problem.sigma
    keep = ~np.isnan(y)
    if problem.is_closed and not keep.all():
        raise _errors.omit_needs_rows(type(problem.given_x).__name__)
    if x.shape[-1] == y.size:
        keep &= ~np.isnan(x).reshape(-1, y.size).any(axis=0)
        x = x[..., keep]
    if np.ndim(sigma):
        sigma = sigma[keep] if sigma.ndim == 1 else sigma[np.ix_(keep, keep)]
    given = problem.given_x
    if isinstance(given, np.ndarray) and problem.adapt is RowsFirstModel:
        given = given[keep]
    elif isinstance(given, np.ndarray) and given.shape[-1] == y.size:
        given = given[..., keep]
    elif not problem.is_closed:  # a column of a table
        given = x
    return replace(problem, x=x, y=y[keep], sigma=sigma, given_x=given)


def _fitted(problem: Problem, options: Mapping[str, Any]) -> FitResult:
    """The fit of a model, traced or else called as it is."""
    attributes = problem.attributes()
    try:
        return problem.fit(options)
    except _errors.ModelError as error:
        is_foreign = isinstance(error, _errors.UntraceableModelError) or error.__cause__ is not None
        if not (problem.plain and is_foreign):
            raise
        logger.info("the model is called as it is, without JAX: %s", error)
        # A model that keeps values in its attributes was left with symbols there.
        problem.restore(attributes)
        return problem.fit_on_host(options, error)


def _full_output(
    method: str, problem: Problem, result: FitResult
) -> tuple[dict[str, Any], str, int]:
    """``infodict``, ``mesg`` and ``ier``."""
    infodict = {"nfev": result.nfev, "fvec": _weighted_residuals(problem, result)}
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


def _weighted_residuals(problem: Problem, result: FitResult) -> Any:
    """``(f - y) / sigma`` at the answer."""
    if problem.plain and not isinstance(problem.x, tuple):
        residuals = eager_value(problem.function, problem.given_x, result.popt) - problem.y
    else:
        residuals = -result.residuals()
    if np.ndim(problem.sigma) == 2 and problem.plain:
        return solve_triangular(cholesky(problem.sigma, lower=True), residuals, lower=True)
    return residuals if problem.sigma is None else residuals / problem.sigma
