"""Question: checksums of some blocks, to tell whether data are those of an earlier run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nlsq_dask.io.chunks import Box
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock

# Most values of an array of a block that enter its checksum: every k-th. It takes milliseconds.
MOST_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class Digests:
    """Answer: a checksum by block, in the order of the blocks."""

    of_blocks: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Digests) -> Digests:
        return Digests(self.of_blocks + other.of_blocks)


@dataclass(frozen=True, slots=True)
class Digest(BlockQuestion[Digests]):
    """Question: the checksum of each block."""

    task_name: ClassVar[str] = "digest"

    def zero(self) -> Digests:
        """Answer for no blocks."""
        return Digests()

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> Digests:  # noqa: ARG002
        """Answer for one block."""
        _, box, block = placed
        return Digests(((rows_of(box), checksum_of(block)),))


def rows_of(box: Box) -> str:
    """The rows of a block, as ``"[0:100, 0:64]"``."""
    return f"[{', '.join(f'{s.start}:{s.stop}' for s in box)}]"


def checksum_of(block: Block) -> str:
    """Checksum of the arrays of a block: their types, their shapes, and every k-th value."""
    found = hashlib.sha256()
    for array in (*block.arrays, *block.masks):
        found.update(f"{array.dtype.str} {array.shape}".encode())
        step = -(-array.size // MOST_VALUES)
        found.update(np.ascontiguousarray(array.ravel()[::step]).tobytes())
    return found.hexdigest()
