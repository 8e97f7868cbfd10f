"""Packed and missing numbers: values are those that xarray decodes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from nlsq_dask import InputError
from nlsq_dask.io.cf import Decoding
from nlsq_dask.io.stored import of_zarr, stored_argument

STORED = ("i1", "i2", "i4", "u1", "u2", "u4", ">i2", "f4", "f8")
RNG = np.random.default_rng(16)


def decoded(store, name="y"):
    """The values of an array in a store, as a fit reads them."""
    return of_zarr(zarr.open_group(store, mode="r")[name], name).lazy()


@st.composite
def attributes_of_packed(draw, dtype):
    numbers = st.sampled_from([0.01, 0.1, 2.5, -3.0])
    # xarray swaps the bytes of a fill value that is big-endian and unsigned.
    signed = dtype.kind == "i" and dtype.isnative
    found = {
        "scale_factor": draw(st.none() | numbers),
        "add_offset": draw(st.none() | numbers),
        "_Unsigned": draw(st.sampled_from([None, "true", "false"])) if signed else None,
        "_FillValue": draw(st.none() | st.sampled_from([-3, 7, 100])),
    }
    if dtype.kind == "u" and found["_FillValue"] == -3:
        found["_FillValue"] = None  # xarray of NumPy 2 refuses what the dtype cannot hold
    return {key: value for key, value in found.items() if value is not None}


@given(st.data(), st.sampled_from(STORED))
def test_values_and_dtypes_are_those_of_xarray(data, kind):
    dtype = np.dtype(kind)
    attributes = data.draw(attributes_of_packed(dtype))
    stored = RNG.integers(0, 120, 50).astype(dtype)
    stored[::7] = np.array(attributes.get("_FillValue", 7)).astype(dtype)
    variable = xr.Variable(("t",), stored, dict(attributes))
    expected = xr.conventions.decode_cf_variable("y", variable)
    found = Decoding.of(attributes, dtype, "y")
    values = stored if found is None else found(stored)
    np.testing.assert_array_equal(values, expected.values)
    if found is not None:
        assert values.dtype == found.dtype == expected.dtype
        assert found.dtype.isnative


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ("f8", dict(dtype="i2", scale_factor=0.01, add_offset=1.5, _FillValue=-32768)),
        ("f8", dict(dtype="u1", scale_factor=0.1, _FillValue=255)),
        ("f8", dict(dtype="i4", scale_factor=0.25, add_offset=2.0, missing_value=-1)),
        ("f4", dict(_FillValue=np.float32(-999.9))),
        ("f8", dict(_FillValue=-999.9, missing_value=-999.9)),
        ("f8", dict()),
    ],
    ids=lambda value: "".join(c for c in str(value) if c.isalnum())[:30],
)
def test_what_xarray_writes_is_read_as_xarray_reads_it(values, encoding, zarr_format):
    written = np.array([1.5, np.nan, 3.25, 0.0, 7.0], values)
    store = MemoryStore()
    dataset = xr.Dataset({"y": ("t", written)})
    dataset["y"].encoding = encoding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of consolidated metadata
        dataset.to_zarr(store, zarr_format=zarr_format, consolidated=False)
    expected = xr.open_zarr(store, consolidated=False)["y"]
    found = decoded(store)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.compute(scheduler="sync"), expected.values)
    np.testing.assert_allclose(found.compute(scheduler="sync"), written, atol=0.05)


def test_the_fill_value_of_a_zarr_array_alone_means_nothing():
    array = zarr.create_array(MemoryStore(), shape=(4,), dtype="i2", fill_value=0)
    assert of_zarr(array, "y").decoding is None


@pytest.mark.parametrize(
    ("attributes", "stored", "expected"),
    [
        ({"valid_range": [-10, 10]}, "i2", [-10, np.nan, 10, np.nan]),
        ({"valid_min": -10}, "i4", [-10, np.nan, 10, 11]),
        ({"valid_max": 10.0}, "f8", [-10, -11, 10, np.nan]),
        ({"valid_range": [-10, 10], "scale_factor": 0.5}, "i2", [-5, np.nan, 5, np.nan]),
        # Limits that are no integers are those of the values.
        ({"valid_range": [-5.25, 5.25], "scale_factor": 0.5}, "i2", [-5, np.nan, 5, np.nan]),
        ({"missing_value": [-10, 10]}, "i2", [np.nan, -11, np.nan, 11]),
        ({"_Unsigned": "true", "valid_range": [0, -11]}, "i1", [np.nan, 245, 10, 11]),
        ({"_Unsigned": "true", "missing_value": -11}, "i1", [246, np.nan, 10, 11]),
        ({"_FillValue": -11.0}, "i2", [-10, np.nan, 10, 11]),
        ({"_FillValue": "NaN", "missing_value": 1e20}, "i2", None),
        ({"_FillValue": None}, "i2", None),
        ({"units": "K"}, "i2", None),
    ],
)
def test_missing_values(attributes, stored, expected):
    numbers = np.array([-10, -11, 10, 11]).astype(stored)
    found = Decoding.of(attributes, numbers.dtype, "y")
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found(numbers), expected)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"scale_factor": "0.1 K"}, "scale_factor = '0.1 K'"),
        ({"add_offset": [1.0, 2.0]}, "add_offset = "),
        ({"valid_range": [1, 2, 3]}, "valid_range = "),
        ({"_FillValue": True}, "_FillValue = True"),
    ],
)
def test_attributes_that_are_no_numbers(attributes, named):
    with pytest.raises(InputError, match=f"{named}.*of y.*decode=False"):
        Decoding.of(attributes, np.dtype("i2"), "y")


def test_arrays_of_xarray_that_are_not_decoded_are_refused():
    raw = xr.DataArray(np.arange(4, dtype="i2"), dims="t", attrs={"scale_factor": 0.1})
    with pytest.raises(InputError, match=r"y .*scale_factor = 0.1.*mask_and_scale=True.*decode="):
        stored_argument(raw, "y", "cf")
    assert stored_argument(raw, "y", False) is raw
    # What xarray leaves in place when it decodes says nothing.
    kept = xr.DataArray(np.arange(4.0), dims="t", attrs={"valid_range": [0, 1], "units": "K"})
    assert stored_argument(kept, "y", "cf") is kept
    nan = xr.DataArray(np.arange(4.0), dims="t", attrs={"_FillValue": np.nan})
    assert stored_argument(nan, "y", "cf") is nan


@pytest.mark.parametrize("decode", ["CF", None, True, 1])
def test_decode_is_cf_or_false(decode):
    with pytest.raises(InputError, match="decode"):
        stored_argument(np.ones(3), "y", decode)
