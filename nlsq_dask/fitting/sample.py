"""Samples: some of the rows, in memory, for the pilot and for guesses of a start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.constraints import reduce_start
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import model_input
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.memory import sample_rows, sampled
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.chunks import whole_box
from nlsq_dask.io.observations import Observations
from nlsq_dask.models.base import Model
from nlsq_dask.models.lane_guess import guess_within
from nlsq_dask.models.lane_limits import Limits
from nlsq_dask.questions.sample import LongestSeries, OneSeries, Sample, Thinned

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

# A sample of data in memory has one row in ROWS_A_SAMPLED_ROW, and at least LEAST_SAMPLE_ROWS. One
# row in 50 leaves an error of √50 = 7 standard errors of all rows. One step on all rows makes a
# thousandth of the error.
ROWS_A_SAMPLED_ROW = 50
LEAST_SAMPLE_ROWS = 20_000

# If nearly all rows of the sampled blocks are left out, the number of blocks grows by this factor.
SAMPLE_GROWTH = 8


# Samples by their number of blocks.
Taken: TypeAlias = dict[int, Sample]


class LazySample:
    """Rows of some blocks of streamed data, or every k-th row of data in memory.

    Of collapsed rows the means are the sample. For a model of whole series it is one series.

    The sample is taken at the first call.

    Parameters
    ----------
    job : Job
        A fit with a guess or a pilot.
    engine : InMemoryEngine, DaskEngine or CollapsedEngine
        Of the fit.
    taken : dict, optional
        Samples of streamed data by the number of blocks. Fits that share an engine share them, so
        that each sample is read once.
    """

    def __init__(
        self,
        job: Job,
        engine: InMemoryEngine | DaskEngine | CollapsedEngine,
        taken: Taken | None = None,
    ) -> None:
        self._job = job
        self._engine = engine
        self._taken: Taken = {} if taken is None else taken
        self._rows: Observations | None = None
        self._all_read: bool | None = None

    @property
    def n_passes(self) -> int:
        """Passes that the sample takes: 1 where a guess is shown all blocks, else 0."""
        if self._all_read is None:  # of a fit that is resumed, whose passes include the sample's
            self._all_read = self._reads_all
        return int(self._all_read)

    @property
    def _reads_all(self) -> bool:
        """Whether all blocks of streamed data are read."""
        job = self._job
        if not isinstance(job.strategy, Streamed) or job.n_distinct or job.spec.series is not None:
            return False
        blocks = sampled(job, job.strategy)
        return blocks is not None and blocks.whole

    def __call__(self) -> Observations:
        """The rows."""
        if self._rows is None:
            self._rows, self._all_read = self._take()
        return self._rows

    def _take(self) -> tuple[Observations, bool]:
        """The rows, and whether all rows were read for them."""
        job, engine = self._job, self._engine
        if job.spec.series is not None:
            return _one_series(job, engine), False
        if isinstance(engine, CollapsedEngine):
            return engine.means.thinned(max(LEAST_SAMPLE_ROWS, sample_rows(job))), False
        if isinstance(engine, InMemoryEngine):
            return job.data.thinned(
                max(LEAST_SAMPLE_ROWS, job.data.n_rows // ROWS_A_SAMPLED_ROW)
            ), False
        return sample_of(
            engine,
            job.data,
            most=sample_rows(job),
            least=len(job.spec.names),
            whole=self._reads_all,
            taken=self._taken,
        )


def _one_series(job: Job, engine: InMemoryEngine | DaskEngine | CollapsedEngine) -> Observations:
    """One whole series: of the means, of all series in memory, or of some blocks."""
    question, data = LongestSeries(len(job.data.coords)), job.data
    if isinstance(engine, CollapsedEngine):
        found = OneSeries.of(engine.means.block(whole_box(engine.means.y.shape)))
    elif isinstance(engine, InMemoryEngine):
        found = OneSeries.of(data.block(whole_box(data.y.shape)))
    else:
        from nlsq_dask.engines.dask.sampling import sample_blocks  # an engine, loaded for use

        with engine.of_blocks(sample_blocks(engine.omissions.n_blocks)) as sampled:
            found = sampled.ask(question)
    if not found.y.size:
        raise _errors.all_left_out(data.n_rows, data.causes)
    return data.sample_of(found.y, found.coords, None)


def sample_of(
    engine: DaskEngine,
    data: Observations,
    *,
    most: int,
    least: int = 1,
    whole: bool = False,
    taken: Taken,
) -> tuple[Observations, bool]:
    """Rows of a few whole chunks, spread over the chunk grid of every dimension.

    Parameters
    ----------
    engine : DaskEngine
    data : Observations
        What the engine reads.
    most : int
        Rows of the sample, about.
    least : int
        Rows that must be among them, as many as a model has parameters.
    whole : bool
        Read all blocks instead.
    taken : dict
        Samples that were read before, by the number of blocks; a new sample is added.

    Returns
    -------
    rows : Observations
        In memory, flat, without rows that are left out; of at most 2 % of the blocks, or of 16
        blocks, a quarter of fewer than 64, where that is more. Where these hold fewer than `least`
        rows that count, of more blocks.
    all_read : bool
        Whether these are all blocks. That is a pass, and counts as one.

    Raises
    ------
    InputError
        If all rows are left out.
    """
    from nlsq_dask.engines.dask.sampling import sample_blocks  # an engine, loaded for use

    n_blocks = engine.omissions.n_blocks  # also those that are left out

    def read(count: int) -> Sample:
        if count not in taken:
            taken[count] = _thinned(engine, data, count, most)
            engine.n_passes += count >= n_blocks
        return taken[count]

    n_sampled = n_blocks if whole else sample_blocks(n_blocks)
    rows = read(n_sampled)
    while rows.y.size < least and n_sampled < n_blocks:
        n_sampled *= SAMPLE_GROWTH
        rows = read(n_sampled)
    if not rows.y.size:
        raise _errors.all_left_out(data.n_rows, data.causes)
    return data.sample_of(rows.y, rows.coords, rows.sigma), n_sampled >= n_blocks


def _thinned(engine: DaskEngine, data: Observations, n_blocks: int, most: int) -> Sample:
    """Some of the rows of so many blocks."""
    with engine.of_blocks(n_blocks) as sampled:
        step = -(-sampled.stream.n_rows // most)
        return sampled.ask(Thinned(step, len(data.coords), data.sigma is not None))


def guessed_start(job: Job, sample: Observations) -> FloatArray:
    """Free parameters (q,) that the model guesses from a sample.

    A model of :mod:`nlsq_dask.models` looks at shapes inside the bounds alone, next to the values
    of fixed parameters, as in :func:`nlsq_dask.fit_each`.

    Raises
    ------
    ModelError
        If the guess raises, or is no finite number for each parameter.
    """
    assert job.guess is not None, "a model with a guess"
    x = model_input(sample.structure, sample.coords, np.stack)
    names = job.spec.names
    try:
        guess = _guess_within(job, sample)
        guess = job.guess(x, sample.y) if guess is None else guess
        values = [guess[n] for n in names] if isinstance(guess, Mapping) else guess
        start = np.asarray(values, np.float64)
    except (ArithmeticError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _errors.guess_failed(job.spec.label, repr(error)) from error
    if start.shape != (len(names),) or not np.isfinite(start).all():
        raise _errors.guess_failed(job.spec.label, f"it returned {_errors.shown(guess)}")
    unbounded = np.full_like(job.lower, np.inf)
    free = reduce_start(job.reduction, start, names, -unbounded, unbounded)
    return np.clip(free, job.lower, job.upper)


def _guess_within(job: Job, sample: Observations) -> FloatArray | None:
    """Guess (p,) of a model of this library inside the bounds; None where there are none."""
    model = getattr(job.guess, "__self__", None)
    if not isinstance(model, Model):
        return None
    reduction = job.reduction
    lower, upper = reduction.expand_bounds(job.lower, job.upper).T
    sides = (np.where(reduction.is_fixed, reduction.offset, side) for side in (lower, upper))
    limits = Limits(*(side[:, None] for side in sides))
    coords = [np.asarray(coord, np.float64).ravel() for coord in sample.coords]
    return guess_within(model, coords, np.asarray(sample.y, np.float64).ravel(), limits)
