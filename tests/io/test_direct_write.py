"""Chunks that are written as files: the bytes of Zarr's files, or Zarr writes them."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from nlsq_dask.io.direct_write import direct_writer

SHAPE, CHUNKS = (2, 7, 9), (2, 3, 4)
PLAIN = {"compressors": [ZstdCodec(level=1), Crc32cCodec()]}


def made(store, dtype="f8", **options):
    fill = np.nan if np.dtype(dtype).kind == "f" else 7
    options = {"shape": SHAPE, "chunks": CHUNKS, "dtype": dtype, "fill_value": fill} | options
    return zarr.create_array(store, **options)


def files_in(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("c/*/*/*") if p.is_file()}


@settings(max_examples=10)
@given(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["f8", "f4", "i4", "i1", "u2"]))
def test_files_have_the_bytes_of_zarrs(tmp_path_factory, i, j, dtype):
    folder = tmp_path_factory.mktemp("stores")
    ours, theirs = (made(folder / name, dtype, **PLAIN) for name in ("ours", "theirs"))
    region = (slice(None), slice(3 * i, 3 * i + 3), slice(4 * j, 4 * j + 4))
    shape = ours[region].shape
    values = np.random.default_rng(i).uniform(0, 100, shape).astype(dtype)
    writer = direct_writer(ours)
    assert writer.write(region, values)
    theirs[region] = values
    assert files_in(folder / "ours") == files_in(folder / "theirs") != {}
    np.testing.assert_array_equal(ours[region], values)
    assert writer.write(region, values + 1)  # in place of the first
    np.testing.assert_array_equal(ours[region], values + 1)


def test_parts_of_chunks_are_left_to_zarr(tmp_path):
    writer = direct_writer(made(tmp_path / "a", **PLAIN))
    for region in ((0, 3, 0, 3), (1, 4, 0, 4), (0, 3, 0, 8)):
        box = (slice(None), slice(*region[:2]), slice(*region[2:]))
        assert not writer.write(box, np.zeros((2, region[1] - region[0], region[3] - region[2])))
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": [ZstdCodec(level=1)]},
        {"compressors": [ZstdCodec(level=1, checksum=True), Crc32cCodec()]},
        {"compressors": [BloscCodec(), Crc32cCodec()]},
        {"dtype": ">f8", **PLAIN},
        {"serializer": BytesCodec(endian="big"), **PLAIN},
        {"zarr_format": 2, "compressors": None},
        {"shards": (2, 6, 8), "chunks": (2, 3, 4)},
    ],
)
def test_arrays_that_are_not_plain_are_left_to_zarr(options, tmp_path):
    assert direct_writer(made(tmp_path / "a", **options)) is None


def test_arrays_in_memory_are_left_to_zarr():
    assert direct_writer(made(MemoryStore(), **PLAIN)) is None
