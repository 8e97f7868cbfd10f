"""Errors about models that JAX cannot trace: the line, the call, and the JAX function to use.

JAX calls a model once with symbols to find out its operations. Code that needs the numbers behind
the symbols (``math.exp``, ``if x > 0``, ``numpy.array``) fails within a library, with an error
about tracers. This module turns such an error into an error about the model. The deepest line of
the traceback outside of libraries is the model's line, and Python's positions in that line give the
expression that failed.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import math
import operator
import pkgutil
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from nlsq_dask import _errors

# fmt: off
Kind = Literal[
    "assignment", "branch", "function", "index", "integer", "key", "loop", "selection", "text",
    "value",
]
# fmt: on

_SITE = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_LIBRARY_FOLDERS = (
    str(Path(__file__).parents[1]),
    *(str(Path(site, name)) for site in _SITE for name in ("jax", "jaxlib", "numpy", "scipy")),
)
_STDLIB = sysconfig.get_path("stdlib")

# JAX functions whose names differ from the names in other modules.
_RENAMED = {
    **{f"builtins.{name}": "asarray" for name in ("bool", "complex", "float", "int")},
    "builtins.max": "maximum",
    "builtins.min": "minimum",
    "builtins.sorted": "sort",
    "math.fsum": "sum",
    "math.lgamma": "gammaln",
    "numpy.polynomial.polynomial.polyval": "polyval(c[::-1], x), with the coefficients in reverse "
    "order",
    "scipy.special.psi": "digamma",
}

# Packages of JAX with the functions of another module, in the order of search.
_PACKAGES = {
    "builtins": ("jax.numpy",),
    "cmath": ("jax.numpy",),
    "math": ("jax.numpy", "jax.scipy.special"),
    "numpy.polynomial.polynomial": ("jax.numpy",),
    "scipy.fft": ("jax.numpy.fft",),
    "scipy.linalg": ("jax.scipy.linalg", "jax.numpy", "jax.numpy.linalg"),
    "scipy.special": ("jax.scipy.special", "jax.numpy"),
}

# Errors that need only the model's name and the line.
_PLAIN_ERRORS: dict[Kind, Callable[[str, str], _errors.ModelError]] = {
    "branch": _errors.untraceable_branch,
    "index": _errors.untraceable_index,
    "integer": _errors.untraceable_integer,
    "loop": _errors.untraceable_loop,
    "selection": _errors.untraceable_selection,
    "text": _errors.untraceable_text,
}

# Functions that need the integer itself.
_OF_INTEGERS = (int, range, operator.index, np.arange, math.comb, math.factorial)

# Names of traced values in Python's error messages.
_TRACED_NAMES = ("Tracer", "TracedArray", "Traced<")


class TracedValueError(TypeError):
    """A traced value was used in a way that only numbers allow.

    Parameters
    ----------
    kind : str
        The kind of use.
    what : str
        The wanted type, the called function, or the assignment.
    """

    def __init__(self, kind: Kind, what: str = "") -> None:
        super().__init__(f"a traced value does not allow this: {kind} {what}")
        self.kind = kind
        self.what = what


def model_error(error: Exception, model: str, rows: int | None) -> _errors.ModelError:
    """Error to report for an error of a model that is traced.

    Parameters
    ----------
    error : Exception
        Raised by the model.
    model : str
        Name of the model.
    rows : int or None
        Number of rows of the call, if it is known.

    Returns
    -------
    ModelError
        An UntraceableModelError if the model needs the numbers behind traced values.
    """
    kind, raised = _kind(error), error
    if kind is None and isinstance(error.__cause__, TypeError):
        # NumPy replaces the error of a value that cannot be put into an array.
        kind, raised = _kind(error.__cause__), error.__cause__
    if kind is None:
        return _errors.model_raised(model, error, rows)
    what = raised.what if isinstance(raised, TracedValueError) else "a number"
    site, twin = _failing_site(error), None
    line = "" if site is None else site.line
    if site is not None and kind in ("branch", "value"):
        kind, what, twin = _refined(kind, what, site)
    if kind == "function":
        return _errors.untraceable_call(model, what, twin=twin, line=line)
    if kind == "assignment":
        return _errors.untraceable_assignment(model, what, line)
    if kind in _PLAIN_ERRORS:
        return _PLAIN_ERRORS[kind](model, line)
    what = "a key of a dictionary or a cache" if kind == "key" else what
    return _errors.untraceable_conversion(model, what, line)


def is_mixed(error: _errors.ModelError) -> bool:
    """Whether a model failed under NumPy's dispatch because it also calls JAX.

    Some functions of JAX accept JAX arrays only. ``jax.lax`` refuses others with this name.
    """
    return "__jax_array__" in str(error.__cause__)


def _kind(error: Exception) -> Kind | None:
    """The use of a traced value that failed; None for an error of the model itself."""
    if isinstance(error, TracedValueError):
        return error.kind
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return "branch"
    if isinstance(error, jax.errors.NonConcreteBooleanIndexError):
        return "selection"
    if isinstance(
        error,
        jax.errors.ConcretizationTypeError
        | jax.errors.TracerArrayConversionError
        | jax.errors.TracerIntegerConversionError,
    ):
        return "value"
    text = str(error)
    if isinstance(error, TypeError | ValueError) and any(name in text for name in _TRACED_NAMES):
        if "unhashable" in text:
            return "key"
        if "format string" in text or "convert string" in text or "serializable" in text:
            return "text"
    return None


@dataclass(frozen=True)
class _Site:
    """The place of an error in the model's code.

    ``expression`` is the source of the expression that failed, ``node`` its parse tree, and
    ``rest`` the source behind it on the same line.
    """

    frame: types.FrameType
    line: str
    expression: str
    rest: str
    node: ast.expr | None

    def value(self, node: ast.expr) -> Any:
        """Value of a constant or a dotted name, such as ``np.linalg.norm``; else None."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Attribute):
            return getattr(self.value(node.value), node.attr, None)
        if isinstance(node, ast.Name):
            scopes = (self.frame.f_locals, self.frame.f_globals, vars(builtins))
            return next((scope[node.id] for scope in scopes if node.id in scope), None)
        return None


