"""The real part of the Faddeeva function, w(z) = exp(-z²) erfc(-iz), for NumPy and for JAX.

The Voigt function is Re w. SciPy's ``wofz`` cannot be traced, so it is computed here, in two
pieces, of which each is a polynomial and therefore has a derivative everywhere:

- |z| < 8: Weideman's rational expansion in Z = (L + iz) / (L - iz), (SIAM J. Numer. Anal. 31,
  1994, eqs. 26 and 38), which converges geometrically in the closed upper half plane.
- |z| ≥ 8: the asymptotic series w(z) ~ i/(√π z) Σ (2k-1)!! / (2z²)^k (Abramowitz & Stegun
  7.1.23). It keeps Re w accurate where it is small beside |w|: in the wings of a narrow line.

Below the real axis w(z) = 2 exp(-z²) - w(-z) (Abramowitz & Stegun 7.1.11).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

# Terms of Weideman's expansion: 40 leave an error of 2e-15 on |z| < 8, 32 one of 1e-12.
_N_TERMS = 40

# Where the asymptotic series takes over. Its term 16 is there (2k-1)!! / 128^k = 1e-16, and what
# it lacks on the real axis, exp(-x²), is 1e-28.
_FAR = 8.0
_N_ASYMPTOTIC = 17

# The optimal scale, of eq. 26.
_L = math.sqrt(_N_TERMS / math.sqrt(2))


def _expansion_coefficients() -> tuple[float, ...]:
    """Coefficients a_1 ... a_N, by the trapezoidal rule in the angle (Weideman, eq. 38).

    They are the Fourier coefficients of exp(-t²) (L² + t²) on t = L tan(θ/2), sampled at 4N angles
    as there; the sample at θ = π is zero.
    """
    n_angles = 4 * _N_TERMS
    angles = 2 * np.pi * np.arange(-n_angles // 2 + 1, n_angles // 2) / n_angles
    t = _L * np.tan(angles / 2)
    samples = np.exp(-(t**2)) * (_L**2 + t**2)
    orders = np.arange(1, _N_TERMS + 1)
    return tuple((np.cos(np.outer(orders, angles)) @ samples / n_angles).tolist())


_EXPANSION = _expansion_coefficients()
_ASYMPTOTIC = tuple(math.prod(range(1, 2 * k, 2)) / 2**k for k in range(_N_ASYMPTOTIC))


def faddeeva_real(xp: ModuleType, x: Any, y: Any) -> Any:
    """Re w(x + iy).

    Parameters
    ----------
    xp : module
        ``numpy`` or ``jax.numpy``.
    x, y : array or float
        Real and imaginary part of z; they broadcast.

    Returns
    -------
    array
        In float64, its error is at most 1e-14, and of order 1e-14 relative for |z| ≥ 8 and y > 0.
        For y < 0 it is of that order relative to 2 exp(y² - x²), which overflows for y < -27.
    """
    below = y < 0
    # w(-z) has the real part of w at the mirror point: Re w(-x + iy) = Re w(x + iy).
    above = _upper_half(xp, x, xp.where(below, -y, y))
    depth = xp.where(below, y, 0.0)
    mirrored = 2 * xp.exp(depth**2 - x**2) * xp.cos(2 * x * depth) - above
    return xp.where(below, mirrored, above)


def _upper_half(xp: ModuleType, x: Any, y: Any) -> Any:
    """Re w(x + iy) for y ≥ 0."""
    z = x + 1j * y
    is_far = x**2 + y**2 >= _FAR**2
    # Each piece gets arguments that it is meant for, or else it would overflow and its derivative,
    # multiplied by zero, would be NaN in reverse mode.
    near = _near(xp.where(is_far, 0.0, z))
    far = _far(xp.where(is_far, z, _FAR))
    return xp.where(is_far, far.real, near.real)


def _near(z: Any) -> Any:
    reciprocal = 1 / (_L - 1j * z)
    total = _polynomial((_L + 1j * z) * reciprocal, _EXPANSION)
    return (2 * total * reciprocal + 1 / math.sqrt(math.pi)) * reciprocal


def _far(z: Any) -> Any:
    reciprocal = 1 / z
    return 1j / math.sqrt(math.pi) * reciprocal * _polynomial(reciprocal**2, _ASYMPTOTIC)


def _polynomial(z: Any, coefficients: tuple[float, ...]) -> Any:
    """c_0 + c_1 z + c_2 z² + ..., by Horner's rule."""
    total = coefficients[-1] + 0 * z
    for coefficient in coefficients[-2::-1]:
        total = total * z + coefficient
    return total
