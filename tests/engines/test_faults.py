"""Stores that fail, passes that fail, and fits that are interrupted."""

from __future__ import annotations

import pickle
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from nlsq_dask import InputError, ReadingError, fit
from nlsq_dask._errors import (
    cause_of,
    maps_not_written,
    reading_failed,
    series_not_read,
    without_secrets,
)
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask import reading, signals
from nlsq_dask.engines.dask.engine import DaskEngine, Streaming
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.dask.reading import Retries, is_passing
from nlsq_dask.fitting import faces
from nlsq_dask.io.places import Place
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from tests.support.counting_store import stored
from tests.support.engines import dask_engine
from tests.support.problems import decays, plain_problem

QUICK = Retries(3, 0.001)
LONG = Retries(1, 1000.0)
PROBLEM = plain_problem(1000, p=1, sigma=False)
QUESTION = SumsAt(PROBLEM.params, PROBLEM.basis)
N_BLOCKS = 40

on_threads_and_cluster = pytest.mark.parametrize(
    "where", ["threads", pytest.param("cluster", marks=pytest.mark.cluster)]
)


@pytest.fixture
def place(where, request):
    """The client of the shared cluster, or None for threads."""
    return request.getfixturevalue("client") if where == "cluster" else None


class Blocks:
    """Makes blocks of y, and writes down each that it starts; some fail so many times."""

    def __init__(self, folder: Path, failing=(), times=0, error=None, meanwhile=None):
        self.folder, self.failing, self.times, self.error = folder, failing, times, error
        self.meanwhile = meanwhile

    def __call__(self, block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        tries = len(self.tries(number))
        (self.folder / f"{number}-{tries}").touch()
        if number in self.failing and tries < self.times:
            raise self.error
        if self.meanwhile is not None:
            self.meanwhile(number)
        return block

    def tries(self, number="*"):
        return list(self.folder.glob(f"{number}-*"))

    @property
    def data(self):
        y = da.from_array(PROBLEM.y, chunks=PROBLEM.y.size // N_BLOCKS)
        return observe(PROBLEM.x, y.map_blocks(self, dtype=float, meta=np.empty(0)))


# Reading again


@pytest.mark.parametrize("count", [3, 5])
def test_the_waits_outlast_a_minute_and_not_much_more(count):
    for _ in range(50):
        waits = [Retries(count).wait(i) for i in range(count)]
        assert sum(waits[:3]) >= 60.0
        assert sum(waits[:3]) <= 80.0
        assert waits[0] <= 2.5
    assert len(set(waits)) == count


class Elsewhere(Exception):
    """An error that stands for one of a store's library."""


def of_library(module, name="ClientError", **attributes):
    return type(name, (Elsewhere,), {"__module__": module, **attributes})()


def of_obstore(status):
    """An error of obstore, which tells the status of an answer in its message alone."""
    kind = type(of_library("obstore.exceptions", "GenericError"))
    return kind(f"Generic S3 error: in 2ms - Server returned non-2xx status code: {status}: <Error")


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionResetError("reset"), True),
        (TimeoutError(), True),
        (OSError("read error"), True),
        (FileNotFoundError("c/0"), False),
        (PermissionError("c/0"), False),
        (of_library("aiohttp.client_exceptions", "ServerDisconnectedError"), True),
        (of_library("aiohttp.client_exceptions", "ClientResponseError", status=503), True),
        (of_library("aiohttp.client_exceptions", "ClientResponseError", status=404), False),
        (of_library("google.api_core.exceptions", "TooManyRequests", code=429), True),
        (of_library("botocore.exceptions", "EndpointConnectionError"), True),
        (of_library("botocore.exceptions", "NoCredentialsError"), False),
        (of_library("obstore.exceptions", "GenericError"), True),
        (of_obstore("400 Bad Request"), False),
        (of_obstore("429 Too Many Requests"), True),
        (of_obstore("503 Service Unavailable"), True),
        (of_library("obstore.exceptions", "NotFoundError"), False),
        (of_library("my_model", "ClientError"), False),
        (ValueError("bad"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_errors_that_may_pass(error, passing):
    assert is_passing(error) is passing


@pytest.mark.slow
@on_threads_and_cluster
def test_a_store_that_fails_for_a_while_changes_no_bit(place, tmp_path):
    errors = {"threads": ConnectionResetError("reset"), "cluster": TimeoutError()}
    error = errors["threads" if place is None else "cluster"]
    blocks = Blocks(tmp_path, range(0, N_BLOCKS, 3), 3, error)
    calm = Blocks(tmp_path / "calm")
    calm.folder.mkdir()
    answers = []
    for made in (calm, blocks):
        with dask_engine(made.data, PROBLEM.spec, client=place, retries=QUICK) as engine:
            answers.append(engine.ask(QUESTION))
    assert answers[0].gram.tobytes() == answers[1].gram.tobytes()
    assert answers[0].gradient.tobytes() == answers[1].gradient.tobytes()
    assert [len(blocks.tries(i)) for i in (0, 1, 3)] == [4, 1, 4]


@on_threads_and_cluster
def test_an_error_of_the_user_s_code_is_met_once(place, tmp_path):
    blocks = Blocks(tmp_path, [7], 99, ValueError("my own mistake"))
    with (
        pytest.raises(ValueError, match="my own mistake") as caught,
        dask_engine(blocks.data, PROBLEM.spec, client=place, retries=QUICK) as engine,
    ):
        engine.ask(QUESTION)
    assert len(blocks.tries(7)) == 1
    assert not isinstance(caught.value, ReadingError)
    assert "block (7,) of y, which is y[175:200]" in "".join(caught.value.__notes__)


def test_pieces_that_many_tasks_need_are_read_again():
    tries = []

    def once(block):
        tries.append(block)
        if len(tries) == 1:
            raise OSError("reset")
        return block

    x = da.from_array(PROBLEM.x, chunks=25)
    mean = x.map_blocks(once, dtype=float, meta=np.empty(0)).mean()
    with dask_engine(observe(x - mean, PROBLEM.y), PROBLEM.spec, retries=QUICK) as engine:
        assert engine.stream.shared_keys
        engine.ask(QUESTION)
    assert len(tries) == N_BLOCKS + 1


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", None])
def test_retries_that_are_no_number(value):
    with pytest.raises(InputError, match="retries"):
        fit(decays, np.ones(9), da.ones(9), retries=value)


@pytest.mark.slow
def test_a_fit_says_that_it_waits(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(reading, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(faces, "FILE_INTERVAL", 0.0)
    data = Blocks(tmp_path, [5], 1, OSError("reset by peer")).data
    fit(decays, PROBLEM.x, data.y, p0=[0.5], progress=True)
    (line,) = [r.getMessage() for r in caplog.records if "reset by peer" in r.getMessage()]
    assert "block (5,) of y, which is y[125:150], could not be read" in line
    assert "for the 1st time" in line
    assert "waiting 0 s for the store" in capsys.readouterr().err


@pytest.mark.cluster
def test_a_fit_hears_that_its_workers_wait(client, tmp_path):
    notes = []
    heard = threading.Event()

    def show(note):
        notes.append(note)
        heard.set()

    data = Blocks(tmp_path, [5], 1, OSError("reset")).data
    with shown_engine(data, show, client=client, retries=QUICK) as engine:
        engine.ask(QUESTION)
        assert heard.wait(60)
    assert notes == ["waiting 0 s for the store"]


def shown_engine(data, show, client=None, **options):
    """An engine whose notes are shown."""
    streaming = Streaming(make_stream(data), executor_of(client, lazy=False), **options)
    return DaskEngine(data, Kernels((PROBLEM.spec,)), streaming, None, show)


# What an error says


@on_threads_and_cluster
def test_an_error_of_reading_names_what_was_read(place, tmp_path):
    blocks = Blocks(tmp_path, [7], 99, OSError("no route to host"))
    with (
        pytest.raises(ReadingError) as caught,
        dask_engine(blocks.data, PROBLEM.spec, client=place, retries=QUICK) as engine,
    ):
        engine.ask(QUESTION)
    text = str(caught.value)
    assert "block (7,) of y, which is y[175:200], could not be read" in text
    assert "(OSError: no route to host), tried 4 times" in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@on_threads_and_cluster
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_chunk_is_named(place, damage, tmp_path):
    y = PROBLEM.y.reshape(50, 20)
    array = stored(tmp_path / "y.zarr", y, (10, 10), compressors=zarr.codecs.ZstdCodec())
    chunk = tmp_path / "y.zarr" / "c" / "3" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-5] if damage == "truncated" else b"\0\0" + whole[2:])
    x = PROBLEM.x.reshape(50, 20)
    with (
        pytest.raises(ReadingError, match="tried once") as caught,
        dask_engine(observe(x, array), PROBLEM.spec, client=place, retries=QUICK) as engine,
    ):
        engine.ask(QUESTION)
    text = str(caught.value)
    assert "block (3, 1) of y, which is y[30:40, 10:20]" in text
    assert "chunk c/3/1 of" in text
    assert f"file://{tmp_path}/y.zarr" in text


def test_a_chunk_below_a_slice_is_named(tmp_path):
    """The rows of a block are not where its chunk lies in the store."""
    array = stored(tmp_path / "a.zarr", PROBLEM.y, (100,), compressors=zarr.codecs.ZstdCodec())
    (tmp_path / "a.zarr" / "c" / "4").write_bytes(b"no zstd")
    y = da.from_array(array, chunks=100)[250:] * 2.0
    with (
        pytest.raises(ReadingError) as caught,
        dask_engine(observe(PROBLEM.x[250:], y), PROBLEM.spec, retries=QUICK) as engine,
    ):
        engine.ask(QUESTION)
    assert "block (2,) of y, which is y[150:250] (chunk c/4 of" in str(caught.value)


CANARY = "c4n4ryS3cret"


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://user:{CANARY}@host/data/c/0",
        f"https://bucket.host/c/0?X-Amz-Credential=a&X-Amz-Signature={CANARY} timed out",
        f"az://container/c/0?sv=2024&sig={CANARY}",
        f"{{'aws_secret_access_key': '{CANARY}', 'region': 'eu'}}",
        f"secret={CANARY}, endpoint=x",
        f"Authorization token: Bearer {CANARY}",
        f"account_key={CANARY}",
        f"password = {CANARY}",
        f"<Error><AWSAccessKeyId>{CANARY}</AWSAccessKeyId></Error>",
        f"<Error><Code>ExpiredToken</Code><Token-0>a/{CANARY}==</Token-0></Error>",
        f"<Error><StringToSign>AWS4\n{CANARY}\n{CANARY}</StringToSign>",
        f"<Error><SignatureProvided>{CANARY}",
    ],
)
def test_no_secret_is_told(text):
    told = without_secrets(text)
    assert CANARY not in told
    assert "***" in told


@pytest.mark.parametrize(
    "text", ["file:///data/y.zarr", "connection reset by peer", "chunk c/3/1 of s3://bucket/y"]
)
def test_what_is_no_secret_is_told(text):
    assert without_secrets(text) == text


def test_an_answer_of_s3_is_quoted_by_its_code_and_message():
    error = ValueError(
        "Server returned status code: 400 Bad Request: <?xml version='1.0'?>\n<Error><Code>"
        f"ExpiredToken</Code><Message>The token has expired.</Message><Token-0>{CANARY}</Token-0>"
        "</Error>\n\nDebug source:\nGeneric {\n store: 'S3' }"
    )
    told = "Server returned status code: 400 Bad Request: ExpiredToken, The token has expired."
    assert cause_of(error) == f"ValueError: {told}"


@pytest.mark.parametrize(
    ("cause", "refused"),
    [
        ("GenericError: status code: 400 Bad Request: ExpiredToken", True),
        ("PermissionDeniedError: c/0", True),
        ("PermissionError: [Errno 13] Permission denied: '/data/c/0'", True),
        ("RuntimeError: Zstd decompression error: invalid input data", False),
        ("TimeoutError: timed out", False),
    ],
)
def test_a_store_that_refuses_access_has_a_remedy_of_its_own(cause, refused):
    for failed in (reading_failed, series_not_read, maps_not_written):
        text = str(failed(Place(("y",), (1,)), cause, 1))
        assert ("whether the credentials have expired" in text) is refused
        assert "resume=True" in text or not refused


def test_no_secret_is_in_a_message_of_a_fit(tmp_path, caplog):
    cause = OSError(f"GET https://u:{CANARY}@host/c/0?X-Amz-Signature={CANARY} failed")
    cause.__cause__ = ValueError(f"token={CANARY}")
    blocks = Blocks(tmp_path, [7], 99, cause)
    with (
        pytest.raises(ReadingError) as caught,
        dask_engine(blocks.data, PROBLEM.spec, retries=QUICK) as engine,
    ):
        engine.ask(QUESTION)
    told = "".join(traceback.format_exception(caught.value))
    assert CANARY not in told + caplog.text
    assert "https://***@host" in told


# Passes that fail and are interrupted


# Tasks and futures of the shared cluster before a test, which other tests keep.
KEPT_BY_OTHERS: set[str] = set()


def tasks_on(client):
    """Tasks of fits that the scheduler has."""

    def of_fits(dask_scheduler):
        return [key for key in map(str, dask_scheduler.tasks) if key.startswith("('nlsq ")]

    return client.run_on_scheduler(of_fits)


@pytest.fixture(autouse=True)
def _kept_by_others(request):
    KEPT_BY_OTHERS.clear()
    if request.node.get_closest_marker("cluster") is not None:
        client = request.getfixturevalue("client")
        KEPT_BY_OTHERS.update(tasks_on(client), map(str, client.futures))


def left_on(client):
    """Tasks of a fit that the scheduler has, once it has taken the messages on the way."""
    for _ in range(300):
        left = sorted(set(tasks_on(client)) - KEPT_BY_OTHERS)
        if not left:
            break
        time.sleep(0.1)
    return left


def futures_left(client):
    """Futures of a fit that the client has."""
    return set(map(str, client.futures)) - KEPT_BY_OTHERS


def free_again(client):
    """Whether each worker's only thread takes a task."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    futures = [client.submit(abs, -1, workers=[w], pure=False) for w in workers]
    return [f.result(timeout=120) for f in futures] == [1] * len(workers)


def is_first(folder):
    """Whether no call before has asked, in any process."""
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.mark.cluster
def test_the_first_group_that_fails_ends_the_pass(client, tmp_path):
    """The first block fails; the others wait for a file that is made once the error is told."""
    told = tmp_path / "told"

    def meanwhile(_):
        if is_first(tmp_path):
            raise ValueError("bad block")
        while not told.exists():
            time.sleep(0.01)

    blocks = Blocks(tmp_path, meanwhile=meanwhile)
    with (
        pytest.raises(ValueError, match="bad block") as held,
        dask_engine(blocks.data, PROBLEM.spec, client=client) as engine,
    ):
        engine.ask(QUESTION)
    assert left_on(client) == []
    assert not futures_left(client)
    told.touch()
    assert held.tb is not None
    assert free_again(client)
    assert len(blocks.tries()) < N_BLOCKS / 2


def interrupted(done, total):
    if 0 < done < total:
        raise KeyboardInterrupt


@on_threads_and_cluster
def test_an_interrupt_ends_the_pass_and_leaves_nothing(place, tmp_path):
    open_before = set(signals._open)
    blocks = Blocks(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        dask_engine(
            blocks.data,
            PROBLEM.spec,
            client=place,
            progress=lambda _, done, total: interrupted(done, total),
        ) as engine,
    ):
        engine.ask(QUESTION)
    if place is not None:
        assert left_on(place) == []
        assert not futures_left(place)
        assert free_again(place)
    assert set(signals._open) == open_before
    before = len(blocks.tries())
    with dask_engine(blocks.data, PROBLEM.spec, client=place) as engine:
        sums = engine.ask(QUESTION)
    with dask_engine(observe(PROBLEM.x, da.from_array(PROBLEM.y)), PROBLEM.spec) as engine:
        expected = engine.ask(QUESTION)
    assert sums.n_points == 1000
    np.testing.assert_allclose(sums.gram, expected.gram, rtol=1e-13)
    assert before >= 1


@pytest.mark.cluster
def test_an_interrupt_while_tasks_are_sent_leaves_nothing(client, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    engine = dask_engine(Blocks(tmp_path).data, PROBLEM.spec, client=client)
    monkeypatch.setattr(client, "submit", stop)  # of the tree, after the groups
    with pytest.raises(KeyboardInterrupt), engine:
        engine.ask(QUESTION)
    assert left_on(client) == []
    monkeypatch.setattr(client, "get", stop)  # of what all groups share
    x = da.from_array(PROBLEM.x, chunks=25)
    with pytest.raises(KeyboardInterrupt):
        dask_engine(observe(x - x.mean(), PROBLEM.y), PROBLEM.spec, client=client)
    assert left_on(client) == []
    monkeypatch.undo()
    assert free_again(client)


def test_tasks_that_wait_end_with_the_fit_on_threads(tmp_path):
    waiting = threading.Event()

    def meanwhile(number):
        if number == N_BLOCKS - 1 and waiting.wait(60):
            raise ValueError("the end")

    blocks = Blocks(tmp_path, [0], 99, OSError("away"), meanwhile)
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
        engine = shown_engine(blocks.data, lambda _: waiting.set(), retries=LONG)
        with pytest.raises(ValueError, match="the end"), engine:
            engine.ask(QUESTION)
    # Leaving the pool waits for its threads.


@pytest.mark.cluster
def test_tasks_that_wait_end_with_the_fit_on_a_cluster(client, tmp_path):
    def meanwhile(_):
        raise OSError("away") if is_first(tmp_path) else ValueError("the end")

    blocks = Blocks(tmp_path, meanwhile=meanwhile)
    with (
        pytest.raises(ValueError, match="the end"),
        dask_engine(blocks.data, PROBLEM.spec, client=client, retries=LONG) as engine,
    ):
        engine.ask(QUESTION)
    assert left_on(client) == []
    assert free_again(client)
