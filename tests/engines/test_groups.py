"""The plan of the streaming tier, before anything runs."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import textwrap
from collections import Counter

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from dask import delayed
from dask.core import flatten
from dask.highlevelgraph import MaterializedLayer
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask.engines.dask import grouping, pieces
from nlsq_dask.engines.dask.groups import common_chunks, make_stream
from nlsq_dask.engines.dask.pieces import MAX_TASKS_TO_REPEAT
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.io.sources import observe
from tests.engines.test_dask import in_dask_arrays
from tests.support.problems import problems


def all_rows(plan, layout):
    """The rows of a plan, made as its tasks would make them."""
    shared = {}
    for key, node in plan.shared.items():
        shared[key] = node(shared)
    columns = []
    for group in plan.groups:
        external = {key: shared[key] for key in group.external}
        for block in read_blocks(group, external, layout):
            arrays = block.arrays + block.masks
            columns.append([np.broadcast_to(a, block.y.shape).ravel() for a in arrays])
    return [np.concatenate(parts) for parts in zip(*columns, strict=True)]


@pytest.mark.slow
@given(problem=problems(sizes=(1,)), layout=st.integers(0, 2**32 - 1))
def test_a_plan_makes_every_row_once(problem, layout):
    data = in_dask_arrays(problem.x, problem.y, problem.sigma, layout)
    plan = make_stream(data)
    made = all_rows(plan, data.layout)
    expected = [np.broadcast_to(np.asarray(a), data.y.shape).ravel() for a in data.operands]

    assert sum(group.n_rows for group in plan.groups) == data.n_rows
    order = np.lexsort(made)  # blocks come in the order of the grid, rows in that of a block
    expected_order = np.lexsort(expected)
    for column, values in zip(made, expected, strict=True):
        np.testing.assert_array_equal(column[order], values[expected_order])


def test_chunks_are_the_union_of_all_cuts():
    x = da.ones((12, 6), chunks=((5, 7), (6,)))
    y = da.ones((12, 6), chunks=((6, 6), (3, 3)))
    assert common_chunks(observe((x,), y)) == ((5, 1, 6), (3, 3))


def test_coordinates_that_are_smaller_do_not_cut():
    x = da.ones((12, 1), chunks=((5, 7), (1,)))
    y = da.ones((12, 6), chunks=((6, 6), (3, 3)))
    data = observe((x, da.arange(6, chunks=5)), y)
    assert common_chunks(data) == y.chunks
    plan = make_stream(data)
    assert plan.n_blocks == 4
    assert plan.shared_bytes <= x.nbytes + 6 * 8
    columns = all_rows(plan, data.layout)
    np.testing.assert_array_equal(np.sort(columns[2]), np.repeat(np.arange(6), 12))


def test_what_is_smaller_cuts_where_nothing_else_does():
    x = da.ones((12, 1), chunks=((5, 7), (1,)))
    assert common_chunks(observe((x,), np.ones((12, 6)))) == ((5, 7), (6,))


def test_arrays_in_memory_do_not_cut_what_dask_has_cut():
    x, y = np.ones(5000), da.ones(5000, chunks=1700)
    assert common_chunks(observe(x, y)) == ((1700, 1700, 1600),)


def test_a_dimension_that_no_dask_array_has_is_cut_into_moderate_blocks():
    x = da.ones((100, 1), chunks=(50, 1))
    chunks = common_chunks(observe((x,), np.broadcast_to(1.0, (100, 1_000_000))))
    assert chunks[0] == (50, 50)
    assert sum(chunks[1]) == 1_000_000
    assert 50 * max(chunks[1]) <= 1 << 20


@pytest.mark.parametrize(
    "upstream",
    [
        pytest.param(lambda x: x - x.mean(), id="mean"),
        pytest.param(lambda x: x / x.max() - x.min(), id="range"),
        # Dask gives these another name, which each group has.
        pytest.param(lambda x: x - x.mean().reshape(1), id="mean of another shape"),
        pytest.param(lambda x: x - da.stack([x.mean()]), id="stack of a mean"),
        pytest.param(lambda x: x - da.percentile(x, 50), id="percentile"),
        pytest.param(lambda x: x - x[:1000].mean(), id="mean of a part"),
        pytest.param(lambda x: x - da.from_array(np.ones(40_000), chunks=-1), id="array in memory"),
    ],
)
def test_what_all_groups_need_is_made_once_before(upstream):
    x = da.from_array(np.arange(40_000.0), chunks=1000)
    plan = make_stream(observe(upstream(x), da.ones(40_000, chunks=1000)))
    assert 1 <= len(plan.shared_keys) <= 2
    for group in plan.groups:
        assert set(group.external) <= set(plan.shared_keys)
        # Chunks of x stay with the group that uses them.
        nodes = [node for step in group.steps for node, _ in step.nodes]
        assert 0 < len(nodes) <= 5 * len(group.steps)


def test_an_array_in_memory_is_not_sent_with_every_group():
    x = np.random.default_rng(0).normal(size=100_000)
    y = da.ones(100_000, chunks=1000)
    for chunks in (-1, 40_000, 1000):
        plan = make_stream(observe(da.from_array(x, chunks=chunks), y))
        sent = sum(len(cloudpickle.dumps(group)) for group in plan.groups)
        sent += len(cloudpickle.dumps(plan.shared))
        assert sent < 2 * x.nbytes


def test_an_array_at_the_edge_of_two_groups_is_made_in_both():
    x = da.from_array(np.arange(32_000.0), chunks=1500)
    plan = make_stream(observe(x, da.ones(32_000, chunks=1000)))
    assert not plan.shared_keys
    made = [node.key for group in plan.groups for step in group.steps for node, _ in step.nodes]
    assert max(made.count(key) for key in made) <= MAX_TASKS_TO_REPEAT


def pieces_made(plan, array):
    """How many groups make each chunk of an array."""
    made = [
        {node.key for step in group.steps for node, _ in step.nodes if node.key[0] == array.name}
        for group in plan.groups
    ]
    return Counter(itertools.chain.from_iterable(made))


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("most_blocks", [None, 40])
@pytest.mark.parametrize("coarse", [20_000_000, 5_000_000, 3_200_000])
def test_a_chunk_that_lies_across_many_blocks_is_made_in_one_group(coarse, most_blocks):
    """And not kept: such an array would be in memory whole."""
    x = da.zeros(1_000_000_000, chunks=coarse)
    y = da.zeros(1_000_000_000, chunks=200_000)
    plan = make_stream(observe(x, y), most_blocks=most_blocks)
    assert not plan.shared_keys
    assert plan.shared_bytes == 0
    # Of a sample, some may be a part of the task that cuts a block from them.
    assert set(pieces_made(plan, x).values()) in ([{1}] if most_blocks is None else [{1}, set()])
    assert set(pieces_made(plan, y).values()) == {1}
    # The chunk, and the block that is cut from it.
    assert 8 * (coarse + 200_000) <= plan.piece_bytes <= 8 * (coarse + 400_000)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(500, 500), (700, 900)])
def test_a_value_for_each_pixel_is_read_by_each_task_of_many_images(cuts):
    y = da.zeros((400, 4000, 4000), chunks=(100, 500, 500), dtype="f4")
    pixels = da.zeros((4000, 4000), chunks=cuts)
    plan = make_stream(observe(pixels, y))
    assert plan.chunks == y.chunks
    assert not plan.shared_keys
    assert plan.shared_bytes == 0
    # Of few images it would be as much as they are.
    plan = make_stream(observe(pixels, y.rechunk((4, 500, 500))))
    assert len(plan.shared_keys) >= len(list(flatten(pixels.__dask_keys__())))
    assert plan.shared_bytes == pixels.nbytes


def test_chunks_that_are_few_are_kept():
    x, y = da.zeros(20_000_000, chunks=5_000_000), da.zeros(20_000_000, chunks=100_000)
    plan = make_stream(observe(x, y))
    assert len(plan.groups) == 16
    assert plan.shared_bytes == x.nbytes == 8 * 5_000_000 * len(plan.shared_keys)


@pytest.mark.slow
@given(
    x=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    y=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    rows=st.integers(1, 4),
    least=st.integers(1, 8),
    repeated=st.sampled_from([0, 100]),
)
def test_pieces_are_made_by_one_group_or_two_or_kept(x, y, rows, least, repeated):
    """Whatever the chunks of an array of two dimensions, and every row is there once."""
    n = min(sum(x), sum(y))
    numbers = np.arange(float(n * rows)).reshape(n, rows)
    cut = [tuple(len(range(*c)) for c in _edges(lengths, n)) for lengths in (x, y)]
    arrays = [da.from_delayed(delayed(numbers), numbers.shape, float) for _ in cut]
    arrays = [a.rechunk((c, -1)) + 1 for a, c in zip(arrays, cut, strict=True)]
    data = observe(*arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "SMALL_ARRAY_BYTES", 0)
        patch.setattr(pieces, "SMALL_ARRAY_BYTES", 0)
        patch.setattr(pieces, "MOST_REPEATED", repeated)
        patch.setattr(grouping, "MIN_ALIGNED", least)
        plan = make_stream(data)
    kept = {key for key in plan.shared_keys if key[0] in {a.name for a in arrays}}
    for array in arrays:
        made = pieces_made(plan, array)
        assert max(made.values(), default=0) <= (100 if repeated else MAX_TASKS_TO_REPEAT)
        assert not kept & set(made)
    sizes = {(a.name, i, 0): 8 * rows * c for a in arrays for i, c in enumerate(a.chunks[0])}
    assert plan.shared_bytes == sum(sizes[key] for key in kept)
    assert not (repeated and kept)
    made = all_rows(plan, data.layout)
    np.testing.assert_array_equal(made, [numbers.ravel() + 1] * 2)


def _edges(lengths, n):
    """Ranges of so many rows one after the other, up to n."""
    stops = [min(stop, n) for stop in itertools.accumulate(lengths, initial=0)]
    return [(a, b) for a, b in itertools.pairwise(stops) if a < b]


def test_nothing_is_kept_longer_than_it_is_needed():
    x = da.from_array(np.arange(30_000.0), chunks=700)
    plan = make_stream(observe(2 * x + 1, da.ones(30_000, chunks=1000)))
    for group in plan.groups:
        alive = set()
        for step in group.steps:
            for node, drop in step.nodes:
                assert node.dependencies <= alive
                alive.add(node.key)
                alive -= set(drop)
            assert {o.key for o in step.operands if o.key is not None} <= alive
            assert len(alive) <= 8
            alive -= set(step.drop)
        assert not alive


def test_a_graph_of_many_layers_is_culled_as_one_layer(monkeypatch):
    """Dask looks at all chunks for each layer."""
    looked = []
    cull = MaterializedLayer.cull

    def counted(self, keys, *args):
        looked.append(len(keys))
        return cull(self, keys, *args)

    monkeypatch.setattr(MaterializedLayer, "cull", counted)
    full = delayed(np.full, pure=True)
    n = 100
    y = da.concatenate([da.from_delayed(full(5, float(i)), (5,), float) for i in range(n)]) + 1.0
    data = observe(np.arange(5.0 * n), y)
    made = all_rows(make_stream(data), data.layout)
    assert sum(looked) <= n
    np.testing.assert_array_equal(made[0], np.repeat(np.arange(n) + 1.0, 5))


def test_empty_chunks_are_left_out():
    y = da.from_array(np.arange(10.0), chunks=((0, 4, 0, 6, 0),))
    plan = make_stream(observe(np.arange(10.0), y))
    assert plan.n_blocks == 2
    assert sum(group.n_rows for group in plan.groups) == 10


def test_blocks_of_one_array_of_many_dimensions_stay_whole():
    y = da.ones((8, 30, 40), chunks=(2, 15, 40))
    x = (np.arange(8.0)[:, None, None], np.arange(30.0)[:, None], np.arange(40.0))
    plan = make_stream(observe(x, y))
    assert plan.n_blocks == 8
    assert plan.chunks == y.chunks


PLAN_PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path[:] = {path!r}
    import dask.array as da, numpy as np
    from nlsq_dask.engines.dask.groups import make_stream
    from nlsq_dask.io.sources import observe
    numbers = np.arange(5000.0)
    x = da.from_array(numbers, chunks=70, name="x")
    y = da.from_array(numbers, chunks=110, name="y")
    z = da.from_array(numbers, chunks=-1, name="z")
    plan = make_stream(observe((x - x.mean(), x * z + y.max(), (x + y)[::-1]), y))
    for group in plan.groups:
        print(group.n_rows, group.external)
        for step in group.steps:
            print([node.key for node, _ in step.nodes], [k for _, ks in step.nodes for k in ks])
            print([operand.key for operand in step.operands], step.drop)
    print(list(plan.shared), plan.shared_keys)
    """
)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_plan_does_not_depend_on_the_hash_seed():
    program = PLAN_PROGRAM.format(path=sys.path)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) > 100


@pytest.mark.parametrize("enabled", [True, False])
def test_planning_leaves_the_garbage_collector_as_it_was(enabled):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        make_stream(observe(np.ones(10), da.ones(10, chunks=5)))
        assert gc.isenabled() == enabled
        with pytest.raises(AttributeError):
            make_stream(None)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
