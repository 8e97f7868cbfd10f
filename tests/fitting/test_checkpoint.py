"""Checkpoints: what is written, what is refused, and that a resumed fit has the same bits."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import dask.array as da
import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import CheckpointWarning, InputError, Status, fit
from nlsq_dask._errors import InputTypeError
from nlsq_dask.core.distance import Remainder
from nlsq_dask.core.factor import Linearization
from nlsq_dask.core.normal_equations import Moments
from nlsq_dask.core.solver_state import IterationRecord, SolverState
from nlsq_dask.fitting import checkpoint as checkpoint_module
from nlsq_dask.fitting import ledger
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore
from nlsq_dask.fitting.checkpoint_content import decode
from tests.support.mutated_files import content_of_checkpoint, seal_checkpoint
from tests.support.same_result import assert_same_result

X = np.linspace(0, 4, 400)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)
VERSIONS = {"nlsq_dask": "0"}


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def other_decay(x, a, b, c):
    return a * jnp.exp(-b * x) + 2 * c


def parabola(x, a, b, c):
    return a + b * x + c * x**2


def wave(x, a, b, c):
    return a * jnp.sin(b * x + c)


def fit_decay(directory=None, **changes):
    arguments = {"model": decay, "x": X, "y": Y, "p0": [1, 1, 0], "checkpoint": directory}
    return fit(**{**arguments, **changes})


def checkpoints_in(directory):
    return sorted(Path(directory).glob("checkpoint-*.json"))


# Round trip

floats = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
counts = st.integers(0, 10**15)


finite = st.floats(allow_nan=False, allow_infinity=False)


sums = st.floats(0.0) | st.just(np.nan)


def arrays(*shape, elements=floats):
    size = int(np.prod(shape))
    values = st.lists(elements, min_size=size, max_size=size)
    return values.map(lambda v: np.array(v, np.float64).reshape(shape))


def finite_arrays(*shape):
    return arrays(*shape, elements=finite)


records = st.builds(
    IterationRecord, counts, counts, floats, floats, floats, floats, st.booleans(), floats
)
statuses = st.sampled_from([None, *Status])


_FLOATS = ("chi2", "alpha", "optimality")
_COUNTS = ("n_points", "n_skipped", "nfev", "njev", "n_refined", "n_differenced")
_COUNTS = (*_COUNTS, "n_rejected", "n_contradicted", "n_probed")


@st.composite
def states(draw):
    p = draw(st.integers(1, 4))
    linearization, curved = (
        Linearization(
            draw(finite_arrays(p, p)), draw(finite_arrays(p)), draw(arrays(p)), draw(floats)
        )
        for _ in range(2)
    )
    linearization = replace(
        linearization,
        curved=draw(st.sampled_from([None, curved])),
        sandwich=draw(st.none() | arrays(p, p)),
        downhill=draw(st.none() | arrays(p)),
    )
    return SolverState(
        params=draw(finite_arrays(p)),
        linearization=linearization,
        left=Remainder(draw(floats), draw(floats)),
        scale_inv=draw(arrays(p, elements=st.floats(1.0, 1e300))),
        cost=draw(finite),
        moments=Moments(*(draw(sums) for _ in fields(Moments))),
        radius=draw(st.floats(1e-300)),
        status=draw(statuses),
        met=draw(statuses),
        sizes=draw(arrays(p)),
        refined=draw(st.booleans()),
        history=tuple(draw(st.lists(records, max_size=3))),
        **{name: draw(floats) for name in _FLOATS},
        **{name: draw(counts) for name in _COUNTS},
    )


def bits(value):
    """A value by its bits, all NaN alike."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, [bits(item) for item in value.ravel().tolist()]
    if isinstance(value, float):
        return float.hex(value)
    if isinstance(value, tuple):
        return [bits(item) for item in value]
    if hasattr(type(value), "__dataclass_fields__"):
        return type(value), {f.name: bits(getattr(value, f.name)) for f in fields(value)}
    return type(value), value


