"""A bounded table that forgets the least recently used entry."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class LruTable(Generic[KeyT, ValueT]):
    """Values by key, at most ``size`` of them, safe to use from several threads.

    Parameters
    ----------
    size : int
        Most entries kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[KeyT, ValueT] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: KeyT) -> ValueT | None:
        """Value of a key, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def keep(self, key: KeyT, value: ValueT) -> ValueT:
        """Value of a key; a new key gets the given value."""
        with self._lock:
            kept = self._entries.setdefault(key, value)
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
            return kept

    def pop(self, key: KeyT) -> ValueT | None:
        """Remove a key and return its value, or None."""
        with self._lock:
            return self._entries.pop(key, None)

    def put(self, key: KeyT, value: ValueT) -> None:
        """Set the value of a key."""
        with self._lock:
            self._entries.pop(key, None)
        self.keep(key, value)
