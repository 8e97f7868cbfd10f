"""Whether the maps of a store are those of the data of this run.

A run that goes on with a store knows what was fitted from the description of the store, but not
which values the observations had. Some series whose maps are stored are fitted again, and compared:
data that changed between two runs would leave maps of both in one store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.convergence import NEAR_TOL
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.fit_block import fit_block
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.fitting.same_data import COMPARED_BLOCKS
from nlsq_dask.io.places import Place

Index = tuple[int, ...]


def check_same_series(
    job: EachJob,
    stored: Mapping[str, Any],
    ready: Sequence[Index],
    *,
    starts: Sequence[Sequence[int]],
    store: str,
) -> None:
    """Fit a series of some finished regions again, and compare it with the store.

    Parameters
    ----------
    job : EachJob
    stored : mapping of str to dask.array.Array
        The fields of the answer, as they are stored.
    ready : sequence of tuple of int
        Regions that are finished.
    starts : sequence of sequence of int
        Where the regions begin and end along each axis of the map.
    store : str
        Where the store is, for the message.

    Raises
    ------
    InputError
        If a series has other estimates, or other rows, than the store says.
    ReadingError
        If a series cannot be read.
    """
    # From its own end a fit stays there, or goes on by as much as its search may have left.
    most_apart = max(NEAR_TOL, 2.0 * job.problem.stat_tol)
    for region in _spread(ready):
        index = _converged(stored, region, starts)
        if index is None:
            continue
        found = _fields_of(stored, index)
        again = _fitted_from(found["popt"], job, index)
        if not _agree(found, again, most_apart):
            raise _errors.map_store_of_other_data(
                store,
                index,
                job.parameters.names,
                stored=found["popt"].tolist(),
                now=again["popt"].tolist(),
            )


def _spread(ready: Sequence[Index]) -> Iterable[Index]:
    """Some regions, the first and the last among them."""
    numbers = np.linspace(0, len(ready) - 1, min(COMPARED_BLOCKS, len(ready)))
    return (ready[int(number)] for number in numbers)


def _converged(
    stored: Mapping[str, Any], region: Index, starts: Sequence[Sequence[int]]
) -> Index | None:
    """Index of the first series of a region with a success; None if there is none."""
    begins = [own[i] for own, i in zip(starts, region, strict=True)]
    ends = [own[i + 1] for own, i in zip(starts, region, strict=True)]
    status = np.asarray(stored["status"][tuple(map(slice, begins, ends))])
    good = np.argwhere(status > 0)
    return tuple((good[0] + begins).tolist()) if len(good) else None


def _fields_of(stored: Mapping[str, Any], index: Index) -> dict[str, FloatArray]:
    """What the store says of a series."""
    names = ("popt", "perr", "n_points")
    return {name: np.asarray(stored[name][(..., *index)], np.float64) for name in names}


def _fitted_from(start: FloatArray, job: EachJob, index: Index) -> dict[str, FloatArray]:
    """The answer of one series, read and fitted now, from the estimates that are stored.

    From its own start the series may end in another minimum than with the estimates of a neighbour.
    """
    from nlsq_dask.engines.dask.reading import (  # an engine, loaded for use
        FIRST_WAIT,
        Reading,
        Retries,
    )
    from nlsq_dask.engines.dask.signals import NOBODY

    reading = Reading(Retries(job.retries, FIRST_WAIT), NOBODY)
    arrays = reading.run(partial(job.block, index), lambda: Place(("y",), index))
    kept = [i for i, role in enumerate(job.problem.roles) if role.kind != "p0"]
    roles = tuple(job.problem.roles[i] for i in kept)
    problem = replace(job.problem, start=start, guess=None, refine=None, roles=roles)
    fields = problem.unpacked(fit_block(problem, [arrays[i] for i in kept]))
    series = (..., *(0 for _ in index))
    return {name: np.asarray(values[series], np.float64) for name, values in fields.items()}


def _agree(
    stored: Mapping[str, FloatArray], again: Mapping[str, FloatArray], most_apart: float
) -> bool:
    """Whether two answers, so many standard errors apart, can be those of the same rows."""
    if stored["n_points"] != again["n_points"]:
        return False
    apart = np.abs(again["popt"] - stored["popt"])
    size = np.abs(stored["popt"])
    # A series without noise has errors of the size of its rounding.
    close = apart <= most_apart * stored["perr"] + np.sqrt(np.finfo(float).eps) * size
    return bool(np.all(close))
