"""The streaming tier: every pass is a set of group tasks and a tree of sums.

The plan (:mod:`~nlsq_dask.engines.dask.groups`) is made once a fit. A pass sends parameters and a
basis to every group, and gets p x p numbers back, which are added in the groups' order: the same
bits for any scheduler and any number of workers. Groups run on a :class:`distributed.Client` where
there is one, else on Dask's local scheduler in this process.

Where a cache is asked for, groups keep their staged rows (:mod:`~nlsq_dask.engines.dask.cache`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from nlsq_dask.core.questions import AnswerT
from nlsq_dask.core.resources import available_memory
from nlsq_dask.engines.dask.cache import CacheChoice, Keeping, WorkerRoom, choose_keeping
from nlsq_dask.engines.dask.cluster import worker_rooms
from nlsq_dask.engines.dask.groups import Stream, make_stream
from nlsq_dask.engines.dask.prefetch import prefetch_depth
from nlsq_dask.engines.dask.runners import Runner, runner_of
from nlsq_dask.engines.dask.scheduler import runs_here
from nlsq_dask.engines.dask.task import Work, answer_of_group
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import AnyQuestion

if TYPE_CHECKING:
    from distributed import Client

# Share of the memory available to this process that kept rows take unless told otherwise.
LOCAL_SHARE = 0.5

# Called with the number of the pass, the blocks done so far in it, and all blocks.
PassProgress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Streaming:
    """How data are streamed: decided once, printed by ``plan``, executed by the engine.

    Attributes
    ----------
    stream : Stream
        The groups of blocks.
    client : distributed.Client or None
        Cluster to run on; None runs on Dask's local scheduler.
    stage_rows : int
        Rows of a thread's staging buffer.
    threads : int or None
        Most groups at one time on Dask's local scheduler.
    cache : bool or "auto"
        Whether rows stay staged in memory after the first pass: True for the blocks that fit,
        "auto" only where these are a quarter of all rows, False for none.
    cache_bytes : int or None
        Memory that kept rows may take, in bytes: in this process, or in each worker of a cluster,
        but never more there than 60 % of its limit, less what it holds and what reading takes. None
        is half of what is available here, and as much as a worker has.
    """

    stream: Stream
    client: Client | None = None
    stage_rows: int = STAGE_ROWS
    threads: int | None = None
    cache: CacheChoice = False
    cache_bytes: int | None = None

    @property
    def read_ahead(self) -> int:
        """Blocks that a task makes ahead of the kernel."""
        return prefetch_depth(self.stream)

    def keeping(self, row_values: int) -> Keeping:
        """Which groups keep their rows after the first pass.

        Parameters
        ----------
        row_values : int
            float64 values of a staged row.
        """
        rooms: list[WorkerRoom] = []
        n_bytes = self.cache_bytes
        if self.cache is False:
            pass
        elif self.client is not None:
            ahead = (1 + self.read_ahead) * self.stream.block_bytes
            rooms = worker_rooms(self.client, ahead, n_bytes)
        elif runs_here():  # tasks of other processes forget
            here = int(LOCAL_SHARE * available_memory()) if n_bytes is None else n_bytes
            rooms = [WorkerRoom(None, 1, here)]
        return choose_keeping(self.stream, self.cache, row_values, self.stage_rows, rooms)


class DaskEngine:
    """Answers questions of data in Dask arrays, one pass a question.

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

    Attributes
    ----------
    n_passes : int
        Passes over all rows so far, kept or read.
    keeping : Keeping
        Which groups are kept. Kept rows are read once; again only where a worker was lost.
    """

    def __init__(
        self,
        data: Observations,
        kernels: Kernels,
        streaming: Streaming | None = None,
        progress: PassProgress | None = None,
    ) -> None:
        self.streaming = streaming or Streaming(make_stream(data))
        self.kernels = kernels
        self.n_passes = 0
        self._data = data
        self._progress = progress
        self.keeping = self.streaming.keeping(len(data.values))
        self._runner = self._runner_of(self.keeping)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    @property
    def stream(self) -> Stream:
        """The groups of blocks."""
        return self.streaming.stream

    def ask(self, question: AnyQuestion[AnswerT]) -> AnswerT:
        """Answer a question for all rows; see :class:`~nlsq_dask.engines.engine.Engine`."""
        self.n_passes += 1
        name = f"{question.task_name}-pass-{self.n_passes}"
        answer: AnswerT = self._runner.run(name, answer_of_group, question)
        return answer

    def of_blocks(self, n_blocks: int) -> DaskEngine:
        """An engine of so many blocks alone, spread over the grid of chunks.

        Progress is reported as that of pass 0.
        """
        block_rows = math.prod(map(max, self.stream.chunks))
        stream = make_stream(self._data, block_rows, most_blocks=n_blocks)
        streaming = replace(self.streaming, stream=stream, cache=False)
        return DaskEngine(self._data, self.kernels, streaming, self._report_sample)

    def _runner_of(self, keeping: Keeping) -> Runner:
        streaming = self.streaming
        work = Work(self.kernels, self._data.layout, streaming.stage_rows, streaming.read_ahead)
        return runner_of(
            self.stream,
            work,
            self._report,
            client=streaming.client,
            threads=streaming.threads,
            keeping=keeping,
        )

    def _report_sample(self, _: int, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(0, done, total)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self.n_passes, done, total)
