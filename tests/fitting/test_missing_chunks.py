"""Chunks that are not in their Zarr store: told, refused, left out, or taken for data."""

from __future__ import annotations

import threading

import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from nlsq_dask import (
    DataChangedError,
    InputError,
    MissingDataWarning,
    ReadingError,
    curve_fit,
    fit,
    fit_models,
    plan,
)
from nlsq_dask.engines.dask.absent import reads_of, stored_operands
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.fitting import missing_chunks
from nlsq_dask.io.missing_chunks import absent_chunks
from nlsq_dask.io.sources import observe
from tests.fitting.test_same_data import OPTIONS, X, Y, decay

N, ROWS = 10, Y.size // 10
TOLD = MissingDataWarning

LAYOUTS = {
    "v3": {"chunks": (ROWS,)},
    "v2": {"chunks": (ROWS,), "zarr_format": 2},
    "shards": {"chunks": (ROWS // 4,), "shards": (ROWS,)},
}
KEYS = {"v3": "c/{}", "v2": "{}", "shards": "c/{}"}


def stored(folder, values=Y, layout="v3", store=None, **options):
    options = LAYOUTS[layout] | options
    array = zarr.create_array(
        store or LocalStore(folder), shape=values.shape, dtype=values.dtype, **options
    )
    array[...] = values
    return array


@pytest.fixture
def lossy(tmp_path, request):
    """An array in a layout, of which chunks 3 and 7 were deleted."""
    layout = getattr(request, "param", "v3")
    array = stored(tmp_path / "y.zarr", layout=layout)
    for i in (3, 7):
        (tmp_path / "y.zarr" / KEYS[layout].format(i)).unlink()
    return array


every_layout = pytest.mark.parametrize("lossy", list(LAYOUTS), indirect=True)


def rows_of(*chunks):
    mask = np.zeros(Y.size, bool)
    for chunk in chunks:
        mask[chunk * ROWS : (chunk + 1) * ROWS] = True
    return mask


def fitted(y, x=X, **options):
    return fit(decay, x, y, **(OPTIONS | options))


def with_zeros():
    return np.where(rows_of(3, 7), 0.0, Y)


@pytest.mark.slow
@every_layout
def test_missing_chunks_are_told_and_read_as_before(lossy):
    lacks = r"8 of 40 .*3\[0\], .*7\[1\]" if lossy.shards else "2 of 10 .*3, .*7 of "
    with pytest.warns(TOLD, match=f"y lacks {lacks}") as told:
        result = fitted(lossy)
    assert len(told) == 1
    text = str(told[0].message)
    assert "fill value 0.0" in text
    assert "write_empty_chunks" in text
    assert told[0].filename == __file__
    filled = fitted(lossy, missing_chunks="fill")
    assert result.popt.tobytes() == filled.popt.tobytes()
    expected = fitted(da.from_array(with_zeros(), chunks=ROWS))
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-5)
    assert result.blocks_omitted == ()


def test_a_link_to_nothing_is_a_missing_chunk(tmp_path):
    """Of files in git-annex that were not fetched; Zarr reads the fill value."""
    array = stored(tmp_path / "y.zarr")
    chunks = tmp_path / "y.zarr" / "c"
    for i in (3, 7):
        (chunks / str(i)).rename(tmp_path / f"object-{i}")
        (chunks / str(i)).symlink_to(tmp_path / f"object-{i}")
    chunks.rename(tmp_path / "chunks")
    chunks.symlink_to(tmp_path / "chunks")
    assert absent_chunks(array) == frozenset()
    (tmp_path / "object-7").unlink()
    assert absent_chunks(array) == {(7,)}


def test_missing_chunks_are_refused_before_the_first_pass(lossy, monkeypatch):
    passes = []
    with pytest.raises(ReadingError, match=r"y lacks 2 of 10 chunks in the store \(.*3, .*7 of "):
        fitted(lossy, missing_chunks="raise", callback=passes.append)
    assert not passes


@pytest.mark.parametrize("change", [lambda y: y, lambda y: y + 0.0])
def test_the_chunk_of_an_array_of_one_chunk_is_missed(tmp_path, change):
    """Dask makes each such array a part of the task that reads it."""
    pieces = np.split(Y, N)
    arrays = [stored(tmp_path / f"{i}", piece) for i, piece in enumerate(pieces)]
    for i in (3, 7):
        (tmp_path / f"{i}" / "c" / "0").unlink()
    y = change(da.concatenate(list(map(da.from_zarr, arrays))))
    with pytest.raises(ReadingError, match=r"y lacks 1 of 1 chunks in the store \(c/0 of .*/3\)"):
        fitted(y, missing_chunks="raise")
    data = observe(X, y)
    absent = {key: absent_chunks(one.array) for key, one in stored_operands(data).items()}
    assert reads_of(make_stream(data), absent).blocks == {(3,), (7,)}


@pytest.mark.slow
@every_layout
def test_rows_of_missing_chunks_are_left_out(lossy):
    result = fitted(lossy, missing_chunks="omit")
    expected = fitted(da.from_array(Y, chunks=ROWS), mask=rows_of(3, 7))
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9)
    assert (result.n_points, result.n_skipped) == (8 * ROWS, 2 * ROWS)
    assert result.blocks_omitted == ((3,), (7,))


