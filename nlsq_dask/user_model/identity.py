"""Identity of a model: when two functions are the same model, in one process or in several.

A compiled kernel may be used again only for a model that computes the same values. An object's
``id`` is not enough, since a callable's attributes and a closure's cells change. A pickle is not
enough either: a function of an importable module is pickled as its name alone, without its module's
globals.

The identity of a function covers everything that its value depends on: bytecode and constants,
defaults, closure cells, attributes, and the values of the globals in its code. Functions and
classes among these are followed in turn. File names and line numbers do not count, so that a
notebook cell that runs again gives the same model. Code of installed libraries is identified by its
name.

A worker imports such a module itself, and the module's globals may have other values there.
Therefore the identity lists the plain data that a model reads from modules. The worker compares
these data when it loads the model.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cloudpickle
import jax
import numpy as np

from nlsq_dask.user_model.closed import is_closed_code, is_closed_value, names_of

# Errors of pickling. A RecursionError comes from graphs of objects deeper than the stack, the
# others come from the objects' own methods.
UNPICKLABLE = (
    pickle.PicklingError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

_LIBRARIES = frozenset(sys.stdlib_module_names) | {
    "cloudpickle",
    "jax",
    "jaxlib",
    "nlsq_dask",
    "numpy",
    "scipy",
}
_INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_LRU_WRAPPER = type(functools.lru_cache(len))


class ModuleData(NamedTuple):
    """Plain data that a model reads from an importable module."""

    module: str
    name: str
    digest: str


class Identity(NamedTuple):
    """The identity of a model.

    Attributes
    ----------
    digest : str or None
        SHA-256 of everything that the model's value depends on; None if a part cannot be pickled.
    module_data : tuple of ModuleData
        Plain data that the model reads from modules that are pickled by name.
    uses_jax : bool
        Whether the model can reach JAX, or a library that imports JAX.
    modules : tuple of str, or None
        Modules that the names of a closed model stand for. The trace of a closed model depends on
        the digest, on these modules and on JAX's settings alone. None for an open model.
    """

    digest: str | None
    module_data: tuple[ModuleData, ...]
    uses_jax: bool
    modules: tuple[str, ...] | None


def identify(function: Callable[..., Any]) -> Identity:
    """Find the identity of a model as it is now.

    Parameters
    ----------
    function : callable

    Returns
    -------
    Identity
    """
    stream = io.BytesIO()
    pickler = _IdentityPickler(stream, _own_packages(function))
    try:
        pickler.dump(function)
    except UNPICKLABLE:
        return Identity(None, (), uses_jax=True, modules=None)
    return Identity(
        hashlib.sha256(stream.getbuffer()).hexdigest(),
        tuple(sorted(set(pickler.module_data))),
        pickler.uses_jax,
        tuple(pickler.modules) if pickler.is_closed else None,
    )


def changed_data(recorded: tuple[ModuleData, ...]) -> list[str]:
    """Names of module data with other values in this process than at the time of the record."""
    return [
        f"{module}.{name}"
        for module, name, digest in recorded
        if module in sys.modules and _data_digest(_find(module, name)) != digest
    ]


class _IdentityPickler(cloudpickle.Pickler):  # type: ignore[misc]  # its class has no types
    """Writes everything that a function's value depends on, to be hashed and never loaded.

    Parts are written as the state of an empty tuple. Pickle remembers an object before it writes
    its state, so that functions that refer to each other end the recursion.
    """

    def __init__(self, stream: io.BytesIO, own: frozenset[str]) -> None:
        super().__init__(stream)
        self._own = own
        self.module_data: list[ModuleData] = []
        self.uses_jax = False
        self.is_closed = True
        self.modules: list[str] = []

    def reducer_override(self, obj: Any) -> Any:
        name = obj.__name__ if isinstance(obj, types.ModuleType) else type(obj).__module__
        owner = getattr(obj, "__module__", None)
        self.uses_jax |= _imports_jax(name) or (isinstance(owner, str) and _imports_jax(owner))
        parts = self._parts(obj)
        if isinstance(obj, types.ModuleType):  # in a variable of an outer function
            self.modules.append(name)
        if self.is_closed and not (isinstance(obj, types.FunctionType) and isinstance(parts, dict)):
            self.is_closed = is_closed_value(obj)
        return super().reducer_override(obj) if parts is None else (tuple, (), parts)

    def _parts(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return _code_parts(obj)
        if isinstance(obj, types.FunctionType):
            return self._function_parts(obj) if self._is_followed(obj.__module__) else None
        if isinstance(obj, type):
            return self._class_parts(obj) if self._is_followed(obj.__module__) else None
        if isinstance(obj, functools.cached_property):  # its lock cannot be pickled
            return ["cached_property", obj.func]
        if isinstance(obj, _LRU_WRAPPER):
            return ["lru_cache", obj.__wrapped__]
        return self._library_name(obj)

    def _function_parts(self, function: types.FunctionType) -> dict[str, Any]:
        self.is_closed = self.is_closed and is_closed_code(function)
        return {
            "code": function.__code__,
            "defaults": (function.__defaults__, function.__kwdefaults__),
            "closure": [_cell_contents(cell) for cell in function.__closure__ or ()],
            "attributes": function.__dict__,
            "globals": dict(self._named_globals(function)),
        }

    def _named_globals(self, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        names = names_of(function.__code__)
        by_name = _is_importable(function)
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                if by_name:
                    self._record(function.__module__, name, value)
            elif name in sys.modules:  # imported within the function
                value = sys.modules[name]
            else:
                continue
            if isinstance(value, types.ModuleType):
                self.modules.append(value.__name__)
                self.uses_jax |= _imports_jax(value.__name__)
                yield from self._module_values(value, names, frozenset())
            else:
                yield name, value

    def _module_values(
        self, module: types.ModuleType, names: tuple[str, ...], seen: frozenset[str]
    ) -> Iterator[tuple[str, Any]]:
        """Attributes of a module that ``module.name`` in the code may mean."""
        if not self._is_followed(module.__name__) or module.__name__ in seen:
            return
        for name in names:
            value = vars(module).get(name)
            if isinstance(value, types.ModuleType):
                yield from self._module_values(value, names, seen | {module.__name__})
            elif name in vars(module):
                self._record(module.__name__, name, value)
                yield f"{module.__name__}.{name}", value

    def _class_parts(self, cls: type) -> dict[str, Any]:
        content = {n: v for n, v in vars(cls).items() if _is_class_content(n, v)}
        if _is_importable(cls):
            for name, value in content.items():
                self._record(cls.__module__, f"{cls.__qualname__}.{name}", value)
        return {
            "name": cls.__qualname__,
            "bases": cls.__bases__,
            "attributes": {name: _functions_of(value) for name, value in content.items()},
        }

    def _record(self, module: str, name: str, value: Any) -> None:
        digest = _data_digest(value)
        if digest is not None:
            self.module_data.append(ModuleData(module, name, digest))

    def _library_name(self, obj: Any) -> Any:
        """Name of a library's object, such as ``jax.numpy.exp``, which pickles by value."""
        module = getattr(obj, "__module__", None)
        name = getattr(obj, "__name__", None)
        if not isinstance(module, str) or not isinstance(name, str) or self._is_followed(module):
            return None
        found = getattr(sys.modules.get(module), name, None)
        return [module, name] if found is obj else None

    def _is_followed(self, module: str | None) -> bool:
        package = (module or "").partition(".")[0]
        return package in self._own or not _is_library(package)


