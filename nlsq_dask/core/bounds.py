"""Bounds and starting values: from the user's forms to plain arrays, and strict feasibility.

A user may write bounds as in SciPy's ``curve_fit`` and ``least_squares`` (a pair of scalars or
arrays, or an object with ``lb`` and ``ub``) or by parameter name. Inside the package bounds are two
float64 arrays, ``lower < upper``, with infinity for no bound.

The interior-point geometry of the trust-region-reflective method (Coleman & Li, "An interior trust
region approach for nonlinear minimization subject to bounds", SIAM J. Optim. 6, 1996) divides by
the distance to the bounds, so every iterate must lie strictly between them:
:func:`off_bounds`, :func:`next_inside`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box

#: Distance by which a start is moved off its bound, relative to the bound or to the step to the
#: minimum along the parameter: the relative distance of ``scipy.optimize.least_squares``.
START_MARGIN = 1e-10

#: Largest part of half the box by which a start is moved off a bound.
MOST_OF_BOX = 2e-3

#: Rounding of a parameter next to a bound, as a part of the bound.
BOUND_ROUNDING = 4.0 * float(np.finfo(np.float64).eps)


def normalize_bounds(bounds: Any, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Turn bounds in any accepted form into two arrays.

    Parameters
    ----------
    bounds : None, pair, mapping or object with ``lb`` and ``ub``
        ``(lower, upper)``, each a scalar, an array of shape (p,), numbers by name or None; or
        ``{name: (lower, upper)}`` for the bounded parameters alone; or an object like
        ``scipy.optimize.Bounds``. None means "no bound" in every place.
    names : sequence of str, length p
        The parameters, in the model's order.

    Returns
    -------
    lower, upper : ndarray, shape (p,), float64
        ``lower < upper`` everywhere, with ``-inf`` and ``inf`` for no bound.

    Raises
    ------
    InputError
        If a length, a name or a value does not fit, or a lower bound is not below its upper bound.
    InputTypeError
        If the bounds have another form.
    """
    if isinstance(bounds, Mapping):
        lower, upper = _bounds_by_name(bounds, names)
    else:
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            bounds = bounds.lb, bounds.ub
        try:
            low, high = (None, None) if bounds is None else bounds
        except (TypeError, ValueError):
            raise _errors.bounds_form(bounds, len(names)) from None
        lower = _one_side(low, "lower", -np.inf, names)
        upper = _one_side(high, "upper", np.inf, names)
    # Written so that NaN, and a bound of +inf below, or -inf above, are refused as well.
    crossed = ~((lower < upper) & (lower < np.inf) & (upper > -np.inf))
    if True in crossed.tolist():
        for side, values in (("lower", lower), ("upper", upper)):
            if np.isnan(values).any():
                raise _errors.bound_is_nan(side, _where(np.isnan(values), names))
        first = int(np.argmax(crossed))
        raise _errors.bounds_crossed(names[first], float(lower[first]), float(upper[first]))
    return lower, upper


def parameter_count(p0: Any) -> int | None:
    """Number of parameters in starting values; None for values by name, or without values.

    Raises
    ------
    InputTypeError
        If these are no numbers in one dimension.
    """
    if p0 is None or isinstance(p0, Mapping):
        return None
    if isinstance(p0, str | bytes):
        raise _errors.p0_not_numbers(p0)
    if isinstance(p0, list | tuple):
        for i, value in enumerate(p0):
            _check_single(value, f"p0[{i}]")
    try:
        entries = np.asarray(p0, dtype=object)
    except (TypeError, ValueError) as error:  # items that NumPy takes for arrays
        raise _errors.p0_not_numbers(p0) from error
    if entries.ndim > 1:
        raise _errors.p0_shape(entries.shape)
    if entries.ndim == 0 and not isinstance(p0, SupportsFloat):
        raise _errors.p0_not_numbers(p0)
    return int(entries.size)


def by_name(p0: Any) -> Any:
    """Numbers by name, where an array has a name for each; other values as they are.

    A ``pandas.Series`` has labels: if these are texts, they are the names of the parameters. So are
    the texts along a dimension of an ``xarray.DataArray``; if there are several such dimensions,
    those along ``param``, as in the results of ``xarray.DataArray.curvefit``.
    """
    kind = type(p0)  # objects of Dask have any attribute
    if hasattr(kind, "isel") and hasattr(kind, "indexes") and hasattr(kind, "ndim"):
        return _by_dimension(p0)
    if not (hasattr(kind, "to_dict") and hasattr(kind, "index")) or p0.ndim != 1:
        return p0
    labels = list(p0.index)
    return p0.to_dict() if all(isinstance(label, str) for label in labels) else p0


