"""A streaming fit needs the memory of its blocks, however many there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

BLOCK_ROWS = 1_000_000
THREADS = 2
#: Blocks of the two fits that are compared.
FEW, MANY = 4, 16

# Each program is a process of its own: the peak of a process never comes down.
PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path[:] = {path!r}
    import json
    import dask, dask.array as da, jax.numpy as jnp, numpy as np
    from benchmarks.memory import peak_bytes
    from nlsq_dask import fit

    def column(number):
        def make(block_id):
            x = np.linspace(0, 4, {block_rows})
            # Of exact data the pilot's answer is exact. A thousand random numbers are enough.
            noise = np.resize(np.random.default_rng(block_id[0]).normal(size=1009), x.size)
            y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.1 * noise
            return (x, y)[number]
        chunks = (({block_rows},) * {n_blocks},)
        return da.map_blocks(make, chunks=chunks, dtype=float, meta=np.empty(0))

    baseline = peak_bytes()
    with dask.config.set(num_workers={threads}):
        result = fit(
            lambda x, a, b, c: a * jnp.exp(-b * x) + c,
            column(0),
            column(1),
            p0=[2.4, 1.2, 0.4],
            cache=False,
        )
    assert result.n_points == {block_rows} * {n_blocks}
    print(json.dumps([baseline, peak_bytes(), result.n_passes]))
    """
)


def peak_of_a_fit(n_blocks):
    program = PROGRAM.format(
        path=sys.path, block_rows=BLOCK_ROWS, n_blocks=n_blocks, threads=THREADS
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": ""},  # millions of rows: a fast kernel costs less
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.thorough  # a fit that keeps its blocks breaks its budget: see planning/test_budget.py
def test_memory_does_not_grow_with_the_number_of_blocks():
    baseline, few, _ = peak_of_a_fit(FEW)
    _, many, n_passes = peak_of_a_fit(MANY)
    assert n_passes >= 2
    assert abs(many - few) < 0.15 * few
    # A block of x and of y, and one being made, in each thread; besides it JAX and its code.
    block_bytes = 2 * 8 * BLOCK_ROWS
    assert many - baseline < THREADS * 3 * block_bytes + 400e6
    # Blocks that stayed in memory would break the first limit.
    assert (MANY - FEW) * block_bytes > 2 * 0.15 * few
