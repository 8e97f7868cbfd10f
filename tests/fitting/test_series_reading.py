"""Series that are read frame by frame: the answers of series in memory, from five readings."""

from __future__ import annotations

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import (
    ConvergenceWarning,
    InputError,
    ReadingError,
    Status,
    fit_each,
    models,
    plan_each,
)
from nlsq_dask.core.series_memory import SeriesSizes, bands
from nlsq_dask.engines.dask import reading
from nlsq_dask.engines.dask.series_regions import first_blocks
from nlsq_dask.engines.frames import pilot_rows
from nlsq_dask.io.chunks import is_joined
from nlsq_dask.io.map_store import StoredMap
from tests.support.counting_store import stored
from tests.support.series import START, decay

ROWS = 90
T = np.linspace(0.0, 8.0, ROWS)

#: Memory in GB in which the sums of all series fit, and their rows do not.
SMALL = 0.6e-3


def cube(shape, t=T, noise=0.03):
    draw = np.random.default_rng(0)
    height, lifetime = draw.uniform(0.5, 2.0, shape), draw.uniform(0.5, 3.0, shape)
    t = t.reshape(-1, *(1,) * len(shape))
    y = height * np.exp(-t / lifetime) + 0.3 + noise * draw.normal(size=(t.size, *shape))
    y[draw.random(y.shape) < 0.05] = np.nan
    return y


# An empty pixel, a saturated one, one with two rows, and a dead one.
Y = cube((6, 7))
Y[:, 1, 1], Y[9, 2, 2], Y[2:, 3, 3] = np.nan, np.inf, np.nan
ALIVE = Y.copy()
Y[:, 0, 0] = 5.0


def in_frames(model, x, y, p0=None, share=1.0, **options):
    """Lazy maps that are read frame by frame, computed."""
    with dask.config.set(scheduler="synchronous", num_workers=1):
        maps = fit_each(model, x, y, p0, memory_limit_gb=share * SMALL, **options)
        assert maps.strategy == "frames"
        return maps.compute()


def assert_equal(found, expected):
    """The same statuses, and estimates within the tolerance of the fits."""
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.n_points, expected.n_points)
    np.testing.assert_array_equal(found.at_bound, expected.at_bound)
    errors = np.where(expected.perr.array > 0, expected.perr.array, 1.0)
    off = np.abs(found.popt.array - expected.popt.array) / errors
    assert np.nanmax(off, initial=0.0) < 1e-3
    np.testing.assert_allclose(found.perr.array, expected.perr.array, rtol=2e-3)
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.popt.array), np.isnan(expected.popt.array))


@pytest.fixture(scope="module")
def expected():
    with pytest.warns(ConvergenceWarning):
        return fit_each(decay, T, Y, START, covariance=True)


