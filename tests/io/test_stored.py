"""Arguments that are stored arrays: small chunks are read several at one time."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from nlsq_dask.io.chunks import JOINED_ROWS, LEAST_JOINED, joined_chunks
from nlsq_dask.io.stored import in_blocks, of_zarr

grids = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 600)), min_size=1, max_size=3)


@given(grids)
def test_blocks_are_whole_chunks(grid):
    shape, chunks = zip(*grid, strict=True)
    joined = joined_chunks(shape, chunks)
    least = [min(c, n) for c, n in zip(chunks, shape, strict=True)]
    for n, chunk, length in zip(shape, chunks, joined, strict=True):
        assert length == n or length % chunk == 0
    if joined != tuple(least):
        assert math.prod(joined) <= min(JOINED_ROWS, math.prod(shape) // LEAST_JOINED)


@pytest.mark.parametrize(
    ("shape", "chunks", "joined"),
    [
        ((10_000_000,), (1_000,), (128_000,)),
        ((100_000_000,), (1_000,), (512_000,)),
        ((100_000_000,), (8_000_000,), (8_000_000,)),
        ((6_000,), (1_000,), (1_000,)),
        ((500, 512, 512), (1, 64, 64), (2, 512, 512)),
        ((100_000, 16, 16), (10, 16, 16), (1280, 16, 16)),
    ],
)
def test_lengths_of_blocks(shape, chunks, joined):
    assert joined_chunks(shape, chunks) == joined


def test_chunks_are_joined_where_all_arrays_have_the_same():
    def array(chunk, dtype="f8"):
        store = MemoryStore()
        made = zarr.create_array(store, shape=(100_000,), chunks=(chunk,), dtype=dtype)
        return of_zarr(made, "y")

    y, small, other, numbers = array(100), array(100, "i2"), array(300), np.ones(100_000)
    for arguments in [(small, y), ((small, numbers), y, numbers), (numbers, y, None, small)]:
        x, *rest = in_blocks(*arguments)
        stored = [a for a in (*(x if isinstance(x, tuple) else (x,)), *rest) if hasattr(a, "array")]
        assert {a.blocks for a in stored} == {(800,)}
        assert {a.lazy().chunks for a in stored} == {((800,) * 125,)}
    for x in (other, da.ones(100_000, chunks=100)):
        assert in_blocks(x, y)[1].blocks is None
    assert in_blocks(numbers, list(numbers), y)[2].blocks is None
