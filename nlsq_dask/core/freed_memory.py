"""How much of the memory that a process frees its C library keeps for the next pieces.

Dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_=65536``. The GNU C library then returns
each piece above 128 KiB to the system as soon as the piece is freed, and the system clears each
page anew. An object of 8 MB from an object store took 8 ms of processor time, and 25 ms with the
setting: the libraries of stores take fresh memory for each answer, which cannot be used again here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

from nlsq_dask.core.resources import return_freed_memory

# Variables of the environment that set the thresholds (mallopt(3)).
TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"
PIECE_VARIABLE = "MALLOC_MMAP_THRESHOLD_"
TUNABLES = "GLIBC_TUNABLES"

# Numbers of the thresholds, as ``malloc.h`` of the GNU C library has them.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

# The threshold of pieces where the environment sets none: 128 KiB, and the most that the library
# raises the threshold to by itself, as pieces are freed; the other threshold is then twice as large
# (mallopt(3), DEFAULT_MMAP_THRESHOLD_MAX).
PIECE_BYTES = 1 << 17
MOST_PIECE_BYTES = 1 << 25


class FreedMemory:
    """Lets the C library keep what is freed, as it does without the setting of Dask's nannies.

    Nothing is done where the environment does not set the threshold, as outside of Dask's workers;
    where it also sets the size of pieces; or where there is no such library.

    Attributes
    ----------
    kept : bool
        Whether the library keeps what is freed, by a call of :meth:`keep`.
    """

    def __init__(self) -> None:
        self.kept = False

    def keep(self) -> None:
        """Keep freed pieces of up to 32 MiB, until 64 MiB are free behind the last piece."""
        trim = trim_threshold()
        if trim is not None and not self.kept:
            self.kept = _set(MOST_PIECE_BYTES, max(trim, 2 * MOST_PIECE_BYTES))

    def give_back(self) -> None:
        """Set the thresholds as they were, and return all that is free to the system."""
        trim = trim_threshold()
        if trim is not None and self.kept:
            _set(PIECE_BYTES, trim)
            self.kept = False
            return_freed_memory()


def trim_threshold() -> int | None:
    """Bytes that the environment sets as threshold; None where it sets none, or other ones too."""
    value = os.environ.get(TRIM_VARIABLE, "")
    others = PIECE_VARIABLE in os.environ or "malloc" in os.environ.get(TUNABLES, "")
    return int(value) if value.isdecimal() and not others else None


def _set(piece: int, trim: int) -> bool:
    """Set both thresholds, in bytes; whether the C library has done so."""
    function = _mallopt()
    if function is None:
        return False
    return bool(function(M_MMAP_THRESHOLD, piece) and function(M_TRIM_THRESHOLD, trim))


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The function of the C library; None where there is none."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    found: Callable[[int, int], int] | None = getattr(library, "mallopt", None)
    return found