def test_the_fields_of_the_solver_s_state_are_all_covered():
    names = {"r_factor", "qtr", "gradient", "resolution", "curved", "sandwich", "downhill"}
    assert {f.name for f in fields(Linearization)} == names


@pytest.mark.slow
@given(state=states(), n_passes=counts)
def test_every_state_reads_back_to_the_same_bits(state, n_passes, tmp_path_factory):
    store = CheckpointStore(tmp_path_factory.mktemp("round"), {"p": 1}, VERSIONS)
    store.save(Checkpoint(state, n_passes, [], None))
    loaded = store.load()
    assert bits(loaded.state) == bits(state)
    assert loaded.n_passes == n_passes


def test_a_state_of_an_earlier_release_is_read(tmp_path):
    store = store_with(tmp_path, [1.0])
    (path,) = tmp_path.iterdir()
    content = json.loads(json.loads(path.read_text())["content"])
    del content["state"]["n_differenced"]
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "content": text}))
    assert store.load().state.n_differenced == 0


def a_state():
    linearization = Linearization(np.eye(2), np.ones(2), np.ones(2), 1.0)
    return SolverState(
        params=np.array([1.0, 2.0]), linearization=linearization, cost=1.0, chi2=2.0, n_points=9,
        n_skipped=0, moments=Moments(), left=Remainder(0.0, 0.0), scale_inv=np.ones(2), radius=1.0,
        alpha=0.0, optimality=0.5, nfev=3, njev=2, n_refined=0, status=None, history=(),
    )  # fmt: skip


def store_with(directory, costs, problem=None):
    store = CheckpointStore(directory, problem or {"p": 1}, VERSIONS)
    for i, cost in enumerate(costs):
        store.save(Checkpoint(replace(a_state(), cost=cost), i + 1, [], None))
    return store


def test_the_format_is_open(tmp_path):
    result = fit_decay(tmp_path)
    newest = json.loads(checkpoints_in(tmp_path)[-1].read_text())
    content = json.loads(newest["content"])
    assert set(content) == {
        "format",
        "groups",
        "problem",
        "versions",
        "n_passes",
        "starts",
        "pilot",
        "digests",
        "state",
    }
    libraries = {"nlsq_dask", "dask", "jax", "numpy"}
    assert set(content["versions"]) == libraries | {"vector_bits"}
    assert content["state"]["params"] == result.popt.tolist()
    assert set(content["state"]) == {f.name for f in fields(SolverState)}


# What is on the disk


def test_a_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []
    sync = os.fsync

    def look(descriptor):
        seen.append([decode(p.read_bytes()) for p in checkpoints_in(tmp_path)])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    store_with(tmp_path, [3.0, 2.0])
    # The file is flushed before it has its name, and the directory after.
    assert [len(contents) for contents in seen] == [0, 1, 1, 2]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_newest_few_are_kept(tmp_path):
    store = store_with(tmp_path, range(10))
    names = [path.name for path in checkpoints_in(tmp_path)]
    assert names == [f"checkpoint-{number:08d}.json" for number in (8, 9, 10)]
    assert store.load().state.cost == 9


def test_files_of_others_are_left_alone(tmp_path):
    strangers = [
        tmp_path / name for name in ("notes.txt", "checkpoint-1.json", "checkpoint-a.json")
    ]
    for path in strangers:
        path.write_text("mine")
    store = store_with(tmp_path, [2.0])
    assert store.load().state.cost == 2.0
    assert all(path.read_text() == "mine" for path in strangers)


def test_an_error_while_writing_leaves_no_file(tmp_path, monkeypatch):
    store = store_with(tmp_path, [3.0])

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.warns(CheckpointWarning, match="No space left"):
            store.save(Checkpoint(a_state(), 2, [], None))
        store.save(Checkpoint(a_state(), 3, [], None))  # warned once is enough
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.json"]
    store.save(Checkpoint(replace(a_state(), cost=1.5), 4, [], None))  # there is space again
    assert store.load().state.cost == 1.5


