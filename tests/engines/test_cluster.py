"""The streaming tier on worker processes."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import ClassVar

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from dask.utils import key_split

from nlsq_dask import InputError, ModelError, fit, fit_each
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.reading import Retries
from nlsq_dask.engines.dask.scheduler import active_client
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.sums import block_compilations
from nlsq_dask.user_model.model import prepare_model
from tests.engines.conformance import CostlyEngineConformance
from tests.engines.test_dask import chunked_problem, in_dask_arrays
from tests.support.engines import dask_engine
from tests.support.problems import decays, exact_sums, plain_problem

pytestmark = pytest.mark.cluster


class TestCluster(CostlyEngineConformance):
    # Dask warns where it sends more than 10 MB from memory.
    many_rows: ClassVar = 300_001

    @pytest.fixture(autouse=True)
    def connected(self, client):
        self.client = client

    def engine(self, spec, x, y, sigma=None, layout=0):
        return dask_engine(in_dask_arrays(x, y, sigma, layout), spec, client=self.client)


@contextmanager
def watching(client):
    """Keep the keys of tasks that change their state, by the new state."""

    def watch(dask_scheduler):
        from distributed.diagnostics.plugin import SchedulerPlugin

        class Watch(SchedulerPlugin):
            name = "nlsq-test-watch"

            def __init__(self):
                self.keys = defaultdict(set)

            def transition(self, key, start, finish, *args, **kwargs):
                self.keys[finish].add(key)

        dask_scheduler.add_plugin(Watch())

    client.run_on_scheduler(watch)
    try:
        yield
    finally:
        client.run_on_scheduler(
            lambda dask_scheduler: dask_scheduler.remove_plugin("nlsq-test-watch")
        )


def test_task_names_say_which_pass_they_belong_to(cluster, client):
    problem, data = chunked_problem()
    before = set(cluster.scheduler.task_prefixes)
    seen = {}
    with watching(client), dask_engine(data, problem.spec, client=client) as engine:
        for number in (1, 2, 3):
            client.run_on_scheduler(clear_watched)
            engine.ask(SumsAt(problem.params, problem.basis))
            # Tasks of the pass before are forgotten meanwhile.
            seen[number] = client.run_on_scheduler(watched)["processing"]

    prefixes = set(cluster.scheduler.task_prefixes) - before
    passes = {f"nlsq pass {number}" for number in (1, 2, 3)}
    assert prefixes <= {"nlsq setup", "nlsq reduce"} | passes
    for number, keys in seen.items():
        by_name = Counter(key_split(key) for key in keys)
        assert by_name.pop("nlsq setup", 0) <= len(engine.stream.groups) + 1
        assert set(by_name) == {f"nlsq pass {number}", "nlsq reduce"}
        assert by_name[f"nlsq pass {number}"] == len(engine.stream.groups)
    fits = {span.name for span in cluster.scheduler.extensions["spans"].spans.values()}
    assert {("fit of decays", f"pass {number}") for number in seen} <= fits


def test_tasks_of_a_pass_wait_for_the_next_free_worker(cluster, client):
    """A task that is sent at once waits for its worker, also while another worker is idle."""
    problem, data = chunked_problem()
    with watching(client), dask_engine(data, problem.spec, client=client) as engine:
        for _ in range(2):  # in the first pass tasks wait for their groups, which come one by one
            engine.ask(SumsAt(problem.params, problem.basis))
        queued = client.run_on_scheduler(watched)["queued"]
    waiting = [key for key in queued if key_split(key) == "nlsq pass 2"]
    share = dask.config.get("distributed.scheduler.worker-saturation")
    sent = sum(math.ceil(share * worker.nthreads) for worker in cluster.scheduler.workers.values())
    assert len(engine.stream.groups) > sent
    assert len(waiting) >= len(engine.stream.groups) - sent


def is_of_a_fit(key):
    return key_split(key).startswith("nlsq ")


def clear_watched(dask_scheduler):
    dask_scheduler.plugins["nlsq-test-watch"].keys.clear()


def watched(dask_scheduler):
    keys = dask_scheduler.plugins["nlsq-test-watch"].keys
    return defaultdict(set, {state: set(found) for state, found in keys.items()})


def test_progress_reaches_all_blocks(client):
    problem, data = chunked_problem()
    calls = []
    with dask_engine(
        data, problem.spec, client=client, progress=lambda *args: calls.append(args)
    ) as engine:
        engine.ask(SumsAt(problem.params, problem.basis))
    done = [d for _, d, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (1, 60, 60)


def test_the_scheduler_forgets_a_fit_that_is_over(cluster, client):
    problem, data = chunked_problem()
    with dask_engine(data, problem.spec, client=client) as engine:
        engine.ask(SumsAt(problem.params, problem.basis))
        assert any(is_of_a_fit(key) for key in cluster.scheduler.tasks)
    del engine

    client.run_on_scheduler(wait_until_empty)
    assert not [key for key in cluster.scheduler.tasks if is_of_a_fit(key)]


def test_the_scheduler_forgets_a_fit_that_failed_while_its_traceback_is_held(cluster, client):
    def fail(block):
        raise OSError("the disk is gone")

    x = da.arange(100.0, chunks=10)
    y = x.map_blocks(fail, dtype=float, meta=np.empty(0))
    problem = plain_problem(100, p=2)
    data = observe(x, y, None)
    with (
        pytest.raises(OSError, match="the disk is gone") as held,
        dask_engine(data, problem.spec, client=client, retries=Retries(0)) as engine,
    ):
        engine.ask(SumsAt(problem.params, problem.basis))

    assert held.tb is not None
    client.run_on_scheduler(wait_until_empty)
    assert not [key for key in cluster.scheduler.tasks if is_of_a_fit(key)]


async def wait_until_empty(dask_scheduler):
    import asyncio

    for _ in range(100):
        if not dask_scheduler.tasks:
            return
        await asyncio.sleep(0.05)


def test_one_compilation_in_each_worker_process(client):
    factor = 1.0 + 2.0**-40  # a model of its own, which no other test compiled

    def model(x, a, b):
        return jnp.exp(factor * a * x) + b

    rng = np.random.default_rng(5)
    x = rng.normal(size=50_000)
    chunks = tuple(int(n) for n in np.diff([0, *np.sort(rng.integers(0, 50_000, 70)), 50_000]))
    data = (da.from_array(x, chunks=(chunks,)), da.from_array(np.exp(x), chunks=991))
    result = fit(model, *data, p0=[0.3, 1], client=client)

    assert result.n_passes > 3
    counts = client.run(block_compilations, prepare_model(model, 2, "single", 1))
    assert len(counts) == 2
    assert max(counts.values()) == 1
    assert set(counts.values()) <= {0, 1}


def test_persisted_arrays_are_used_where_they_are(client):
    problem = plain_problem(20_000, p=2)
    x, y = client.persist([da.from_array(a, chunks=1000) for a in (problem.x, problem.y)])
    data = observe(2 * (x / 2), y, problem.sigma)
    with dask_engine(data, problem.spec, client=client) as engine:
        for _ in range(2):
            sums = engine.ask(SumsAt(problem.params, problem.basis))
            exact_sums(problem).assert_equal(sums, 20_000)


def test_an_array_upstream_that_all_groups_need(client):
    problem = plain_problem(20_000, p=2)
    x = da.from_array(problem.x, chunks=500)
    shifted = x - x.mean()
    moved = type(problem)(
        problem.x - problem.x.mean(), problem.y, problem.sigma, problem.params, problem.basis
    )
    data = observe(shifted, da.from_array(problem.y, chunks=700), problem.sigma)
    with dask_engine(data, problem.spec, client=client) as engine:
        assert engine.stream.shared_keys
        for _ in range(2):
            sums = engine.ask(SumsAt(problem.params, problem.basis))
            exact_sums(moved).assert_equal(sums, 20_000)


def test_the_active_client_is_found_unless_dask_is_told_otherwise(client):
    assert active_client() is None
    with client.as_current():
        assert active_client() is client
        with dask.config.set(scheduler="threads"):
            assert active_client() is None


def test_a_fit_runs_on_the_active_client(cluster, client):
    _, data = chunked_problem()
    count = sum(p.state_counts["memory"] for p in cluster.scheduler.task_prefixes.values())
    with client.as_current():
        fit(decays, data.coords[0], data.y, p0=[0.5, 0.6], sigma=data.sigma)
    after = sum(p.state_counts["memory"] for p in cluster.scheduler.task_prefixes.values())
    assert after > count


@pytest.mark.parametrize("persisted", [False, True], ids=["lazy", "persisted"])
def test_bad_values_are_found_where_the_data_are(client, persisted):
    problem, data = chunked_problem()
    y = da.where(da.arange(60_000, chunks=1000) == 41_234, np.nan, data.y)
    if persisted:
        y = client.persist(y)
    with pytest.raises(InputError, match="y has 1 value that is NaN"):
        fit(decays, problem.x, y, p0=[0.5, 0.6], client=client)


def test_a_model_that_cannot_be_sent_is_refused(client):
    lock = threading.Lock()

    def guarded(x, a):
        with lock:
            return a * x

    x = da.arange(100, chunks=10)
    with pytest.raises(ModelError, match="guarded cannot be pickled"):
        fit(guarded, x, 3 * x, client=client)


def test_an_error_upstream_reaches_the_user(client):
    def fail(block):
        raise OSError("the disk is gone")

    y = da.ones(100, chunks=10).map_blocks(fail, dtype=float, meta=np.empty(0))
    with pytest.raises(OSError, match="the disk is gone"):
        fit(decays, np.ones(100), y, p0=[1], client=client, retries=0)


def test_the_process_that_fits_keeps_its_settings(client):
    before = (dict(os.environ), dict(dask.config.config), dask.base.get_scheduler())
    _, data = chunked_problem(3000)
    fit(decays, data.coords[0], data.y, p0=[0.5, 0.6], client=client)
    assert (dict(os.environ), dict(dask.config.config), dask.base.get_scheduler()) == before


def fitted_in_a_task(amplitude, folder):
    """A fit of lazy data, and one of many series, which compute on the cluster of their task."""
    x = np.linspace(0.0, 4.0, 40)
    y = da.from_array(amplitude * np.exp(-x), chunks=10)
    many = da.stack([y] * 2, axis=1).rechunk((40, 1))
    maps = fit_each(decay_to_zero, x, many, {"a": 1.0, "b": 1.5}, store=folder / f"{amplitude}")
    popt = fit(decay_to_zero, da.from_array(x, chunks=10), y, [1.0, 1.5]).popt
    return popt.round(6).tolist(), maps["a"].compute().round(6).tolist()


def decay_to_zero(x, a, b):
    return a * jnp.exp(-b * x)


@pytest.mark.slow
def test_fits_in_all_threads_of_a_cluster(client, tmp_path):
    amplitudes = [2.0, 3.0, 4.0]  # more fits than threads
    futures = client.map(fitted_in_a_task, amplitudes, folder=tmp_path)
    with cancelled_at_the_end(client, futures):
        found = [future.result(timeout=300) for future in futures]
    assert found == [([a, 1.0], [a, a]) for a in amplitudes]


@contextmanager
def cancelled_at_the_end(client, futures):
    """Let no task run on, so that the cluster serves the next tests."""
    try:
        yield
    finally:
        client.cancel(futures, force=True)
