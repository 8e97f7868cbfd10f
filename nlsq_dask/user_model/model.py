"""The user's model: how it is called, and what makes it the same model.

A model is ``f(x; θ) = function(x, θ_1, ..., θ_p)``. ``ModelSpec`` is all that the rest of the
package holds of it: a small value that can be compared, hashed and sent to workers. The function
itself is found through a registry of the process, since a closure that travels through Dask is a
new object each time it arrives, and JAX compiles anew for each object.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import cloudpickle
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.user_model.identity import UNPICKLABLE, ModuleData, changed_data, identify
from nlsq_dask.user_model.loss import LINEAR, Loss, check_loss
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model_value import ModelErrors, Returns, checked_value
from nlsq_dask.user_model.numpy_models import call_with_traced, watch_jax
from nlsq_dask.user_model.signature import model_label, parameter_names
from nlsq_dask.user_model.trace_errors import is_mixed
from nlsq_dask.user_model.traces import Content, content, count_operations, digest

Structure = Literal["single", "stacked", "tuple"]
Style = Literal["jax", "numpy"]

# Functions kept in one process. Each may hold arrays in its closure and, through JAX, compiled
# kernels of some megabytes; more than 64 models are hardly fitted in turn, and one that was
# forgotten only costs its compilation again.
MAX_MODELS = 64

# Findings about models (a word each) may outlive the models themselves.
MAX_STYLES = 4096

# Traces of models kept to be compared with. Each is some kilobytes.
MAX_TRACES = 512

# Bytes of a pickled function up to which it is kept, for the next fit of the same model.
KEPT_BLOB = 1 << 16

# Rows of the trial call. A prime, so that no reshape of the model's own divides it, and unlikely
# to be the size of anything else.
TRIAL_ROWS = 1009

# Rows of the calls that come before, by which a loop over rows shows: it has an operation more for
# each row. Compiling one takes some 50 ms a row, so that such a loop is not even tried. Algorithms
# that halve the rows (associative scans) have some 10 to 30 operations more for twice the rows, and
# are told apart by the last number where it is not plain before.
LOOP_ROWS = (7, 31, 67)
MANY_A_ROW = 10


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
    rows : int
        Number of rows for which the function was traced to be compared with later traces.
    traced : str
        Version of JAX and digest of that trace.
    is_numpy : bool
        Whether the function may be called with NumPy arrays at no great cost: it uses no JAX,
        whose every operation is compiled when it is first called.
    whole : str or None
        Why the function is to be called with all rows at once, to be read after "it".
    source : str
        The token before the function was traced, as version 0.1 made it.
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
    rows: int = field(default=TRIAL_ROWS, compare=False)
    traced: str = field(default="", compare=False)
    is_numpy: bool = field(default=False, compare=False)
    whole: str | None = field(default=None, compare=False)
    source: str = field(default="", repr=False, compare=False)

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
        found = identity.digest or uuid.uuid4().hex
        token = _sha256(f"{found} {structure} {k} {len(names)} {returns}")
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
        )
        return spec.named(token)

    def named(self, token: str) -> Self:
        """The same spec under another token, for which this very function is called from now on."""
        if self._local is not None:
            _functions.keep(token, _Function(self._local)).function = self._local
        return replace(self, token=token)


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
_blobs: LruTable[str, bytes] = LruTable(MAX_MODELS)
_examinations: LruTable[str, _Examination] = LruTable(MAX_STYLES)
_just_traced: LruTable[str, bool] = LruTable(MAX_MODELS)
_traces: LruTable[tuple[str, str, int, Content], str] = LruTable(MAX_TRACES)


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
    return _examined(ModelSpec.of(function, names, structure, n_coords), n_rows)


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
        return _examined(spec, n_rows)
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
        spec = _examined(ModelSpec.of(loss, (), "single", 1, "loss"), None)
    except _errors.ModelError as error:
        raise _errors.of_argument(error, "loss", label) from error.__cause__
    return Loss(label, scale, spec)


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
    x: Any = coords
    if spec.structure == "single":
        x = coords[0]
    elif spec.structure == "stacked":
        x = jnp.stack(coords)
    # As params[i], without its search for what the index is.
    scalars = [lax.squeeze(lax.slice(params, (i,), (i + 1,)), (0,)) for i in range(len(spec.names))]
    for i in spec.constant:
        scalars[i] = lax.stop_gradient(scalars[i])
    return _value(spec, x, scalars, coords[0].shape[0])


def _value(spec: ModelSpec, x: Any, scalars: list[jax.Array], n: int) -> jax.Array:
    """Value of a model at its x and its parameters, one by one."""
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


@dataclass(frozen=True)
class _Examination:
    """How a model is to be traced.

    ``rows`` is the number of rows to trace it for, None where it takes as many as the data have
    and no other number.
    """

    style: Style
    rows: int | None
    is_numpy: bool


def _examined(spec: ModelSpec, n_rows: int | None) -> ModelSpec:
    """The spec of a model as it is now, with all that its value follows from in its token.

    The model is traced anew each time: what it reads from files, from the environment, or from
    the settings of a library is known by what was traced alone.
    """
    base = spec
    known = _examinations.get(base.token)
    found = None if known is None else _trial(_as_examined(base, known, n_rows))
    if known is None or found is None or isinstance(found, _errors.ModelError):
        known, found = _examine(base, n_rows)
        _examinations.put(base.token, known)
    spec = _as_examined(base, known, n_rows)
    seen = content(found)
    name = _traces.get((base.token, spec.style, spec.rows, seen))
    is_new = name is None
    if name is None:
        again = _trial(spec)
        if isinstance(again, _errors.ModelError) or content(again) != seen:
            raise _errors.model_random(spec.label)
        name = _traces.keep((base.token, spec.style, spec.rows, seen), digest(seen))
    spec = replace(spec.named(_sha256(f"{base.token} {name}")), traced=f"{jax.__version__} {name}")
    if is_new:
        _just_traced.put(spec.token, True)
    return spec


def _as_examined(spec: ModelSpec, found: _Examination, n_rows: int | None) -> ModelSpec:
    rows = found.rows or n_rows or TRIAL_ROWS
    return replace(spec, style=found.style, rows=rows, is_numpy=found.is_numpy)


def _examine(spec: ModelSpec, n_rows: int | None) -> tuple[_Examination, ClosedJaxpr]:
    """Trace the model as it is, or else through NumPy's dispatch."""
    styles = (spec, replace(spec, style="numpy"))
    errors = []
    for trial in styles:
        found = _first_trial(replace(trial, rows=TRIAL_ROWS))
        if not isinstance(found, _errors.ModelError):
            return _written_for_numpy(replace(trial, rows=TRIAL_ROWS), TRIAL_ROWS, found)
        errors.append(found)
    for error in errors:
        if isinstance(error, _errors.RowLoopError):
            raise error
    if n_rows is not None:
        for trial in styles:
            found = _trial(replace(trial, rows=n_rows))
            if not isinstance(found, _errors.ModelError):
                if count_operations(found) >= max(n_rows, LOOP_ROWS[-1]):
                    raise _errors.untraceable_loop(spec.label, "")
                return _written_for_numpy(replace(trial, rows=n_rows), None, found)
    # The error to report is the one of the style that the model is written in.
    first, second = errors
    needs_numpy = isinstance(first, _errors.UntraceableModelError) and not is_mixed(second)
    if needs_numpy or isinstance(second, _errors.UntraceableModelError):
        raise second
    raise first


