"""A Zarr array in a Dask graph, whose store is opened once in a process.

Each task holds the arrays that it reads. A plain ``zarr.Array`` would be unpickled with every task,
and its store with it: a new client of the object store, with connections of its own, for each task.
A leaf is pickled as the bytes of its store and of its array, and a process keeps what it has opened
from such bytes.

The bytes hold the credentials of the store, unless the store finds them where it runs. Nothing else
that leaves a leaf does: not its name in a graph, and not its text.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
from collections import deque
from functools import cached_property, lru_cache
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.io.direct import DirectReader, direct_reader
from nlsq_dask.io.places import check_there

# Stores and arrays that a process keeps open. A fit has a few of each.
MOST_STORES = 32
MOST_ARRAYS = 256

# Stores whose pickles hold the data themselves. Keeping them open would keep the data.
_IN_MEMORY = ("MemoryStore", "GpuMemoryStore")

# Names of leaves are hashes with this key, so that nobody can guess what was hashed.
_KEY = os.urandom(32)

# Stores that this process has pickled.
_pickled: deque[tuple[Any, bytes]] = deque(maxlen=MOST_STORES)

_LOCK = threading.Lock()


class Leaf:
    """A Zarr array for Dask to read pieces of.

    Parameters
    ----------
    array : zarr.Array
    pickles : tuple of bytes, optional
        Store and array as bytes, for a leaf that was made from them. A worker that passes the leaf
        on passes the same bytes.
    """

    def __init__(self, array: Any, pickles: tuple[bytes, bytes] | None = None) -> None:
        self.array = array
        self._given = pickles

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored numbers."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @cached_property
    def name(self) -> str:
        """Name in a Dask graph: the same for the same array of the same store, in this process."""
        from dask.base import tokenize

        hashed = hashlib.blake2b(tokenize(self.array).encode(), key=_KEY, digest_size=16)
        return f"nlsq-zarr-{hashed.hexdigest()}"

    @cached_property
    def _pickles(self) -> tuple[bytes, bytes]:
        """The store, and the array without its store, as bytes."""
        if self._given is not None:
            return self._given
        array = self.array
        buffer = io.BytesIO()
        _WithoutStore(buffer, array.store).dump(array)
        return _pickled_store(array.store), buffer.getvalue()

    @cached_property
    def _direct(self) -> DirectReader | None:
        return direct_reader(self.array)

    @property
    def asks_a_store(self) -> bool:
        """Whether chunks are requested from an object store, one by one."""
        return self._direct is not None and self._direct.objects is not None

    def requests(self, index: Any) -> tuple[Any, list[str]] | None:
        """The object store and the keys that hold a piece; None if it is read in another way."""
        return None if self._direct is None else self._direct.requests(index)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        values = None if self._direct is None else self._direct.read(index)
        if values is None:
            check_there(self.array)
            values = self.array[index]
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self.array.store).__name__ in _IN_MEMORY:
            return Leaf, (self.array,)
        return _opened, self._pickles

    def __repr__(self) -> str:
        return f"<Zarr array, shape {self.shape}, {self.dtype}>"


def _pickled_store(store: Any) -> bytes:
    """A store as bytes, the same bytes for all arrays of the store.

    Pickling a store of obstore twice gives other bytes: its options have no order.
    """
    with _LOCK:
        for known, pickled in _pickled:
            if known is store:
                return pickled
        made: bytes = cloudpickle.dumps(store)
        _pickled.append((store, made))
        return made


class _WithoutStore(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles a Zarr array, and writes a mark in the place of its store."""

    def __init__(self, file: io.BytesIO, store: Any) -> None:
        super().__init__(file)
        self._store = store

    def persistent_id(self, item: Any) -> str | None:
        return "store" if item is self._store else None


class _WithStore(pickle.Unpickler):
    """Unpickles a Zarr array, with a store that is open already."""

    def __init__(self, file: io.BytesIO, store: Any) -> None:
        super().__init__(file)
        self._store = store

    def persistent_load(self, _: str) -> Any:
        return self._store


def _opened(store: bytes, array: bytes) -> Leaf:
    """The leaf of such bytes, opened if this process has not opened it yet."""
    with _LOCK:
        return _opened_array(store, array)


@lru_cache(MOST_ARRAYS)
def _opened_array(store: bytes, array: bytes) -> Leaf:
    return Leaf(_WithStore(io.BytesIO(array), _opened_store(store)).load(), (store, array))


@lru_cache(MOST_STORES)
def _opened_store(store: bytes) -> Any:
    return pickle.loads(store)