@pytest.fixture(params=["local", "memory", "start"])
def holed(tmp_path, request):
    """An array of 10 shards of 4 chunks, of which chunks 5 and 30 were never written."""
    store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "y.zarr")
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(ROWS // 4,),
        index_location="start" if request.param == "start" else "end",
    )
    array = zarr.create(
        Y.shape, chunks=(ROWS,), dtype="f8", codecs=[codec], fill_value=0.0, store=store
    )
    array[...] = np.where(rows_in_holes(), 0.0, Y)
    return array


def rows_in_holes():
    number = np.arange(Y.size) // (ROWS // 4)
    return (number == 5) | (number == 30)


@pytest.mark.slow
def test_a_chunk_that_its_shard_does_not_hold(holed):
    """It is told, refused and left out as a chunk with a key of its own."""
    assert holed.shards == (ROWS,)
    assert absent_chunks(holed) == {(5,), (30,)}
    lacks = r"y lacks 2 of 40 chunks in the store \(c/1\[1\], c/7\[2\] of "
    with pytest.warns(TOLD, match=lacks):
        fitted(holed)
    with pytest.raises(ReadingError, match=lacks):
        fitted(holed, missing_chunks="raise")
    by_chunk = fitted(da.from_zarr(holed), missing_chunks="omit")
    expected = fitted(da.from_array(Y, chunks=ROWS // 4), mask=rows_in_holes())
    np.testing.assert_allclose(by_chunk.popt, expected.popt, rtol=1e-9)
    assert by_chunk.blocks_omitted == ((5,), (30,))
    by_shard = fitted(holed, missing_chunks="omit")
    assert by_shard.blocks_omitted == ((1,), (7,))


def test_an_empty_file_is_a_shard_without_chunks(tmp_path):
    """A file system that was full left it; Zarr 3.1 reads the fill value, and Zarr 3.4 refuses."""
    array = stored(tmp_path / "y.zarr", layout="shards")
    (tmp_path / "y.zarr" / KEYS["shards"].format(3)).write_bytes(b"")
    assert absent_chunks(array) == {(i,) for i in range(12, 16)}


def test_an_array_whose_last_shard_is_not_full(tmp_path):
    array = stored(tmp_path / "y.zarr", Y[: 2 * ROWS + 3 * (ROWS // 4)], "shards")
    assert absent_chunks(array) == frozenset()
    (tmp_path / "y.zarr" / "c" / "2").unlink()
    assert absent_chunks(array) == {(8,), (9,), (10,)}


@pytest.mark.slow
def test_small_chunks_are_not_joined_to_be_left_out(tmp_path):
    """A missing chunk costs its own rows, and not those of its neighbours."""
    y = stored(tmp_path / "y.zarr", np.arange(1.0, 20_001.0), chunks=(100,))
    (tmp_path / "y.zarr" / "c" / "5").unlink()
    x = np.arange(20_000.0)
    result = fit(line, x, y, p0=[1, 1], missing_chunks="omit", pilot=False)
    assert result.n_skipped == 100
    np.testing.assert_allclose(result.popt, [1.0, 1.0], rtol=1e-9)


def line(x, a, b):
    return a + b * x


@pytest.mark.parametrize("which", ["y", "x", "dask", "slice", "xarray"])
def test_whole_data_are_told_of_nothing(which, tmp_path):
    y = stored(tmp_path / "y.zarr")
    x = X
    if which == "x":  # the first chunk is of zeros alone, and stored on request
        x = np.maximum(X, X[ROWS]) - X[ROWS]
        x = stored(tmp_path / "x.zarr", x, config={"write_empty_chunks": True})
    elif which == "dask":
        y = da.from_zarr(y) * 1.0
    elif which == "slice":  # of a chunk that nobody reads
        (tmp_path / "y.zarr" / "c" / "9").unlink()
        y, x = da.from_zarr(y)[: 9 * ROWS], X[: 9 * ROWS]
    elif which == "xarray":
        xr = pytest.importorskip("xarray")
        xr.Dataset({"y": ("t", Y)}).chunk(t=ROWS).to_zarr(tmp_path / "ds.zarr", consolidated=False)
        y = xr.open_zarr(tmp_path / "ds.zarr", consolidated=False).y
    fitted(y, x)


def test_chunks_of_fill_values_alone_look_the_same(tmp_path):
    """The warning says so, and how to end it."""
    x = stored(tmp_path / "x.zarr", np.maximum(X, X[ROWS]) - X[ROWS])
    with pytest.warns(TOLD, match=r"x lacks 1 of 10 .* hold that value alone.*'fill'"):
        result = fitted(Y, x)
    assert result.success
    fitted(Y, x, missing_chunks="fill")


@pytest.mark.parametrize("choice", ["warn", "raise", "omit"])
def test_masks_are_left_alone(choice, tmp_path):
    mask = stored(tmp_path / "mask.zarr", rows_of(4), fill_value=False)
    assert len(absent_chunks(mask)) == 9
    result = fitted(da.from_array(Y, chunks=ROWS), mask=mask, missing_chunks=choice)
    assert result.n_skipped == ROWS
    assert result.blocks_omitted == ()


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["_FillValue", "nan", "xarray", "fill_value"])
def test_a_fill_value_that_means_missing(kind, tmp_path):
    """Its rows leave the fit as missing rows anyway."""
    options, values = {"nan_policy": "omit"}, np.where(rows_of(3), np.nan, Y)
    if kind == "xarray":  # whose _FillValue is the fill value of the store in format 2
        xr = pytest.importorskip("xarray")
        encoding = {"y": {"_FillValue": -9999.0, "dtype": "f8"}}
        ds = xr.Dataset({"y": ("t", values)}).chunk(t=ROWS)
        ds.to_zarr(tmp_path / "ds.zarr", encoding=encoding, zarr_format=2)
        (tmp_path / "ds.zarr" / "y" / "3").unlink(missing_ok=True)
        y = xr.open_zarr(tmp_path / "ds.zarr").y
    elif kind == "nan":
        y = stored(tmp_path / "y.zarr", values, fill_value=np.nan)
    else:
        numbers = np.where(rows_of(3), -999, np.round(1e4 * Y)).astype("i4")
        y = stored(tmp_path / "y.zarr", numbers, fill_value=-999)
        if kind == "_FillValue":
            y.attrs["_FillValue"] = -999
        else:
            options = {"fill_value": -999}
    for choice in ("warn", "raise"):
        result = fitted(y, missing_chunks=choice, **options)
        assert (result.n_skipped, result.blocks_omitted) == (ROWS, ())
    omitted = fitted(y, missing_chunks="omit", **options)
    assert (omitted.n_skipped, omitted.blocks_omitted) == (ROWS, ((3,),))


def test_blocks_that_read_a_missing_chunk_through_other_operations(lossy, tmp_path):
    """Slices, functions, and chunks that differ from those of x."""
    y = da.from_zarr(lossy)[100:1900] * 2.0
    x = da.from_array(X[100:1900], chunks=300)
    data = observe(x, y)
    ((key, array),) = stored_operands(data).items()
    assert array.names == ("y",)
    stream = make_stream(data)
    reads = reads_of(stream, {key: absent_chunks(array.array)})
    assert reads.chunks[key] == {(3,), (7,)}
    touched = {
        step.index
        for group in stream.groups
        for step in group.steps
        if any(
            step.box[0].start + 100 < 200 * (c + 1) and step.box[0].stop + 100 > 200 * c
            for c in (3, 7)
        )
    }
    assert reads.blocks == touched


@pytest.mark.every(2)
@pytest.mark.parametrize("which", [slice(250, 1650), slice(1650, 250, -3), [5, 700, 710]])
@pytest.mark.parametrize("chunks", [None, {}])
def test_blocks_that_xarray_reads_from_a_part(which, chunks, tmp_path):
    """Rows of the third and of the seventh chunk are left out, wherever they are."""
    xr = pytest.importorskip("xarray")
    ds = xr.Dataset({"y": ("t", Y), "x": ("t", X)}).chunk(t=ROWS)
    ds.to_zarr(tmp_path / "ds.zarr", zarr_format=2)
    (tmp_path / "ds.zarr" / "y" / "3").unlink()
    zarr.open_group(tmp_path / "ds.zarr")["y"].attrs.pop("_FillValue", None)
    part = xr.open_zarr(tmp_path / "ds.zarr", chunks=chunks).isel(t=which)
    data = observe(part.x.data, part.y)
    (found,) = ((k, s) for k, s in stored_operands(data).items() if s.names == ("y",))
    reads = reads_of(make_stream(data), {found[0]: absent_chunks(found[1].array)})
    rows = np.arange(Y.size)[which]
    lost = bool(((rows >= 600) & (rows < 800)).any())
    assert reads.chunks[found[0]] == ({(3,)} if lost else set())
    assert bool(reads.blocks) is lost


def test_a_chunk_that_all_blocks_need(tmp_path):
    """A coordinate that broadcasts, and a mean."""
    t = stored(tmp_path / "t.zarr", np.linspace(0, 1, 20), chunks=(10,))
    (tmp_path / "t.zarr" / "c" / "1").unlink()
    y = da.ones((40, 20), chunks=(1, 20))
    with pytest.raises(ReadingError, match=r"each block needs one of them"):
        fit(line, t, y, p0=[1, 1], missing_chunks="omit", collapse=False)


class Listing(WrapperStore):
    """Counts what is asked of a store; may be unable to list, or list less than there is."""

    lists, lists_nothing = True, False

    def __init__(self, store):
        super().__init__(store)
        self.asked = []

    @property
    def supports_listing(self):
        return self.lists

    def list_prefix(self, prefix):
        self.asked.append("list")
        prefix = "nothing" if self.lists_nothing else prefix
        return self._store.list_prefix(prefix)

    async def exists(self, key):
        self.asked.append("exists")
        return await self._store.exists(key)


@pytest.fixture
def listing():
    return Listing(MemoryStore())


@pytest.mark.slow
def test_a_store_is_listed_twice_and_not_asked_for_each_chunk(listing):
    y = stored(None, store=listing, name="y")
    x = stored(None, X + 1.0, store=listing, name="x")
    listing.asked.clear()
    plan(decay, x, y, p0=[1, 1, 1], time=False)
    assert listing.asked == []
    fitted(y, x)
    assert listing.asked == 4 * ["list"]  # each array at the beginning, and at the end
    listing.asked.clear()
    fitted(y, x, cache=True)
    assert listing.asked == 2 * ["list"]
    listing.asked.clear()
    fitted(y, x, missing_chunks="fill")
    assert listing.asked == []


@pytest.mark.parametrize("how", ["lists", "lists_nothing"])
def test_a_store_that_cannot_list(how, listing, caplog):
    y = stored(None, store=listing)
    setattr(listing, how, how != "lists")
    with caplog.at_level("INFO"):
        fitted(y)
    assert "the chunks of y could not be listed" in caplog.text
    for choice in ("raise", "omit"):
        with pytest.raises(InputError, match="cannot list its keys"):
            fitted(y, missing_chunks=choice)


def test_a_fit_that_is_stopped_has_told_of_missing_chunks(lossy):
    def stopped(_):
        raise RuntimeError("stopped")

    with pytest.warns(TOLD), pytest.raises(RuntimeError, match="stopped"):
        fitted(lossy, callback=stopped)


@pytest.mark.slow
def test_the_other_calls_take_the_choice(lossy):
    result, _ = curve_fit(decay, X, lossy, [1, 1, 0], missing_chunks="omit", pilot=False)
    expected = fitted(lossy, missing_chunks="omit")
    np.testing.assert_allclose(result, expected.popt, rtol=1e-4)
    both = fit_models([line, decay], X, lossy, [[1, 1], [1, 1, 0]], missing_chunks="omit")
    assert {r.blocks_omitted for r in (both[0], both[1])} == {((3,), (7,))}
    with pytest.warns(TOLD) as told:
        fit_models([line], X, lossy, [[1, 1]])
    assert len(told) == 1
    with pytest.raises(InputError, match="missing_chunks"):
        fitted(lossy, missing_chunks="skip")


def changing(change):
    """A callback that changes the stored data once."""
    calls = []

    def callback(intermediate_result):
        calls.append(intermediate_result)
        if len(calls) == 1:
            change()

    return callback


FAR = {"p0": [9.0, 4.0, 3.0], "pilot": False, "cache": False}


@pytest.mark.parametrize("rows", [ROWS, 20])
@pytest.mark.parametrize("name", ["x", "y"])
def test_a_chunk_that_is_deleted_while_a_fit_runs_is_named(tmp_path, name, rows):
    arrays = {n: stored(tmp_path / n, v, chunks=(rows,)) for n, v in {"x": X, "y": Y}.items()}
    delete = (tmp_path / name / "c" / "3").unlink
    with pytest.raises(DataChangedError, match=rf"{name} lacks 1 of \d+ chunks in the .*\(c/3 of"):
        fitted(arrays["y"], arrays["x"], callback=changing(delete), **FAR)


def test_a_chunk_that_is_deleted_is_no_matter_where_rows_are_kept(tmp_path):
    y = stored(tmp_path / "y", chunks=(20,))
    delete = (tmp_path / "y" / "c" / "3").unlink
    found = fitted(y, callback=changing(delete), **(FAR | {"cache": True}))
    assert found.success


def test_a_store_that_lists_slowly_at_the_end_does_not_hold_the_fit(tmp_path, monkeypatch, caplog):
    y = stored(tmp_path / "y", chunks=(20,))
    goes_on, ended, lists = threading.Event(), [], []

    def listed_slowly(array):
        lists.append(array)
        if len(lists) > 1:
            ended.append(goes_on.wait(20))
        return absent_chunks(array)

    monkeypatch.setattr(missing_chunks, "absent_chunks", listed_slowly)
    monkeypatch.setattr(missing_chunks, "LIST_WAIT_SECONDS", 0.5)
    found = fitted(y, **FAR)
    assert found.success and len(lists) == 2 and not ended
    assert "the store is slow" in caplog.text
    goes_on.set()


def test_fits_that_read_together_name_a_deleted_chunk(tmp_path):
    y = stored(tmp_path / "y", chunks=(20,))
    delete, calls = (tmp_path / "y" / "c" / "3").unlink, []

    def deleting(values):
        calls.append(values)
        if len(calls) == 200:  # of 100 chunks: the second pass has read all
            delete()
        return values

    x = da.from_array(X, chunks=20).map_blocks(deleting, dtype=float, meta=np.empty(0))
    with pytest.raises(DataChangedError, match=r"c/3 of"):
        fit_models([decay], x, y, [FAR["p0"]], pilot=False, cache=False)
