"""Rows are paired by labels: equal labels in another order are put in order, others are refused."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError, curve_fit, fit
from nlsq_dask.io.sources import is_dask, observe

RNG = np.random.default_rng(7)
N_T, N_ROW = 12, 5
T, ROW = np.linspace(0.0, 3.0, N_T), np.array([3, 1, 4, 15, 9])
NOISE = 0.01 + RNG.random((N_T, N_ROW))
COORDS, DIMS = {"time": T, "row": ROW}, ("time", "row")
TRUE = 2.0 + 0.5 * T[:, None] + np.zeros(N_ROW)
Y = xr.DataArray(TRUE + NOISE * RNG.normal(size=NOISE.shape), COORDS, DIMS)
SIGMA = xr.DataArray(NOISE, COORDS, DIMS)
SQUARE = xr.DataArray(np.ones((N_ROW, N_ROW)), {"row": ROW}, DIMS)


def line(x, a, b):
    return a + b * x


def shuffled(array, seed=0):
    rng = np.random.default_rng(seed)
    return array.isel({dim: rng.permutation(n) for dim, n in array.sizes.items()})


def same(found, wanted):
    assert found.structure == wanted.structure
    for got, expected in zip(found.operands, wanted.operands, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_order_of_rows_and_dimensions_does_not_matter(seed, turned, lazily):
    def other(array, k):
        array = shuffled(array, seed + k)
        array = array.transpose(*reversed(array.dims)) if turned else array
        return array.chunk(2) if lazily and array.ndim > 1 else array

    mask = SIGMA > 0.8
    wanted = observe((Y.time, SIGMA), Y, SIGMA, mask=mask)
    found = observe((other(Y.time, 1), other(SIGMA, 2)), Y, other(SIGMA, 3), mask=other(mask, 4))
    assert is_dask(found.sigma) == lazily
    same(found, wanted)


def test_weights_in_another_order_give_the_same_fit():
    known = curve_fit(
        line, np.repeat(T, N_ROW), Y.values.ravel(), sigma=NOISE.ravel(), absolute_sigma=True
    )
    options = {"sigma": shuffled(SIGMA).T, "absolute_sigma": True}
    for found in (fit(line, Y.time, Y, **options), curve_fit(line, Y.time, Y, **options)):
        popt, pcov = found
        np.testing.assert_allclose(popt, known[0], rtol=1e-9)
        np.testing.assert_allclose(pcov, known[1], rtol=1e-9)


def test_labels_in_reverse_order_keep_the_chunks():
    reverse = SIGMA[::-1].chunk({"time": 5})
    found = observe(Y.time, Y, reverse).sigma
    assert found.chunks == ((2, 5, 5), (5,))
    np.testing.assert_array_equal(found, NOISE)


def test_stacked_coordinates_are_put_in_order():
    x = xr.concat([SIGMA, 2 * SIGMA], "coordinate")
    found = observe(x.transpose("row", "coordinate", "time")[::-1], Y)
    assert found.structure == "stacked"
    np.testing.assert_array_equal(found.coords[1], 2 * NOISE)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SIGMA[1:], r"lacks 1 label of y \(0.0\) along 'time'"),
        (SIGMA.assign_coords(row=ROW + 1), r"lacks 4 labels of y \(3, 1, 15, ...\) and has 4"),
        (SIGMA[:, [0]], r"lacks 4 labels of y"),
        (SIGMA.drop_vars("time")[1:], r"has 11 rows along 'time', but y has 12"),
        (SIGMA.rename(row="pixel"), r"dimension 'pixel', which y does not have"),
        (SIGMA[:, [0, 0, 1, 2, 3]], r"a label occurs more than once \(one is 3\)"),
    ],
)
@pytest.mark.parametrize("argument", ["x", "sigma", "mask"])
def test_other_labels_are_refused_and_named(other, message, argument):
    given = {"x": Y.time, argument: other > 0 if argument == "mask" else other}
    with pytest.raises(InputError, match=f"{argument} .*{message}"):
        fit(line, given.pop("x"), Y, **given)


def test_a_length_of_one_without_a_label_holds_for_all_rows():
    found = observe(Y.time, Y, SIGMA.mean("row", keepdims=True))
    np.testing.assert_allclose(found.sigma[:, 0], NOISE.mean(1))


def test_labels_that_y_lacks_pair_the_other_arrays():
    """As they do for a y without any labels, if an array of its shape has some."""
    y = Y.drop_vars("row")
    same(observe(SIGMA, y, shuffled(SIGMA[0])), observe(NOISE, Y.values, NOISE[0]))
    found = observe(SIGMA, Y.values, shuffled(SIGMA).T)
    same(found, observe(NOISE, Y.values, NOISE))


def test_arrays_without_names_are_paired_by_their_lengths():
    found = observe((T, ROW.astype(float)), Y, NOISE[:, 0])
    assert [a.shape for a in found.operands] == [(12, 5), (12, 1), (1, 5), (12, 1)]
    same(observe(T, Y), observe(Y.time, Y))
    same(observe(da.from_array(T), Y), observe(Y.time, Y))


@pytest.mark.parametrize("bare", [np.ones(N_ROW), xr.DataArray(np.ones(N_ROW)), pd.Series(ROW)])
def test_arrays_without_names_are_refused_where_lengths_leave_a_choice(bare):
    with pytest.raises(InputError, match=r"x has shape \(5,\).* \('time'\) or \('row'\) of y"):
        observe(bare, SQUARE)
    assert observe(SQUARE.row, SQUARE).coords[0].shape == (1, 5)
    assert observe(np.ones((5, 1)), SQUARE).coords[0].shape == (5, 1)
    assert observe(np.ones((5, 5)), SQUARE).coords[0].shape == (5, 5)


SERIES = pd.Series(2.0 + 0.5 * T + NOISE[:, 0] * RNG.normal(size=N_T), index=T * 10)
ORDER = np.random.default_rng(1).permutation(N_T)


@pytest.mark.parametrize("call", [fit, curve_fit])
def test_series_are_paired_by_their_index(call):
    x, sigma = (pd.Series(v, SERIES.index) for v in (T, NOISE[:, 0]))
    known, _ = curve_fit(line, T, SERIES.to_numpy(), sigma=NOISE[:, 0])
    for table in (sigma.iloc[ORDER], pd.DataFrame(np.diag(NOISE[:, 0] ** 2), x.index, x.index)):
        found, _ = call(line, x.iloc[ORDER[::-1]], SERIES, sigma=table)
        np.testing.assert_allclose(found, known, rtol=1e-7)
    covariance = pd.DataFrame(np.diag(NOISE[:, 0] ** 2), x.index, x.index)
    found, _ = call(line, x, SERIES, sigma=covariance.iloc[ORDER, ORDER[::-1]])
    np.testing.assert_allclose(found, known, rtol=1e-7)
    with pytest.raises(InputError, match=r"x lacks 1 label of y \(0.0\) and has 1 label that y"):
        call(line, x.set_axis([*x.index[1:], 77.0]), SERIES)


def test_several_series_are_paired_by_their_index():
    def plane(x, a, b, c):
        return a + b * x[0] + c * x[1]

    columns = [pd.Series(v, SERIES.index) for v in (T, NOISE[:, 1])]
    known, _ = curve_fit(plane, np.stack([T, NOISE[:, 1]]), SERIES.to_numpy())
    turned = [columns[0].iloc[ORDER], columns[1].iloc[ORDER[::-1]]]
    np.testing.assert_allclose(fit(plane, turned, SERIES).popt, known, rtol=1e-7)
    found, _ = curve_fit(plane, turned, SERIES)
    np.testing.assert_allclose(found, known, rtol=1e-7)
    table = pd.DataFrame(dict(enumerate(columns))).iloc[ORDER].T
    np.testing.assert_allclose(fit(plane, table, SERIES).popt, known, rtol=1e-7)


def test_labels_of_several_levels():
    stacked = Y.stack(both=DIMS)
    other = SIGMA.stack(both=DIMS).isel(both=np.random.default_rng(2).permutation(N_T * N_ROW))
    found = observe(stacked["time"], stacked, other)
    np.testing.assert_array_equal(found.sigma, NOISE.ravel())
    np.testing.assert_array_equal(found.coords[0], np.repeat(T, N_ROW))


@pytest.mark.skipif(not hasattr(xr.indexes, "RangeIndex"), reason="xarray has no computed ranges")
def test_labels_of_a_computed_range():
    index = xr.indexes.RangeIndex.arange(0.0, 12.0, 1.0, dim="time")
    y = xr.DataArray(NOISE, xr.Coordinates.from_xindex(index), DIMS)
    found = observe(y["time"], y, y[::-1])
    assert not found.lazy
    np.testing.assert_array_equal(found.sigma, NOISE)


def test_a_mask_of_pandas_beside_a_labelled_y():
    y = xr.DataArray(SERIES.to_numpy(), {"u": SERIES.index}, ("u",))
    mask = (SERIES.median() < SERIES).iloc[ORDER]
    np.testing.assert_array_equal(
        observe(T, y, mask=mask).masks[0], SERIES.to_numpy() > SERIES.median()
    )


def test_a_chunk_of_another_length_is_found_before_rows_are_put_in_order():
    short = da.ones((N_T, N_ROW), chunks=(4, 5)).map_blocks(lambda b: b[:3], dtype=float)
    for order in (ORDER, slice(None, None, -1)):
        sigma = xr.DataArray(short, {"time": T[order], "row": ROW}, DIMS)
        with pytest.raises(InputError, match=r"of sigma.* has shape \(3, 5\)"):
            fit(line, Y.time, Y, sigma=sigma, pilot=False)
