"""Models and parameters of lmfit as arguments of ``fit`` and ``fit_each``.

Values are starting values, ``vary=False`` fixes, ``min`` and ``max`` are bounds, and a linear
``expr`` is a tie. lmfit is not imported here: a caller who passes its objects has imported it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.io.libraries import is_instance
from nlsq_dask.user_model.lmfit_models import (
    LINESHAPES,
    Combined,
    Component,
    Lineshape,
    LmfitModel,
)
from nlsq_dask.user_model.signature import parameter_names

# Linear expression: factors of parameters by name, and the constant under 1.
Factors = dict[str | int, float]

# Classes of lmfit whose value is no function of their coordinates and parameters alone.
_NO_FUNCTIONS = ("ExpressionModel", "SplineModel")


@dataclass(frozen=True)
class Arguments:
    """Arguments of a fit without objects of lmfit."""

    model: Callable[..., Any]
    x: Any
    p0: Any
    inputs: InputOptions


def without_lmfit(model: Any, x: Any, p0: Any, inputs: InputOptions) -> Arguments:
    """Translate a model and parameters of lmfit; other arguments stay as they are.

    Parameters
    ----------
    model : callable or lmfit.Model
    x : array_like, tuple, or for a model of lmfit also a dictionary by its independent variables
    p0 : lmfit.Parameters, or as for ``fit``
    inputs : InputOptions

    Raises
    ------
    InputError, InputTypeError
        If the parameters lack values, an expression is not linear, or there are bounds, fixed
        parameters or ties beside them.
    ModelError
        If the model is no function of arrays.
    """
    of_lmfit = is_instance(model, "lmfit", "Model")
    if of_lmfit and p0 is None:
        p0 = model.make_params()
    if not is_instance(p0, "lmfit", "Parameters"):
        if of_lmfit:
            raise _errors.lmfit_parameters_form(p0)
        return Arguments(model, x, p0, inputs)
    if not of_lmfit:
        names = parameter_names(model)
        return Arguments(model, x, *_translated(p0, names, _ties(p0, names), inputs))
    root = _tree(model)
    leaves = _leaves(root)
    own = tuple(dict.fromkeys(name for leaf in leaves for _, name in leaf.params))
    variables = tuple(n for n in model.independent_vars if any(n in c.variables for c in leaves))
    ties = _ties(p0, own)
    # Parameters that the model does not have, but the expressions of its parameters.
    needed = {other for factors in ties.values() for other in factors}
    names = own + tuple(name for name in p0 if name in needed and name not in own)
    start, options = _translated(p0, names, ties, inputs)
    if model.nan_policy == "omit" and inputs.nan_policy == "raise":
        options = replace(options, nan_policy="omit")
    expressions = {name: p0[name].expr for name in p0 if p0[name].expr}
    function = LmfitModel(root, variables, names, str(model.name), expressions)
    return Arguments(function, _coordinates(x, variables), start, options)


@contextmanager
def naming_lmfit(model: Any) -> Iterator[None]:
    """If a model of lmfit cannot be traced, say in the error what to use instead."""
    try:
        yield
    except _errors.UntraceableModelError as error:
        if not isinstance(model, LmfitModel):
            raise
        raise type(error)(_errors.lmfit_not_traced(model.__name__, error)) from error


def _translated(
    params: Any, names: tuple[str, ...], ties: Mapping[str, Factors], inputs: InputOptions
) -> tuple[dict[str, float], InputOptions]:
    """Starting values; and bounds, fixed parameters and ties in the options."""
    no_bounds = isinstance(inputs.bounds, tuple) and inputs.bounds == (-np.inf, np.inf)
    given = {"bounds": not no_bounds, "fixed": inputs.fixed, "ties": inputs.ties is not None}
    if any(given.values()):
        raise _errors.lmfit_and_arguments([name for name, value in given.items() if value])
    start: dict[str, float] = {}
    fixed: dict[str, float] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name in names:
        parameter = params[name]
        if name not in ties:
            value = parameter.value
            if value is None or not np.isfinite(value):
                raise _errors.lmfit_value_missing(name, value)
            (start if parameter.vary else fixed)[name] = float(value)
        if (name in ties or parameter.vary) and np.isfinite([parameter.min, parameter.max]).any():
            bounds[name] = (float(parameter.min), float(parameter.max))
    options = replace(
        inputs, bounds=bounds or inputs.bounds, fixed=fixed or None, ties=ties or None
    )
    return start, options


def _tree(model: Any) -> Component | Combined:
    """The functions of a model of lmfit, and the operators between them."""
    kind = type(model).__name__
    if kind in _NO_FUNCTIONS:
        raise _errors.lmfit_not_a_function(str(model.name), kind)
    if hasattr(model, "left"):
        return Combined(_tree(model.left), _tree(model.right), model.op)
    function = model.func
    if getattr(function, "__module__", "") == LINESHAPES:
        function = Lineshape(function.__name__)
    variables = tuple(name for name in model.independent_vars if name not in model.opts)
    return Component(function, variables, _arguments(model), tuple(model.opts.items()))


def _arguments(model: Any) -> tuple[tuple[str, str], ...]:
    """Arguments of the function of a model, and the parameter that each gets.

    lmfit counts derived parameters, such as the height of a peak, among those of the model.
    """
    taken = inspect.signature(model.func).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    pairs = ((name.removeprefix(model.prefix), name) for name in model.param_names)
    return tuple((argument, name) for argument, name in pairs if takes_all or argument in taken)


def _leaves(root: Component | Combined) -> list[Component]:
    """The functions of a model, from left to right."""
    return [root] if isinstance(root, Component) else _leaves(root.left) + _leaves(root.right)


def _coordinates(x: Any, variables: tuple[str, ...]) -> Any:
    """The coordinates in the order of the independent variables."""
    if not isinstance(x, Mapping):
        return x
    if set(x) != set(variables):
        raise _errors.lmfit_coordinates(sorted(map(str, x)), variables)
    arrays = tuple(x[name] for name in variables)
    return arrays if len(arrays) > 1 else arrays[0]


def _ties(params: Any, names: tuple[str, ...]) -> dict[str, Factors]:
    """Linear expressions of the parameters, and of the parameters that they need in turn."""
    missing = [name for name in names if name not in params]
    if missing:
        raise _errors.lmfit_parameters_missing(missing)
    ties: dict[str, Factors] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        expr = params[name].expr
        if expr and name not in ties:
            factors = _linear(ast.parse(expr.strip(), mode="eval").body, params)
            if factors is None:
                raise _errors.lmfit_expr_not_linear(name, expr)
            ties[name] = factors
            waiting += [other for other in factors if isinstance(other, str)]
    return ties


def _linear(node: ast.expr, params: Any) -> Factors | None:
    """Factors of a linear expression; None for any other expression."""
    used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if not used & set(params):  # a number: lmfit's own interpreter knows its functions
        return {1: float(params.eval(ast.unparse(node)))}
    match node:
        case ast.Name(id=name):
            return {name: 1.0}
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _scaled(_linear(inner, params), -1.0)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _linear(inner, params)
        case ast.BinOp(left=left, op=operator, right=right):
            return _combined(_linear(left, params), operator, _linear(right, params))
    return None


def _combined(
    left: Factors | None, operator: ast.operator, right: Factors | None
) -> Factors | None:
    """Sum, difference, or multiple of two linear expressions."""
    if left is None or right is None:
        return None
    match operator:
        case ast.Add() | ast.Sub():
            sign = 1.0 if isinstance(operator, ast.Add) else -1.0
            keys = left.keys() | right.keys()
            return {key: left.get(key, 0.0) + sign * right.get(key, 0.0) for key in keys}
        case ast.Mult() if set(right) == {1}:
            return _scaled(left, right[1])
        case ast.Mult() if set(left) == {1}:
            return _scaled(right, left[1])
        case ast.Div() if set(right) == {1} and right[1] != 0.0:
            return _scaled(left, 1.0 / right[1])
    return None


def _scaled(factors: Factors | None, by: float) -> Factors | None:
    return None if factors is None else {key: by * value for key, value in factors.items()}
