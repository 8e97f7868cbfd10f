"""Bytes that Python and NumPy allocate while a function runs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

# Threads that an earlier test left may allocate during a call.
CALLS = 3


def traced_peak(function: Callable[[], object]) -> int:
    """The most bytes at a time, in the call of a few that takes the least."""
    return min(_peak(function) for _ in range(CALLS))


def _peak(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
