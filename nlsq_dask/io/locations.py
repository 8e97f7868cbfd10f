"""Zarr arrays by their location: a path, or the URL of an object in a store.

Object stores are opened by obstore, where it is installed and knows the scheme, and otherwise by
fsspec. Options have the names of either library; names of the credentials and of the endpoint are
translated. A process opens a store once for each bucket and options.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from nlsq_dask import _errors

# Schemes of obstore, and its class for each.
_OBSTORE = {
    "s3": "S3Store",
    "s3a": "S3Store",
    "gs": "GCSStore",
    "gcs": "GCSStore",
    "az": "AzureStore",
    "abfs": "AzureStore",
    "http": "HTTPStore",
    "https": "HTTPStore",
}

# Schemes of the disks of this machine.
LOCAL_SCHEMES = ("file", "local")

# A URL, or a chain of them. A scheme has two letters at least: "C:" is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*://")

# A scheme without both slashes. pathlib takes one of the slashes away.
_LOST_SLASH = re.compile(rf"({'|'.join((*_OBSTORE, *LOCAL_SCHEMES, 'abfss', 'memory'))}):(?!//)")

# Argument with the name of the bucket, where it is not "bucket".
_BUCKET = {"AzureStore": "container_name"}

# Packages of fsspec's file systems.
_FILE_SYSTEMS = {
    "S3Store": "s3fs",
    "GCSStore": "gcsfs",
    "AzureStore": "adlfs",
    "HTTPStore": "aiohttp",
}

# Names of s3fs, gcsfs and adlfs, and those of obstore for the same options.
_NAMES = {
    "S3Store": {
        "key": "access_key_id",
        "secret": "secret_access_key",
        "token": "session_token",
        "anon": "skip_signature",
        "endpoint_url": "endpoint",
        "region_name": "region",
    },
    "GCSStore": {"token": "service_account_path", "endpoint_url": "base_url"},
    "AzureStore": {"sas_token": "sas_key", "anon": "skip_signature"},
    "HTTPStore": {},
}

# How long the libraries of stores ask again by themselves. Seconds are enough for a connection that
# was reset. A store that is away for longer is asked again by the fit, ``retries`` times, and the
# fit says so. By default obstore asks for up to three minutes. botocore asks 5 times, which s3fs
# repeats 5 times, for up to a minute: a checkpoint of several requests took four minutes to fail.
_OBSTORE_RETRIES = {"retry_timeout": timedelta(seconds=10)}
_BOTOCORE_RETRIES = {"total_max_attempts": 2}

# Options that are no secrets. The values of all others are kept out of messages.
_HARMLESS = {
    *("endpoint", "endpoint_url", "base_url", "region", "region_name", "anon", "skip_signature"),
    *("account_name", "allow_http", "use_ssl", "project", "bucket", "asynchronous"),
}

# Exceptions by which libraries say that a store does not answer or refuses, if they are imported.
_FAILURES = (
    ("obstore.exceptions", "BaseError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)

# Texts shorter than this are no secrets. Hiding them would garble the message.
SHORTEST_SECRET = 4

# Stores of obstore that this process has opened: kind, root and options of each.
_opened: deque[tuple[tuple[str, str, dict[str, Any]], Any]] = deque(maxlen=32)
_LOCK = threading.Lock()


def is_location(value: Any) -> bool:
    """Whether an argument is a path or a URL."""
    return isinstance(value, str | os.PathLike)


def is_url(text: str) -> bool:
    """Whether a text is a URL, or a chain of URLs."""
    return _URL.match(text) is not None


def local_path(text: str, argument: str) -> Path | None:
    """The path of a location on the disks of this machine; None for any other URL.

    In a path ``~`` is the folder of a user, as xarray takes it. In a URL ``%20`` is a space, and so
    for other letters.

    Parameters
    ----------
    text : str
        A path or a URL.
    argument : str
        Name in messages.

    Raises
    ------
    InputError
        If no file or directory has such a name, or if the text is only nearly a URL.
    """
    if not text or "\0" in text or not _is_encodable(text):
        raise _errors.path_unusable(argument, text)
    if _LOST_SLASH.match(text):
        raise _errors.url_as_path(argument, text)
    if not is_url(text):
        return Path(os.path.expanduser(text))  # noqa: PTH111 (leaves the name of no user as it is)
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that hold no address; the message may show a password
        raise _errors.url_invalid(argument) from None
    if parts.scheme not in LOCAL_SCHEMES:
        return None
    if parts.query or parts.fragment:
        raise _errors.file_url_with_query(argument, text)
    folder = "" if parts.netloc == "localhost" else parts.netloc
    return Path(unquote(folder + parts.path))


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def open_location(location: Any, name: str, options: Mapping[str, Any] | None) -> Any:
    """Open a Zarr array for reading.

    Parameters
    ----------
    location : str or path-like
        Path of the array, or its URL.
    name : str
        Name of the argument in messages.
    options : mapping or None
        Options of the object store.

    Returns
    -------
    zarr.Array

    Raises
    ------
    InputError
        If there is no Zarr array, or the store cannot be read. The message shows no credential.
    MissingLibraryError
        If no library is installed that opens such a URL.
    """
    import zarr

    url, given = os.fspath(location), dict(options or {})
    here = local_path(url, name)
    shown = shown_url(url)
    parts = urlsplit(url)
    if here is None and ("?" in url or (parts.fragment and parts.scheme in ("http", "https"))):
        raise _errors.location_with_query(name, shown)
    found: Any = None
    try:
        store, path = _store_of(url, given) if here is None else (_local_store(here), "")
        found = zarr.open(store, path=path, mode="r")
    except ImportError as error:
        raise _errors.location_needs_library(name, shown, urlsplit(url).scheme, error) from error
    except failures() as error:
        text = without_secrets(str(error), url, given)
        missing = isinstance(error, zarr.errors.NodeNotFoundError | FileNotFoundError)
        # obstore adds pages for its authors.
        cause = "" if missing else _errors.brief_message(text).partition("\n")[0]
        problem = _errors.location_not_opened(name, shown, cause)
        raise problem from (error if text == str(error) else None)
    if not isinstance(found, zarr.Array):
        raise _errors.location_is_a_group(name, shown, names_in(found))
    return found


def names_in(group: Any) -> list[str]:
    """Names of the arrays of a Zarr group; none where the store cannot list them."""
    try:
        return sorted(str(name) for name in group.array_keys())
    except failures():
        return []


def _local_store(path: Path) -> Any:
    """The store of a folder, for reading."""
    from zarr.storage import LocalStore

    return LocalStore(path.absolute(), read_only=True)


def _store_of(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The store of a URL of another machine, and the path of the array in the store."""
    from zarr.storage import FsspecStore

    parts = urlsplit(url)
    kind = _OBSTORE.get(parts.scheme)
    if kind is not None and importlib.util.find_spec("obstore") is not None:
        root = f"{parts.scheme}://{parts.netloc}"
        store = _object_store(kind, root, _for_obstore(kind, options, root))
        key = url.partition("://")[2].partition("/")[2]  # "#" is a letter of a key
        path = unquote(parts.path) if kind == "HTTPStore" else key
        if store is not None:
            return store, path.strip("/")
    given = _for_fsspec(kind, options)
    return FsspecStore.from_url(url.rstrip("/"), storage_options=given, read_only=True), ""


