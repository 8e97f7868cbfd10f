"""A few tasks of a pass, timed: what the rest will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.accumulate import accumulate, no_rows
from nlsq_dask.engines.dask import ClusterRunner, LocalRunner, Runner
from nlsq_dask.engines.group_task import Work, load, run_group
from nlsq_dask.engines.groups import GroupPlan, StreamPlan
from nlsq_dask.io.chunks import spread_blocks
from nlsq_dask.io.stage import Block
from nlsq_dask.kernels.block import block_kernel

if TYPE_CHECKING:
    from distributed import Client

# Tasks that each thread is given, the first of which may be slow and is not counted.
TASKS_A_THREAD = 3

# Of few tasks, only this part.
PART = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """What a few tasks took, in seconds.

    Attributes
    ----------
    tasks : int
        Tasks that were timed.
    rows : int
        Rows that they read.
    compile_seconds : float
        Compilation on every worker, at the same time; next to nothing if that was done before.
    task_seconds : float
        Reading and summing, added over these tasks. As many ran at one time as in a pass, so far as
        there were so many.
    """

    tasks: int
    rows: int
    compile_seconds: float
    task_seconds: float

    def pass_seconds(self, n_rows: int, n_tasks: int, threads: int) -> float:
        """Time of a pass over so many rows in so many tasks on so many threads."""
        a_task = self.task_seconds / self.rows * n_rows / n_tasks
        return a_task * -(-n_tasks // threads)


def try_groups(
    stream: StreamPlan,
    work: Work,
    n_coords: int,
    params: FloatArray,
    client: Client | None,
    threads: int,
) -> Trial:
    """Compile the kernel without any data, then run some tasks of a pass, spread over the rows.

    Parameters
    ----------
    stream : StreamPlan
        All tasks.
    work : Work
        What they do.
    n_coords : int
        Number of coordinates.
    params : ndarray, shape (p,), float64
        Where the model is evaluated.
    client : distributed.Client or None
        Where they run; None is Dask's local scheduler.
    threads : int
        Threads there.
    """
    count = min(TASKS_A_THREAD * threads, -(-len(stream.groups) // PART))
    chosen = [stream.groups[i] for i in spread_blocks([len(stream.groups)], count)]
    # What is slow but once: decoders and connections are opened, buffers are allocated.
    warm = chosen[1::2][:threads]
    timed = [group for group in chosen if group not in warm]
    compile_seconds = _compile(work, n_coords, params, client)
    seconds = 0.0
    for groups in filter(None, (warm, timed)):
        few = replace(stream, groups=tuple(groups))
        runner: Runner
        if client is None:
            runner = LocalRunner(few, work, _silent, threads)
        else:
            runner = ClusterRunner(few, work, client, _silent)
        seconds = float(runner.run("trial", time_group, params)[0])
        runner.close()
    rows = sum(group.n_rows for group in timed)
    return Trial(len(timed), rows, compile_seconds, seconds)


def time_group(
    plan: GroupPlan, external: Sequence[Any], work: Work, params: FloatArray
) -> FloatArray:
    """Seconds that a group takes, (1,)."""
    began = time.perf_counter()
    run_group(plan, external, work, params, np.eye(params.size))
    return np.array([time.perf_counter() - began])


def compile_kernel(blob: bytes, n_coords: int, params: FloatArray) -> None:
    """Run the kernel on one row of ones, in the process that calls this."""
    work: Work = load(blob)
    one = np.ones(1)
    weighted = work.layout.weighted
    block = Block(one, (one,) * n_coords, one if weighted else None)
    kernel, basis = block_kernel(work.spec, work.device), np.eye(params.size)
    accumulate(
        lambda rows: kernel(params, basis, rows),
        no_rows(params.size),
        [block],
        weighted,
        work.stage_rows,
    )


def _compile(work: Work, n_coords: int, params: FloatArray, client: Client | None) -> float:
    """Compile on all workers, or here; the seconds that it took."""
    blob = cloudpickle.dumps(work)
    began = time.perf_counter()
    if client is None:
        compile_kernel(blob, n_coords, params)
    else:
        client.run(compile_kernel, blob, n_coords, params)
    return time.perf_counter() - began


def _silent(done: int, total: int) -> None:
    """Report nothing."""
