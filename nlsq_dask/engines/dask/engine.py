"""The engine of Dask arrays: each pass is a task for each group, and a tree that adds the answers.

The stream (:mod:`~nlsq_dask.engines.dask.groups`) is made once a fit. A pass sends parameters and a
basis to every group, and gets p x p numbers back. They are added in the order of the groups, so
the bits are the same for any scheduler and any number of workers. Groups run on a cluster, or on
Dask's local scheduler in this process (:mod:`~nlsq_dask.engines.dask.executor`).

With a cache, groups keep their staged rows (:mod:`~nlsq_dask.engines.dask.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from nlsq_dask.core.questions import A_PASS, AnswerT
from nlsq_dask.engines.dask.cache import CacheChoice, Keeping, choose_keeping
from nlsq_dask.engines.dask.executor import LOCAL, Executor
from nlsq_dask.engines.dask.group_parts import stream_without
from nlsq_dask.engines.dask.groups import Stream, make_stream
from nlsq_dask.engines.dask.omitted import Omissions, answer_of_readable
from nlsq_dask.engines.dask.prefetch import prefetch_depth
from nlsq_dask.engines.dask.reading import DEFAULT_RETRIES, Retries
from nlsq_dask.engines.dask.signals import Show, show_nothing
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.engines.dask.task import Work, answer_of_first, answer_of_group
from nlsq_dask.engines.ledger import NO_LEDGER, NO_PASS_LEDGER, Ledger
from nlsq_dask.engines.partial import Partial
from nlsq_dask.io.chunks import largest_block, spread_blocks
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import STAGE_ROWS, Layout
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import AnyQuestion, BlockQuestion

# Called with the number of the pass, how many of its blocks are done, and the number of all blocks.
PassProgress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Streaming:
    """How data are streamed: decided once, printed by ``plan``, executed by the engine.

    Attributes
    ----------
    stream : Stream
        The groups of blocks.
    executor : Executor
        Where the groups run; by default Dask's local scheduler.
    stage_rows : int
        Rows of a thread's staging buffer.
    threads : int or None
        Most groups at one time on Dask's local scheduler.
    cache : bool or "auto"
        Which rows are kept after the first pass: True those that fit, "auto" those that fit if they
        are at least a quarter of all rows, False none.
    cache_bytes : int or None
        Most bytes of kept rows in this process, or in each worker of a cluster. A worker never
        keeps more than 60 % of its memory limit, less the memory in use and the memory for reading.
        None is half of the memory available to this process; on a cluster, as much as each worker
        has room for.
    retries : Retries
        How a failed reading is tried again.
    omits : bool
        Whether blocks that cannot be read are left out.
    """

    stream: Stream
    executor: Executor = LOCAL
    stage_rows: int = STAGE_ROWS
    threads: int | None = None
    cache: CacheChoice = False
    cache_bytes: int | None = None
    retries: Retries = DEFAULT_RETRIES
    omits: bool = False

    @property
    def read_ahead(self) -> int:
        """Number of blocks that a task reads ahead of the kernel."""
        return prefetch_depth(self.stream)

    def work(self, kernels: Kernels, layout: Layout) -> Work:
        """What all groups have in common."""
        return Work(kernels, layout, self.stage_rows, self.read_ahead, self.retries)

    def keeping(self, row_values: int) -> Keeping:
        """Which groups keep their rows after the first pass.

        Parameters
        ----------
        row_values : int
            Number of float64 values of a staged row.
        """
        ahead = (1 + self.read_ahead) * self.stream.block_bytes
        rooms = [] if self.cache is False else self.executor.rooms(ahead, self.cache_bytes)
        return choose_keeping(self.stream, self.cache, row_values, self.stage_rows, rooms)


def task_name(question: AnyQuestion[Any], number: int) -> str:
    """Name of the tasks of a pass, as ``"pass 3"``, or ``"histogram-1"``.

    Dask's pages group tasks by the words of a name before the first number that a hyphen precedes.
    """
    name = question.task_name
    return f"{name} {number}" if name == A_PASS else f"{name}-{number}"


class DaskEngine:
    """Answers questions of data in Dask arrays, in one pass for each question.

    Parameters
    ----------
    data : Observations
        Dask and NumPy arrays.
    kernels : Kernels
        Of row-wise models.
    streaming : Streaming, optional
        By default Dask's local scheduler runs the groups, and no rows are kept.
    progress : callable, optional
        Called as ``progress(pass_number, blocks_done, blocks)``.
    show : callable, optional
        Called with a few words if tasks wait, as for a store that fails.
    omissions : Omissions, optional
        Blocks that are left out, shared with other engines of the same data.

    Attributes
    ----------
    n_passes : int
        Passes over all rows so far, kept or read.
    omissions : Omissions
        Blocks that are left out.
    keeping : Keeping
        Which groups keep their rows. Kept rows are read once, and again only if a worker is lost.
    ledger : Ledger
        Keeps the answers of groups for a later process; by default nothing.
    n_arrays : int
        Number of arrays that the rows have: y, the coordinates, and sigma if there is one.
    """

    def __init__(
        self,
        data: Observations,
        kernels: Kernels,
        streaming: Streaming | None = None,
        progress: PassProgress | None = None,
        show: Show = show_nothing,
        omissions: Omissions | None = None,
    ) -> None:
        streaming = streaming or Streaming(make_stream(data))
        self.streaming = replace(streaming, stream=stream_without(streaming.stream, data.omitted))
        self.omissions = omissions or Omissions(data.omitted, streaming.stream.n_blocks)
        self.kernels = kernels
        self.n_passes = 0
        self.ledger: Ledger = NO_LEDGER
        self._data = data
        self._progress = progress
        self._show = show
        self._is_pass = True
        self.n_arrays = len(data.values)
        self.keeping = self.streaming.keeping(self.n_arrays)
        self._runner = self.streaming.executor.runner(
            self.stream,
            self.streaming.work(kernels, data.layout),
            self._report,
            threads=self.streaming.threads,
            keeping=self.keeping,
            show=show,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.close(failed=any(part is not None for part in error))

    @property
    def fit(self) -> str:
        """Identifier of the fit on a cluster; empty on a local scheduler."""
        return self._runner.fit

    @property
    def stream(self) -> Stream:
        """The groups of blocks."""
        return self.streaming.stream

    def ask(self, question: AnyQuestion[AnswerT]) -> AnswerT:
        """Answer a question for all rows; see :class:`~nlsq_dask.engines.engine.Engine`."""
        self.n_passes += 1
        return self._run(task_name(question, self.n_passes), question)

    def ask_few(self, question: BlockQuestion[AnswerT], count: int) -> AnswerT:
        """Answer a question for only so many blocks, spread over the groups; this is no pass.

        The blocks are read, also where their rows are kept.
        """
        rest = stream_without(self.stream, self.omissions.lost)
        groups = [group for group in rest.groups if group.steps]
        return self.ask_first(question, [groups[i] for i in spread_blocks([len(groups)], count)])

    def ask_first(self, question: BlockQuestion[AnswerT], groups: Sequence[Group]) -> AnswerT:
        """Answer a question for only the first block of each of some groups; this is no pass."""
        indices = frozenset(group.steps[0].index for group in groups)
        self._is_pass = False  # of which progress is shown
        try:
            return self._run(f"{question.task_name}-few-{self.n_passes}", question, indices)
        finally:
            self._is_pass = True

    def _run(
        self,
        name: str,
        question: AnyQuestion[AnswerT],
        chosen: frozenset[tuple[int, ...]] | None = None,
    ) -> AnswerT:
        """Answer a question for all blocks, or for the first chosen block of each group."""
        lost = self.omissions.lost
        ledger = NO_PASS_LEDGER
        if chosen is None:
            ledger = self.ledger.of_pass(question, len(self.stream.groups))
        if self.streaming.omits:
            args = (question, lost) if chosen is None else (question, lost, chosen)
            found: Partial[AnswerT] = self._runner.run(
                name, answer_of_readable, *args, ledger=ledger
            )
            self.omissions.add(found.lost)
            return found.answer
        ask: Callable[..., AnswerT] = answer_of_group if chosen is None else answer_of_first
        given: list[Any] = [chosen] if chosen is not None else []
        given += [lost] if lost else []
        answer: AnswerT = self._runner.run(name, ask, question, *given, ledger=ledger)
        return answer

    def of_blocks(self, n_blocks: int) -> DaskEngine:
        """An engine of only so many blocks, spread over the chunk grid.

        It reports progress as pass 0.
        """
        block_rows = largest_block(self.stream.chunks)
        stream = make_stream(self._data, block_rows, most_blocks=n_blocks)
        streaming = replace(self.streaming, stream=stream, cache=False)
        report, show = self._report_sample, self._show
        sampled = DaskEngine(self._data, self.kernels, streaming, report, show, self.omissions)
        sampled.ledger = self.ledger
        return sampled

    def _report_sample(self, _: int, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(0, done, total)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None and self._is_pass:
            self._progress(self.n_passes, done, total)
