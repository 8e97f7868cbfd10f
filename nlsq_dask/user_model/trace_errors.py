"""Why a model cannot be traced: the line of the user's code, what it calls, and the JAX twin.

JAX runs a model once on symbols to learn what it computes. Code that needs the numbers behind them
(``math.exp``, ``if x > 0``, ``numpy.array``) fails deep in a library with an error about tracers.
Here such an error is turned into one about the model: the deepest line of the traceback that is not
a library's is the model's, and the position that Python keeps for each instruction gives the very
call on that line.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import linecache
import math
import operator
import sys
import sysconfig
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np

from nlsq_dask import _errors

Kind = Literal["branch", "selection", "assignment", "loop", "function", "value", "text", "key"]

_SITE = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_LIBRARY_FOLDERS = (
    str(Path(__file__).parents[1]),
    *(str(Path(site, name)) for site in _SITE for name in ("jax", "jaxlib", "numpy", "scipy")),
)
_STDLIB = sysconfig.get_path("stdlib")

# Names in `math` and `builtins` whose twins in JAX are called otherwise.
_RENAMED = {
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "fsum": "sum",
    "gamma": "scipy.special.gamma",
    "lgamma": "scipy.special.gammaln",
    "max": "maximum",
    "min": "minimum",
    "pow": "power",
    "sorted": "sort",
}


# Functions of NumPy and SciPy that JAX has under another name, or with other arguments.
_ELSEWHERE = {
    "numpy.polynomial.polynomial.polyval": "jax.numpy.polyval(c[::-1], x), with the coefficients "
    "in reverse order",
    "numpy.polyval": "jax.numpy.polyval",
    "scipy.special.psi": "jax.scipy.special.digamma",
}

# Functions that need the integer itself.
_OF_INTEGERS = (int, range, operator.index, np.arange, math.comb, math.factorial)

# What errors of Python call values that are traced.
_TRACED_NAMES = ("Tracer", "TracedArray", "Traced<")


class TracedValueError(TypeError):
    """A traced value was asked for something that only numbers have.

    Parameters
    ----------
    kind : str
        What was tried.
    what : str
        The type that was wanted, the function that was called, or what was assigned.
    """

    def __init__(self, kind: Kind, what: str = "") -> None:
        super().__init__(f"a traced value does not allow this: {kind} {what}")
        self.kind = kind
        self.what = what


@dataclass(frozen=True)
class Site:
    """Where the model's code was when it failed."""

    operation: str
    callee: Any
    expression: str
    line: str
    is_text: bool
    is_index: bool


def model_error(error: Exception, model: str, rows: int) -> _errors.ModelError:
    """Error to report for one that was raised while a model was traced.

    Parameters
    ----------
    error : Exception
        As it came out of the model.
    model : str
        Name of the model.
    rows : int
        Number of rows that it was called with.

    Returns
    -------
    ModelError
        An UntraceableModelError where the model needs the numbers behind traced values.
    """
    kind, traceback = _kind(error), error.__traceback__
    if kind is None and isinstance(error.__cause__, TypeError):
        # NumPy hides why a value could not be put into an array.
        kind = _kind(error.__cause__)
        error = error.__cause__ if kind is not None else error
    if kind is None:
        return _errors.model_raised(model, error, rows)
    what = error.what if isinstance(error, TracedValueError) else "a number"
    site = _failing_site(traceback)
    line = "" if site is None else site.line
    if kind == "function":
        return _errors.untraceable_call(model, what, None, line)
    if kind == "selection":
        return _errors.untraceable_selection(model, line)
    if kind == "assignment":
        return _errors.untraceable_assignment(model, what, line)
    if kind == "loop":
        return _errors.untraceable_loop(model, line)
    if kind == "text":
        return _errors.untraceable_text(model, line)
    if kind == "key":
        return _errors.untraceable_conversion(model, "a key of a dictionary or a cache", line)
    return _value_error(kind, what, model, site)


