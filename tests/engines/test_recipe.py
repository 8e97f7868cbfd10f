"""Blocks that one recipe makes, against the graph that Dask makes of all chunks."""

from __future__ import annotations

import operator

import cloudpickle
import dask.array as da
import numpy as np
import pytest
import zarr
from dask._task_spec import Task
from dask.highlevelgraph import HighLevelGraph
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import _errors
from nlsq_dask.engines.dask import groups
from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.cache import reads
from nlsq_dask.engines.dask.group_parts import first_of, group_without
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.engines.dask.reading import Reading, Retries
from nlsq_dask.engines.dask.signals import NOBODY
from nlsq_dask.io.sources import observe


def numbered(block, block_id=None):
    """A block that depends on its place."""
    return block + sum(block_id)


def made_of_place(shape, value, block_id=None):
    """A block that is made of nothing."""
    return np.full(shape, value) + block_id[0]


#: Ways to make an array of a Zarr array.
WAYS = {
    "as it is": lambda a: a,
    "arithmetic": lambda a: da.log(a + 3.0) * 2 - a,
    "function": lambda a: a.map_blocks(operator.neg, dtype=float),
    "place": lambda a: a.map_blocks(numbered, dtype=float),
    "two of one": lambda a: (a + 1.0) / (2.0 - a * a),
    "cast": lambda a: a.astype("f4"),
    "where": lambda a: da.where(a > 0.5, a, 0.25),
}


def by_graph(monkeypatch, data, **options):
    """The plan that Dask's graph of all chunks gives."""
    with monkeypatch.context() as patch:
        patch.setattr(groups, "recipe_of", lambda *_: None)
        return make_stream(data, **options)


def assert_same_plans(plan, wanted, layout):
    """The plans have the same blocks, and make the same bits."""
    assert [len(g.steps) for g in plan.groups] == [len(g.steps) for g in wanted.groups]
    for group, other in zip(plan.groups, wanted.groups, strict=True):
        assert (group.n_rows, group.external) == (other.n_rows, other.external)
        for step, of in zip(group.steps, other.steps, strict=True):
            assert isinstance(step, AlikeStep)
            assert (step.index, step.box, step.shapes) == (of.index, of.box, of.shapes)
            assert [o.key for o in step.operands] == [o.key for o in of.operands]
        sent = cloudpickle.loads(cloudpickle.dumps(group))
        blocks = zip(read_blocks(sent, {}, layout), read_blocks(other, {}, layout), strict=True)
        for block, of in blocks:
            for made, array in zip(block.arrays + block.masks, of.arrays + of.masks, strict=True):
                assert made.dtype == array.dtype
                np.testing.assert_array_equal(made, array, strict=True)


@pytest.mark.slow
@given(
    st.lists(st.integers(2, 7), min_size=1, max_size=3).flatmap(
        lambda shape: st.tuples(st.just(shape), st.tuples(*(st.integers(1, n) for n in shape)))
    ),
    st.tuples(st.sampled_from(sorted(WAYS)), st.sampled_from(sorted(WAYS))),
    st.sampled_from(["same", "other", "numpy", "broadcast"]),
    st.sampled_from([{}, {"most_blocks": 3}, {"each": True}, {"first": (1,)}]),
)
def test_a_recipe_makes_what_dask_makes(layout, ways, x, options):
    shape, chunks = layout
    values = np.random.default_rng(0).uniform(size=shape)
    stored = [zarr.array(v, chunks=chunks) for v in (values, values**2)]
    lazy = [da.from_zarr(a) for a in stored]
    y = WAYS[ways[0]](lazy[0])
    sources = {
        "same": WAYS[ways[1]](lazy[0]),
        "other": WAYS[ways[1]](lazy[1]),
        "numpy": values,
        "broadcast": values[..., :1],
    }
    data = observe((sources[x],), y)
    with pytest.MonkeyPatch.context() as patch:
        assert_same_plans(
            make_stream(data, **options), by_graph(patch, data, **options), data.layout
        )


def test_blocks_that_are_made_of_nothing(monkeypatch):
    y = da.map_blocks(made_of_place, (10,), 2.0, chunks=((10,) * 30,), dtype=float)
    data = observe(np.arange(300.0), y)
    assert_same_plans(make_stream(data), by_graph(monkeypatch, data), data.layout)


def in_memory(shape=(60,), chunks=7):
    return da.from_array(np.random.default_rng(1).uniform(size=shape), chunks=chunks)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(in_memory, id="an array in memory"),
        pytest.param(lambda: da.log(in_memory() + 1.0) - in_memory(), id="arithmetic"),
        pytest.param(lambda: in_memory((6, 10), (4, 3)), id="two dimensions"),
        pytest.param(lambda: da.from_array(np.ma.masked_less(np.arange(60), 9), 7), id="masked"),
        pytest.param(lambda: (in_memory() * 2).persist(scheduler="sync"), id="persisted"),
        pytest.param(lambda: da.arange(60, chunks=7) / 3, id="numbers in order"),
        pytest.param(lambda: da.random.default_rng(3).normal(size=60, chunks=7), id="random"),
        pytest.param(
            lambda: in_memory() + da.from_zarr(zarr.array(np.arange(60.0), chunks=7)),
            id="with Zarr",
        ),
    ],
)
@pytest.mark.parametrize("x", ["numpy", "the same", "other"])
@pytest.mark.parametrize("options", [{}, {"most_blocks": 3}, {"each": True}], ids=str)
def test_chunks_and_tasks_of_the_graph_are_given_to_the_recipe(make, x, options, monkeypatch):
    y = make()
    source = {"numpy": np.arange(float(y.size)).reshape(y.shape), "the same": y, "other": y * 0.5}[
        x
    ]
    data = observe((source,), y)
    plan = make_stream(data, **options)
    assert_same_plans(plan, by_graph(monkeypatch, data, **options), data.layout)


