"""The parameters in which a model is linear, read from the traces of its derivatives.

A model is linear in a set of parameters if its derivative by each of the set depends on none of
the set. The trace of a derivative shows what the derivative depends on, so no values are compared.
A dependence that cancels, as in ``a + a**2 - a**2``, counts as one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from nlsq_dask.user_model.model_spec import ModelSpec, call_with_scalars


def linear_parameters(spec: ModelSpec) -> tuple[int, ...]:
    """Parameters in which a model is linear, all of them together.

    Of several such sets, as of ``a * b * x``, this is the one with the first parameters.

    Parameters
    ----------
    spec : ModelSpec

    Returns
    -------
    tuple of int
        Numbers of the parameters, in their order.
    """
    found: list[int] = []
    needs: list[set[int]] = []
    for i in range(len(spec.names)):
        own = _parameters_of_derivative(spec, i)
        if own.isdisjoint([*found, i]) and not any(i in other for other in needs):
            found.append(i)
            needs.append(own)
    return tuple(found)


def _parameters_of_derivative(spec: ModelSpec, i: int) -> set[int]:
    """Parameters on which the derivative by parameter i depends."""
    rows = spec.rows if spec.series is None else spec.series.rows

    def derivative(coords: tuple[jax.Array, ...], scalars: list[jax.Array]) -> jax.Array:
        def along(value: jax.Array) -> jax.Array:
            return call_with_scalars(spec, coords, [*scalars[:i], value, *scalars[i + 1 :]])

        slope: jax.Array = jax.jvp(along, (scalars[i],), (jnp.ones_like(scalars[i]),))[1]
        return slope

    with jax.enable_x64(True):
        row, number = (jax.core.ShapedArray(shape, jnp.float64) for shape in ((rows,), ()))
        closed = jax.make_jaxpr(derivative)((row,) * spec.n_coords, [number] * len(spec.names))
    _, used = dce_jaxpr(closed.jaxpr, [True])
    return {k for k, is_used in enumerate(used[spec.n_coords :]) if is_used}
