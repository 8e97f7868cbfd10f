"""The staging buffer holds every row once, in order, whatever the shapes and the capacity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask.io.stage import ALIGNMENT, Block, Stage, aligned_empty
from tests.support.problems import DTYPES, broadcasting_shapes, values


@pytest.mark.parametrize("n_rows", [1, 7, 1 << 12, (1 << 12) + 1])
def test_buffers_are_aligned_and_apart(n_rows):
    buffers = [aligned_empty(n_rows) for _ in range(20)]
    assert all(b.ctypes.data % ALIGNMENT == 0 for b in buffers)
    assert all(b.shape == (n_rows,) and b.dtype == np.float64 for b in buffers)
    for i, buffer in enumerate(buffers):
        buffer[:] = i
    assert all((b == i).all() for i, b in enumerate(buffers))


@pytest.mark.parametrize("n_rows", [1, 7, 8, 1 << 10])
def test_buffers_of_one_piece_are_aligned_and_apart(n_rows):
    stages = aligned_empty(3, 2, n_rows)
    assert stages.shape == (3, 2, n_rows)
    buffers = [buffer for stage in stages for buffer in stage]
    for i, buffer in enumerate(buffers):
        assert buffer.ctypes.data % ALIGNMENT == 0
        assert buffer.flags.c_contiguous
        buffer[:] = i
    assert all((b == i).all() for i, b in enumerate(buffers))


@st.composite
def blocks(draw: st.DrawFn, n_coords: int, weighted: bool) -> Block:
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def array(dtype):
        lengths = draw(broadcasting_shapes(shape))
        lengths = (1,) * (len(shape) - len(lengths)) + lengths
        return values(rng, lengths, dtype)

    dtypes = st.sampled_from(DTYPES)
    coords = tuple(array(draw(dtypes)) for _ in range(n_coords))
    sigma = np.abs(array("f8")) + 0.5 if weighted else None
    return Block(values(rng, shape, draw(dtypes)), coords, sigma)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    data=st.data(),
    capacity=st.integers(1, 50),
    n_coords=st.integers(1, 3),
    weighted=st.booleans(),
)
def test_every_row_is_staged_once_and_in_order(data, capacity, n_coords, weighted):
    given_blocks = data.draw(st.lists(blocks(n_coords, weighted), max_size=5))
    stage = Stage(n_coords, weighted, capacity)
    staged = []

    def empty_stage():
        columns = (stage.y, *stage.coords, *([stage.weights] if weighted else []))
        staged.append(np.stack([c[: stage.n_rows] for c in columns]).copy())
        stage.clear()

    for block in given_blocks:
        start = 0
        while start < block.y.size:
            before = start
            start = stage.fill(block, start)
            assert start > before
            if stage.full:
                empty_stage()
    empty_stage()

    expected = [np.empty((1 + n_coords + weighted, 0))]
    for block in given_blocks:
        columns = [block.y, *(np.broadcast_to(c, block.y.shape) for c in block.coords)]
        if weighted:
            columns.append(1 / np.broadcast_to(block.sigma, block.y.shape))
        expected.append(np.stack([c.astype(np.float64).ravel() for c in columns]))
    np.testing.assert_array_equal(np.concatenate(staged, axis=1), np.concatenate(expected, axis=1))
    assert all(part.shape[1] == capacity for part in staged[:-1])