def flip_a_digit(raw):
    at = raw.index(b'\\"cost\\": ') + len(b'\\"cost\\": ')
    return raw[:at] + (b"7" if raw[at : at + 1] != b"7" else b"8") + raw[at + 1 :]


def of_another_format(raw):
    return sealed(raw, format="nlsq_dask checkpoint 999")


def sealed(raw, state=None, **changes):
    """A file with other content, under the right checksum."""
    content = content_of_checkpoint(raw)
    changed = content | {"state": content["state"] | (state or {})} | changes
    return seal_checkpoint(changed)


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


DAMAGE = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "last byte lost": lambda raw: raw[:-1],
    "empty": lambda raw: b"",
    "zeros": lambda raw: bytes(len(raw)),
    "a digit": flip_a_digit,
    "noise": lambda raw: np.random.default_rng(0).bytes(len(raw)),
    "another JSON": lambda raw: b"[1, 2]",
    "a number for content": lambda raw: b'{"sha256": "0", "content": 5}',
    "no checksum": lambda raw: b"{}",
    "another format": of_another_format,
    "no UTF-8": lambda raw: b"\xff" + raw,
    "a long checksum": lambda raw: b'{"sha256": "x", "sha256": "y", "content": "{}"}',
}

# Under the right checksum.
HOSTILE = {
    "deep": lambda raw: sealed(raw, problem=deep(500)),
    "deep text": lambda raw: b"[" * 10**5,
    "a list for the state": lambda raw: seal_checkpoint(content_of_checkpoint(raw) | {"state": []}),
    "a list for the content": lambda raw: seal_checkpoint([1]),
    "a huge number": lambda raw: sealed(raw, {"cost": 10**400}),
    "an infinite number": lambda raw: sealed(raw, {"cost": float("inf")}),
    "a number as text": lambda raw: sealed(raw, {"cost": "1e3"}),
    "a nonfinite point": lambda raw: sealed(raw, {"params": ["nan", 1.0]}),
    "a negative counter": lambda raw: sealed(raw, {"nfev": -3}),
    "a float counter": lambda raw: sealed(raw, n_passes=1.5),
    "a counter beyond 64 bits": lambda raw: sealed(raw, n_passes=2**64),
    "a truth value": lambda raw: sealed(raw, {"refined": 1}),
    "a longer point": lambda raw: sealed(raw, {"params": [1.0, 2.0, 3.0]}),
    "a ragged matrix": lambda raw: sealed(raw, {"scale_inv": [[1.0], [1.0, 2.0]]}),
    "no radius": lambda raw: sealed(raw, {"radius": 0.0}),
    "a negative scatter": lambda raw: sealed(raw, {"moments": {"scatter": -1.0}}),
    "no scale": lambda raw: sealed(raw, {"scale_inv": [0.0, 1.0]}),
    "an unknown status": lambda raw: sealed(raw, {"status": 99}),
    "an unknown field": lambda raw: sealed(raw, {"__class__": "object"}),
    "a list for the format": lambda raw: sealed(raw, format=[1]),
    "a number for the problem": lambda raw: sealed(raw, problem=7),
    "starts of another kind": lambda raw: sealed(raw, starts=[3]),
    "a pilot of another kind": lambda raw: sealed(raw, pilot={"n_rows": "x"}),
    "digests of another kind": lambda raw: sealed(raw, digests={"0": 1}),
}


