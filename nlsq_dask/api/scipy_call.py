"""A call of :func:`nlsq_dask.curve_fit`: its model and data, in the form that ``fit`` takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import jax
import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.api.fit import fit
from nlsq_dask.api.scipy_models import ClosedModel, HostModel, ReshapedModel, RowsFirstModel
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.fitting.job import logger
from nlsq_dask.io.labels import in_order_of
from nlsq_dask.io.locations import is_location
from nlsq_dask.io.missing import UNLOOKED, Unlooked
from nlsq_dask.io.refusals import checked_kind, not_real, to_numpy
from nlsq_dask.io.times import holds_times
from nlsq_dask.io.units import numbers_of, refuse_lists_of_quantities, sigma_in_unit_of
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.called_back import eager_value
from nlsq_dask.user_model.model_value import ModelErrors
from nlsq_dask.user_model.signature import model_label

# Libraries whose arrays are passed to ``fit`` as they are; SciPy does not support them.
PASSED_ON = ("dask", "h5netcdf", "h5py", "netCDF4", "xarray", "zarr")

# Turns a function of the user's x into a function of the coordinates that ``fit`` passes.
Adapt = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class ScipyCall:
    """A call of ``curve_fit``.

    Attributes
    ----------
    function : callable
        The user's model.
    jacobian : callable or None
        The user's derivatives.
    x, y, sigma : object
        Data in a form that :func:`nlsq_dask.fit` takes.
    given_x : object
        The x with which SciPy would call the model.
    nan_policy : str or None
        Policy for ``fit``; None if NaN are dealt with before.
    plain : bool
        True for data that SciPy supports: in memory, with a 1-D y.
    adapt : callable or None
        Turns `function` and `jacobian` into functions of `x`; None if they need no change.
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
        """True if the model is called with `given_x`, whatever rows ``fit`` passes."""
        return isinstance(self.adapt, partial) and self.adapt.func is ClosedModel

    def given_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Name and array of the data whose values SciPy checks."""
        for name, array in (("y", self.y), ("x", self.given_x)):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                yield name, array

    def fit(self, options: Mapping[str, Any]) -> FitResult:
        """Fit the model, traced by JAX."""
        model, jac = self.function, self.jacobian
        if self.adapt is not None:
            model = self.adapt(model)
            jac = None if jac is None else self.adapt(jac)
        return self._fit(model, self.x, dict(options, jac=jac))

    def fit_on_host(self, options: Mapping[str, Any], traced: _errors.ModelError) -> FitResult:
        """Fit a model that JAX cannot trace: compiled code calls it back in Python."""
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
                raise traced from host.error  # it fails for numbers, too: the first error says more
            raise host.error from None
        finally:
            host.release()
        return replace(result, n_differenced=host.n_differenced)

    def attributes(self) -> list[dict[str, Any]]:
        """Copies of the attributes of the user's functions."""
        return [dict(getattr(f, "__dict__", {})) for f in (self.function, self.jacobian)]

    def restore(self, attributes: list[dict[str, Any]]) -> None:
        """Reset the attributes of the user's functions."""
        for f, copied in zip((self.function, self.jacobian), attributes, strict=True):
            if isinstance(getattr(f, "__dict__", None), dict):
                f.__dict__.clear()
                f.__dict__.update(copied)

    def _fit(self, model: Any, x: Any, options: Mapping[str, Any]) -> FitResult:
        with warnings.catch_warnings():  # curve_fit gives these warnings as SciPy does
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


def scipy_call(
    f: Callable[..., Any],
    jacobian: Callable[..., Any] | None,
    x: Any,
    y: Any,
    sigma: Any,
    start: FloatArray,
) -> ScipyCall:
    """Decide in which form the data and the model are passed to ``fit``."""
    for name, value in (("y", y), ("x", x), ("sigma", sigma)):
        refuse_lists_of_quantities(value, name)
    call = partial(ScipyCall, function=f, jacobian=jacobian, nan_policy=None)
    sigma, y = sigma_in_unit_of(y, sigma), numbers_of(y)
    x = tuple(map(numbers_of, x)) if isinstance(x, tuple) else numbers_of(x)
    if (
        is_location(y)
        or _is_passed_on(y)
        or any(_is_passed_on(part) for part in (sigma, *(x if isinstance(x, tuple) else (x,))))
    ):
        return call(x=x, y=y, sigma=sigma, given_x=x, plain=False)
    y = checked_kind(y, "y")
    x, sigma = in_order_of(y, x, "x"), in_order_of(y, sigma, "sigma")
    y = _numbers(y, "y")
    x = _numbers(x, "x") if isinstance(x, list | tuple | np.ndarray | jax.Array) else x
    if y.size == 0:
        raise _errors.ydata_empty(y.shape)
    if y.size == 1 and not (
        isinstance(x, np.ndarray) and x.size == 1
    ):  # one observation stands for as many rows as the model has
        value = _value_at(f, x, start)
        y = np.full(value.shape, y.item()) if value.size != 1 else y
    if y.ndim == 0:
        y = y.reshape(1)
    if y.ndim != 1 or isinstance(y, np.ma.MaskedArray):
        return call(x=x, y=y, sigma=sigma, given_x=x, plain=False)
    sigma = _deviations(sigma, y.size)
    rows, adapt = _rows(f, x, y, start)
    return call(x=rows, y=y, sigma=sigma, given_x=x, plain=True, adapt=adapt)


def _is_passed_on(value: Any) -> bool:
    """Whether a value is of a kind that only ``fit`` supports: of a library, a name, or times."""
    named = isinstance(value, str)
    return type(value).__module__.partition(".")[0] in PASSED_ON or named or holds_times(value)


