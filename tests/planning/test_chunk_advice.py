"""Chunks that make a fit slower than it need be: what a plan says of them, and whether it helps."""

from __future__ import annotations

import contextlib
import math
import re

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr

from nlsq_dask import InputError, plan

N = 120_000


# Of xarray, at every default to_zarr.
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")


def decay(t, a, k, c):
    (t,) = t if isinstance(t, tuple) else (t,)
    return a * jnp.exp(-k * t) + c


def planned(x, y, **options):
    return plan(decay, x, y, p0=[2, 1, 0.3], time=False, **options)


def warnings_of(x, y, **options):
    return planned(x, y, **options).warnings


# How arrays are given


def in_zarr(shape, chunks, folder):
    store = folder / f"{len(list(folder.iterdir()))}.zarr"
    return zarr.create_array(store, shape=shape, chunks=chunks, dtype=float)


def in_dask(shape, chunks, folder):
    return da.zeros(shape, chunks=chunks)


def in_dask_from_zarr(shape, chunks, folder):
    return da.from_zarr(in_zarr(shape, chunks, folder))


def in_xarray(shape, chunks, folder, make=in_dask):
    return xr.DataArray(make(shape, chunks, folder), dims=("time", "row", "column")[: len(shape)])


def in_xarray_from_zarr(shape, chunks, folder):
    opened = in_xarray(shape, chunks, folder, in_dask_from_zarr)
    opened.encoding = {
        "chunks": chunks,
        "preferred_chunks": dict(zip(opened.dims, chunks, strict=True)),
    }
    return opened


IN_MEMORY = [in_dask, in_xarray]
STORED = [in_dask_from_zarr, in_zarr, in_xarray_from_zarr]


def single(array):
    return array


def in_a_tuple(array):
    return (array,)


# Following the advice


def as_advised(text, folder, x, y):
    """x and y after the calls that a text advises, made as they stand."""
    calls = re.search(
        r"(?:cut alike|Pass joined chunks|smaller|smaller chunks): (.*?)(?:; or|\.$)", text
    )
    assert calls, text
    names = {"x": x, "y": y, "da": da}
    changed = {}
    for call in calls[1].split("; "):
        (name,) = re.findall(r"(?<![\w.])(?:x\[0\]|x|y)(?=[.,)])", call)
        with contextlib.chdir(folder):
            changed[name] = eval(call, names)
        if "to_zarr" in call:
            changed[name] = opened(folder / re.search(r"'([^']*)'\)$", call)[1], y)
    x = (changed["x[0]"],) if "x[0]" in changed else changed.get("x", x)
    return x, changed.get("y", y)


def opened(store, like):
    if isinstance(like, xr.DataArray):
        return xr.open_dataarray(store, engine="zarr", chunks={})
    array = zarr.open_array(store)
    return array if isinstance(like, zarr.Array) else da.from_zarr(array)


# Rows, chunks of x and of y, and how the text begins
TROUBLES = {
    "unlike": (2_000_000, 200_000, 500_000, "the chunks do not match"),
    "unlike, and joined but one": (2_000_000, 300_000, 70_000, "the chunks do not match"),
    "many": (1_500_000, 140, 140, "10,715 blocks of 2.24 kB"),
    "few": (2_000_000, 1_000_000, 1_000_000, "a pass has 2 tasks for 4 threads, 2 of which idle."),
}


@pytest.fixture(autouse=True)
def four_threads():
    with dask.config.set(num_workers=4):
        yield


# The calls are of the kind of array; in a tuple they have another name for it.
GIVEN = [(given, single) for given in IN_MEMORY + STORED]
GIVEN += [(in_dask, in_a_tuple), (in_zarr, in_a_tuple)]


@pytest.mark.every(4)
@pytest.mark.parametrize(
    "trouble",
    [pytest.param(t, marks=[pytest.mark.slow] if t == "many" else []) for t in TROUBLES],
)
@pytest.mark.parametrize(("given", "structure"), GIVEN)
def test_the_calls_that_are_advised_help(given, structure, trouble, tmp_path):
    rows, *chunks, begin = TROUBLES[trouble]
    x, y = (given((rows,), (c,), tmp_path) for c in chunks)
    x = structure(x)
    if trouble == "many" and given is in_zarr:  # a fit reads small chunks several at one time
        assert warnings_of(x, y) == ()
        return
    (text,) = warnings_of(x, y)
    assert text.startswith(begin)
    x, y = as_advised(text, tmp_path, x, y)
    assert warnings_of(x, y) == ()
    assert planned(x, y).blocks >= 4


@pytest.mark.quick(3)
@pytest.mark.parametrize("given", IN_MEMORY + STORED)
def test_cubes_are_cut_by_their_dimensions(given, tmp_path):
    shape, chunks = (40, 200, 200), [(20, 40, 50), (10, 100, 40)]
    x, y = (given(shape, c, tmp_path) for c in chunks)
    (text,) = warnings_of(x, y)
    assert warnings_of(*as_advised(text, tmp_path, x, y)) == ()


def test_coordinates_in_one_array_have_a_dimension_more(tmp_path):
    x, y = da.zeros((2, N), chunks=(1, 4000)), da.zeros(N, chunks=6000)

    def plane(x, a, b, c):
        return a + b * x[0] + c * x[1]

    (text,) = plan(plane, x, y, p0=[1, 1, 1], time=False).warnings
    x, y = as_advised(text, tmp_path, x, y)
    assert plan(plane, x, y, p0=[1, 1, 1], time=False).warnings == ()


