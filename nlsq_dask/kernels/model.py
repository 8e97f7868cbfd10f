"""The user's model: how it is called, and what makes it the same model.

A model is ``f(x; θ) = function(x, θ_1, ..., θ_p)``. ``ModelSpec`` is all that the rest of the
package holds of it: a small value that can be compared, hashed and sent to workers. The function
itself is found through a registry of the process, since a closure that travels through Dask is a
new object each time it arrives, and JAX compiles anew for each object.
"""

from __future__ import annotations

import hashlib
import types
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.identity import UNPICKLABLE, ModuleData, changed_data, identify
from nlsq_dask.kernels.loss import LINEAR, Loss, check_loss
from nlsq_dask.kernels.lru import LruTable
from nlsq_dask.kernels.numpy_tracing import call_with_traced
from nlsq_dask.kernels.signature import model_label, parameter_names
from nlsq_dask.kernels.untraceable import is_mixed, model_error

Structure = Literal["single", "stacked", "tuple"]
Style = Literal["jax", "numpy"]
Returns = Literal["values", "jacobian", "loss"]

# Functions kept in one process. Each may hold arrays in its closure and, through JAX, compiled
# kernels of some megabytes; more than 64 models are hardly fitted in turn, and one that was
# forgotten only costs its compilation again.
MAX_MODELS = 64

# Findings about models (a word each) may outlive the models themselves.
MAX_STYLES = 4096

# Rows of the trial call. A prime, so that no reshape of the model's own divides it, and unlikely
# to be the size of anything else; long enough that a loop over rows shows.
TRIAL_ROWS = 1009

# What a model may return, if it is of real numbers.
_ARRAY_LIKE = (jax.Array, np.ndarray, np.generic, bool, int, float, complex, list, tuple)


@dataclass(frozen=True)
class ModelSpec:
    """A model, as it was when the spec was made.

    Attributes
    ----------
    names : tuple of str, length p
        Names of the parameters.
    structure : {"single", "stacked", "tuple"}
        What the function gets as x: one array (n,), one array (k, n), or k arrays (n,).
    n_coords : int
        Number of coordinates, k.
    style : {"jax", "numpy"}
        Whether the function is traced as it is or through NumPy's dispatch.
    token : str
        Identity of the model across processes; another one if anything changed that the model's
        value follows from.
    blob : bytes or None
        The pickled function; None if it cannot be pickled.
    label : str
        Name of the function, for messages.
    module_data : tuple of ModuleData
        Data that the model reads from modules which each process imports for itself.
    returns : {"values", "jacobian", "loss"}
        What the function computes of n rows: values (n,), derivatives (n, p), or the three terms
        of a loss (3, n).
    jacobian : ModelSpec or None
        The user's own derivatives of the model.
    loss : Loss
    cholesky : ndarray, shape (n, n), or None
        Lower-triangular factor of the covariance matrix of the observations, where they are
        correlated; rows are then evaluated all at once.
    constant : tuple of int
        Numbers of the parameters by which no derivative is taken: those that are fixed. Where the
        slope along one is infinite or no number, its product with a step of zero would be none.
    """

    names: tuple[str, ...]
    structure: Structure
    n_coords: int
    style: Style
    token: str
    blob: bytes | None = field(repr=False, compare=False)
    label: str = field(compare=False)
    module_data: tuple[ModuleData, ...] = field(default=(), repr=False, compare=False)
    _local: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    returns: Returns = "values"
    jacobian: ModelSpec | None = None
    loss: Loss = LINEAR
    cholesky: FloatArray | None = field(default=None, repr=False, compare=False)
    constant: tuple[int, ...] = ()

    @property
    def row_key(self) -> str:
        """Identity of what is computed row by row: the model's values and their derivatives."""
        parts = [self.token]
        if self.jacobian is not None:
            parts.append(self.jacobian.token)
        if self.constant:
            parts.append(f"constant {self.constant}")
        return " ".join(parts)

    @property
    def key(self) -> str:
        """Identity of all that enters the sums over rows: the model, its derivatives, its loss."""
        parts = [self.row_key, self.loss.token]
        if self.cholesky is not None:
            parts.append(hashlib.sha256(self.cholesky.tobytes()).hexdigest())
        return " ".join(parts)

    @property
    def function(self) -> Callable[..., Any]:
        """The function, the same object for the same token in all of a process.

        Raises
        ------
        ModelError
            If data of a module that the model uses differ from those of the process that made
            the spec.
        """
        known = _functions.get(self.token)
        return known if known is not None else _functions.keep(self.token, self._load())

    def _load(self) -> _Function:
        if self._local is not None:
            return _Function(self._local)
        if self.blob is None:
            raise _errors.unpicklable_model(self.label)
        function = _Function(cloudpickle.loads(self.blob))
        changed = changed_data(self.module_data)
        if changed:
            raise _errors.model_data_differs(changed)
        return function

    def __getstate__(self) -> dict[str, Any]:
        if self.blob is None:
            raise _errors.unpicklable_model(self.label)
        return self.__dict__ | {"_local": None}

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        names: tuple[str, ...],
        structure: Structure,
        k: int,
        returns: Returns = "values",
    ) -> Self:
        """Spec of a function as it is now, to be traced as it is."""
        identity = identify(function)
        # A function that cannot be told from another may not share its compiled kernel.
        digest = identity.digest or uuid.uuid4().hex
        token = hashlib.sha256(
            f"{digest} {structure} {k} {len(names)} {returns}".encode()
        ).hexdigest()
        known = _functions.keep(token, _Function(function))
        known.function = function
        return cls(
            names,
            structure,
            k,
            "jax",
            token,
            _pickled(function),
            model_label(function),
            identity.module_data,
            function,
            returns,
        )