def _failing_site(error: Exception) -> _Site | None:
    """The deepest place of a traceback outside of libraries.

    Other installed packages count as libraries, unless the model itself is in such a package.
    """
    frames = traceback.walk_tb(error.__traceback__)
    summaries = traceback.extract_tb(error.__traceback__)
    inner = [
        (frame, summary)
        for (frame, _), summary in zip(frames, summaries, strict=True)
        if not _is_library_file(summary.filename)
    ]
    if not inner:
        return None
    own = [(frame, at) for frame, at in inner if not at.filename.startswith(_SITE)]
    frame, at = (own or inner)[-1]
    shown = f" (line {at.lineno}: `{at.line}`)" if at.line else ""
    if at.lineno is None or at.end_lineno is None or at.colno is None or at.end_colno is None:
        return _Site(frame, shown, "", "", None)
    # Columns count bytes.
    numbers = range(at.lineno, at.end_lineno + 1)
    lines = [linecache.getline(at.filename, number).encode() for number in numbers]
    rest = lines[-1][at.end_colno :].decode(errors="replace")
    lines[-1] = lines[-1][: at.end_colno]
    lines[0] = lines[0][at.colno :]
    expression = b"".join(lines).decode(errors="replace")
    try:
        node = ast.parse(f"({expression})", mode="eval").body
    except SyntaxError:
        node = None
    return _Site(frame, shown, expression, rest, node)


def _is_library_file(name: str) -> bool:
    if name.startswith(_LIBRARY_FOLDERS):
        return True
    return name.startswith(_STDLIB) and not name.startswith(_SITE)


def _refined(kind: Kind, what: str, site: _Site) -> tuple[Kind, str, str | None]:
    """Kind of a truth value or a number that was wanted, by the expression that wanted it.

    Returns
    -------
    kind, what : str
    twin : str or None
        The JAX function in place of a called function.
    """
    node = site.node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return ("text" if isinstance(site.value(node.left), str) else kind), what, None
    if isinstance(node, ast.Call):
        callee = site.value(node.func)
        if any(callee is function for function in _OF_INTEGERS):
            return "integer", what, None
        if (getattr(callee, "__module__", None) or "").startswith(("jax", "nlsq_dask")):
            return kind, what, None
        name = public_name(callee) or site.expression.partition("(")[0].strip()
        return "function", name.removeprefix("builtins."), _twin(name)
    if isinstance(node, ast.Subscript) and kind == "value":
        if re.match(r"\s*[-+*/%&|^@<>]*=(?!=)", site.rest):
            return "assignment", "assigns into a NumPy array", None
        return "index", what, None
    return kind, what, None


def public_name(callee: Any) -> str | None:
    """Name of a function such as ``scipy.special.logsumexp``, where this very object is found."""
    if isinstance(callee, np.vectorize):
        return "a function made with numpy.vectorize"
    owner, name = getattr(callee, "__self__", None), getattr(callee, "__name__", None)
    if isinstance(owner, np.ufunc):
        return f"{public_name(owner)}.{name}"
    distribution = getattr(owner, "name", None)
    if type(owner).__module__.startswith("scipy.stats") and distribution is not None:
        return f"scipy.stats.{distribution}.{name}"
    if not isinstance(name, str) or isinstance(owner, np.ndarray):
        return None
    module = getattr(callee, "__module__", None) or ""
    parts = module.split(".")
    modules = [".".join(parts[:size]) for size in range(1, len(parts) + 1)]
    for candidate in (*modules, "numpy", "scipy.special"):
        if getattr(sys.modules.get(candidate), name, None) is callee:
            return f"{candidate}.{name}"
    return f"the ufunc {name}" if isinstance(callee, np.ufunc) else f"{module}.{name}"


def _twin(full: str) -> str | None:
    """Name of the JAX function for a function of another module; None if JAX has none."""
    if full == "a function made with numpy.vectorize":
        return "jax.vmap"
    module, _, name = full.rpartition(".")
    root = module.partition(".")[0]
    default = (f"jax.{module}",) if root in ("numpy", "scipy") else ()
    renamed = _RENAMED.get(full, name)
    for package in _PACKAGES.get(module, default):
        try:
            if callable(pkgutil.resolve_name(f"{package}.{renamed.partition('(')[0]}")):
                return f"{package}.{renamed}"
        except (AttributeError, ImportError):
            continue
    return None


@lru_cache(maxsize=1024)
def jax_twin(ufunc: np.ufunc) -> Any:
    """The JAX function for a ufunc of NumPy or SciPy.

    Raises
    ------
    TracedValueError
        If JAX has no such function.
    """
    full = public_name(ufunc) or ""
    twin = _twin(full)
    if twin is None:
        raise TracedValueError("function", full)
    return pkgutil.resolve_name(twin)
