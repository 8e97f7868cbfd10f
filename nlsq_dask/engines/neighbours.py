"""A second chance for series by the answers of their neighbours in the map.

In a map, neighbours have similar parameters. In each of a few rounds a series is offered the
estimates of its neighbours along the axes of the map. It is fitted again from the best of these
estimates in two cases: the series has no answer, or the estimates cost less than its own answer, as
its fit has ended in a worse minimum. The new answer is taken if it is a success.

A round looks at the answers of the round before, so that after r rounds the answer of a series
depends on the series up to r steps away, and on no others. A block that is read with r series
around it has the answers that it has within one large block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.frame_rows import IntArray
from nlsq_dask.engines.series import Field, SeriesProblem
from nlsq_dask.engines.series_block import FROM_ROWS, SeriesBlock

#: Rounds, and so the number of series around a block that its answers depend on.
ROUNDS = 6


def refined(block: SeriesBlock, packed: FloatArray) -> FloatArray:
    """The packed answer (k, n) of a block after all rounds."""
    found = _Rounds(block, packed.copy())
    changed = np.ones(block.n_series, np.bool_)
    for _ in range(ROUNDS):
        changed = found.round(changed)
        if not changed.any():
            break
    return found.packed


@dataclass
class _Rounds:
    block: SeriesBlock
    packed: FloatArray

    def round(self, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Offer the answers that changed to their neighbours; flags (n,) of new answers."""
        fields = {f.name: f for f in self.block.problem.fields}
        status, chi2 = (self.packed[fields[name].planes.start] for name in ("status", "chi2"))
        from_rows = np.isin(status, FROM_ROWS)
        popt = self.packed[fields["popt"].planes]
        cost = np.where(status > 0, chi2, np.inf)
        best, start = cost.copy(), np.full_like(popt, np.nan)
        number = np.arange(self.block.n_series)
        for neighbour in neighbours(self.block.map_shape):
            offers = (neighbour >= 0) & ~from_rows
            offers[offers] &= (changed & (status > 0))[neighbour[offers]]
            asked = number[offers]
            if asked.size:
                theirs = popt[:, neighbour[asked]]
                offered = self._fitted(asked, theirs, 1)[fields["chi2"].planes.start]
                less = offered < best[asked]
                best[asked[less]] = offered[less]
                start[:, asked[less]] = theirs[:, less]
        again = np.flatnonzero(~np.isnan(start).any(axis=0))
        return self._fit_again(again, start[:, again], fields)

    def _fit_again(
        self, again: IntArray, start: FloatArray, fields: dict[str, Field]
    ) -> NDArray[np.bool_]:
        changed = np.zeros(self.block.n_series, np.bool_)
        if again.size:
            new = self._fitted(again, start, self.block.problem.max_nfev)
            good = new[fields["status"].planes.start] > 0
            nfev = fields["nfev"].planes.start
            new[nfev] += self.packed[nfev, again]
            self.packed[:, again[good]] = new[:, good]
            changed[again[good]] = True
        return changed

    def _fitted(self, series: IntArray, start: FloatArray, max_nfev: int) -> FloatArray:
        """The packed answer (k, n) of some series from other starts (p, n)."""
        started = self.block.part(series).started(start)
        return replace(started, problem=replace(started.problem, max_nfev=max_nfev)).fitted()


def neighbours(shape: Sequence[int]) -> list[IntArray]:
    """Numbers (n,) of the next series in each direction of a map; -1 beyond its edge."""
    number = np.arange(int(np.prod(shape))).reshape(shape)
    found = []
    for axis in range(len(shape)):
        for step in (1, -1):
            shifted = np.full_like(number, -1)
            inner = [slice(None)] * len(shape)
            other = list(inner)
            inner[axis], other[axis] = (slice(1, None), slice(None, -1))[::step]
            shifted[tuple(inner)] = number[tuple(other)]
            found.append(shifted.ravel())
    return found


def wants(problem: SeriesProblem) -> bool:
    """Whether series get a second chance."""
    return problem.refine == "neighbours" and bool(problem.map_axes)