@pytest.mark.parametrize("damage", [*DAMAGE, *HOSTILE])
def test_a_damaged_file_is_named_and_the_one_before_is_used(damage, tmp_path):
    store = store_with(tmp_path, [3.0, 2.0])
    newest = checkpoints_in(tmp_path)[-1]
    newest.write_bytes((DAMAGE | HOSTILE)[damage](newest.read_bytes()))
    with pytest.warns(CheckpointWarning, match=newest.name) as caught:
        assert store.load().state.cost == 3.0
    assert len(str(caught[0].message)) < 1000


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_something_else_in_place_of_a_file_is_passed_over(kind, tmp_path):
    directory, outside = tmp_path / "run", tmp_path / "outside"
    store = store_with(directory, [3.0])
    newest = directory / "checkpoint-00000002.json"
    outside.write_bytes(checkpoints_in(directory)[0].read_bytes())
    make = {"directory": newest.mkdir, "pipe": lambda: os.mkfifo(newest)}
    make.get(kind, lambda: newest.symlink_to(outside))()
    with pytest.warns(CheckpointWarning, match=newest.name):
        assert store.load().state.cost == 3.0
    store.save(Checkpoint(replace(a_state(), cost=1.5), 2, [], None))
    assert store.load().state.cost == 1.5


@pytest.mark.parametrize("content", [b"{", None], ids=["damaged", "of an earlier fit"])
def test_no_number_of_a_file_hides_the_files_after_it(content, tmp_path):
    store = store_with(tmp_path, [3.0])
    (first,) = checkpoints_in(tmp_path)
    (tmp_path / "checkpoint-99999999.json").write_bytes(content or first.read_bytes())
    for cost in (2.0, 1.0):
        store.save(Checkpoint(replace(a_state(), cost=cost), 2, [], None))
    assert store.load().state.cost == 1.0
    (tmp_path / f"checkpoint-{'9' * 18}.json").write_bytes(b"{")
    with pytest.warns(CheckpointWarning, match="has the last number"):
        store.save(Checkpoint(a_state(), 3, [], None))


def test_a_directory_that_cannot_be_read_is_a_warning(tmp_path, monkeypatch):
    store = store_with(tmp_path, [3.0])

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.warns(CheckpointWarning, match="Permission denied.*starts anew"):
        assert store.load() is None


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("directory", [b"x", "a\0b", 5, "http://host/run"])
def test_what_is_no_directory_is_refused(directory, resume):
    with pytest.raises((InputError, InputTypeError), match="checkpoint = .*: pass"):
        fit_decay(directory, resume=resume)


def test_a_name_that_is_too_long_is_a_warning(tmp_path):
    with pytest.warns(CheckpointWarning, match="too long"):
        result = fit_decay(tmp_path / ("x" * 300), resume=True)
    assert result.success


# In object stores


def test_checkpoints_in_a_store_keep_the_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = "memory://test-checkpoint/run"
    whole = fit_decay(url)
    assert whole.checkpoint == url
    assert_same_result(whole, fit_decay())
    system = fsspec.filesystem("memory")
    *_, newest = sorted(system.ls("/test-checkpoint/run", detail=False))
    system.pipe_file(newest, system.cat_file(newest)[:99])
    with pytest.warns(CheckpointWarning, match=f"{url}/checkpoint-.* is damaged"):
        assert_same_result(fit_decay(url, resume=True), whole)
    assert_same_result(fit_decay(url, resume=True), whole)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_checkpoints_on_s3(monkeypatch):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from tests.support.s3 import BUCKET, options_of, s3_server

    with s3_server() as endpoint:
        options = options_of(endpoint)
        passed = fit_decay(f"s3://{BUCKET}/passed", storage_options=options)
        again = fit_decay(f"s3://{BUCKET}/passed", resume=True, storage_options=options)
        assert_same_result(again, passed)
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        whole = fit_decay(f"s3://{BUCKET}/run")
        assert_same_result(fit_decay(f"s3://{BUCKET}/run", resume=True), whole)
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        assert len(system.ls(f"{BUCKET}/run")) == 3
        with pytest.warns(CheckpointWarning, match="the store of s3://none/run refuses|none"):
            fit_decay("s3://none/run")


