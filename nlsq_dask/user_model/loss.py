"""Robust losses: the part of a residual in the cost.

The cost is ``½ C² Σ ρ(z_i)`` with ``z_i = (r_i / C)²`` and the scale C (``f_scale``), as in
``scipy.optimize.least_squares``. Around a point this is again a linear least-squares problem, for
residuals and a Jacobian that are rescaled row by row (Triggs, McLauchlan, Hartley & Fitzgibbon,
"Bundle adjustment - a modern synthesis", 2000, section 4.3, without the coupling term): with
``s² = ρ' + 2 z ρ''``, row i of J is multiplied by s, and r_i by ``ρ' / s``. The gradient stays
exact, and the Gauss-Newton matrix contains the second derivatives of the loss. The sums over rows
contain only s² and ``ρ' r_i``, so that no root is needed.

If ``ρ' + 2 z ρ''`` is negative, the loss is concave in r_i, and no real s exists. SciPy leaves such
rows out of the matrix. With noise well above C most rows are such rows. Then SciPy's matrix
overestimates the curvature many times, and steps are too short by the same factor. Here the part of
these rows is a separate sum, which the computation of a step adds: see
:mod:`nlsq_dask.core.factor`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask import _errors
from nlsq_dask.user_model.elementary import arctan, in_memory, log1p

# ρ, ρ' and ρ'' of z, each of z's shape.
Terms = tuple[jax.Array, jax.Array, jax.Array]

# Value of s² in rows where the loss is concave, as in SciPy.
LEAST_SQUARED_SCALE = float(np.finfo(np.float64).eps)

# Half of normal residuals with the standard deviation f_scale are below this part of f_scale: the
# normal quantile of 3/4, which makes the median of absolute residuals a robust measure of noise
# (Huber & Ronchetti, "Robust Statistics", 2nd ed. 2009, section 5.1).
HALF_OF_ROWS = 0.6744897501960817

# Losses that are concave in large residuals.
CONCAVE = ("cauchy", "arctan")


@dataclass(frozen=True)
class Loss:
    """A loss function and its scale.

    Attributes
    ----------
    name : str
        One of :data:`LOSSES`, or the name of the user's function.
    f_scale : float
        Residuals well below the scale count as in least squares, larger residuals less.
    function : callable or None
        The user's, as a value with a ``token``; ``function(z)`` is ``[ρ, ρ', ρ'']``, shape (3, n).
    """

    name: str
    f_scale: float = 1.0
    function: Any = None

    @property
    def is_linear(self) -> bool:
        """Whether this is plain least squares."""
        return self.function is None and self.name == "linear"

    @property
    def is_concave(self) -> bool:
        """Whether the loss may be concave in some residuals, as any user's function may be."""
        return self.function is not None or self.name in CONCAVE

    @property
    def is_cheap(self) -> bool:
        """Whether the terms of rows cost little enough that XLA may compute some of them twice."""
        return self.function is None and self.name in ROWS

    @property
    def token(self) -> str:
        """Identity across processes."""
        return f"{self.name if self.function is None else self.function.token}:{self.f_scale!r}"

    def terms(self, residuals: jax.Array, call: Callable[..., jax.Array]) -> Terms:
        """``C² ρ(z)``, ``ρ'(z)`` and ``z ρ''(z)`` of weighted residuals (n,).

        Parameters
        ----------
        residuals : jax.Array, shape (n,)
        call : callable
            ``call(function, z)`` calls the user's function.
        """
        z = (residuals / self.f_scale) ** 2
        if self.function is None:
            value, first, second = LOSSES[self.name](z)
        else:
            value, first, second = call(self.function, z)
        return self.f_scale**2 * value, first, z * second

    def of_rows(
        self, residuals: jax.Array, valid: jax.Array, call: Callable[..., jax.Array]
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """The terms of a tile's sums; zeros in rows that are not valid.

        Parameters
        ----------
        residuals : jax.Array, shape (n,)
        valid : jax.Array, shape (n,), bool
            Other rows have the residual 0, for which a user's loss may have any value.
        call : callable
            As in `terms`.

        Returns
        -------
        costs, scores : jax.Array, shape (n,)
            ``½ C² ρ`` and its derivative by the residual, ``ρ' r``.
        weights : list of jax.Array, shape (n,)
            Weights of ``j jᵀ`` in the Gram matrix, and, for a loss that may be concave, in the
            curvature of the rows where the loss is concave.
        """
        if self.is_cheap:
            costs, scores, curvatures = ROWS[self.name](residuals, self.f_scale)
        else:
            value, first, second = self.terms(residuals, call)
            costs, scores, curvatures = 0.5 * value, first * residuals, first + 2.0 * second
        weights = [jnp.maximum(curvatures, LEAST_SQUARED_SCALE)]
        if self.is_concave:
            weights.append(jnp.minimum(curvatures, 0.0))

        def masked(values: jax.Array) -> jax.Array:
            return jnp.where(valid, values, 0.0)

        return masked(costs), masked(scores), [masked(w) for w in weights]


LINEAR = Loss("linear")


def check_loss(name: Any, f_scale: Any) -> float:
    """The scale as a float, if the loss exists.

    Raises
    ------
    InputError
        If the loss is neither a known name nor a function, or the scale is not positive.
    """
    if not callable(name) and not (isinstance(name, str) and name in LOSSES):
        raise _errors.unknown_loss(name, tuple(LOSSES))
    try:
        scale = float(f_scale)
    except (TypeError, ValueError, OverflowError):
        raise _errors.f_scale_invalid(f_scale) from None
    if not (np.isfinite(scale) and scale > 0.0):
        raise _errors.f_scale_invalid(f_scale)
    return scale


def _linear(z: jax.Array) -> Terms:
    return z, jnp.ones_like(z), jnp.zeros_like(z)


def _soft_l1(z: jax.Array) -> Terms:
    root = jnp.sqrt(1.0 + z)
    # Both quotients by one division, the slowest operation here.
    inverse = 1.0 / (root * (root + 1.0))
    first = inverse * (root + 1.0)
    # 2 (√(1 + z) - 1) = 2 z / (√(1 + z) + 1), without a difference of nearly equal numbers.
    return 2.0 * z * (inverse * root), first, -0.5 * first**3


def _huber(z: jax.Array) -> Terms:
    inside = z <= 1.0
    # The branch that is not chosen must not divide by zero.
    outside = jnp.sqrt(jnp.where(inside, 1.0, z))
    first = 1.0 / outside
    return (
        jnp.where(inside, z, 2.0 * outside - 1.0),
        first,
        jnp.where(inside, 0.0, -0.5 * first**3),
    )


def _cauchy(z: jax.Array) -> Terms:
    inverse = 1.0 / (1.0 + z)
    return log1p(z), inverse, -(inverse**2)


def _arctan(z: jax.Array) -> Terms:
    inverse = 1.0 / (1.0 + z**2)
    return arctan(z), inverse, -2.0 * z * inverse**2


LOSSES: dict[Any, Callable[[jax.Array], Terms]] = {
    "linear": _linear,
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": _cauchy,
    "arctan": _arctan,
}


def _soft_l1_rows(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    first = in_memory(1.0 / jnp.sqrt(1.0 + z))
    # √(1 + z) - 1, by a step of Newton's method from a difference of nearly equal numbers.
    excess = (1.0 + z) * first - 1.0
    excess = excess + 0.5 * first * (z - excess * (excess + 2.0))
    return scale**2 * excess, first * residuals, first**3


def _huber_rows(residuals: jax.Array, scale: float) -> Terms:
    size = jnp.abs(residuals)
    inside = size <= scale
    costs = jnp.where(inside, 0.5 * residuals**2, scale * size - 0.5 * scale**2)
    return costs, jnp.clip(residuals, -scale, scale), jnp.where(inside, 1.0, 0.0)


def _cauchy_rows(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    inverse = in_memory(1.0 / (1.0 + z))
    return 0.5 * scale**2 * log1p(z), inverse * residuals, inverse * (1.0 - 2.0 * z * inverse)


def _arctan_rows(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    inverse = in_memory(1.0 / (1.0 + z**2))
    # The products in this order are finite where z**2 is not.
    curvatures = inverse * (1.0 - 4.0 * z * (z * inverse))
    return 0.5 * scale**2 * arctan(z), inverse * residuals, curvatures


# ``½ C² ρ``, ``ρ' r`` and ``ρ' + 2 z ρ''`` of residuals r and the scale C, with fewer divisions and
# roots than by ρ, ρ' and ρ'' of z.
ROWS: dict[str, Callable[[jax.Array, float], Terms]] = {
    "soft_l1": _soft_l1_rows,
    "huber": _huber_rows,
    "cauchy": _cauchy_rows,
    "arctan": _arctan_rows,
}
