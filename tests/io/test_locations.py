"""Zarr arrays by path and URL, and the texts of what cannot be opened."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore, ZipStore

from nlsq_dask import InputError, InputTypeError, MissingLibraryError
from nlsq_dask.io.cf import Decoding
from nlsq_dask.io.folders import checked_place
from nlsq_dask.io.locations import (
    _for_fsspec,
    _for_obstore,
    _store_of,
    local_path,
    open_location,
)
from nlsq_dask.io.map_store import open_group
from nlsq_dask.io.stored import check_options, options_of_checkpoint, stored_argument

VALUES = np.arange(20.0)


@pytest.fixture
def group(tmp_path):
    group = zarr.open_group(tmp_path / "decay.zarr", mode="w")
    for name in "ty":
        group.create_array(name, data=VALUES, chunks=(5,))
    group["y"].attrs["scale_factor"] = 0.5
    return tmp_path / "decay.zarr"


@pytest.mark.parametrize(
    "written",
    [str, Path, lambda path: f"file://{path}", lambda path: f"{path}/"],
    ids=["str", "Path", "file", "slash"],
)
def test_paths(group, written):
    array = open_location(written(group / "y"), "y", None)
    assert isinstance(array.store, LocalStore)
    np.testing.assert_array_equal(array[:], VALUES)
    assert array.store.read_only


def test_an_argument_is_opened_and_decoded(group):
    found = stored_argument((group / "t", str(group / "y")), "x", "cf")
    assert [item.decoding for item in found] == [None, Decoding("<f8", "<f8", 0.5)]
    assert stored_argument(group / "y", "y", False).decoding is None


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("library", ["obstore", "aiohttp"])
def test_http(group, library, monkeypatch):
    pytest.importorskip(library)
    if library == "aiohttp":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (group.parent / "with space").mkdir()
    group.rename(group.parent / "with space" / "decay.zarr")
    handler = partial(_Quiet, directory=group.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/with%20space/decay.zarr"
        np.testing.assert_array_equal(open_location(f"{url}/y", "y", None)[:], VALUES)
        with pytest.raises(InputError, match="is a Zarr group|no Zarr array there"):
            open_location(url, "y", None)
        server.shutdown()


def test_a_scheme_of_fsspec():
    store = FsspecStore.from_url("memory://test-locations.zarr")
    zarr.create_array(store, name="y", data=VALUES)
    array = open_location("memory://test-locations.zarr/y", "y", {})
    np.testing.assert_array_equal(array[:], VALUES)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("{}", r"is a Zarr group of the arrays t and y.*'.*decay.zarr/t'"),
        ("{}/z", "no Zarr array there: check the location"),
        ("{}/y.nc", "of another format: open it with xarray.open_dataset"),
        ("zz://bucket/y", "Protocol not known"),
        ("https://host/y?sig=secret", r"y = 'https://host/y' has a query"),
        ("https://host/y#1", r"y = 'https://host/y#1' has a query or a fragment"),
        ("s3://bucket/y#1?sig=secret", r"y = 's3://bucket/y#1' has a query"),
    ],
)
def test_what_cannot_be_opened(group, location, text):
    with pytest.raises(InputError, match=text):
        open_location(location.format(group), "y", None)


def test_a_library_that_is_missing():
    with pytest.raises(MissingLibraryError, match="hf://.*huggingface_hub.*install"):
        open_location("hf://bucket/y", "y", None)


def test_groups_and_stores_are_refused(group):
    opened = zarr.open_group(group, mode="r")
    with pytest.raises(InputTypeError, match=r"y is a Zarr group of the arrays t and y.*\['t'\]"):
        stored_argument(opened, "y", "cf")
    with pytest.raises(InputTypeError, match="sigma is a Zarr store"):
        stored_argument(opened.store, "sigma", "cf")


def test_options_that_nothing_needs():
    check_options(None, ("y.zarr",))
    check_options({"anon": True}, (("s3://bucket/t", VALUES), VALUES))
    with pytest.raises(InputError, match="no argument is the URL"):
        check_options({"key": "secret"}, (VALUES, "y.zarr"))
    with pytest.raises(InputTypeError, match="storage_options is a str") as caught:
        check_options("CANARY", ("s3://bucket/y",))
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "checkpoint", "reach"),
    [
        ((VALUES,), "s3://bucket/run", True),
        (("s3://bucket/y",), "s3a://other/run", True),
        (("s3://bucket/y",), "gs://bucket/run", False),
        ((VALUES,), "run", False),
        ((VALUES,), None, False),
    ],
)
def test_options_reach_checkpoints_in_the_same_kind_of_store(arrays, checkpoint, reach):
    options = {"key": "secret"}
    if reach:
        check_options(options, arrays, checkpoint)
    assert options_of_checkpoint(options, arrays, checkpoint) == (options if reach else None)


def test_options_have_the_names_of_either_library():
    of_s3fs = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://host"}}
    of_obstore = {"access_key_id": "k", "secret_access_key": "s", "endpoint": "http://host"}
    plain = {"client_options": {"allow_http": True}}
    bounded = {"retry_config": {"retry_timeout": timedelta(seconds=10)}}
    for given in (of_s3fs, of_obstore):
        assert _for_obstore("S3Store", given) == of_obstore | plain | bounded
    once_more = {"config_kwargs": {"retries": {"total_max_attempts": 2}}}
    made = _for_fsspec("S3Store", of_s3fs)
    assert made == of_s3fs | once_more
    made["config_kwargs"]["retries"]["mode"] = "legacy"  # as botocore does
    assert (
        _for_fsspec("S3Store", of_obstore | plain | bounded | {"region": "r"})
        == {
            "key": "k",
            "secret": "s",
            "endpoint_url": "http://host",
            "client_kwargs": {"region_name": "r"},
        }
        | once_more
    )
    for kind, given, made in (
        ("GCSStore", {"token": "anon"}, {"skip_signature": True}),
        ("GCSStore", {"token": "key.json"}, {"service_account_path": "key.json"}),
        ("AzureStore", {"sas_token": "s"}, {"sas_key": "s"}),
    ):
        assert _for_obstore(kind, given) == made | bounded


def test_the_user_s_own_bounds_of_what_a_library_asks_again_are_kept():
    own = {"retry_config": {"max_retries": 0}}
    assert _for_obstore("S3Store", own) == own
    own = {"config_kwargs": {"retries": {"mode": "adaptive"}}}
    assert _for_fsspec("S3Store", own) == own


def test_the_folder_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    open_group("~/maps.zarr", None).create_array("y", data=np.arange(3.0))
    assert (tmp_path / "maps.zarr").is_dir()
    np.testing.assert_array_equal(open_location("~/maps.zarr/y", "y", None)[...], np.arange(3.0))
    assert checked_place("~/fit", "checkpoint", TypeError) == tmp_path / "fit"
    assert local_path("~nobody at all/y", "y") == Path("~nobody at all/y")


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "a?b", "ä/日本"])
def test_one_rule_for_paths_of_arrays_maps_and_checkpoints(name, tmp_path):
    path = tmp_path / name
    url = f"file://localhost{quote(str(path))}"
    open_group(url, None).create_array("y", data=np.arange(3.0))
    for text in (str(path), url):
        np.testing.assert_array_equal(open_location(f"{text}/y", "y", None)[...], np.arange(3.0))
        assert checked_place(text, "checkpoint", TypeError) == path


def test_a_number_sign_is_a_letter_of_a_key():
    """Another array, at the key before the sign, was read."""
    pytest.importorskip("obstore")
    _, path = _store_of("s3://bucket/run#2/y/", {})
    assert path == "run#2/y"


@pytest.mark.parametrize("text", ["", "file:y", "s3:/bucket/y", "file:///y#1", "s3://[bucket/y"])
def test_what_is_only_nearly_a_location(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in (
        lambda: open_location(text, "y", None),
        lambda: open_group(text or "file:", None),
        lambda: checked_place(text, "checkpoint", TypeError),
    ):
        with pytest.raises(InputError, match="slash|%23|is no URL|not empty"):
            take()
    assert list(tmp_path.iterdir()) == []


def test_a_zip_archive_that_is_open_for_writing(tmp_path):
    """Dask names an array by a copy, and the copy of a store empties the archive."""
    store = ZipStore(tmp_path / "y.zip", mode="w")
    group = zarr.open_group(store, mode="w")
    array = group.create_array("y", data=VALUES)
    with pytest.raises(InputError, match="y is in a zip archive that is open for writing"):
        stored_argument(array, "y", "cf")
    with pytest.raises(InputError, match="is a zip archive"):
        open_group(group, None)
    store.close()
    written = zarr.open_group(ZipStore(tmp_path / "y.zip", mode="r"), mode="r")["y"]
    lazy = stored_argument(written, "y", "cf").lazy()
    np.testing.assert_array_equal(lazy.compute(), VALUES)
