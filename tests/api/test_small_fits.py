"""A fit of few rows costs what it calls, and ends with its memory."""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.small_fit import calls_in
from nlsq_dask import fit
from nlsq_dask.engines.in_memory import InMemoryEngine

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


@pytest.mark.parametrize("strategy", ["standard", "chunked"])
def test_a_fit_leaves_none_of_its_rows_in_memory(strategy):
    """Copies of the rows are as large as the data, and Python may collect circles much later."""
    x = np.linspace(0.0, 4.0, 100, dtype=np.float32)
    y = 2.5 * np.exp(-1.3 * x) + 0.1 * np.sin(50.0 * x)
    gc.collect()
    gc.disable()
    try:
        before = set(map(id, engines()))
        fit(decay, x, y, p0=[1.0, 1.0, 1.0], sigma=np.full(100, 0.1), strategy=strategy)
        assert not [engine for engine in engines() if id(engine) not in before]
    finally:
        gc.enable()


def engines():
    return [held for held in gc.get_objects() if isinstance(held, InMemoryEngine)]
