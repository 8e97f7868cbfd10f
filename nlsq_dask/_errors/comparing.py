"""What can be wrong where several models are fitted together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from nlsq_dask._errors.kinds import (
    ConvergenceError,
    FitError,
    FitWarning,
    InputError,
    InputTypeError,
    join_names,
    shown,
)

ProblemT = TypeVar("ProblemT", bound=FitError | FitWarning)


def of_model(name: str, problem: ProblemT) -> ProblemT:
    """An error or a warning of one of several models, with the model's name."""
    named = type(problem)(f"model {name!r}: {problem}")
    named.__dict__.update(problem.__dict__, model=name)
    return named


def no_model_arrived(names: Sequence[str]) -> ConvergenceError:
    """There is no success to be the best."""
    return ConvergenceError(
        f"no fit of {join_names(names)} is a success, so that no model is the best: see the "
        "message of each result, and improve the starting values."
    )


def models_form(value: object) -> InputTypeError:
    """The models are in no accepted form."""
    return InputTypeError(
        f"models = {shown(value)}: pass a list of models, or a dictionary {{name: model}} with "
        "names that are strings. A single model is fitted by fit()."
    )


def no_models() -> InputError:
    """There is no model at all."""
    return InputError("models is empty: pass at least one model, model(x, a, b, ...).")


def per_model_form(argument: str, value: object, names: Sequence[str]) -> InputTypeError:
    """What differs from model to model was given once."""
    return InputTypeError(
        f"{argument} = {shown(value)} is not one value a model: pass a list of {len(names)} in the "
        f"order of the models, or a dictionary {{{names[0]!r}: ...}} by their names, in which "
        "models may be left out."
    )


def per_model_count(argument: str, count: int, names: Sequence[str]) -> InputError:
    """A list has not one entry a model."""
    return InputError(
        f"{argument} has {count} entries for {len(names)} models, {join_names(names)}: pass one a "
        "model, in their order (None for the default), or a dictionary by their names."
    )


def per_model_unknown(argument: str, unknown: Sequence[str], names: Sequence[str]) -> InputError:
    """A dictionary has entries for models that there are not."""
    return InputError(
        f"{argument} has entries for {join_names(unknown)}, but the models are "
        f"{join_names(names)}: pass a dictionary {{model: {argument} of the model}}, or a list in "
        "the order of the models."
    )


def no_such_model(name: object, names: Sequence[str]) -> KeyError:
    """A comparison was asked for a model that it does not have."""
    return KeyError(f"there is no model {name!r}: the models are {join_names(names)}")
