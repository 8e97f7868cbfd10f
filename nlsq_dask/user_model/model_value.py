"""Checks of the value of a user's function, and errors that name the function."""

from __future__ import annotations

import types
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask import _errors
from nlsq_dask.user_model.trace_errors import model_error

Returns = Literal["values", "jacobian", "loss"]

# Types of a model's value, if it consists of real numbers.
_ARRAY_LIKE = (jax.Array, np.ndarray, np.generic, bool, int, float, complex, list, tuple)


def checked_value(label: str, returns: Returns, value: Any, n: int, n_params: int) -> jax.Array:
    """The value of a function as a float64 array: for a model, one number a row.

    Parameters
    ----------
    label : str
        Name of the function.
    returns : {"values", "jacobian", "loss"}
        Kind of the value for n rows: values (n,), derivatives (n, p), or terms of a loss (3, n).
    value : object
        Return value of the function.
    n, n_params : int
        Rows, and parameters.

    Raises
    ------
    ModelError
        If the value is no array of real numbers of that shape.
    """
    shape = {"values": (n,), "jacobian": (n, n_params), "loss": (3, n)}[returns]
    if isinstance(value, jax.Array) and value.shape == shape and value.dtype == np.float64:
        return value  # the same result as below, which would take a tenth of a trace
    if value is None:
        raise _errors.model_returned_nothing(label)
    if not isinstance(value, _ARRAY_LIKE):
        raise _errors.model_output_type(label, f"a {type(value).__name__}")
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:  # a tuple or a list of unlike things
        got = f"a {type(value).__name__} of values that do not form an array"
        raise _errors.model_output_type(label, got) from error
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise _errors.model_output_type(label, f"values of type {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise _errors.model_output_complex(label)
    if array.shape != shape and (returns != "values" or array.shape != ()):
        raise _output_shape(label, returns, array.shape, n, n_params)
    return jnp.broadcast_to(array, shape).astype(jnp.float64)


def _output_shape(
    label: str, returns: Returns, got: tuple[int, ...], n: int, n_params: int
) -> _errors.ModelError:
    if returns == "jacobian":
        return _errors.jacobian_output_shape(label, got, n, n_params)
    if returns == "loss":
        return _errors.loss_output_shape(label, got, n)
    return _errors.model_output_shape(label, got, n)


class ModelErrors:
    """Turns errors of the user's code into a ModelError with the original error as its cause.

    Parameters
    ----------
    label : str
        Name of the model.
    rows : int or None
        Rows of the call; None for a call with the user's x, whose rows are not known.
    """

    def __init__(self, label: str, rows: int | None) -> None:
        self._label = label
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, _errors.FitError):
            raise model_error(error, self._label, self._rows) from error
