"""Workers that are paused, gone, or killed by a block."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from dataclasses import replace

import dask
import dask.array as da
import pytest
from distributed import Client, LocalCluster

from nlsq_dask import (
    ClusterError,
    ClusterWarning,
    InputError,
    InputTypeError,
    MissingDataWarning,
    fit,
    plan,
)
from nlsq_dask.engines.dask import cluster, watch
from nlsq_dask.engines.dask.ask_workers import ask_workers
from nlsq_dask.engines.dask.cluster import check_versions
from nlsq_dask.io.sources import observe
from tests.engines.test_faults import PROBLEM, QUESTION, Blocks, left_on, shown_engine
from tests.support.engines import dask_engine
from tests.support.problems import decays

pytestmark = pytest.mark.cluster


@contextmanager
def workers_here(n_workers, **options):
    """A cluster in this process."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            **options,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def quick(monkeypatch):
    """Waits are told and ended soon."""
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.1)
    with dask.config.set({watch.WAIT_OPTION: "2s"}):
        yield


def pause_at(fraction):
    """Let workers pause at a part of their memory, as they do by themselves."""

    def change(dask_worker):
        dask_worker.memory_manager.memory_pause_fraction = fraction

    return change


def paused(client):
    return client.run(lambda dask_worker: dask_worker.status.name == "paused").values()


def wait_until_paused(client):
    client.run(pause_at(1e-9))
    while not all(paused(client)):
        pass


@pytest.mark.usefixtures("quick")
def test_workers_that_are_all_paused_end_the_fit(tmp_path, caplog):
    with workers_here(1) as client:
        wait_until_paused(client)
        with (
            pytest.raises(ClusterError, match="1 of 1 workers of the cluster are paused") as caught,
            dask_engine(Blocks(tmp_path).data, PROBLEM.spec, client=client) as engine,
        ):
            engine.ask(QUESTION)
        assert left_on(client) == []
    assert watch.WAIT_OPTION in str(caught.value)
    assert "no group of blocks was finished in a while" in caplog.text


@pytest.mark.usefixtures("quick")
def test_workers_that_will_pause_are_told_before_the_start():
    x = da.arange(1000.0, chunks=100)
    with workers_here(1, memory_limit=450_000_000) as client:
        planned = plan(decays, x, x, p0=[1], client=client, time=False)
        wait_until_paused(client)
        with (
            pytest.warns(ClusterWarning, match="Dask pauses a worker at 360 MB"),
            pytest.raises(ClusterError, match="are paused"),
        ):
            fit(decays, x, x, p0=[1], client=client)
    (note,) = [text for text in planned.warnings if "pauses" in text]
    assert "a worker with 450 MB of memory may take" in note
    assert "400 MB are for the program itself" in note


@pytest.mark.usefixtures("quick")
def test_a_fit_goes_on_when_a_worker_runs_again(tmp_path):
    notes = []
    with workers_here(1) as client:
        wait_until_paused(client)

        def show(note):
            notes.append(note)
            client.run(pause_at(0.99))

        with shown_engine(Blocks(tmp_path).data, show, client=client) as engine:
            assert engine.ask(QUESTION).n_points == 1000
    assert notes == ["waiting, 1 of 1 workers are paused"]


@pytest.mark.usefixtures("quick")
def test_a_cluster_without_workers_ends_the_fit():
    with (
        workers_here(0) as client,
        pytest.raises(ClusterError, match=r"the cluster has no worker.*cluster\.scale"),
    ):
        fit(decays, da.ones(100, chunks=10), da.ones(100, chunks=10), p0=[1], client=client)


def test_a_worker_that_goes_for_good(tmp_path):
    """The rest goes on, also with the rows that the worker kept."""
    with workers_here(2) as client:
        cluster = client.cluster
        gone = []

        def leave(_, done, total):
            if not gone and done < total:
                gone.append(next(iter(cluster.workers.values())))
                cluster.sync(gone[0].close)

        data = Blocks(tmp_path).data
        with dask_engine(data, PROBLEM.spec, client=client, progress=leave, cache=True) as engine:
            sums = [engine.ask(QUESTION) for _ in range(2)]
        assert len(client.nthreads()) == 1
    for each in sums:
        assert each.n_points == 1000
        assert each.gram.tobytes() == sums[0].gram.tobytes()


def test_a_fit_whose_client_is_closed_says_so(tmp_path):
    with workers_here(1) as client:
        data = Blocks(tmp_path).data
        with (
            pytest.raises(ClusterError, match="the cluster has lost the tasks of this fit"),
            dask_engine(
                data, PROBLEM.spec, client=client, progress=lambda *_: client.close()
            ) as engine,
        ):
            engine.ask(QUESTION)


def fit_with(client):
    return fit(decays, da.ones(100, chunks=10), da.ones(100, chunks=10), p0=[1], client=client)


