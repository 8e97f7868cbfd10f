"""Models written with NumPy, traced by JAX as they are.

JAX's tracers do not take part in NumPy's dispatch, so that ``np.exp(tracer)`` fails. A
``TracedArray`` holds a tracer and takes part (NumPy Enhancement Proposals 13 and 18): NumPy passes
every ufunc and every array function to it, and it calls the function of the same name in
``jax.numpy`` or ``jax.scipy.special``.

NumPy arrays can change in place, and tracers cannot. A TracedArray replaces its tracer instead, so
that all holders of the TracedArray see the change. A view has no tracer of its own. It reads its
base again after each change, and writes to its base (``traced_views``). If only the layout in
memory decides whether NumPy makes a view or a copy, a change in place is refused.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.user_model.trace_errors import TracedValueError, jax_twin
from nlsq_dask.user_model.traced_views import View, is_basic, view_of_index, views_of_function

# Longest array that Python code may loop over. Longer loops are loops over rows, which JAX would
# unroll. An operation takes some 0.1 ms to trace and more to compile: 256 turns take a second.
MAX_UNROLLED = 256

# fmt: off
_METHODS = frozenset([
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "conj", "conjugate", "copy",
    "cumprod", "cumsum", "diagonal", "dot", "flatten", "max", "mean", "min", "prod", "ravel",
    "repeat", "reshape", "round", "searchsorted", "squeeze", "std", "sum", "swapaxes", "take",
    "trace", "transpose", "var",
])
_PROPERTIES = frozenset(["T", "imag", "real"])

# Functions of sequences of arrays. For all other functions a list becomes an array.
_TAKE_SEQUENCES = frozenset([
    "block", "broadcast_arrays", "column_stack", "concat", "concatenate", "dstack", "hstack",
    "meshgrid", "select", "stack", "vstack",
])
# fmt: on


# Functions for which a tuple becomes an array. Other functions take shapes and axes as tuples.
_TAKE_NO_SHAPES = frozenset(["convolve", "digitize", "interp", "polyval", "searchsorted"])


class Watch(threading.local):
    """Whether a function of JAX received a TracedArray, or returned an array."""

    used = False


_watch = Watch()


@contextmanager
def watch_jax() -> Iterator[Watch]:
    """Watch whether a model that is called with TracedArrays uses JAX itself."""
    _watch.used = False
    yield _watch


def call_with_traced(function: Callable[..., Any], x: Any, params: Sequence[jax.Array]) -> Any:
    """Call a model written with NumPy on JAX tracers.

    Parameters
    ----------
    function : callable
        ``function(x, *params)``.
    x : jax.Array or tuple of jax.Array
        Coordinates.
    params : sequence of jax.Array, shape ()
        Parameters.

    Returns
    -------
    object
        The model's value, with JAX arrays in place of TracedArrays.

    Raises
    ------
    TracedValueError
        If the model does something with a value that cannot be traced.
    """
    value = function(wrap(x), *(TracedArray(value) for value in params))
    if isinstance(value, jax.Array):
        _watch.used = True
    return unwrap(value)


class TracedArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A JAX array that answers NumPy's functions and operators.

    Parameters
    ----------
    value : jax.Array
        Traced or not.
    base : TracedArray, optional
        The array that would share its memory with this array in NumPy.
    view : View, optional
        How to read and write this array through its base; None if it may also be a copy.
    """

    def __init__(
        self, value: jax.Array, base: TracedArray | None = None, view: View | None = None
    ) -> None:
        self._value = value
        self._base = base
        self._view = view
        self._changes = 0
        self._read_at = self.changed()
        self._is_shared = base is not None and view is None
        if self._is_shared and base is not None:
            base.share()

    def share(self) -> None:
        """Refuse changes from now on: another array may share the memory."""
        self._is_shared = True
        if self._base is not None:
            self._base.share()

    def changed(self) -> int:
        """Number of changes of the memory."""
        return self._changes if self._base is None else self._base.changed()

    @property
    def value(self) -> jax.Array:
        """The JAX array."""
        if self._base is None or self._view is None or self._read_at == self.changed():
            return self._value
        # Not stored: the value may belong to an inner trace, and must not outlive it.
        return self._view.read(self._base.value)

    def replace(self, value: jax.Array) -> None:
        """Change the content in place."""
        if self.ndim == 0:
            raise TracedValueError("assignment", "changes a scalar in place")
        if self._is_shared:
            raise TracedValueError(
                "assignment", "changes in place an array that may share memory with another"
            )
        if not np.can_cast(value.dtype, self.dtype, "same_kind"):
            raise TypeError(f"an array of {self.dtype} cannot be changed in place to {value.dtype}")
        value = jnp.broadcast_to(value, self.shape).astype(self.dtype)
        if self._base is None or self._view is None:
            self._value = value
            self._changes += 1
        elif self._view.write is None:
            raise TracedValueError("assignment", "changes in place a view that is read-only")
        else:
            self._base.replace(self._view.write(self._base.value, value))

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,
        out: tuple[Any, ...] | None = None,
        where: Any = True,
        dtype: Any = None,
        **options: Any,
    ) -> Any:
        function = jax_twin(ufunc)
        if method == "at":
            raise TracedValueError("assignment", f"calls numpy.{ufunc.__name__}.at")
        if method != "__call__":
            function = getattr(function, method, None)
            if function is None:
                raise TracedValueError("function", f"numpy.{ufunc.__name__}.{method}")
        for name in ("casting", "order", "subok"):  # storage, with no effect on values
            options.pop(name, None)
        if any(isinstance(part, jax.Array) for part in inputs):
            _watch.used = True
        result = function(*_as_arrays(unwrap(inputs)), **unwrap(options))
        if dtype is not None:
            result = result.astype(dtype)
        if out is None:
            if where is not True:
                raise TracedValueError(
                    "assignment", f"calls numpy.{ufunc.__name__} with where= but without out="
                )
            return wrap(result)
        return _write(result, out, unwrap(where))

    def __array_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name = func.__name__
        special = _SPECIAL.get(name)
        if special is not None:
            return wrap(special(*args, **kwargs))
        namespace: Any = jnp
        for part in func.__module__.split(".")[1:]:
            namespace = getattr(namespace, part, None)
        twin = getattr(namespace, name, None)
        if twin is None:
            raise TracedValueError("function", f"{func.__module__}.{name}")
        views = views_of_function(name, args, kwargs)
        first = args[0] if args else None
        if any(isinstance(part, jax.Array) for part in args):
            _watch.used = True
        out = kwargs.pop("out", None) if isinstance(kwargs.get("out"), TracedArray) else None
        args, kwargs = unwrap(args), unwrap(kwargs)
        if name not in _TAKE_SEQUENCES:
            args = _as_arrays(args, name in _TAKE_NO_SHAPES)
        try:
            result = twin(*args, **kwargs)
        except jax.errors.ConcretizationTypeError as error:
            # The size of the result depends on values, as for numpy.unique.
            raise TracedValueError("selection") from error
        if out is not None:
            out.replace(result)
            return out
        return _derived(first, views, result)

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            return _derived(self, views_of_function(name, (self,), {}), getattr(self.value, name))
        if name in _METHODS:
            return lambda *args, **kwargs: _derived(
                self,
                views_of_function(name, (self, *args), kwargs, method=True),
                getattr(self.value, name)(*unwrap(args), **unwrap(kwargs)),
            )
        raise AttributeError(
            f"arrays of a traced model have no attribute {name!r}: use a function of jax.numpy"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""
        return self._value.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._value.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._value.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._value.dtype

    def fill(self, value: Any) -> None:
        """Set all elements."""
        self.replace(jnp.asarray(unwrap(value), self.dtype))

    def sort(self, axis: int = -1) -> None:
        """Sort in place."""
        self.replace(jnp.sort(self.value, axis=axis))

    def __jax_array__(self) -> jax.Array:
        _watch.used = True
        return self.value

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if len(self) > MAX_UNROLLED:
            raise TracedValueError("loop")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        result = self.value[unwrap(index)]
        if result.ndim == 0 or not is_basic(index):
            return TracedArray(result)
        return TracedArray(result, self, view_of_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index, value = unwrap(index), jnp.asarray(unwrap(value), self.dtype)
        if isinstance(index, jax.Array) and index.dtype == bool:
            if value.ndim > 0:
                raise TracedValueError(
                    "assignment", "assigns an array to rows that a condition selects"
                )
            mask = index.reshape(index.shape + (1,) * (self.ndim - index.ndim))
            self.replace(jnp.where(mask, value, self.value))
        else:
            self.replace(self.value.at[index].set(value))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        raise TracedValueError("value", "a NumPy array")

    def __bool__(self) -> NoReturn:
        raise TracedValueError("branch")

    def __float__(self) -> NoReturn:
        raise TracedValueError("value", "a float")

    def __int__(self) -> NoReturn:
        raise TracedValueError("value", "an int")

    def __index__(self) -> NoReturn:
        raise TracedValueError("value", "an index")

    def __complex__(self) -> NoReturn:
        raise TracedValueError("value", "a complex number")

    def __format__(self, spec: str) -> str:
        if spec:
            raise TracedValueError("text")
        return str(self)

    def item(self) -> NoReturn:
        """Refuse: there is no number yet."""
        raise TracedValueError("value", "a number")

    def tolist(self) -> NoReturn:
        """Refuse: there are no numbers yet."""
        raise TracedValueError("value", "a list")


# JAX's functions (jit, vmap, scan, most of jax.numpy) accept a registered class.
jax.tree_util.register_pytree_node(
    TracedArray,
    lambda array: ((array.__jax_array__(),), None),
    lambda _, values: TracedArray(*values),
)


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[TracedArray, Any], TracedArray]:
    def change(self: TracedArray, other: Any) -> TracedArray:
        result: TracedArray = operation(self, other)
        if self.ndim == 0:  # NumPy's scalars are immutable, and the name gets a new value
            return result
        self.replace(result.value)
        return self

    return change


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(TracedArray, f"__i{_name}__", _in_place(getattr(operator, f"__{_name}__")))


def wrap(value: Any) -> Any:
    """Replace JAX arrays by TracedArrays, also in sequences."""
    if isinstance(value, jax.Array):
        return TracedArray(value)
    if isinstance(value, tuple | list):
        parts = [wrap(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _derived(array: Any, views: Sequence[View | None] | None, result: Any) -> Any:
    """Result of a function of an array, with views of the array where NumPy returns views."""
    if views is None or not isinstance(array, TracedArray):
        return wrap(result)
    if isinstance(result, jax.Array):
        return TracedArray(result, array, views[0])
    known = views if len(views) == len(result) else [None] * len(result)
    parts = [TracedArray(part, array, view) for part, view in zip(result, known, strict=True)]
    return type(result)(parts)


def unwrap(value: Any) -> Any:
    """Replace TracedArrays by JAX arrays, also in sequences, mappings and callables."""
    if isinstance(value, TracedArray):
        return value.value
    if isinstance(value, tuple | list):
        parts = [unwrap(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: unwrap(part) for key, part in value.items()}
    if callable(value) and not isinstance(value, type | np.generic):
        return lambda *args, **kwargs: unwrap(value(*wrap(args), **wrap(kwargs)))
    return value


def _as_arrays(args: tuple[Any, ...], all_tuples: bool = False) -> tuple[Any, ...]:
    """Arguments with arrays in place of lists, which jax.numpy does not accept."""

    def is_array(arg: Any) -> bool:
        if isinstance(arg, tuple):  # of ints it may be a shape or axes
            return all_tuples or any(isinstance(part, jax.Array | float) for part in arg)
        return isinstance(arg, list)

    return tuple(jnp.asarray(arg) if is_array(arg) else arg for arg in args)


def _write(result: Any, out: tuple[Any, ...], where: Any) -> Any:
    """Write results of a ufunc to the arrays given as ``out``."""
    results = result if isinstance(result, tuple) else (result,)
    for target, value in zip(out, results, strict=True):
        if not isinstance(target, TracedArray):
            raise TracedValueError("assignment", "writes to a NumPy array given as out=")
        target.replace(value if where is True else jnp.where(where, value, target.value))
    return out[0] if len(out) == 1 else out


def _piecewise(
    x: TracedArray, condlist: Any, funclist: Sequence[Any], *args: Any, **kwargs: Any
) -> jax.Array:
    """``numpy.piecewise``: all functions on all of x; the last true condition decides."""
    if not isinstance(condlist, list | tuple):
        conditions = unwrap(condlist)
        condlist = [conditions] if conditions.ndim == x.ndim else list(conditions)
    if len(funclist) - len(condlist) not in (0, 1):
        raise ValueError(
            f"with {len(condlist)} condition(s), either {len(condlist)} or {len(condlist) + 1} "
            "functions are expected"
        )

    def value(function: Any) -> Any:
        return unwrap(function(x, *args, **kwargs) if callable(function) else function)

    default = value(funclist[-1]) if len(funclist) > len(condlist) else 0.0
    result = jnp.broadcast_to(default, x.shape)
    for condition, function in zip(condlist, funclist, strict=False):
        result = jnp.where(unwrap(condition), value(function), result)
    return result.astype(x.dtype)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, **kwargs: Any) -> Any:
    """``numpy.clip``; each bound has two names."""
    low, high = kwargs.pop("min", a_min), kwargs.pop("max", a_max)
    out = kwargs.pop("out", None)
    result = jnp.clip(unwrap(a), unwrap(low), unwrap(high), **unwrap(kwargs))
    return result if out is None else _write(result, (out,), True)


def _nan_to_num(x: Any, copy: bool = True, *args: Any, **kwargs: Any) -> Any:
    """``numpy.nan_to_num``, which may change its argument."""
    result = jnp.nan_to_num(unwrap(x), True, *unwrap(args), **unwrap(kwargs))
    if copy or not isinstance(x, TracedArray):
        return result
    x.replace(result)
    return x


def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    """``numpy.copyto``."""
    if not isinstance(dst, TracedArray):
        raise TracedValueError("assignment", "writes to a NumPy array with numpy.copyto")
    del casting
    dst.replace(jnp.where(unwrap(where), jnp.asarray(unwrap(src), dst.dtype), dst.value))


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise TracedValueError("assignment", f"calls numpy.{name}")

    return refuse


_SPECIAL: dict[str, Callable[..., Any]] = {
    "piecewise": _piecewise,
    "clip": _clip,
    "copyto": _copyto,
    "nan_to_num": _nan_to_num,
    **{name: _refuse(name) for name in ("fill_diagonal", "place", "put", "putmask")},
}