def is_mixed(error: _errors.ModelError) -> bool:
    """Whether a model failed under NumPy's dispatch because it calls JAX as well.

    Parts of JAX take arrays of their own only; ``jax.lax`` refuses others by this name.
    """
    return "__jax_array__" in str(error.__cause__)


def _value_error(kind: Kind, what: str, model: str, site: Site | None) -> _errors.ModelError:
    """Error for a truth value or a number that was asked for."""
    line = "" if site is None else site.line
    if site is not None and site.is_text:
        return _errors.untraceable_text(model, line)
    if site is not None and site.operation.startswith("CALL"):
        if any(site.callee is function for function in _OF_INTEGERS):
            return _errors.untraceable_integer(model, line)
        call, twin = _describe(site.callee, site.expression)
        if call is not None:
            return _errors.untraceable_call(model, call, twin, line)
    if kind == "branch":
        return _errors.untraceable_branch(model, line)
    if site is not None and site.operation == "STORE_SUBSCR":
        return _errors.untraceable_assignment(model, "assigns into a NumPy array", line)
    if site is not None and site.is_index:
        return _errors.untraceable_index(model, line)
    return _errors.untraceable_conversion(model, what, line)


def _kind(error: Exception) -> Kind | None:
    """What was tried, or None for an error of the model's own."""
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


def _failing_site(traceback: types.TracebackType | None) -> Site | None:
    """The instruction of the model's own code that led to an error."""
    found = None
    while traceback is not None:
        if not _is_library_file(traceback.tb_frame.f_code.co_filename):
            found = traceback
        traceback = traceback.tb_next
    if found is None:
        return None
    frame, at = found.tb_frame, found.tb_lasti
    code = frame.f_code
    text = linecache.getline(code.co_filename, found.tb_lineno, frame.f_globals).strip()
    expression = _source(code, at, frame)
    node = _parsed(expression)
    return Site(
        operation=_operation(code, at),
        callee=_callee(expression, frame),
        expression=expression,
        line=f" (line {found.tb_lineno}: `{text}`)" if text else "",
        is_text=_is_text(node, frame),
        is_index=isinstance(node, ast.Subscript),
    )


def _parsed(expression: str) -> ast.expr | None:
    try:
        return ast.parse(f"({expression})", mode="eval").body
    except SyntaxError:
        return None


