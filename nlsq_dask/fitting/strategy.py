"""How the rows of a fit are read: one of three strategies, with what each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from nlsq_dask.core.workflow import BlockConfig
from nlsq_dask.engines.dask.executor import Executor

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.groups import Stream


@dataclass(frozen=True)
class Standard:
    """All rows are ready for the kernel in this process: in place, or in aligned buffers."""


@dataclass(frozen=True)
class Chunked:
    """Rows in memory are staged block by block in every pass.

    Attributes
    ----------
    blocks : BlockConfig
        Sizes of the blocks, and threads.
    """

    blocks: BlockConfig


@dataclass(frozen=True)
class Streamed:
    """Blocks are read by tasks in every pass.

    Attributes
    ----------
    blocks : BlockConfig
        Sizes of the blocks, and threads.
    stream : Stream
        The groups of blocks.
    executor : Executor
        Where the tasks run.
    recut : bool
        Whether the first groups are cut as those of an earlier fit of fewer rows.
    """

    blocks: BlockConfig
    stream: Stream
    executor: Executor
    recut: bool = False

    @property
    def sizes(self) -> list[int]:
        """Number of blocks of each group."""
        return [len(group.steps) for group in self.stream.groups]


Strategy: TypeAlias = Standard | Chunked | Streamed
