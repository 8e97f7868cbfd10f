"""Fits of arrays in an object store, on a server on this machine."""

from __future__ import annotations

import logging
import pickle
import traceback
import warnings
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from zarr.core.buffer import cpu
from zarr.core.sync import sync

from nlsq_dask import InputError, ReadingError, curve_fit, fit, fit_each, fit_models, plan
from nlsq_dask.engines.dask import idle_memory
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.io import leaf

pytest.importorskip("moto")
pytest.importorskip("obstore")

from tests.support.s3 import BUCKET, CANARY, group_on, options_of, s3_server

ROWS, CHUNK = 4_000, 500
RNG = np.random.default_rng(9)
X = np.linspace(0, 4, ROWS)
Y = 1.7 * np.exp(-1.3 * X) + 0.5 + RNG.normal(0, 0.05, ROWS)
P0 = [1.0, 1.0, 0.0]
URL = f"s3://{BUCKET}/decay.zarr"


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as address:
        group = group_on(address, "decay.zarr")
        group.create_array("t", data=X, chunks=(CHUNK,))
        packed = group.create_array("y", data=np.round(Y / 1e-4).astype("i4"), chunks=(CHUNK,))
        packed.attrs["scale_factor"] = 1e-4
        yield address


@pytest.fixture
def options(endpoint):
    return {"storage_options": options_of(endpoint)}


@pytest.fixture(scope="module")
def expected():
    return fit(decay, X, np.round(Y / 1e-4) * 1e-4, P0, ftol=1e-14, xtol=1e-14, gtol=1e-14)


def assert_close(popt, expected):
    assert np.abs((popt - expected.popt) / expected.perr).max() < 0.02


@pytest.mark.slow
def test_each_chunk_is_read_once_a_pass(options, expected, caplog):
    with caplog.at_level(logging.INFO, "werkzeug"):
        result = fit(decay, f"{URL}/t", f"{URL}/y", P0, cache=False, **options)
    assert_close(result.popt, expected)
    assert result.decoded
    lines = (record.getMessage() for record in caplog.records if record.name == "werkzeug")
    chunks = Counter(line.split()[-4] for line in lines if "/c/" in line)
    assert len(chunks) == 2 * ROWS // CHUNK
    assert set(chunks.values()) == {result.n_passes}


@pytest.mark.slow
def test_every_call_takes_urls(options, expected):
    popt, _ = curve_fit(decay, f"{URL}/t", f"{URL}/y", P0, **options)
    assert_close(popt, expected)
    (result,) = fit_models([decay], f"{URL}/t", f"{URL}/y", [P0], **options)
    assert_close(result.popt, expected)


@pytest.mark.slow
def test_maps_go_to_an_object_store(options):
    pytest.importorskip("s3fs")
    series = np.stack([Y[::50], 2.0 * Y[::50]], axis=1)
    arguments = {"store": f"s3://{BUCKET}/maps.zarr", **options}
    maps = fit_each(decay, X[::50], series, P0, **arguments)
    names = {"key": "access_key_id", "secret": "secret_access_key", "endpoint_url": "endpoint"}
    given = options["storage_options"].items()
    arguments["storage_options"] = {names[name]: value for name, value in given}  # of obstore
    again = fit_each(decay, X[::50], series, P0, resume=True, **arguments)
    expected = fit_each(decay, X[::50], series, P0)
    for found in (maps, again):
        np.testing.assert_array_equal(found.popt.array.compute(), expected.popt.array)


