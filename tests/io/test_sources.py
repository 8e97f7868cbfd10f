"""What a user may pass as data, and what becomes of it before anything is read."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from nlsq_dask.io.sources import as_array, is_dask, observe


@pytest.mark.parametrize(
    ("x", "y", "structure", "shapes"),
    [
        pytest.param(np.ones(5), np.ones(5), "single", [(5,)], id="flat"),
        pytest.param([1, 2, 3], [1.0, 2, 3], "single", [(3,)], id="lists"),
        pytest.param((1.0, 2.0, 3.0), (1, 2, 3), "single", [(3,)], id="tuples of numbers"),
        pytest.param(range(4), range(4), "single", [(4,)], id="ranges"),
        pytest.param(jnp.ones(5), jnp.ones(5), "single", [(5,)], id="JAX"),
        pytest.param(3.0, 2.0, "single", [(1,)], id="numbers"),
        pytest.param(2.0, np.ones(5), "single", [(1,)], id="one x for all"),
        pytest.param(np.ones((2, 5)), np.ones(5), "stacked", [(5,)] * 2, id="stacked"),
        pytest.param([[1, 2], [3, 4]], [1, 2], "stacked", [(2,)] * 2, id="list of lists"),
        pytest.param(np.ones((1, 5)), np.ones(5), "stacked", [(5,)], id="one stacked"),
        pytest.param(np.ones((4, 5)), np.ones((4, 5)), "single", [(4, 5)], id="image"),
        pytest.param(np.ones((2, 4, 5)), np.ones((4, 5)), "stacked", [(4, 5)] * 2, id="images"),
        pytest.param(
            (np.ones((4, 1)), np.ones(5)), np.ones((4, 5)), "tuple", [(4, 1), (1, 5)], id="axes"
        ),
        pytest.param((np.ones(5),), np.ones(5), "tuple", [(5,)], id="tuple of one"),
        pytest.param(([1, 2], 3.0), [1, 2], "tuple", [(2,), (1,)], id="tuple with a number"),
    ],
)
def test_structure_and_shapes(x, y, structure, shapes):
    data = observe(x, y)
    assert data.structure == structure
    assert [c.shape for c in data.coords] == shapes
    assert not data.lazy
    assert data.n_rows == max(np.size(y), 1)


@pytest.mark.parametrize("sigma", [0.5, np.float32(0.5), np.array(0.5), [0.5], np.full(5, 0.5)])
def test_sigma_broadcasts(sigma):
    data = observe(np.ones((4, 5)), np.ones((4, 5)), sigma)
    assert data.sigma.ndim == 2
    np.testing.assert_array_equal(np.broadcast_to(data.sigma, (4, 5)), np.full((4, 5), 0.5))


def test_nothing_is_copied():
    x, y = np.ones(100), np.ones(100, np.float32)
    data = observe(x, y, y)
    assert np.shares_memory(data.coords[0], x)
    assert np.shares_memory(data.y, y)
    assert np.shares_memory(data.sigma, y)


def test_one_lazy_array_makes_the_data_lazy():
    flat = np.ones(10)
    lazy = da.ones(10, chunks=3)
    for x, y, sigma in [(lazy, flat, None), (flat, lazy, 1.0), (flat, flat, lazy)]:
        assert observe(x, y, sigma).lazy
    assert not observe(flat, flat, flat).lazy


def test_zarr_arrays_are_wrapped_in_the_chunks_that_one_read_decodes(tmp_path):
    plain = zarr.create_array(tmp_path / "plain", shape=(100,), chunks=(10,), dtype="f4")
    sharded = zarr.create_array(
        tmp_path / "sharded", shape=(100,), chunks=(10,), shards=(50,), dtype="f4"
    )
    assert as_array(plain, "y").chunks == ((10,) * 10,)
    assert as_array(sharded, "y").chunks == ((50, 50),)
    assert is_dask(as_array(plain, "y"))


def test_subclasses_of_ndarray_become_plain(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(4))
    assert type(as_array(np.load(tmp_path / "x.npy", mmap_mode="r"), "x")) is np.ndarray
