"""Models that compiled code calls back with numbers, in place of tracing them.

Their derivatives are central differences. If one side of a difference is not finite, the difference
is one-sided.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.signature import model_label

# Relative step of central differences that balances truncation against rounding, the cube root of
# the machine precision (Press et al., "Numerical Recipes", section 5.7).
CENTRAL_STEP = float(np.finfo(np.float64).eps) ** (1.0 / 3.0)


class Wrapper:
    """A callable around a user's model, with the model's name and signature.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = model_label(function)
        # The identity of a model reads this name to find the package of the user's code.
        self.__func__ = function
        try:
            self.__signature__ = inspect.signature(function)
        except (TypeError, ValueError):  # the search for parameter names reports this error
            self.__signature__ = inspect.Signature()


class RowsModel(Wrapper):
    """A model that loops over rows in Python, called back with all rows at once.

    Derivatives are central differences.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``, of shape (n,) or ().
    lower, upper : ndarray, shape (p,), float64
        Bounds. The model is not called beyond them.
    """

    def __init__(self, function: Callable[..., Any], lower: FloatArray, upper: FloatArray) -> None:
        super().__init__(function)
        self.lower, self.upper = lower, upper

    def __call__(self, x: Any, *params: Any) -> jax.Array:
        """Value at the rows of x."""
        n = jax.tree.leaves(x)[0].shape[-1]

        @jax.custom_jvp
        def value(*theta: jax.Array) -> jax.Array:
            return called_back(partial(self._values, n), (n,), jnp.stack(theta), x)

        def derivative(at: tuple[jax.Array, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
            free = tuple(i for i, step in enumerate(along) if not isinstance(step, SymbolicZero))
            columns = called_back(
                partial(self._jacobian, n, free), (n, len(free)), jnp.stack(at), x
            )
            return value(*at), columns @ jnp.stack([along[i] for i in free])

        value.defjvp(derivative, symbolic_zeros=True)
        return value(*params)

    def _values(self, n: int, theta: Any, x: Any) -> FloatArray:
        rows = jax.tree.map(lambda c: np.array(c, np.float64), x)
        value = eager_value(self.__func__, rows, np.array(theta))
        if value.shape not in ((n,), (1,), ()):
            raise _errors.model_output_shape(self.__name__, value.shape, n)
        return np.ascontiguousarray(np.broadcast_to(value, (n,)))

    def _jacobian(self, n: int, free: tuple[int, ...], theta: Any, x: Any) -> FloatArray:
        return central_differences(
            lambda point: self._values(n, point, x), np.array(theta), free, self.lower, self.upper
        )


def central_differences(
    value: Callable[[FloatArray], FloatArray],
    point: FloatArray,
    free: tuple[int, ...],
    lower: FloatArray,
    upper: FloatArray,
) -> FloatArray:
    """Derivatives of a function of parameters by the free parameters.

    Parameters
    ----------
    value : callable
        ``value(point)``, shape (n,).
    point, lower, upper : ndarray, shape (p,), float64
        Parameters, and their bounds. The function is not called beyond the bounds.
    free : tuple of int, length q

    Returns
    -------
    ndarray, shape (n, q), float64
        One-sided if the function is finite on one side only.
    """
    return np.stack([_central_difference(value, point, i, lower, upper) for i in free], axis=1)


def _central_difference(
    value: Callable[[FloatArray], FloatArray],
    point: FloatArray,
    i: int,
    lower: FloatArray,
    upper: FloatArray,
) -> FloatArray:
    step = CENTRAL_STEP * (abs(point[i]) or 1.0)
    ahead, behind = point.copy(), point.copy()
    ahead[i] = min(point[i] + step, upper[i])
    behind[i] = max(point[i] - step, lower[i])
    above, below = value(ahead), value(behind)
    with np.errstate(divide="ignore", invalid="ignore"):  # a side may have no length
        slope: FloatArray = (above - below) / (ahead[i] - behind[i])
        if np.isfinite(slope).all():
            return slope
        here = value(point)
        forward = (above - here) / (ahead[i] - point[i])
        backward = (here - below) / (point[i] - behind[i])
    one_sided = np.where(np.isfinite(forward), forward, backward)
    return np.where(np.isfinite(slope), slope, one_sided)


def called_back(
    function: Callable[..., FloatArray], shape: tuple[int, ...], *args: Any
) -> jax.Array:
    """Value of a function of numbers, within code that JAX traces."""
    out = jax.eval_shape(lambda: jnp.zeros(shape, jnp.float64))
    value: jax.Array = jax.pure_callback(function, out, *args, vmap_method="sequential")
    return value


def eager_value(function: Callable[..., Any], x: Any, params: FloatArray) -> FloatArray:
    """Call a function with numbers, as SciPy does.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``.
    x : object
        An array is converted to float64.
    params : ndarray, shape (p,), float64

    Returns
    -------
    ndarray, float64
    """
    if isinstance(x, np.ndarray):
        x = x.astype(np.float64, copy=False)
    with jax.enable_x64(True):
        return np.asarray(function(x, *params), np.float64)
