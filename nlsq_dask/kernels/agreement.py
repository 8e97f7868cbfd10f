"""Comparison of a kernel with the user's model called with NumPy arrays.

A model written for NumPy is traced on arrays that only act like NumPy's arrays. Therefore the first
rows of a fit are computed twice: by the compiled kernel, and by the model itself on NumPy arrays.
The kernel computes ``Σ |f(x_i) - y_i|`` with the model's own values as y. This needs no other
compilation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.structure import model_input
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.called_back import eager_value
from nlsq_dask.user_model.model_spec import ModelSpec, trace_model
from nlsq_dask.user_model.model_value import ModelErrors
from nlsq_dask.user_model.traces import coarsest_epsilon

# Number of compared rows of a row-wise model.
COMPARED_ROWS = 64

# Largest difference that counts as rounding, in units of the largest value. For coarser types than
# float64, in units of their machine precision.
AGREEMENT = 1e-9
COARSE_ROUNDING = 100.0

# Largest difference that counts as rounding, in units of the change by rounding of the arguments.
SENSITIVITY = 100.0

logger = logging.getLogger("nlsq_dask")


def check_agreement(
    sums: Callable[[FloatArray, FloatArray, Rows], NormalEquations],
    spec: ModelSpec,
    params: FloatArray,
    basis: FloatArray,
    rows: Rows,
    whole: bool,
) -> None:
    """Compare a kernel with its model, if the model is written for NumPy.

    Parameters
    ----------
    sums : callable
        ``sums(params, basis, rows)``, the kernel.
    spec : ModelSpec
        The model.
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
    rows : Rows
        Rows of the comparison. A row-wise model is compared on some of them.
    whole : bool
        Whether the model needs all of them.

    Raises
    ------
    UntraceableModelError
        If a value differs by more than rounding; the error names the row.
    ModelError
        If two calls of the model differ, or the model raises for all rows.
    """
    derivatives = spec.jacobian
    of_jacobian = derivatives is not None and derivatives.is_numpy and spec.loss.is_linear
    if not rows.n or not (spec.is_numpy or of_jacobian):
        return
    picked = np.arange(rows.n)
    if spec.series is not None:
        picked, whole = np.arange(spec.series.rows), True
    elif not whole and rows.n > COMPARED_ROWS:
        picked = np.linspace(0, rows.n - 1, COMPARED_ROWS).astype(np.int64)
    coords = tuple(np.asarray(c)[picked] for c in rows.coords)
    expected = _called(spec, coords, params, whole) if spec.is_numpy else np.zeros(picked.size)
    if expected is None:
        return
    if not whole:
        finite = np.isfinite(expected)
        picked, expected = picked[finite], expected[finite]
        coords = tuple(c[finite] for c in coords)
    if not picked.size:
        return
    found = sums(params, basis, _buffers(rows, coords, expected))
    if spec.is_numpy:
        limit = AGREEMENT * float(np.max(np.abs(expected)))
        if not found.moments.abs_residuals <= limit:
            _compare(spec, coords, params, picked, expected)
    if of_jacobian and derivatives is not None:
        columns = _called(derivatives, coords, params, whole)
        if columns is not None and spec.cholesky is None:
            columns[:, list(spec.constant)] = 0.0
            gram = (columns @ basis).T @ (columns @ basis)
            limit = AGREEMENT * float(np.max(np.abs(gram)))
            if not np.all(np.abs(found.gram - gram) <= limit):
                _compare(spec, coords, params, picked, columns, derivatives)


def _buffers(rows: Rows, coords: Sequence[FloatArray], values: FloatArray) -> Rows:
    """Some of the rows in buffers of the same size, for which the kernel is compiled."""
    length = (rows.wide or rows).y.shape[0]

    def buffer(values: FloatArray) -> FloatArray:
        filled = np.zeros(length)
        filled[: values.size] = values
        return filled

    weights = None if rows.weights is None else buffer(np.ones(values.size))
    counted = None if rows.counted is None else np.ones(length, np.bool_)
    found = Rows(tuple(map(buffer, coords)), buffer(values), weights, values.size, counted)
    if rows.wide is None:
        return found
    return Rows.inside(found._replace(starts=(0,) * len(found.buffers)))


def _called(
    spec: ModelSpec, coords: Sequence[FloatArray], params: FloatArray, whole: bool
) -> FloatArray | None:
    """Value of a model called with NumPy arrays; None if the model needs all rows."""
    n = coords[0].size
    x = model_input(spec.structure, [c.copy() for c in coords], np.stack)
    shape = (n, params.size) if spec.returns == "jacobian" else (n,)
    try:
        with ModelErrors(spec.label, n), np.errstate(all="ignore"):
            value = eager_value(spec.function, x, params)
            return np.array(np.broadcast_to(value, shape))
    except _errors.ModelError as error:
        if whole:
            raise
        logger.info("the model called with NumPy arrays is not compared: %s", error)
        return None


def _compare(
    spec: ModelSpec,
    coords: tuple[FloatArray, ...],
    params: FloatArray,
    picked: NDArray[np.int64],
    expected: FloatArray,
    derivatives: ModelSpec | None = None,
) -> None:
    """Raise an error for the first row that differs by more than rounding, if there is one."""
    from jax.extend.core import jaxpr_as_fun  # loads Pallas, and few fits come here

    called = derivatives or spec
    traced = trace_model(called, coords[0].size)
    # One operation after the other. Compiled together they may be rounded otherwise, as in
    # (t + x) - t with a large t, without another meaning.
    with jax.enable_x64(True), jax.disable_jit():
        got = np.array(jaxpr_as_fun(traced)(*coords, params)[0])
    if derivatives is not None:
        got[:, list(spec.constant)] = 0.0
    size = float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0))
    coarse = COARSE_ROUNDING * coarsest_epsilon(traced)
    tolerance = max(AGREEMENT, coarse) * size + SENSITIVITY * _spread(called, coords, params)
    with np.errstate(invalid="ignore"):
        differs = np.isfinite(expected) & ~(np.abs(got - expected) <= tolerance)
    if not differs.any():
        return
    again = _called(called, coords, params, whole=True)
    if not np.array_equal(again, expected, equal_nan=True):  # type: ignore[arg-type]
        raise _errors.model_random(called.label)
    at = tuple(np.argwhere(differs)[0])
    row = int(at[0])
    raise _errors.model_misread(
        called.label, int(picked[row]), [float(c[row]) for c in coords], expected[at], got[at]
    )


def _spread(spec: ModelSpec, coords: Sequence[FloatArray], params: FloatArray) -> FloatArray:
    """Change of the values (n,) if the arguments change in their last digit."""
    values = [_called(spec, c, p, whole=True) for c, p in _rounded(coords, params)]
    with np.errstate(invalid="ignore"):
        spread: FloatArray = np.ptp(np.stack(values), axis=0)  # type: ignore[arg-type]
    return np.nan_to_num(spread, nan=0.0, posinf=np.inf)


def _rounded(
    coords: Sequence[FloatArray], params: FloatArray
) -> Iterator[tuple[tuple[FloatArray, ...], FloatArray]]:
    """The same arguments, and arguments that differ in the last digits."""
    epsilon = float(np.finfo(np.float64).eps)
    draw = np.random.default_rng(0)

    def moved(array: FloatArray) -> FloatArray:
        return array * (1.0 + epsilon * draw.choice([-4.0, -2.0, 2.0, 4.0], array.shape))

    yield tuple(coords), params
    for _ in range(3):
        yield tuple(map(moved, coords)), moved(params)
