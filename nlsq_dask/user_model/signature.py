"""Names of a model and of its parameters, from its signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.user_model.unchanged import facts_of


def parameter_names(
    function: Callable[..., Any], names_or_count: Sequence[str] | int | None = None
) -> tuple[str, ...]:
    """Names of a model's parameters, in the model's order.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``.
    names_or_count : sequence of str, int or None
        The caller's names, or the number of parameters. A model with ``*args`` needs one of these.
        Its parameters without names are p0, p1 and so on by position.

    Returns
    -------
    tuple of str

    Raises
    ------
    ModelError
        If the function does not take x and that many parameters by position.
    InputError
        If names are given twice.
    InputTypeError
        If the function cannot be called.
    """
    return known_names(facts_of(function), function, names_or_count)


def known_names(
    facts: dict[Hashable, Any],
    function: Callable[..., Any],
    names_or_count: Sequence[str] | int | None,
) -> tuple[str, ...]:
    """The same names, as far as possible from what is known of the function."""
    asked = names_or_count
    key = "names", asked if asked is None or isinstance(asked, int) else tuple(asked)
    if key not in facts:
        facts[key] = _names_by_signature(function, names_or_count)
    names: tuple[str, ...] = facts[key]
    return names


def _names_by_signature(
    function: Callable[..., Any], names_or_count: Sequence[str] | int | None
) -> tuple[str, ...]:
    if not callable(function):
        raise _errors.not_callable(function)
    named, required, is_open = _positional(function)
    label = model_label(function)
    if names_or_count is None:
        if is_open:
            raise _errors.unknown_parameter_count(label)
        names_or_count = len(named)
    count = names_or_count if isinstance(names_or_count, int) else len(names_or_count)
    most = math.inf if is_open else len(named)
    if count == 0:
        raise _errors.no_parameters(label)
    if not required <= count <= most:
        raise _errors.parameter_count(label, count, required, most)
    if isinstance(names_or_count, int):
        return (*named[:count], *(f"p{i}" for i in range(len(named), count)))
    names = tuple(names_or_count)
    if len(set(names)) < len(names):
        raise _errors.duplicate_parameter_names(names)
    return names


def _positional(function: Callable[..., Any]) -> tuple[list[str], int, bool]:
    """Names after x, the number of names without a default, and whether there is ``*args``."""
    label = model_label(function)
    if isinstance(function, np.ufunc):  # its signature has an output and no parameters
        raise _errors.no_signature(label)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise _errors.no_signature(label) from error
    parameters = list(signature.parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if not by_position and not is_open:
        raise _errors.no_x_argument(label, signature)
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if by_keyword:
        raise _errors.keyword_only_parameters(label, by_keyword)
    required = sum(p.default is p.empty for p in by_position[1:])
    return [p.name for p in by_position[1:]], required, is_open


def model_label(function: Any) -> str:
    """Name of a model in messages."""
    while hasattr(function, "func") and not hasattr(function, "__name__"):
        function = function.func  # functools.partial
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else str(name)
