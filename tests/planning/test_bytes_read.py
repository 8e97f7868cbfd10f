"""How often a fit reads its data, counted where they are stored."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import fit, plan
from nlsq_dask.kernels.sums import block_compilations
from nlsq_dask.user_model.model import prepare_model
from tests.support.counting_store import stored

RNG = np.random.default_rng(2)
X = RNG.uniform(0, 4, 20_000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + RNG.normal(0, 0.1, X.size)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def plane_decay(x, a, b, c):
    return a * jnp.exp(-b * x[0]) + c * x[1] * x[2]


def fit_decay(x, y, **options):
    return fit(decay, x, y, p0=[1, 1, 0], **{"cache": False} | options)


def assert_read(array, times, without=()):
    reads = array.store.reads
    chunks = {f"c/{i}" for i in range(-(-array.shape[0] // array.chunks[0]))}
    assert {key: reads[key] for key in chunks | set(reads)} == {
        key: 0 if key in without else times for key in chunks
    }


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [da.from_zarr, lambda a: a], ids=["from_zarr", "zarr.Array"])
def test_every_chunk_is_read_once_a_pass(tmp_path, wrap):
    """And a chunk of 110 rows at the end."""
    x, y = stored(tmp_path / "x", X, (1530,)), stored(tmp_path / "y", Y, (1530,))
    result = fit_decay(wrap(x), wrap(y), sigma=0.1)
    assert result.n_passes == result.nfev > 3
    assert_read(x, result.n_passes)
    assert_read(y, result.n_passes)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", True])
def test_every_chunk_is_read_once_a_fit_where_rows_are_kept(tmp_path, cache):
    x, y = stored(tmp_path / "x", X, (1530,)), stored(tmp_path / "y", Y, (1530,))
    result = fit_decay(x, y, sigma=0.1, cache=cache)
    assert_read(x, 1)
    assert_read(y, 1)
    again = fit_decay(x, y, sigma=0.1)
    assert result.n_passes == again.n_passes > 3
    assert result.popt.tobytes() == again.popt.tobytes()
    assert result.pcov.tobytes() == again.pcov.tobytes()


@pytest.mark.slow
def test_rejected_trials_cost_one_pass_each_and_accepted_ones_no_second(tmp_path):
    x, y = stored(tmp_path / "x", X, (2000,)), stored(tmp_path / "y", Y, (2000,))
    result = fit(decay, x, y, p0=[1, 5, 1], cache=False)
    accepted = [record.accepted for record in result.history]
    assert not all(accepted)
    assert sum(accepted) == result.njev == result.nit + 1
    assert len(accepted) == result.nfev == result.n_passes
    assert_read(y, result.nfev)


@pytest.mark.slow
def test_a_second_look_at_the_optimum_is_one_more_pass(tmp_path):
    """Nearly collinear columns: their factor is computed again in a fitting basis."""

    def model(x, a, b):
        return a * x + b * (x + 1e-6 * x**2)

    x, y = stored(tmp_path / "x", X, (2000,)), stored(tmp_path / "y", X + X**2, (2000,))
    result = fit(model, x, y, p0=[0, 0], cache=False)
    assert result.n_passes >= result.nfev
    assert_read(x, result.n_passes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("upstream", "missing"),
    [
        pytest.param(lambda x: x[10:] * 2, (), id="slice and scale"),
        pytest.param(lambda x: (x + 1)[2500:], ("c/0", "c/1"), id="slice off chunks"),
        pytest.param(lambda x: x[::2].astype("f4") / 3, (), id="stride and cast"),
        pytest.param(lambda x: (x.map_blocks(np.sqrt) + x)[:9000], None, id="twice in one block"),
        pytest.param(lambda x: x.reshape(100, 200), (), id="reshape"),
    ],
)
def test_work_upstream_fuses(tmp_path, upstream, missing):
    x = stored(tmp_path / "x", X, (1000,))
    lazy = upstream(da.from_zarr(x))
    y = da.from_array(np.exp(-np.asarray(lazy)), chunks=lazy.chunks)
    x.store.clear_counts()
    result = fit(decay, lazy, y, p0=[2, 0.5, 0.1], cache=False)
    if missing is None:
        missing = tuple(f"c/{i}" for i in range(9, 20))
    assert_read(x, result.n_passes, missing)


@pytest.mark.slow
def test_a_mean_upstream_is_computed_once(tmp_path):
    x = stored(tmp_path / "x", X, (500,))
    lazy = da.from_zarr(x)
    result = fit_decay(lazy - lazy.mean(), da.from_array(Y, chunks=500), stat_tol=None)
    assert result.n_passes > 3
    assert_read(x, result.n_passes + 1)

    x.store.clear_counts()
    in_memory = fit_decay(X - X.mean(), Y)
    np.testing.assert_allclose(result.popt, in_memory.popt, rtol=1e-9)


@pytest.mark.slow
def test_a_chunk_that_two_groups_need_is_read_at_most_twice(tmp_path):
    x = stored(tmp_path / "x", X, (1300,))
    y = stored(tmp_path / "y", Y, (170,))
    result = fit_decay(x, y)
    for array in (x, y):
        reads = array.store.reads
        assert min(reads.values()) == result.n_passes
        assert max(reads.values()) <= 2 * result.n_passes
    assert x.store.bytes_read <= 2 * X.nbytes * result.n_passes


@pytest.mark.slow
def test_a_shard_is_read_in_one_piece(tmp_path):
    x = stored(tmp_path / "x", X, (100,), shards=(2500,))
    y = stored(tmp_path / "y", Y, (100,), shards=(2500,))
    result = fit_decay(x, y)
    for array in (x, y):
        assert set(array.store.reads.values()) == {result.n_passes}
        assert len(array.store.reads) == 8


@pytest.mark.slow
def test_broadcast_coordinates_are_not_read_at_y_size(tmp_path):
    shape = (20, 30, 40)
    rng = np.random.default_rng(4)
    t, row, col = np.linspace(0, 4, 20), rng.uniform(0, 1, 30), rng.uniform(0, 1, 40)
    cube = 2.5 * np.exp(-1.3 * t)[:, None, None] + 0.5 * row[:, None] * col
    cube = (cube + rng.normal(0, 0.1, shape)).astype(np.float32)
    y = stored(tmp_path / "y", cube, (5, 30, 10))
    coordinate = stored(tmp_path / "t", t[:, None, None], (5, 1, 1))
    coords = (da.from_zarr(coordinate), row[:, None], col)
    result = fit(plane_decay, coords, y, p0=[1, 1, 1], stat_tol=None, cache=False)

    assert result.n_points == cube.size
    assert set(y.store.reads.values()) == {result.n_passes}
    assert y.store.bytes_read == cube.nbytes * result.n_passes
    # Four blocks of y share a block of t, and it is not read more often than there are groups.
    assert coordinate.store.bytes_read <= 4 * t.nbytes * result.n_passes

    flat = fit(
        plane_decay,
        tuple(np.broadcast_to(c, shape).ravel() for c in (t[:, None, None], row[:, None], col)),
        cube.ravel(),
        p0=[1, 1, 1],
    )
    np.testing.assert_allclose(result.popt, flat.popt, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
def test_one_compilation_for_a_whole_fit(strategy):
    """Closures and lambdas included, whatever the chunks."""
    offset = {"standard": 0.25, "chunked": 0.375, "streaming": 0.5}[strategy]
    rng = np.random.default_rng(8)
    x, y = X, Y
    if strategy == "streaming":
        x, y = (
            da.from_array(
                a, chunks=(tuple(np.diff([0, *np.sort(rng.integers(0, X.size, 40)), X.size])),)
            )
            for a in (X, Y)
        )

    def make():
        return lambda x, a, b: a * jnp.exp(-b * x) + offset

    spec = prepare_model(make(), 2, "single", 1)
    assert block_compilations(spec) == 0
    for _ in range(2):
        result = fit(make(), x, y, p0=[1, 1], strategy=strategy)
        assert result.n_passes > 3
        assert block_compilations(spec) == 1


@pytest.mark.cluster
def test_reads_on_a_cluster(tmp_path, client):
    x, y = stored(tmp_path / "x", X, (1000,)), stored(tmp_path / "y", Y, (1000,))
    result = fit_decay(x, da.from_zarr(y), client=client)
    assert_read(x, result.n_passes)
    assert_read(y, result.n_passes)


@pytest.mark.slow
def test_small_chunks_are_read_several_at_one_time(tmp_path):
    """Each is read once a pass all the same, and the plan counts the blocks."""
    x = stored(tmp_path / "x", X, (100,))
    y = stored(tmp_path / "y", Y.astype("f4"), (100,))
    result = fit_decay(x, y, sigma=0.1)
    assert_read(x, result.n_passes)
    assert_read(y, result.n_passes)
    joined = plan(decay, x, y, p0=[1, 1, 0], time=False)
    assert joined.blocks == X.size // 200
    assert joined.bytes_per_pass == x.nbytes + y.nbytes
    apart = plan(decay, x, da.from_array(Y, chunks=100), p0=[1, 1, 0], time=False)
    assert apart.blocks == X.size // 100
