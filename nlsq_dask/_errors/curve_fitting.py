"""What ``curve_fit`` says: SciPy's words, so that code which looks for them finds them."""

from __future__ import annotations

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    Status,
)


def lm_bounded() -> InputError:
    """Levenberg-Marquardt was asked for with bounds."""
    return InputError(
        "bounds were passed: Method 'lm' only works for unconstrained problems. Use 'trf' or "
        "'dogbox' instead."
    )


def ydata_empty(shape: tuple[int, ...]) -> InputError:
    """There are no observations."""
    return InputError(
        f"y is empty, with shape {shape} (`ydata` must not be empty!): there is nothing to fit."
    )


def too_few_rows(size: int, rows: int, left_out: int = 0) -> InputTypeError:
    """There are fewer rows than parameters, which therefore are not determined."""
    counted = f" ({left_out} more are left out)" if left_out else ""
    return InputTypeError(
        f"The number of func parameters={size} must not exceed the number of data points={rows}"
        f"{counted}: pass more data, or hold parameters with fixed= or ties=."
    )


def sigma_shape(got: tuple[int, ...], rows: int) -> InputError:
    """The standard deviations are in no form that fits the observations."""
    return InputError(
        f"`sigma` has incorrect shape. sigma has shape {got} but y has shape ({rows},): pass one "
        f"number, ({rows},) standard deviations, or a covariance matrix ({rows}, {rows})."
    )


def nan_policy_unknown(policy: object) -> InputError:
    """A policy is none of SciPy's."""
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
    """A policy forbids NaN."""
    return InputError(
        f"The input contains nan values: {name} has {count} of them. Remove those rows, or pass "
        "nan_policy='omit'."
    )


def infinite_or_nan(name: str, count: int, first: tuple[int, ...]) -> InputError:
    """Finite values were asked for."""
    return InputError(
        f"{name} has {count} values that are NaN or infinite, the first at index {first} (array "
        "must not contain infs or NaNs): remove them, pass nan_policy='omit' to leave out rows "
        "with NaN, or check_finite=False."
    )


def omit_needs_rows(shape: object) -> InputError:
    """Rows are to be left out of something that has none."""
    return InputError(
        f"nan_policy = 'omit' leaves out rows, but x ({shape}) has no axis of y's length: remove "
        "the NaN from y, and let the model return a value for each row that stays."
    )


def args_refused() -> InputError:
    """Arguments for the model were passed beside its parameters."""
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