def _by_dimension(p0: Any) -> Any:
    """The parts of an array of xarray by the texts along one of its dimensions."""
    texts = {
        dim: list(index)
        for dim, index in p0.indexes.items()
        if dim in p0.dims and all(isinstance(label, str) for label in index)
    }
    dim = next(iter(texts)) if len(texts) == 1 else "param"
    if dim not in texts:
        return p0
    return {label: p0.isel({dim: i}, drop=True) for i, label in enumerate(texts[dim])}


def normalize_p0(p0: Any, names: Sequence[str], lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Turn starting values in any accepted form into an array within the bounds.

    Parameters
    ----------
    p0 : None, scalar, sequence or mapping
        A value for each parameter, in order or by name; a scalar serves a model of one parameter.
        None chooses ones, and for bounded parameters the start of ``scipy.optimize.curve_fit``: the
        middle between two finite bounds, and a distance of 1 from a single bound.
    names : sequence of str, length p
    lower, upper : ndarray, shape (p,), float64

    Returns
    -------
    ndarray, shape (p,), float64
        Finite values with ``lower <= p0 <= upper``.

    Raises
    ------
    InputError
        If the length, a name or a value does not fit, or a value lies outside of its bounds.
    """
    if p0 is None:
        return default_start(lower, upper)
    if isinstance(p0, Mapping):
        _refuse_unknown(p0, "p0", names)
        missing = [name for name in names if name not in p0]
        if missing:
            raise _errors.p0_names_missing(missing)
        for name in names:
            _check_single(p0[name], f"p0[{name!r}]")
        p0 = [p0[name] for name in names]
    start = _as_floats(p0, missing=np.nan)
    if start is None or start.ndim > 1:
        raise _errors.p0_not_numbers(p0)
    start = np.atleast_1d(start)
    if start.size != len(names):
        raise _errors.p0_length(start.size, names)
    if not np.isfinite(start).all():
        raise _errors.p0_not_finite(_where(~np.isfinite(start), names))
    outside = (start < lower) | (start > upper)
    if outside.any():
        first = int(np.argmax(outside))
        raise _errors.p0_infeasible(
            names[first], float(start[first]), float(lower[first]), float(upper[first])
        )
    return start


def in_order(values: Any, argument: str, names: Sequence[str]) -> Any:
    """Numbers for all parameters, in the model's order if they have names.

    Raises
    ------
    InputError
        If a name is unknown, or a parameter has no number.
    """
    values = by_name(values)
    if not isinstance(values, Mapping):
        return values
    _refuse_unknown(values, argument, names)
    missing = [name for name in names if name not in values]
    if missing:
        raise _errors.values_missing(argument, missing)
    return [values[name] for name in names]


def off_bounds(
    p0: FloatArray, lower: FloatArray, upper: FloatArray, distance: FloatArray | float
) -> FloatArray:
    """Move a start that lies on a bound into the interior.

    Parameters
    ----------
    p0, lower, upper : ndarray, shape (p,), float64
    distance : ndarray, shape (p,), or float
        Least distance from the bound, besides 1e-10 of the bound itself. A start moves by a
        thousandth of the box at most.

    Returns
    -------
    ndarray, shape (p,), float64
        A new array, strictly between the bounds. A start off the bounds does not change.
    """
    with np.errstate(over="ignore"):
        most = MOST_OF_BOX * (0.5 * upper - 0.5 * lower)
    from_lower = np.fmin(np.fmax(START_MARGIN * _finite_abs(lower), distance), most)
    from_upper = np.fmin(np.fmax(START_MARGIN * _finite_abs(upper), distance), most)
    inside = np.where(
        p0 <= lower, lower + from_lower, np.where(p0 >= upper, upper - from_upper, p0)
    )
    return next_inside(inside, lower, upper)


def next_inside(params: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Move parameters on or beyond a bound to the next number inside, shape (p,), float64.

    If there is no number inside, the middle of the bounds.
    """
    least, most = np.nextafter(lower, upper), np.nextafter(upper, lower)
    inside = np.minimum(np.maximum(params, least), most)
    too_tight = (inside <= lower) | (inside >= upper)
    if too_tight.any():
        # The sum of halves, since half of the sum could overflow.
        inside[too_tight] = 0.5 * lower[too_tight] + 0.5 * upper[too_tight]
    return inside


def stopped_at_bounds(params: FloatArray, step: FloatArray, box: Box) -> FloatArray:
    """Take a step (p,); a parameter that would leave its bounds goes half the way to the bound."""
    tried = params + step
    tried = np.where(tried <= box.lower, 0.5 * params + 0.5 * box.lower, tried)
    return np.where(tried >= box.upper, 0.5 * params + 0.5 * box.upper, tried)


def active_bounds(
    params: FloatArray, box: Box, gradient: FloatArray, reach: FloatArray | float
) -> NDArray[np.int64]:
    """The bounds that hold parameters back.

    Parameters
    ----------
    params : ndarray, shape (p,), float64
    box : Box
    gradient : ndarray, shape (p,), float64
        Of the cost.
    reach : ndarray, shape (p,), or float
        Distance within which a bound counts as reached; at least the rounding of the bound.

    Returns
    -------
    ndarray, shape (p,), int64
        -1 at a lower bound that the negative gradient points beyond, 1 at such an upper bound, 0
        elsewhere.
    """
    side = np.zeros(params.size, dtype=np.int64)
    if box.is_open:
        return side
    # An infinite bound is an infinite distance away.
    at_lower = params - box.lower <= np.fmax(reach, BOUND_ROUNDING * _finite_abs(box.lower))
    at_upper = box.upper - params <= np.fmax(reach, BOUND_ROUNDING * _finite_abs(box.upper))
    side[at_upper & (gradient < 0.0)] = 1
    side[at_lower & (gradient > 0.0)] = -1
    return side


def _finite_abs(bound: FloatArray) -> FloatArray:
    return np.where(np.isfinite(bound), np.abs(bound), 0.0)


def default_start(lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Ones, moved inside the bounds, in the shape of the bounds."""
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    start = np.ones_like(lower)
    start[has_lower] = lower[has_lower] + 1.0
    start[has_upper] = upper[has_upper] - 1.0
    both = has_lower & has_upper
    start[both] = 0.5 * lower[both] + 0.5 * upper[both]
    return start


def _one_side(value: Any, side: str, missing: float, names: Sequence[str]) -> FloatArray:
    size = len(names)
    if type(value) is float:
        return np.array([value] * size)
    value = by_name(value)
    if isinstance(value, Mapping):
        _refuse_unknown(value, "bounds", names)
        value = [value.get(name) for name in names]
    values = _as_floats(missing if value is None else value, missing)
    if values is None:
        raise _errors.bound_not_numbers(side, value)
    # scipy.optimize.Bounds turns a number into an array of length one.
    if values.shape in ((), (1,)):
        return np.full(size, values.item())
    if values.shape != (size,):
        raise _errors.bound_shape(side, values.shape, size)
    return values


def _bounds_by_name(
    bounds: Mapping[str, Any], names: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    _refuse_unknown(bounds, "bounds", names)
    lower, upper = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    for index, name in enumerate(names):
        if bounds.get(name) is None:
            continue
        try:
            low, high = bounds[name]
            lower[index] = -np.inf if low is None else float(low)
            upper[index] = np.inf if high is None else float(high)
        except (TypeError, ValueError):
            raise _errors.bound_pair(name, bounds[name]) from None
    return lower, upper


def _as_floats(value: Any, missing: float) -> FloatArray | None:
    """Read numbers as a new float64 array, with `missing` for None; None if not numbers."""
    try:
        entries = np.asarray(value, dtype=object)
        floats = [missing if entry is None else float(entry) for entry in entries.ravel()]
    except (TypeError, ValueError, OverflowError):
        return None
    return np.array(floats, dtype=np.float64).reshape(entries.shape)


def _check_single(value: Any, where: str) -> None:
    """Refuse an array where one number is expected."""
    shape = getattr(value, "shape", ())
    # Lengths of a table of Dask are no numbers.
    if isinstance(shape, tuple) and not all(isinstance(n, int) and n == 1 for n in shape):
        raise _errors.p0_shape(shape, where)


def _refuse_unknown(mapping: Mapping[str, Any], argument: str, names: Sequence[str]) -> None:
    unknown = [str(key) for key in mapping if key not in names]
    if unknown:
        raise _errors.unknown_parameter_names(argument, unknown, names)


def _where(mask: NDArray[np.bool_], names: Sequence[str]) -> list[str]:
    return [name for name, chosen in zip(names, mask, strict=True) if chosen]
