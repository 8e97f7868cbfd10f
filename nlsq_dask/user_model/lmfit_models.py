"""Models of lmfit as functions ``f(x, *params)``, without lmfit's machinery around each call.

A model of lmfit is a tree: functions with keyword arguments, and operators between them. The tree
is evaluated as it is, on arrays that JAX traces. lmfit's own line shapes guard divisions by
Python's ``max`` and ``float``, which need numbers and not traces. Here they run with functions of
the same meaning for arrays.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from nlsq_dask.models.faddeeva import faddeeva_real

# Module of lmfit's line shapes, and its least divisor.
LINESHAPES = "lmfit.lineshapes"
LEAST_DIVISOR = 1e-15


@dataclass(frozen=True)
class Lineshape:
    """A line shape of lmfit by its name, on arrays that JAX traces."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Value of the line shape."""
        return _traceable()[self.name](*args, **kwargs)


@dataclass(frozen=True)
class Component:
    """A function of a model: its argument names, and what they get.

    Attributes
    ----------
    function : callable
    variables : tuple of str
        Arguments that get coordinates of the same name.
    params : tuple of pair of str
        Argument and parameter of the model.
    constants : tuple of pair
        Argument and value.
    """

    function: Callable[..., Any]
    variables: tuple[str, ...]
    params: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...] = ()

    def value(self, coords: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        """Value of the function."""
        given = {name: coords[name] for name in self.variables}
        given |= {argument: params[name] for argument, name in self.params}
        return self.function(**dict(self.constants), **given)


@dataclass(frozen=True)
class Combined:
    """Two parts of a model with an operator between them."""

    left: Component | Combined
    right: Component | Combined
    op: Callable[[Any, Any], Any]

    def value(self, coords: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        """Value of the whole."""
        return self.op(self.left.value(coords, params), self.right.value(coords, params))


class LmfitModel:
    """A model of lmfit as a function ``f(x, *params)``.

    Parameters
    ----------
    root : Component or Combined
    variables : tuple of str
        Names of the coordinates, in the order in which they are in x.
    names : tuple of str
        Names of the parameters.
    label : str
        Name of the model, for messages.
    expressions : mapping of str to str
        Expressions of the lmfit.Parameters by name, also of those that the model does not have.
    """

    def __init__(
        self,
        root: Component | Combined,
        variables: tuple[str, ...],
        names: tuple[str, ...],
        label: str,
        expressions: Mapping[str, str],
    ) -> None:
        self.root, self.variables, self.names = root, variables, names
        self.__name__, self.expressions = label, dict(expressions)
        kind = inspect.Parameter.POSITIONAL_ONLY
        self.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in ("x", *names)])

    def __call__(self, x: Any, /, *params: Any) -> Any:
        """Value of the model.

        Parameters
        ----------
        x : array_like, or tuple of such
            The coordinate, or the coordinates.
        *params : float or 0-d array
            Parameters, in the order of `names`.
        """
        coords = x if len(self.variables) > 1 else (x,)
        given = dict(zip(self.variables, coords, strict=True))
        return self.root.value(given, dict(zip(self.names, params, strict=True)))


@cache
def _traceable() -> dict[str, Any]:
    """Lmfit's line shapes, with functions of arrays in place of those of numbers."""
    from lmfit import lineshapes  # an optional library, which made the model

    space: dict[str, Any] = dict(vars(lineshapes))
    for name, value in vars(lineshapes).items():
        if isinstance(value, FunctionType) and value.__module__ == LINESHAPES:
            code, defaults = value.__code__, value.__defaults__
            space[name] = FunctionType(code, space, name, defaults, value.__closure__)
    space |= {"max": np.maximum, "min": np.minimum, "not_zero": _not_zero, "voigt": _voigt}
    return space


def _not_zero(value: Any) -> Any:
    """A number with its sign, and a size of at least `LEAST_DIVISOR`."""
    return np.copysign(np.maximum(LEAST_DIVISOR, np.abs(value)), value)


def _voigt(
    x: Any, amplitude: Any = 1.0, center: Any = 0.0, sigma: Any = 1.0, gamma: Any = None
) -> Any:
    """Lmfit's Voigt line, whose area is the amplitude, by the real part of Faddeeva's function."""
    gamma = sigma if gamma is None else gamma
    width = np.maximum(LEAST_DIVISOR, sigma * math.sqrt(2.0))
    profile = faddeeva_real(np, (x - center) / width, gamma / width)
    return amplitude * profile / np.maximum(LEAST_DIVISOR, sigma * math.sqrt(2.0 * math.pi))
