"""A few rows in memory that stand for all: for guesses, and for what may be tried cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.constraints import reduce_start
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.in_memory import InMemoryEvaluator
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.memory import sampled
from nlsq_dask.io.observations import Observations

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEvaluator

# Rows in memory that are sampled: this part of them, or so many if that is more. One in 50 leaves
# an error of √50 = 7 standard errors of the whole, which one step on all rows makes a thousandth.
SAMPLE_PART = 50
SAMPLE_ROWS = 20_000


class LazySample:
    """Rows of some blocks of streamed data, or every k-th row of data in memory.

    They are taken when they are first asked for; of streamed data, read once for all samples alike.

    Parameters
    ----------
    job : Job
        A fit with a guess or a pilot.
    evaluator : InMemoryEvaluator or DaskEvaluator
    """

    def __init__(self, job: Job, evaluator: InMemoryEvaluator[Any] | DaskEvaluator) -> None:
        self._job = job
        self._evaluator = evaluator
        self._rows: Observations | None = None
        self._all_read: bool | None = None

    @property
    def n_passes(self) -> int:
        """Readings of all rows that it takes: 1 where a guess is shown all blocks, mostly 0."""
        if self._all_read is None:  # as of a fit that is resumed, to whose passes it counted
            blocks = sampled(self._job)
            self._all_read = blocks is not None and blocks.whole
        return int(self._all_read)

    def __call__(self) -> Observations:
        """The rows."""
        if self._rows is None:
            self._rows, self._all_read = self._take()
        return self._rows

    def _take(self) -> tuple[Observations, bool]:
        job, evaluator = self._job, self._evaluator
        if isinstance(evaluator, InMemoryEvaluator):
            return job.data.thinned(max(SAMPLE_ROWS, job.data.n_rows // SAMPLE_PART)), False
        blocks = sampled(job)
        assert blocks is not None, "a fit with a guess or a pilot"
        return evaluator.sample(len(job.spec.names), whole=blocks.whole)


def guessed_start(job: Job, sample: Observations) -> FloatArray:
    """Free parameters (q,) that the model itself guesses from a sample.

    Raises
    ------
    ModelError
        If the guess raises, or is no finite number for each parameter.
    """
    assert job.guess is not None, "a model with a guess"
    x: Any = sample.coords
    if sample.structure == "single":
        x = sample.coords[0]
    elif sample.structure == "stacked":
        x = np.stack(sample.coords)
    names = job.spec.names
    try:
        guess = job.guess(x, sample.y)
        values = [guess[n] for n in names] if isinstance(guess, Mapping) else guess
        start = np.asarray(values, np.float64)
    except (ArithmeticError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _errors.guess_failed(job.spec.label, repr(error)) from error
    if start.shape != (len(names),) or not np.isfinite(start).all():
        raise _errors.guess_failed(job.spec.label, f"it returned {_errors.shown(guess)}")
    unbounded = np.full_like(job.lower, np.inf)
    free = reduce_start(job.reduction, start, names, -unbounded, unbounded)
    return np.clip(free, job.lower, job.upper)