class _Function:
    """The function of one token.

    An object of its own, as one user's function can have several tokens one after the other (its
    attributes or globals change), and JAX must compile for each. It calls the object that was seen
    last with this token: one seen earlier may have changed since.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


_functions: LruTable[str, _Function] = LruTable(MAX_MODELS)
_styles: LruTable[str, Style] = LruTable(MAX_STYLES)


def prepare_model(
    function: Callable[..., Any],
    names_or_count: Sequence[str] | int | None = None,
    structure: Structure = "single",
    n_coords: int = 1,
    n_rows: int | None = None,
) -> ModelSpec:
    """Examine a model: its parameters, its identity, and how JAX can trace it.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``, written with jax.numpy or NumPy.
    names_or_count : sequence of str, int or None
        Names of the parameters, or how many there are; None takes them from the signature.
    structure : {"single", "stacked", "tuple"}
        What the function gets as x.
    n_coords : int
        Number of coordinates.
    n_rows : int or None
        Rows of data in memory, for models that accept no other number.

    Returns
    -------
    ModelSpec

    Raises
    ------
    ModelError
        If the signature does not fit, the function raises, or its value has another shape than
        (n,) or is not real.
    UntraceableModelError
        If JAX can trace the function in neither style.
    InputTypeError
        If it cannot be called.
    """
    names = parameter_names(function, names_or_count)
    return _with_style(ModelSpec.of(function, names, structure, n_coords), n_rows)


def prepare_jacobian(
    function: Callable[..., Any], model: ModelSpec, n_rows: int | None = None
) -> ModelSpec:
    """Examine the user's derivatives of a model; errors as for :func:`prepare_model`.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``: derivatives of the model's values, shape (n, p).
    model : ModelSpec
    n_rows : int or None
        Rows of data in memory, for functions that accept no other number.
    """
    label = model_label(function)
    try:
        parameter_names(function, len(model.names))
    except _errors.ModelError as error:
        raise _errors.jacobian_arguments(label, model.names) from error
    spec = ModelSpec.of(function, model.names, model.structure, model.n_coords, "jacobian")
    try:
        return _with_style(spec, n_rows)
    except _errors.ModelError as error:
        raise _errors.of_argument(error, "jac", label) from error.__cause__


def prepare_loss(loss: Any, f_scale: Any) -> Loss:
    """Examine a loss: a name, or a function of z (n,) that returns the three terms (3, n).

    Raises
    ------
    InputError
        If there is no such loss, or the scale is not positive.
    ModelError
        If JAX cannot trace the function, or it returns another shape.
    """
    scale = check_loss(loss, f_scale)
    if not callable(loss):
        return Loss(loss, scale)
    label = model_label(loss)
    try:
        spec = _with_style(ModelSpec.of(loss, (), "single", 1, "loss"), None)
    except _errors.ModelError as error:
        raise _errors.of_argument(error, "loss", label) from error.__cause__
    return Loss(label, scale, spec)


def _with_style(spec: ModelSpec, n_rows: int | None) -> ModelSpec:
    style = _styles.get(spec.token) or _styles.keep(spec.token, _find_style(spec, n_rows))
    return replace(spec, style=style)


def call_model(
    spec: ModelSpec, coords: tuple[jax.Array, ...], params: jax.Array
) -> jax.Array:  # (n,)
    """Value of a model, traceable by JAX; to be called under ``jax.enable_x64(True)``.

    Or of its derivatives (n, p), or of a loss (3, n), as ``spec.returns`` says.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    coords : tuple of jax.Array, each of shape (n,), float64
        Coordinates of the rows.
    params : jax.Array, shape (p,), float64
        Parameters.

    Returns
    -------
    jax.Array, shape (n,), float64

    Raises
    ------
    ModelError
        If the model raises (its error is the cause), or returns another shape or type than one
        real number a row.
    UntraceableModelError
        If the model does something that JAX cannot trace.
    """
    n = coords[0].shape[0]
    x: Any = coords
    if spec.structure == "single":
        x = coords[0]
    elif spec.structure == "stacked":
        x = jnp.stack(coords)
    scalars = [
        jax.lax.stop_gradient(params[i]) if i in spec.constant else params[i]
        for i in range(len(spec.names))
    ]
    function = spec.function
    with _ModelErrors(spec.label, n):
        if spec.style == "numpy":
            value = call_with_traced(function, x, scalars)
        else:
            value = function(x, *scalars)
    return _checked_value(spec, value, n)


def call_jacobian(
    spec: ModelSpec, coords: tuple[jax.Array, ...], params: jax.Array
) -> jax.Array:  # (n, p)
    """Derivatives of a model that the user wrote; zero by the parameters that are constant.

    Parameters, errors and where to call it as for :func:`call_model`.
    """
    assert spec.jacobian is not None
    derivatives = call_model(spec.jacobian, coords, params)
    return derivatives.at[:, list(spec.constant)].set(0.0) if spec.constant else derivatives


def _checked_value(spec: ModelSpec, value: Any, n: int) -> jax.Array:
    """What a function returned as a float64 array: for a model, one number a row."""
    if value is None:
        raise _errors.model_returned_nothing(spec.label)
    if not isinstance(value, _ARRAY_LIKE):
        raise _errors.model_output_type(spec.label, f"a {type(value).__name__}")
    with _ModelErrors(spec.label, n):
        array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise _errors.model_output_type(spec.label, f"values of type {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise _errors.model_output_complex(spec.label)
    shape = {"values": (n,), "jacobian": (n, len(spec.names)), "loss": (3, n)}[spec.returns]
    if array.shape != shape and (spec.returns != "values" or array.shape != ()):
        raise _output_shape(spec, array.shape, n)
    return jnp.broadcast_to(array, shape).astype(jnp.float64)


def _output_shape(spec: ModelSpec, got: tuple[int, ...], n: int) -> _errors.ModelError:
    if spec.returns == "jacobian":
        return _errors.jacobian_output_shape(spec.label, got, n, len(spec.names))
    if spec.returns == "loss":
        return _errors.loss_output_shape(spec.label, got, n)
    return _errors.model_output_shape(spec.label, got, n)


def _find_style(spec: ModelSpec, n_rows: int | None) -> Style:
    """Trace the model as it is, or else through NumPy's dispatch."""
    as_numpy = replace(spec, style="numpy")
    first = _trial(spec, TRIAL_ROWS)
    if first is None:
        return "jax"
    second = _trial(as_numpy, TRIAL_ROWS)
    if second is None:
        return "numpy"
    if n_rows is not None:
        for trial in (spec, as_numpy):
            if _trial(trial, n_rows) is None:
                return trial.style
    # The error to report is the one of the style that the model is written in.
    needs_numpy = isinstance(first, _errors.UntraceableModelError) and not is_mixed(second)
    if needs_numpy or isinstance(second, _errors.UntraceableModelError):
        raise second
    raise first


