"""Derivatives of a model where automatic ones are not finite although the model's value is.

``(t / tau)**b`` at t = 0 has the value 0 for all tau and b, but its derivative is computed as
0 · ∞. In such rows, and in such alone, the derivative by a parameter becomes a difference of two
values:

    (f(θ + h e_k) - f(θ - h e_k)) / 2h        where both are finite,
    ±(f(θ ± h e_k) - f(θ)) / h                where one of them is,

as ``scipy.optimize.least_squares`` takes them in all rows. A slope that is infinite, as that of
``sqrt(a x)`` by a at a = 0, becomes a large finite number.

The step of a central difference that balances truncation against rounding is ``ε^⅓ s``, with s the
length along which the value changes by its own size (Press et al., "Numerical Recipes", section
5.7). The rows whose derivatives are finite tell s, as the ratio ``‖f‖ / ‖∂f/∂θ_k‖``, in whatever
units and however far from zero θ_k is. Rounding then adds errors of ``ε^⅔`` to the derivatives,
in units of their root mean square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
        Rows of which a derivative is a difference.
    """

    values: jax.Array
    along: jax.Array
    replaced: jax.Array


@lru_cache(MAX_KERNELS)
def can_be_differenced(spec: ModelSpec, n_rows: int) -> bool:
    """Whether :func:`with_differences` can evaluate a model, of so many rows.

    Not one that calls Python back, as a model does that JAX cannot trace: XLA may run the branches
    here in threads of its own, in which JAX would round what it hands over to float32.
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

    Only in rows whose value and coordinates are finite.

    Differences are taken by each parameter, and the basis is applied afterwards: zero times NaN is
    NaN, so that one derivative would spoil all directions. A parameter costs two more evaluations
    of the model where a derivative by it is not finite, and none elsewhere.

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
        # A fixed parameter moves nothing, but zero times what is not finite is not zero.
        columns = columns.at[np.array(spec.constant)].set(0.0) if spec.constant else columns
    else:
        values, columns = model(params), call_jacobian(spec, coords, params).T
    # A value at a coordinate that is no number, such as exp(-inf), is no reason to hide that one.
    usable = counted & jnp.all(jnp.isfinite(jnp.stack([values, *coords])), axis=0)
    bad = usable & ~jnp.isfinite(columns)
    eps = model_eps(spec, coords[0].shape[0])
    steps = _steps(values, jnp.where(bad, 0.0, columns), params, usable, eps)

    def column(k: jax.Array) -> jax.Array:
        def difference() -> jax.Array:
            return jnp.where(bad[k], _difference(model, values, params, k, steps[k]), columns[k])

        mended: jax.Array = jax.lax.cond(jnp.any(bad[k]), difference, lambda: columns[k])
        return mended

    mended = jax.lax.map(column, jnp.arange(params.shape[0]))
    return Derivatives(values, basis.T @ mended, jnp.any(bad & jnp.isfinite(mended), axis=0))


def _steps(
    values: jax.Array, slopes: jax.Array, params: jax.Array, counted: jax.Array, eps: float
) -> jax.Array:
    """Steps (p,) of differences, from the slopes (p, n) that are known; 0 stands for the others.

    Where none is known the parameter itself tells its size.
    """
    size = jnp.abs(params)
    squares = jnp.where(counted, jnp.concatenate([slopes, values[None]]), 0.0) ** 2
    norms = jnp.sqrt(jnp.sum(squares, axis=1))
    # Never much longer than SciPy's step, however flat the other rows are.
    length = jnp.minimum(norms[-1] / norms[:-1], jnp.maximum(size, 1.0))
    known = jnp.isfinite(length) & (length > 0.0)
    length = jnp.where(known, length, jnp.where(size > 0.0, size, 1.0))
    relative = eps ** (1.0 / 3.0)
    # And never so short that θ + h is rounded by much of it.
    steps: jax.Array = relative * jnp.maximum(length, relative * size)
    return steps


def _difference(
    model: Values, values: jax.Array, params: jax.Array, k: jax.Array, step: jax.Array
) -> jax.Array:
    """Differences of the values (n,) by parameter k; NaN where no neighbour is finite."""
    at = params[k]
    # The steps as they are after rounding, not as they were meant.
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
    """Relative precision of a model's values, where it is called with so many rows."""
    return coarsest_epsilon(trace_model(spec, n_rows))
