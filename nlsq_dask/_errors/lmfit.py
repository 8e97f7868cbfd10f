"""Errors of models and parameters of lmfit."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    MissingLibraryError,
    ModelError,
    join_names,
    shown,
)


def lmfit_parameters_form(value: object) -> InputTypeError:
    return InputTypeError(
        f"p0 = {shown(value)} of a model of lmfit has to be its lmfit.Parameters, or None: call "
        "model.make_params(amplitude=1, ...)."
    )


def lmfit_parameters_missing(names: Sequence[str]) -> InputError:
    return InputError(
        f"the lmfit.Parameters lack {join_names(names)}, which the model has: make them with "
        "model.make_params()."
    )


def lmfit_value_missing(name: str, value: object) -> InputError:
    return InputError(
        f"the lmfit parameter {name} has the value {value}, from which no fit can start: set one, "
        f"params[{name!r}].value = 1.0, or let the model guess, model.guess(y, x=x)."
    )


def lmfit_expr_not_linear(name: str, expr: str) -> InputError:
    return InputError(
        f"the expression of the lmfit parameter {name}, {shown(expr)}, is not linear in the other "
        "parameters: write the relation into the model's function, and leave expr out."
    )


def lmfit_and_arguments(names: Sequence[str]) -> InputError:
    return InputError(
        f"{join_names(names)} were passed beside lmfit.Parameters, which have min, max, vary and "
        "expr: set these of the parameters, or pass p0 as a dictionary."
    )


def lmfit_coordinates(given: object, names: Sequence[str]) -> InputError:
    return InputError(
        f"x has the coordinates {shown(given)}, and the model of lmfit has {join_names(names)}: "
        "pass a dictionary with these names, or a tuple in this order."
    )


def lmfit_not_a_function(label: str, kind: str) -> ModelError:
    return ModelError(
        f"the model {label} of lmfit is a {kind}, which computes its value by more than a function "
        "of arrays, so that JAX cannot trace it: write the formula as a function and pass the "
        "function, or lmfit.Model(function)."
    )


def lmfit_not_traced(label: str, cause: Exception) -> str:
    return (
        f"the model {label} of lmfit has a function that JAX cannot trace. {cause} Pass your own "
        "function in jax.numpy in its place, with the same lmfit.Parameters as p0."
    )


def lmfit_missing() -> MissingLibraryError:
    return MissingLibraryError(
        "to_lmfit_params() returns lmfit.Parameters, and lmfit is not installed: pip install lmfit."
    )
