"""What fits of many series do about chunks that are not in their Zarr stores.

A series with a missing chunk is fitted to the fill value, and may converge. The chunks are listed
when all series are fitted, so that a chunk that was deleted meanwhile is told as well.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from nlsq_dask import _errors
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.fitting.missing_chunks import absent_read, all_absent, checked_arrays, to_tell
from nlsq_dask.io.missing_chunks import ChunkIndex, declared_decoding, fill_means_missing
from nlsq_dask.io.sources import is_dask

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.absent import ArrayId

# Names of maps of parameters in messages.
NAMES = {
    "p0": "p0[{!r}]",
    "lower": "the lower bound of {}",
    "upper": "the upper bound of {}",
    "fixed": "fixed[{!r}]",
}


def refuse_missing_chunks(job: EachJob) -> None:
    """Refuse data of which chunks are missing, where the caller asks for it.

    Raises
    ------
    ReadingError
        If there are such chunks.
    InputError
        If a store cannot list its keys.
    """
    if job.missing_chunks == "raise" and (told := _missing(job)):
        raise _errors.chunks_absent_refused(told, can_omit=False)


def warn_of_missing_chunks(job: EachJob) -> None:
    """Warn of missing chunks that count as data."""
    if job.missing_chunks == "warn" and (told := _missing(job)):
        _errors.warn_caller(_errors.chunks_absent(told, can_omit=False))


def _missing(job: EachJob) -> list[_errors.AbsentChunks]:
    """The missing chunks that series read."""
    return [*_missing_data(job), *_missing_maps(job)] if job.lazy else []


def _missing_data(job: EachJob) -> list[_errors.AbsentChunks]:
    """The missing chunks of y, the coordinates and sigma."""
    checked = checked_arrays(job.data, job.missing_chunks)
    absent = all_absent(checked, job.missing_chunks)
    if not any(absent.values()):
        return []
    from nlsq_dask.engines.dask.groups import make_stream  # an engine, loaded for use

    stream = make_stream(replace(job.data, series_axes=job.axes.fit))
    return absent_read(stream, checked, absent)[1]


def _missing_maps(job: EachJob) -> list[_errors.AbsentChunks]:
    """The missing chunks of starting values, bounds and fixed values that are maps."""
    from nlsq_dask.engines.dask.absent import chunks_read, stored_below  # loaded for use

    names = job.parameters.names
    maps = {
        NAMES[kind].format(names[i]): array
        for (kind, i), array in job.parameters.maps.items()
        if is_dask(array)
    }
    checked = {}
    for key, stored in stored_below(maps.items()).items():
        decoding = declared_decoding(stored.array) if job.data.decode else None
        if not fill_means_missing(stored.array, decoding):
            checked[key] = stored
    absent = all_absent(checked, job.missing_chunks)
    read: dict[ArrayId, set[ChunkIndex]] = defaultdict(set)
    if any(absent.values()):
        for array in maps.values():
            for key, chunks in chunks_read(array, absent).items():
                read[key] |= chunks
    return to_tell(checked, read)