@pytest.mark.parametrize("place", ["disk", "disk without links", "memory"])
def test_two_fits_never_take_one_name(place, tmp_path, monkeypatch):
    """Each has listed the directory before the other writes."""
    directory = "memory://test-two-fits/run" if place == "memory" else tmp_path / "run"
    if place == "disk without links":
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: Path("/no such file").stat())
    first, second = (CheckpointStore(directory, {"p": 1}, VERSIONS) for _ in range(2))
    state = a_state()
    names = second.directory.names
    stale = iter([names()])
    monkeypatch.setattr(second.directory, "names", lambda: next(stale, None) or names())
    first.save(Checkpoint(state, 1, [], None))
    second.save(Checkpoint(state, 2, [], None))
    assert sorted(names()) == ["checkpoint-00000001.json", "checkpoint-00000002.json"]
    read = [decode(first.directory.read(name))[1]["n_passes"] for name in sorted(names())]
    assert read == [1, 2]


def test_where_all_are_damaged_there_is_none(tmp_path):
    store = store_with(tmp_path, [3.0, 2.0])
    for path in checkpoints_in(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(CheckpointWarning) as caught:
        assert store.load() is None
    assert len(caught) == 2


# Resuming a fit


@pytest.fixture
def all_kept(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "KEPT", 10**6)


def in_chunks(array, rows=90):
    return da.from_array(array, chunks=rows)


RESUMED = {
    "standard": {},
    "chunked": {"strategy": "chunked"},
    "streaming": {"x": in_chunks(X), "y": in_chunks(Y)},
    "streaming NumPy": {"strategy": "streaming"},
    "bounds": {"bounds": ([0, 0, 0.6], [np.inf, 9, 9]), "p0": [1, 1, 0.7]},
    "several starts": {"n_starts": 8, "gtol": None, "ftol": 1e-15},
    "several basins, streaming": {
        "model": wave,
        "x": in_chunks(X, 20),
        "y": in_chunks(np.sin(7 * X) + Y / 9, 20),
        "p0": [1, 3, 0],
        "bounds": ([0, 2, -4], [2, 12, 4]),
        "n_starts": 8,
        "gtol": None,
        "ftol": 1e-15,
    },
    "sizes": {"x_scale": [2.0, 1.0, 0.1], "ftol": None},
    # Converged at the start, where columns are almost dependent: the end is looked at once more.
    "a last look": {"model": parabola, "x": X + 1e3, "gtol": 1e12},
}


# Passes besides the solver's points: to look at the end in a better basis.
MORE_PASSES = {"standard": 0, "several basins, streaming": 0, "a last look": 1}


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.CovarianceWarning")
@pytest.mark.parametrize("name", RESUMED)
def test_a_fit_resumed_after_any_pass_has_the_same_bits(name, tmp_path, all_kept):
    whole = fit_decay(tmp_path / "whole", **RESUMED[name])
    assert_same_result(whole, fit_decay(**RESUMED[name]))  # checkpoints change nothing
    files = checkpoints_in(tmp_path / "whole")
    assert len(files) == whole.nfev
    if name in MORE_PASSES:
        assert whole.n_passes == whole.nfev + MORE_PASSES[name]
    for i, file in enumerate(files):
        directory = tmp_path / str(i)
        directory.mkdir()
        shutil.copy(file, directory)
        resumed = fit_decay(directory, resume=True, **RESUMED[name])
        assert_same_result(resumed, whole)
        assert len(checkpoints_in(directory)) == len(files) - i


@pytest.mark.slow
def test_a_resumed_fit_reads_only_what_is_left(tmp_path, all_kept):
    reads = []

    def noted(block):
        reads.append(len(block))
        return block

    x = in_chunks(X).map_blocks(noted, meta=np.empty(0))
    whole = fit_decay(tmp_path, x=x, y=in_chunks(Y), cache=False)
    a_pass = len(reads) // whole.n_passes
    for done, file in enumerate(checkpoints_in(tmp_path)[:-1], start=1):
        last = tmp_path / f"after {done}"
        last.mkdir()
        shutil.copy(file, last)
        reads.clear()
        fit_decay(last, x=x, y=in_chunks(Y), resume=True, cache=False)
        # And one block at the end, for its checksum.
        assert len(reads) == (whole.n_passes - done) * a_pass + 1


def test_resuming_a_fit_that_is_over_gives_its_result(tmp_path):
    whole = fit_decay(tmp_path)
    assert_same_result(fit_decay(tmp_path, resume=True), whole)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_with_nothing_to_resume_the_fit_starts(name, tmp_path):
    (tmp_path / "empty").mkdir()
    result = fit_decay(tmp_path / name, resume=True)
    assert_same_result(result, fit_decay())
    assert result.checkpoint == str(tmp_path / name)
    assert checkpoints_in(tmp_path / name)


def test_resume_needs_a_directory():
    with pytest.raises(InputError, match=r"resume=True needs checkpoint=\.\.\."):
        fit_decay(resume=True)


def test_without_resume_a_fit_starts_anew_and_leaves_what_is_there(tmp_path):
    first = fit_decay(tmp_path)
    before = {path: path.read_bytes() for path in checkpoints_in(tmp_path)}
    again = fit_decay(tmp_path, p0=[2, 1, 0])
    assert again.nfev >= 2
    assert again.history[0].cost != first.history[0].cost
    assert all(path.read_bytes() == raw for path, raw in before.items())


def test_a_damaged_newest_file_costs_one_pass_and_no_bit(tmp_path):
    whole = fit_decay(tmp_path)
    newest = checkpoints_in(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(CheckpointWarning, match="damaged"):
        resumed = fit_decay(tmp_path, resume=True)
    assert_same_result(resumed, whole)


def test_with_all_files_damaged_the_fit_starts_over(tmp_path):
    whole = fit_decay(tmp_path)
    for path in checkpoints_in(tmp_path):
        path.write_bytes(b"{")
    with pytest.warns(CheckpointWarning, match="or to the start"):
        resumed = fit_decay(tmp_path, resume=True)
    assert_same_result(resumed, whole)


DASK = {"x": in_chunks(X), "y": in_chunks(Y)}
OTHER = [
    # what differs, the fit that was interrupted, the one that resumes
    ("model", {}, {"model": other_decay}),
    ("model", {"model": lambda x, a, b, c, k=1.0: decay(x, a, b, c)}, {}),
    ("parameters", {}, {"model": lambda x, a, b, d: decay(x, a, b, d)}),
    ("shapes", {}, {"x": X[:-1], "y": Y[:-1]}),
    ("shapes", {}, {"sigma": np.ones_like(Y)}),
    ("dtypes", {}, {"y": Y.astype(np.float32)}),
    ("chunks", DASK, {"x": X, "y": da.from_array(Y, chunks=80)}),
    ("strategy", DASK, {}),
    ("bounds", {}, {"bounds": (0, np.inf)}),
    ("bounds", {"bounds": {"a": (0, 9)}}, {"bounds": {"a": (0, 8)}}),
    ("p0", {}, {"p0": [1, 1, np.nextafter(0, 1)]}),
    ("tolerances", {}, {"ftol": 1e-9}),
    ("tolerances", {}, {"xtol": None}),
    ("tolerances", {"workflow": "auto"}, {}),
    ("max_nfev", {}, {"max_nfev": 7}),
    ("x_scale", {}, {"x_scale": 1.0}),
    ("n_starts", {}, {"n_starts": 4}),
    ("seed", {"n_starts": 4}, {"n_starts": 4, "seed": 1}),
    ("block_rows", {"strategy": "chunked"}, {"goal": "memory_efficient"}),
]


@pytest.mark.quick(4)
@pytest.mark.parametrize(("name", "first", "second"), OTHER)
def test_a_checkpoint_of_another_fit_is_refused(name, first, second, tmp_path):
    fit_decay(tmp_path, **first)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"is of another fit: .*pass another checkpoint") as caught:
        fit_decay(tmp_path, resume=True, **second)
    differing = str(caught.value).partition("another fit: ")[2].partition(" differ")[0]
    assert name in differing.replace(" and ", ", ").split(", ")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_refusal_shows_both_values(tmp_path):
    fit_decay(tmp_path)
    with pytest.raises(
        InputError, match=r"p0 was \[1\.0, 1\.0, 0\.0\] and is \[1\.0, 2\.0, 0\.0\]"
    ):
        fit_decay(tmp_path, resume=True, p0=[1, 2, 0])


# Disks that refuse


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.warns(CheckpointWarning, match=r"the fit goes on without") as caught:
            result = fit_decay(directory)
        assert len(caught) == 1
        assert str(directory) in str(caught[0].message)
        assert_same_result(result, fit_decay())


def test_checkpoints_and_ledger_that_are_refused_are_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "SECONDS", 0.0)
    monkeypatch.setattr(ledger, "TIMES_LONGER", 0.0)
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(CheckpointWarning, match="the fit goes on without") as caught:
        fit_decay(tmp_path / "file", **DASK)
    assert len(caught) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system nobody writes to")