def test_dimensions_in_another_order_are_cut_by_name(tmp_path):
    x = in_xarray((40, 300), (20, 30), tmp_path).transpose("row", "time")
    y = in_xarray((40, 300), (10, 60), tmp_path)
    (text,) = warnings_of(x, y)
    assert warnings_of(*as_advised(text, tmp_path, x, y)) == ()


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize(("rows", "chunk"), [(2_000_000, 140), (2_000_100, 150), (1_999_999, 140)])
def test_joined_chunks_are_about_equal(rows, chunk, tmp_path):
    x, y = da.zeros(rows, chunks=chunk), da.zeros(rows, chunks=chunk)
    (text,) = warnings_of(x, y)
    _, y = as_advised(text, tmp_path, x, y)
    lengths = y.chunks[0]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 4 * chunk
    assert all(n % chunk == 0 for n in lengths[:-1])


# What is said


def test_good_chunks_are_not_warned_of(tmp_path):
    x, y = (in_zarr((N,), (6000,), tmp_path) for _ in "xy")
    assert warnings_of(x, y) == ()
    assert warnings_of(np.zeros(N), y) == ()
    fine = in_zarr((N,), (1000,), tmp_path)
    joined = (
        da.from_array(fine, chunks=9000),
        da.from_zarr(in_zarr((N,), (3000,), tmp_path), chunks=9000),
    )
    assert warnings_of(*joined) == ()


@pytest.mark.parametrize("chunks", [(4000, 6000), (2000, 4000), (3000, 7000)])
def test_chunks_that_do_not_match(chunks, tmp_path):
    x, y = (da.zeros(N, chunks=c) for c in chunks)
    (text,) = warnings_of(x, y)
    assert f"y ({chunks[1]},), x ({chunks[0]},)" in text
    x, y = as_advised(text, tmp_path, x, y)
    assert x.chunksize == y.chunksize == (math.lcm(*chunks),)


def test_rows_that_are_read_twice_for_chunks_that_do_not_match(tmp_path):
    x, y = (in_zarr((N,), (c,), tmp_path) for c in (4000, 6500))
    whole = 30 * 4000 * 8 + 19 * 6500 * 8
    a_pass = planned(x, y).bytes_per_pass
    assert a_pass > whole
    (text,) = warnings_of(x, y)
    kilobytes = float(re.search(r"([\d.]+) kB are read twice", text)[1])
    assert 1e3 * kilobytes == pytest.approx(a_pass - whole, rel=0.01)


def test_dask_chunks_that_cut_zarr_chunks(tmp_path):
    x, y = (in_zarr((N,), (6000,), tmp_path) for _ in "xy")
    (text,) = warnings_of(x, da.from_zarr(y, chunks=1500))
    assert "decoded 4 times" in text
    call = re.search(r"Pass whole ones as y: (.*), or the zarr.Array itself\.", text)[1]
    again = eval(call, {"da": da, "store": y.store_path.store.root})
    assert planned(x, again).bytes_per_pass == 2 * 8 * N
    assert warnings_of(x, again) == warnings_of(x, y) == ()


@pytest.mark.slow
def test_very_many_very_small_chunks():
    x, y = da.zeros(N, chunks=10), da.zeros(N, chunks=10)
    (text,) = warnings_of(x, y)
    assert text.startswith("12,000 blocks of 160 bytes")


def test_fewer_tasks_than_threads():
    x, y = da.zeros(10 * N, chunks=2 * N), da.zeros(10 * N, chunks=2 * N)
    with dask.config.set(num_workers=8):
        (text,) = warnings_of(x, y)
    assert text.startswith("a pass has 5 tasks for 8 threads, 3 of which idle.")
    with dask.config.set(num_workers=5):
        assert warnings_of(x, y) == ()


@pytest.mark.slow
def test_chunks_that_lie_across_many_tasks(tmp_path):
    """As slices of an image in time and its columns do; and where there is no memory for them."""
    shape = (32, 1024, 512)
    y = da.from_zarr(in_zarr(shape, (1, 1024, 512), tmp_path))
    sigma = da.from_zarr(in_zarr(shape, (32, 128, 128), tmp_path))

    def look(sigma, **options):
        t = (np.arange(32.0)[:, None, None],)
        options |= {"p0": [2, 1, 0.3], "sigma": sigma, "time": False}
        return plan(decay, t, y, **options)

    whole = 8 * math.prod(shape)
    planned = look(sigma)
    (text,) = planned.warnings
    assert f"{whole / 1e6:.0f} MB are kept in memory" in text
    assert planned.bytes_once == whole
    assert planned.memory_bytes > whole
    with pytest.raises(InputError, match=r"134 MB of them would be kept.*330 MB.*rechunk\(y\."):
        look(sigma, memory_limit_gb=0.33)

    call = re.search(r"cut alike: (.*)\.$", text)[1]
    with contextlib.chdir(tmp_path):
        eval(call, {"sigma": sigma})
    planned = look(da.from_zarr(tmp_path / "sigma_rechunked.zarr"), memory_limit_gb=0.33)
    assert planned.warnings == ()
    assert planned.bytes_once == 0
