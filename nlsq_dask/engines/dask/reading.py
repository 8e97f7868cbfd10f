"""Read the arrays of a block: wait and try again where a store fails, and name what failed.

Errors of reading are those of the operating system and of the libraries that talk to stores. They
are tried again, on threads and on clusters alike, after waits that grow and differ from task to
task, so that a store that comes back is not asked by all tasks at once. Any other error ends the
fit at once. What is read, and the order of the sums, do not depend on the waits.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from dask._task_spec import DataNode, Dict, GraphNode, Task, TaskRef
from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.dask.signals import NOBODY, Signals, signals_of
from nlsq_dask.io.announced import Announced
from nlsq_dask.io.lazy_arrays import zarr_inside
from nlsq_dask.io.places import Place, stored_chunks

T = TypeVar("T")

# Times that a failed reading is tried again.
RETRIES = 3

# Seconds before the first of them, the factor from one wait to the next, and the longest wait. Each
# wait is lengthened by up to LENGTHENED of itself, at random. Three waits are 62 to 78 s: a store
# that is away for a minute costs about a minute, and a single reset connection two seconds.
FIRST_WAIT = 2.0
WAIT_GROWTH = 5.0
LONGEST_WAIT = 50.0
LENGTHENED = 0.25

# Seconds between two looks, while a task waits, whether the fit is over.
STOP_LOOK_SECONDS = 0.1

# Packages whose exceptions are those of a store: the classes need not be imported to be known.
CLOUDS = ("adlfs", "azure", "botocore", "aiobotocore", "gcsfs", "google", "obstore", "s3fs")
NETWORKS = ("aiohttp", "fsspec", "httpcore", "httpx", "icechunk", "requests", "urllib3")
STORES = frozenset((*CLOUDS, *NETWORKS))

# Packages that read or decode. An error that passes through them is an error of reading, too.
FORMATS = ("h5netcdf", "h5py", "netCDF4", "pyarrow", "rasterio", "tifffile", "zarr")
READING_PACKAGES = ("imagecodecs", "numcodecs", "zarrs")
READERS = STORES | frozenset((*FORMATS, *READING_PACKAGES))

# Errors that no wait cures: of a store's answers these words in the name of the exception, or a
# status from 400 to 499 other than "timed out", "too early" and "too many requests".
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
FINAL_WORDS = (
    "NotFound", "Permission", "Forbidden", "Unauth", "Credential", "NotSupported", "Invalid",
)  # fmt: skip
PASSING_STATUS = (408, 425, 429)

# The status in a message of obstore, whose exceptions have no attribute for it: "Server returned
# non-2xx status code: 400 Bad Request".
STATUS_IN_TEXT = re.compile(r"\bstatus code: ([1-5]\d\d)\b")

# Name of Dask's function that runs several nodes that were fused to one.
FUSED = "_execute_subgraph"

# The waits must not take numbers from the generator of the user's own program.
_random = random.Random()  # no secret


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a failed reading is tried again, and after which waits.

    Attributes
    ----------
    count : int
        Most times that a reading is tried again.
    first : float
        Seconds before the first of them.
    """

    count: int = RETRIES
    first: float = FIRST_WAIT

    def wait(self, number: int) -> float:
        """Seconds before a reading is tried again for the `number`-th time, from 0."""
        seconds = min(self.first * WAIT_GROWTH**number, LONGEST_WAIT)
        return seconds * (1.0 + LENGTHENED * _random.random())


