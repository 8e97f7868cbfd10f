"""Chunks in object stores hold the values that Zarr reads, and are requested together."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from nlsq_dask import fit
from nlsq_dask.io import direct, objects
from nlsq_dask.io.leaf import Leaf
from tests.io.test_direct import LEFT_TO_ZARR, PLAIN, outcome, stored

pytestmark = pytest.mark.versions

obstore = pytest.importorskip("obstore")

KINDS = [kind for kind in PLAIN if "shards" not in kind]


def opened(folder):
    store = zarr.storage.ObjectStore(obstore.store.LocalStore(folder), read_only=True)
    return zarr.open_array(store, mode="r")


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_zarr(tmp_path, kind):
    stored(tmp_path, (7, 9), (3, 2), **PLAIN[kind])
    array = opened(tmp_path)
    reader = direct.direct_reader(array)
    for index in [
        (slice(0, 7), slice(0, 9)),
        (slice(2, 5), slice(3, 4)),
        (slice(3, 6), slice(2, 4)),
    ]:
        np.testing.assert_array_equal(reader.read(index), array[index])


@pytest.mark.parametrize("damage", ["gone", "empty", "shorter"])
def test_what_is_damaged_is_what_zarr_says(tmp_path, damage):
    stored(tmp_path, (600,), (300,))
    file = tmp_path / "c" / "1"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "shorter" else b"")
    array, index = opened(tmp_path), (slice(0, 600),)
    assert direct.direct_reader(array).read(index) is None
    assert outcome(lambda: Leaf(array)[index]) == outcome(lambda: array[index])


def test_a_store_that_refuses_is_left_to_zarr(tmp_path, monkeypatch):
    stored(tmp_path, (600,), (300,))
    array, index = opened(tmp_path), (slice(0, 600),)

    def refuse(*_):
        raise obstore.exceptions.GenericError("no answer")

    monkeypatch.setattr(obstore, "get", refuse)
    np.testing.assert_array_equal(Leaf(array)[index], array[index])


@pytest.mark.parametrize("kind", ["shards", *LEFT_TO_ZARR])
@pytest.mark.filterwarnings("ignore:Combining a")
def test_others_are_left_to_zarr(tmp_path, kind):
    options = PLAIN[kind] if kind in PLAIN else LEFT_TO_ZARR[kind][0]
    stored(tmp_path, (6, 8), (3, 2), **options)
    array = opened(tmp_path)
    assert direct.why_not_direct(array)
    np.testing.assert_array_equal(Leaf(array)[1:5, 3:8], array[1:5, 3:8])


def test_a_subclass_of_a_store_is_left_to_zarr(tmp_path):
    class Changed(zarr.storage.ObjectStore):
        """It may read anything."""

    stored(tmp_path, (6, 8), (3, 2))
    store = Changed(obstore.store.LocalStore(tmp_path), read_only=True)
    assert direct.why_not_direct(zarr.open_array(store, mode="r"))


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def meeting(monkeypatch, n):
    """Let requests wait until there are n of them at one time."""
    together, get = threading.Barrier(n), objects._object

    def waiting(store, key):
        together.wait(30)
        return get(store, key)

    monkeypatch.setattr(objects, "_object", waiting)


def test_all_chunks_of_a_piece_are_requested_at_one_time(tmp_path, monkeypatch):
    array = stored(tmp_path, (600,), (150,))
    meeting(monkeypatch, 4)
    values = direct.direct_reader(opened(tmp_path)).read((slice(0, 600),))
    np.testing.assert_array_equal(values, array[:])


@pytest.mark.slow
def test_all_arrays_of_a_block_are_requested_at_one_time(tmp_path, monkeypatch):
    x = np.linspace(0.0, 5.0, 600)
    y = np.asarray(decay(x, 2.0, 0.7, 0.4)) + 0.01 * np.cos(37 * x)
    for name, values in (("x", x), ("y", y)):
        zarr.create_array(tmp_path / name, data=values, chunks=(600,))
    meeting(monkeypatch, 2)
    arrays = [opened(tmp_path / name) for name in "xy"]
    found = fit(decay, *arrays, p0=[1.0, 1.0, 0.0], strategy="streaming", pilot=False)
    assert found.n_passes > 1
    np.testing.assert_allclose(found.popt, fit(decay, x, y, p0=[1.0, 1.0, 0.0]).popt, rtol=1e-6)
