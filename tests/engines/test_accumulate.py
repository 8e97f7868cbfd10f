"""Rows that a kernel can take from a block are not copied, and give the sums of the stage."""

from __future__ import annotations

import numpy as np
import pytest

from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.io.reused_memory import ReusedMemory
from nlsq_dask.io.stage import Block

STAGE_ROWS = 1 << 10


class Question:
    """Adds up y and x, and notes the rows of each call."""

    def __init__(self, own=list):
        self.calls = []
        self.own = own

    def zero(self, n_left_out=0):
        return np.array([0.0, 0.0, n_left_out])

    def of_rows(self, rows, kernels):
        y, x = rows.y[: rows.n], rows.coords[0][: rows.n]
        in_place = any(np.shares_memory(rows.y, array) for array in self.own())
        self.calls.append((rows.n, rows.y.size, in_place))
        return np.array([y.sum(), x.sum(), 0.0])


def columns(memory, n, first=0):
    """Aligned arrays y and x."""
    y, x = (memory.empty((n,), np.dtype("f8")) for _ in range(2))
    y[:] = np.cos(np.arange(first, first + n))
    x[:] = np.arange(first, first + n)
    return y, x


@pytest.mark.parametrize(
    ("n", "n_in_place"),
    [
        (3 * STAGE_ROWS, 6),
        (2 * STAGE_ROWS + 17, 2),  # the rest of the second block is aligned to 8 bytes
        (2 * STAGE_ROWS + 16, 3),
        (400, 0),
    ],
)
def test_rows_are_taken_from_the_block_in_the_pieces_of_the_stage(n, n_in_place):
    pairs = [columns(ReusedMemory(), n, first) for first in (0, n)]
    in_place = Question(lambda: [y for y, _ in pairs])
    found = accumulate(in_place, None, (Block(y, (x,)) for y, x in pairs), False, STAGE_ROWS)
    staged = Question()
    copied = (Block(y, (x.astype("f4"),)) for y, x in pairs)
    assert np.array_equal(found, accumulate(staged, None, copied, False, STAGE_ROWS))
    assert [call[:2] for call in in_place.calls] == [call[:2] for call in staged.calls]
    assert sum(call[2] for call in in_place.calls) == n_in_place


def masked(y, x):
    return Block(y, (x,), masks=(np.zeros(y.shape, bool),))


@pytest.mark.parametrize(
    "block_of",
    [
        masked,
        lambda y, x: Block(y, (x,), sigma=np.ones(y.shape)),
        lambda y, x: Block(y.astype(">f8"), (x,)),
        lambda y, x: Block(y.reshape(2, -1), (x.reshape(2, -1)[:1],)),
        lambda y, x: Block(y.reshape(2, -1).T, (x.reshape(2, -1).T,)),
        lambda y, x: Block(y[1:], (x[1:],)),
    ],
    ids=["mask", "sigma", "byte order", "broadcast", "transposed", "not aligned"],
)
def test_other_rows_are_staged(block_of):
    y, x = columns(ReusedMemory(), 3 * STAGE_ROWS)
    block = block_of(y, x)
    question = Question(lambda: [y])
    found = accumulate(question, None, [block], block.sigma is not None, STAGE_ROWS)
    assert not any(in_place for *_, in_place in question.calls)
    sums = [block.y.sum(), np.broadcast_to(block.coords[0], block.y.shape).sum()]
    np.testing.assert_allclose(found[:2], sums, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("keep", [None, lambda rows, n_left_out: rows])
def test_the_memory_of_a_block_is_free_when_the_next_is_made(keep):
    memory = ReusedMemory()

    def blocks():
        for _ in range(5):
            y, x = columns(memory, 3 * STAGE_ROWS)
            yield Block(y, (x,))
            del y, x

    question = Question()
    accumulate(question, None, blocks(), False, STAGE_ROWS, keep)
    assert len(question.calls) == 15
    assert len(memory._pieces) == 2