@pytest.mark.slow
def test_fsspec_reads_the_same(options, expected, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_close(fit(decay, f"{URL}/t", f"{URL}/y", P0, **options).popt, expected)


@pytest.mark.cluster
def test_a_worker_opens_the_store_once_and_nothing_tells_a_credential(
    options, expected, client, tmp_path, caplog
):
    texts = []

    def note_keys(intermediate_result):
        texts.extend(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))

    before = client.run(misses)
    with caplog.at_level(logging.DEBUG):
        plan_of = plan(decay, f"{URL}/t", f"{URL}/y", P0, client=client, time=False, **options)
        result = fit(
            decay,
            f"{URL}/t",
            f"{URL}/y",
            P0,
            client=client,
            cache=False,
            callback=note_keys,
            checkpoint=tmp_path / "checkpoints",
            **options,
        )
    assert_close(result.popt, expected)
    assert len(texts) > ROWS // CHUNK
    after = client.run(misses)
    assert {after[worker] - before[worker] for worker in after} == {1}

    result.save(tmp_path / "result.json")
    lazy = result.predict(f"{URL}/t")
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), result.predict(X), rtol=1e-12)
    texts += [repr(result.fitted), repr(vars(result))]
    texts += [str(plan_of), repr(plan_of), str(result), repr(result), result.summary()]
    texts += [repr(lazy), repr(lazy.dask), *map(str, lazy.dask), *map(repr, lazy.dask.values())]
    texts += [path.read_text() for path in tmp_path.rglob("*.json")]
    texts += [record.getMessage() for record in caplog.records if record.name != "werkzeug"]
    texts += [str(client.get_worker_logs()), str(client.get_scheduler_logs())]
    with pytest.raises(InputError) as caught:
        fit(decay, f"{URL}/t", f"{URL}/missing", P0, **options)
    texts += traceback.format_exception(caught.value)
    with pytest.raises(InputError) as caught:
        wrong = options["storage_options"] | {"unknown": CANARY}
        fit(decay, f"{URL}/t", f"{URL}/y", P0, storage_options=wrong)
    texts += traceback.format_exception(caught.value)
    texts.append(repr(InputOptions(**options)))
    assert not [text for text in texts if CANARY in text]
    assert CANARY.encode() not in pickle.dumps(result)


@pytest.mark.cluster
def test_workers_keep_freed_memory_only_behind_reading_from_a_store(options, client, tmp_path):
    group = zarr.open_group(tmp_path, mode="w")
    for name, values in {"t": X, "y": Y}.items():
        group.create_array(name, data=values, chunks=(CHUNK,))
    client.run(hold_for, 60.0)
    kept = []
    try:
        for place, given in {f"{tmp_path}": {}, URL: options}.items():
            fit(decay, f"{place}/t", f"{place}/y", P0, client=client, cache=False, **given)
            kept.append(any(client.run(keeps_freed).values()))
    finally:
        client.run(hold_for, idle_memory.IDLE_SECONDS)
    assert kept == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["obstore", "fsspec"])
def test_missing_and_damaged_chunks_in_a_bucket(library, endpoint, options, monkeypatch, caplog):
    """They are found by listing, and no text has a credential."""
    group = group_on(endpoint, "lossy.zarr")
    y = group.create_array("y", data=Y, chunks=(CHUNK,), compressors=zarr.codecs.ZstdCodec())
    url = f"s3://{BUCKET}/lossy.zarr/y"
    sync(y.store.delete("lossy.zarr/y/c/3"))
    if library == "fsspec":
        pytest.importorskip("s3fs")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    place = f"s3://{BUCKET}/run-{library}"
    with caplog.at_level(logging.DEBUG, "nlsq_dask"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(decay, X, url, P0, checkpoint=place, **options)
        sync(y.store.set("lossy.zarr/y/c/5", cpu.Buffer.from_bytes(b"no zstd")))
        result = fit(decay, X, url, P0, missing_chunks="omit", on_error="omit", **options)
    assert result.blocks_omitted == ((3,), (5,))
    texts = [str(warning.message) for warning in told]
    assert [text for text in texts if "y lacks 1 of 8 chunks in the store (" in text]
    assert [text for text in texts if "block (5,) of y" in text]
    with pytest.raises(ReadingError, match="y lacks 1 of 8 chunks") as caught:
        fit(decay, X, url, P0, missing_chunks="raise", **options)
    texts += traceback.format_exception(caught.value)
    with pytest.raises(ReadingError, match=r"block \(5,\) of y") as caught:
        fit(decay, X, url, P0, missing_chunks="fill", **options)
    texts += traceback.format_exception(caught.value)
    texts += [str(result), repr(result), result.summary(), repr(vars(result))]
    texts += [record.getMessage() for record in caplog.records if record.name != "werkzeug"]
    files = list_of(endpoint, f"run-{library}")
    assert len(files) >= 2
    texts += [file.decode() for file in files]
    assert not [text for text in texts if CANARY in text]


def list_of(endpoint, prefix):
    """The contents of the objects below a prefix."""
    store = group_on(endpoint, "nothing").store

    async def read():
        prototype = zarr.core.buffer.default_buffer_prototype()
        keys = [key async for key in store.list_prefix(prefix)]
        return [(await store.get(key, prototype)).to_bytes() for key in keys]

    return sync(read())


def hold_for(seconds):
    idle_memory._idle = idle_memory.IdleMemory(seconds)


def keeps_freed():
    return idle_memory._idle._freed.kept


def misses():
    """How many stores this process has opened."""
    return leaf._opened_store.cache_info().misses
