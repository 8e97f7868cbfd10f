"""Errors of parameters, bounds, starting values and options; and what ``curve_fit`` says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    StartNotFiniteError,
    StartSlopeError,
    Status,
    join_names,
    listed,
    shown,
    values_that_are,
)


def fixed_form(value: object) -> InputTypeError:
    return InputTypeError(
        f"fixed = {shown(value)}: pass values by parameter name, {{name: value}}."
    )


def fixed_value(name: str, value: object) -> InputError:
    return InputError(f"fixed[{name!r}] = {shown(value)}: pass a finite number.")


def fixed_outside_bounds(name: str, value: float, lower: float, upper: float) -> InputError:
    return InputError(
        f"parameter {name} is fixed at {value!r}, outside of its bounds [{lower!r}, {upper!r}]: "
        "change the value, or leave out the bounds of a fixed parameter."
    )


def fixed_and_tied(names: Sequence[str]) -> InputError:
    return InputError(
        f"{join_names(names)} cannot be both fixed and tied: name each in only one of the two."
    )


def fixed_with_matrix() -> InputError:
    return InputError(
        "fixed cannot be combined with ties given as a matrix: give the ties by name, "
        "ties={'a2': 'a1'}, which leaves fixed parameters alone."
    )


def nothing_free(names: Sequence[str]) -> InputError:
    return InputError(
        f"{join_names(names)} are all fixed or tied, so that nothing is left to fit: free at least "
        "one parameter, or use fit(..., max_nfev=1) to evaluate a model at p0."
    )


def tie_form(name: str, value: object) -> InputTypeError:
    return InputTypeError(
        f"ties[{name!r}] = {shown(value)}: pass the name of the parameter that it equals, or "
        "finite factors by name, {'a1': 2.0, 'b': -1.0}."
    )


def ties_in_a_circle(names: Sequence[str]) -> InputError:
    return InputError(
        f"the ties run in a circle, {' -> '.join(names)}: leave one of these parameters free."
    )


def ties_matrix(got: str, size: int) -> InputError:
    return InputError(
        f"ties has {got}: pass {{name: name}}, or a finite matrix of shape ({size}, q) with "
        "linearly independent columns, whose product with the q free values gives the parameters."
    )


def bounds_on_combination(name: str) -> InputError:
    return InputError(
        f"parameter {name} is a combination of several free ones, and cannot have bounds of its "
        "own: bound the parameters that it is tied to."
    )


def bounds_form(bounds: object, size: int) -> InputTypeError:
    pairs = getattr(bounds, "tolist", lambda: bounds)()
    is_by_parameter = (
        isinstance(pairs, list | tuple)
        and [len(pair) for pair in pairs if isinstance(pair, list | tuple)] == [2] * size
    )
    remedy = "tuple(zip(*bounds)) is that; or pass" if is_by_parameter else "or"
    return InputTypeError(
        f"bounds = {shown(bounds)} is not a pair: pass (lower, upper), each a number or {size} "
        f"numbers; {remedy} {{name: (lower, upper)}} by parameter name, or scipy.optimize.Bounds."
    )


def bound_not_numbers(side: str, value: object) -> InputTypeError:
    return InputTypeError(
        f"the {side} bounds are {shown(value)}: pass numbers, with None where there is no bound."
    )


def bound_pair(name: str, value: object) -> InputTypeError:
    return InputTypeError(
        f"the bounds of parameter {name} are {shown(value)}: pass (lower, upper), with None where "
        "there is no bound."
    )


def bound_shape(side: str, shape: tuple[int, ...], size: int) -> InputError:
    return InputError(
        f"the {side} bounds have shape {shape} but the model has {size} parameters: pass one "
        f"number for all of them or an array of shape ({size},)."
    )


def bound_is_nan(side: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"the {side} bounds of {join_names(names)} are NaN: use None or an infinity where there is "
        "no bound."
    )


def bounds_crossed(name: str, lower: float, upper: float) -> InputError:
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
    return InputError(
        f"{argument} names {join_names(unknown)}, but the model's parameters are "
        f"{join_names(names)}: correct the names."
    )


def p0_names_missing(missing: Sequence[str]) -> InputError:
    return InputError(
        f"p0 has no value for {join_names(missing)}: give a starting value to every parameter, or "
        "leave p0 out to start from the default."
    )


def values_missing(argument: str, missing: Sequence[str]) -> InputError:
    return InputError(
        f"{argument} has no value for {join_names(missing)}: give a value to every parameter."
    )


def p0_not_numbers(p0: object) -> InputTypeError:
    return InputTypeError(
        f"p0 = {shown(p0)} is not a sequence of real numbers: pass one starting value a parameter, "
        "in the model's order or as {name: value}."
    )


def p0_length(size: int, names: Sequence[str]) -> InputError:
    return InputError(
        f"p0 has length {size} but the model has {len(names)} parameters, {join_names(names)}: "
        "pass one starting value for each."
    )


def p0_not_finite(names: Sequence[str]) -> InputError:
    return InputError(
        f"p0 is NaN or infinite for {join_names(names)}: pass finite starting values."
    )


def p0_infeasible(name: str, value: float, lower: float, upper: float) -> InputError:
    return InputError(
        f"p0 is infeasible: {name} = {value!r} lies outside of its bounds [{lower!r}, {upper!r}] "
        "(Initial guess is outside of provided bounds): move the starting value inside, or widen "
        "the bounds."
    )


def start_not_finite(params: Iterable[float]) -> StartNotFiniteError:
    values = list(params)
    return StartNotFiniteError.at(
        values,
        f"the sum of squared residuals is not finite at the starting point p0 = {listed(values)} "
        "(residuals are not finite in the initial point): choose a p0 where the model is finite on "
        "all rows, and check the data and sigma for NaN, infinities and zeros.",
    )


def start_not_finite_at_row(
    params: Iterable[float],
    count: int,
    place: str,
    coords: str,
    value: float,
    *,
    in_series: bool = False,
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
    in_series : bool
        Whether the model takes whole series.
    """
    out = "or leave out these rows with a mask"
    if in_series:
        out = "and check x: the model takes whole series, those rows included that are left out"
    what = f"the model's value is {value:.6g}"
    if math.isfinite(value):
        what += ", and the square of its residual is not finite,"
    values = list(params)
    return StartNotFiniteError.at(
        values,
        f"the sum of squared residuals is not finite at the starting point p0 = {listed(values)} "
        f"(residuals are not finite in the initial point): {what} {place}, where {coords}; such "
        f"rows are {count} in all. Choose a p0 where the model is finite on all rows, {out}.",
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
    return StartSlopeError(
        f"in {n_rows:,} rows, the first {place}, the model is finite at the starting point p0 = "
        f"{listed(params)}, but its derivatives by the parameters are not. Nor are its values a "
        "small step away, of which differences could be made. Move p0 away from where a root, a "
        "power or a logarithm of the model ends, or give the model a value beyond (with jnp.where),"
        " or leave the rows out with a mask."
    )


def tolerance_invalid(name: str, value: float) -> InputError:
    return InputError(
        f"{name} = {shown(value)}: pass a number of at least zero, or None to disable it."
    )


def tolerances_disabled(eps: float) -> InputError:
    return InputError(
        "ftol, xtol and gtol are all None or below the machine precision "
        f"({eps:.2e}), so that nothing could end the fit: raise one of them."
    )


def x_scale_invalid(value: object) -> InputError:
    return InputError(
        f"x_scale = {shown(value)}: pass 'jac', or positive finite numbers, one a parameter, "
        "between 1e-150 and 1e150."
    )


def diag_invalid(value: object) -> InputError:
    return InputError(
        f"diag = {shown(value)}: pass positive finite numbers, one a parameter, between 1e-150 and "
        "1e150, or leave diag out."
    )


def x_scale_shape(shape: tuple[int, ...], size: int) -> InputError:
    return InputError(
        f"x_scale has shape {shape} but the model has {size} parameters: pass 'jac', or an array "
        f"of shape ({size},)."
    )


def unknown_loss(value: object, choices: Sequence[str]) -> InputError:
    quoted = join_names([repr(choice) for choice in choices])
    return InputError(
        f"loss = {shown(value)} is unknown: `loss` must be one of {quoted} or a callable that "
        "returns [rho, rho', rho''] of shape (3, n) for z (n,)."
    )


def f_scale_invalid(value: object) -> InputError:
    return InputError(
        f"f_scale = {shown(value)}: pass a positive finite number, the residual from which on rows "
        "are to count less."
    )


def lm_with_loss(loss: str) -> InputError:
    return InputError(
        f"loss = {loss!r} with method='lm': method='lm' supports only 'linear' loss function. Use "
        "method='trf' or 'dogbox' for a robust loss."
    )


# What curve_fit says. The words are SciPy's, so that code which looks for them finds them.


def lm_bounded() -> InputError:
    return InputError(
        "bounds were passed: Method 'lm' only works for unconstrained problems. Use 'trf' or "
        "'dogbox' instead."
    )


def ydata_empty(shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"y is empty, with shape {shape} (`ydata` must not be empty!): there is nothing to fit."
    )


def too_few_rows(size: int, rows: int, left_out: int = 0) -> InputTypeError:
    counted = f" ({left_out} more are left out)" if left_out else ""
    return InputTypeError(
        f"The number of func parameters={size} must not exceed the number of data points={rows}"
        f"{counted}: pass more data, or hold parameters with fixed= or ties=."
    )


def sigma_shape(got: tuple[int, ...], rows: int) -> InputError:
    return InputError(
        f"`sigma` has incorrect shape. sigma has shape {got} but y has shape ({rows},): pass one "
        f"number, ({rows},) standard deviations, or a covariance matrix ({rows}, {rows})."
    )


def nan_policy_unknown(policy: object) -> InputError:
    return InputError(
        f"nan_policy = {policy!r}: nan_policy must be one of {{None, 'raise', 'omit'}}."
    )


def nan_policy_propagate() -> InputError:
    """The policy for functions of arrays makes no sense for a fit."""
    return InputError(
        "`nan_policy='propagate'` is not supported by this function. A sum with NaN has no "
        "minimum: pass nan_policy='omit' to leave out rows with NaN."
    )


def contains_nan(name: str, count: int) -> InputError:
    return InputError(
        f"The input contains nan values: {name} has {count} of them. Remove those rows, or pass "
        "nan_policy='omit'."
    )


def infinite_or_nan(name: str, count: int, first: tuple[int, ...]) -> InputError:
    return InputError(
        f"{name} has {values_that_are(count)} NaN or infinite, the first at index {first} (array "
        "must not contain infs or NaNs): remove them, pass nan_policy='omit' to leave out rows "
        "with NaN, or check_finite=False."
    )


def omit_needs_rows(shape: object) -> InputError:
    return InputError(
        f"nan_policy = 'omit' leaves out rows, but x ({shape}) has no axis of y's length: remove "
        "the NaN from y, and let the model return a value for each row that stays."
    )


def args_refused() -> InputError:
    return InputError(
        "'args' is not a supported keyword argument. Fix a model's further arguments with "
        "functools.partial or a function around it."
    )


def evaluations_spent(method: str, limit: int) -> str:
    """Why there is no optimum, in the words of MINPACK or of ``least_squares``."""
    if method == "lm":
        cause, argument = f"Number of calls to function has reached maxfev = {limit}.", "maxfev"
    else:
        cause, argument = "The maximum number of function evaluations is exceeded.", "max_nfev"
    return f"{cause} Raise {argument}, improve p0, or loosen ftol, xtol and gtol."


def lm_message(status: Status, ftol: float, xtol: float, gtol: float) -> str:
    """Why Levenberg-Marquardt ended, in MINPACK's words; tolerances with six digits."""
    cost = (
        "Both actual and predicted relative reductions in the sum of squares are at most "
        f"{ftol:.6g}"
    )
    step = f"the relative error between two consecutive iterates is at most {xtol:.6g}"
    cosine = (
        "The cosine of the angle between func(x) and any column of the Jacobian is at most "
        f"{gtol:.6g} in absolute value"
    )
    return {
        Status.COST: cost,
        Status.STEP: step[0].upper() + step[1:],
        Status.COST_AND_STEP: f"{cost} and {step}",
        Status.GRADIENT: cosine,
    }.get(status, status.message)
