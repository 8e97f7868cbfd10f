"""What a fit does about chunks that are not in their Zarr stores.

A chunk that Zarr has not stored reads as the fill value. By default a fit lists the chunks beside
its first pass, and warns: they may be lost, or they may be data, since Zarr stores no chunk of fill
values alone. Masks are not checked, since most chunks of most masks hold the fill value alone. Nor
are arrays with a fill value that means "missing": these rows are left out or refused anyway.

Where later passes read the chunks again, the chunks are listed again at the end: a chunk that was
deleted meanwhile has changed the data. The values that all passes compare show most such chunks,
but none of a few rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nlsq_dask import _errors
from nlsq_dask.core.structure import argument_name
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.locations import failures
from nlsq_dask.io.missing_chunks import (
    ChunkIndex,
    absent_chunks,
    chunk_label,
    declared_decoding,
    fill_means_missing,
    n_stored,
)

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.absent import ArrayId, StoredOperand
    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.engines.dask.groups import Stream
    from nlsq_dask.io.observations import Observations

MISSING_CHUNKS = ("warn", "raise", "omit", "fill")

# Most keys of a message.
FEW_KEYS = 6

# Most seconds that a fit which has ended waits for the list of its chunks.
LIST_WAIT_SECONDS = 60.0


def with_chunks_checked(job: Job) -> Job:
    """The job without the rows of chunks that are not in the store, where it leaves these out.

    Raises
    ------
    ReadingError
        If there are such chunks, and the job refuses them or needs one for each block.
    InputError
        If a store cannot list its keys.
    """
    if job.missing_chunks not in ("raise", "omit") or not isinstance(job.strategy, Streamed):
        return job
    checked = checked_arrays(job.data, job.missing_chunks)
    absent = all_absent(checked, job.missing_chunks)
    blocks, told = absent_read(job.strategy.stream, checked, absent)
    if not told:
        return job
    if job.missing_chunks == "raise":
        raise _errors.chunks_absent_refused(told)
    if len(blocks) == job.strategy.stream.n_blocks:
        raise _errors.no_block_without_absent(told)
    for each in told:
        logger.warning("%s: their rows are left out", each)
    return replace(job, data=replace(job.data, omitted=job.data.omitted | blocks))


class ChunkWatch:
    """Lists the chunks of a fit beside its first pass, and warns of those that are missing.

    Parameters
    ----------
    job : Job
        Nothing is listed unless it warns of missing chunks.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._warning: _errors.MissingDataWarning | None = None
        self._checked: dict[ArrayId, StoredOperand] = {}
        self._found: dict[ArrayId, frozenset[ChunkIndex] | None] = {}
        self._reads_again = False
        self._deleted: list[_errors.AbsentChunks] = []
        self._thread: threading.Thread | None = None
        if job.missing_chunks == "warn" and isinstance(job.strategy, Streamed):
            self._thread = _listing(self._look)

    def expect(self, engine: InMemoryEngine | DaskEngine | CollapsedEngine) -> None:
        """Look again at the end if passes of an engine read chunks again."""
        if self._thread is not None and not isinstance(engine, InMemoryEngine | CollapsedEngine):
            self._reads_again = engine.keeping.share < 1.0

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._thread is not None and error is None:
            _wait_for(self._thread)
        self.tell()
        changed = isinstance(error, _errors.DataChangedError)
        if self._reads_again and (error is None or changed):
            again = _listing(self._look_again)
            again.start()
            _wait_for(again)
        if self._deleted:
            raise _errors.data_changed_chunks(self._deleted) from error

    def tell(self) -> None:
        """Warn of missing chunks, once, if the list is complete."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        if self._warning is not None:
            _errors.warn_caller(self._warning)

    def _look(self) -> None:
        """List the chunks of all arrays."""
        job = self._job
        self._checked = checked = checked_arrays(job.data, job.missing_chunks)
        found = {key: listed_absent(stored) for key, stored in checked.items()}
        told = self._told({key: chunks for key, chunks in found.items() if chunks})
        if told:
            self._warning = _errors.chunks_absent(told)
        self._found = found

    def _look_again(self) -> None:
        """List the chunks of the fit that the store lacks now, and did not lack before."""
        absent = {}
        for key, before in self._found.items():
            now = None if before is None else listed_absent(self._checked[key])
            absent[key] = frozenset() if now is None or before is None else now - before
        self._deleted = self._told(absent)

    def _told(self, absent: Mapping[ArrayId, frozenset[ChunkIndex]]) -> list[_errors.AbsentChunks]:
        """What to tell of absent chunks that blocks read."""
        if not any(absent.values()):
            return []
        strategy = self._job.strategy
        assert isinstance(strategy, Streamed)
        return absent_read(strategy.stream, self._checked, absent)[1]


def _listing(look: Callable[[], None]) -> threading.Thread:
    """A thread that lists chunks."""
    return threading.Thread(target=look, name="nlsq-chunks", daemon=True)


def _wait_for(thread: threading.Thread) -> None:
    """Wait for a list of chunks, but not for ever."""
    thread.join(LIST_WAIT_SECONDS)
    if thread.is_alive():
        logger.warning(_errors.chunks_not_listed(["the data"], "the store is slow"))


def checked_arrays(data: Observations, choice: str) -> dict[ArrayId, StoredOperand]:
    """The Zarr arrays in which a missing chunk would be taken for data, or for rows of the fit.

    Parameters
    ----------
    data : Observations
    choice : {"warn", "raise", "omit"}
        What happens to missing chunks.
    """
    from nlsq_dask.engines.dask.absent import stored_operands  # an engine, loaded for use

    found = stored_operands(data)
    return {key: s for key, s in found.items() if not _is_harmless(data, choice, s)}


def _is_harmless(data: Observations, choice: str, stored: StoredOperand) -> bool:
    """Whether missing chunks of an array are as good as stored ones."""
    if set(stored.names) == {"mask"}:
        return True
    if choice == "omit":
        return False
    arguments = [argument_name(data.structure, name) for name in stored.names]
    decodings = [data.decodings[name] for name in arguments if name in data.decodings]
    decoding = decodings[0] if decodings else None
    if decoding is None and not stored.plain and data.decode:  # xarray decodes
        decoding = declared_decoding(stored.array)
    marked = data.rule.fill_value if set(stored.names) == {"y"} else None
    return fill_means_missing(stored.array, decoding, marked)


def all_absent(
    checked: Mapping[ArrayId, StoredOperand], choice: str
) -> dict[ArrayId, frozenset[ChunkIndex]]:
    """Absent chunks of arrays. A store that does not tell is refused, except for "warn".

    Raises
    ------
    InputError
        If a store cannot list its keys.
    """
    absent = {}
    for key, stored in checked.items():
        found = listed_absent(stored)
        if found is None and choice != "warn":
            raise _errors.store_not_listed(stored.names, str(stored.array.store), choice)
        absent[key] = found or frozenset()
    return absent


def listed_absent(stored: StoredOperand) -> frozenset[ChunkIndex] | None:
    """Absent chunks of an array; None, and a note in the log, where the store does not tell."""
    cause = "its store does not list keys"
    try:
        found = absent_chunks(stored.array)
    except failures() as error:
        found, cause = None, _errors.cause_of(error)
    if found is None:
        logger.info(_errors.chunks_not_listed(stored.names, cause))
    return found


def absent_read(
    stream: Stream,
    checked: Mapping[ArrayId, StoredOperand],
    absent: Mapping[ArrayId, frozenset[ChunkIndex]],
) -> tuple[frozenset[tuple[int, ...]], list[_errors.AbsentChunks]]:
    """Blocks that read absent chunks, and what to tell of these chunks."""
    if not any(absent.values()):
        return frozenset(), []
    from nlsq_dask.engines.dask.absent import reads_of  # an engine, loaded for use

    reads = reads_of(stream, absent)
    return frozenset(reads.blocks), to_tell(checked, reads.chunks)


def to_tell(
    checked: Mapping[ArrayId, StoredOperand], absent: Mapping[ArrayId, Collection[ChunkIndex]]
) -> list[_errors.AbsentChunks]:
    """What to tell of absent chunks that are read."""
    told = []
    for key, chunks in absent.items():
        if not chunks:
            continue
        array = checked[key].array
        first = [chunk_label(array, index) for index in sorted(chunks)[:FEW_KEYS]]
        text, fill = str(array.store), array.fill_value
        told.append(
            _errors.AbsentChunks(
                checked[key].names, first, len(chunks), n_stored(array), text, fill
            )
        )
    return told
