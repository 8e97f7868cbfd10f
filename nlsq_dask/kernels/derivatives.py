"""Derivatives of a model in rows where only the automatic derivative is not finite.

``(t / tau)**b`` at t = 0 has the value 0 for all tau and b, but its automatic derivative is 0 · ∞.
Only in such rows the derivative by a parameter is a difference of two values:

    (f(θ + h e_k) - f(θ - h e_k)) / 2h        if both are finite,
    ±(f(θ ± h e_k) - f(θ)) / h                if one of them is finite,

as in all rows of ``scipy.optimize.least_squares``. An infinite slope, such as the slope of
``sqrt(a x)`` by a at a = 0, becomes a large finite number.

The step of a central difference that balances truncation against rounding is ``ε^⅓ s``, where s is
the length along which the value changes by its own size (Press et al., "Numerical Recipes", section
5.7). The rows with finite derivatives give s as the ratio ``‖f‖ / ‖∂f/∂θ_k‖``, for any units and
any distance of θ_k from zero. Rounding then adds errors of ``ε^⅔`` to the derivatives, in units of
their root mean square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.compiled import MAX_KERNELS
from nlsq_dask.user_model.model_spec import ModelSpec, call_jacobian, call_model, trace_model
from nlsq_dask.user_model.traces import coarsest_epsilon, operations

Values = Callable[[jax.Array], jax.Array]


class Derivatives(NamedTuple):
    """A model on rows, and its derivatives along the columns of a basis (p, q).

    Attributes
    ----------
    values : jax.Array, shape (n,)
    along : jax.Array, shape (q, n)
    replaced : jax.Array, shape (n,), bool
        Rows with a difference in place of a derivative.
    """

    values: jax.Array
    along: jax.Array
    replaced: jax.Array


@lru_cache(MAX_KERNELS)
def can_be_differenced(spec: ModelSpec, n_rows: int) -> bool:
    """Whether :func:`with_differences` can evaluate a model of a number of rows.

    A model that JAX cannot trace calls Python back, and cannot be evaluated here. XLA may run the
    branches of this module in its own threads, where JAX would round the arguments to float32.
    """
    closed = trace_model(spec, n_rows)
    return not any("callback" in eqn.primitive.name for eqn in operations(closed))


def with_differences(
    spec: ModelSpec,
    coords: tuple[jax.Array, ...],
    params: jax.Array,
    basis: jax.Array,
    counted: jax.Array,
) -> Derivatives:
    """Derivatives of a model, with differences in place of those that are not finite.

    Differences replace derivatives only in rows with a finite value and finite coordinates.

    Each difference is along one parameter, and the basis is applied afterwards: zero times NaN is
    NaN, so that one derivative would spoil all directions. A parameter with a derivative that is
    not finite costs two more evaluations of the model.

    Parameters
    ----------
    spec : ModelSpec
        For which :func:`can_be_differenced` is true.
    coords : tuple of jax.Array, each (n,)
    params : jax.Array, shape (p,)
    basis : jax.Array, shape (p, q)
    counted : jax.Array, shape (n,), bool
        Rows that count.
    """

    def model(theta: jax.Array) -> jax.Array:
        return call_model(spec, coords, theta)

    if spec.jacobian is None:
        values, derivative = jax.linearize(model, params)
        columns = jax.vmap(derivative)(jnp.eye(params.shape[0]))
        # Without this a fixed parameter would count: zero times infinity is NaN.
        columns = columns.at[np.array(spec.constant)].set(0.0) if spec.constant else columns
    else:
        values, columns = model(params), call_jacobian(spec, coords, params).T
    # exp(-inf) is finite, but a coordinate that is not finite must not be hidden.
    usable = counted & jnp.all(jnp.isfinite(jnp.stack([values, *coords])), axis=0)
    bad = usable & ~jnp.isfinite(columns)
    eps = model_eps(spec, coords[0].shape[0])
    steps = _steps(values, jnp.where(bad, 0.0, columns), eps, params=params, counted=usable)

    def column(k: jax.Array) -> jax.Array:
        def difference() -> jax.Array:
            mended = _difference(model, values, params, k=k, step=steps[k])
            return jnp.where(bad[k], mended, columns[k])

        mended: jax.Array = jax.lax.cond(jnp.any(bad[k]), difference, lambda: columns[k])
        return mended

    mended = jax.lax.map(column, jnp.arange(params.shape[0]))
    return Derivatives(values, basis.T @ mended, jnp.any(bad & jnp.isfinite(mended), axis=0))


def replaced_rows(
    spec: ModelSpec, coords: tuple[FloatArray, ...], params: FloatArray, counted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Rows with a difference in place of a derivative, shape (n,).

    Parameters
    ----------
    spec : ModelSpec
        For which :func:`can_be_differenced` is true.
    coords : tuple of ndarray, each (n,)
    params : ndarray, shape (p,)
    counted : ndarray, shape (n,), bool
        Rows that count.
    """
    with jax.enable_x64(True):
        return np.asarray(_replaced_rows(spec)(coords, params, counted))


@lru_cache(MAX_KERNELS)
def _replaced_rows(spec: ModelSpec) -> Callable[..., jax.Array]:
    def flags(coords: tuple[jax.Array, ...], params: jax.Array, counted: jax.Array) -> jax.Array:
        basis = jnp.eye(params.shape[0])
        return with_differences(spec, coords, params, basis, counted).replaced

    return jax.jit(flags)


def _steps(
    values: jax.Array, slopes: jax.Array, eps: float, *, params: jax.Array, counted: jax.Array
) -> jax.Array:
    """Steps (p,) of differences, from the finite slopes (p, n); 0 stands for the others.

    Without a finite slope the parameter's own size gives the step.
    """
    size = jnp.abs(params)
    squares = jnp.where(counted, jnp.concatenate([slopes, values[None]]), 0.0) ** 2
    norms = jnp.sqrt(jnp.sum(squares, axis=1))
    # Never much longer than SciPy's step, even if the other rows are flat.
    length = jnp.minimum(norms[-1] / norms[:-1], jnp.maximum(size, 1.0))
    known = jnp.isfinite(length) & (length > 0.0)
    length = jnp.where(known, length, jnp.where(size > 0.0, size, 1.0))
    relative = eps ** (1.0 / 3.0)
    # Long enough that the rounding of θ + h is a small part of h.
    steps: jax.Array = relative * jnp.maximum(length, relative * size)
    return steps


def _difference(
    model: Values, values: jax.Array, params: jax.Array, *, k: jax.Array, step: jax.Array
) -> jax.Array:
    """Differences of the values (n,) along parameter k; NaN if no neighbour is finite."""
    at = params[k]
    # The steps after rounding.
    ends = jnp.stack([at + step, at - step])
    above, below = jax.vmap(lambda end: model(params.at[k].set(end)))(ends)
    ahead, behind = ends - at
    central = (above - below) / (ahead - behind)
    forward, backward = (above - values) / ahead, (below - values) / behind
    one_sided = jnp.where(jnp.isfinite(above), forward, backward)
    both = jnp.isfinite(above) & jnp.isfinite(below)
    return jnp.where(both, central, one_sided)


@lru_cache(MAX_KERNELS)
def model_eps(spec: ModelSpec, n_rows: int) -> float:
    """Relative precision of a model's values, for a number of rows."""
    return coarsest_epsilon(trace_model(spec, n_rows))
