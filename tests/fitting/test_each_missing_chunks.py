"""Chunks of a cube of series that are not in their Zarr store: told, refused, or data."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import zarr

from nlsq_dask import FitMaps, InputError, MissingDataWarning, ReadingError, fit_each, plan_each
from tests.fitting.test_same_data import decay

X = np.linspace(0.0, 4.0, 24)
SERIES, CHUNK = 30, 10
Y = 3.0 * np.exp(-X[:, None] / np.linspace(0.5, 2.0, SERIES)) + 1.0
START = [2.0, 1.0, 0.0]
LOST = 1


@pytest.fixture
def lossy(tmp_path):
    """A cube in three chunks of whole series, without the chunk LOST."""
    cube = zarr.create_array(
        tmp_path / "y.zarr", shape=Y.shape, chunks=(X.size, CHUNK), dtype="f8", fill_value=0.0
    )
    cube[...] = Y
    (tmp_path / "y.zarr" / "c" / "0" / str(LOST)).unlink()
    return cube


def maps_of(y, **options) -> FitMaps:
    return fit_each(decay, X, y, START, **options)


@pytest.mark.parametrize("lazy", [lambda y: y, da.from_zarr], ids=["zarr", "dask"])
def test_maps_tell_of_a_missing_chunk(lossy, lazy):
    with pytest.warns(MissingDataWarning, match=r"y lacks 1 of 3 chunks .*c/0/1.*'fill'") as told:
        maps = maps_of(lazy(lossy)).compute()
    assert "'omit'" not in str([w.message for w in told])
    read = np.where(np.arange(SERIES) // CHUNK == LOST, 0.0, Y)
    with warnings.catch_warnings(record=True):
        whole = maps_of(read)
    np.testing.assert_array_equal(maps.status, whole.status)
    for name in maps.names:
        np.testing.assert_array_equal(maps[name], whole[name])


def test_maps_that_are_written_tell_of_a_missing_chunk(lossy, tmp_path):
    with pytest.warns(MissingDataWarning, match="y lacks 1 of 3 chunks"):
        maps_of(lossy, store=tmp_path / "maps.zarr")


@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
def test_the_caller_takes_the_chunk_for_data(lossy):
    maps_of(lossy, missing_chunks="fill").compute()  # a warning would be an error


def test_the_caller_refuses_missing_chunks(lossy, tmp_path):
    with pytest.raises(ReadingError, match=r"y lacks 1 of 3 chunks .*missing_chunks='fill'"):
        maps_of(lossy, missing_chunks="raise", store=tmp_path / "maps.zarr")
    assert not (tmp_path / "maps.zarr").exists()
    assert plan_each(decay, X, lossy, START, missing_chunks="raise").series == SERIES


def test_a_chunk_that_no_series_reads_is_no_matter(lossy):
    kept = da.from_zarr(lossy)[:, (LOST + 1) * CHUNK :]
    assert maps_of(kept).compute().status.shape == (CHUNK,)


def test_whole_data_are_told_of_nothing(tmp_path, lossy):
    lossy[...] = Y
    maps_of(lossy, missing_chunks="raise").compute()
    maps_of(lossy).compute()


@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
def test_a_fill_value_that_means_missing_is_told_by_the_status(tmp_path):
    cube = zarr.create_array(
        tmp_path / "nan.zarr", shape=Y.shape, chunks=(X.size, CHUNK), dtype="f8", fill_value=np.nan
    )
    cube[:, :CHUNK] = Y[:, :CHUNK]
    assert not maps_of(cube).compute().n_points[CHUNK:].any()


def test_rows_of_series_are_not_left_out_by_chunks(lossy):
    with pytest.raises(InputError, match="missing_chunks"):
        maps_of(lossy, missing_chunks="omit")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (lambda m: {"p0": {"a": 2.0, "b": m, "c": 0.0}}, r"p0\['b'\]"),
        (lambda m: {"bounds": {"b": (m - 9.0, 20.0)}}, "the lower bound of b"),
        (lambda m: {"fixed": {"b": m}}, r"fixed\['b'\]"),
    ],
    ids=["p0", "bounds", "fixed"],
)
def test_maps_of_parameters_tell_of_a_missing_chunk(options, name, tmp_path):
    stored = zarr.create_array(
        tmp_path / "b.zarr", shape=(SERIES,), chunks=(CHUNK,), dtype="f8", fill_value=0.0
    )
    stored[...] = np.linspace(0.5, 2.0, SERIES)
    (tmp_path / "b.zarr" / "c" / str(LOST)).unlink()
    given = {"p0": START} | options(da.from_zarr(stored))
    with pytest.raises(ReadingError, match=f"^{name} lacks 1 of 3 chunks"):
        fit_each(decay, X, Y, missing_chunks="raise", **given)
    other = {"p0": START} | options(da.from_zarr(stored)[:CHUNK])
    fit_each(decay, X, Y[:, :CHUNK], missing_chunks="raise", **other)
