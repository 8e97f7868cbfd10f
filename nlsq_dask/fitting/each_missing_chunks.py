"""What fits of many series do about chunks that are not in their Zarr stores.

A series with a missing chunk is fitted to the fill value, and may converge. The chunks are listed
when all series are fitted, so that a chunk that was deleted meanwhile is told as well.
"""

from __future__ import annotations

from dataclasses import replace

from nlsq_dask import _errors
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.fitting.missing_chunks import absent_read, all_absent, checked_arrays


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
    if not job.lazy:
        return []
    checked = checked_arrays(job.data, job.missing_chunks)
    absent = all_absent(checked, job.missing_chunks)
    if not any(absent.values()):
        return []
    from nlsq_dask.engines.dask.groups import make_stream  # an engine, loaded for use

    stream = make_stream(replace(job.data, series_axes=job.axes.fit))
    return absent_read(stream, checked, absent)[1]
