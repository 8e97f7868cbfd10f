"""Where a user wants files: a path on this machine, or the URL of a place in an object store.

Files in object stores are written by fsspec, which Dask needs, too. Only stores in which a file
appears under its name when it is complete are taken: a reader of the others may meet half a file.
Credentials are those of fsspec's own configuration.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nlsq_dask import _errors
from nlsq_dask.io import locations
from nlsq_dask.io.files import MOST_FILE_BYTES, Folder, LocalFolder, check_size

# Schemes of stores whose put of a whole object is atomic. S3: "Amazon S3 Data Consistency Model";
# Google: "Cloud Storage consistency"; Azure: "Put Blob" and "Put Block List".
ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


class ObjectFolder:
    """Files under a prefix of an object store.

    Parameters
    ----------
    system : fsspec.AbstractFileSystem
    root : str
        The prefix in the store.
    url : str
        For messages, without credentials.
    secret : str
        The URL as the user wrote it.
    options : mapping, optional
        Options of the store, whose values are kept out of messages.
    """

    def __init__(
        self,
        system: Any,
        root: str,
        url: str,
        secret: str,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._system, self._root, self._url, self._secret = system, root.rstrip("/"), url, secret
        self._options = options or {}

    def __str__(self) -> str:
        return self._url

    def shown(self, name: str) -> str:
        """URL of a file in messages."""
        return f"{self._url.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names of the objects; none if there are none."""
        with self._refused():
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def read(self, name: str) -> bytes:
        """Read a file."""
        path = f"{self._root}/{name}"
        with self._refused():
            size = self._system.info(path)["size"]
            if isinstance(size, int) and size <= MOST_FILE_BYTES:
                return bytes(self._system.cat_file(path))
        raise _errors.file_too_large(MOST_FILE_BYTES)

    def write(self, name: str, raw: bytes) -> None:
        """Write a file completely or not at all, by one put."""
        check_size(raw)
        with self._refused():
            self._system.pipe_file(f"{self._root}/{name}", raw)

    def write_new(self, name: str, raw: bytes) -> bool:
        """Write a file by one put; False if another has the name already.

        Not all stores take a put on the condition that there is no such object. In those that do
        not, two writers at the same moment may choose the same name.
        """
        check_size(raw)
        path = f"{self._root}/{name}"
        with self._refused():
            self._system.invalidate_cache()
            if self._system.exists(path):
                return False
            try:
                self._system.pipe_file(path, raw, mode="create")
            except FileExistsError:
                return False
            except locations.failures() as error:
                if getattr(error, "errno", None) == errno.EBUSY:  # the condition is not the cause
                    raise
                self._system.invalidate_cache()
                if self._system.exists(path):
                    return False
                self._system.pipe_file(path, raw)
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with self._refused():
            try:
                self._system.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn what a store raises into an OSError without credentials."""
        try:
            yield
        except FileNotFoundError:
            raise
        except locations.failures() as error:
            text = locations.without_secrets(str(error), self._secret, self._options)
            problem = _errors.store_refused(self._url, type(error).__name__, text)
            raise problem from (error if text == str(error) else None)


def checked_place(
    place: Any, argument: str, not_a_path: Callable[[object], Exception]
) -> str | Path:
    """The path or the URL that a user passed.

    Parameters
    ----------
    place : path-like
    argument : str
        Name in messages.
    not_a_path : callable
        Makes the error for a value that is neither text nor path-like.

    Returns
    -------
    Path or str
        A path; or the URL of a place in an object store.

    Raises
    ------
    InputError, InputTypeError
        If the value is neither, or if no file has such a name.
    """
    try:
        text = os.fspath(place)
    except TypeError:
        raise not_a_path(place) from None
    if not isinstance(text, str):
        raise not_a_path(place)
    here = locations.local_path(text, argument)
    if here is not None:
        return here
    parts = urlsplit(text)
    if parts.scheme not in ATOMIC or parts.query or parts.fragment:
        raise _errors.place_not_atomic(argument, locations.shown_url(text), ATOMIC)
    return text


def open_folder(
    place: Any,
    argument: str,
    not_a_path: Callable[[object], Exception],
    options: Mapping[str, Any] | None = None,
) -> Folder:
    """Open a directory, or a prefix of an object store.

    Parameters
    ----------
    place, argument, not_a_path
        As for :func:`checked_place`.
    options : mapping, optional
        Options of the object store. By default they are those of fsspec's configuration.

    Raises
    ------
    InputError, InputTypeError
        If the place is unusable.
    MissingLibraryError
        If no library is installed that opens the URL.
    """
    checked = checked_place(place, argument, not_a_path)
    if isinstance(checked, Path):
        return LocalFolder(checked)
    from fsspec.core import url_to_fs

    shown, given = locations.shown_url(checked), dict(options or {})
    try:
        system, root = url_to_fs(checked, **locations.fsspec_options(checked, given))
    except ImportError as error:
        scheme = urlsplit(checked).scheme
        raise _errors.location_needs_library(argument, shown, scheme, error) from error
    except locations.failures() as error:
        text = locations.without_secrets(str(error), checked, given)
        raise _errors.place_not_opened(argument, shown, text) from None
    return ObjectFolder(system, root, shown, checked, given)


def below(place: str | Path, name: str) -> str | Path:
    """The place of a name in a directory or under a URL."""
    return place / name if isinstance(place, Path) else f"{place.rstrip('/')}/{name}"


def folder_and_name(url: str) -> tuple[Folder, str]:
    """Open the folder of a saved result, and return it with the result's name."""
    scheme, _, path = url.partition("://")
    parent, _, name = path.rpartition("/")
    if not name:
        raise _errors.path_unusable("path", url)
    return open_folder(f"{scheme}://{parent}", "path", _errors.result_not_a_path), name
