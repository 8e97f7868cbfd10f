"""Arithmetic of chunks, against the plainest thing that could do the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask.io.chunks import (
    GROUP_BYTES,
    MAX_GROUPS,
    MIN_GROUPS,
    block_boxes,
    box_size,
    broadcast_box,
    cut_groups,
    regular_chunks,
    row_boxes,
    spread_blocks,
)

shapes = st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)
chunk_grids = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3
).map(tuple)


@pytest.mark.slow
@settings(max_examples=300)
@given(shape=shapes, data=st.data())
def test_row_boxes_cover_a_range_once_and_in_order(shape, data):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    numbers = np.arange(size).reshape(shape)
    boxes = list(row_boxes(shape, start, stop))

    assert len(boxes) <= 2 * len(shape) - 1
    covered = []
    for first, last, box in boxes:
        rows = numbers[box].ravel()
        assert len(box) == len(shape)
        np.testing.assert_array_equal(rows, np.arange(first, last))
        assert last > first
        covered.extend(rows)
    assert covered == list(range(start, stop))


@pytest.mark.slow
@settings(max_examples=300)
@given(chunks=chunk_grids)
def test_block_boxes_cover_the_array_once_in_grid_order(chunks):
    shape = tuple(map(sum, chunks))
    seen = np.zeros(shape, int)
    indices = []
    for index, box in block_boxes(chunks):
        indices.append(index)
        seen[box] += 1
        assert tuple(s.stop - s.start for s in box) == tuple(
            sizes[i] for sizes, i in zip(chunks, index, strict=True)
        )
        assert box_size(box) == seen[box].size
    assert (seen == 1).all()
    assert indices == sorted(indices)
    assert len(indices) == math.prod(map(len, chunks))


def test_broadcast_box_keeps_the_only_index_of_a_dimension_of_one():
    box = (slice(2, 5), slice(1, 4), slice(0, 1))
    assert broadcast_box(box, (9, 1, 1)) == (slice(2, 5), slice(0, 1), slice(0, 1))


@pytest.mark.slow
@settings(max_examples=300)
@given(shape=shapes, max_rows=st.integers(1, 200))
def test_regular_chunks_are_ranges_of_rows_of_bounded_size(shape, max_rows):
    chunks = regular_chunks(shape, max_rows)
    assert tuple(map(sum, chunks)) == shape
    if math.prod(shape) == 0:
        return
    numbers = np.arange(math.prod(shape)).reshape(shape)
    stop = 0
    sizes = []
    for _, box in block_boxes(chunks):
        rows = numbers[box].ravel()
        np.testing.assert_array_equal(rows, np.arange(stop, stop + rows.size))
        stop += rows.size
        sizes.append(rows.size)
    assert max(sizes) <= max_rows
    # No smaller than it must be: two neighbours never fit into one, but at the end of a dimension.
    largest = max(sizes)
    assert largest == numbers.size or largest * 2 > max_rows or largest in _products(shape)


def _products(shape):
    return {math.prod(shape[d:]) for d in range(len(shape))}


@pytest.mark.slow
@settings(max_examples=300)
@given(sizes=st.lists(st.integers(1, 4 * GROUP_BYTES), min_size=1, max_size=300))
def test_groups_cover_all_blocks_in_order_within_limits(sizes):
    groups = cut_groups(sizes)
    assert [i for group in groups for i in group] == list(range(len(sizes)))
    assert all(len(group) for group in groups)
    assert len(groups) <= MAX_GROUPS
    total, largest = sum(sizes), max(sizes)
    for group in groups:
        # A group is over by its last block at most.
        wanted = max(min(len(sizes), MIN_GROUPS), math.ceil(total / GROUP_BYTES))
        assert sum(sizes[i] for i in group) <= total / wanted + largest + 1


@pytest.mark.parametrize(
    ("n_blocks", "block_bytes", "expected"),
    [
        pytest.param(1, 10, 1, id="one block"),
        pytest.param(5, 10, 5, id="fewer blocks than the fewest groups"),
        pytest.param(1000, 8, MIN_GROUPS, id="small blocks"),
        pytest.param(1000, 8_000_000, 125, id="8 blocks of 8 MB a group"),
        pytest.param(1000, 200_000_000, 1000, id="blocks larger than a group"),
        pytest.param(10_000, 100_000_000, MAX_GROUPS, id="no more than a scheduler bears"),
        pytest.param(100_000, 100_000_000, 2 * MAX_GROUPS, id="twice as many for tenfold data"),
    ],
)
def test_number_of_groups_of_equal_blocks(n_blocks, block_bytes, expected):
    groups = cut_groups([block_bytes] * n_blocks)
    assert len(groups) == expected
    lengths = [len(group) for group in groups]
    assert max(lengths) - min(lengths) <= 1


def test_no_blocks_no_groups():
    assert cut_groups([]) == []


@pytest.mark.slow
@settings(max_examples=300)
@given(grid=st.lists(st.integers(1, 30), min_size=1, max_size=4), count=st.integers(1, 60))
def test_spread_blocks_are_blocks_of_the_grid_without_repetition(grid, count):
    chosen = spread_blocks(grid, count)
    total = math.prod(grid)
    assert chosen == sorted(set(chosen))
    assert 1 <= len(chosen) <= min(count, total)
    assert 0 <= chosen[0] <= chosen[-1] < total
    if count >= total:
        assert chosen == list(range(total))


@pytest.mark.parametrize("grid", [(1000,), (40, 40), (1, 50, 60), (12, 12, 12)])
def test_spread_blocks_come_from_everywhere(grid):
    chosen = np.unravel_index(spread_blocks(grid, 20), grid)
    for numbers, n in zip(chosen, grid, strict=True):
        if n > 1:
            gaps = np.diff([-1, *sorted(set(numbers)), n])
            assert gaps.max() <= 0.2 * n + 1
