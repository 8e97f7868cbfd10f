"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file so that it appears under its name only when it is complete.

    The content is written to a temporary file in the same directory, flushed to the disk, and
    renamed. The rename replaces an existing file at once.

    Raises
    ------
    OSError
        If the disk refuses. An existing file is then unchanged.
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
    try:  # the rename must survive a power cut
        os.fsync(directory)
    finally:
        os.close(directory)