def _numbers(value: Any, name: str) -> Any:
    """The value as an array; objects and strings are converted to numbers, as in SciPy."""
    if name != "x" or isinstance(value, list):
        array = to_numpy(value, name)
    else:
        try:
            array = np.asanyarray(value)
        except ValueError:  # a tuple of coordinates of several shapes that broadcast
            return value
    if array.dtype.kind not in "OSU":
        return array
    try:
        return array.astype(np.float64)
    except ValueError as error:  # texts that are no numbers
        raise _errors.not_an_array(name, error) from error
    except (TypeError, OverflowError) as error:  # Python's integers may exceed float64
        raise not_real(array, name) from error


def _value_at(f: Callable[..., Any], x: Any, start: FloatArray) -> FloatArray:
    """The model's value at the user's x. Its shape tells how many rows the model has.

    Raises
    ------
    ModelError
        If the model raises an error.
    """
    with ModelErrors(model_label(f), None):
        return eager_value(f, x, start)


def _deviations(sigma: Any, n: int) -> Any:
    """The sigma as an array: shape () or (n,), or a covariance matrix (n, n)."""
    if sigma is None:
        return None
    sigma = _numbers(checked_kind(sigma, "sigma"), "sigma")
    if sigma.dtype.kind not in "fiub":
        raise not_real(sigma, "sigma")
    if np.size(sigma) == 1:
        return sigma.reshape(())
    if sigma.shape not in ((n,), (n, n)):
        raise _errors.sigma_shape(sigma.shape, n)
    return sigma


def _with_least_weight(sigma: Any) -> Any:
    """Replace infinite standard deviations by the largest finite number, as good as weight 0."""
    if np.ndim(sigma) != 1 or not np.isposinf(sigma).any():
        return sigma
    return np.minimum(sigma, np.finfo(sigma.dtype).max)


def _rows(
    f: Callable[..., Any], x: Any, y: NDArray[Any], start: FloatArray
) -> tuple[Any, Adapt | None]:
    """Coordinates with one entry for each row of y, and the adapter of functions to them."""
    closed = partial(ClosedModel, x=x)
    row_numbers = np.arange(y.size, dtype=np.float64)
    if isinstance(x, tuple):  # coordinates of several shapes
        return x, None
    if not isinstance(x, np.ndarray):
        # A column of a table, or a list of lists that are not equally long.
        array = to_numpy(x, "x") if isinstance(x, list) else np.asanyarray(x)
        is_rows = array.dtype.kind in "fiub" and array.shape == y.shape
        return (array, None) if is_rows else (row_numbers, closed)
    if x.shape in ((1,), y.shape) or (x.ndim == 2 and x.shape[1:] == y.shape):
        return x, None
    if x.ndim > 2 and x.shape[-1] == y.size:
        return x.reshape(-1, y.size), partial(ReshapedModel, leading=x.shape[:-1])
    if x.ndim == 2 and x.shape[0] == y.size:
        return x.T, RowsFirstModel
    if _value_at(f, x, start).shape not in ((), (1,), y.shape):
        raise _errors.unequal_lengths("x", x.shape, y.shape)
    return row_numbers, closed


def checked(call: ScipyCall, check_finite: bool, policy: str | None) -> ScipyCall:
    """Refuse NaN and infinities in memory, or leave out their rows, as the arguments say."""
    if check_finite:
        for name, array in call.given_arrays():
            bad = ~np.isfinite(array)
            if bad.any():
                raise _errors.infinite_or_nan(name, int(bad.sum()), _first(bad))
    if policy is None and not check_finite:
        return replace(call, nan_policy=UNLOOKED)
    if check_finite or policy is None:
        return call
    if not isinstance(policy, str) or policy not in ("raise", "omit", "propagate"):
        raise _errors.nan_policy_unknown(policy)
    if policy == "propagate":
        raise _errors.nan_policy_propagate()
    if policy == "raise":
        for name, array in call.given_arrays():
            if np.isnan(array).any():
                raise _errors.contains_nan(name, int(np.isnan(array).sum()))
    if not call.plain or isinstance(call.x, tuple):
        return replace(call, nan_policy=cast("Literal['raise', 'omit']", policy))
    return _without_nan(call) if policy == "omit" else call


def _first(flags: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def _without_nan(call: ScipyCall) -> ScipyCall:
    """Leave out the rows of x, y and sigma in which x or y is NaN."""
    x, y, sigma = call.x, call.y, call.sigma
    keep = ~np.isnan(y)
    if call.is_closed and not keep.all():
        raise _errors.omit_needs_rows(type(call.given_x).__name__)
    if x.shape[-1] == y.size:
        keep &= ~np.isnan(x).reshape(-1, y.size).any(axis=0)
        x = x[..., keep]
    if np.ndim(sigma):
        sigma = sigma[keep] if sigma.ndim == 1 else sigma[np.ix_(keep, keep)]
    given = call.given_x
    if isinstance(given, np.ndarray) and call.adapt is RowsFirstModel:
        given = given[keep]
    elif isinstance(given, np.ndarray) and given.shape[-1] == y.size:
        given = given[..., keep]
    elif not call.is_closed:  # a column of a table
        given = x
    return replace(call, x=x, y=y[keep], sigma=sigma, given_x=given)


def fitted(call: ScipyCall, options: Mapping[str, Any]) -> FitResult:
    """Fit the model traced by JAX; if that fails, by calling it in Python."""
    attributes = call.attributes()
    try:
        return call.fit(options)
    except _errors.ModelError as error:
        is_foreign = isinstance(error, _errors.UntraceableModelError) or error.__cause__ is not None
        if not (call.plain and is_foreign):
            raise
        logger.info("the model is called as it is, without JAX: %s", error)
        # Tracing may leave symbols in the attributes of a model that stores values there.
        call.restore(attributes)
        return call.fit_on_host(options, error)
