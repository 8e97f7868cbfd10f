"""Arithmetic of chunks, with integers alone.

The rows of an array of any number of dimensions are its elements in C order. A *range* of rows is a
half-open interval in this order. A *box* is a tuple of slices, one for each dimension.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, ...]
Chunks = tuple[tuple[int, ...], ...]

# Decoded bytes that one task reads in a pass. A task costs the cluster 2.3 ms, which is below 5 %
# of the time to decode so many bytes at 1 GB/s. A lost task is soon repeated, and progress is seen.
GROUP_BYTES = 64_000_000

# Most tasks in a pass over up to MANY_BYTES. A scheduler handles about 1,000 to 2,000 tasks a
# second, so a pass costs it a few seconds at most, and a cluster of a thousand threads still has
# work for each thread.
MAX_GROUPS = 4096

# Bytes from which on there are more tasks: twice as many for ten times the bytes. A cluster that
# reads 100 TB in a minute has a thousand nodes. It needs a task for each of their 16 threads, and
# the scheduler needs less time than the reading.
MANY_BYTES = 1e12
TASKS_GROWTH = math.log10(2)

# Fewest groups, where there are so many blocks: small data also use several workers.
MIN_GROUPS = 16

# Most rows of a block that is joined from small chunks: 4 MB of float64. A pass over chunks of 80
# kB took a third of the time in blocks of such a size from a local disk, and half from an object
# store with 30 ms of latency: Zarr reads the chunks of a block at one time.
JOINED_ROWS = 1 << 19

# Fewest blocks that are joined from small chunks, so that a sample has blocks to choose from, and
# each thread has several.
LEAST_JOINED = 64


def row_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, Box]]:
    """Cut a range of rows into boxes.

    Parameters
    ----------
    shape : sequence of int
        Shape of the array, of at least one dimension.
    start, stop : int
        Range of rows, ``0 <= start <= stop <= prod(shape)``.

    Yields
    ------
    first, last : int
        Range of rows of the box.
    box : tuple of slice
        One slice for each dimension. Boxes come in row order and cover the range once. There are
        at most ``2 * len(shape) - 1`` boxes.
    """
    inner = math.prod(shape[1:])
    if len(shape) == 1 or inner == 0 or start == stop:
        if start < stop:
            yield start, stop, (slice(start, stop),)
        return
    head, tail = -(-start // inner), stop // inner
    if head > tail:  # within one slab
        yield from _inside_slab(shape, tail, start, stop)
        return
    if start < head * inner:
        yield from _inside_slab(shape, head - 1, start, head * inner)
    if head < tail:
        yield head * inner, tail * inner, (slice(head, tail), *(slice(0, n) for n in shape[1:]))
    if tail * inner < stop:
        yield from _inside_slab(shape, tail, tail * inner, stop)


def _inside_slab(
    shape: Sequence[int], slab: int, start: int, stop: int
) -> Iterator[tuple[int, int, Box]]:
    """Boxes of a range within one index of the first dimension."""
    offset = slab * math.prod(shape[1:])
    for first, last, box in row_boxes(shape[1:], start - offset, stop - offset):
        yield first + offset, last + offset, (slice(slab, slab + 1), *box)


def broadcast_box(box: Box, shape: Sequence[int]) -> Box:
    """Restrict a box to an array that broadcasts: in a dimension of length 1 take the only index.

    Parameters
    ----------
    box : tuple of slice
        Box in the full shape.
    shape : sequence of int
        Shape of the broadcasting array, with as many dimensions as the box.
    """
    return tuple(slice(0, 1) if n == 1 else s for s, n in zip(box, shape, strict=True))


def block_boxes(chunks: Chunks) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Index and box of every block of a chunk grid, in C order of the grid."""
    starts = [list(itertools.accumulate(sizes, initial=0)) for sizes in chunks]
    for index in itertools.product(*(range(len(sizes)) for sizes in chunks)):
        yield (
            index,
            tuple(slice(starts[d][i], starts[d][i + 1]) for d, i in enumerate(index)),
        )


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is all of an array."""
    return tuple(slice(0, n) for n in shape)


def lengths(box: Box) -> tuple[int, ...]:
    """Shape of a box."""
    return tuple(s.stop - s.start for s in box)


def box_size(box: Box) -> int:
    """Rows in a box."""
    return math.prod(s.stop - s.start for s in box)


def block_sizes(lengths: Iterable[Sequence[int] | NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sizes of all blocks of a grid, in C order, from their lengths along each dimension."""
    sizes = np.ones(1, np.int64)
    for own in lengths:
        sizes = np.multiply.outer(sizes, np.asarray(own, np.int64)).ravel()
    return sizes


def largest_block(chunks: Chunks) -> int:
    """Rows of the largest block of a chunk grid."""
    return math.prod(map(max, chunks))


def regular_chunks(shape: Sequence[int], max_rows: int, uncut: Sequence[int] = ()) -> Chunks:
    """Chunks of at most ``max_rows`` rows that are contiguous in C order.

    The last dimensions stay whole while they fit. The next dimension is cut to fit, and the
    dimensions before it are cut into single indices. The dimensions `uncut` are never cut; a chunk
    then may have more rows.
    """
    chunks: list[tuple[int, ...]] = []
    room = max_rows // max(math.prod(shape[d] for d in uncut), 1) if uncut else max_rows
    for d, n in reversed(list(enumerate(shape))):
        if d in uncut:
            chunks.append((n,))
            continue
        step = min(max(room, 1), max(n, 1))
        chunks.append(tuple(min(step, n - i) for i in range(0, n, step)) or (0,))
        room = room // n if step == n else 0
    return tuple(reversed(chunks))