def test_rows_in_memory_are_not_kept():
    """They are no work to make, whatever the recipe takes beside them."""
    kept = [
        reads(make_stream(observe(x, in_memory() * factor if factor else in_memory())).groups[0])
        for x, factor in ((np.arange(60.0), 0), (in_memory(), 0), (np.arange(60.0), 2))
    ]
    assert kept == [False, False, True]


def test_an_error_of_a_task_that_is_given_names_the_array_and_the_block():
    def gone(_):
        raise OSError("gone for good")

    tasks = {("made", i): Task(("made", i), gone if i else np.zeros, 10) for i in range(2)}
    graph = HighLevelGraph.from_collections("made", tasks)
    data = observe(np.arange(20.0), da.Array(graph, "made", ((10, 10),), float))
    group = make_stream(data).groups[1]
    assert isinstance(group.steps[0], AlikeStep)
    with pytest.raises(_errors.ReadingError, match=r"block \(1,\).*y.*gone for good"):
        list(read_blocks(group, {}, data.layout, Reading(Retries(0), NOBODY)))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda a: a.rechunk(7), id="other chunks"),
        pytest.param(lambda a: a - a.mean(), id="a sum of all chunks"),
        pytest.param(lambda a: a[::-1], id="another order"),
        pytest.param(lambda a: a + np.arange(100.0), id="an array in memory"),
        pytest.param(lambda a: da.concatenate([a[:50], a[50:]]), id="two arrays"),
        pytest.param(lambda a: da.map_overlap(np.negative, a, depth=1), id="neighbours"),
    ],
)
def test_arrays_that_no_recipe_makes_have_their_graph(make):
    a = da.from_zarr(zarr.array(np.arange(100.0), chunks=10))
    plan = make_stream(observe(np.arange(100.0), make(a)))
    assert not any(isinstance(s, AlikeStep) for group in plan.groups for s in group.steps)


def of_zarr(n):
    a = [da.from_zarr(zarr.zeros(n, chunks=1)) for _ in range(2)]
    return da.exp(a[0]) + 1, a[1] * 2


def of_memory(n):
    a = [da.from_array(np.zeros(n), chunks=1) for _ in range(2)]
    return da.exp(a[0]) + 1, a[1]


@pytest.mark.parametrize("arrays", [of_zarr, of_memory])
def test_the_nodes_of_the_chunks_are_not_made(arrays, monkeypatch):
    made = []
    init = Task.__init__

    def counted(self, *args, **kwargs):
        made.append(None)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Task, "__init__", counted)
    counts = []
    for n in (40, 4000):
        x, y = arrays(n)
        made.clear()
        plan = make_stream(observe(x, y))
        assert plan.n_blocks == n
        counts.append(len(made))
    assert counts[1] <= counts[0] + 10


def test_groups_are_sent_without_their_blocks():
    """A range of the grid travels, and not 1,000 blocks; whole images for each range of pixels."""
    y = da.from_zarr(zarr.zeros((40, 2000), chunks=(40, 1)))
    plan = make_stream(observe(da.exp(y), y))
    group = plan.groups[1]
    assert len(group.steps) == 125
    assert len(cloudpickle.dumps(group.steps)) < len(cloudpickle.dumps(list(group.steps)))
    assert group.steps[5].index == list(group.steps)[5].index == (0, 130)
    assert [s.index for s in group.steps[-2:]] == [(0, 248), (0, 249)]


def test_blocks_that_are_left_out_and_chosen():
    y = da.from_zarr(zarr.array(np.arange(100.0), chunks=5))
    group = make_stream(observe(np.arange(100.0), y + 1)).groups[0]
    left = group_without(group, {(0,)})
    assert [s.index for s in left.steps] == [(1,)]
    assert (left.n_rows, left.n_left_out) == (5, 5)
    assert [s.index for s in first_of(group, {(1,)}).steps] == [(1,)]
    assert first_of(group, ()).steps == ()


def test_a_call_that_fails_is_made_again_and_no_other():
    """And the message names the array, the block and the chunk of the store."""
    calls = []

    def first(block):
        calls.append("first")
        return block + 0.0

    def second(block):
        calls.append("second")
        if calls.count("second") < 3:
            raise OSError("gone for a moment")
        return block + 0.0

    y = da.from_zarr(zarr.array(np.arange(20.0), chunks=20))
    y = y.map_blocks(first, dtype=float, meta=np.empty(0))
    y = y.map_blocks(second, dtype=float, meta=np.empty(0))
    data = observe(np.arange(20.0), y)
    (group,) = make_stream(data).groups
    assert isinstance(group.steps[0], AlikeStep)
    with pytest.raises(_errors.ReadingError, match=r"block \(0,\).*y.*gone for a moment"):
        list(read_blocks(group, {}, data.layout, Reading(Retries(0), NOBODY)))
    calls.clear()
    (block,) = read_blocks(group, {}, data.layout, Reading(Retries(2, 1e-3), NOBODY))
    np.testing.assert_array_equal(block.y, np.arange(20.0))
    assert calls == ["first", "second", "second", "second"]
