"""Slow fits of many series as a program, to be killed: ``killed_maps.py STORE``."""

from __future__ import annotations

import sys
import time

import dask.array as da
import numpy as np

from nlsq_dask import fit_each, models

X = np.linspace(0, 10, 24)
SHAPE = (64, 64)


def slow(_, block_info=None):
    location = block_info[None]["chunk-location"]
    rng = np.random.default_rng(location)
    time.sleep(0.05)
    tau = rng.uniform(0.5, 5, (8, 8))
    return np.exp(-X[:, None, None] / tau) + rng.normal(0, 0.05, (X.size, 8, 8))


if __name__ == "__main__":
    empty = da.zeros((X.size, *SHAPE), chunks=(-1, 8, 8))
    y = empty.map_blocks(slow, dtype=float, meta=np.empty((0, 0, 0)))
    fit_each(models.ExponentialDecay(), X, y, store=sys.argv[1], resume=True, progress=False)
