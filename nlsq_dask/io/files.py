"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file so that it appears under its name only when it is complete.

    It is written under another name beside it, flushed to the disk, and renamed; a file that was
    there is replaced at once.

    Raises
    ------
    OSError
        If the disk refuses; a file that was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:  # the rename itself must survive a power cut
        os.fsync(directory)
    finally:
        os.close(directory)
