"""Go on from a finished fit after rows have been appended to its data.

The last checkpoint of a fit has the sums of every group at the answer. Rows that are appended along
the first dimension make new blocks behind the old ones. The old groups are cut as before, so that
their sums stay what they were. Then only the new blocks are read, and the last old group if its
last block has grown. This gives the sums of all rows at the old answer, where the search starts.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.factor import Basis
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Search, SumsAt
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.job import Job, logger, stream_of, versions
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.codec import floats_from_json

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.groups import Stream

# What may differ between the descriptions of a fit and of the fit of more rows.
GROWING = frozenset({"shapes", "chunks", "block_rows", "p0", "groups"})


@dataclass(frozen=True)
class Appended:
    """What is known of the rows before others were appended.

    Attributes
    ----------
    question : SumsAt
        The sums at the old answer.
    basis : Basis
        Directions of the question in the free parameters.
    point : ndarray, shape (q,), float64
        The old answer, in the free parameters.
    answers : dict
        Sums of the groups that are cut as before, as JSON values, by number.
    digests : dict
        Checksums of blocks by their rows.
    omitted : frozenset of tuple of int
        Blocks that the fit has left out, by their index in the chunk grid.
    path : str
        Directory of the checkpoints.
    """

    question: SumsAt
    basis: Basis
    point: FloatArray
    answers: dict[int, Any]
    digests: dict[str, str]
    omitted: frozenset[tuple[int, ...]]
    path: str

    def sums(self) -> Search[NormalEquations]:
        """Ask for the sums of all rows at the old answer."""
        found: NormalEquations = yield self.question
        return found


def appended(job: Job, directory: str | os.PathLike[str]) -> tuple[Job, Appended | None]:
    """Look for a finished fit of fewer rows in a directory of checkpoints.

    Returns
    -------
    job : Job
        Of which the first groups are cut as in the earlier fit.
    found : Appended or None
        None if there is no checkpoint, or the checkpoint is of these rows.

    Raises
    ------
    InputError
        If the checkpoint is of another fit, the fit before has not ended, or the data have other
        chunks than before.
    """
    if not isinstance(job.strategy, Streamed) or job.n_distinct:
        raise _errors.append_in_memory(job.plan.strategy, job.n_distinct)
    store = CheckpointStore(
        directory, job.description(), versions(job), options=job.checkpoint_options
    )
    saved = store.load(may_differ=GROWING)
    if saved is None:
        return job, None
    if saved.problem["chunks"] == store.problem["chunks"]:  # an interrupted fit of these rows
        sizes = saved.problem.get("groups")
        return job if sizes is None else recut(job, job.strategy, sizes), None
    if saved.state.status is None or saved.groups is None:
        raise _errors.append_to_unfinished(store.directory, ended=saved.state.status is not None)
    try:
        return _found(job, job.strategy, saved, str(store.directory))
    except (KeyError, ValueError, TypeError) as error:
        raise _errors.append_damaged(store.directory, error) from None


def _found(
    job: Job, strategy: Streamed, saved: Checkpoint, path: str
) -> tuple[Job, Appended | None]:
    """The job and the old sums; parameters and errors as for :func:`appended`."""
    groups: Any = saved.groups
    sizes, answers = groups["sizes"], groups["answers"]
    old = tuple(map(tuple, saved.problem["chunks"]))
    same = unchanged_blocks(old, strategy.stream.chunks)
    if same is None:
        raise _errors.append_to_other_chunks(path, old, strategy.stream.chunks)
    ends = list(itertools.accumulate(sizes))
    n_kept = sum(end <= same for end in ends)
    logger.info("the sums of %d groups of blocks are known", n_kept)
    params, basis = floats_from_json(groups["params"]), floats_from_json(groups["basis"])
    forward: FloatArray = np.asarray(np.linalg.pinv(job.reduction.matrix) @ basis, np.float64)
    inverse: FloatArray = np.asarray(np.linalg.pinv(forward), np.float64)
    found = Appended(
        SumsAt(params, basis, observe=True),
        Basis(forward, inverse),
        saved.state.params,
        dict(enumerate(answers[:n_kept])),
        saved.digests or {},
        saved.omitted,
        path,
    )
    return recut(job, strategy, sizes[:n_kept]), found


def recut(job: Job, strategy: Streamed, first: Sequence[int]) -> Job:
    """The job with first groups of so many blocks each."""
    blocks = None if job.data.lazy else strategy.blocks
    stream: Stream = stream_of(job.data, blocks, each=job.diagnostics, first=first)
    return replace(job, strategy=replace(strategy, stream=stream, recut=True))


def unchanged_blocks(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> int | None:
    """Number of the first blocks, in C order, that two chunk grids have in common.

    None if the new grid is not the old one with rows appended along the first dimension, where the
    last chunk may have grown.
    """
    if [tuple(c) for c in old[1:]] != [tuple(c) for c in new[1:]]:
        return None
    before, after = tuple(old[0]), tuple(new[0])
    last = len(before) - 1
    if before[:last] != after[:last] or len(after) <= last or after[last] < before[last]:
        return None
    whole = last + (after[last] == before[last])
    return whole * math.prod(len(c) for c in new[1:])
