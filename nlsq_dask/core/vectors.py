"""Lengths of short vectors.

A search computes with vectors of a few numbers, so that its time goes into calls, not into
arithmetic. These functions have the values of their NumPy counterparts in fewer calls.
"""

from __future__ import annotations

import math

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray


def length(vector: FloatArray) -> float:
    """Euclidean length of a vector (p,), with the bits of ``np.linalg.norm``."""
    return math.sqrt(vector.dot(vector))


def all_finite(array: FloatArray) -> bool:
    """Whether all numbers of a small array are finite."""
    flat = array.ravel()
    # A square may overflow where the number does not.
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(array).all())


def nonzero(norms: FloatArray) -> FloatArray:
    """Norms (p,) with 1 for 0, so that columns of zeros can be divided by their norms."""
    return np.where(norms == 0.0, 1.0, norms) if 0.0 in norms.tolist() else norms


def largest_size(vector: FloatArray) -> float:
    """Largest magnitude in a vector (p,) of finite numbers or infinities."""
    largest: float = max(map(abs, vector.tolist()))
    return largest


def column_norms(matrix: FloatArray) -> FloatArray:
    """Euclidean norms of the columns of a (k, p) matrix, shape (p,)."""
    # Scaled by the largest entry first, so that squares neither overflow nor vanish.
    largest = nonzero(np.maximum.reduce(np.abs(matrix), axis=0))
    scaled = matrix / largest
    norms: FloatArray = largest * np.sqrt(np.add.reduce(scaled * scaled, axis=0))
    return norms
