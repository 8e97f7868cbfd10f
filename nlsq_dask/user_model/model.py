"""Examination of the user's model: its parameters, its identity, and how JAX can trace it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from nlsq_dask import _errors
from nlsq_dask.core.structure import Structure
from nlsq_dask.user_model.jaxprs import ClosedJaxpr
from nlsq_dask.user_model.loss import Loss, check_loss
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model_spec import (
    EXAMINED_ROWS,
    MAX_MODELS,
    ModelSpec,
    Style,
    digest_of,
    trace_call,
)
from nlsq_dask.user_model.numpy_models import watch_jax
from nlsq_dask.user_model.signature import known_names, model_label, parameter_names
from nlsq_dask.user_model.trace_errors import is_mixed
from nlsq_dask.user_model.traces import Content, content, count_operations, digest
from nlsq_dask.user_model.unchanged import facts_of

# Examinations kept in one process. Each is a few words, so that more are kept than models.
MAX_EXAMINATIONS = 4096

# Traces kept for comparison in one process. Each is some kilobytes.
MAX_TRACES = 512

# Rows of the calls that find a loop over rows, before a model is examined: the loop has one more
# operation for each row. Compiling a loop takes some 50 ms a row. Algorithms that halve the rows
# (associative scans) have some 10 to 30 more operations for twice the rows. The last number tells
# them from loops, if the first two numbers do not.
LOOP_ROWS = (7, 31, 67)
MANY_A_ROW = 10


_examinations: LruTable[str, _Examination] = LruTable(MAX_EXAMINATIONS)
_just_traced: LruTable[str, bool] = LruTable(MAX_MODELS)
_traces: LruTable[tuple[str, str, int, Content], str] = LruTable(MAX_TRACES)
_closed: LruTable[Hashable, str] = LruTable(MAX_EXAMINATIONS)


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
        Form of x.
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
    facts, settings = facts_of(function), tuple(jax.config.values.values())
    names = known_names(facts, function, names_or_count)
    key = "model", names, structure, n_coords, n_rows, settings
    known: ModelSpec | None = facts.get(key)
    if known is not None:
        known.register()
        return known
    spec = _examined(ModelSpec.of(function, names, structure, n_coords), n_rows)
    if spec.modules is not None:  # its trace depends on nothing else
        facts[key] = spec
    return spec


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


@dataclass(frozen=True)
class _Examination:
    """How to trace a model.

    ``rows`` is the number of rows of the trace; None if the model accepts only the rows of the
    data.
    """

    style: Style
    rows: int | None
    is_numpy: bool


def _examined(spec: ModelSpec, n_rows: int | None) -> ModelSpec:
    """The spec of a model as it is now. Its token depends on everything that the value depends on.

    Each preparation traces a model again that is not closed. Only the trace shows the data that
    such a model reads from files, from the environment, or from the settings of a library.
    """
    base = spec
    known = _examinations.get(base.token)
    if known is not None and base.modules is not None:
        spec = _as_examined(base, known, n_rows)
        name = _closed.get(_trace_key(spec))
        if name is not None:
            return _named_by_trace(spec, name)
    found = None if known is None else _traced(_as_examined(base, known, n_rows))
    if known is None or found is None or isinstance(found, _errors.ModelError):
        known, found = _examine(base, n_rows)
        _examinations.put(base.token, known)
    spec = _as_examined(base, known, n_rows)
    seen = content(found)
    name = _traces.get((base.token, spec.style, spec.rows, seen))
    is_new = name is None
    if name is None:
        again = _traced(spec)
        if isinstance(again, _errors.ModelError) or content(again) != seen:
            raise _errors.model_random(spec.label)
        name = _traces.keep((base.token, spec.style, spec.rows, seen), digest(seen))
    if base.modules is not None:
        _closed.put(_trace_key(spec), name)
    spec = _named_by_trace(spec, name)
    if is_new:
        _just_traced.put(spec.token, True)
    return spec


def _trace_key(spec: ModelSpec) -> Hashable:
    """What the trace of a closed model depends on."""
    return spec.token, spec.modules, spec.style, spec.rows, tuple(jax.config.values.values())


def _named_by_trace(spec: ModelSpec, name: str) -> ModelSpec:
    """The spec of a model under the token of its trace.

    The style is a part of the token: functions whose global is numpy or jax.numpy may have the same
    trace, and only the second can be called with the arrays of JAX.
    """
    token = digest_of(f"{spec.token} {spec.style} {name}")
    return replace(spec.named(token), traced=f"{jax.__version__} {name}")


def _as_examined(spec: ModelSpec, found: _Examination, n_rows: int | None) -> ModelSpec:
    rows = found.rows or n_rows or EXAMINED_ROWS
    return replace(spec, style=found.style, rows=rows, is_numpy=found.is_numpy)


def _examine(spec: ModelSpec, n_rows: int | None) -> tuple[_Examination, ClosedJaxpr]:
    """Trace a model with JAX's arrays, or else through NumPy's dispatch."""
    styles = (spec, replace(spec, style="numpy"))
    errors = []
    for styled in (replace(style, rows=EXAMINED_ROWS) for style in styles):
        try:
            found = _errors.untraceable_loop(spec.label, "") if _loops(styled) else _traced(styled)
        except _errors.ModelError as refusal:
            found = refusal
        if not isinstance(found, _errors.ModelError):
            return _written_for_numpy(styled, EXAMINED_ROWS, found)
        errors.append(found)
    for error in errors:
        if isinstance(error, _errors.RowLoopError):
            raise error
    if n_rows is not None:
        for styled in styles:
            found = _traced(replace(styled, rows=n_rows))
            if not isinstance(found, _errors.ModelError):
                if count_operations(found) >= max(n_rows, LOOP_ROWS[-1]):
                    raise _errors.untraceable_loop(spec.label, "")
                return _written_for_numpy(replace(styled, rows=n_rows), None, found)
    # Report the error of the style in which the model is written.
    first, second = errors
    needs_numpy = isinstance(first, _errors.UntraceableModelError) and not is_mixed(second)
    if needs_numpy or isinstance(second, _errors.UntraceableModelError):
        raise second
    raise first


def _written_for_numpy(
    spec: ModelSpec, rows: int | None, found: ClosedJaxpr
) -> tuple[_Examination, ClosedJaxpr]:
    """Find out whether a model that JAX can trace is written for NumPy's arrays.

    ``z += c`` differs between the two: NumPy changes the array under all of its names, and JAX
    makes a new array. A model that calls no function of JAX gets NumPy's meaning.
    """
    with watch_jax() as watch:
        as_numpy = _traced(replace(spec, style="numpy"))
    style, is_numpy = spec.style, spec.is_numpy and not watch.used
    if not isinstance(as_numpy, _errors.ModelError):
        is_numpy = not watch.used
        if is_numpy and style == "jax" and content(as_numpy) != content(found):
            style, found = "numpy", as_numpy
    return _Examination(style, rows, is_numpy), found


def _traced(spec: ModelSpec) -> ClosedJaxpr | _errors.ModelError:
    """Trace of a model for ``spec.rows`` rows, or the error of the call."""
    try:
        return trace_call(spec, spec.rows)
    except _errors.ModelError as error:
        return error


def _loops(spec: ModelSpec) -> bool:
    """Whether a model loops over rows in Python, with an operation for each row."""
    try:
        first, second = (count_operations(trace_call(spec, n)) for n in LOOP_ROWS[:2])
        a_row = (second - first) / (LOOP_ROWS[1] - LOOP_ROWS[0])
        if a_row < 1 or a_row > MANY_A_ROW:
            return a_row > MANY_A_ROW
        third = count_operations(trace_call(spec, LOOP_ROWS[2]))
    except _errors.RowLoopError:
        raise
    except _errors.ModelError:  # the model needs more rows
        return False
    return third - second >= LOOP_ROWS[2] - LOOP_ROWS[1]


def check_trace(spec: ModelSpec) -> None:
    """Check, before a model is compiled, that its trace is still the trace at the fit's start.

    Another process may have other files and other settings. In the same process they may have
    changed.

    Raises
    ------
    ModelError
        If the trace differs.
    """
    # Unpickle before the trace begins. A module imported within a trace would compute symbols.
    _ = spec.function
    version, _, name = spec.traced.partition(" ")
    if _just_traced.pop(spec.token):
        version = ""  # the trace has just been made
    if version == jax.__version__ and digest(content(trace_call(spec, spec.rows))) != name:
        raise _errors.model_computes_otherwise(spec.label)
    for part in (spec.jacobian, spec.loss.function):
        if part is not None:
            check_trace(part)
