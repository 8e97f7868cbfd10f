"""Errors and notes of reading data, and of the workers that read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from nlsq_dask._errors.kinds import (
    FEW_LISTED,
    ClusterError,
    ClusterWarning,
    InputError,
    MissingDataWarning,
    ReadingError,
    in_units,
    join_names,
    shown,
)

# Characters of the message of a cause that are quoted.
MOST_QUOTED = 400

# Parts of URLs that may hold secrets: the user and password before the host, and the query, in
# which signed URLs have their signature. And values of what is named like a secret.
_USER = re.compile(r"(?<=://)[^/@\s'\"]+@")
_QUERY = re.compile(r"(?<=[\w/])\?[^\s'\")>]*=[^\s'\")>]*")
_SECRET = re.compile(
    r"((?:secret|password|passwd|token|credential|signature|api_?key|access_?key|account_?key)\w*"
    r"['\"]?\s*[=:]\s*(?:bearer\s+)?)['\"]?[^\s'\",;)}>]+['\"]?",
    re.IGNORECASE,
)

# Elements of S3's errors that hold an identifier of a key, a session token or a signature.
_ELEMENT = re.compile(
    r"(<(AWSAccessKeyId|Token-\d+|Signature\w*|StringToSign\w*|CanonicalRequest\w*)>).*?(</\2>|$)",
    re.DOTALL,
)

# An error of S3, as XML, with its code and its message.
_ANSWER = re.compile(
    r"(?:<\?xml[^>]*>\s*)?<Error>.*?<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?"
    r".*?(?:</Error>|$)",
    re.DOTALL,
)

# Before the fields of obstore's structures, which repeat the message of its errors.
DEBUG_SOURCE = "Debug source:"

# Words of causes that say that a store, or a file system, refuses access (for S3:
# docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
_REFUSED = re.compile(
    r"permission|denied|forbidden|unauth|credential|expired|InvalidAccessKey|InvalidToken"
    r"|SignatureDoesNotMatch|status code: 40[13]\b",
    re.IGNORECASE,
)


class PlaceInData(Protocol):
    """A part of the data, as :class:`nlsq_dask.io.places.Place` describes it."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def index(self) -> tuple[int, ...]: ...
    @property
    def box(self) -> tuple[slice, ...]: ...
    @property
    def stored(self) -> tuple[str, ...]: ...


def without_secrets(text: str) -> str:
    """A text without passwords, signatures and the like, of URLs and of options."""
    text = _ELEMENT.sub(r"\1***\3", text)
    return _SECRET.sub(r"\1***", _QUERY.sub("?***", _USER.sub("***@", text)))


def brief_message(text: str) -> str:
    """The message of a library of stores, without what its authors alone need."""
    text = text.partition(DEBUG_SOURCE)[0]
    return _ANSWER.sub(lambda m: ", ".join(filter(None, m.groups())), text)


def cause_of(error: BaseException) -> str:
    """An error in one line, with its kind and without secrets."""
    text = " ".join(without_secrets(brief_message(str(error))).split())
    if len(text) > MOST_QUOTED:
        text = f"{text[:MOST_QUOTED]} ..."
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind


def named_block(place: PlaceInData) -> str:
    """A part of the data in words: arrays, block, rows, and where it is stored."""
    if not place.names:
        what = "an array from which the data are made"
    else:
        what = join_names(place.names)
        if place.index:
            what = f"block {place.index} of {what}"
        if place.box:
            what += f", which is {place.names[0]}[{slices_of(place.box)}]"
    if place.stored:
        what += f" ({'; '.join(map(without_secrets, place.stored))})"
    return what


def slices_of(box: Sequence[slice]) -> str:
    """Slices as they are written in an index."""
    return ", ".join(f"{s.start}:{s.stop}" for s in box)


def is_refused(cause: str) -> bool:
    """Whether a cause says that a store, or a file system, refuses access."""
    return _REFUSED.search(cause) is not None


def access_refused(cause: str, go_on: str) -> str | None:
    """What to do about a store that refuses access; None if the cause is another.

    Parameters
    ----------
    cause : str
        See :func:`cause_of`.
    go_on : str
        How to go on where the fit was.
    """
    if not is_refused(cause):
        return None
    return (
        "check the permissions, and whether the credentials have expired. Credentials that the "
        "store finds where it runs are renewed in time, and those of storage_options are not. "
        f"{go_on} goes on where this fit ended."
    )


def reading_failed(place: PlaceInData, cause: str, attempts: int) -> ReadingError:
    remedy = access_refused(cause, "A fit with checkpoint=... and resume=True") or (
        "check that the store can be reached and the chunk is whole, write a damaged chunk again "
        "or leave out its rows (on_error='omit'), or pass retries=... for a store that is away for "
        "longer."
    )
    error = ReadingError(
        f"{named_block(place)}, could not be read ({cause}), tried {in_times(attempts)}: {remedy}"
    )
    error.what = f"{named_block(place)} ({cause})"
    return error


def series_not_read(place: PlaceInData, cause: str, attempts: int) -> ReadingError:
    """A block of series could not be read."""
    remedy = access_refused(cause, "A fit with store=... and resume=True") or (
        "check that the store can be reached and the chunk is whole, write a damaged chunk again "
        "or replace it by NaN, or pass retries=... for a store that is away for longer."
    )
    error = ReadingError(
        f"{named_block(place)}, could not be read ({cause}), tried {in_times(attempts)}: {remedy}"
    )
    error.what = f"{named_block(place)} ({cause})"
    return error


