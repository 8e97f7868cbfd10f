"""A model as a value: how it is called, traced and identified.

A model is ``f(x; θ) = function(x, θ_1, ..., θ_p)``. The rest of the package holds a model as a
``ModelSpec``: a small value that can be compared, hashed and sent to workers. The process keeps a
table of functions by token. A closure that travels through Dask is a new object at each arrival,
and JAX compiles again for each object.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import cloudpickle
import jax
import jax.numpy as jnp
from jax import lax

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import Series, Structure, model_input
from nlsq_dask.user_model.identity import UNPICKLABLE, ModuleData, changed_data, identify
from nlsq_dask.user_model.jaxprs import ClosedJaxpr
from nlsq_dask.user_model.loss import LINEAR, Loss
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model_value import ModelErrors, Returns, checked_value
from nlsq_dask.user_model.numpy_models import call_with_traced
from nlsq_dask.user_model.signature import model_label
from nlsq_dask.user_model.traces import operations

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn

Style = Literal["jax", "numpy"]

# Functions kept in one process. Each may hold arrays in its closure and, through JAX, compiled
# kernels of some megabytes. More than 64 models are hardly fitted in turn, and a forgotten model
# costs only its compilation again.
MAX_MODELS = 64

# Bytes of a pickled function up to which the pickle is kept for the next fit of the same model.
KEPT_BLOB = 1 << 16

# Rows of the call that examines a model. A prime, so that no reshape in the model divides it, and
# unlikely to be the size of another array.
EXAMINED_ROWS = 1009


@dataclass(frozen=True)
class ModelSpec:
    """A model at the time when the spec was made.

    Attributes
    ----------
    names : tuple of str, length p
        Names of the parameters.
    structure : {"single", "stacked", "tuple"}
        Form of x: one array (n,), one array (k, n), or k arrays (n,).
    n_coords : int
        Number of coordinates, k.
    style : {"jax", "numpy"}
        Whether the function is traced as it is or through NumPy's dispatch.
    token : str
        Identity of the model across processes. It changes with everything that the model's value
        depends on.
    blob : bytes or None
        The pickled function; None if it cannot be pickled.
    label : str
        Name of the function, for messages.
    module_data : tuple of ModuleData
        Data that the model reads from modules, as each process imports modules for itself.
    returns : {"values", "jacobian", "loss"}
        Value of the function for n rows: values (n,), derivatives (n, p), or the three terms of a
        loss (3, n).
    jacobian : ModelSpec or None
        The user's own derivatives of the model.
    loss : Loss
    cholesky : ndarray, shape (n, n), or None
        Lower-triangular factor of the covariance matrix of correlated observations. All rows are
        then evaluated at once.
    constant : tuple of int
        Indices of the fixed parameters. No derivative by these is taken: an infinite slope times a
        step of zero is NaN.
    rows : int
        Number of rows of the trace that later traces are compared with.
    traced : str
        Version of JAX and digest of that trace.
    is_numpy : bool
        Whether the function uses no JAX, so that a call with NumPy arrays compiles nothing.
    whole : str or None
        Why the function needs all rows in one call; the end of a sentence that begins with "it".
    source : str
        The token before the function is traced, as version 0.1 made it.
    series : Series or None
        The series that the function takes whole, one after the other; None where it takes any
        number of rows.
    modules : tuple of str, or None
        Modules that a closed function names; None for an open function. See
        :mod:`nlsq_dask.user_model.closed`.
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
    rows: int = field(default=EXAMINED_ROWS, compare=False)
    traced: str = field(default="", compare=False)
    is_numpy: bool = field(default=False, compare=False)
    whole: str | None = field(default=None, compare=False)
    source: str = field(default="", repr=False, compare=False)
    series: Series | None = None
    modules: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def row_key(self) -> str:
        """Identity of the values and derivatives of the rows."""
        parts = [self.token]
        if self.jacobian is not None:
            parts.append(self.jacobian.token)
        if self.constant:
            parts.append(f"constant {self.constant}")
        if self.series is not None:
            parts.append(f"series of {self.series.rows}")
        return " ".join(parts)

    @property
    def key(self) -> str:
        """Identity of the sums over rows: the model, its derivatives, its loss."""
        parts = [self.row_key, self.loss.token]
        if self.cholesky is not None:
            parts.append(hashlib.sha256(self.cholesky.tobytes()).hexdigest())
        return " ".join(parts)

    @property
    def series_rows(self) -> int:
        """Rows that one call of the model takes at least: those of a series, or 1."""
        return 1 if self.series is None else self.series.rows

    @property
    def is_picklable(self) -> bool:
        """Whether the function, its Jacobian and its loss can be pickled."""
        others = (self.jacobian, self.loss.function)
        return self.blob is not None and all(spec is None or spec.is_picklable for spec in others)

    def in_series(self, series: Series) -> ModelSpec:
        """The same model, which takes whole series."""
        jacobian = self.jacobian and replace(self.jacobian, series=series)
        return replace(self, series=series, jacobian=jacobian)

    def untraced(self) -> ModelSpec:
        """The spec with the tokens of version 0.1, in which no trace takes part."""
        loss = self.loss
        if loss.function is not None:
            loss = replace(loss, function=loss.function.untraced())
        jacobian = self.jacobian and self.jacobian.untraced()
        return replace(self, token=self.source, jacobian=jacobian, loss=loss)

    @property
    def function(self) -> Callable[..., Any]:
        """The function, the same object for the same token in all of a process.

        Raises
        ------
        ModelError
            If a module's data that the model uses differ from the data in the process that made
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
        """Spec of a function as it is now, of style "jax"."""
        identity = identify(function)
        # A function without an identity may not share a compiled kernel.
        found = identity.digest or uuid.uuid4().hex
        token = digest_of(f"{found} {structure} {k} {len(names)} {returns}")
        spec = cls(
            names,
            structure,
            k,
            "jax",
            token,
            _blobs.get(token) or _pickled(function, token),
            model_label(function),
            identity.module_data,
            function,
            returns,
            is_numpy=not identity.uses_jax,
            source=token,
            modules=identity.modules,
        )
        return spec.named(token)

    def named(self, token: str) -> Self:
        """The same spec under another token, which stands for this function from now on."""
        found = replace(self, token=token)
        found.register()
        return found

    def register(self) -> None:
        """Let the token stand for this function from now on."""
        if self._local is not None:
            _functions.keep(self.token, _Function(self._local)).function = self._local


class _Function:
    """The function of one token.

    A user's function can have several tokens in turn, as its attributes or globals change, and JAX
    must compile for each token. Therefore each token has an object of its own. It calls the latest
    function with this token, since an earlier function may have changed.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


