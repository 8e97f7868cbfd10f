"""What a fit is said to cost, against what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from numcodecs import Delta

from nlsq_dask import FitPlan, InputError, fit, plan
from tests.support.counting_store import stored

N = 120_000
T = np.linspace(0, 4, N)
RNG = np.random.default_rng(3)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * RNG.standard_normal(N)
P0 = [1.0, 1.0, 0.0]
START = [2.0, 1.0, 0.3]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def surface(x, a, b, c):
    u, v = x
    return a * jnp.exp(-b * u) + c * v


@pytest.fixture(autouse=True)
def quiet_threads():
    with dask.config.set(num_workers=2):
        yield


class Disk:
    """Arrays in counting stores."""

    def __init__(self, path):
        self.path, self.arrays = path, []

    def __call__(self, values, chunks):
        array = stored(self.path / str(len(self.arrays)), values, chunks)
        self.arrays.append(array)
        return array

    @property
    def bytes_read(self):
        return sum(array.store.bytes_read for array in self.arrays)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


# The same rows, stored and read in different ways.


def alike(disk):
    return disk(T, 6000), disk(Y, 6000)


def unlike(disk):
    return disk(T, 4000), disk(Y, 6500)


def dask_cuts_zarr(disk):
    x, y = disk(T, 6000), disk(Y, 4000)
    return da.from_zarr(x, chunks=2500), da.from_array(y, chunks=1000)


def dask_joins_zarr(disk):
    return da.from_array(disk(T, 1000), chunks=9000), da.from_zarr(disk(Y, 3000), chunks=9000)


def derived(disk):
    x = da.from_zarr(disk(T, 5000))
    return x, 2.5 * da.exp(-1.3 * x) + 0.5 + 0.01 * da.sin(1e4 * x)


def rechunked(disk):
    return da.from_zarr(disk(T, 4000)).rechunk(9000), da.from_zarr(disk(Y, 9000))


def x_in_memory(disk):
    return T, disk(Y, 5500)


def coarse_and_fine(disk):
    return disk(T, 12_000), disk(Y, 500)


def one_large_chunk(disk):
    return disk(T, N), disk(Y, 3000)


LAYOUTS = [
    alike,
    unlike,
    dask_cuts_zarr,
    dask_joins_zarr,
    derived,
    rechunked,
    x_in_memory,
    coarse_and_fine,
    one_large_chunk,
]


def bytes_of(planned, n_passes):
    """Bytes that a fit of so many passes was planned to read."""
    return replace(planned, passes=(n_passes, n_passes)).total_bytes[0]


@pytest.mark.slow
@pytest.mark.every(5)
@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("pilot", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bytes_of_a_fit_are_those_that_were_planned(layout, pilot, cache, disk):
    x, y = layout(disk)
    options = {"p0": START, "pilot": pilot, "cache": cache}
    planned = plan(decay, x, y, **options, time=False)
    assert disk.bytes_read == 0
    result = fit(decay, x, y, **options, progress=False)
    assert disk.bytes_read == bytes_of(planned, result.n_passes)
    assert planned.kept == (cache == "auto")
    assert (planned.bytes_per_later_pass == 0) == (cache == "auto")
    assert planned.pilot == pilot == (planned.pilot_bytes > 0)
    assert planned.total_bytes[0] <= disk.bytes_read <= planned.total_bytes[1]
    assert (planned.rows, planned.params) == (N, 3)


@pytest.mark.slow
def test_broadcast_coordinates_of_a_cube_are_counted_as_they_are_read(disk):
    u, v = np.linspace(0, 4, 300), np.linspace(0, 1, 500)
    y = 2 * np.exp(-u[:, None]) + 0.5 * v + 0.01 * RNG.standard_normal((300, 500))
    x = (disk(u[:, None], (50, 1)), disk(v, 100))
    y = disk(y, (70, 90))
    for pilot in (True, False):
        before = disk.bytes_read
        planned = plan(surface, x, y, p0=[1, 1, 1], pilot=pilot, time=False)
        result = fit(surface, x, y, p0=[1, 1, 1], pilot=pilot, progress=False)
        # Coordinates, of a few kB here, may be read by each task that needs them.
        read = bytes_of(planned, result.n_passes)
        assert disk.bytes_read - before == pytest.approx(read, rel=0.03)


@pytest.mark.slow
def test_rows_are_kept_as_far_as_the_memory_budget_goes(disk):
    x, y = alike(disk)
    least = plan(decay, x, y, p0=START, cache=False, memory_limit_gb=0.15, time=False).memory_bytes
    shares = []
    for budget in np.linspace(least, least + 18e6, 10):
        before = disk.bytes_read
        options = {"p0": START, "cache": True, "memory_limit_gb": budget / 0.75e9}
        planned = plan(decay, x, y, **options, time=False)
        assert planned.memory_bytes <= budget
        result = fit(decay, x, y, **options, progress=False)
        assert disk.bytes_read - before == bytes_of(planned, result.n_passes)
        shares.append(planned.kept)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len(set(shares)) > 3


@pytest.mark.parametrize("chunk", [10_000, 100_000])
@pytest.mark.parametrize("memory_limit_gb", [0.25, 0.3, 0.4])
def test_what_fits_into_the_budget_is_kept(memory_limit_gb, chunk):
    x, y = (da.random.random(1_000_000, chunks=chunk) for _ in "xy")
    options = {"p0": START, "memory_limit_gb": memory_limit_gb, "time": False}
    planned = plan(decay, x, y, cache=True, **options)
    assert planned.kept == 1
    assert planned.memory_bytes <= 1e9 * planned.budget.threshold_gb


def test_rows_that_are_read_once_are_not_kept(disk):
    x, y = alike(disk)
    assert plan(decay, x, y, p0=START, max_nfev=1, cache=True, time=False).kept == 0
    # Nor are those that lie in memory already.
    x, y = (da.from_array(a, chunks=6000) for a in (T, Y))
    assert plan(decay, x, y, p0=START, cache=True, time=False).kept == 0


@pytest.mark.parametrize("layout", [alike, dask_joins_zarr])
def test_timing_reads_no_more_than_a_quarter_and_a_task(layout, disk):
    x, y = layout(disk)
    planned = plan(decay, x, y, p0=P0)
    assert 0 < disk.bytes_read <= planned.bytes_per_pass / 4 + planned.bytes_per_pass / 16
    assert 0 < planned.timed_rows <= N / 4
    assert planned.pass_seconds > 0
    assert planned.compile_seconds > 0
    few, many = planned.total_seconds
    assert planned.pass_seconds < few < many
    assert 0 < planned.later_pass_seconds < planned.pass_seconds
    unkept = plan(decay, x, y, p0=P0, cache=False)
    assert unkept.later_pass_seconds == unkept.pass_seconds
    assert unkept.total_seconds[0] >= 2 * unkept.pass_seconds


def test_an_untimed_plan_knows_no_times(disk):
    planned = plan(decay, *alike(disk), p0=P0, time=False)
    times = planned.compile_seconds, planned.pass_seconds, planned.total_seconds
    assert times == (None, None, None)
    assert planned.timed_rows == 0
    assert "time=True" in str(planned)


@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
def test_arrays_in_memory_are_timed_where_it_is_asked_for(strategy):
    planned = plan(decay, T, Y, p0=P0, strategy=strategy)
    assert planned.pass_seconds is None
    assert planned.strategy == strategy
    assert planned.data_bytes == planned.bytes_per_pass == 16 * N
    timed = plan(decay, T, Y, p0=P0, strategy=strategy, time=True)
    assert timed.pass_seconds > 0
    assert timed.blocks == planned.blocks >= timed.groups


@pytest.mark.slow
def test_a_model_that_needs_all_rows_is_planned_and_timed():
    def scaled(x, a):
        return a * x / jnp.sum(x)

    planned = plan(scaled, T[:500], Y[:500], p0=[1.0], time=True)
    assert (planned.strategy, planned.blocks, planned.pilot) == ("standard", 1, False)
    assert planned.timed_rows == 500


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [None, 5000])
@pytest.mark.parametrize("pilot", [True, False])
@pytest.mark.parametrize(
    ("model", "truth", "p0"),
    [
        (decay, (2.5, 1.3, 0.5), P0),
        (lambda x, a, m, s: a * jnp.exp(-(((x - m) / s) ** 2)), (3, 1.5, 0.4), [2, 1.3, 0.6]),
        (lambda x, a, b: a * x / (b + x), (2.0, 0.7), [1, 1]),
    ],
)
def test_most_fits_take_as_many_passes_as_planned(model, truth, p0, pilot, chunks):
    y = np.asarray(model(T, *truth)) + 0.05 * RNG.standard_normal(N)
    x, y = (a if chunks is None else da.from_array(a, chunks=chunks) for a in (T, y))
    planned = plan(model, x, y, p0=p0, pilot=pilot, time=False)
    few, many = planned.passes
    assert few <= fit(model, x, y, p0=p0, pilot=pilot, progress=False).n_passes <= many


def test_fewer_passes_where_fewer_are_allowed():
    assert plan(decay, T, Y, p0=P0, pilot=False, max_nfev=3).passes == (3, 3)
    assert plan(decay, T, Y, p0=P0, n_starts=5).passes[1] > plan(decay, T, Y, p0=P0).passes[1]


MEMORY = """
import sys, threading
import psutil
import dask, dask.array as da, jax.numpy as jnp, numpy as np
from nlsq_dask import fit, plan