def _code_parts(code: types.CodeType) -> list[Any]:
    return [
        code.co_code,
        # Sets have another order in each process.
        [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts],
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        code.co_exceptiontable,
    ]


def _cell_contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # assigned later, or never
        return None


def _functions_of(value: Any) -> Any:
    """The functions of a method or a property; other values unchanged."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    return value


def _is_class_content(name: str, value: Any) -> bool:
    """Whether an entry of a class is the user's, and not Python's bookkeeping."""
    if isinstance(value, types.FunctionType):
        return True
    bookkeeping = name == "_abc_impl" or (name.startswith("__") and name.endswith("__"))
    return not bookkeeping and not isinstance(
        value, types.MemberDescriptorType | types.GetSetDescriptorType
    )


def _own_packages(function: Any) -> frozenset[str]:
    """Packages of the model's own code, which are followed even if installed."""
    packages = set()
    while isinstance(function, functools.partial):
        function = function.func
    for part in (function, getattr(function, "__func__", None), type(function)):
        module = getattr(part, "__module__", None) or ""
        packages.add(module.partition(".")[0])
    return frozenset(packages - _LIBRARIES)


@functools.cache
def _is_library(package: str) -> bool:
    if package == "__main__" or package not in sys.modules:
        return package in _LIBRARIES
    file = getattr(sys.modules[package], "__file__", None) or ""
    return package in _LIBRARIES or file.startswith(_INSTALLED)


@functools.cache
def _imports_jax(module: str) -> bool:
    """Whether a module belongs to JAX, or to a library that imports JAX by name."""
    package = module.partition(".")[0]
    if package in ("jax", "jaxlib", "nlsq_dask"):
        return True
    if not _is_library(package) or package in _LIBRARIES:
        return False
    values = list(vars(sys.modules[module]).values()) if module in sys.modules else []
    return any(
        isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "jax"
        for value in values
    )


def _is_importable(obj: types.FunctionType | type) -> bool:
    """Whether a function or class is pickled as its name."""
    return obj.__module__ != "__main__" and _find(obj.__module__, obj.__qualname__) is obj


def _find(module: str | None, qualname: str) -> Any:
    """Object of a loaded module by its dotted name, or None."""
    found: Any = sys.modules.get(module or "")
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _data_digest(value: Any) -> str | None:
    """Digest of numbers, strings, arrays and sequences of them, the same in every process."""
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        if array.dtype.hasobject:
            return None
        content = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
    elif isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        content = repr(value).encode()
    elif isinstance(value, tuple | list):
        parts = [_data_digest(part) for part in value]
        if None in parts:
            return None
        content = f"{type(value).__name__}{parts}".encode()
    else:
        return None
    return hashlib.sha256(content).hexdigest()
