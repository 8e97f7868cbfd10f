"""Small blocks that are staged where they are made, against blocks that are made one by one."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlsq_dask._errors import FitError
from nlsq_dask.engines.accumulate import accumulate
from nlsq_dask.engines.dask import groups
from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.group_parts import group_without
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.engines.dask.reading import Reading, Retries
from nlsq_dask.engines.dask.signals import NOBODY, StoppedError
from nlsq_dask.engines.dask.small_blocks import SmallBlocks, are_small
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stage import SMALL_ROWS

READING = Reading(Retries(2, 1e-6), NOBODY)


class Staged:
    """A question that notes the bits of all rows that a kernel would get."""

    def __init__(self):
        self.rows = []

    def zero(self, n_left_out=0):
        return n_left_out

    def of_rows(self, rows, kernels):
        self.rows.append([a[: rows.n].tobytes() for a in (rows.y, *rows.coords)])
        return 0


class Faulty:
    """Makes blocks of y: notes each call, and fails, or makes another array, as it is told."""

    def __init__(self, faults):
        self.faults = faults
        self.calls = []

    def __call__(self, block, block_id=None):
        self.calls.append(block_id)
        times, fault = self.faults.get(sum(block_id), (0, "none"))
        if self.calls.count(block_id) <= times and isinstance(fault, type):
            raise fault("gone")
        return {
            "shape": lambda: block[..., :1],
            "text": lambda: block.astype(str),
            "list": block.tolist,
            "masked": lambda: np.ma.masked_less(block, 0.0),
            "float32": lambda: block.astype("f4"),
            "integers": lambda: (100 * block).astype("i8"),
            "swapped": lambda: block.astype(block.dtype.newbyteorder()),
            "strided": lambda: np.repeat(block, 2, axis=-1)[..., ::2],
            "fortran": lambda: np.asfortranarray(block),
            "unaligned": lambda: unaligned(block),
        }.get(fault, lambda: block)()


def unaligned(block):
    """A copy at an address that is no multiple of eight, as another process may send it."""
    raw = np.frombuffer(b"-" + block.tobytes(), np.uint8)[1:]
    return raw.view(block.dtype).reshape(block.shape)


def numbered(block, block_id=None):
    """A block that depends on its place."""
    return block + block_id[0]


def one_group(data, by_graph):
    """All blocks of the data in one group, made by a recipe or by nodes of the graph."""
    with pytest.MonkeyPatch.context() as patch:
        if by_graph:
            patch.setattr(groups, "recipe_of", lambda *_: None)
        found = make_stream(data).groups
    steps = tuple(step for group in found for step in group.steps)
    assert isinstance(steps[0], AlikeStep) != by_graph
    return found[0] if len(found) == 1 else Group(steps, (), data.y.size)


def outcome(group, data, small, question, make, stage_rows, reading=READING):
    """What a kernel gets, which calls are made, and how it ends."""
    make.calls.clear()
    kind = SmallBlocks if small else read_blocks
    blocks, ending = kind(group, {}, data.layout, reading), "answered"
    try:
        accumulate(question, None, blocks, False, stage_rows)
    except (FitError, ValueError) as error:
        ending = (type(error), str(error), getattr(error, "block", None), error.__cause__)
        ending += tuple(getattr(error, "__notes__", ()))
    return question.rows, list(make.calls), str(ending)


ERRORS = (OSError, ValueError, FileNotFoundError, ConnectionResetError)
MADE = ("shape", "text", "list", "masked", "float32", "integers", "swapped", "strided")
ORDERS = ("fortran", "unaligned")
FAULTS = st.sampled_from((*ERRORS, *MADE, *ORDERS))


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    chunk=st.integers(1, 4),
    faults=st.dictionaries(st.integers(0, 6), st.tuples(st.integers(1, 4), FAULTS), max_size=3),
    stage_rows=st.sampled_from((1, 7, 64, 1 << 10)),
    by_graph=st.booleans(),
)
# The first block fills the stage: the kernel gets its row before the second block fails.
@example(shape=[2], chunk=1, faults={1: (1, ValueError)}, stage_rows=1, by_graph=False)
def test_the_same_rows_calls_and_errors(shape, chunk, faults, stage_rows, by_graph):
    values = np.random.default_rng(0).normal(size=shape)
    make = Faulty(faults)
    lazy = da.ones(shape, chunks=chunk).map_blocks(numbered, dtype=float)
    y = (lazy * 1.5).map_blocks(make, dtype=float, meta=np.empty((0,) * len(shape)))
    data = observe(values, y)
    group = one_group(data, by_graph)
    assert are_small(group, data.layout)
    found, wanted = (
        outcome(group, data, small, Staged(), make, stage_rows) for small in (True, False)
    )
    assert found == wanted


@pytest.mark.parametrize("kind", [*MADE[2:], *ORDERS])
def test_arrays_of_any_kind(kind):
    make = Faulty({1: (0, kind), 3: (0, kind)})
    y = da.random.default_rng(0).normal(size=60, chunks=10)
    y = y.persist().map_blocks(make, dtype=float, meta=np.empty(0))
    data = observe(np.arange(60.0), y)
    group = one_group(data, by_graph=True)
    found, wanted = (outcome(group, data, small, Staged(), make, 64) for small in (True, False))
    assert found == wanted
    assert found[-1] == "answered"


def test_each_block_has_its_own_attempts():
    """Three blocks that fail twice are read; a fourth failure of one block ends the pass."""
    for times, ends in ((2, "answered"), (3, "gone")):
        make = Faulty({1: (times, OSError), 2: (2, OSError), 4: (2, OSError)})
        y = da.ones(60, chunks=10).map_blocks(make, dtype=float, meta=np.empty(0))
        data = observe(np.arange(60.0), y)
        group = one_group(data, by_graph=False)
        found, wanted = (outcome(group, data, small, Staged(), make, 64) for small in (True, False))
        assert found == wanted
        assert ends in found[-1]


def constant(n_blocks, n_rows=10):
    """A group of equal blocks."""
    chunks = ((n_rows,) * n_blocks,)
    x, y = (da.map_blocks(np.full, n_rows, v, chunks=chunks, dtype=float) for v in (1.0, 2.0))
    data = observe(x, y)
    return make_stream(data).groups[0], data


def test_blocks_that_are_not_small_or_not_plain():
    group, data = constant(40)
    assert are_small(group, data.layout)
    for other in (
        constant(40, SMALL_ROWS + 1)[1],
        observe(*data.coords, data.y, data.y),
        observe(*data.coords, data.y, mask=data.y > 3.0),
        observe(*data.coords, data.y, nan_policy="omit"),
        observe((np.ones((1, 1)), data.y[None]), da.ones((40, 400), chunks=(1, 10))),
    ):
        plan = make_stream(other)
        assert not are_small(plan.groups[0], other.layout)


def test_blocks_that_are_left_out():
    group, data = constant(400)
    kept = group_without(group, {(1,)})
    question = Staged()
    blocks = SmallBlocks(kept, {}, data.layout)
    accumulate(question, None, blocks, False)
    assert [len(bits) for bits in question.rows[0]] == [80 * (len(group.steps) - 1)] * 2


def test_a_task_of_a_fit_that_is_over_ends(monkeypatch):
    """It looks before the first block, and again when some time has passed."""

    class Signals:
        looks = 0

        def check(self):
            self.looks += 1
            if self.looks == 3:
                raise StoppedError

    for turn in ("FIRST_SECONDS", "TURN_SECONDS"):
        monkeypatch.setattr(f"nlsq_dask.engines.dask.small_blocks.{turn}", -1.0)
    group, data = constant(400)
    blocks = SmallBlocks(group, {}, data.layout, Reading(Retries(0), Signals()))
    with pytest.raises(StoppedError):
        accumulate(Staged(), None, blocks, False)


def test_calls_of_python_for_a_block():
    """One at present: rows are copied into the stage."""
    counts = []
    for n_blocks in (4000, 8000):
        group, data = constant(n_blocks, 1)
        calls = Counter()

        def count(frame, event, arg, calls=calls):
            calls[event] += 1

        sys.setprofile(count)
        accumulate(Staged(), None, SmallBlocks(group, {}, data.layout), False)
        sys.setprofile(None)
        counts.append((calls["call"], len(group.steps)))
    (few, n_few), (many, n_many) = counts
    of_user = 4  # np.full, and what it calls
    assert (many - few) / (n_many - n_few) - of_user <= 2


class Company:
    """Makes blocks, and notes how many threads make blocks at one time, behind their first."""

    def __init__(self, wait):
        self.wait = wait
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.threads = set()

    def __call__(self, block):
        if threading.get_ident() not in self.threads:
            self.threads.add(threading.get_ident())
            return block
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.wait)
        with self.lock:
            self.now -= 1
        return block


@pytest.mark.parametrize(
    ("limit", "wait", "most"),
    [
        pytest.param(60.0, 1e-3, 1, id="quick"),
        pytest.param(0.0, 0.02, 2, id="slow"),
    ],
)
def test_threads_take_turns_to_make_quick_blocks(limit, wait, most, monkeypatch):
    numbers = {"ALONE_SECONDS": limit, "WAIT_SECONDS": 60.0, "FIRST_SECONDS": -1.0}
    for name, seconds in numbers.items():
        monkeypatch.setattr(f"nlsq_dask.engines.dask.small_blocks.{name}", seconds)
    company = Company(wait)
    y = da.ones(100, chunks=10).map_blocks(company, dtype=float, meta=np.empty(0))
    data = observe(np.arange(100.0), y)
    group = one_group(data, by_graph=False)

    def make(_):
        question = Staged()
        accumulate(question, None, SmallBlocks(group, {}, data.layout), False, 30)
        return question.rows

    with ThreadPoolExecutor(2) as pool:
        rows, same = pool.map(make, range(2))
    assert rows == same
    assert company.most == most


def test_the_first_blocks_of_two_tasks_are_made_together(monkeypatch):
    """Nobody knows yet how long they take: they may wait for a disk."""
    monkeypatch.setattr("nlsq_dask.engines.dask.small_blocks.WAIT_SECONDS", 60.0)
    together = threading.Barrier(2)

    def meet(block):
        together.wait(timeout=20)
        return block

    y = da.ones(10, chunks=10).map_blocks(meet, dtype=float, meta=np.empty(0))
    data = observe(np.arange(10.0), y)
    group = one_group(data, by_graph=False)

    def make(_):
        accumulate(Staged(), None, SmallBlocks(group, {}, data.layout), False)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(make, range(2))) == [None, None]


def test_a_task_that_waits_for_another_in_vain_makes_its_blocks(monkeypatch):
    """The other may wait for this task: a block may be the answer of a fit."""
    numbers = {"ALONE_SECONDS": 60.0, "WAIT_SECONDS": 0.01, "FIRST_SECONDS": -1.0}
    for name, seconds in numbers.items():
        monkeypatch.setattr(f"nlsq_dask.engines.dask.small_blocks.{name}", seconds)
    inner, data = constant(20)

    def answer(block):
        question = Staged()
        blocks = SmallBlocks(inner, {}, data.layout)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(accumulate, question, None, blocks, False).result()
        return block * len(question.rows)

    y = da.ones(20, chunks=10).map_blocks(answer, dtype=float, meta=np.empty(0))
    outer = observe(np.arange(20.0), y)
    question = Staged()
    blocks = SmallBlocks(one_group(outer, by_graph=False), {}, outer.layout)
    accumulate(question, None, blocks, False)
    assert question.rows == [[np.ones(20).tobytes(), np.arange(20.0).tobytes()]]
