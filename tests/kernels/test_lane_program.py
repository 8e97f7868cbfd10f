"""The compiled program of a step of many series."""

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.lane_algebra import lane_factor, triangle

SIZE, LANES = 3, 8


def test_factors_take_no_reciprocal_root():
    """XLA computes ``rsqrt`` lane by lane on a processor without AVX-512."""

    def factored(packed):
        return lane_factor(jnp, triangle(list(packed), SIZE), 0.0).inverse

    packed = np.ones((SIZE * (SIZE + 1) // 2, LANES))
    with jax.enable_x64(True):
        program = jax.jit(factored).lower(packed).compile().as_text()
    assert "sqrt(" in program
    assert "rsqrt" not in program
