"""Chunk files read into reused memory hold the values that Zarr reads, or are left to Zarr."""

from __future__ import annotations

import gc
import gzip
import itertools
import math
import pickle
import threading
import weakref

import dask.array as da
import jax.numpy as jnp
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from dask import delayed
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from nlsq_dask import fit
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.io import direct, reused_memory
from nlsq_dask.io.leaf import Leaf
from nlsq_dask.io.reused_memory import MOST_IDLE, ReusedMemory, memory_of_process, reusing
from nlsq_dask.io.sources import observe

pytestmark = pytest.mark.versions

#: Arguments of `zarr.create_array` for chunks that are read from their files.
PLAIN = {
    "default": {},
    "not compressed": {"compressors": None},
    "blosc": {"compressors": BloscCodec(shuffle="bitshuffle")},
    "zstd with a checksum": {"compressors": ZstdCodec(level=3, checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "crc32c": {"compressors": Crc32cCodec()},
    "gzip, crc32c": {"compressors": [GzipCodec(level=1), Crc32cCodec()]},
    "shards": {"shards": "all"},
    "shards, not compressed": {"shards": "all", "compressors": None},
    "shards, crc32c": {"shards": "all", "compressors": [ZstdCodec(), Crc32cCodec()]},
    "format 2": {"zarr_format": 2},
    "format 2, not compressed": {"zarr_format": 2, "compressors": None},
    "format 2, blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("lz4")},
    "format 2, lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "format 2, gzip": {"zarr_format": 2, "compressors": numcodecs.GZip()},
}
#: The same for chunks that Zarr reads, and why.
LEFT_TO_ZARR = {
    "two compressors": ({"compressors": [ZstdCodec(), GzipCodec()]}, "codec GzipCodec"),
    "checksum first": ({"compressors": [Crc32cCodec(), ZstdCodec()]}, "codec ZstdCodec"),
    "index": ({"shards": "all", "index_codecs": [BytesCodec(endian="big")]}, "index of its shards"),
    "shards in shards": ({"serializer": "shards in shards"}, "codec ShardingCodec"),
    "compressed shards": (
        {"serializer": "shards", "compressors": GzipCodec()},
        "codec ShardingCodec",
    ),
    "format 2, filter": (
        {"zarr_format": 2, "filters": [numcodecs.Delta("i4")], "dtype": "i4"},
        "codec Delta",
    ),
    "format 2, lzma": ({"zarr_format": 2, "compressors": numcodecs.LZMA()}, "codec LZMA"),
    "dates": ({"dtype": "M8[s]"}, "dtype datetime64[s]"),
}


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


DTYPES = ["f8", "f4", "f2", "i4", "u1", "i8", "?"]
ENDS = ("start", "end")


def stored(folder, shape, chunks, dtype="f8", *, written=None, **options):
    """An array of numbers in a Zarr store; of `written` chunks only, by number, if given."""
    if "shards" in options:
        shards = tuple(2 * n for n in chunks) if options["shards"] == "all" else options["shards"]
        options["shards"] = shards
        if index := options.pop("index_codecs", None) or options.pop("index_location", None):
            name = "index_codecs" if isinstance(index, list) else "index_location"
            inner = [BytesCodec(), *options.pop("compressors", [ZstdCodec()])]
            codec = ShardingCodec(chunk_shape=chunks, codecs=inner, **{name: index})
            options |= {"shards": None, "serializer": codec, "compressors": None}
            chunks = shards
    if options.get("serializer") in ("shards", "shards in shards"):
        inner = ShardingCodec(chunk_shape=(1,) * len(shape), codecs=[BytesCodec()])
        if options["serializer"] == "shards in shards":
            inner = ShardingCodec(chunk_shape=chunks, codecs=[inner])
            chunks = tuple(2 * n for n in chunks)
            options.setdefault("compressors", None)
        options["serializer"] = inner
    array = zarr.create_array(folder, shape=shape, chunks=chunks, dtype=dtype, **options)
    numbers = (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)
    grid = [range(0, n, c) for n, c in zip(shape, array.chunks, strict=True)]
    for number, corner in enumerate(itertools.product(*grid)):
        if written is None or number in written:
            part = tuple(slice(i, i + c) for i, c in zip(corner, array.chunks, strict=True))
            array[part] = numbers[part]
    return zarr.open_array(folder, mode="r")


def outcome(read):
    """What a call returns, as it can be compared, or the error that it raises."""
    try:
        values = read()
    except Exception as error:  # noqa: BLE001  # of any library
        return type(error), str(error)
    return values.dtype, values.shape, values.tobytes()


@st.composite
def layouts(draw):
    """Shape, chunks and options of an array whose chunks are read from their files."""
    kind = draw(st.sampled_from(sorted(PLAIN)))
    options = dict(PLAIN[kind])
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    dtype = draw(st.sampled_from(DTYPES))
    options["fill_value"] = draw(st.sampled_from([0, 1]))
    if "format 2" in kind:
        dtype = np.dtype(dtype).newbyteorder(draw(st.sampled_from("<>"))).str
        options["order"] = draw(st.sampled_from("CF"))
        return shape, chunks, dtype, options
    if draw(st.booleans(), "big endian"):
        options["serializer"] = BytesCodec(endian="big")
    if draw(st.booleans(), "other order"):
        order = draw(st.permutations(range(len(shape))))
        options["filters"] = [TransposeCodec(order=order)]
    if "shards" in options:
        options["shards"] = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    if "shards" in options and "serializer" not in options and "filters" not in options:
        compressors = options.get("compressors", [ZstdCodec()])
        options["compressors"] = compressors or []
        options["index_location"] = draw(st.sampled_from(ENDS))
    return shape, chunks, dtype, options


def damaged(draw, raw):
    """The bytes of a file, changed somewhere."""
    kind = draw(st.sampled_from(["shorter", "longer", "changed", "empty"]))
    place = draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind == "changed" and raw:
        return raw[:place] + bytes([raw[place] ^ draw(st.integers(1, 255))]) + raw[place + 1 :]
    return {"shorter": raw[:place], "longer": raw + bytes(place + 1)}.get(kind, b"")


@pytest.mark.slow
@given(layout=layouts(), data=st.data())
@settings(max_examples=40)
def test_values_and_errors_are_those_of_zarr(tmp_path_factory, layout, data):
    draw = data.draw
    shape, chunks, dtype, options = layout
    folder = tmp_path_factory.mktemp("zarr")
    written = draw(st.none() | st.sets(st.integers(0, 20)), "chunks that are written")
    array = stored(folder, shape, chunks, dtype, written=written, **options)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "z" not in p.name)
    whole = len(files) == math.prod(
        -(-n // c) for n, c in zip(shape, array.shards or array.chunks, strict=True)
    )
    if files and draw(st.booleans(), "a file is not as it was"):
        file, whole = draw(st.sampled_from(files)), False
        # The decoder of blosc reads behind the end of damaged bytes: what Zarr says is chance.
        if "Blosc" in str(options) or draw(st.booleans(), "gone"):
            file.unlink()
        else:
            file.write_bytes(damaged(draw, file.read_bytes()))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    index = tuple(slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))
    assert direct.why_not_direct(array) == ""
    with reusing(ReusedMemory()):
        assert outcome(lambda: Leaf(array)[index]) == outcome(lambda: array[index])
        if whole:  # chunks of fill values alone are not stored
            np.testing.assert_array_equal(direct.direct_reader(array).read(index), array[index])


@pytest.mark.parametrize("location", ENDS)
def test_a_shard_without_some_of_its_chunks_is_read_directly(tmp_path, location):
    options = {"shards": "all", "index_location": location, "fill_value": 7.0}
    array = stored(tmp_path, (8, 6), (2, 3), written={0, 3, 5}, **options)
    index = (slice(1, 7), slice(0, 5))
    values = direct.direct_reader(array).read((slice(0, 8), slice(0, 6)))
    np.testing.assert_array_equal(values, array[:])
    assert (values[0:2, 3:6] == 7.0).all()
    np.testing.assert_array_equal(direct.direct_reader(array).read(index), array[index])


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("shards", [None, (6, 4)])
@pytest.mark.parametrize("name", ["LZ4", "Zstd", "Blosc", "GZip"])
def test_codecs_of_numcodecs_in_format_3(tmp_path, name, shards):
    codecs = pytest.importorskip("zarr.codecs.numcodecs")  # of Zarr from 3.1.3 on
    options = {"compressors": [getattr(codecs, name)(), Crc32cCodec()], "shards": shards}
    array = stored(tmp_path, (6, 8), (3, 2), **options)
    assert direct.why_not_direct(array) == ""
    index = (slice(1, 5), slice(3, 8))
    np.testing.assert_array_equal(direct.direct_reader(array).read(index), array[index])


@pytest.mark.filterwarnings("ignore:Combining a")
@pytest.mark.parametrize("kind", LEFT_TO_ZARR)
def test_other_chunks_are_left_to_zarr(tmp_path, kind):
    options, why = LEFT_TO_ZARR[kind]
    array = stored(tmp_path, (6, 8), (3, 2), **options)
    assert direct.why_not_direct(array) == f"of {'the' if 'index' in why else 'its'} {why}"
    np.testing.assert_array_equal(Leaf(array)[1:5, 3:8], array[1:5, 3:8])


def test_an_array_of_format_3_that_gives_swapped_numbers_is_left_to_zarr(tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(6,), chunks=(3,), dtype=">f8")
    array[:] = np.arange(6.0)
    values = Leaf(array)[(slice(1, 5),)]
    assert values.dtype == array[1:5].dtype
    np.testing.assert_array_equal(values, array[1:5])


@pytest.mark.parametrize("open_path", ["Dask", "URL"])
def test_files_of_a_path_that_fsspec_opens_are_read(tmp_path, open_path, monkeypatch):
    stored(tmp_path / "a b", (6, 8), (3, 2))
    if open_path == "Dask":
        graph = dict(da.from_zarr(str(tmp_path / "a b"), storage_options={}).__dask_graph__())
        (array,) = (value for value in graph.values() if isinstance(value, zarr.Array))
    else:
        store = zarr.storage.FsspecStore.from_url(f"file://{tmp_path / 'a b'}", read_only=True)
        array = zarr.open_array(store, mode="r")
    assert type(array.store).__name__ == "FsspecStore"
    assert direct.why_not_direct(array) == ""
    read = counted(monkeypatch)
    np.testing.assert_array_equal(Leaf(array)[1:5, 3:8], array[1:5, 3:8])
    assert len(read) == 6


def test_other_file_systems_are_left_to_zarr(tmp_path):
    from fsspec.implementations.local import LocalFileSystem

    class Changed(LocalFileSystem):
        """It may read anything."""

    stored(tmp_path / "a", (6, 8), (3, 2))
    folder = Changed().get_mapper(str(tmp_path / "a"))
    store = zarr.storage.FsspecStore.from_mapper(folder, read_only=True)
    assert direct.why_not_direct(zarr.open_array(store, mode="r"))


def test_other_indices_are_left_to_zarr(tmp_path):
    array = stored(tmp_path, (6, 8), (3, 2))
    for index in (..., slice(None), (slice(None, None, 2), slice(None)), (1, slice(None))):
        np.testing.assert_array_equal(Leaf(array)[index], array[index])


@pytest.mark.parametrize("kind", ["gzip", "gzip, crc32c", "crc32c", "format 2, gzip"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "flipped", "another member"])
def test_damage_is_what_zarr_says(tmp_path, kind, damage):
    array = stored(tmp_path, (600,), (300,), **PLAIN[kind])
    file = next(p for p in sorted(tmp_path.rglob("*")) if p.name == "1" and p.is_file())
    raw = file.read_bytes()
    changed = {
        "shorter": raw[:-3],
        "longer": raw + bytes(8),
        "flipped": raw[:-6] + bytes([raw[-6] ^ 255]) + raw[-5:],
        "another member": raw + gzip.compress(b""),
    }
    file.write_bytes(changed[damage])
    read = outcome(lambda: Leaf(array)[(slice(0, 600),)])
    assert read == outcome(lambda: array[:])
    assert direct.direct_reader(array).read((slice(0, 600),)) is None


def test_a_whole_plain_chunk_is_read_without_a_file_object(tmp_path, monkeypatch):
    array = zarr.create_array(tmp_path, shape=30, chunks=10, dtype="f8", compressors=None)
    array[:] = np.arange(30.0)
    reader = direct.direct_reader(array)
    monkeypatch.setattr(direct.io, "FileIO", None)
    chunk = slice(10, 20)
    np.testing.assert_array_equal(reader.read((chunk,)), array[chunk])


@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b[:-1], lambda _: b""])
def test_a_plain_chunk_of_another_length_is_left_to_zarr(tmp_path, change):
    array = zarr.create_array(tmp_path, shape=30, chunks=10, dtype="f8", compressors=None)
    array[:] = 1.0
    file = tmp_path / "c" / "1"
    file.write_bytes(change(file.read_bytes()))
    assert direct.direct_reader(array).read((slice(10, 20),)) is None