def joined_chunks(
    shape: Sequence[int], chunks: Sequence[int], least_rows: int = 0
) -> tuple[int, ...]:
    """Lengths of a block of whole neighbouring chunks.

    They depend on the lengths alone, so that arrays of one shape and one chunk grid stay aligned,
    whatever their dtypes are.

    Parameters
    ----------
    shape : sequence of int
        Shape of the array.
    chunks : sequence of int
        Lengths of a chunk, or of a shard.
    least_rows : int
        Rows up to which a block is joined even if the array then has fewer than LEAST_JOINED.

    Returns
    -------
    tuple of int
        Multiples of `chunks`, or the lengths of the array. The last dimensions are joined first.
        The block has at most JOINED_ROWS rows, unless a chunk has more, and the array has at least
        LEAST_JOINED blocks, unless it has fewer chunks.
    """
    most = min(JOINED_ROWS, max(math.prod(shape) // LEAST_JOINED, least_rows))
    return joined_up_to(most, shape, chunks)


def joined_up_to(most: int, shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Lengths of a block of whole neighbouring chunks, of at most so many elements or one chunk.

    Parameters
    ----------
    most : int
    shape : sequence of int
        Shape of the array.
    chunks : sequence of int
        Lengths of a chunk.

    Returns
    -------
    tuple of int
        Multiples of `chunks`, or the lengths of the array. The last dimensions are joined first.
    """
    joined = [min(chunk, n) for chunk, n in zip(chunks, shape, strict=True)]
    for d in reversed(range(len(joined))):
        while joined[d] < shape[d]:
            doubled = [*joined[:d], min(2 * joined[d], shape[d]), *joined[d + 1 :]]
            if math.prod(doubled) > most:
                return tuple(joined)
            joined = doubled
    return tuple(joined)


def is_joined(joined: Chunks, chunks: Chunks) -> bool:
    """Whether each block of a grid consists of whole blocks of another grid of the same shape."""
    return all(
        set(itertools.accumulate(own)) <= set(itertools.accumulate(parts))
        for own, parts in zip(joined, chunks, strict=True)
    )


def cut_groups(block_bytes: Sequence[int], ends: Sequence[bool] | None = None) -> list[range]:
    """Cut a sequence of blocks into groups of neighbours, by the bytes of the blocks alone.

    The groups depend on the layout of the data alone, and not on the number of workers. So the sums
    of the groups are added in the same order, and have the same bits, on every cluster.

    Parameters
    ----------
    block_bytes : sequence of int
        Decoded bytes of each block.
    ends : sequence of bool, optional
        For each block, whether a group may end before the block; by default always.

    Returns
    -------
    list of range
        Consecutive ranges of block numbers that cover all blocks.
    """
    n_blocks, total = len(block_bytes), sum(block_bytes)
    if n_blocks == 0:
        return []
    most = round(MAX_GROUPS * max(total / MANY_BYTES, 1.0) ** TASKS_GROWTH)
    wanted = max(min(n_blocks, MIN_GROUPS), min(most, math.ceil(total / GROUP_BYTES)))
    target = total / wanted
    groups: list[range] = []
    first, done, filled = 0, 0, 0
    for i, size in enumerate(block_bytes):
        filled += size
        # Compare with the running total: rounding group by group would make the last group large.
        may_end = i + 1 < n_blocks and (ends is None or ends[i + 1])
        if filled >= (done + 1) * target and may_end:
            groups.append(range(first, i + 1))
            first = i + 1
            done = max(done + 1, math.floor(filled / target))
    groups.append(range(first, n_blocks))
    return groups


def spread_blocks(grid: Sequence[int], count: int) -> list[int]:
    """Choose blocks that are spread evenly over a grid of blocks, along every dimension.

    In one dimension the blocks are equidistant and include both ends. In more dimensions they
    follow the additive recurrence with the generalised golden ratio, whose points have a low
    discrepancy in any number of dimensions (Roberts, "The unreasonable effectiveness of quasirandom
    sequences", 2018).

    Parameters
    ----------
    grid : sequence of int
        Number of blocks along each dimension.
    count : int
        Blocks to choose. The result has fewer where the grid is smaller, or where points coincide.

    Returns
    -------
    list of int
        Numbers of blocks in C order of the grid, ascending.
    """
    total = math.prod(grid)
    if count >= total:
        return list(range(total))
    long = [d for d, n in enumerate(grid) if n > 1]
    if len(long) == 1:
        return sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})
    ratio = _generalised_golden_ratio(len(long))
    numbers = [0] * count
    for d, n in enumerate(grid):
        step = ratio ** -(long.index(d) + 1) if d in long else 0.0
        # Use the ranks of the points and not their values. In three dimensions one step is near
        # 2/3: few points would have only three different values along that dimension.
        values = [(0.5 + k * step) % 1.0 for k in range(count)]
        for rank, k in enumerate(sorted(range(count), key=values.__getitem__)):
            numbers[k] = numbers[k] * n + (2 * rank + 1) * n // (2 * count)
    return sorted(set(numbers))


def _generalised_golden_ratio(dimensions: int) -> float:
    """The positive root of ``x**(d + 1) = x + 1``."""
    root = 2.0
    for _ in range(64):  # a contraction: each step gains a digit or more
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    return root