def test_clients_that_cannot_run_a_fit():
    with workers_here(1) as client:
        with pytest.raises(InputTypeError, match="is a cluster: pass a client of it"):
            fit_with(client.cluster)

        def in_the_loop():
            with pytest.raises(InputError, match="asynchronous"):
                fit_with(client)
            return True

        async def run():
            return in_the_loop()

        assert client.sync(run)

        async def with_another():
            async with Client(client.scheduler.address, asynchronous=True):
                with pytest.raises(InputError, match="asynchronous"):
                    fit_with(None)
            return True

        assert asyncio.run(with_another())
        with client.as_current():
            client.close()
            with pytest.raises(InputError, match="the client is closed"):
                fit_with(client)


@pytest.mark.parametrize(
    ("package", "there", "told"),
    [
        ("nlsq_dask:__version__", ModuleNotFoundError("nlsq_dask"), "nlsq_dask .* has none"),
        ("nlsq_dask:__version__", "0.0.1", "nlsq_dask .* has 0.0.1"),
        ("jax", "0.0.1", "jax .* has 0.0.1"),
        ("jax", OSError("the worker has left"), None),
    ],
)
def test_workers_with_other_versions(package, there, told, monkeypatch):
    def answered(client, function, *args, workers):
        found = ask_workers(client, function, *args, workers=workers)
        return dict.fromkeys(found, there) if args == (package,) else found

    monkeypatch.setattr(cluster, "ask_workers", answered)
    with workers_here(1) as client:
        if told is None:
            assert check_versions(client) is None
            return
        with pytest.raises(InputError, match=told):
            fit_with(client)


@contextmanager
def worker_processes():
    with (
        # On a busy machine a worker takes longer to come back than a LocalCluster waits.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "600 s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def killing(folder, times):
    """Blocks of which the seventh kills its worker so many times."""

    def meanwhile(number):
        if number == 7 and len(list(folder.glob("7-*"))) <= times:
            os._exit(1)

    return Blocks(folder, meanwhile=meanwhile)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_block_that_kills_its_workers(tmp_path):
    """After three deaths the fit ends and names it; after two it may yet be read, told or not."""
    (tmp_path / "twice").mkdir()
    with worker_processes() as client:
        always = killing(tmp_path, 99)
        with (
            pytest.raises(ClusterError, match="3 workers died") as caught,
            dask_engine(always.data, PROBLEM.spec, client=client) as engine,
        ):
            engine.ask(QUESTION)
        assert left_on(client) == []
        twice = killing(tmp_path / "twice", 2)
        with dask_engine(twice.data, PROBLEM.spec, client=client) as engine:
            sums = engine.ask(QUESTION)
    assert "block (7,) of y, which is y[175:200]" in str(caught.value)
    # Dask gives a group up at the fourth death, where all come within a second.
    assert len(always.tries(7)) in (3, 4)
    assert len(twice.tries(7)) == 3
    with dask_engine(observe(PROBLEM.x, da.from_array(PROBLEM.y, 25)), PROBLEM.spec) as engine:
        assert sums.gram.tobytes() == engine.ask(QUESTION).gram.tobytes()


@pytest.mark.slow
@pytest.mark.thorough
def test_a_block_that_kills_its_workers_is_left_out(tmp_path):
    with worker_processes() as client:
        always = killing(tmp_path, 99)
        with dask_engine(always.data, PROBLEM.spec, client=client, omits=True) as engine:
            with pytest.warns(MissingDataWarning, match=r"block \(7,\) .* workers died"):
                sums = engine.ask(QUESTION)
            again = engine.ask(QUESTION)
            assert engine.omissions.all == {(7,)}
    assert (sums.n_points, sums.n_skipped) == (975, 25)
    deaths = len(always.tries(7))
    assert deaths in (3, 4, 5)
    data = observe(PROBLEM.x, da.from_array(PROBLEM.y, 25))
    with dask_engine(replace(data, omitted=frozenset({(7,)})), PROBLEM.spec) as engine:
        expected = engine.ask(QUESTION).gram.tobytes()
    assert sums.gram.tobytes() == again.gram.tobytes() == expected


def test_workers_that_have_left_are_not_waited_for():
    """``Client.run`` would try to connect to the address that is gone for ten minutes."""
    patient = {"distributed.comm.timeouts.connect": "600s"}
    with dask.config.set(patient), workers_here(2) as client:
        here = sorted(client.nthreads())
        gone = here[0].rpartition(":")[0] + ":1"
        told = ask_workers(client, abs, -3, workers=[*here, gone])
        assert told == dict.fromkeys(here, 3)
        failed = ask_workers(client, abs, "x", workers=here)
        assert [type(error) for error in failed.values()] == [TypeError, TypeError]
