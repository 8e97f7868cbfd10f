"""A fit has the same bits wherever it runs, and after a worker was lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from distributed import Client, LocalCluster

from nlsq_dask import fit

N_ROWS = 150_000


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def arrays(upstream=None):
    """Ragged chunks, whose cuts do not agree, of the same numbers each time."""
    rng = np.random.default_rng(11)
    x = rng.uniform(0, 4, N_ROWS)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + rng.normal(0, 0.1, N_ROWS)
    cuts = np.sort(rng.integers(0, N_ROWS, 60))
    chunks = tuple(int(n) for n in np.diff([0, *cuts, N_ROWS]))
    x, y = da.from_array(x, chunks=(chunks,)), da.from_array(y, chunks=4001)
    if upstream is not None:
        y = y.map_blocks(upstream, dtype=y.dtype, meta=np.empty(0))
    return x, y


def identity(block):
    return block


#: Every pass reads all rows; or a sample is fitted first, and rows stay in memory.
EVERY_PASS = {"pilot": False, "cache": False}
DEFAULTS = {}


def run(client=None, options=EVERY_PASS):
    x, y = arrays(identity)
    return fit(decay, x, y, p0=[1, 1, 0], sigma=0.1, client=client, **options)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def bits(result):
    return (
        result.popt.tobytes(),
        result.pcov.tobytes(),
        result.cost,
        result.optimality,
        [record.cost for record in result.history],
    )


def alone(options):
    with dask.config.set(scheduler="synchronous"):
        result = run(options=options)
    assert result.success
    return result


@pytest.fixture(scope="module")
def expected():
    result = alone(EVERY_PASS)
    assert result.n_passes > 3
    assert result.pilot is None
    return bits(result)


@pytest.fixture(scope="module")
def expected_by_default():
    result = alone(DEFAULTS)
    assert result.pilot.used
    return bits(result)


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(expected, expected_by_default, threads):
    with dask.config.set(scheduler="threads", num_workers=threads):
        assert bits(run()) == expected
        assert bits(run(options=DEFAULTS)) == expected_by_default


@pytest.mark.cluster
def test_a_cluster_of_two_processes(client, expected, expected_by_default):
    assert bits(run(client)) == expected
    assert bits(run(client, DEFAULTS)) == expected_by_default


@pytest.mark.thorough
@pytest.mark.cluster
def test_clusters_of_one_two_and_four_processes(expected, expected_by_default):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for n_workers in (1, 2, 4):
            cluster.scale(n_workers)
            client.wait_for_workers(n_workers)
            assert bits(run(client)) == expected
            assert bits(run(client, DEFAULTS)) == expected_by_default
            used = client.run(lambda: "nlsq_dask.kernels.sums" in __import__("sys").modules)
            assert len(used) == n_workers
            assert all(used.values())


@pytest.mark.cluster
def test_a_cluster_of_threads(expected, expected_by_default):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert bits(run(client)) == expected
        assert bits(run(client, DEFAULTS)) == expected_by_default


@pytest.mark.every(2)
@pytest.mark.cluster
@pytest.mark.parametrize("persisted", [False, True], ids=["lazy", "persisted"])
def test_a_worker_that_is_killed_in_mid_pass(expected, tmp_path, persisted):
    """Kill the worker that says first that it is at work on a later pass."""
    log = tmp_path / "log"

    def slow(block):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.005)
        return block

    def lines():
        return log.read_text().splitlines() if log.exists() else []

    results = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        before = client.run(os.getpid)
        x, y = arrays(slow)
        n_chunks = y.npartitions
        wait_for = n_chunks + n_chunks // 2
        if persisted:
            (y,) = client.persist([y])
            wait_for = 0

        def work():
            options = {"sigma": 0.1, "client": client, **EVERY_PASS}
            results.append(fit(decay, x, y, p0=[1, 1, 0], **options))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        if persisted:
            wait_until(lambda: any("pass 2" in str(key) for key in list(cluster.scheduler.tasks)))
        wait_until(lambda: len(lines()) >= wait_for)
        assert thread.is_alive()
        victim = int(lines()[-1])
        os.kill(victim, signal.SIGKILL)
        thread.join()
        after = client.run(os.getpid)

    assert victim in before.values()
    assert victim not in after.values()
    assert bits(results[0]) == expected
    if not persisted:
        assert len(lines()) > results[0].n_passes * n_chunks  # some chunks were read again
