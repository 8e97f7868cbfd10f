"""Choose the blocks of Dask arrays that are read for a sample. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.io.chunks import block_sizes, spread_blocks

# A sample reads this fraction of the blocks, or SAMPLE_BLOCKS if that is more, but of few blocks
# one in BLOCKS_A_SAMPLED_BLOCK at most. Along sorted data, a peak narrower than the gaps would be
# missed.
SAMPLE_FRACTION = 0.02
SAMPLE_BLOCKS = 16
BLOCKS_A_SAMPLED_BLOCK = 4


@dataclass(frozen=True, slots=True)
class SampledBlocks:
    """Blocks and rows that a sample reads.

    Attributes
    ----------
    blocks : list of int
        Numbers of the blocks, in order.
    rows : int
        Most rows that are taken from them: every k-th.
    whole : bool
        Whether all blocks are read.
    """

    blocks: list[int]
    rows: int
    whole: bool


def sample_blocks(n_blocks: int) -> int:
    """Number of blocks that a sample of `n_blocks` blocks reads."""
    return max(
        int(SAMPLE_FRACTION * n_blocks), min(SAMPLE_BLOCKS, -(-n_blocks // BLOCKS_A_SAMPLED_BLOCK))
    )


def sampled_blocks(stream: Stream, most: int, *, whole: bool = False) -> SampledBlocks:
    """Blocks and rows that a sample of at most so many rows reads.

    Parameters
    ----------
    stream : Stream
    most : int
        Most rows of the sample.
    whole : bool
        Whether to read all blocks.
    """
    count = stream.n_blocks if whole else sample_blocks(stream.n_blocks)
    chosen = spread_blocks([len(cuts) for cuts in stream.chunks], count)
    rows = block_sizes(stream.chunks)[chosen]
    step = -(-int(rows.sum()) // most)
    reads_all = len(chosen) == stream.n_blocks
    return SampledBlocks(chosen, int((-(-rows // step)).sum()), reads_all)
