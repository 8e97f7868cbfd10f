"""What is known of a fit before it runs: the passes that most fits take, and the size of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlsq_dask.engines.collapsed import CollapsedEngine, engine_of_rows
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.memory import sampled
from nlsq_dask.fitting.multi_start import FIRST_EVALUATIONS
from nlsq_dask.fitting.strategy import Streamed

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

# Passes of most fits: 20 of the 28 fits of NIST's 14 reference problems from both starts, each on
# 400,000 rows in 20 chunks, are within. The other 8 are hard, with up to 500 evaluations.
PASSES_AFTER_PILOT = (2, 4)
PASSES = (4, 20)


@dataclass(frozen=True)
class Expected:
    """What is known of a fit before it runs.

    Attributes
    ----------
    passes : pair of int
        Passes that most fits of this kind take.
    rows, n_bytes, blocks : int
        Of a pass. Bytes count decoded arrays. One block if an engine tells no blocks.
    kept : float
        Share of the rows that stay in memory after the first pass.
    pilot : bool
        Whether a sample is fitted before the first pass.
    """

    passes: tuple[int, int] = (1, 1)
    rows: int = 0
    n_bytes: int = 0
    blocks: int = 1
    kept: float = 0.0
    pilot: bool = False


def passes_of(job: Job) -> tuple[int, int]:
    """Passes that most fits of the kind of a job take, without the reading of a sample."""
    if job.n_distinct:
        return 1, 1
    few, many = PASSES_AFTER_PILOT if job.pilot else PASSES
    if not job.pilot and job.plan.n_starts > 1:
        # One pass evaluates all starts. Then each start takes its own steps; see `run_starts`.
        few, many = 1 + job.plan.n_starts, many + 1 + FIRST_EVALUATIONS * job.plan.n_starts
    most = job.options.max_nfev
    return (few, many) if most is None else (min(few, most), min(many, most))


def expected_of(
    job: Job, engine: InMemoryEngine | DaskEngine | CollapsedEngine, *, resumed: bool = False
) -> Expected:
    """What is known of a job whose engine is open; a fit that is resumed has no pilot."""
    few, many = passes_of(job)
    rows = engine_of_rows(engine)
    blocks, kept = 1, 0.0
    if not isinstance(rows, InMemoryEngine):
        blocks, kept = rows.stream.n_blocks, rows.keeping.share
    if isinstance(job.strategy, Streamed):
        sample = sampled(job, job.strategy)
        whole = sample is not None and sample.whole
        few, many = few + whole, many + whole
    n_bytes = sum(int(array.nbytes) for array in job.data.operands)
    return Expected((few, many), job.data.n_rows, n_bytes, blocks, kept, job.pilot and not resumed)
