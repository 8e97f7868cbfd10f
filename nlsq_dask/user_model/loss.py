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

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask import _errors
from nlsq_dask.user_model.elementary import arctan, log1p, total_arctan, total_log1p

# ``½ C² ρ``, ``ρ' r`` and ``ρ' + 2 z ρ''``, each of the shape of the residuals.
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
        One of :data:`NAMES`, or the name of the user's function.
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
    def is_named(self) -> bool:
        """Whether this is one of :data:`ROWS`, which cost little for each row."""
        return self.function is None and self.name in ROWS

    @property
    def token(self) -> str:
        """Identity across processes."""
        return f"{self.name if self.function is None else self.function.token}:{self.f_scale!r}"

    def costs(self, residuals: jax.Array, call: Callable[..., jax.Array]) -> jax.Array:
        """``½ C² ρ(z)`` of weighted residuals (n,).

        Parameters
        ----------
        residuals : jax.Array, shape (n,)
        call : callable
            ``call(function, z)`` calls the user's function.
        """
        return self._terms(residuals, call)[0]

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
            As in `costs`.

        Returns
        -------
        costs, scores : jax.Array, shape (n,)
            ``½ C² ρ`` and its derivative by the residual, ``ρ' r``.
        weights : list of jax.Array, shape (n,)
            Weights of ``j jᵀ`` in the Gram matrix, and, for a loss that may be concave, in the
            curvature of the rows where the loss is concave.
        """
        costs, scores, curvatures = self._terms(residuals, call)

        def masked(values: jax.Array) -> jax.Array:
            return jnp.where(valid, values, 0.0)

        return masked(costs), masked(scores), [masked(w) for w in self._weights(curvatures)]

    def of_named_rows(self, residuals: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """The scores and the weights of `of_rows`, of a loss with a name, without a mask.

        Rows that are not valid have the residual 0 and the score 0. Their weights are 1.
        """
        _, scores, curvatures = ROWS[self.name](residuals, self.f_scale)
        return scores, self._weights(curvatures)

    def total_cost(self, residuals: Sequence[jax.Array]) -> jax.Array:
        """Sum of ``½ C² ρ`` over several arrays of residuals, of a loss with a name.

        Parameters
        ----------
        residuals : sequence of jax.Array
            Eight arrays of one shape.

        Returns
        -------
        jax.Array
            Of the same shape. May be infinite or NaN where residuals are above ``1e19 C``.
        """
        if self.name not in TOTALS:
            return functools.reduce(
                jnp.add, [ROWS[self.name](r, self.f_scale)[0] for r in residuals]
            )
        total = TOTALS[self.name]([(r / self.f_scale) ** 2 for r in residuals])
        return 0.5 * self.f_scale**2 * total

    def _terms(self, residuals: jax.Array, call: Callable[..., jax.Array]) -> Terms:
        if self.is_named:
            return ROWS[self.name](residuals, self.f_scale)
        z = (residuals / self.f_scale) ** 2
        value, first, second = call(self.function, z)
        return 0.5 * (self.f_scale**2 * value), first * residuals, first + 2.0 * (z * second)

    def _weights(self, curvatures: jax.Array) -> list[jax.Array]:
        weights = [jnp.maximum(curvatures, LEAST_SQUARED_SCALE)]
        if self.is_concave:
            weights.append(jnp.minimum(curvatures, 0.0))
        return weights


LINEAR = Loss("linear")


def check_loss(name: Any, f_scale: Any) -> float:
    """The scale as a float, if the loss exists.

    Raises
    ------
    InputError
        If the loss is neither a known name nor a function, or the scale is not positive.
    """
    if not callable(name) and not (isinstance(name, str) and name in NAMES):
        raise _errors.unknown_loss(name, NAMES)
    try:
        scale = float(f_scale)
    except (TypeError, ValueError, OverflowError):
        raise _errors.f_scale_invalid(f_scale) from None
    if not (np.isfinite(scale) and scale > 0.0):
        raise _errors.f_scale_invalid(f_scale)
    return scale


def _soft_l1(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    root = jnp.sqrt(1.0 + z)
    # Not 1 / root: XLA makes no vectors of this quotient on a processor without AVX-512.
    first = root / (1.0 + z)
    # √(1 + z) - 1, without a difference of nearly equal numbers.
    return scale**2 * (z / (1.0 + root)), first * residuals, first**3


def _huber(residuals: jax.Array, scale: float) -> Terms:
    size = jnp.abs(residuals)
    inside = size <= scale
    costs = jnp.where(inside, 0.5 * residuals**2, scale * size - 0.5 * scale**2)
    return costs, jnp.clip(residuals, -scale, scale), jnp.where(inside, 1.0, 0.0)


def _cauchy(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    inverse = 1.0 / (1.0 + z)
    return 0.5 * scale**2 * log1p(z), inverse * residuals, inverse * (1.0 - 2.0 * z * inverse)


def _arctan(residuals: jax.Array, scale: float) -> Terms:
    z = (residuals / scale) ** 2
    inverse = 1.0 / (1.0 + z**2)
    # The products in this order are finite where z**2 is not.
    curvatures = inverse * (1.0 - 4.0 * z * (z * inverse))
    return 0.5 * scale**2 * arctan(z), inverse * residuals, curvatures


# ``½ C² ρ``, ``ρ' r`` and ``ρ' + 2 z ρ''`` of residuals r and the scale C, with fewer divisions and
# roots than by ρ, ρ' and ρ'' of z.
ROWS: dict[str, Callable[[jax.Array, float], Terms]] = {
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": _cauchy,
    "arctan": _arctan,
}

# ``Σ ρ`` of eight arrays of z, with one logarithm or arctangent for eight rows.
TOTALS: dict[str, Callable[[Sequence[jax.Array]], jax.Array]] = {
    "cauchy": total_log1p,
    "arctan": total_arctan,
}

# Names of losses that a user may pass.
NAMES = ("linear", *ROWS)
