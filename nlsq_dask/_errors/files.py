"""Errors of files and of their places; causes of damage, which other messages quote."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    in_units,
    join_names,
    shortened,
    shown,
)

CHECKSUM_MISMATCH = "its checksum does not match"


def nested_too_deeply() -> ValueError:
    return ValueError("its values are nested too deeply")


def name_twice(name: str) -> ValueError:
    return ValueError(f"the name {shown(name)} is there twice")


def not_a_json_number(text: str) -> ValueError:
    return ValueError(f"{shortened(text)} is no number of a JSON file")


def value_of_another_kind(value: object, kind: str) -> ValueError:
    return ValueError(f"{shown(value)} is there in place of {kind}")


def fields_differ(names: Sequence[str]) -> KeyError:
    """Fields are missing or unknown."""
    return KeyError(*(shortened(name) for name in names))


def shape_differs(name: str, found: Sequence[int], expected: Sequence[int]) -> ValueError:
    return ValueError(f"{name} has the shape {tuple(found)} in place of {tuple(expected)}")


def value_not_finite(name: str) -> ValueError:
    return ValueError(f"{name} is not finite")


def value_out_of_range(name: str) -> ValueError:
    return ValueError(f"{name} has a value that no fit gives it")


def not_a_regular_file() -> ValueError:
    return ValueError("it is no regular file, but a directory, a pipe or a device")


def file_is_a_link() -> ValueError:
    return ValueError("it is a symbolic link, which is not followed: copy the file there")


def file_too_large(most: int) -> ValueError:
    return ValueError(f"it has more than the {in_units(most)} that are read")


def content_too_large(n_bytes: int, most: int) -> OSError:
    return OSError(
        errno.EFBIG,
        f"File too large: {in_units(n_bytes)}, of at most {in_units(most)} that are read",
    )


def numbers_used_up(name: str) -> OSError:
    return OSError(errno.EEXIST, f"{name} has the last number, so that no file can come after it")


def path_unusable(argument: str, text: str) -> InputError:
    return InputError(
        f"{argument} = {shown(text)} cannot be the name of a file or directory: pass a name "
        "without null characters, and not empty, whose letters the file system can write."
    )


def result_not_a_path(value: object) -> InputTypeError:
    return InputTypeError(
        f"path = {shown(value)} is no path: pass the name of the file as a text or a pathlib.Path, "
        "or its URL as a text."
    )


def url_as_path(argument: str, text: str) -> InputError:
    return InputError(
        f"{argument} = {shown(text)} is a URL that lacks a slash, as in a pathlib.Path: pass the "
        "URL as a text, with '://'; or './' before the name if it is that of a file."
    )


def url_invalid(argument: str) -> InputError:
    return InputError(f"{argument} is no URL: correct the name of the bucket or host after '://'.")


def file_url_with_query(argument: str, text: str) -> InputError:
    return InputError(
        f"{argument} = {shown(text)} has '?' or '#', which end the path of a URL: write '%3F' or "
        "'%23' for letters of the name, or pass the path alone."
    )


def place_not_atomic(argument: str, url: str, schemes: Sequence[str]) -> InputError:
    return InputError(
        f"{argument} = {shown(url)} is in a store that may show a file before it is complete, or "
        "cannot be written, or is given with a query: pass the path of a directory, or a URL that "
        f"begins with {join_names([f'{scheme}://' for scheme in schemes])} and has its credentials "
        "in the configuration of fsspec."
    )


def place_not_opened(argument: str, url: str, cause: str) -> InputError:
    return InputError(
        f"{argument} = {shown(url)} cannot be opened by fsspec ({shortened(cause)}): check the "
        "URL, and the credentials in the configuration of fsspec."
    )


def store_refused(url: str, kind: str, cause: str) -> OSError:
    return OSError(f"the store of {url} refuses ({kind}: {shortened(cause)})")
