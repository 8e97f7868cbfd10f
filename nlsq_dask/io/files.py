"""Files that are written completely or not at all, and folders of such files.

What is read is taken for a text: nothing in it is executed, and no name or address in it is opened.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from nlsq_dask import _errors

# Largest file that is written and read. A checkpoint holds at most four p × p matrices, in 26
# characters a number: 936 MB for 3,000 parameters.
MOST_FILE_BYTES = 10**9


class Folder(Protocol):
    """Files in one place. All methods raise OSError where the place refuses."""

    def names(self) -> list[str]:
        """Names of the files; none if the place does not exist."""

    def shown(self, name: str) -> str:
        """Path of a file in messages."""

    def read(self, name: str) -> bytes:
        """Read a file; ValueError if it is no regular file, or too large."""

    def write(self, name: str, raw: bytes) -> None:
        """Write a file completely or not at all."""

    def write_new(self, name: str, raw: bytes) -> bool:
        """Write a file completely or not at all; False if another has the name already."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""


class LocalFolder:
    """A directory, which is made when the first file is written.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Names of the entries; none if there is no directory."""
        try:
            return [entry.name for entry in self.path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def shown(self, name: str) -> str:
        """Path of a file in messages."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """Read a file; a symbolic link is refused."""
        with opened(self.path / name, follow=False) as file:
            return read_rest(file)

    def write(self, name: str, raw: bytes) -> None:
        """Write a file completely or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / name, raw)

    def write_new(self, name: str, raw: bytes) -> bool:
        """Write a file completely or not at all; False if another has the name already."""
        self.path.mkdir(parents=True, exist_ok=True)
        return write_atomically(self.path / name, raw, replace=False)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        (self.path / name).unlink(missing_ok=True)


@contextmanager
def opened(path: Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Parameters
    ----------
    path : Path
    follow : bool
        Whether the path may be a symbolic link.

    Raises
    ------
    ValueError
        If the path is something else, such as a directory or a pipe. Opening does not wait for a
        pipe's other end.
    OSError
        If the file cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise _errors.file_is_a_link() from None
        if error.errno == errno.ENXIO:  # a socket
            raise _errors.not_a_regular_file() from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _errors.not_a_regular_file()
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_rest(file: BinaryIO) -> bytes:
    """Read the rest of a file; ValueError if it is too large."""
    raw = file.read(MOST_FILE_BYTES + 1)
    if len(raw) > MOST_FILE_BYTES:
        raise _errors.file_too_large(MOST_FILE_BYTES)
    return raw


def check_size(raw: bytes) -> None:
    """Refuse, by an OSError, to write what would not be read again."""
    if len(raw) > MOST_FILE_BYTES:
        raise _errors.content_too_large(len(raw), MOST_FILE_BYTES)


def write_atomically(path: Path, raw: bytes, *, replace: bool = True) -> bool:
    """Write a file so that it appears under its name only when it is complete.

    The content is written to a temporary file in the same directory, flushed to the disk, and
    renamed. The rename replaces an existing file at once. The temporary file has a name of its own
    and is new, so that neither a link nor another thread is in the way.

    Parameters
    ----------
    path : Path
    raw : bytes
    replace : bool
        Whether an existing file is replaced.

    Returns
    -------
    bool
        False if there is an existing file, which was to stay.

    Raises
    ------
    OSError
        If the disk refuses. An existing file is then unchanged.
    """
    check_size(raw)
    temporary = path.with_name(f".nlsq_dask-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        elif not _linked(temporary, path):
            return False
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is none
    directory = os.open(path.parent, os.O_RDONLY)
    try:  # the rename must survive a power cut
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file a second name, unless another file has the name."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        temporary.replace(path)
    return True
