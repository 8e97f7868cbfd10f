"""Arrays in files, opened without Dask: streamed in whole stored chunks, and never loaded."""

from __future__ import annotations

import pickle

import h5netcdf
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.storage import LocalStore

from nlsq_dask import InputError, curve_fit, fit, plan
from nlsq_dask.io import chunks as chunks_of
from nlsq_dask.io import lazy_arrays
from nlsq_dask.io.chunks import JOINED_ROWS
from nlsq_dask.io.lazy_arrays import HDF5Variable, NetCDFVariable, block_chunks
from nlsq_dask.io.sources import is_dask, observe
from tests.support.counting_store import CountingStore
from tests.support.traced import traced_peak

pytestmark = pytest.mark.versions

T, ROW = np.arange(40.0), np.arange(30.0)
CUBE = 2.0 + 0.5 * T[:, None] + np.zeros(30)
POWER = xr.DataArray(CUBE, {"time": T, "row": ROW}, ("time", "row"), "power")
CHUNKS = (8, 10)


def line(x, a, b):
    return a + b * x


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    """Blocks of few stored chunks, so that small files have several."""
    if "as_joined" not in request.fixturenames:
        monkeypatch.setattr(lazy_arrays, "LEAST_ROWS", 1)


@pytest.fixture
def as_joined():
    """Blocks as they are joined."""


@pytest.fixture
def counted(tmp_path):
    """The cube in Zarr, opened without Dask, and the store that counts what is read of it."""
    POWER.to_dataset().to_zarr(
        tmp_path / "a.zarr", encoding={"power": {"chunks": CHUNKS}}, consolidated=False
    )
    store = CountingStore(LocalStore(tmp_path / "a.zarr"))
    opened = xr.open_zarr(store, chunks=None, consolidated=False)
    store.clear_counts()
    return store, opened.power