def test_a_read_only_disk_is_a_warning():
    with pytest.warns(CheckpointWarning, match=r"/proc/nlsq_dask"):
        result = fit_decay("/proc/nlsq_dask")
    assert_same_result(result, fit_decay())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_directory_is_a_warning(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.warns(CheckpointWarning, match="Permission denied"):
            result = fit_decay(tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert_same_result(result, fit_decay())


FULL_DISK = """
import resource, sys, warnings
sys.path[:] = {path!r}
from tests.fitting.test_checkpoint import fit_decay
from nlsq_dask import CheckpointWarning
from tests.support.same_result import assert_same_result

expected = fit_decay()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = fit_decay({directory!r})
assert [w.category for w in caught] == [CheckpointWarning], caught
assert "File too large" in str(caught[0].message)
assert_same_result(result, expected)
"""


@pytest.mark.slow
def test_a_full_disk_is_a_warning(tmp_path):
    program = FULL_DISK.format(path=sys.path, directory=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
    calls = []
    sync = os.fsync

    def full_after_some(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:  # the file and its directory, three times
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_some)
        with pytest.warns(CheckpointWarning, match="No space left") as caught:
            whole = fit_decay(tmp_path)
    assert len(caught) == 1
    assert whole.nfev > 3
    assert_same_result(whole, fit_decay())
    assert_same_result(fit_decay(tmp_path, resume=True), whole)


# The preset that asks for them


@pytest.mark.parametrize("data", [{}, DASK], ids=["NumPy", "Dask"])
def test_hpc_distributed_names_the_directory_it_makes(data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "nlsq_dask"):
        result = fit_decay(workflow="hpc_distributed", **data)
    directory = Path(result.checkpoint)
    assert directory.parent == tmp_path / "nlsq_checkpoints"
    assert checkpoints_in(directory)
    assert f"checkpoints in {directory}" in caplog.messages
    assert str(directory) in str(result)
    assert fit_decay(workflow="hpc_distributed", **data).checkpoint != result.checkpoint
    resumed = fit_decay(directory, workflow="hpc_distributed", resume=True, **data)
    assert_same_result(resumed, result)


def test_a_directory_that_is_named_wins_over_the_preset_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fit_decay("mine", workflow="hpc_distributed")
    assert result.checkpoint == str(tmp_path / "mine")
    assert not (tmp_path / "nlsq_checkpoints").exists()


def test_where_the_preset_cannot_make_one_the_fit_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nlsq_checkpoints").write_text("in the way")
    with pytest.warns(CheckpointWarning, match="nlsq_checkpoints"):
        result = fit_decay(workflow="hpc_distributed")
    assert result.checkpoint is None


def test_other_workflows_write_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_decay(workflow="streaming").checkpoint is None
    assert list(tmp_path.iterdir()) == []
