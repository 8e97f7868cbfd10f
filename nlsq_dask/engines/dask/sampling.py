"""Which blocks of Dask arrays are read for a sample. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.io.chunks import spread_blocks

# A sample is this fraction of the blocks, or so many blocks if that is more, of few blocks a part.
# Along sorted data the blocks must not lie further apart than what is to be found there is wide.
SAMPLE_FRACTION = 0.02
SAMPLE_BLOCKS = 16
SAMPLE_PART = 4


@dataclass(frozen=True, slots=True)
class SampledBlocks:
    """What is read for a sample.

    Attributes
    ----------
    blocks : list of int
        Numbers of the blocks, in order.
    rows : int
        Rows that are taken of them, at most: every k-th.
    whole : bool
        Whether these are all blocks.
    """

    blocks: list[int]
    rows: int
    whole: bool


def sample_blocks(n_blocks: int) -> int:
    """How many of so many blocks are read for a sample."""
    return max(int(SAMPLE_FRACTION * n_blocks), min(SAMPLE_BLOCKS, -(-n_blocks // SAMPLE_PART)))


def sampled_blocks(stream: Stream, most: int, *, whole: bool = False) -> SampledBlocks:
    """What is read for a sample of so many rows at most, or of all blocks.

    Where these blocks hold too few rows that count,
    :class:`~nlsq_dask.engines.dask.engine.DaskEvaluator` goes on to more.
    """
    count = stream.n_blocks if whole else sample_blocks(stream.n_blocks)
    chosen = spread_blocks([len(cuts) for cuts in stream.chunks], count)
    sizes = np.ones(1, np.int64)
    for cuts in stream.chunks:
        sizes = np.multiply.outer(sizes, np.array(cuts, np.int64)).ravel()
    rows = sizes[chosen]
    step = -(-int(rows.sum()) // most)
    reads_all = len(chosen) == stream.n_blocks
    return SampledBlocks(chosen, int((-(-rows // step)).sum()), reads_all)
