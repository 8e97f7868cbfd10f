"""What can be wrong with fixed and tied parameters."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import InputError, InputTypeError, join_names, shown


def fixed_form(value: object) -> InputTypeError:
    """Fixed parameters are not given by name."""
    return InputTypeError(
        f"fixed = {shown(value)}: pass values by parameter name, {{name: value}}."
    )


def fixed_value(name: str, value: object) -> InputError:
    """A fixed value is no finite number."""
    return InputError(f"fixed[{name!r}] = {shown(value)}: pass a finite number.")


def fixed_outside_bounds(name: str, value: float, lower: float, upper: float) -> InputError:
    """A fixed value contradicts the bounds."""
    return InputError(
        f"parameter {name} is fixed at {value!r}, outside of its bounds [{lower!r}, {upper!r}]: "
        "change the value, or leave out the bounds of a fixed parameter."
    )


def fixed_and_tied(names: Sequence[str]) -> InputError:
    """A parameter is fixed and tied."""
    return InputError(
        f"{join_names(names)} cannot be both fixed and tied: name each in only one of the two."
    )


def fixed_with_matrix() -> InputError:
    """Fixed parameters were given beside a matrix of ties."""
    return InputError(
        "fixed cannot be combined with ties given as a matrix: give the ties by name, "
        "ties={'a2': 'a1'}, which leaves fixed parameters alone."
    )


def nothing_free(names: Sequence[str]) -> InputError:
    """All parameters are fixed or tied."""
    return InputError(
        f"{join_names(names)} are all fixed or tied, so that nothing is left to fit: free at least "
        "one parameter, or use fit(..., max_nfev=1) to evaluate a model at p0."
    )


def tie_form(name: str, value: object) -> InputTypeError:
    """A tie is in no accepted form."""
    return InputTypeError(
        f"ties[{name!r}] = {shown(value)}: pass the name of the parameter that it equals, or "
        "finite factors by name, {'a1': 2.0, 'b': -1.0}."
    )


def ties_in_a_circle(names: Sequence[str]) -> InputError:
    """Ties depend on each other."""
    return InputError(
        f"the ties run in a circle, {' -> '.join(names)}: leave one of these parameters free."
    )


def ties_matrix(got: str, size: int) -> InputError:
    """A matrix of ties does not fit."""
    return InputError(
        f"ties has {got}: pass {{name: name}}, or a finite matrix of shape ({size}, q) with "
        "linearly independent columns, whose product with the q free values gives the parameters."
    )


def bounds_on_combination(name: str) -> InputError:
    """A parameter tied to several others has bounds."""
    return InputError(
        f"parameter {name} is a combination of several free ones, and cannot have bounds of its "
        "own: bound the parameters that it is tied to."
    )