def _written_for_numpy(
    spec: ModelSpec, rows: int | None, found: ClosedJaxpr
) -> tuple[_Examination, ClosedJaxpr]:
    """Tell a model that JAX traces as it is from one that is written for NumPy's arrays.

    Operators alone are common to both, and ``z += c`` is not: NumPy changes the array under all of
    its names, and JAX makes a new one. A model that calls no function of JAX means NumPy's.
    """
    with watch_jax() as watch:
        as_numpy = _trial(replace(spec, style="numpy"))
    style, is_numpy = spec.style, spec.is_numpy and not watch.used
    if not isinstance(as_numpy, _errors.ModelError):
        is_numpy = not watch.used
        if is_numpy and style == "jax" and content(as_numpy) != content(found):
            style, found = "numpy", as_numpy
    return _Examination(style, rows, is_numpy), found


def _first_trial(spec: ModelSpec) -> ClosedJaxpr | _errors.ModelError:
    """What a model computes, or why it cannot be traced; loops over rows are refused early."""
    try:
        if _loops(spec):
            raise _errors.untraceable_loop(spec.label, "")
    except _errors.ModelError as error:
        return error
    return _trial(spec)


def _trial(spec: ModelSpec) -> ClosedJaxpr | _errors.ModelError:
    """What a model computes for ``spec.rows`` rows, or the error of the call."""
    try:
        return _trace_call(spec, spec.rows)
    except _errors.ModelError as error:
        return error


def _loops(spec: ModelSpec) -> bool:
    """Whether a model has an operation for each row: a loop over rows in Python."""
    try:
        few, more = (count_operations(_trace_call(spec, n)) for n in LOOP_ROWS[:2])
        a_row = (more - few) / (LOOP_ROWS[1] - LOOP_ROWS[0])
        if a_row < 1 or a_row > MANY_A_ROW:
            return a_row > MANY_A_ROW
        last = count_operations(_trace_call(spec, LOOP_ROWS[2]))
    except _errors.RowLoopError:
        raise
    except _errors.ModelError:  # it does not take so few rows
        return False
    return last - more >= LOOP_ROWS[2] - LOOP_ROWS[1]


def _trace_call(spec: ModelSpec, n: int) -> ClosedJaxpr:
    """What a model computes of its x and its parameters, one by one, for n rows."""
    row_values, number = (jax.core.ShapedArray(shape, jnp.float64) for shape in ((n,), ()))
    x: Any = (row_values,) * spec.n_coords
    if spec.structure == "single":
        x = row_values
    elif spec.structure == "stacked":
        x = jax.core.ShapedArray((spec.n_coords, n), jnp.float64)

    def model(x: Any, *scalars: jax.Array) -> jax.Array:
        return _value(spec, x, list(scalars), n)

    with jax.enable_x64(True):
        return jax.make_jaxpr(model)(x, *(number,) * len(spec.names))


def _loaded(spec: ModelSpec) -> Callable[..., Any]:
    return spec.function


def check_trace(spec: ModelSpec) -> None:
    """Check, before a model is compiled, that it computes here what the fit was prepared for.

    Another process may have other files and other settings, and the same one may have changed
    them since.

    Raises
    ------
    ModelError
        If what is traced now differs.
    """
    # Unpickled before a trace begins: a module that is imported within one would compute symbols.
    _loaded(spec)
    version, _, name = spec.traced.partition(" ")
    if _just_traced.pop(spec.token):
        version = ""  # compiled for the first time, right after it was traced
    if version == jax.__version__ and digest(content(_trace_call(spec, spec.rows))) != name:
        raise _errors.model_computes_otherwise(spec.label)
    for part in (spec.jacobian, spec.loss.function):
        if part is not None:
            check_trace(part)


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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pickled(function: Callable[..., Any], token: str) -> bytes | None:
    try:
        blob: bytes = cloudpickle.dumps(function)
    except UNPICKLABLE:
        return None
    return _blobs.keep(token, blob) if len(blob) <= KEPT_BLOB else blob
