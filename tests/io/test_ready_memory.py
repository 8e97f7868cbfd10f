"""Memory whose pages are handed out in one call."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from nlsq_dask.io import ready_memory
from nlsq_dask.io.ready_memory import make_ready


@pytest.mark.parametrize("first", [0, 1, 4095, 4096])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_values_stay_as_they_are(first, size):
    values = np.arange(first + size + 5_000) % 251
    whole = values.astype(np.uint8)
    make_ready(whole[first : first + size])
    np.testing.assert_array_equal(whole, values)


@pytest.mark.skipif(sys.platform != "linux", reason="madvise of Linux")
def test_whole_pages_alone_are_handed_out(monkeypatch):
    calls = []
    monkeypatch.setattr(ready_memory, "_advise", lambda: lambda *args: calls.append(args))
    page = mmap.PAGESIZE
    memory = np.zeros(8 * page, np.uint8)
    offset = -memory.ctypes.data % page
    start = memory.ctypes.data + offset
    make_ready(memory[offset + 1 : offset + 4 * page - 1])
    make_ready(memory[offset : offset + 3 * page])
    make_ready(memory[offset + 1 : offset + page])  # no whole page
    assert calls == [(start + page, 2 * page, 23), (start, 3 * page, 23)]


def test_other_systems_have_no_such_call(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    ready_memory._advise.cache_clear()
    values = np.ones(10_000)
    make_ready(values)
    assert ready_memory._advise() is None
    ready_memory._advise.cache_clear()
    assert (values == 1.0).all()
