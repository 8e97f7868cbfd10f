"""Linear least squares within bounds, for a p × p factor.

Minimises ``½ ‖A z - b‖²`` subject to ``lower ≤ z ≤ upper`` by the active-set method of Stark &
Parker ("Bounded-variable least-squares: an algorithm and applications", Computational Statistics
10, 1995). Variables are free or on a bound. The free variables go to their minimum, or to the first
bound on the way. At their minimum the method frees the variable on a bound with the steepest
gradient inwards.
"""

from __future__ import annotations

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box

#: Most changes of the active set for each parameter, as rounding could make the method circle.
MOST_CHANGES = 10


def bounded_minimum(a: FloatArray, b: FloatArray, box: Box, rank_rtol: float) -> FloatArray:
    """Minimise a linear least-squares problem within bounds.

    Parameters
    ----------
    a : ndarray, shape (k, p), float64
        With columns of about the same length.
    b : ndarray, shape (k,), float64
    box : Box
        ``lower ≤ 0 ≤ upper``; infinite for no bound.
    rank_rtol : float
        Singular values up to this fraction of the largest count as zero. Directions that `a` does
        not determine get the shortest solution.

    Returns
    -------
    ndarray, shape (p,), float64
    """
    lower, upper = box.lower, box.upper
    z = np.zeros(a.shape[1])
    free = np.ones(z.size, dtype=bool)
    for _ in range(MOST_CHANGES * z.size):
        aim = z.copy()
        if free.any():
            rest = b - a[:, ~free] @ z[~free]
            aim[free] = np.linalg.lstsq(a[:, free], rest, rank_rtol)[0]
        beyond = free & ((aim < lower) | (aim > upper))
        if not beyond.any():
            z = aim
            descent = a.T @ (b - a @ z)
            # Slope of the cost from a bound inwards; negative where the cost rises.
            inward = np.where(z <= lower, descent, np.where(z >= upper, -descent, 0.0)) * ~free
            steepest = int(np.argmax(inward))
            if inward[steepest] <= rank_rtol * float(np.linalg.norm(b)):
                return z
            free[steepest] = True
            continue
        bounds = np.where(aim < lower, lower, upper)
        no_bound = np.full(z.size, np.inf)
        strides = np.divide(bounds - z, aim - z, where=beyond, out=no_bound)
        stride = float(np.min(strides))
        hit = strides <= stride
        z = np.where(hit, bounds, z + stride * (aim - z))
        free &= ~hit
    return z