def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c

process, sizes, ended = psutil.Process(), [], threading.Event()

def watch():
    while not ended.wait(0.002):
        sizes.append(process.memory_info().rss)

strategy, chunk = sys.argv[1], 1_000_000
with dask.config.set(num_workers=2):
    if strategy == "streaming":
        x = da.linspace(0, 4, 12 * chunk, chunks=chunk)
        y = 2.5 * da.exp(-1.3 * x) + 0.5
    else:
        x = np.linspace(0, 4, 4 * chunk)
        y = 2.5 * np.exp(-1.3 * x) + 0.5
    planned = plan(decay, x, y, p0=[1, 1, 0], strategy=strategy, time=False)
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    fit(decay, x, y, p0=[1, 1, 0], strategy=strategy, progress=False)
    ended.set()
    watcher.join()
    print(planned.memory_bytes, max(sizes) - before)
"""


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
def test_a_fit_takes_no_more_memory_than_planned(strategy):
    program = f"import sys; sys.path[:] = {sys.path!r}\n{MEMORY}"
    run = subprocess.run(
        [sys.executable, "-c", program, strategy], capture_output=True, text=True, check=True
    )
    planned, taken = map(int, run.stdout.split())
    assert 10e6 < taken < planned < 40 * taken


# The same arguments as those of a fit


def test_a_dry_run_is_a_plan(disk):
    x, y = alike(disk)
    options = {"loss": "huber", "seed": 2, "memory_limit_gb": 2}  # not what is free at the moment
    planned = plan(decay, x, y, P0, time=False, **options)
    assert isinstance(planned, FitPlan)
    assert fit(decay, x, y, P0, dry_run="untimed", **options) == planned
    assert disk.bytes_read == 0
    assert fit(decay, x, y, P0, dry_run=True).pass_seconds > 0
    assert fit(decay, T, Y, P0, dry_run=True).pass_seconds is None
    assert fit(decay, T, Y, P0, dry_run="timed").pass_seconds > 0


def test_the_signature_is_that_of_fit():
    of_fit = inspect.signature(fit).parameters
    of_plan = inspect.signature(plan).parameters
    assert [*of_plan] == [*(name for name in of_fit if name != "dry_run"), "time"]
    assert all(of_plan[name] == of_fit[name] for name in [*of_plan][:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": 1}, "unexpected keyword argument 'sigmas'"),
        ({"dry_run": True}, "unexpected keyword argument 'dry_run'"),
    ],
)
def test_an_unknown_argument_is_refused_as_python_does(options, message):
    with pytest.raises(TypeError, match=message):
        plan(decay, T, Y, **options)
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        plan(decay, T)


def test_what_is_wrong_is_refused_as_by_the_fit():
    with pytest.raises(InputError, match="unknown: choose one of"):
        plan(decay, T, Y, p0=P0, workflow="quick")
    with pytest.raises(InputError, match="dry_run = 'yes' is unknown"):
        fit(decay, T, Y, p0=P0, dry_run="yes")
    with pytest.raises(InputError, match="time = 3 is unknown"):
        plan(decay, T, Y, p0=P0, time=3)
    huge = da.zeros(10**9, chunks=10**9)
    with pytest.raises(InputError, match=r"y\.rechunk"):
        plan(decay, huge, huge, p0=P0, memory_limit_gb=4)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "chunk"), [(40_000, 1000), (1_600_000, 100_000)])
def test_few_rows_that_a_model_guesses_from_are_read_whole(rows, chunk, disk):
    def guessing(x, a, b, c):
        return decay(x, a, b, c)

    guessing.guess = lambda x, y: START
    x, y = (disk(np.resize(a, rows), (chunk,)) for a in (T, Y))
    planned = plan(guessing, x, y, cache=False)
    assert planned.pilot_blocks == planned.blocks
    assert planned.pilot_bytes == planned.bytes_per_pass == 16 * rows
    before = disk.bytes_read
    result = fit(guessing, x, y, cache=False)
    assert disk.bytes_read - before == bytes_of(planned, result.n_passes)


# How it reads


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("limit", [0.03, 0.05, 0.1])
def test_a_limit_that_cannot_be_kept_is_said(lazy, limit):
    """The interpreter and the compiler alone take more."""
    data = [da.from_array(a, chunks=4000) for a in (T, Y)] if lazy else [T, Y]
    (note,) = plan(decay, *data, p0=P0, memory_limit_gb=limit, time=False).warnings
    assert f"{limit * 1000:.0f} MB are to be used" in note
    planned = plan(decay, *data, p0=P0, memory_limit_gb=0.2, time=False)
    assert planned.memory_bytes < 0.2e9
    assert not planned.warnings


def test_it_prints_as_a_table(disk):
    planned = plan(decay, *dask_cuts_zarr(disk), p0=P0)
    text = str(planned)
    for part in ("120,000 rows", "streaming", "2 threads", "pilot", "Warning: ", "memory"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 96
    shown = planned._repr_html_()
    assert shown.count("<li>") == len(planned.warnings) > 0
    assert shown.count("<tr>") == shown.count("</tr>") > 5


@pytest.mark.cluster
def test_a_cluster_without_workers_is_not_waited_for(disk):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        Client(empty, set_as_default=False) as client,
    ):
        planned = plan(decay, *alike(disk), p0=P0, client=client)
    assert disk.bytes_read == 0
    assert planned.workers == planned.threads == 0
    assert "no worker" in planned.warnings[0]


@pytest.mark.cluster
def test_a_plan_for_a_cluster_counts_its_workers(client, disk):
    x, y = alike(disk)
    planned = plan(decay, x, y, p0=START, client=client)
    assert (planned.workers, planned.threads) == (2, 2)
    assert planned.pass_seconds > 0
    assert 0 < disk.bytes_read <= planned.bytes_per_pass / 3
    before = disk.bytes_read
    result = fit(decay, x, y, p0=START, client=client, progress=False)
    # A worker that has nothing to do takes groups of a busy worker, and reads their rows again.
    read_anew = replace(planned, bytes_per_later_pass=planned.bytes_per_pass)
    least, most = (bytes_of(p, result.n_passes) for p in (planned, read_anew))
    assert least <= disk.bytes_read - before <= most
    assert planned.kept == 1
    assert planned.memory_bytes > 400e6
    assert "on each worker" in str(planned)


# The way in which Zarr arrays are read


def test_a_plan_says_how_each_zarr_array_is_read(tmp_path):
    x = zarr.create_array(tmp_path / "x", data=T, chunks=6000)
    y = zarr.create_array(tmp_path / "y", data=Y, chunks=6000, filters=Delta("f8"), zarr_format=2)
    cost = plan(decay, da.from_zarr(x) - 0.5, y, p0=P0, time=False)
    assert cost.ways == (
        "x: directly, file by file",
        "y: through Zarr, because of its codec Delta",
    )
    for line in cost.ways:
        assert line in str(cost)


@pytest.mark.parametrize(
    ("y", "way"),
    [
        pytest.param(
            lambda a: a,
            "through Zarr, because it lies neither in a local folder nor in a store of obstore",
            id="memory",
        ),
        pytest.param(
            lambda a: da.map_blocks(np.full, 6000, 1.0, a, chunks=((6000,) * 20,), dtype="f8"),
            "through Zarr, because a function takes the array itself",
            id="function",
        ),
    ],
)
def test_a_plan_says_why_zarr_reads_an_array(y, way):
    cost = plan(decay, T, y(zarr.array(Y, chunks=6000)), p0=P0, time=False)
    assert cost.ways == (f"y: {way}",)


def test_a_plan_says_that_objects_of_a_store_are_read():
    obstore = pytest.importorskip("obstore.store")
    store = zarr.storage.ObjectStore(obstore.MemoryStore())
    y = zarr.create_array(store, data=Y, chunks=6000)
    cost = plan(decay, T, y, p0=P0, time=False)
    assert cost.ways == ("y: directly, object by object",)


def test_a_plan_of_data_without_zarr_says_nothing_of_it():
    assert plan(decay, T, da.from_array(Y, chunks=6000), p0=P0, time=False).ways == ()
    assert plan(decay, T, Y, p0=P0, time=False).ways == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("chunks", [{}, None])
def test_arrays_that_xarray_opens_are_read_directly_if_it_changes_nothing(chunks, tmp_path):
    xr = pytest.importorskip("xarray")
    ds = xr.Dataset({"y": ("t", Y), "packed": ("t", np.rint(Y * 1000))}).chunk(t=6000)
    packed = {"dtype": "i4", "scale_factor": 0.001, "_FillValue": -1}
    ds.to_zarr(tmp_path / "ds", encoding={"packed": packed})
    opened = xr.open_zarr(tmp_path / "ds", chunks=chunks)

    def way(values):
        return plan(decay, T[: values.size], values, p0=P0, time=False).ways

    assert way(opened.y) == ("y: directly, file by file",)
    through_xarray = ("y: through Zarr, because xarray decodes it or selects from it",)
    assert way(opened.packed) == through_xarray
    if chunks is None:
        assert way(opened.y[600:]) == through_xarray
    found = [fit(decay, T, y, p0=P0).popt for y in (opened.y, opened.y.load())]
    np.testing.assert_allclose(*found, rtol=1e-6)
