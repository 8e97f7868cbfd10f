"""A fit that runs in a task of a cluster, and waits for other tasks of the same cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def aside() -> Iterator[None]:
    """Let other tasks have the thread of the task that this code runs in; nothing elsewhere.

    Fits that wait in all threads of a cluster would wait for ever: no thread is left for the tasks
    that they wait for.
    """
    from dask.context import thread_state
    from distributed import rejoin, secede

    if not hasattr(thread_state, "key"):  # no task
        yield
        return
    try:
        secede()
    except KeyError:  # the task has left its thread to others already
        yield
        return
    try:
        yield
    finally:
        rejoin()
