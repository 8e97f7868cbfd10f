"""What can be wrong with bounds, starting values and options of the solver."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    StartNotFiniteError,
    StartSlopeError,
    join_names,
    listed,
    shown,
)


def bounds_form(bounds: object, size: int) -> InputTypeError:
    """Bounds are in no accepted form."""
    return InputTypeError(
        f"bounds = {shown(bounds)} is not a pair: pass (lower, upper), each a number or {size} "
        "numbers, or {name: (lower, upper)} by parameter name, or scipy.optimize.Bounds."
    )


def bound_not_numbers(side: str, value: object) -> InputTypeError:
    """One side of the bounds is not made of numbers."""
    return InputTypeError(
        f"the {side} bounds are {shown(value)}: pass numbers, with None where there is no bound."
    )


def bound_pair(name: str, value: object) -> InputTypeError:
    """The bounds of a named parameter are no pair."""
    return InputTypeError(
        f"the bounds of parameter {name} are {shown(value)}: pass (lower, upper), with None where "
        "there is no bound."
    )


def bound_shape(side: str, shape: tuple[int, ...], size: int) -> InputError:
    """One side of the bounds has another length than the parameters."""
    return InputError(
        f"the {side} bounds have shape {shape} but the model has {size} parameters: pass one "
        f"number for all of them or an array of shape ({size},)."
    )


def bound_is_nan(side: str, names: Sequence[str]) -> InputError:
    """A bound is not a number."""
    return InputError(
        f"the {side} bounds of {join_names(names)} are NaN: use None or an infinity where there is "
        "no bound."
    )


def bounds_crossed(name: str, lower: float, upper: float) -> InputError:
    """A lower bound is not below the upper one."""
    remedy = ""
    if lower == upper:
        remedy = (
            f"; a parameter that is to keep its value is fixed by fixed={{{name!r}: {lower!r}}}"
        )
    return InputError(
        f"parameter {name} has the lower bound {lower!r} and the upper bound {upper!r}: Each lower "
        f"bound must be strictly less than each upper bound{remedy}."
    )


def unknown_parameter_names(
    argument: str, unknown: Sequence[str], names: Sequence[str]
) -> InputError:
    """A mapping by parameter name has other keys."""
    return InputError(
        f"{argument} names {join_names(unknown)}, but the model's parameters are "
        f"{join_names(names)}: correct the names."
    )


def p0_names_missing(missing: Sequence[str]) -> InputError:
    """Starting values by name are incomplete."""
    return InputError(
        f"p0 has no value for {join_names(missing)}: give a starting value to every parameter, or "
        "leave p0 out to start from the default."
    )


def p0_not_numbers(p0: object) -> InputTypeError:
    """Starting values are not numbers."""
    return InputTypeError(
        f"p0 = {shown(p0)} is not a sequence of real numbers: pass one starting value a parameter, "
        "in the model's order or as {name: value}."
    )


def p0_length(size: int, names: Sequence[str]) -> InputError:
    """Starting values have another length than the parameters."""
    return InputError(
        f"p0 has length {size} but the model has {len(names)} parameters, {join_names(names)}: "
        "pass one starting value for each."
    )


def p0_not_finite(names: Sequence[str]) -> InputError:
    """A starting value is NaN or infinite."""
    return InputError(
        f"p0 is NaN or infinite for {join_names(names)}: pass finite starting values."
    )


def p0_infeasible(name: str, value: float, lower: float, upper: float) -> InputError:
    """A starting value lies outside of its bounds."""
    return InputError(
        f"p0 is infeasible: {name} = {value!r} lies outside of its bounds [{lower!r}, {upper!r}] "
        "(Initial guess is outside of provided bounds): move the starting value inside, or widen "
        "the bounds."
    )


def start_not_finite(params: Iterable[float]) -> StartNotFiniteError:
    """The model has no finite value at the starting point."""
    values = list(params)
    return StartNotFiniteError.at(
        values,
        f"the sum of squared residuals is not finite at the starting point p0 = {listed(values)} "
        "(residuals are not finite in the initial point): choose a p0 where the model is finite on "
        "all rows, and check the data and sigma for NaN, infinities and zeros.",
    )


def start_not_finite_at_row(
    params: Iterable[float], count: int, place: str, coords: str, value: float
) -> StartNotFiniteError:
    """The model has no finite value at the starting point, on rows that are known.

    Parameters
    ----------
    params : sequence of float
        The starting point.
    count : int
        Rows with such a residual.
    place, coords : str
        Where the first is, and its coordinates.
    value : float
        The model's value there.
    """
    what = f"the model's value is {value:.6g}"
    if math.isfinite(value):
        what += ", and the square of its residual is not finite,"
    values = list(params)
    return StartNotFiniteError.at(
        values,
        f"the sum of squared residuals is not finite at the starting point p0 = {listed(values)} "
        f"(residuals are not finite in the initial point): {what} {place}, where {coords}; such "
        f"rows are {count} in all. Choose a p0 where the model is finite on all rows, or leave "
        "out these rows with a mask.",
    )


def start_derivative_not_finite(params: Iterable[float]) -> StartSlopeError:
    """The model has no finite derivatives at the starting point."""
    values = list(params)
    return StartSlopeError.at(
        values,
        f"the model is finite at the starting point p0 = {listed(values)}, but its derivatives by "
        "the parameters are not: move p0 away from where a root, a power or a logarithm of the "
        "model has an infinite slope.",
    )


def no_difference(params: Iterable[float], n_rows: int, place: object) -> StartSlopeError:
    """There are rows in which the derivatives cannot be replaced by differences either."""
    return StartSlopeError(
        f"in {n_rows:,} rows, the first {place}, the model is finite at the starting point p0 = "
        f"{listed(params)}, but its derivatives by the parameters are not. Nor are its values a "
        "small step away, of which differences could be made. Move p0 away from where a root, a "
        "power or a logarithm of the model ends, or give the model a value beyond (with jnp.where),"
        " or leave the rows out with a mask."
    )


def tolerance_invalid(name: str, value: float) -> InputError:
    """A tolerance is negative or NaN."""
    return InputError(
        f"{name} = {shown(value)}: pass a number of at least zero, or None to disable it."
    )


def tolerances_disabled(eps: float) -> InputError:
    """No criterion is left to stop by."""
    return InputError(
        "ftol, xtol and gtol are all None or below the machine precision "
        f"({eps:.2e}), so that nothing could end the fit: raise one of them."
    )


def x_scale_invalid(value: object) -> InputError:
    """Characteristic sizes of the parameters are not positive."""
    return InputError(
        f"x_scale = {shown(value)}: pass 'jac', or positive finite numbers, one a parameter."
    )


def x_scale_shape(shape: tuple[int, ...], size: int) -> InputError:
    """Characteristic sizes have another length than the parameters."""
    return InputError(
        f"x_scale has shape {shape} but the model has {size} parameters: pass 'jac', or an array "
        f"of shape ({size},)."
    )


def unknown_loss(value: object, choices: Sequence[str]) -> InputError:
    """A loss is neither known nor a function."""
    quoted = join_names([repr(choice) for choice in choices])
    return InputError(
        f"loss = {shown(value)} is unknown: `loss` must be one of {quoted} or a callable that "
        "returns [rho, rho', rho''] of shape (3, n) for z (n,)."
    )


def f_scale_invalid(value: object) -> InputError:
    """The scale of a loss is not positive."""
    return InputError(
        f"f_scale = {shown(value)}: pass a positive finite number, the residual from which on rows "
        "are to count less."
    )


def lm_with_loss(loss: str) -> InputError:
    """The Levenberg-Marquardt method knows only least squares."""
    return InputError(
        f"loss = {loss!r} with method='lm': method='lm' supports only 'linear' loss function. Use "
        "method='trf' or 'dogbox' for a robust loss."
    )