@pytest.fixture(scope="module")
def one_region():
    with pytest.warns(ConvergenceWarning):
        y = da.from_array(Y, chunks=(45, 6, 7))
        return in_frames(decay, T, y, START, covariance=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
@settings(max_examples=2)  # each is read some five times, frame by frame
@given(st.integers(1, 60), st.integers(3, 6), st.integers(4, 7))
def test_frames_have_the_answers_and_statuses_of_series_in_memory(
    expected, one_region, rows, height, width
):
    lazy = da.from_array(Y, chunks=(rows, height, width))
    share = height * width / 42
    found = in_frames(decay, T, lazy, START, share, covariance=True)
    assert_equal(found, expected)
    for name, values in one_region.fields.items():
        np.testing.assert_array_equal(found.fields[name], values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
def test_frames_take_all_arguments_as_series_in_memory_do():
    noise = np.linspace(0.02, 0.06, 42).reshape(6, 7)
    full = np.broadcast_to(noise, Y.shape) * np.linspace(1, 2, ROWS)[:, None, None]
    mask = np.random.default_rng(3).random(Y.shape) < 0.1
    start = {"amplitude": np.full((6, 7), 1.2), "lifetime": 1.0, "offset": 0.1}
    cases = [
        {"sigma": full, "mask": mask, "bounds": {"lifetime": (1.0, 2.0)}},
        {"sigma": noise, "absolute_sigma": True, "fixed": {"offset": np.full((6, 7), 0.3)}},
    ]
    cases[1] |= {"fill_value": ALIVE[7, 4, 4], "nan_policy": "raise"}
    for case in cases:
        p0 = {n: v for n, v in start.items() if n not in case.get("fixed", {})}
        lazy = {
            name: da.from_array(value, chunks=(30, 3, 7)) if np.shape(value) == Y.shape else value
            for name, value in case.items()
        }
        found = in_frames(decay, T, da.from_array(ALIVE, chunks=(1, 6, 7)), p0, **lazy)
        assert_equal(found, fit_each(decay, T, ALIVE, p0, **case))


def peaks():
    draw = np.random.default_rng(5)
    centre = draw.uniform(1.0, 7.0, (6, 7))
    y = np.exp(-0.5 * ((T[:, None, None] - centre) / 0.3) ** 2)
    return y + 0.02 * draw.normal(size=y.shape)


@pytest.mark.slow
def test_frames_of_xarray_and_zarr_with_guesses(tmp_path):
    y = peaks()
    labelled = xr.DataArray(y, {"t": T}, ("t", "row", "column"), "signal")
    expected = fit_each(models.Gaussian(), "t", labelled)
    found = in_frames(models.Gaussian(), "t", labelled.chunk(t=1))
    assert found["center"].dims == ("row", "column")
    assert_equal(found, expected)
    turned = fit_each(models.Gaussian(), T, y)
    store = stored(tmp_path / "y.zarr", np.moveaxis(y, 0, -1).copy(), (6, 7, 10))
    assert_equal(in_frames(models.Gaussian(), T, store, dim=-1), turned)


@pytest.mark.slow
def test_each_frame_is_read_some_five_times_and_series_that_fit_are_gathered(tmp_path):
    t = np.linspace(0.0, 8.0, 150)
    y = cube((20, 20), t)
    store = stored(tmp_path / "y.zarr", y, (1, 20, 20))
    room = {"memory_limit_gb": 0.011, "p0": START, "store": tmp_path / "maps.zarr"}
    with dask.config.set(scheduler="synchronous", num_workers=1):
        planned = plan_each(decay, t, store, **room)
        maps = fit_each(decay, t, store, **room)
    assert (planned.strategy, planned.blocks, planned.readings) == (maps.strategy, 1, 5)
    assert 0.4 < store.store.bytes_read / planned.bytes_read < 1.02
    assert maps.strategy == "frames"
    assert "read frame by frame" in str(maps.compute())
    assert sum(store.store.reads.values()) < 5.1 * t.size
    assert_equal(maps.compute(), fit_each(decay, t, y, START))


def test_regions_are_cut_where_the_sums_of_a_chunk_do_not_fit():
    sizes = SeriesSizes(n_rows=2048, row_bytes=4, n_free=3, n_params=3, n_planes=13, frame_rows=16)
    assert sizes.state_bytes(1000) < 0.2 * sizes.whole_bytes(1000)
    assert bands((1000, 1000), 300_000) == [300, 1000]
    assert bands((1000, 1000), 300) == [1, 300]
    assert bands((), 1) == []


def test_the_pilot_has_no_period():
    rows = pilot_rows(10_000)
    assert len(np.unique(rows)) == 64
    assert np.ptp(np.diff(rows)) > 100
    np.testing.assert_array_equal(pilot_rows(40), np.arange(40))


def test_a_model_that_mixes_rows_is_not_read_in_frames():
    def summed(t, rate, offset):
        return jnp.cumsum(jnp.exp(-rate * t)) + offset

    y = da.from_array(Y, chunks=(10, 6, 7))
    with pytest.raises(InputError, match=r"rechunk y to at most \(4, 7\) along the map"):
        fit_each(summed, T, y, [1, 0], memory_limit_gb=SMALL)


@pytest.mark.slow
def test_whole_series_are_read_where_they_fit():
    maps = fit_each(decay, T, da.from_array(Y, chunks=(10, 6, 7)), START, memory_limit_gb=1)
    assert maps.strategy == "streaming"
    assert (maps.status == Status.STATISTICAL).sum().compute() == 42 - 4


def test_lazy_maps_name_the_block_that_cannot_be_read():
    def read(block, block_id=None):
        raise OSError("the disk is gone")

    y = da.from_array(Y, chunks=(-1, 3, 7))
    y = y.map_blocks(read, dtype=float, meta=np.empty((0, 0, 0)))
    maps = fit_each(decay, T, y, START, retries=0)
    with pytest.raises(ReadingError, match=r"block \(0, 0, 0\) of y") as caught:
        maps.status[:2].compute(scheduler="synchronous")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [SMALL, 1.0], ids=["frames", "whole series"])
def test_a_block_that_cannot_be_read_is_named_and_read_again(memory, monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "FIRST_WAIT", 0.0)
    left = [2]

    def read(block, block_id=None):
        if block_id == (4, 1, 0) and left[0]:
            left[0] -= 1
            raise OSError("the disk is away")
        return block

    y = da.from_array(Y, chunks=(10, 3, 7))
    y = y.map_blocks(read, dtype=float, meta=np.empty((0, 0, 0)))
    options = {"p0": START, "memory_limit_gb": memory}
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(ReadingError, match=r"block \(4, 1, 0\) of y.*tried 2 times") as caught:
            fit_each(decay, T, y, **options, store=tmp_path / "a.zarr", retries=1)
        assert caught.value.block == (4, 1, 0)
        left[0] = 2
        with pytest.warns(ConvergenceWarning):
            maps = fit_each(decay, T, y, **options, store=tmp_path / "b.zarr", retries=2)
    assert (maps.status.compute() == Status.STATISTICAL).sum() == 42 - 4


def half_written(y, store, **options):
    """Maps of the left half of the map, in a store; reading the right half fails."""

    def read(block, block_id=None):
        if block_id[2]:
            raise OSError("the disk is gone")
        return block

    y = y.map_blocks(read, dtype=float, meta=np.empty((0, 0, 0)))
    with dask.config.set(scheduler="synchronous"), pytest.raises(OSError, match="the disk is gone"):
        fit_each(decay, T, y, START, store=store, retries=0, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("began", "goes_on", "strategy", "chunks"),
    [
        pytest.param(SMALL / 3, 1.0, "frames", (75, 6, 4), id="more"),
        pytest.param(
            SMALL / 3, SMALL / 5, "frames", (50, 6, 4), marks=pytest.mark.thorough, id="less"
        ),
        pytest.param(1.0, SMALL / 10, "streaming", (50, 6, 2), id="too little for whole series"),
    ],
)
def test_a_store_is_gone_on_with_in_another_memory(began, goes_on, strategy, chunks, tmp_path):
    data = cube((6, 6))
    y = da.from_array(data, chunks=(50, 6, 3))
    place = {"store": tmp_path / "half.zarr"}
    with dask.config.set(num_workers=1):
        half_written(y, **place, memory_limit_gb=began)
        again = da.from_array(data, chunks=chunks)
        options = {"resume": True, "memory_limit_gb": goes_on}
        maps = fit_each(decay, T, again, START, **place, **options)
        whole = fit_each(decay, T, y, START, memory_limit_gb=began, store=tmp_path / "whole.zarr")
    assert maps.strategy == whole.strategy == strategy
    assert maps.status.chunks == whole.status.chunks
    whole = whole.compute()
    for name, values in maps.compute().fields.items():
        np.testing.assert_array_equal(values, whole.fields[name])


@pytest.mark.slow
def test_maps_that_cannot_be_written_are_named_and_written_again(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "FIRST_WAIT", 0.0)
    left = [1]
    write = StoredMap.write

    def failing(self, region, packed):
        if left[0] and self.name == "status":
            left[0] -= 1
            raise OSError("no space left")
        write(self, region, packed)

    monkeypatch.setattr(StoredMap, "write", failing)
    y = da.from_array(ALIVE[:, :1], chunks=(-1, 1, 7))
    with pytest.raises(ReadingError, match=r"block \(0, 0\) of maps.*written.*resume=True"):
        fit_each(decay, T, y, START, store=tmp_path / "a.zarr", retries=0)
    left[0] = 1
    maps = fit_each(decay, T, y, START, store=tmp_path / "a.zarr", resume=True, retries=1)
    assert (maps.status.compute() > 0).all()


@pytest.mark.parametrize(
    ("regions", "blocks", "firsts"),
    [
        ((4, 4, 2), (2, 2, 2, 2, 2), (0, 2, 4, 5)),
        ((3, 0, 2), (3, 0, 2), (0, 1, 2, 3)),
        ((5,), (1, 3, 1), (0, 3)),
    ],
)
def test_regions_of_whole_blocks_know_their_blocks(regions, blocks, firsts):
    assert first_blocks(regions, blocks) == firsts
    assert is_joined((regions,), (blocks,))
    assert not is_joined((blocks, (1,)), (regions, (1,))) or regions == blocks