DEFAULT_RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a task reads.

    Attributes
    ----------
    retries : Retries
    signals : Signals
        Of the task.
    tells : bool
        Whether the task tells each block that it begins.
    failed : callable
        ``failed(place, cause, attempts)`` makes the error of a reading that failed.
    done : str
        What is done, for messages: "read", or "written" where a task writes.
    """

    retries: Retries
    signals: Signals
    tells: bool = False
    failed: Callable[[Place, str, int], _errors.ReadingError] = _errors.reading_failed
    done: str = "read"

    def begin(self, block: tuple[int, ...]) -> None:
        """Begin a block, by its index; raise if nobody waits for the task."""
        self.signals.check()
        if self.tells:
            self.signals.begin(block)

    def run(self, read: Callable[[], T], place: Callable[[], Place]) -> T:
        """Call a function that reads, again if an error may pass.

        Parameters
        ----------
        read : callable
            Goes on where it was if it is called again.
        place : callable
            What is read; called if that fails.

        Raises
        ------
        ReadingError
            If it cannot be read.
        """
        number = 0
        while True:
            attempt = _Attempt(place, self.retries.count - number, number, self.failed)
            with attempt:  # the last attempt returns or raises
                return read()
            self._wait(attempt, number)
            number += 1

    def _wait(self, attempt: _Attempt, number: int) -> None:
        """Say that the task waits, and wait."""
        seconds = self.retries.wait(number)
        self.signals.tell(
            _errors.reading_waits(attempt.place(), attempt.cause, seconds, number + 1, self.done),
            _errors.reading_waits_shortly(seconds),
        )
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.signals.check()
            time.sleep(min(left, STOP_LOOK_SECONDS))
        self.signals.check()


# Reads once, and waits for nobody.
READ_ONCE = Reading(Retries(0), NOBODY)


class _Attempt:
    """One attempt to read: names the error, or hides it where another attempt is left.

    A context manager sees every kind of error, of libraries that are not known here.
    """

    __slots__ = ("_failed", "_left", "_number", "cause", "place")

    def __init__(
        self,
        place: Callable[[], Place],
        left: int,
        number: int,
        failed: Callable[[Place, str, int], _errors.ReadingError],
    ) -> None:
        self.place = place
        self._failed = failed
        self.cause = ""
        self._left = left
        self._number = number

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None or not isinstance(error, Exception) or isinstance(error, _errors.FitError):
            return False
        passing = is_passing(error)
        if not passing and not _is_of_reader(error, traceback):
            error.add_note(_errors.while_reading(self.place()))
            return False
        self.cause = _errors.cause_of(error)
        if passing and self._left:
            return True
        failed = self._failed(self.place(), self.cause, self._number + 1)
        # A traceback would show the cause, and its own causes, with their secrets.
        raise failed from (None if _has_secret(error) else error)


def is_passing(error: BaseException) -> bool:
    """Whether an error is one of reading that a later attempt may not meet."""
    if isinstance(error, FINAL):
        return False
    if isinstance(error, OSError):  # TimeoutError and ConnectionError are OSErrors
        return True
    kinds = [kind for kind in type(error).__mro__ if _package(kind.__module__) in STORES]
    if not kinds or any(word in kind.__name__ for word in FINAL_WORDS for kind in kinds):
        return False
    status = _status_of(error)
    refused = status is not None and 400 <= status < 500
    return not refused or status in PASSING_STATUS


def _status_of(error: BaseException) -> int | None:
    """The status of the answer of a store that an error tells; None if it tells none."""
    status = getattr(error, "status", getattr(error, "status_code", getattr(error, "code", None)))
    if isinstance(status, int):
        return status
    told = STATUS_IN_TEXT.search(str(error))
    return int(told[1]) if told else None


def _is_of_reader(error: BaseException, traceback: TracebackType | None) -> bool:
    """Whether an error comes from a library that reads or decodes."""
    if isinstance(error, OSError) or _package(type(error).__module__) in READERS:
        return True
    while traceback is not None:
        if _package(traceback.tb_frame.f_globals.get("__name__", "")) in READERS:
            return True
        traceback = traceback.tb_next
    return False


def _has_secret(error: BaseException) -> bool:
    """Whether the message of an error, or of an error that led to it, has a secret."""
    chain: BaseException | None = error
    while chain is not None:
        text = str(chain)
        if _errors.without_secrets(text) != text:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _package(module: str) -> str:
    return module.partition(".")[0]


@dataclass(frozen=True, slots=True)
class SharedNode:
    """A node of the graph that many groups need, as the function of a task of its own.

    Attributes
    ----------
    node : GraphNode
    name : str or None
        Name of the array in messages; None for an array upstream.
    retries : Retries
    fit : str
        Identifier of the fit.
    """

    node: GraphNode
    name: str | None
    retries: Retries
    fit: str

    def __call__(self, values: Mapping[Key, Any]) -> Any:
        """Compute the node from the values that it depends on."""

        def place() -> Place:
            index = tuple(i for i in _chunk(self.node.key)[1] if isinstance(i, int))
            if self.name is None:
                return Place((), (), (), stored_in(self.node, values))
            return Place((self.name,), index, (), stored_in(self.node, values))

        return Reading(self.retries, signals_of(self.fit)).run(partial(self.node, values), place)


def shared_nodes(
    graph: Mapping[Key, GraphNode], names: Mapping[str, str], retries: Retries, fit: str
) -> dict[Key, GraphNode]:
    """The graph that groups share, with tasks that try again and name what they read.

    Parameters
    ----------
    graph : mapping
    names : mapping
        Names of the arrays of a fit in messages, by their names in the graph.
    retries : Retries
    fit : str
        Identifier of the fit.
    """
    reading: dict[Key, GraphNode] = {}
    for key, node in graph.items():
        if isinstance(node, Task):
            needed = Dict({k: TaskRef(k) for k in node.dependencies})
            function = SharedNode(node, names.get(_chunk(key)[0]), retries, fit)
            reading[key] = Task(key, function, needed)
        else:
            reading[key] = node
    return reading


def _chunk(key: Any) -> tuple[str, tuple[Any, ...]]:
    """Name of the array that a key of a graph is a chunk of, and the index of the chunk."""
    return (str(key[0]), key[1:]) if isinstance(key, tuple) else (str(key), ())


def place_in_group(
    node: GraphNode,
    values: Mapping[Key, Any],
    nodes: Mapping[Key, GraphNode],
    operands: Sequence[tuple[Key | None, Announced]],
    announced: Mapping[Key, Announced],
) -> Place:
    """What a node of a group is a part of.

    Parameters
    ----------
    node : GraphNode
    values : mapping
        Values of the keys that are made already.
    nodes : mapping
        Nodes of the block, by key.
    operands : sequence of (key or None, Announced)
        The arrays of the block.
    announced : mapping
        Chunks that blocks are cut from, by key.
    """
    stored = stored_in(node, values)
    if node.key in announced:
        own = announced[node.key]
        return Place((own.name,), own.index, own.box, stored)
    users = [of for key, of in operands if key is not None and _needs(nodes, key, node.key)]
    if not users:
        return Place((), (), (), stored)
    return Place(tuple(of.name for of in users), users[0].index, users[0].box, stored)


def _needs(nodes: Mapping[Key, GraphNode], key: Key, needed: Key) -> bool:
    """Whether a node depends on another, directly or not, or is the other."""
    seen: set[Key] = set()
    open_keys = [key]
    while open_keys:
        current = open_keys.pop()
        if current == needed:
            return True
        if current not in seen and current in nodes:
            seen.add(current)
            open_keys.extend(nodes[current].dependencies)
    return False


def stored_in(node: GraphNode, values: Mapping[Key, Any]) -> tuple[str, ...]:
    """The Zarr chunks that a node of a graph reads."""
    with suppress(AttributeError, TypeError, ValueError):  # a message is no place for an error
        return tuple(stored_chunks(array, box) for array, box in zarr_reads([node], values))
    return ()


def zarr_reads(
    found: Sequence[Any],
    values: Mapping[Key, Any],
    inside: Callable[[Any], Any] = zarr_inside,
) -> Iterator[tuple[Any, tuple[slice, ...] | None]]:
    """Zarr arrays among the arguments of nodes, each with the part of it that is read.

    Parameters
    ----------
    found : sequence
        Nodes, and arguments of nodes.
    values : mapping
        Values that nodes refer to, by key.
    inside : callable
        What to take an argument for; None to look on.
    """
    for value, after in zip(found, [*found[1:], None], strict=False):
        known = _resolved(value, values)
        if (array := inside(known)) is not None:
            yield array, _box(_resolved(after, values))
        elif isinstance(known, Task) and getattr(known.func, "__name__", "") == FUSED:
            inner, _, names, *given = (_resolved(argument, values) for argument in known.args)
            own = dict(zip(names, given, strict=False))
            held = {key: node.value for key, node in inner.items() if isinstance(node, DataNode)}
            tasks = [node for key, node in inner.items() if key not in held]
            yield from zarr_reads(tasks, {**values, **own, **held}, inside)
        elif isinstance(known, Task):
            yield from zarr_reads([*known.args, *known.kwargs.values()], values, inside)
        elif isinstance(known, dict):
            yield from zarr_reads(list(known.values()), values, inside)
        elif isinstance(known, list | tuple):
            yield from zarr_reads(list(known), values, inside)


def _resolved(value: Any, values: Mapping[Key, Any]) -> Any:
    """The value that an argument of a node stands for, if it is known."""
    value = values.get(value.key) if isinstance(value, TaskRef) else value
    return value.value if isinstance(value, DataNode) else value


def _box(value: Any) -> tuple[slice, ...] | None:
    """The slices that select a part of an array; None for anything else."""
    if isinstance(value, Task):  # a tuple in a graph
        value = tuple(value.args)
    if isinstance(value, tuple) and value and all(isinstance(s, slice) for s in value):
        return value
    return None
