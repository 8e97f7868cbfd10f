"""Maps that go to a store region by region: the same bits, also after a run that was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from dask import delayed
from dask.tokenize import tokenize
from zarr.storage import LocalStore, MemoryStore

from nlsq_dask import (
    ConvergenceWarning,
    InputError,
    InputTypeError,
    ReadingError,
    Status,
    fit_each,
)
from nlsq_dask.engines.dask import cluster_executor, idle_memory, reading
from nlsq_dask.engines.dask.cluster_executor import ClusterExecutor
from nlsq_dask.engines.dask.executor import LocalExecutor
from nlsq_dask.engines.dask.series_regions import Region
from nlsq_dask.fitting import series_reading
from nlsq_dask.io import reused_memory
from nlsq_dask.io.map_store import StoredMap, StoredPlanes, open_group
from nlsq_dask.io.reused_memory import ReusedMemory
from nlsq_dask.kernels import compiled
from nlsq_dask.kernels.compiled import compilations
from nlsq_dask.kernels.lanes import LaneKernel
from nlsq_dask.user_model.model import prepare_model
from tests.support.counting_store import stored
from tests.support.series import NAMES, START, T, cube, decay

pytestmark = pytest.mark.versions

SHAPE = (20, 30)
STORE_PROGRAM = Path(__file__).with_name("killed_maps.py")
Y = cube(SHAPE, missing=0.0).y


@pytest.fixture(scope="module")
def expected():
    maps = fit_each(decay, T, Y, START)
    assert (maps.status == Status.STATISTICAL).all()
    return maps


def assert_same(maps, expected):
    computed = maps.compute()
    assert set(computed.fields) == set(expected.fields)
    for name, values in expected.fields.items():
        np.testing.assert_array_equal(computed.fields[name], values)
        assert computed.fields[name].dtype == values.dtype


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks",
    [None, (-1, 10, 15), (10, 8, 30), (40, (3, 10, 7), (7, 23)), (1, 20, 30)],
    ids=["in memory", "whole series", "series in parts", "ragged", "frames"],
)
def test_stored_maps_are_those_in_memory(chunks, expected, tmp_path):
    y = Y if chunks is None else da.from_array(Y, chunks=chunks)
    maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr")
    assert maps.lazy
    assert_same(maps, expected)
    np.testing.assert_array_equal(maps["lifetime"].compute(), expected["lifetime"])
    assert maps.at(3, 4).popt == pytest.approx(expected.at(3, 4).popt)


def test_a_store_is_a_path_or_the_url_of_a_path(tmp_path):
    place = tmp_path / "maps of 1.zarr"
    maps = fit_each(decay, T, Y[:, :1], START, store=f"file://{place}".replace(" ", "%20"))
    again = fit_each(decay, T, Y[:, :1], START, store=place, resume=True)
    assert_same(maps, again.compute())
    with pytest.raises(InputError, match="lacks a slash"):
        fit_each(decay, T, Y[:, :1], START, store=Path("s3://bucket/maps.zarr"))


def test_options_of_an_object_store_need_a_url(expected, tmp_path):
    options = {"storage_options": {"key": "unused for files"}}
    maps = fit_each(decay, T, Y, START, store=f"file://{tmp_path}/maps.zarr", **options)
    assert_same(maps, expected)
    with pytest.raises(InputError, match="of checkpoints or of a store of maps"):
        fit_each(decay, T, Y, START, store=tmp_path / "maps.zarr", **options)


def test_maps_are_not_written_where_the_store_is_not(tmp_path):
    """On a worker that does not have the file system of the store."""
    array = open_group(tmp_path / "maps", None).create_array("a", shape=(4,), dtype=float)
    (tmp_path / "maps").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="on the machine"):
        StoredMap("a", array, np.array(0)).write((slice(0, 4),), np.ones((1, 4)))
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
def test_the_store_is_a_dataset(tmp_path):
    place = tmp_path / "maps.zarr"
    y = xr.DataArray(
        Y, dims=("time", "row", "column"), coords={"time": T, "row": 2.0 * np.arange(SHAPE[0])}
    )
    maps = fit_each(decay, "time", y.chunk(row=10), START, covariance=True, store=place)
    expected = fit_each(decay, "time", y, START, covariance=True)
    with xr.open_zarr(place, consolidated=False) as found:
        xr.testing.assert_equal(found.compute(), expected.to_dataset())
        assert found.status.attrs["flag_meanings"].startswith("not_fitted")
        assert found.lifetime.dims == ("row", "column")
    xr.testing.assert_equal(maps.to_dataset().compute(), expected.to_dataset())


def test_coordinates_of_all_kinds_are_stored(tmp_path):
    days = np.datetime64("2020-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    coords = {
        "row": list("abc"),
        "column": days,
        "delay": ("column", np.arange(4) * np.timedelta64(1, "s").astype("m8[ns]")),
        "latitude": (("row", "column"), np.arange(12.0).reshape(3, 4), {"units": "degrees_north"}),
        "run": 7,
    }
    y = xr.DataArray(Y[:, :3, :4], coords, ("time", "row", "column"))
    maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr")
    with xr.open_zarr(tmp_path / "maps.zarr", consolidated=False, decode_timedelta=True) as found:
        xr.testing.assert_equal(found.load(), maps.to_dataset().compute())
        assert found["latitude"].attrs == {"units": "degrees_north"}


class FailingStore(LocalStore):
    """A store that fails to write below some keys."""

    below, failures = "", ()

    async def set(self, key, value):
        if key.startswith(self.below):
            for error in self.failures:
                raise error
        await super().set(key, value)


def labelled_cube(n):
    return xr.DataArray(Y[:, :1, :n], coords={"col": 10.0 + np.arange(n)}, dims=("t", "row", "col"))


def labelled_fit(store, **options):
    return fit_each(decay, T, labelled_cube(2), START, dim="t", store=store, **options)


@pytest.mark.parametrize("below", ["zarr.json", "status/zarr.json", "amplitude/c", "col/zarr.json"])
def test_a_store_that_refuses_writes_is_named(below, tmp_path):
    group = zarr.open_group(FailingStore(tmp_path))
    group.store.below, group.store.failures = below, [PermissionError("denied")]
    with pytest.raises(ReadingError, match="could not be written .*check the permissions") as told:
        labelled_fit(group)
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize("below", ["zarr.json", "status/zarr.json", "col/"])
def test_the_parts_of_a_store_that_are_written_first_and_last_are_written_again(
    below, tmp_path, monkeypatch
):
    monkeypatch.setattr(reading, "FIRST_WAIT", 0.0)
    group = zarr.open_group(FailingStore(tmp_path))
    group.store.below, group.store.failures = below, iter([ConnectionResetError("reset")])
    labelled_fit(group)
    assert not list(group.store.failures)
    np.testing.assert_array_equal(zarr.open_group(tmp_path)["col"], [10.0, 11.0])


def test_coordinates_without_values_are_written_when_a_run_goes_on(tmp_path):
    group = zarr.open_group(FailingStore(tmp_path))
    group.store.below, group.store.failures = "col/c", [PermissionError("denied")]
    with pytest.raises(ReadingError):
        labelled_fit(group)
    assert "col" in zarr.open_group(tmp_path)
    labelled_fit(tmp_path, resume=True)
    np.testing.assert_array_equal(zarr.open_group(tmp_path)["col"], [10.0, 11.0])


def test_a_finished_store_is_read_and_not_written_when_a_run_goes_on(tmp_path):
    labelled_fit(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    labelled_fit(tmp_path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


class FarStore(LocalStore):
    """A store that writes no chunk of a region before those of all maps but the status came."""

    wanted = 11  # and no chunk of `at_bound`, which is the fill value alone

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.under_way, self.enough, self.order = 0, asyncio.Event(), []

    async def set(self, key, value):
        if "/c/" in key and not key.startswith("status"):
            self.under_way += 1
            if self.under_way == self.wanted:
                self.enough.set()
            await asyncio.wait_for(self.enough.wait(), 60)
        await super().set(key, value)
        self.order.append(key)


def test_maps_of_a_region_go_to_a_store_at_one_time_and_the_status_last(tmp_path):
    store = FarStore(tmp_path)
    maps = fit_each(decay, T, Y[:, :2, :3], START, store=zarr.open_group(store))
    chunks = [key for key in store.order if "/c/" in key]
    assert len(chunks) == FarStore.wanted + 1
    assert chunks[-1].startswith("status/c/")
    assert_same(maps, fit_each(decay, T, Y[:, :2, :3], START))


def clashing(t, amplitude, amplitude_stderr, row):
    return amplitude * jnp.exp(-t / amplitude_stderr) + row


def statistics(t, chi2, status, column):
    return chi2 * jnp.exp(-t / status) + column


@pytest.mark.parametrize("model", [clashing, statistics])
def test_variables_of_one_name_are_told_apart(model, expected, tmp_path):
    y = xr.DataArray(Y, {"row": np.arange(SHAPE[0])}, ("time", "row", "column"))
    maps = fit_each(model, T, y, START, store=tmp_path / "maps.zarr")
    taken = {"row", "column", *maps.names}
    for place in maps.to_dataset(), xr.open_zarr(tmp_path / "maps.zarr", consolidated=False):
        for i, name in enumerate(maps.names):
            own = f"fit_{name}" if name in ("row", "column") else name
            error = f"fit_{name}_stderr" if f"{name}_stderr" in taken else f"{name}_stderr"
            np.testing.assert_array_equal(place[own], expected.popt.array[i])
            np.testing.assert_array_equal(place[error], expected.perr.array[i])
        of_fit = {name: f"fit_{name}" if name in taken else name for name in ("chi2", "status")}
        np.testing.assert_array_equal(place[of_fit["chi2"]], expected.chi2)
        np.testing.assert_array_equal(place[of_fit["status"]], expected.status)


@pytest.mark.slow
def test_failed_series_are_counted_once_and_stored(tmp_path):
    y = Y.copy()
    y[:, 0, :5] = np.nan
    y = da.from_array(y, chunks=(-1, 10, 15))
    with pytest.warns(ConvergenceWarning, match="5 of 600 series have no answer") as caught:
        maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr")
    assert len(caught) == 1
    assert (maps.status[0, :5].compute() == Status.TOO_FEW_ROWS).all()
    with pytest.warns(ConvergenceWarning, match="5 of 600"):  # of a run that fits nothing
        again = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr", resume=True)
    for found in (maps, again):
        assert "595 converged, 5 with fewer rows" in str(found)
        assert f"stored in file://{tmp_path}/maps.zarr" in str(found)


def stopping(after, log):
    """Observations whose reading fails after so many blocks."""

    def read(block, block_id=None):
        log.append(block_id)
        if len(log) > after:
            raise OSError("the disk is gone")
        return block

    y = da.from_array(Y, chunks=(-1, 5, 10))
    return y.map_blocks(read, dtype=float, meta=np.empty((0, 0, 0)))


@pytest.mark.slow
def test_a_run_goes_on_where_another_stopped(expected, tmp_path):
    place, log = tmp_path / "maps.zarr", []
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="the disk is gone"):
            fit_each(decay, T, stopping(7, log), START, store=place, retries=0)
        begun = zarr.open_group(place, mode="r")
        assert (begun["status"][:] == Status.NOT_FITTED).sum() == 5 * SHAPE[0] * SHAPE[1] / 12
        log.clear()
        maps = fit_each(decay, T, stopping(99, log), START, store=place, resume=True)
        compared = 3  # blocks of stored regions, of which a series is fitted again
        assert len(log) == compared + 12 - 7
        assert_same(maps, expected)
        log.clear()
        again = fit_each(decay, T, stopping(99, log), START, store=place, resume=True)
    assert len(log) == compared
    assert_same(again, expected)


def test_a_run_goes_on_where_a_parameter_is_called_status(expected, tmp_path):
    arguments = {"p0": START, "store": tmp_path / "maps.zarr", "retries": 0}
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="the disk is gone"):
            fit_each(statistics, T, stopping(3, []), **arguments)
        maps = fit_each(statistics, T, stopping(99, []), **arguments, resume=True)
    assert_same(maps, expected)


@pytest.mark.slow
def test_a_region_whose_status_is_half_written_is_fitted_again(expected, tmp_path):
    place, log = tmp_path / "maps.zarr", []
    fit_each(decay, T, stopping(99, log), START, store=place)
    (chunk,) = (place / "status/c/1").glob("2")
    chunk.write_bytes(chunk.read_bytes()[:-2])
    (place / "lifetime/c/1/2").write_bytes(b"\0")
    log.clear()
    maps = fit_each(decay, T, stopping(99, log), START, store=place, resume=True)
    assert log[3:] == [(0, 1, 2)]  # after the blocks that are compared
    assert_same(maps, expected)


@pytest.mark.parametrize("stat_tol", [1e-9, 0.5])
def test_the_same_data_are_gone_on_with_at_any_tolerance(stat_tol, tmp_path):
    place = tmp_path / "maps.zarr"
    for resume in (False, True):
        fit_each(decay, T, Y[:, :2], START, stat_tol=stat_tol, store=place, resume=resume)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["values", "one row less", "a coordinate", "the last chunk"])
@pytest.mark.parametrize("options", [{}, {"refine": "neighbours"}])
def test_a_store_of_other_data_is_refused(options, changed, tmp_path):
    place, x, y = tmp_path / "maps.zarr", T.copy(), Y.copy()
    start = {"amplitude": np.full(SHAPE, 1.0), "lifetime": 1.0, "offset": 0.0}

    def run(**more):
        cube = da.from_array(y, chunks=(-1, 10, 15))
        return fit_each(decay, da.from_array(x), cube, start, store=place, **options, **more)

    run()
    run(resume=True)
    if changed == "values":
        y += 0.3
    elif changed == "one row less":
        y[-1] = np.nan
    elif changed == "a coordinate":
        x *= 1.1
    else:
        y[:, 10:, 15:] *= 1.05
    with pytest.raises(InputError, match=r"holds maps of other data: .* \(now "):
        run(resume=True)


@pytest.mark.slow
def test_each_chunk_of_a_column_is_decoded_once(expected, tmp_path):
    source = stored(tmp_path / "y.zarr", Y, (8, 10, 15))
    maps = fit_each(decay, T, source, START, store=tmp_path / "maps.zarr")
    assert sorted(source.store.reads.values()) == [1] * (5 * 2 * 2)
    assert_same(maps, expected)


@pytest.mark.slow
def test_stores_that_are_refused(tmp_path):
    def run(place, **options):
        return fit_each(decay, T, Y, **({"p0": START} | options), store=place)

    place = tmp_path / "maps.zarr"
    run(place)
    with pytest.raises(InputError, match="holds maps already: pass resume=True"):
        run(place)
    for changed in ({"p0": [1, 2, 0]}, {"stat_tol": 1e-3}, {"bounds": (0, 9)}, {"sigma": 0.1}):
        with pytest.raises(InputError, match="holds maps of another problem: .* differ"):
            run(place, resume=True, **changed)
    zarr.create_array(tmp_path / "other.zarr" / "x", shape=3, dtype="f8")
    zarr.open_group(tmp_path / "other.zarr", mode="a")
    with pytest.raises(InputError, match="holds other arrays"):
        run(tmp_path / "other.zarr")
    with pytest.raises(InputTypeError, match="store=3 is no place for maps"):
        run(3)
    with pytest.raises(InputError, match="has Zarr's format 2"):
        run(zarr.open_group(tmp_path / "2.zarr", mode="w", zarr_format=2))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be opened for writing"):
        run(tmp_path / "file")
    with pytest.raises(InputError, match="resume=True without a store"):
        fit_each(decay, T, Y, START, resume=True)


@pytest.mark.cluster
def test_a_cluster_writes_the_maps(expected, client, tmp_path):
    y = da.from_array(Y, chunks=(12, 10, 15))
    maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr", client=client)
    assert_same(maps, expected)
    group = zarr.open_group(MemoryStore(), mode="a")
    with pytest.raises(InputError, match="in the memory of this process"):
        fit_each(decay, T, y, START, store=group, client=client)
    here = fit_each(decay, T, y, START, store=group)
    assert_same(here, expected)


@pytest.mark.cluster
def test_a_worker_keeps_freed_memory_behind_a_region(client, tmp_path):
    client.run(hold_freed_memory_for, 60.0)
    try:
        y = da.from_array(Y, chunks=(12, 20, 15))
        fit_each(decay, T, y, START, store=tmp_path / "maps.zarr", client=client)
        kept = client.run(keeps_freed_memory)
    finally:
        client.run(hold_freed_memory_for, idle_memory.IDLE_SECONDS)
    assert any(kept.values())


def hold_freed_memory_for(seconds):
    idle_memory._idle = idle_memory.IdleMemory(seconds)


def keeps_freed_memory():
    return idle_memory._idle._freed.kept


def in_graphs_of_two(monkeypatch):
    """Let executors hand out two tasks at one time; the list gets the keys of each graph."""
    handed_out = []

    def counting(run_each):
        def counted(self, graphs, done):
            def noted():
                for graph, keys in graphs:
                    handed_out.append((len(graph), len(keys)))
                    yield graph, keys

            run_each(self, noted(), done)

        return counted

    for executor in (LocalExecutor, ClusterExecutor):
        monkeypatch.setattr(executor, "run_each", counting(executor.run_each))
        monkeypatch.setattr(executor, "most_handed_out", lambda self, wanted: min(wanted, 2))
    return handed_out


@pytest.mark.slow
def test_the_graph_of_a_map_is_made_in_parts(expected, monkeypatch, tmp_path):
    handed_out = in_graphs_of_two(monkeypatch)
    source = zarr.create_array(tmp_path / "y.zarr", data=Y, chunks=(8, 10, 10))
    maps = fit_each(decay, T, source, START, store=tmp_path / "maps.zarr")
    # A task for each of the regions, and the two values that the tasks of a process share.
    assert handed_out == [(4, 2), (4, 2), (4, 2)]
    assert_same(maps, expected)


CORNER = np.s_[..., :8, :10]


@pytest.fixture
def corner(expected):
    """The fields of the maps of a corner of the cube."""
    return {name: values[CORNER] for name, values in expected.fields.items()}


def assert_fields(maps, expected):
    computed = maps.compute()
    for name, values in expected.items():
        np.testing.assert_array_equal(computed.fields[name], values)


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunks", "regions"),
    [((-1, 3, 1), (3, 5)), ((-1, 1, 1), (8, 2)), ((8, 1, 2), (8, 2))],
    ids=["three series", "single series", "series in parts"],
)
def test_neighbouring_chunks_of_few_series_are_fitted_together(
    chunks, regions, corner, monkeypatch, tmp_path
):
    monkeypatch.setattr(series_reading, "LEAST_REGIONS", 10)
    y = da.from_array(np.ma.masked_invalid(Y[CORNER]), chunks=chunks)
    sigma = da.ones((8, 10), chunks=(7, 4))  # of other chunks, so that Dask must cut them
    p0 = dict(zip(NAMES, START, strict=True))
    p0["lifetime"] = da.full((8, 10), START[1], chunks=(1, 1))
    for options in ({"p0": START}, {"p0": p0, "sigma": sigma}):
        maps = fit_each(decay, T, y, **options)
        assert maps.fields["chi2"].numblocks == regions
        assert_fields(maps, corner)
    maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr")
    assert regions_in(tmp_path / "maps.zarr") == np.prod(regions)
    assert_fields(maps, corner)
    here = fit_each(decay, T, Y[CORNER], START)
    np.testing.assert_array_equal(maps.residuals().compute(), here.residuals())
    np.testing.assert_array_equal(maps.predict(T[:3]).compute(), here.predict(T[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("least", [(10, 10**9), (10**9, 10)])
def test_a_run_goes_on_in_the_regions_of_the_store(least, corner, monkeypatch, tmp_path):
    place, y = tmp_path / "maps.zarr", da.from_array(Y[CORNER], chunks=(-1, 2, 2))
    n_regions = []
    for least_regions in least:
        monkeypatch.setattr(series_reading, "LEAST_REGIONS", least_regions)
        maps = fit_each(decay, T, y, START, store=place, resume=bool(n_regions))
        assert_fields(maps, corner)
        n_regions.append(regions_in(place))
        (place / "status" / "c" / "1" / "2").unlink()
    assert n_regions == [12 if least[0] == 10 else 20] * 2


@pytest.mark.slow
def test_the_graphs_of_stored_maps_hold_no_task_for_each_region(tmp_path):
    y = da.from_array(Y, chunks=(-1, 10, 10))
    place = tmp_path / "maps.zarr"
    maps = fit_each(decay, T, y, START, covariance=True, store=place)
    for field in maps.fields.values():
        layers = field.__dask_graph__().layers.values()
        made = [key for layer in layers if layer.is_materialized() for key in layer]
        assert len(made) <= 1  # the Zarr arrays that all tasks read
    assert maps.popt.array.chunks == ((1, 1, 1), (10, 10), (10, 10, 10))
    np.testing.assert_array_equal(
        maps.popt.array[::2, 3, 5:7], maps.compute().popt.array[::2, 3, 5:7]
    )


def test_planes_of_stored_maps_are_read_alone(tmp_path):
    values = np.arange(24.0).reshape(2, 3, 4)
    matrix = stored(tmp_path / "matrix.zarr", values, (2, 3, 2))
    single = stored(tmp_path / "single.zarr", values[0], (3, 2))
    planes = StoredPlanes(((single, ()), (matrix, (1,)), (matrix, (0,))))
    assert (planes.shape, planes.chunks, planes.dtype) == ((3, 3, 4), (1, 3, 2), values.dtype)
    whole = (slice(None), slice(None))
    np.testing.assert_array_equal(planes[1, *whole], values[1])
    np.testing.assert_array_equal(planes[1:, 1:, 2], values[::-1, 1:, 2])
    assert not single.store.reads
    np.testing.assert_array_equal(planes[:, *whole], values[[0, 1, 0]])


@pytest.mark.slow
def test_memory_of_compiling_is_returned_after_each_compilation(monkeypatch):
    returned = []
    monkeypatch.setattr(compiled, "return_freed_memory", lambda: returned.append(1))

    def model(t, a, k):  # unlike all others, so that it is compiled here
        return a * jnp.exp(-k * t) + 0.125

    y = da.from_array(Y, chunks=(-1, 10, 10))  # six tasks
    for _ in range(2):
        fit_each(model, T, y, (0.9, 0.9)).compute(num_workers=3)
    spec = prepare_model(model, ("a", "k"), "single", 1)
    assert len(returned) == compilations(LaneKernel, spec) > 0


@pytest.mark.slow
def test_tasks_work_in_the_memory_of_the_first_task(monkeypatch, tmp_path):
    made = []

    class Noting(ReusedMemory):
        def _drop_idle(self):
            made.append(self)  # a new piece
            super()._drop_idle()

    monkeypatch.setattr(reused_memory, "_of_process", None)  # another test may hold a fit
    monkeypatch.setattr(reused_memory, "ReusedMemory", Noting)
    source = zarr.create_array(tmp_path / "y.zarr", data=Y, chunks=(40, 10, 10), compressors=None)
    counts = []
    for rows in (10, 20):  # three tasks, and six
        made.clear()
        with dask.config.set(scheduler="synchronous"):
            y = da.from_zarr(source)[:, :rows]
            fit_each(decay, T, y, START, store=tmp_path / f"{rows}.zarr")
        counts.append(len(made))
    # JAX may hold a piece for a moment longer. Tasks that share nothing would make twice as many.
    assert 0 < counts[1] < 1.5 * counts[0]


@pytest.mark.slow
def test_what_tasks_share_is_computed_once_in_one_graph(monkeypatch, tmp_path):
    handed_out, computed = in_graphs_of_two(monkeypatch), []

    def shift():
        computed.append(1)
        return np.array(0.5)

    y = da.from_array(Y, chunks=(-1, 10, 10)) + da.from_delayed(delayed(shift)(), (), float)
    maps = fit_each(decay, T, y, START, store=tmp_path / "maps.zarr")
    assert [keys for _, keys in handed_out] == [6]
    assert len(computed) == 1
    assert (maps.status.compute() == Status.STATISTICAL).all()


@pytest.mark.cluster
def test_a_cluster_gets_the_next_tasks_before_the_last_are_done(
    expected, client, monkeypatch, tmp_path
):
    handed_out = in_graphs_of_two(monkeypatch)
    source = zarr.create_array(tmp_path / "y.zarr", data=Y, chunks=(8, 10, 10))
    maps = fit_each(decay, T, source, START, store=tmp_path / "maps.zarr", client=client)
    assert [keys for _, keys in handed_out] == [2, 2, 2]
    assert_same(maps, expected)


@pytest.mark.cluster
@pytest.mark.parametrize(("seconds", "fetches"), [(0.0, 6), (np.inf, 2)])
def test_results_of_tasks_are_fetched_together(
    seconds, fetches, expected, client, monkeypatch, tmp_path
):
    fetched, gather = [], type(client).gather

    def counting(self, futures, **options):
        fetched.append(len(futures))
        return gather(self, futures, **options)

    monkeypatch.setattr(cluster_executor, "FETCH_SECONDS", seconds)
    monkeypatch.setattr(type(client), "gather", counting)
    source = zarr.create_array(tmp_path / "y.zarr", data=Y, chunks=(8, 10, 10))
    maps = fit_each(decay, T, source, START, store=tmp_path / "maps.zarr", client=client)
    monkeypatch.undo()
    assert sum(fetched) == 6
    assert len(fetched) == fetches  # the first result at once, the others together
    assert_same(maps, expected)


@pytest.mark.cluster
def test_a_task_that_fails_ends_the_fits_at_once(client, monkeypatch):
    monkeypatch.setattr(cluster_executor, "FETCH_SECONDS", np.inf)

    def divide(number):
        return 1 / number

    graphs = [({key: (divide, number)}, [key]) for key, number in (("one", 1), ("none", 0))]
    found = []
    with pytest.raises(ZeroDivisionError):
        ClusterExecutor(client).run_each(graphs, found.append)
    assert found == [1.0]


@pytest.mark.cluster
def test_results_that_came_before_a_failure_are_known(client, monkeypatch):
    monkeypatch.setattr(cluster_executor, "FETCH_SECONDS", np.inf)

    def last(*_):
        raise ZeroDivisionError

    graph = {key: (float, len(key)) for key in ("a", "b", "c")} | {"last": (last, "a", "b", "c")}
    found = []
    with pytest.raises(ZeroDivisionError):
        ClusterExecutor(client).run_each([(graph, list(graph))], found.append)
    assert len(found) == 3  # the first at once, the others together with the task that fails


def test_dask_does_not_go_through_what_a_task_reads():
    class Opaque:
        def __reduce__(self):
            raise RuntimeError

    regions = [Region("name", (i, 0), Opaque()) for i in (0, 1)]
    assert tokenize(regions[0]) == tokenize(Region("name", (0, 0), Opaque()))
    assert tokenize(regions[0]) != tokenize(regions[1])


def regions_in(place):
    return sum(path.is_file() for path in (place / "status").rglob("c/*/*"))


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_process_that_is_killed_until_it_ends(tmp_path):
    place, kills = tmp_path / "maps.zarr", 0
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for wait in (0.0, 0.2, 0.5, None):  # seconds after the first region that a process writes
        before = regions_in(place)
        process = subprocess.Popen([sys.executable, STORE_PROGRAM, place], env=environment)
        while process.poll() is None and regions_in(place) == before:
            time.sleep(0.005)
        if wait is None or process.poll() is not None:
            process.wait()
            break
        time.sleep(wait)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == 0
    subprocess.run(
        [sys.executable, STORE_PROGRAM, tmp_path / "whole.zarr"], env=environment, check=True
    )
    killed, whole = (zarr.open_group(p, mode="r") for p in (place, tmp_path / "whole.zarr"))
    assert kills >= 1
    for name, array in whole.arrays():
        np.testing.assert_array_equal(killed[name][:], array[:])