def maps_not_written(place: PlaceInData, cause: str, attempts: int) -> ReadingError:
    """The maps of a region could not be written."""
    remedy = access_refused(cause, "resume=True") or (
        "check that the store can be reached and has room, and go on with resume=True."
    )
    return ReadingError(
        f"{named_block(place)}, could not be written ({cause}), tried {in_times(attempts)}: "
        f"{remedy}"
    )


def in_times(attempts: int) -> str:
    """A number of attempts in words."""
    return "once" if attempts == 1 else f"{attempts} times"


def no_block_read(what: str, n_blocks: int) -> ReadingError:
    """All blocks were lost."""
    return ReadingError(
        f"none of the {n_blocks} blocks could be read, the first is {what}: check that the store "
        "can be reached with these credentials. on_error='omit' leaves out single blocks."
    )


def blocks_omitted(whats: Sequence[str], n_blocks: int) -> MissingDataWarning:
    """Blocks were left out."""
    few = "; ".join(whats[:FEW_LISTED])
    more = f"; and {len(whats) - FEW_LISTED} more" if len(whats) > FEW_LISTED else ""
    return MissingDataWarning(
        f"{len(whats)} of {n_blocks} blocks could not be read and are left out of the fit: "
        f"{few}{more}. result.blocks_omitted lists all blocks that are left out. Write them again, "
        "or pass on_error='raise' to end the fit at the first of them."
    )


def killed_workers(place: PlaceInData, deaths: int) -> str:
    """What a block did that is left out."""
    return f"{named_block(place)} ({deaths} workers died one after the other)"


def while_reading(place: PlaceInData) -> str:
    """Added to an error of the user's own code that makes a block."""
    return f"nlsq_dask was making {named_block(place)}."


def reading_waits(
    place: PlaceInData, cause: str, seconds: float, number: int, done: str = "read"
) -> str:
    """A store fails, and the fit waits."""
    return (
        f"{named_block(place)}, could not be {done} ({cause}): trying again in {seconds:.0f} s, "
        f"for the {_ordinal(number)} time. The fit goes on where it was; pass retries=0 to end it "
        "at the first error."
    )


def reading_waits_shortly(seconds: float) -> str:
    return f"waiting {seconds:.0f} s for the store"


def retries_invalid(value: object) -> InputError:
    return InputError(
        f"retries = {shown(value)}: pass the number of times that a chunk is read again after an "
        "error of reading, a whole number of at least zero."
    )


def worker_may_pause(
    planned: float, *, limit: float, pauses_at: float, base: float
) -> ClusterWarning:
    return ClusterWarning(
        f"a worker with {in_units(limit)} of memory may take {in_units(planned)} for this fit, of "
        f"which {in_units(base)} are for the program itself, and Dask pauses a worker at "
        f"{in_units(pauses_at)}: the fit hangs if all workers pause. Start workers with more "
        "memory or fewer threads, or pass smaller chunks."
    )


def _paused(states: Sequence[tuple[str, float, float]], n_workers: int) -> str:
    """Which workers are paused, and why; or that there are none."""
    if not n_workers:
        return "the cluster has no worker"
    if not states:
        return f"none of the {n_workers} workers of the cluster takes tasks"
    few = [f"{a} has {in_units(used)} of {in_units(limit)}" for a, used, limit in states]
    return (
        f"{len(states)} of {n_workers} workers of the cluster are paused, since their memory is "
        f"nearly used up ({join_names(few)})"
    )


_MORE_MEMORY = (
    "Start workers with more memory or fewer threads, or pass smaller chunks, or cache=False so "
    "that no rows are kept"
)


def workers_wait(
    states: Sequence[tuple[str, float, float]], n_workers: int, wait: float | None, option: str
) -> str:
    remedy = "Start workers, for example with cluster.scale(2)" if not n_workers else _MORE_MEMORY
    what = f"{_paused(states, n_workers)}, and no group of blocks was finished in a while."
    if wait is None:
        return f"{what} {remedy}."
    return (
        f"{what} {remedy}. The fit waits {wait:.0f} s for a worker (dask.config.set "
        f"{{{option!r}: ...}}) and then ends."
    )


def workers_wait_shortly(n_paused: int, n_workers: int) -> str:
    if not n_workers:
        return "waiting for a worker"
    return f"waiting, {n_paused} of {n_workers} workers are paused"


def no_worker_runs(
    states: Sequence[tuple[str, float, float]], n_workers: int, waited: float, option: str
) -> ClusterError:
    remedy = "Start workers, for example with cluster.scale(2)" if not n_workers else _MORE_MEMORY
    return ClusterError(
        f"{_paused(states, n_workers)}, and no worker has run for {waited:.0f} s. {remedy}; or "
        f"wait longer, with dask.config.set({{{option!r}: '30 minutes'}})."
    )


def cluster_lost(cause: str) -> ClusterError:
    return ClusterError(
        f"the cluster has lost the tasks of this fit ({cause}): the scheduler has ended or was "
        "restarted, or the client was closed or has cancelled them. Connect again; with "
        "checkpoint=... and resume=True the fit goes on after the last pass that was finished."
    )


def block_kills_workers(places: Sequence[PlaceInData], deaths: int) -> ClusterError:
    """Workers died one after the other with the same block, or with a block of the same group."""
    what = named_block(places[0])
    if len(places) > 1:
        what = f"one of {len(places)} blocks, from {what}, to {named_block(places[-1])}"
    return ClusterError(
        f"{deaths} workers died one after the other while they had {what}: look at the logs of "
        "the workers. Mostly their memory runs out, so that smaller chunks, fewer threads or "
        "workers with more memory help; or a library crashes on the block, so that it must be "
        "written again or left out, with on_error='omit' or a mask."
    )


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    ending = "th" if number % 100 in (11, 12, 13) else endings.get(number % 10, "th")
    return f"{number}{ending}"