@pytest.fixture(scope="module")
def netcdf(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "a.nc"
    POWER.to_dataset().to_netcdf(
        path, engine="h5netcdf", encoding={"power": {"chunksizes": CHUNKS}}
    )
    return path


@pytest.mark.quick(3)
@pytest.mark.parametrize("with_dask", [False, True])
@pytest.mark.parametrize(
    "chosen",
    [
        lambda a: a,
        lambda a: a.isel(time=slice(3, 37), row=slice(5, None)),
        lambda a: a.isel(time=slice(None, None, -3)),
        lambda a: a.transpose("row", "time")[:, 5:],
        lambda a: a.isel(row=[0, 1, 12, 29]),
        lambda a: a.isel(row=7),
    ],
)
def test_each_stored_chunk_is_decoded_once_a_pass_and_nothing_is_kept(counted, chosen, with_dask):
    store, opened = counted
    opened = opened.chunk(opened.encoding["preferred_chunks"]) if with_dask else opened
    y = chosen(opened)
    known = chosen(POWER)
    cost = plan(line, y.time, y, p0=[1, 1], time=False)
    assert cost.rows == y.size
    assert cost.strategy == "streaming"
    assert not store.reads
    result = fit(line, y.time, y, p0=[1, 1], pilot=False, cache=False)
    np.testing.assert_allclose(result.popt, [2.0, 0.5], rtol=1e-9)
    assert set(store.reads.values()) == {result.n_passes}
    np.testing.assert_array_equal(observe(y.time, y).y.compute(), known.values)
    assert not any(a.variable._in_memory for a in (y, opened))


def test_a_plan_sees_the_zarr_chunks_that_xarray_reads(counted):
    _, opened = counted
    cut = opened.chunk({"time": 6, "row": 10})
    (warning, *_) = plan(line, opened.time, cut, p0=[1, 1], time=False).warnings
    assert "cut the Zarr chunks of (8, 10)" in warning
    for whole in (opened, opened.T, opened[:, ::-1], opened[2:]):
        assert not plan(line, whole.time, whole, p0=[1, 1], time=False).warnings


def test_sigma_mask_and_coordinates_in_files_are_not_loaded(counted):
    store, opened = counted
    result = fit(line, opened, opened, p0=[1, 2], sigma=opened, pilot=False, cache=False)
    np.testing.assert_allclose(result.popt, [0.0, 1.0], atol=1e-9)
    assert set(store.reads.values()) == {3 * result.n_passes}  # for each of the three arguments
    assert not opened.variable._in_memory


def open_h5py(path):
    return h5py.File(path)["power"]


def open_netcdf4(path):
    return netCDF4.Dataset(path)["power"]


def open_xarray(path):
    return xr.open_dataset(path, engine="h5netcdf")["power"]


@pytest.mark.parametrize("opened", [open_h5py, open_netcdf4, open_xarray])
def test_variables_of_files_are_streamed(netcdf, opened):
    y = opened(netcdf)
    data = observe(T[:, None], y)
    assert is_dask(data.y)
    assert data.y.chunks == ((8,) * 5, (10,) * 3)
    assert not plan(line, T[:, None], y, p0=[1, 1], time=False).warnings
    np.testing.assert_allclose(fit(line, T[:, None], y).popt, [2.0, 0.5], rtol=1e-9)
    np.testing.assert_allclose(curve_fit(line, T[:, None], y)[0], [2.0, 0.5], rtol=1e-9)


def test_variables_of_h5netcdf_are_streamed(netcdf):
    with h5netcdf.File(netcdf) as file:
        assert is_dask(observe(T[:, None], file["power"]).y)
        np.testing.assert_allclose(fit(line, T[:, None], file["power"]).popt, [2.0, 0.5], rtol=1e-9)


def test_reads_of_hdf5_are_blocks(netcdf, monkeypatch):
    read = []
    whole = HDF5Variable.__getitem__

    def counting(self, key):
        block = whole(self, key)
        read.append(block.size)
        return block

    monkeypatch.setattr(HDF5Variable, "__getitem__", counting)
    result = fit(line, T[:, None], open_h5py(netcdf), pilot=False, cache=False)
    assert set(read) == {80}
    assert sum(read) == CUBE.size * result.n_passes


def test_packed_netcdf_is_decoded_and_missing_rows_are_left_out(tmp_path):
    with netCDF4.Dataset(tmp_path / "p.nc", "w") as file:
        file.createDimension("t", 40)
        packed = file.createVariable("p", "i2", ("t",), fill_value=-32768)
        packed.scale_factor = 0.25
        packed[:] = np.ma.masked_array(2.0 + 0.5 * T, T == 3)
    y = netCDF4.Dataset(tmp_path / "p.nc")["p"]
    result = fit(line, T, y)
    np.testing.assert_allclose(result.popt, [2.0, 0.5], rtol=1e-9)
    assert result.n_skipped == 1


class Short(BackendArray):
    """A file that has fewer rows than it had when it was opened."""

    shape, dtype = CUBE.shape, CUBE.dtype

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, lambda k: CUBE[:20][k]
        )


def xarray_that_changed(_):
    short = xr.DataArray(
        xr.Variable(POWER.dims, indexing.LazilyIndexedArray(Short())), POWER.coords
    )
    short.encoding["preferred_chunks"] = dict(zip(POWER.dims, CHUNKS, strict=True))
    return short, lambda: None


def test_an_array_larger_than_any_memory_is_planned():
    class Huge(Short):
        shape = (10**12,)

    variable = xr.Variable("row", indexing.LazilyIndexedArray(Huge()))
    y = xr.DataArray(variable)[7:]
    y.encoding["preferred_chunks"] = {"row": 10**10}
    assert observe(y.copy(deep=False), y).y.chunks == ((10**10 - 7, *[10**10] * 99),)
    assert traced_peak(lambda: observe(y.copy(deep=False), y)) < 10_000_000


def hdf5_that_changes(path):
    y = h5py.File(path / "c.h5", "w").create_dataset(
        "y", data=CUBE, chunks=CHUNKS, maxshape=CUBE.shape
    )
    return y, lambda: y.resize((20, 30))


def zarr_that_changes(path):
    y = zarr.create_array(path / "c.zarr", shape=CUBE.shape, chunks=CHUNKS, dtype="f8")
    y[...] = CUBE
    return y, lambda: y.resize((20, 30))


@pytest.mark.parametrize("made", [xarray_that_changed, hdf5_that_changes, zarr_that_changes])
def test_a_file_that_became_shorter_is_found(tmp_path, made):
    y, change = made(tmp_path)

    def late(x, a, b):  # the data are opened, and not yet read, when the model is traced
        change()
        return line(x, a, b)

    with pytest.raises(InputError, match=r"of y, which is y\[(16:24|24:32|32:40), .* has shape"):
        fit(late, T[:, None], y, p0=[1, 1], pilot=False)


