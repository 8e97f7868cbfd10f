"""Zarr arrays of a graph: a process opens each store once, however many tasks it gets."""

from __future__ import annotations

import pickle

import cloudpickle
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from nlsq_dask import InputError, ReadingError, fit
from nlsq_dask.io.announced import checked
from nlsq_dask.io.lazy_arrays import zarr_inside
from nlsq_dask.io.leaf import Leaf
from nlsq_dask.io.sources import as_array

SECRET = "CANARY-of-a-store"


def mean(x, a):
    return a + 0.0 * x


class SecretStore(WrapperStore[LocalStore]):
    """A store with a secret, which notes each time that it is opened."""

    opened = 0

    def __init__(self, store):
        super().__init__(store)
        self.secret = SECRET

    def __setstate__(self, state):
        SecretStore.opened += 1
        self.__dict__.update(state)


@pytest.fixture
def group(tmp_path):
    group = zarr.open_group(SecretStore(LocalStore(tmp_path / "group")), mode="w")
    for name in "ty":
        group.create_array(name, data=np.arange(100.0), chunks=(10,))
    return group


def test_a_process_opens_a_store_once(group):
    """Of both arrays of the store, in tasks that are pickled one by one, by either pickle."""
    SecretStore.opened = 0
    leaves = [Leaf(group[name]) for name in "ty"]
    copies = [pickle.loads(cloudpickle.dumps(leaf)) for leaf in leaves for _ in range(10)]
    copies += [pickle.loads(pickle.dumps(leaf)) for leaf in leaves]
    assert SecretStore.opened == 1
    assert len({id(copy) for copy in copies}) == 2
    for copy in copies:
        np.testing.assert_array_equal(copy[20:30], np.arange(20.0, 30.0))


def test_a_copy_of_a_copy_is_the_same_leaf(group):
    """A worker that passes an array on does not make the next worker open it again."""
    copy = pickle.loads(pickle.dumps(Leaf(group["t"])))
    assert pickle.dumps(copy) == pickle.dumps(Leaf(group["t"]))
    assert pickle.loads(pickle.dumps(copy)) is copy


def test_arrays_in_memory_are_pickled_with_their_data():
    array = zarr.create_array(MemoryStore(), data=np.arange(5.0))
    np.testing.assert_array_equal(pickle.loads(cloudpickle.dumps(Leaf(array)))[:], np.arange(5.0))


def test_names_and_texts_hide_the_store(group):
    leaf = Leaf(group["t"])
    assert leaf.name == Leaf(group["t"]).name != Leaf(group["y"]).name
    lazy = as_array(group["t"], "t")
    for text in (leaf.name, repr(leaf), repr(lazy), repr(lazy.dask), str(list(lazy.dask))):
        assert SECRET not in text
    assert SECRET in str(vars(group.store))


def test_arrays_of_unlike_stores_have_unlike_names(tmp_path):
    paths = (tmp_path / "a", tmp_path / "b")
    first, second = (zarr.create_array(path, data=np.arange(5.0)) for path in paths)
    assert Leaf(first).name != Leaf(second).name


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_a_chunk_that_is_shorter_than_announced(tmp_path, compressors):
    """It was cut off on the disk, or its array was made shorter."""
    array = zarr.create_array(
        tmp_path, data=np.arange(100.0), chunks=(10,), compressors=compressors
    )
    chunk = tmp_path / "c" / "3"
    chunk.write_bytes(chunk.read_bytes()[:40])
    lazy = as_array(array, "y")
    with pytest.raises(ReadingError, match=r"block \(3,\) of y, which is y\[30:40\].*c/3"):
        fit(mean, np.arange(100.0), array, p0=[1.0], pilot=False)
    array.resize((25,))
    with pytest.raises(InputError, match=r"block \(2,\) of y.*shape \(5,\), but y announces"):
        checked(lazy, "y")[20:30].compute(scheduler="sync")


def test_what_a_graph_holds():
    array = zarr.create_array(MemoryStore(), data=np.arange(5.0))
    assert zarr_inside(Leaf(array)) is zarr_inside(array) is array
    assert zarr_inside(np.arange(5.0)) is None


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_a_folder_that_a_process_does_not_find(compressors, tmp_path, monkeypatch):
    """A worker without the file system of the data would read fill values; or a relative path."""
    monkeypatch.chdir(tmp_path)
    array = zarr.create_array(
        "y.zarr", data=np.arange(100.0), chunks=(10,), compressors=compressors
    )
    leaf = pickle.loads(pickle.dumps(Leaf(array)))
    (tmp_path / "y.zarr" / "zarr.json").rename(tmp_path / "consolidated")  # needs none of its own
    np.testing.assert_array_equal(leaf[20:30], np.arange(20.0, 30.0))
    (tmp_path / "consolidated").rename(tmp_path / "y.zarr" / "zarr.json")
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match="would read fill values: mount"):
        leaf[20:30]
    with pytest.raises(ReadingError, match="would read fill values: mount"):
        fit(mean, np.arange(100.0), array, p0=[1.0], retries=0)