def test_memory_is_used_again_when_nothing_refers_to_it():
    memory = ReusedMemory()
    f8 = np.dtype("f8")
    kept = memory.empty((1000,), f8)
    kept[:] = 1.0
    address = memory.empty((1000,), f8).ctypes.data
    again = memory.empty((10, 100), f8)
    assert again.ctypes.data == address
    again[...] = 2.0
    part = kept[::2]
    del kept
    memory.empty((1000,), f8)[:] = 3.0
    assert (part == 1.0).all()
    assert (again == 2.0).all()
    assert again.ctypes.data % 64 == 0


def test_few_pieces_of_memory_are_kept():
    memory = ReusedMemory()
    for k in range(1, 40):
        memory.empty((k << 17,), np.dtype("f8"))
    assert len(memory._pieces) <= MOST_IDLE


@pytest.mark.parametrize("n_sizes", range(2, 17))
def test_pieces_of_all_sizes_of_a_task_are_kept(n_sizes):
    memory = ReusedMemory()
    addresses = [
        {memory.empty((k << 13,), np.dtype("f8")).ctypes.data for k in range(1, n_sizes)}
        for _ in range(2)
    ]
    assert addresses[0] == addresses[1]
    assert len(memory._pieces) == n_sizes - 1


def test_chunks_that_compress_to_about_the_same_length_share_memory():
    memory = ReusedMemory()
    for n_bytes in range(7_000_000, 7_300_000, 17_321):
        memory.empty((n_bytes,), np.dtype("u1"))
    assert len(memory._pieces) == 1
    assert memory._pieces[0].size < 7_300_000 * 9 / 8


