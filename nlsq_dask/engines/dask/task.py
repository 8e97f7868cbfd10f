"""The functions that tasks run on workers.

They are sent to workers by name. What lives in a worker between calls (compiled kernels, staging
buffers) can always be made again.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle
from dask.typing import Key

from nlsq_dask.core.questions import AnswerT
from nlsq_dask.engines.accumulate import Blocks, accumulate
from nlsq_dask.engines.dask.cache import KeptGroup
from nlsq_dask.engines.dask.group_parts import first_of, group_without
from nlsq_dask.engines.dask.groups import without_collections
from nlsq_dask.engines.dask.idle_memory import reusing_on_worker
from nlsq_dask.engines.dask.look import Look
from nlsq_dask.engines.dask.prefetch import ReadAhead, read_ahead, room_aside
from nlsq_dask.engines.dask.reading import DEFAULT_RETRIES, Reading, Retries
from nlsq_dask.engines.dask.signals import signals_of
from nlsq_dask.engines.dask.small_blocks import SmallBlocks, are_small
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.engines.dask.vectors import check_vectors
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_process
from nlsq_dask.io.stage import STAGE_ROWS, Block, Layout
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import AnyQuestion, BlockQuestion
from nlsq_dask.questions.shown_residuals import WithResiduals

AnyGroup = Group | KeptGroup


@dataclass(frozen=True, slots=True)
class Work:
    """What all groups of a fit have in common.

    Attributes
    ----------
    kernels : Kernels
        Of the models, by number.
    layout : Layout
        The role of each array of a block.
    stage_rows : int
        Rows of a thread's staging buffer.
    read_ahead : int
        Number of blocks that are read ahead of the kernel.
    retries : Retries
        How a failed reading is tried again.
    fit : str
        Identifier of the fit, for the signals between its tasks and the fit.
    tells : bool
        Whether each block is told before it is read, since workers have died with the group.
    memory : ReusedMemory
        Memory of this process that blocks are read into.
    look : Look or None
        Rows whose residuals the board of fits is told.
    ahead : ReadAhead or None
        Reads the blocks of this pass ahead of the tasks of this process.
    """

    kernels: Kernels
    layout: Layout
    stage_rows: int = STAGE_ROWS
    read_ahead: int = 0
    retries: Retries = DEFAULT_RETRIES
    fit: str = ""
    tells: bool = False
    memory: ReusedMemory = field(default_factory=memory_of_process)
    look: Look | None = None
    ahead: ReadAhead | None = None

    def blocks(self, group: Group, external: Mapping[Key, Any]) -> Iterable[Block]:
        """The blocks of a group, in a task, from the values that are handed to it."""
        if self.ahead is not None and group in self.ahead:
            return self.ahead.blocks(group)
        depth, room = self.read_ahead, room_aside(self.fit, self.read_ahead)
        return read_ahead(group, external, self.layout, depth, self._reading, room)

    def staged_blocks(self, group: Group, external: Mapping[Key, Any]) -> Blocks:
        """The blocks of a group for a stage; see :meth:`blocks`."""
        if self.tells or self.read_ahead or not are_small(group, self.layout):
            return self.blocks(group, external)
        return SmallBlocks(group, external, self.layout, self._reading)

    @property
    def _reading(self) -> Reading:
        return Reading(self.retries, signals_of(self.fit), self.tells)


@without_collections()
def packed(value: Any) -> bytes:
    """Groups or common work as compressed bytes: 2 MB for 100,000 chunks, 17 MB without zlib."""
    return zlib.compress(cloudpickle.dumps(value), 1)


def load(blob: bytes) -> Any:
    """Unpickle the common work."""
    return pickle.loads(blob)


@without_collections()
def unpacked(blob: bytes) -> Any:
    """The value of :func:`packed` bytes. It is the result of a task, so Dask can make it again."""
    return load(zlib.decompress(blob))


def answer_of_group(
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    question: AnyQuestion[AnswerT],
    omitted: frozenset[tuple[int, ...]] = frozenset(),
) -> AnswerT:
    """Answer a question for the blocks of a group, or for its kept rows.

    Parameters
    ----------
    task_group : Group or KeptGroup
    external : sequence
        Values of the group's external keys, in their order.
    work : Work
    question : RowQuestion or BlockQuestion
    omitted : frozenset of tuple of int
        Blocks that are left out, by index.

    Raises
    ------
    NarrowVectorsError
        If the fit's kernels are compiled for wider vectors than this process has.
    """
    check_vectors(work.kernels)
    whole = task_group.group if isinstance(task_group, KeptGroup) else task_group
    values = dict(zip(whole.external, external, strict=True))
    group = group_without(whole, omitted) if omitted else whole
    with reusing_on_worker(work.memory, keeps_freed=work.read_ahead > 0):
        if isinstance(question, BlockQuestion):
            total = question.left_out(group.n_left_out)
            for step, block in zip(group.steps, work.blocks(group, values), strict=True):
                total = total + question.of_block((step.index, step.box, block), work.kernels)
            return total
        blocks = work.staged_blocks(group, values)
        watched = question if work.look is None else work.look.during(question)
        rows = work.layout.weighted, work.stage_rows
        if isinstance(task_group, KeptGroup):
            which = None if group is whole else frozenset(step.index for step in group.steps)
            total = task_group.answer(watched, work.kernels, blocks, *rows, which)
        else:
            total = accumulate(watched, work.kernels, blocks, *rows)
    if work.look is not None and isinstance(watched, WithResiduals):
        work.look.tell(watched)
    return total + question.zero(group.n_left_out) if group.n_left_out else total


def answer_of_first(
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    question: AnyQuestion[AnswerT],
    chosen: Container[tuple[int, ...]],
    omitted: Container[tuple[int, ...]] = (),
) -> AnswerT:
    """Answer a question for the first chosen block of a group."""
    group = task_group.group if isinstance(task_group, KeptGroup) else task_group
    first = first_of(group_without(group, omitted), chosen)
    if not first.steps:
        return question.zero()
    values = dict(zip(group.external, external, strict=True))
    own = [values[key] for key in first.external]
    return answer_of_group(first, own, work, question)


def telling(
    function: Callable[..., AnswerT],
    task_group: AnyGroup,
    external: Sequence[Any],
    work: Work,
    *args: Any,
) -> AnswerT:
    """Run a function of a group, and tell each block before it is read."""
    return function(task_group, external, replace(work, tells=True), *args)


def add_in_order(answers: Sequence[AnswerT]) -> AnswerT:
    """Add answers from first to last."""
    total = answers[0]
    for part in answers[1:]:
        total = total + part
    return total
