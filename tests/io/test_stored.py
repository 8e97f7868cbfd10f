"""Arguments that are stored arrays: small chunks are read several at one time."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from nlsq_dask import InputError
from nlsq_dask.io.chunks import JOINED_ROWS, LEAST_JOINED, joined_chunks
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stored import in_blocks, of_zarr, stored_argument

grids = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 600)), min_size=1, max_size=3)


@given(grids)
def test_blocks_are_whole_chunks(grid):
    shape, chunks = zip(*grid, strict=True)
    joined = joined_chunks(shape, chunks)
    least = [min(c, n) for c, n in zip(chunks, shape, strict=True)]
    for n, chunk, length in zip(shape, chunks, joined, strict=True):
        assert length == n or length % chunk == 0
    if joined != tuple(least):
        assert math.prod(joined) <= min(JOINED_ROWS, math.prod(shape) // LEAST_JOINED)


@pytest.mark.parametrize(
    ("shape", "chunks", "joined"),
    [
        ((10_000_000,), (1_000,), (128_000,)),
        ((100_000_000,), (1_000,), (512_000,)),
        ((100_000_000,), (8_000_000,), (8_000_000,)),
        ((6_000,), (1_000,), (1_000,)),
        ((500, 512, 512), (1, 64, 64), (2, 512, 512)),
        ((100_000, 16, 16), (10, 16, 16), (1280, 16, 16)),
    ],
)
def test_lengths_of_blocks(shape, chunks, joined):
    assert joined_chunks(shape, chunks) == joined


def test_chunks_are_joined_where_all_arrays_have_the_same():
    def array(chunk, dtype="f8"):
        store = MemoryStore()
        made = zarr.create_array(store, shape=(100_000,), chunks=(chunk,), dtype=dtype)
        return of_zarr(made, "y")

    y, small, other, numbers = array(100), array(100, "i2"), array(300), np.ones(100_000)
    for arguments in [(small, y), ((small, numbers), y, numbers), (numbers, y, None, small)]:
        x, *rest = in_blocks(*arguments)
        stored = [a for a in (*(x if isinstance(x, tuple) else (x,)), *rest) if hasattr(a, "array")]
        assert {a.blocks for a in stored} == {(800,)}
        assert {a.lazy().chunks for a in stored} == {((800,) * 125,)}
    for x in (other, da.ones(100_000, chunks=100)):
        assert in_blocks(x, y)[1].blocks is None
    assert in_blocks(numbers, list(numbers), y)[2].blocks is None


ATTRIBUTES = {"scale_factor": 0.5, "_FillValue": np.int16(-1)}


def test_datasets_of_hdf5_are_decoded(tmp_path):
    h5py = pytest.importorskip("h5py")
    numbers = np.arange(-1, 19, dtype="i2")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        y = file.create_dataset("y", data=numbers, chunks=(5,))
        plain = file.create_dataset("x", data=numbers)
        y.attrs.update(ATTRIBUTES)
        found = stored_argument(y, "y", "cf")
        values = found.lazy().compute(scheduler="sync")
        np.testing.assert_array_equal(values, np.where(numbers == -1, np.nan, 0.5 * numbers))
        assert observe(np.ones(20), found, nan_policy="omit").decoded
        assert stored_argument(y, "y", False) is y
        assert stored_argument(plain, "x", "cf").decoding is None


def test_variables_of_netcdf4_that_are_not_decoded_are_refused(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "y.nc", "w") as file:
        file.createDimension("t", 20)
        y = file.createVariable("y", "i2", ("t",), fill_value=-1)
        y.scale_factor = 0.5
        assert stored_argument(y, "y", "cf").decoding is None  # the library decodes
        y.set_auto_maskandscale(False)
        with pytest.raises(InputError, match="scale_factor = 0.5.*set_auto_maskandscale"):
            stored_argument(y, "y", "cf")
        assert stored_argument(y, "y", False) is y


def test_variables_of_xarray_that_are_not_decoded_are_refused():
    with pytest.raises(InputError, match="scale_factor = 0.5.*mask_and_scale=True"):
        stored_argument(xr.Variable("t", np.arange(20, dtype="i2"), ATTRIBUTES), "y", "cf")