def _object_store(kind: str, root: str, options: dict[str, Any]) -> Any:
    """A store of obstore, opened once in a process for each bucket and options.

    None if obstore does not know an option, and fsspec may.
    """
    import obstore.store
    from zarr.storage import ObjectStore

    wanted = (kind, root, options)
    with _LOCK:
        for key, store in _opened:
            if key == wanted:
                return store
        try:
            if kind == "HTTPStore":
                made = obstore.store.HTTPStore.from_url(root, **options)
            else:
                bucket = {_BUCKET.get(kind, "bucket"): urlsplit(root).netloc}
                made = getattr(obstore.store, kind)(**bucket, **options)
        except obstore.exceptions.UnknownConfigurationKeyError:
            if importlib.util.find_spec(_FILE_SYSTEMS[kind]) is None:
                raise
            return None
        _opened.append((wanted, ObjectStore(made, read_only=True)))
        return _opened[-1][1]


def _for_obstore(kind: str, options: Mapping[str, Any], root: str = "") -> dict[str, Any]:
    """Options with the names of obstore."""
    made = {}
    for name, value in _flat(options).items():
        made[_NAMES[kind].get(name, name)] = value
    if kind == "GCSStore" and isinstance(made.get("service_account_path"), str):
        path = made["service_account_path"]
        if path in ("anon", "google_default", "cloud"):  # words of gcsfs, not paths
            del made["service_account_path"]
            made |= {"skip_signature": True} if path == "anon" else {}
    if str(made.get("endpoint", root)).startswith("http:"):
        made["client_options"] = {"allow_http": True} | dict(made.get("client_options", {}))
    return {"retry_config": _OBSTORE_RETRIES} | made


def fsspec_options(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the store of a URL with the names of fsspec's file systems."""
    return _for_fsspec(_OBSTORE.get(urlsplit(url).scheme), options)


def same_store(url: str, other: str) -> bool:
    """Whether two URLs are of stores of one kind, which take the same options."""
    schemes = [urlsplit(each).scheme for each in (url, other)]
    kinds = {_OBSTORE.get(scheme, scheme) for scheme in schemes}
    return len(kinds) == 1


def _for_fsspec(kind: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the names of fsspec's file systems."""
    if kind is None:
        return dict(options)
    back = {ours: theirs for theirs, ours in _NAMES[kind].items()}
    made = {back.get(name, name): value for name, value in options.items()}
    for name in ("client_options", "retry_config"):
        made.pop(name, None)
    if "region_name" in made:
        region = {"region_name": made.pop("region_name")}
        made["client_kwargs"] = region | dict(made.get("client_kwargs", {}))
    if kind == "S3Store":
        own = {"retries": dict(_BOTOCORE_RETRIES)}  # botocore adds to it
        made["config_kwargs"] = own | dict(made.get("config_kwargs", {}))
    return made


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with those of s3fs for its client among the others."""
    flat = dict(options)
    return flat | dict(flat.pop("client_kwargs", {}))


def shown_url(url: str) -> str:
    """A URL without the parts that may hold credentials."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    fragment = parts.fragment.partition("?")[0]
    return urlunsplit((parts.scheme, netloc, parts.path, "", fragment))


def without_secrets(text: str, url: str, options: Mapping[str, Any]) -> str:
    """A text in which the values of options are hidden, but for harmless ones."""
    userinfo = urlsplit(url).netloc.rpartition("@")[0]
    for secret in {userinfo, *userinfo.split(":"), *_values(options)}:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def _values(options: Mapping[str, Any]) -> Iterator[str]:
    """Texts among the values of options that may be secret."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif name not in _HARMLESS and isinstance(value, str):
            yield value


def failures() -> tuple[type[Exception], ...]:
    """Exceptions of a store that does not answer, or that refuses the request or an option."""
    loaded = ((sys.modules.get(module), name) for module, name in _FAILURES)
    foreign = (getattr(module, name) for module, name in loaded if module is not None)
    return (OSError, ValueError, KeyError, TypeError, NotImplementedError, *foreign)
