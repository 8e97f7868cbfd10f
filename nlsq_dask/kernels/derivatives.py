"""Derivatives of a model where automatic ones are not finite although the model's value is.

``(t / tau)**b`` at t = 0 has the value 0 for all tau and b, but its derivative is computed as 0 · ∞.
In such rows, and in such alone, the derivative by a parameter becomes a difference of two values:

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from nlsq_dask.kernels.model import ModelSpec, call_jacobian, call_model, trace_model

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


def with_differences(
    spec: ModelSpec,
    coords: tuple[jax.Array, ...],
    params: jax.Array,
    basis: jax.Array,
    counted: jax.Array,
) -> Derivatives:
    """Derivatives of a model, with differences in place of those that are not finite.

    By each parameter first, and along the basis then: one derivative that is no number would spoil
    all directions. The model is evaluated at two more points for each parameter by which a
    derivative is not finite, and not at all where all are finite.

    Parameters
    ----------
    spec : ModelSpec
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
    else:
        values, columns = model(params), call_jacobian(spec, coords, params).T
    usable = counted & jnp.isfinite(values)
    bad = usable & ~jnp.isfinite(columns)
    eps = coarsest_eps(trace_model(spec, coords[0].shape[0]))

    def column(k: jax.Array) -> jax.Array:
        def difference() -> jax.Array:
            step = _step(values, jnp.where(bad[k], 0.0, columns[k]), params[k], usable, eps)
            return jnp.where(bad[k], _difference(model, values, params, k, step), columns[k])

        return jax.lax.cond(jnp.any(bad[k]), difference, lambda: columns[k])

    mended = jax.lax.map(column, jnp.arange(params.shape[0]))
    return Derivatives(values, basis.T @ mended, jnp.any(bad & jnp.isfinite(mended), axis=0))


def _step(
    values: jax.Array, slopes: jax.Array, param: jax.Array, counted: jax.Array, eps: float
) -> jax.Array:
    """Step of a difference, from the slopes (n,) that are known; 0 stands for those that are not.

    Without any the parameter itself tells its size.
    """
    size = jnp.abs(param)

    def norm(rows: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.where(counted, rows, 0.0) ** 2))

    length = norm(values) / norm(slopes)
    # Never more than SciPy's step, however flat the other rows are, and never one that θ_k + h
    # would round.
    length = jnp.minimum(length, jnp.maximum(size, 1.0))
    known = jnp.isfinite(length) & (length > 0.0)
    length = jnp.where(known, length, jnp.where(size > 0.0, size, 1.0))
    relative = eps ** (1.0 / 3.0)
    return relative * jnp.maximum(length, relative * size)


def _difference(
    model: Values, values: jax.Array, params: jax.Array, k: jax.Array, step: jax.Array
) -> jax.Array:
    """Differences of the values (n,) by parameter k; NaN where no neighbour is finite."""
    at = params[k]
    # The steps as they are after rounding, not as they were meant.
    ends = jnp.stack([at + step, at - step])
    above, below = jax.lax.map(lambda end: model(params.at[k].set(end)), ends)
    ahead, behind = ends - at
    central = (above - below) / (ahead - behind)
    forward, backward = (above - values) / ahead, (below - values) / behind
    one_sided = jnp.where(jnp.isfinite(above), forward, backward)
    both = jnp.isfinite(above) & jnp.isfinite(below)
    difference: jax.Array = jnp.where(both, central, one_sided)
    return difference


def coarsest_eps(closed: ClosedJaxpr) -> float:
    """Machine precision of the coarsest type of floating-point numbers that a model computes in."""
    found = _float_types(closed.jaxpr)
    return max((float(jnp.finfo(dtype).eps) for dtype in found), default=0.0) or float(
        jnp.finfo(jnp.float64).eps
    )


def _float_types(jaxpr: Jaxpr) -> set[jnp.dtype]:
    """Types of all floating-point numbers, those of inner jaxprs too."""
    variables = [*jaxpr.invars, *jaxpr.constvars, *(v for e in jaxpr.eqns for v in e.outvars)]
    found = {v.aval.dtype for v in variables if hasattr(v.aval, "dtype")}
    found = {dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)}
    for eqn in jaxpr.eqns:
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    found |= _float_types(getattr(inner, "jaxpr", inner))
    return found
