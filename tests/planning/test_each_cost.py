"""The plan of many fits: the way, the blocks and the bytes, without reading."""

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from nlsq_dask import InputError, fit_each, plan_each
from nlsq_dask.engines.neighbours import ROUNDS
from tests.support.counting_store import stored as counted
from tests.support.series import ROWS, START, T, cube, decay

SHAPE = (6, 8)
CUBE = cube(SHAPE)
GIGABYTE = {"memory_limit_gb": 1.0}


def unread(chunks, shape=(ROWS, *SHAPE), dtype=np.float32):
    """An array that must not be read."""

    def read(block):
        raise AssertionError("read")

    return da.zeros(shape, chunks=chunks, dtype=dtype).map_blocks(
        read, dtype=dtype, meta=np.zeros(0)
    )


@pytest.mark.parametrize(
    ("chunks", "blocks", "joined", "series"),
    [((ROWS, 3, 4), 4, 1, 12), ((15, 6, 4), 2, 3, 24), ((1, 6, 8), 1, ROWS, 48)],
)
def test_blocks_hold_whole_series(chunks, blocks, joined, series):
    found = plan_each(decay, T, unread(chunks), START)
    assert (found.strategy, found.readings) == ("streaming", 1)
    assert (found.blocks, found.joined, found.block_series) == (blocks, joined, series)
    assert found.block_bytes == 4 * ROWS * series + T.nbytes
    assert found.bytes_read == found.data_bytes - T.nbytes
    assert f"{blocks} block" in str(found)


@pytest.mark.parametrize("refine", [None, "neighbours"])
@pytest.mark.parametrize("chunks", [(ROWS, 20, 9), (15, 40, 21), (ROWS, 4, 30)])
def test_what_is_planned_for_neighbours_is_read(chunks, refine, tmp_path):
    source = cube((40, 30), missing=0.0)
    array = counted(tmp_path / "y.zarr", source.y, chunks)
    y = da.from_zarr(array)
    found = plan_each(decay, T, y, START, refine=refine)
    array.store.clear_counts()
    maps = fit_each(decay, T, y, START, refine=refine, store=tmp_path / "maps.zarr")
    assert array.store.bytes_read == found.bytes_read >= source.y.nbytes
    assert maps.status.npartitions == found.blocks > 1
    around = 2 * ROUNDS if refine else 0
    rows, columns = (max(own) + around for own in maps.status.chunks)
    assert found.block_bytes <= ROWS * 8 * min(rows, 40) * min(columns, 30) + T.nbytes
    assert found.block_bytes > ROWS * 8 * found.block_series or not refine


def test_the_maps_have_the_bytes_that_are_planned():
    maps = fit_each(decay, T, CUBE.y, START, covariance=True)
    found = plan_each(decay, T, CUBE.y, START, covariance=True)
    assert found.bytes_of_maps == sum(np.asarray(f).nbytes for f in maps.fields.values())
    assert (found.strategy, found.bytes_read, found.stored) == ("standard", 0, False)
    assert "beside the data" in found._repr_html_()


def test_cut_zarr_chunks_are_counted_each_time(tmp_path):
    stored = zarr.create_array(
        tmp_path / "y.zarr", shape=CUBE.y.shape, chunks=(ROWS, 6, 8), dtype="f8"
    )
    cut = da.from_zarr(stored, chunks=(ROWS, 6, 2))
    assert plan_each(decay, T, cut, START).bytes_read == 4 * CUBE.y.nbytes


def test_a_store_is_planned_for_and_not_opened(tmp_path):
    found = plan_each(decay, T, CUBE.y, START, store=tmp_path / "maps.zarr")
    assert (found.strategy, found.stored, found.blocks) == ("streaming", True, 1)
    assert "written as they come" in str(found)
    assert not (tmp_path / "maps.zarr").exists()


def test_blocks_that_do_not_fit_and_blocks_of_few_series_are_warned_of():
    few = unread((1, 4096, 4096), (40, 4096, 4096))
    found = plan_each(decay, np.arange(40.0), few.rechunk((40, 4096, 4096)), START, **GIGABYTE)
    assert found.memory_bytes > found.data_bytes
    assert "y.rechunk((40, " in found.warnings[0]
    small = unread((ROWS, 1, 2), (ROWS, 32, 16))
    joined = plan_each(decay, T, small, START)
    assert (joined.blocks, joined.warnings) == (64, ())
    # Chunks of unequal lengths are not joined.
    (warning,) = plan_each(decay, T, small.rechunk({2: (1, *(2,) * 7, 1)}), START).warnings
    assert "288 blocks have 2 series or fewer" in warning
    assert not plan_each(decay, T, unread((ROWS, 32, 16), (ROWS, 32, 16)), START).warnings


@pytest.mark.parametrize("threads", [1, 4])
def test_tasks_at_one_time_share_the_memory_for_frames(threads):
    frames = unread((1, 4096, 4096), (1000, 4096, 4096))
    with dask.config.set(num_workers=threads):
        found = plan_each(decay, np.arange(1000.0), frames, START, memory_limit_gb=8.0)
    assert found.strategy == "frames"
    assert not found.warnings
    assert found.memory_bytes < found.available_bytes == 8e9
    assert found.blocks > threads
    # Each region of the one chunk of the map decodes the frames by itself.
    assert found.bytes_read == found.readings * found.blocks * 4 * 1000 * 4096**2
    assert "about 5 readings" in str(found)


def test_arguments_are_checked_as_those_of_the_fits():
    with pytest.raises(InputError, match="no dimension of y"):
        plan_each(decay, T, CUBE.y, START, dim=3)
    with pytest.raises(TypeError, match="plan_each"):
        plan_each(decay, T, CUBE.y, START, dims=0)
