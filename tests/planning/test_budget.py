"""A memory budget is a promise: what a fit takes stays below what it was allowed."""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

import pytest

from benchmarks.budget import OPTIONS, measure
from benchmarks.common import in_fresh_process

ROWS = 4_000_000
SIZE = 16 * ROWS / 1e6  # MB of x and y

#: A fit of several starts takes longer than all the rest.
CASES = [
    pytest.param(kind, limit, marks=[pytest.mark.thorough] * (place % 5 > 0 or "starts" in kind))
    for place, (limit, kind) in enumerate(product([0.05, 0.065, 0.08], OPTIONS))
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc"),
]


@pytest.fixture(autouse=True)
def fast_kernels(monkeypatch):
    """Let new processes compile fully: millions of rows cost more than the compilation."""
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.parametrize(("kind", "limit"), CASES)
def test_a_fit_stays_below_its_threshold(kind, limit):
    row = in_fresh_process(measure, kind, ROWS, limit)
    assert row["threshold"] == pytest.approx(750 * limit, abs=0.051)  # rounded
    assert row["strategy"] == ("chunked" if kind == "numpy" else "streaming")
    # A fit that held the rows, or a copy of them, would break it.
    assert row["peak"] <= row["threshold"] < SIZE


@pytest.mark.thorough
def test_the_measurement_sees_a_copy_of_the_rows():
    row = in_fresh_process(partial(measure, strategy="standard"), "numpy", ROWS, 1.0)
    assert row["strategy"] == "standard"
    assert row["peak"] >= SIZE