_functions: LruTable[str, _Function] = LruTable(MAX_MODELS)
_blobs: LruTable[str, bytes] = LruTable(MAX_MODELS)


def call_model(
    spec: ModelSpec, coords: tuple[jax.Array, ...], params: jax.Array
) -> jax.Array:  # (n,)
    """Value of a model, traceable by JAX; to be called under ``jax.enable_x64(True)``.

    By ``spec.returns`` the value may also be derivatives (n, p) or the terms of a loss (3, n). A
    model of series is mapped over the series.

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
    # The same as params[i], without the cost of JAX's general indexing.
    scalars = [lax.squeeze(lax.slice(params, (i,), (i + 1,)), (0,)) for i in range(len(spec.names))]
    n = coords[0].shape[0]
    if spec.series is None or spec.series.rows == n:
        return call_with_scalars(spec, coords, scalars)
    cut = tuple(c.reshape(-1, spec.series.rows) for c in coords)
    values: jax.Array = jax.vmap(lambda *own: call_with_scalars(spec, own, scalars))(*cut)
    return values.reshape(n, *values.shape[2:])


def call_with_scalars(
    spec: ModelSpec, coords: tuple[jax.Array, ...], scalars: Sequence[jax.Array]
) -> jax.Array:  # (n,)
    """Value of a model at p separate scalars; otherwise as :func:`call_model`."""
    x = model_input(spec.structure, coords, jnp.stack)
    values = list(scalars)
    for i in spec.constant:
        values[i] = lax.stop_gradient(values[i])
    return _value(spec, x, values, coords[0].shape[0])


def _value(spec: ModelSpec, x: Any, scalars: list[jax.Array], n: int) -> jax.Array:
    """Value of a model at x and at parameters that are separate scalars."""
    function = spec.function
    with ModelErrors(spec.label, n):
        if spec.style == "numpy":
            value = call_with_traced(function, x, scalars)
        else:
            value = function(x, *scalars)
    return checked_value(spec.label, spec.returns, value, n, len(spec.names))


def call_jacobian(
    spec: ModelSpec, coords: tuple[jax.Array, ...], params: jax.Array
) -> jax.Array:  # (n, p)
    """Derivatives of a model that the user wrote; zero by the parameters that are constant.

    Parameters, errors and where to call it as for :func:`call_model`.
    """
    assert spec.jacobian is not None
    derivatives = call_model(spec.jacobian, coords, params)
    return derivatives.at[:, list(spec.constant)].set(0.0) if spec.constant else derivatives


def trace_model(spec: ModelSpec, n_rows: int) -> ClosedJaxpr:
    """Trace a model as a function of ``(coords, params)`` for a number of rows.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    n_rows : int
        Number of rows.

    Returns
    -------
    ClosedJaxpr
        Inputs: k coordinates (n,) and the parameters (p,); output: (n,).
    """
    with jax.enable_x64(True):
        row_values = jax.core.ShapedArray((n_rows,), jnp.float64)
        params = jax.core.ShapedArray((len(spec.names),), jnp.float64)

        def model(coords: tuple[jax.Array, ...], params: jax.Array) -> jax.Array:
            return call_model(spec, coords, params)

        return jax.make_jaxpr(model)((row_values,) * spec.n_coords, params)


def operations_of(models: Iterable[ModelSpec]) -> Iterator[JaxprEqn]:
    """All operations of models, each traced for the rows of its first trace, or of its series."""
    for model in models:
        rows = model.rows if model.series is None else model.series.rows
        yield from operations(trace_model(model, rows))


def trace_call(spec: ModelSpec, n: int) -> ClosedJaxpr:
    """Trace a model for n rows, with x and the parameters as separate inputs."""
    row_values, number = (jax.core.ShapedArray(shape, jnp.float64) for shape in ((n,), ()))
    stacked = jax.core.ShapedArray((spec.n_coords, n), jnp.float64)
    x = model_input(spec.structure, (row_values,) * spec.n_coords, lambda _: stacked)

    def model(x: Any, *scalars: jax.Array) -> jax.Array:
        return _value(spec, x, list(scalars), n)

    with jax.enable_x64(True):
        return jax.make_jaxpr(model)(x, *(number,) * len(spec.names))


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _pickled(function: Callable[..., Any], token: str) -> bytes | None:
    try:
        blob: bytes = cloudpickle.dumps(function)
    except UNPICKLABLE:
        return None
    return _blobs.keep(token, blob) if len(blob) <= KEPT_BLOB else blob
