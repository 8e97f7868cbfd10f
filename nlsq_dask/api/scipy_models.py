"""Models that are written for SciPy, as functions that JAX can trace.

SciPy calls a model with the object that the user passes as x. This object need not have an entry
for each row: it may be None, a table, or an array of any shape. The kernel, in contrast, gives a
model rows of coordinates, and traces it. These classes adapt one to the other:

- :class:`ReshapedModel` and :class:`RowsFirstModel`, for an x of shape (..., n) or (n, k);
- :class:`ClosedModel`, for an x without rows: the model gets the user's x whatever the rows;
- :class:`HostModel`, for a model that JAX cannot trace: compiled code calls it back in Python. Its
  derivatives are central differences, or come from the user's Jacobian.

A model that loops over rows in Python is a :class:`~nlsq_dask.user_model.called_back.RowsModel`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.called_back import Wrapper, called_back, central_differences, eager_value
from nlsq_dask.user_model.signature import model_label


class ReshapedModel(Wrapper):
    """A model of an x of shape (*leading, n); the kernel passes coordinates (k, n).

    Parameters
    ----------
    function : callable
    leading : tuple of int
        All axes of x but the last.
    """

    def __init__(self, function: Callable[..., Any], leading: tuple[int, ...]) -> None:
        super().__init__(function)
        self.leading = leading

    def __call__(self, x: Any, *params: Any) -> Any:
        """Value at k coordinates (k, n)."""
        return self.__func__(x.reshape(*self.leading, -1), *params)


class RowsFirstModel(Wrapper):
    """A model of an x of shape (n, k); the kernel passes coordinates (k, n)."""

    def __call__(self, x: Any, *params: Any) -> Any:
        """Value at k coordinates (k, n)."""
        return self.__func__(x.T, *params)


class ClosedModel(Wrapper):
    """A model of an x without rows; only its value has one entry for each row.

    Parameters
    ----------
    function : callable
    x : object
        The user's x. The model is always called with it.
    """

    def __init__(self, function: Callable[..., Any], x: Any) -> None:
        super().__init__(function)
        self.x = x

    def __call__(self, _: Any, *params: Any) -> Any:
        """Value at the user's x."""
        return self.__func__(self.x, *params)


class TransposedJacobian(Wrapper):
    """Derivatives (n, p) of a model, from a function that returns the transpose (p, n).

    Parameters
    ----------
    function : callable
        ``function(x, *params)``, of shape (p, n).
    """

    def __call__(self, x: Any, *params: Any) -> Any:
        """Derivatives, (n, p)."""
        return self.__func__(x, *params).T


class HostModel(Wrapper):
    """A model that JAX cannot trace: compiled code calls it back in Python.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``, of shape (n,) or ().
    x : object
        The user's x. The model is always called with it.
    n : int
        Number of rows of the model's value.
    lower, upper : ndarray, shape (p,), float64
        Bounds. Differences never call the model outside of them.
    jac : callable or None
        ``jac(x, *params)``, of shape (n, p). None stands for central differences.

    Attributes
    ----------
    calls : int
        Number of calls of the model that returned.
    error : Exception or None
        The last exception that the model raised.
    n_differenced : int
        Most rows, in any call, whose derivatives by `jac` were not finite and were replaced by
        differences.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        x: Any,
        n: int,
        lower: FloatArray,
        upper: FloatArray,
        jac: Callable[..., Any] | None,
    ) -> None:
        super().__init__(function)
        self.x, self.n, self.jac = x, n, jac
        self.lower, self.upper = lower, upper
        # Compiled code calls this object back, so that no other object may share the code.
        self.identity = uuid.uuid4().hex
        self.calls = 0
        self.error: Exception | None = None
        self.n_differenced = 0
        self._last: dict[object, tuple[FloatArray, FloatArray]] = {}

    def __call__(self, rows: jax.Array, *params: jax.Array) -> jax.Array:
        """Value at the user's x."""
        n = self.n
        if rows.shape != (n,):
            raise ValueError(f"the value has {n} rows, not {rows.shape}")

        @jax.custom_jvp
        def value(*theta: jax.Array) -> jax.Array:
            return called_back(self._value, (n,), jnp.stack(theta))

        def derivative(at: tuple[jax.Array, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
            free = [i for i, step in enumerate(along) if not isinstance(step, SymbolicZero)]
            columns = called_back(
                partial(self._jacobian, free=tuple(free)), (n, len(free)), jnp.stack(at)
            )
            return value(*at), columns @ jnp.stack([along[i] for i in free])

        value.defjvp(derivative, symbolic_zeros=True)
        return value(*params)

    def release(self) -> None:
        """Drop the data after the last call, because compiled code outlives the fit."""
        self.x = None
        self._last.clear()

    def _value(self, theta: Any) -> FloatArray:
        return self._remembered("value", self._evaluate, np.array(theta))

    def _jacobian(self, theta: Any, free: tuple[int, ...]) -> FloatArray:
        """Derivatives with respect to the free parameters, (n, q)."""
        return self._remembered(free, partial(self._differentiate, free=free), np.array(theta))

    def _remembered(
        self, what: object, function: Callable[[FloatArray], FloatArray], point: FloatArray
    ) -> FloatArray:
        """Remember the last point, which is evaluated again for derivatives in another basis."""
        last, value = self._last.get(what, (None, point))
        if last is None or not np.array_equal(last, point):
            value = function(point)
            self._last[what] = point, value
        return value

    def _evaluate(self, point: FloatArray) -> FloatArray:
        with _Keep(self):
            value = eager_value(self.__func__, self.x, point)
            if value.shape not in ((self.n,), (1,), ()):
                raise _errors.model_output_shape(self.__name__, value.shape, self.n)
        self.calls += 1
        return np.ascontiguousarray(np.broadcast_to(value, (self.n,)))

    def _differentiate(self, point: FloatArray, free: tuple[int, ...]) -> FloatArray:
        if self.jac is None:
            return self._differences(point, free)
        with _Keep(self):
            value = eager_value(self.jac, self.x, point)
            if value.shape != (self.n, point.size):
                raise _errors.jacobian_output_shape(
                    model_label(self.jac), value.shape, self.n, point.size
                )
        return self._mended(value[:, free], point, free)

    def _differences(self, point: FloatArray, free: tuple[int, ...]) -> FloatArray:
        return central_differences(self._evaluate, point, free, self.lower, self.upper)

    def _mended(self, columns: FloatArray, point: FloatArray, free: tuple[int, ...]) -> FloatArray:
        """The user's derivatives (n, q); those that are not finite are replaced by differences."""
        lost = ~np.isfinite(columns)
        columns = np.array(columns, order="C")
        for k in np.flatnonzero(lost.any(axis=0)):
            difference = self._differences(point, (free[k],))[:, 0]
            columns[lost[:, k], k] = difference[lost[:, k]]
        mended = (lost & np.isfinite(columns)).any(axis=1)
        self.n_differenced = max(self.n_differenced, int(np.count_nonzero(mended)))
        return columns


class _Keep:
    """Stores the exception that the user's code raises: JAX passes on only its text."""

    def __init__(self, model: HostModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            self._model.error = error
