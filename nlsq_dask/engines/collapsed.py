"""The engine of rows that share their coordinates: one reading, and then one row for each.

Before the first question the rows are read once: for each distinct coordinate, the weighted mean of
the observations and the scatter about the mean (:mod:`nlsq_dask.questions.collapse`). The means
stay in memory. The sums of all rows are the sums of the means plus constants. Questions that the
means do not answer are asked of the rows.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Answers, AnswerT, CostsAt, Several, SumsAt
from nlsq_dask.core.structure import series_order
from nlsq_dask.engines.in_memory import InMemoryEngine, standard_engine
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.derivatives import replaced_rows
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.collapse import Means, MeansOf
from nlsq_dask.questions.question import AnyQuestion
from nlsq_dask.questions.spread import Spread

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine


@dataclass(frozen=True)
class _Collapsed:
    """What the reading found.

    Attributes
    ----------
    means : Observations
        Weighted means, as one row for each distinct coordinate.
    engine : InMemoryEngine
        Of the means.
    weight, scatter : float
        Weight of all rows, and their weighted scatter about the means.
    rows : Spread
        Means with equal weights.
    plain : InMemoryEngine or None
        Of the means with equal weights; None without sigma.
    found : Means
        The answer.
    n_points : int
        Rows that were not left out.
    """

    means: Observations
    engine: InMemoryEngine
    weight: float
    scatter: float
    rows: Spread
    plain: InMemoryEngine | None
    found: Means
    n_points: int


class CollapsedEngine:
    """Answers questions of sums and costs from the means at the distinct coordinates.

    Parameters
    ----------
    rows : Engine
        Engine of all rows. It is closed with this engine.
    data : Observations
        What `rows` reads.
    kernels : Kernels
        Of row-wise models with linear loss.

    Attributes
    ----------
    rows : InMemoryEngine or DaskEngine
        Engine of all rows.
    n_passes : int
        Readings of all rows so far.
    """

    def __init__(
        self, rows: InMemoryEngine | DaskEngine, data: Observations, kernels: Kernels
    ) -> None:
        self.rows = rows
        self._data = data
        self._kernels = kernels
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._opened.enter_context(self.rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def n_passes(self) -> int:
        """Readings of all rows so far."""
        return self.rows.n_passes

    @n_passes.setter
    def n_passes(self, number: int) -> None:
        self.rows.n_passes = number

    @property
    def means(self) -> Observations:
        """The weighted means, as one row for each distinct coordinate. Reads the rows once.

        Raises
        ------
        InputError
            If all rows are left out.
        """
        return self._collapsed.means

    def ask(self, question: AnyQuestion[AnswerT]) -> AnswerT:
        """Answer a question for all rows; see :class:`~nlsq_dask.engines.engine.Engine`.

        Sums and costs need no reading but the first. Other questions read the rows.
        """
        answer: AnswerT = self._answer(question)
        return answer

    def _answer(self, question: Any) -> Any:
        if isinstance(question, Several):
            return Answers(tuple(map(self._answer, question.questions)))
        if isinstance(question, SumsAt):
            return self._sums(question)
        if isinstance(question, CostsAt):
            return self._collapsed.engine.ask(question) + 0.5 * self._collapsed.scatter
        return self.rows.ask(question)

    @cached_property
    def _collapsed(self) -> _Collapsed:
        """Read the rows, and open the engines of the means."""
        data = self._data
        shapes = tuple(c.shape for c in data.coords)
        shape, weighted = collapsed_shape(data), data.sigma is not None
        found = self.rows.ask(MeansOf(varies_along(data), shape, shapes, weighted))
        cell = found.whole(shape, shapes, weighted)
        n_points = int(cell.rows.weight.sum())
        if not n_points:
            raise _errors.all_left_out(data.n_rows, data.causes)
        best = cell.rows
        if cell.weighted is not None:
            # Weights whose squares are zero in float64 leave no mean.
            lost = cell.weighted.weight == 0.0
            best = replace(cell.weighted, mean=np.where(lost, cell.rows.mean, cell.weighted.mean))
        empty = cell.rows.weight == 0.0
        means = _observations(data, best, cell.coords, empty)
        plain = None
        if cell.weighted is not None:
            plain = self._open(_observations(data, cell.rows, cell.coords, empty))
        return _Collapsed(
            means,
            self._open(means),
            float(best.weight.sum()),
            float(best.scatter.sum()),
            cell.rows,
            plain,
            found,
            n_points,
        )

    def _open(self, means: Observations) -> InMemoryEngine:
        return self._opened.enter_context(standard_engine(means, self._kernels))

    def _sums(self, question: SumsAt) -> NormalEquations:
        """Sums over all rows."""
        known = self._collapsed
        sums = known.engine.ask(question)
        chi2 = sums.chi2 + known.scatter
        squares = chi2
        if known.plain is not None:
            plain = known.plain.ask(replace(question, observe=False))
            squares = plain.chi2 + float(known.rows.scatter.sum())
        # The sum of |y - f| is no function of the means.
        moments = replace(sums.moments, abs_residuals=np.nan, sq_residuals=squares)
        largest = sums.largest
        if question.observe:
            moments = replace(
                moments,
                weight=known.weight,
                scatter=moments.scatter + known.scatter,
                variance=known.found.variance,
            )
        if largest is not None:
            weighted = known.found.largest[1:] if self._data.sigma is not None else ()
            largest = np.array([known.found.largest[0], *largest[1:-1], *weighted])
        return replace(
            sums,
            cost=0.5 * chi2,
            chi2=chi2,
            n_points=known.n_points,
            n_skipped=known.found.n_left_out,
            moments=moments,
            largest=largest,
            n_differenced=self._rows_differenced(question) if sums.n_differenced else 0,
        )

    def _rows_differenced(self, question: SumsAt) -> int:
        """Rows with a difference in place of a derivative that is not finite."""
        spec, means = self._kernels.specs[question.model], self._collapsed.means
        shape = means.y.shape
        order = series_order(means.series_axes, len(shape))
        coords = tuple(np.broadcast_to(c, shape).transpose(order).ravel() for c in means.coords)
        numbers = self._collapsed.rows.weight.transpose(order).ravel()
        replaced = replaced_rows(spec, coords, question.params, numbers > 0.0)
        return int(numbers[replaced].sum())


def varies_along(data: Observations) -> tuple[bool, ...]:
    """For each dimension of y, whether a coordinate varies along it, or series run along it."""
    return tuple(
        axis in data.series_axes or any(c.shape[axis] > 1 for c in data.coords)
        for axis in range(data.y.ndim)
    )


def collapsed_shape(data: Observations) -> tuple[int, ...]:
    """Numbers of distinct coordinates along each dimension of y."""
    pairs = zip(data.y.shape, varies_along(data), strict=True)
    return tuple(n if varies else 1 for n, varies in pairs)


def _observations(
    data: Observations, spread: Spread, coords: tuple[FloatArray, ...], empty: FloatArray
) -> Observations:
    """Means as rows, with the weights of all rows that they stand for."""
    weight = np.where(empty, 1.0, np.maximum(spread.weight, np.finfo(np.float64).tiny))
    return Observations(
        spread.mean,
        coords,
        1.0 / np.sqrt(weight),
        data.structure,
        lazy=False,
        masks=(empty,) if empty.any() else (),
        propagates=data.propagates,
        series_axes=data.series_axes,
    )


def engine_of_rows(
    engine: InMemoryEngine | DaskEngine | CollapsedEngine,
) -> InMemoryEngine | DaskEngine:
    """The engine that reads the rows: of collapsed rows, the engine that they are read by."""
    return engine.rows if isinstance(engine, CollapsedEngine) else engine