def _is_text(node: ast.expr | None, frame: types.FrameType) -> bool:
    """Whether an expression makes text, as ``"%g" % a`` and ``f"{a:g}"`` do."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        left = node.left
        value = _lookup(left.id, frame) if isinstance(left, ast.Name) else None
        return isinstance(left.value if isinstance(left, ast.Constant) else value, str)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "format"
    return False


def _operation(code: types.CodeType, at: int) -> str:
    """Name of an instruction; a frame that waits for a call may point into its inline cache."""
    while at > 0 and dis.opname[code.co_code[at]] == "CACHE":
        at -= 2
    return dis.opname[code.co_code[at]]


def _is_library_file(name: str) -> bool:
    if name.startswith(_LIBRARY_FOLDERS):
        return True
    return name.startswith(_STDLIB) and not name.startswith(_SITE)


def _source(code: types.CodeType, at: int, frame: types.FrameType) -> str:
    """Source text of an instruction, empty if it is not known."""
    start, end, first, last = list(code.co_positions())[at // 2]
    if start is None or end is None or first is None or last is None:
        return ""
    lines = [
        linecache.getline(code.co_filename, number, frame.f_globals).encode()
        for number in range(start, end + 1)
    ]
    lines[-1] = lines[-1][:last]  # columns count bytes
    lines[0] = lines[0][first:]
    return b"".join(lines).decode(errors="replace")


def _callee(expression: str, frame: types.FrameType) -> Any:
    """The object that an expression such as ``np.linalg.norm(x)`` calls, or None."""
    found_call = _parsed(expression)
    if not isinstance(found_call, ast.Call):
        return None
    node: ast.expr = found_call.func
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    found = _lookup(node.id, frame)
    for name in reversed(path):
        found = getattr(found, name, None)
    return found


def _lookup(name: str, frame: types.FrameType) -> Any:
    for namespace in (frame.f_locals, frame.f_globals, vars(builtins)):
        if name in namespace:
            return namespace[name]
    return None


def _describe(callee: Any, expression: str) -> tuple[str | None, str | None]:
    """Public name of what was called, and of its twin in JAX; None where there is none."""
    if isinstance(callee, np.vectorize):
        return "a function made with numpy.vectorize", "jax.vmap"
    if isinstance(callee, np.ufunc):
        module = "numpy" if getattr(np, callee.__name__, None) is callee else "scipy.special"
        return _with_twin(module, callee.__name__)
    owner: Any = getattr(callee, "__self__", None)
    if isinstance(owner, np.ufunc):
        return f"numpy.{owner.__name__}.{callee.__name__}", f"jax.numpy.{owner.__name__}"
    if type(owner).__module__.startswith("scipy.stats") and hasattr(owner, "name"):
        return _with_twin(f"scipy.stats.{owner.name}", callee.__name__)
    module = getattr(callee, "__module__", None) or ""
    name = getattr(callee, "__name__", None)
    if not isinstance(name, str) or isinstance(owner, np.ndarray):
        module, name = type(callee).__module__, None
    if module.startswith("jax"):
        return None, None
    if name is None:
        return (expression.partition("(")[0].strip() or None), None
    return _with_twin(_public_module(module, name, callee), name)


def _public_module(module: str, name: str, callee: Any) -> str:
    """``scipy.special`` for ``scipy.special._logsumexp``: where this very object is found."""
    parts = module.split(".")
    for size in range(1, len(parts) + 1):
        candidate = ".".join(parts[:size])
        if getattr(sys.modules.get(candidate), name, None) is callee:
            return candidate
    return module


def _with_twin(module: str, name: str) -> tuple[str, str | None]:
    full = name if module == "builtins" else f"{module}.{name}"
    if full in _ELSEWHERE:
        return full, _ELSEWHERE[full]
    for twin in _twins(module, name):
        package, _, attribute = twin.rpartition(".")
        if callable(getattr(_import(package), attribute, None)):
            return full, twin
    return full, None


def _twins(module: str, name: str) -> list[str]:
    """Names under which JAX may have a function, the likeliest first."""
    if module in ("math", "builtins", "cmath"):
        renamed = _RENAMED.get(name, name)
        if module == "builtins" and name in ("float", "int", "bool", "complex"):
            return ["jax.numpy.asarray"]
        if "." in renamed:
            return [f"jax.{renamed}"]
        return [f"jax.numpy.{renamed}", f"jax.scipy.special.{renamed}"]
    package, _, rest = module.partition(".")
    if package == "numpy":
        return [f"jax.numpy.{rest}.{name}" if rest else f"jax.numpy.{name}"]
    if module == "scipy.fft":
        return [f"jax.numpy.fft.{name}"]
    if module in ("scipy.special", "scipy.linalg"):  # with NumPy's functions among them
        return [f"jax.{module}.{name}", f"jax.numpy.{name}", f"jax.numpy.linalg.{name}"]
    return [f"jax.{module}.{name}"] if package == "scipy" else []


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def jax_twin(ufunc: np.ufunc) -> Any:
    """The function of JAX with a NumPy or SciPy ufunc's name.

    Raises
    ------
    TracedValueError
        If JAX has none.
    """
    name = ufunc.__name__
    if getattr(np, name, None) is ufunc:
        full, twin = f"numpy.{name}", getattr(jnp, name, None)
    elif getattr(sys.modules.get("scipy.special"), name, None) is ufunc:
        full = f"scipy.special.{name}"
        renamed = {"psi": "digamma"}.get(name, name)
        twin = getattr(jax.scipy.special, renamed, None) or getattr(jnp, name, None)
    else:
        full, twin = f"the ufunc {name}", None
    if twin is None:
        raise TracedValueError("function", full)
    return twin
