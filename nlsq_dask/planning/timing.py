"""The time of a pass, from the timing of a few of its tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.dask.cache import KeptGroup
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.signals import show_nothing
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.engines.dask.task import Work, answer_of_group, load
from nlsq_dask.io.chunks import spread_blocks
from nlsq_dask.io.stage import Block
from nlsq_dask.questions.collapse import MeansOf

# Tasks for each thread. The first may be slow and is not counted.
TASKS_A_THREAD = 3

# If there are few tasks, the part of them that is timed.
PART = 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a few tasks took.

    Attributes
    ----------
    tasks : int
        Tasks that were timed.
    rows : int
        Rows that they read.
    compile_seconds : float
        Compilation on all workers in parallel; near zero if the kernel was compiled before.
    task_seconds : float
        Reading and summing, added over these tasks. As many tasks as in a pass ran in parallel, if
        there were so many.
    sum_seconds : float
        Summing alone, of kept rows.
    """

    tasks: int
    rows: int
    compile_seconds: float
    task_seconds: float
    sum_seconds: float

    def pass_seconds(self, n_rows: int, n_tasks: int, threads: int, kept: float = 0.0) -> float:
        """Time of a pass over `n_rows` rows in `n_tasks` tasks on so many threads.

        `kept` is the share of rows that an earlier pass has kept in memory.
        """
        seconds = kept * self.sum_seconds + (1.0 - kept) * self.task_seconds
        a_task = seconds / self.rows * n_rows / n_tasks
        return a_task * -(-n_tasks // threads)


def time_groups(
    stream: Stream,
    work: Work,
    n_coords: int,
    question: SumsAt | MeansOf,
    executor: Executor,
    threads: int,
) -> Timing:
    """Compile the kernel without any data, then run some tasks of a pass, spread over the rows.

    Parameters
    ----------
    stream : Stream
        All tasks.
    work : Work
        Work of a task.
    n_coords : int
        Number of coordinates.
    question : SumsAt or MeansOf
        What the tasks answer. Means call no model, and are fitted in this process.
    executor : Executor
        Where the tasks run.
    threads : int
        Threads of the cluster or scheduler.
    """
    count = min(TASKS_A_THREAD * threads, -(-len(stream.groups) // PART))
    chosen = [stream.groups[i] for i in spread_blocks([len(stream.groups)], count)]
    # The first task of a thread is slow: it opens decoders and connections, and allocates buffers.
    warm = chosen[1::2][:threads]
    timed = [group for group in chosen if group not in warm]
    compile_seconds = 0.0
    if isinstance(question, SumsAt):
        compile_seconds = _compile(work, n_coords, question.params, executor)
    seconds = np.zeros(2)
    for groups in filter(None, (warm, timed)):
        chosen_stream = replace(stream, groups=tuple(groups))
        runner = executor.runner(
            chosen_stream, work, _silent, threads=threads, keeping=None, show=show_nothing
        )
        seconds = runner.run("plan timing", time_group, question)
        runner.close()
    rows = sum(group.n_rows for group in timed)
    return Timing(len(timed), rows, compile_seconds, float(seconds[0]), float(seconds[1]))


def time_group(
    group: Group, external: Sequence[Any], work: Work, question: SumsAt | MeansOf
) -> FloatArray:
    """Seconds to read and sum a group, and to sum it again from memory; shape (2,)."""
    kept = KeptGroup(group, 0, 0)  # rows are kept for the second sum, as a part of reading
    marks = [time.perf_counter()]
    for _ in range(2):
        answer_of_group(kept, external, work, question)
        marks.append(time.perf_counter())
    kept.forget()
    return np.diff(marks)


def compile_kernel(blob: bytes, n_coords: int, params: FloatArray) -> None:
    """Run the kernel on one row of ones in the calling process."""
    work: Work = load(blob)
    one = np.ones(1)
    weighted = work.layout.weighted
    block = Block(one, (one,) * n_coords, one if weighted else None)
    question = SumsAt(params, np.eye(params.size))
    accumulate(question, work.kernels, [block], weighted, work.stage_rows)


def _compile(work: Work, n_coords: int, params: FloatArray, executor: Executor) -> float:
    """Compile in each process that runs tasks; return the seconds."""
    blob = cloudpickle.dumps(work)
    began = time.perf_counter()
    executor.in_each_process(compile_kernel, blob, n_coords, params)
    return time.perf_counter() - began


def _silent(done: int, total: int) -> None:
    """Report nothing."""
