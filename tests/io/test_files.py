"""Files that are whole or not there, and places that are refused."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import fsspec
import pytest

from nlsq_dask import InputError
from nlsq_dask._errors import InputTypeError, result_not_a_path
from nlsq_dask.io import files
from nlsq_dask.io.codec import MOST_LEVELS, loads
from nlsq_dask.io.files import LocalFolder, opened, write_atomically
from nlsq_dask.io.folders import ObjectFolder, checked_place, open_folder


def place(value):
    return checked_place(value, "path", result_not_a_path)


def folder_at(url):
    return open_folder(url, "path", result_not_a_path)


def test_a_temporary_name_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".nlsq_dask-{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "result.json", b"new")
    assert victim.read_text() == "mine"
    monkeypatch.undo()
    # A link under the name itself is replaced, and what it points to stays.
    (tmp_path / "link.json").symlink_to(victim)
    write_atomically(tmp_path / "link.json", b"new")
    assert (victim.read_text(), (tmp_path / "link.json").read_bytes()) == ("mine", b"new")


def test_threads_write_the_same_file_without_harm(tmp_path):
    path, failed = tmp_path / "result.json", []
    start = threading.Barrier(4)

    def write(letter):
        start.wait()
        for _ in range(10):
            try:
                write_atomically(path, letter * 10_000)
            except OSError as error:
                failed.append(error)

    threads = [
        threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 10_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_files_have_the_permissions_of_the_user(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "result.json", b"1")
    finally:
        os.umask(mask)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o640


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    folder = LocalFolder(tmp_path)
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="no regular file"):
            folder.read(name)
    with pytest.raises(ValueError, match="symbolic link"):
        folder.read("link")
    with opened(tmp_path / "link") as file:  # a link that the user names
        assert file.read() == b"text"


def test_what_is_too_large_is_neither_written_nor_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x" * 11)
    monkeypatch.setattr(files, "MOST_FILE_BYTES", 10)
    with pytest.raises(ValueError, match="more than the 10 bytes"):
        LocalFolder(tmp_path).read("file")
    with pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "new", b"x" * 11)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "Infinity", "1e999", "1" * 5000, '{"a": 1, "a": 2}', b"\xff\xfe", "[" * 10**5),
        "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1),
    ],
)
def test_json_that_no_file_of_ours_holds(text):
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (b"x", InputTypeError, "is no path"),
        (5, InputTypeError, "is no path"),
        ("a\0b", InputError, "without null characters"),
        ("\ud800", InputError, "the file system can write"),
        ("", InputError, "not empty"),
        (Path("s3://bucket/run"), InputError, "lacks a slash"),
        ("file:run", InputError, "'./' before the name"),
        ("file:///tmp/a?b", InputError, "'%3F'"),
        ("file:///tmp/a#b", InputError, "'%23'"),
        ("s3://user:secret@[bucket/run", InputError, "is no URL"),
        ("https://host/run", InputError, "before it is complete"),
        ("sftp://user:secret@host/run", InputError, "before it is complete"),
        ("simplecache::s3://bucket/run", InputError, "before it is complete"),
        ("s3://bucket/run?key=secret", InputError, "credentials in the configuration"),
    ],
)
def test_places_that_are_refused(value, kind, message):
    with pytest.raises(kind, match=message) as caught:
        place(value)
    assert "secret" not in str(caught.value)


def test_paths_on_this_machine():
    for text in ("C:/run", "run:1", "ä/\u202e", "a//b", "~x"):
        assert place(text) == Path(text)
    assert place("./s3:x") == Path("s3:x")
    for text in ("file:///tmp/a%20b%3F", "file://localhost/tmp/a%20b%3F"):
        assert place(text) == Path("/tmp/a b?")


def test_a_folder_in_a_store():
    folder = folder_at("memory://test-a-folder/run")
    assert folder.names() == []
    folder.write("a", b"one")
    folder.write("a", b"two")
    folder.write("b", b"")
    assert sorted(folder.names()) == ["a", "b"]
    assert (folder.read("a"), folder.read("b")) == (b"two", b"")
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    assert folder.shown("b") == f"{folder}/b" == "memory://test-a-folder/run/b"


class Refusing:
    """A store that says its credentials when it refuses."""

    def __getattr__(self, name):
        def refuse(*args, **kwargs):
            raise ValueError("no access for user:CANARY")

        return refuse


def test_what_a_store_raises_becomes_an_oserror_without_credentials():
    folder = ObjectFolder(Refusing(), "b/run", "s3://b/run", "s3://user:CANARY@b/run")
    for call in (
        folder.names,
        lambda: folder.read("a"),
        lambda: folder.write("a", b""),
        lambda: folder.remove("a"),
    ):
        with pytest.raises(OSError, match="the store of s3://b/run refuses") as caught:
            call()
        assert "CANARY" not in str(caught.value)
        assert caught.value.__cause__ is None


class Busy:
    """A store that says that it is overloaded, and counts the objects that it is given."""

    n_given = 0

    def invalidate_cache(self):
        pass

    def exists(self, path):
        return False

    def pipe_file(self, path, raw, mode="overwrite"):
        self.n_given += 1
        raise OSError(errno.EBUSY, "Please reduce your request rate.")


def test_a_store_that_is_overloaded_is_given_a_new_file_once():
    store = Busy()
    folder = ObjectFolder(store, "b/run", "s3://b/run", "s3://b/run")
    with pytest.raises(OSError, match="reduce your request rate"):
        folder.write_new("a", b"")
    assert store.n_given == 1


def test_a_library_that_is_missing_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", missing)
    with pytest.raises(ImportError, match="gcs"):
        folder_at("gs://bucket/run")