def test_the_fits_of_a_process_share_memory_while_they_last(monkeypatch):
    monkeypatch.setattr(reused_memory, "_of_process", None)  # another test may hold a fit
    memory = memory_of_process()
    assert memory_of_process() is memory
    assert pickle.loads(pickle.dumps(ReusedMemory())) is memory
    ended = weakref.ref(memory)
    del memory
    gc.collect()
    assert ended() is None


def test_threads_never_share_a_piece():
    memory = ReusedMemory()
    wrong = []

    def work(number):
        for _ in range(300):
            values = memory.empty((500,), np.dtype("f8"))
            values[:] = number
            wrong.extend(values[values != number])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def decays(tmp_path):
    """Coordinates and observations in Zarr arrays of 12 chunks."""
    x = np.linspace(0.0, 5.0, 6000)
    y = np.asarray(decay(x, 2.0, 0.7, 0.4)) + 0.01 * np.cos(37 * x)
    made = []
    for name, values in (("x", x), ("y", y)):
        array = zarr.create_array(tmp_path / name, shape=x.shape, chunks=(500,), dtype="f8")
        array[:] = values
        made.append(zarr.open_array(tmp_path / name, mode="r"))
    return made


def counted(monkeypatch):
    """Numbers of the chunks that are read from their files."""
    read, of_chunk = [], direct.DirectReader._read_chunk

    def counting(self, fill, coords, *rest):
        done = of_chunk(self, fill, coords, *rest)
        read.extend([coords] * done)
        return done

    of_whole = direct.DirectReader._read_whole

    def counting_whole(self, box, *rest):
        done = of_whole(self, box, *rest)
        read.extend(
            [tuple(start // n for (start, _), n in zip(box, self.chunks, strict=True))] * done
        )
        return done

    monkeypatch.setattr(direct.DirectReader, "_read_chunk", counting)
    monkeypatch.setattr(direct.DirectReader, "_read_whole", counting_whole)
    return read


def in_pieces(array, folder):
    """The numbers of an array as a Dask array, of which each chunk is a Zarr array of its own."""
    pieces = []
    for start in range(0, array.size, 500):
        piece = zarr.create_array(folder / f"{start}", shape=500, chunks=500, dtype=array.dtype)
        piece[:] = array[start : start + 500]
        pieces.append(da.from_zarr(piece))
    return da.concatenate(pieces)


# Ways in which a Zarr array becomes a Dask array.
LAZY = {
    "Zarr": lambda array, _: array,
    "Dask": lambda array, _: da.from_zarr(array),
    "Dask, a part of each task": lambda array, _: da.from_zarr(array, inline_array=True) * 1.0,
    "Dask, each chunk an array": in_pieces,
    "xarray, each chunk an array": lambda array, folder: xr.concat(
        [xr.DataArray(piece, dims="t") for piece in in_pieces(array, folder).blocks], "t"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("passed", [*LAZY, "Dask, shifted"])
def test_a_fit_reads_files_and_has_the_bits_of_zarr_s_way(decays, passed, monkeypatch, tmp_path):
    if passed == "Dask, shifted":
        x, y = map(da.from_zarr, decays)
        y = y + 0.0 * x
    else:
        x, y = (LAZY[passed](array, tmp_path / f"{i}") for i, array in enumerate(decays))
    options = {"p0": [1.0, 1.0, 0.0], "strategy": "streaming", "pilot": False, "cache": False}
    read = counted(monkeypatch)
    found = fit(decay, x, y, **options)
    assert len(read) % 24 == 0
    assert len(read) >= 24 * found.n_passes
    monkeypatch.setattr("nlsq_dask.io.leaf.direct_reader", lambda _: None)
    other = fit(decay, x, y, **options)
    assert np.array_equal(found.popt, other.popt)
    assert np.array_equal(found.pcov, other.pcov)


@pytest.mark.parametrize("given", ["by name", "by place", "delayed"])
def test_a_function_gets_a_zarr_array_as_it_is(decays, given):
    x, y = decays
    seen = set()

    def scaled(block, array):
        seen.add(type(array))
        return block * array.attrs.get("gain", 1.0)

    args = {"by place": [x], "delayed": [delayed(x)]}.get(given, [])
    lazy = da.from_zarr(y).map_blocks(
        scaled, *args, dtype=float, **({"array": x} if given == "by name" else {})
    )
    seen.clear()
    data = observe(da.from_zarr(x), lazy)
    for group in make_stream(data).groups:
        list(read_blocks(group, {}, data.layout))
    assert seen == {zarr.Array}
