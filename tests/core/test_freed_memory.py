"""What the C library keeps of freed memory, in a process as Dask's nannies start them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nlsq_dask.core import freed_memory
from nlsq_dask.core.freed_memory import FreedMemory

PAGES = """
import resource

import numpy as np

from nlsq_dask.core.freed_memory import FreedMemory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(1_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


freed = FreedMemory()
print(faults())
freed.keep()
faults()
print(faults())
freed.give_back()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(freed_memory._mallopt() is None, reason="another C library")
def test_pages_of_freed_pieces_are_used_again():
    ran = subprocess.run(
        [sys.executable, "-c", PAGES],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, kept, given_back = map(int, ran.stdout.split())
    assert min(before, given_back) > 100 * max(kept, 1)


@pytest.mark.parametrize(
    ("environment", "trim"),
    [
        ({}, None),
        ({"MALLOC_TRIM_THRESHOLD_": "65536"}, 65536),
        ({"MALLOC_TRIM_THRESHOLD_": ""}, None),
        ({"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "1"}, None),
        ({"MALLOC_TRIM_THRESHOLD_": "65536", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, None),
    ],
)
def test_only_the_setting_of_nannies_is_changed(environment, trim, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(freed_memory, "_mallopt", lambda: lambda *call: calls.append(call) or 1)
    monkeypatch.setattr(freed_memory, "return_freed_memory", lambda: calls.append("returned"))
    freed = FreedMemory()
    freed.give_back()
    freed.keep()
    freed.keep()
    assert freed.kept == (trim is not None)
    freed.give_back()
    kept = [(-3, 1 << 25), (-1, 1 << 26), (-3, 1 << 17), (-1, trim), "returned"]
    assert calls == ([] if trim is None else kept)
    assert not freed.kept


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(freed_memory, "_mallopt", lambda: None)
    freed = FreedMemory()
    freed.keep()
    assert not freed.kept