@pytest.mark.parametrize("library", [h5py, h5netcdf])
def test_packed_hdf5_is_decoded_as_packed_zarr_is(tmp_path, library):
    packed = np.where(T == 3, -32768, 4 * (2.0 + 0.5 * T) - 8).astype("i2")
    with h5py.File(tmp_path / "p.h5", "w") as file:
        y = file.create_dataset("y", data=packed)
        y.attrs.update(scale_factor=0.25, add_offset=2.0, _FillValue=np.int16([-32768]))
        y.make_scale("t")
    with library.File(tmp_path / "p.h5") as file:
        result = fit(line, T, file["y"], nan_policy="omit")
        np.testing.assert_allclose(result.popt, [2.0, 0.5], rtol=1e-9)
        assert result.n_skipped == 1
        assert "scale_factor = 0.25" in result.decoded[0]
        marked = fit(line, T, file["y"], fill_value=packed[5], nan_policy="omit")
        assert marked.n_skipped == 2
        raw = fit(line, T, file["y"], decode=False, fill_value=-32768)
        np.testing.assert_allclose(raw.popt, [0.0, 2.0], atol=1e-9)


@pytest.mark.parametrize(
    ("opened", "kind"), [(open_h5py, HDF5Variable), (open_netcdf4, NetCDFVariable)]
)
def test_another_process_opens_the_file_again(netcdf, opened, kind):
    again = pickle.loads(pickle.dumps(kind(opened(netcdf))))
    np.testing.assert_array_equal(again[3:9, 2:4], CUBE[3:9, 2:4])
    assert again.stored == CHUNKS


def test_a_file_without_a_path_is_not_sent():
    file = h5py.File("memory", "w", driver="core", backing_store=False)
    y = file.create_dataset("y", data=T)
    assert fit(line, T, y).popt[1] == pytest.approx(1.0)
    with pytest.raises(InputError, match="'/y' is in a file that other processes cannot open"):
        pickle.dumps(HDF5Variable(y))


@pytest.mark.cluster
@pytest.mark.parametrize("opened", [open_h5py, open_xarray])
def test_a_cluster_reads_files(client, netcdf, opened):
    alone = fit(line, T[:, None], opened(netcdf))
    np.testing.assert_allclose(alone.popt, [2.0, 0.5], rtol=1e-9)
    here = fit(line, T[:, None], opened(netcdf), client=client)
    np.testing.assert_array_equal(here.popt, alone.popt)


axes = st.tuples(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(-3, 3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(axes, min_size=1, max_size=3), st.integers(1, 200))
def test_no_stored_chunk_is_in_two_blocks(spec, most):
    """Of an array that was cut out of a stored array by slices of any step."""
    kept = [
        range(cut, n + cut, step) if step > 0 else range(n + cut, cut, step or -1)
        for n, _, cut, step in spec
    ]
    shape, stored = tuple(map(len, kept)), [chunk for _, chunk, _, _ in spec]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_of, "JOINED_ROWS", most)
        patch.setattr(chunks_of, "LEAST_JOINED", 1)
        chunks = block_chunks(shape, stored, kept)
    assert tuple(map(sum, chunks)) == shape
    for lengths, positions, chunk in zip(chunks, kept, stored, strict=True):
        block = np.repeat(np.arange(len(lengths)), lengths)
        pairs = {(b, p // chunk) for b, p in zip(block, positions, strict=True)}
        assert len(pairs) == len({p // chunk for p in positions})
    one_chunk = np.prod([min(c, n) for c, n in zip(stored, shape, strict=True)])
    assert np.prod([max(c) for c in chunks]) <= max(most, one_chunk)


def test_small_chunks_are_joined_along_the_last_dimensions_first(as_joined):
    assert block_chunks((64, 1000, 800), (1, 10, 100)) == ((1,) * 64, (640, 360), (800,))
    assert block_chunks((40, 30), (8, 10)) == ((40,), (30,))
    assert block_chunks((3 * JOINED_ROWS,), (2 * JOINED_ROWS,)) == ((2 * JOINED_ROWS, JOINED_ROWS),)


def test_arrays_in_one_piece_are_cut_along_the_first_dimensions(as_joined):
    assert block_chunks((4, 1 << 17), None) == ((2, 2), (1 << 17,))
    assert block_chunks((40, 30), None) == ((40,), (30,))
