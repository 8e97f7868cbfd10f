"""A fit of few rows costs what it calls."""

import jax.numpy as jnp
import numpy as np

from benchmarks.small_fit import calls_in
from nlsq_dask import fit

#: Python functions that a fit of a known model may call: 1,570 on Python 3.11. A fit that reads the
#: free memory calls a hundred more.
MOST_CALLS = 1620


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def test_a_fit_of_a_known_model_calls_few_functions():
    x = np.linspace(0.0, 4.0, 100)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.1 * np.sin(50.0 * x)

    def call():
        return fit(decay, x, y, p0=[1.0, 1.0, 1.0])

    assert call().nfev <= 6
    assert len(calls_in(call)) <= MOST_CALLS
