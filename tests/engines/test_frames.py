"""Memory of the fits of series whose rows come in frames: what is planned is what is allocated."""

from __future__ import annotations

import gc
import tracemalloc

import dask.array as da
import numpy as np
import pytest

from nlsq_dask.core.series_memory import SeriesSizes
from nlsq_dask.engines.frames import SOME_SERIES, FrameFit
from nlsq_dask.fitting.each import EachOptions, prepare_each
from nlsq_dask.fitting.prepare import InputOptions
from tests.support.series import START, decay, decay_in_numpy

ROWS = 16
T = np.linspace(0.0, 5.0, ROWS)


class MadeFrames:
    """Frames of one row of n series, made when they are read."""

    rows = tuple(np.array([i]) for i in range(ROWS))

    def __init__(self, n):
        self.params = np.random.default_rng(0).uniform(0.5, 2.0, (2, n)).astype(np.float32)

    def read(self, frames):
        for i in frames:
            noise = np.random.default_rng(i).standard_normal(self.params.shape[1], np.float32)
            y = decay_in_numpy(np.float32(T[i]), *self.params, np.float32(0.3)) + 1e-3 * noise
            yield [y.astype(np.float32)[None], T[i : i + 1, None]]


def traced(problem, n):
    """Bytes that are held after all readings, and the most at any time."""
    frames = MadeFrames(n)
    tracemalloc.start()
    try:
        fit = FrameFit(problem, frames, n, room=1e3)
        packed = fit.fitted()
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (problem.unpacked(packed)["status"] > 0).mean() > 0.999
    return held - packed.nbytes, peak


@pytest.mark.slow
def test_the_memory_of_a_series_is_what_is_planned():
    y = da.zeros((ROWS, 9), chunks=(1, 9), dtype=np.float32)
    problem = prepare_each(decay, T, y, START, None, InputOptions(), EachOptions()).problem
    sizes = SeriesSizes(
        n_rows=ROWS, row_bytes=4, n_free=3, n_params=3, n_planes=problem.n_planes, frame_rows=ROWS
    )
    assert sizes.held_bytes == 8 * 30 + 1
    few, many = SOME_SERIES, 3 * SOME_SERIES
    traced(problem, 100)  # compiles
    held, peak = np.subtract(traced(problem, many), traced(problem, few)) / (many - few)
    assert held == pytest.approx(sizes.held_bytes, rel=0.03)  # 8 bytes more would show
    # The sums themselves belong to the compiled program, and are not traced.
    assert 0.5 * sizes.state_bytes(1) < peak < sizes.state_bytes(1)