def _trial(spec: ModelSpec, n_rows: int) -> _errors.ModelError | None:
    """Error of a trial call, or None."""
    try:
        operations = len(trace_model(spec, n_rows).eqns)
        # A loop over rows was unrolled if there is an operation for each row, fewer for fewer.
        if n_rows == TRIAL_ROWS <= operations and operations > len(trace_model(spec, 2).eqns):
            raise _errors.untraceable_loop(spec.label, "")
    except _errors.ModelError as error:
        return error
    return None


def trace_model(spec: ModelSpec, n_rows: int) -> ClosedJaxpr:
    """What a model computes from ``(coords, params)``, for a number of rows.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    n_rows : int
        Number of rows.

    Returns
    -------
    ClosedJaxpr
        Its inputs are the k coordinates (n,) and the parameters (p,), its output is (n,).
    """
    with jax.enable_x64(True):
        row_values = jax.core.ShapedArray((n_rows,), jnp.float64)
        params = jax.core.ShapedArray((len(spec.names),), jnp.float64)

        def model(coords: tuple[jax.Array, ...], params: jax.Array) -> jax.Array:
            return call_model(spec, coords, params)

        return jax.make_jaxpr(model)((row_values,) * spec.n_coords, params)


class _ModelErrors:
    """Turns what the user's code raises into a ModelError with the original as its cause."""

    def __init__(self, label: str, rows: int) -> None:
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


def _pickled(function: Callable[..., Any]) -> bytes | None:
    try:
        blob: bytes = cloudpickle.dumps(function)
    except UNPICKLABLE:
        return None
    return blob
