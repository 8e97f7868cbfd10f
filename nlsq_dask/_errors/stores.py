"""Errors of stored arrays: their locations, groups and attributes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from nlsq_dask._errors.kinds import (
    FEW_LISTED,
    DataChangedError,
    InputError,
    InputTypeError,
    MissingDataWarning,
    MissingLibraryError,
    ReadingError,
    join_names,
    shown,
)
from nlsq_dask._errors.reading import without_secrets

# Extra of this package for a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}

# Files of other formats, and what opens each.
_OPENERS = {
    ".nc": "xarray.open_dataset",
    ".nc4": "xarray.open_dataset",
    ".h5": "h5py.File",
    ".hdf5": "h5py.File",
    ".npy": "numpy.load(..., mmap_mode='r')",
    ".csv": "pandas.read_csv",
    ".parquet": "dask.dataframe.read_parquet",
    ".zip": "zarr.open_group(zarr.storage.ZipStore(path, mode='r'))",
}


def location_not_opened(name: str, url: str, cause: str) -> InputError:
    opener = next((call for end, call in _OPENERS.items() if url.lower().endswith(end)), None)
    why = "there is no Zarr array there" if not cause else f"it cannot be read ({cause})"
    remedy = "check the location, and storage_options= for an object store"
    if opener is not None:
        why, remedy = "the file is of another format", f"open it with {opener} and pass its array"
    return InputError(
        f"{name} = {url!r} is taken for the location of a Zarr array, but {why}: {remedy}."
    )


def location_is_a_group(name: str, url: str, arrays: Sequence[str]) -> InputError:
    example = f"{url.rstrip('/')}/{arrays[0] if arrays else 'y'}"
    return InputError(
        f"{name} = {url!r} is a Zarr group{_of(arrays)}, and a fit needs an array: pass its "
        f"location, for example {example!r}."
    )


def location_with_query(name: str, url: str) -> InputError:
    return InputError(
        f"{name} = {url!r} has a query or a fragment, which a store does not take along to the "
        "chunks: pass the credentials in storage_options=, for example {'sas_token': ...}."
    )


def location_needs_library(name: str, url: str, scheme: str, cause: object) -> MissingLibraryError:
    extra = _EXTRAS.get(scheme)
    package = f"nlsq_dask[{extra}]" if extra else "fsspec and its file system for this scheme"
    return MissingLibraryError(
        f"{name} = {url!r} needs a library that is not installed ({cause}): install {package}."
    )


def storage_options_unused() -> InputError:
    return InputError(
        "storage_options was passed, but no argument is the URL of an array, of checkpoints or of "
        "a store of maps: pass URLs, for example y='s3://bucket/decay.zarr/y', or leave "
        "storage_options out."
    )


def storage_options_form(kind: str) -> InputTypeError:
    return InputTypeError(
        f"storage_options is a {kind}, and has to be a dictionary of the options of the object "
        "store, for example {'key': ..., 'secret': ...}."
    )


def group_given(name: str, kind: str, arrays: Sequence[str]) -> InputTypeError:
    opened = "group" if kind == "group" else "zarr.open_group(store, mode='r')"
    example = arrays[0] if arrays else "y"
    return InputTypeError(
        f"{name} is a Zarr {kind}{_of(arrays)}, and a fit needs an array: pass the array, for "
        f"example {opened}[{example!r}]."
    )


def _of(arrays: Sequence[str]) -> str:
    return f" of the arrays {join_names(arrays)}" if arrays else ""


def attribute_not_a_number(name: str, attribute: str, value: object) -> InputError:
    return InputError(
        f"the attribute {attribute} = {shown(value)} of {name} does not hold the numbers that the "
        "CF conventions ask for, so that the stored numbers cannot be decoded: correct the "
        "attribute, or pass decode=False to fit the stored numbers."
    )


def not_decoded(name: str, packing: str, remedy: str) -> InputError:
    return InputError(
        f"the attributes of {name} say that its numbers are packed, or mark missing values "
        f"({packing}), but they are not decoded: {remedy}. If the numbers are the values all the "
        "same, pass decode=False."
    )


@dataclass(frozen=True)
class AbsentChunks:
    """Chunks of a Zarr array that are not in its store.

    Attributes
    ----------
    names : sequence of str
        Names of the arrays that are read from it.
    keys : sequence of str
        The first of the keys that are not there.
    n_absent, n_all : int
        Chunks that are not there, and all chunks.
    store : str
    fill_value : object
    """

    names: Sequence[str]
    keys: Sequence[str]
    n_absent: int
    n_all: int
    store: str
    fill_value: object

    def __str__(self) -> str:
        listed = ", ".join(self.keys[:FEW_LISTED])
        more = f" and {self.n_absent - FEW_LISTED} more" if self.n_absent > FEW_LISTED else ""
        return (
            f"{join_names(self.names)} lacks {self.n_absent:,} of {self.n_all:,} chunks in the "
            f"store ({listed}{more} of {without_secrets(self.store)}), which Zarr reads as its "
            f"fill value {self.fill_value}"
        )


_LOST_OR_EMPTY = (
    "They were lost or never written; or they hold that value alone, since Zarr does not store "
    "such chunks unless config={'write_empty_chunks': True} was passed when they were written"
)


def chunks_absent(found: Sequence[AbsentChunks], *, can_omit: bool = True) -> MissingDataWarning:
    """Chunks are not in the store, and count as data."""
    omit = "pass missing_chunks='omit' to leave their rows out, or " if can_omit else ""
    return MissingDataWarning(
        f"{'; '.join(map(str, found))}. {_LOST_OR_EMPTY}. If they were lost, {omit}write them "
        "again; if they are data, pass missing_chunks='fill'."
    )


def data_changed_chunks(found: Sequence[AbsentChunks]) -> DataChangedError:
    """Chunks were deleted while a fit ran."""
    return DataChangedError(
        f"the data have changed: {'; '.join(map(str, found))}. The chunks were in the store when "
        "the fit began, and later passes may have read the fill value. Write them again, and fit "
        "again."
    )


def chunks_absent_refused(found: Sequence[AbsentChunks], *, can_omit: bool = True) -> ReadingError:
    """Chunks are not in the store, and the caller asked for an error."""
    omit = "'omit' to leave their rows out, or " if can_omit else ""
    return ReadingError(
        f"{'; '.join(map(str, found))}. {_LOST_OR_EMPTY}. Write them again, or pass "
        f"missing_chunks={omit}'fill' to take them for data."
    )


def no_block_without_absent(found: Sequence[AbsentChunks]) -> ReadingError:
    """Each block needs a chunk that is not in the store."""
    return ReadingError(
        f"{'; '.join(map(str, found))}, and each block needs one of them, so that "
        "missing_chunks='omit' would leave out all rows: write them again, or pass 'fill' to take "
        "them for data."
    )


def zip_open_for_writing(name: str) -> InputError:
    return InputError(
        f"{name} is in a zip archive that is open for writing, and a copy of the array, which Dask "
        "makes, would overwrite the archive: close the store, and open it with "
        "zarr.storage.ZipStore(path, mode='r')."
    )


def array_not_here(folder: str) -> FileNotFoundError:
    """The folder of an array is gone, or belongs to another machine."""
    return FileNotFoundError(
        f"there is no folder {folder} on the machine {platform.node()}, and Zarr would read fill "
        "values: mount the file system on all workers, pass absolute paths, and keep the folder "
        "while a fit runs"
    )


def store_not_listed(names: Sequence[str], store: str, choice: str) -> InputError:
    return InputError(
        f"missing_chunks = {choice!r} needs the list of the chunks of {join_names(names)}, but "
        f"{without_secrets(store)} cannot list its keys: pass 'warn' or 'fill', or open the data "
        "from a store that can."
    )


def chunks_not_listed(names: Sequence[str], cause: str) -> str:
    """A note: nobody knows whether chunks are missing."""
    return (
        f"the chunks of {join_names(names)} could not be listed ({cause}): it is not known whether "
        "some are missing in the store"
    )
