"""Values that are no arrays of numbers: each kind ends in a sentence of its own with the remedy."""

from __future__ import annotations

import datetime as dt
import decimal
import types
import warnings
from contextlib import suppress

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr

from nlsq_dask import FitError, InputError, InputTypeError, curve_fit, fit, fit_models, plan
from nlsq_dask.io.sources import observe

X = np.linspace(0, 4, 20)
Y = 2.5 * np.exp(-1.3 * X) + 0.5
DATES = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=i) for i in range(20)]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def of_class(module, name, **members):
    """An object of a class of a library that is not installed."""
    kind = type(name, (), members)
    kind.__module__ = module
    return kind()


def refusing(*_, **__):
    raise TypeError("Implicit conversion to a NumPy array is not allowed.")


def in_zarr(**options):
    return zarr.create_array(zarr.storage.MemoryStore(), **options)


def a_group():
    group = zarr.open_group(zarr.storage.MemoryStore())
    group.create_array("power", shape=20, dtype="f8")
    return group


# A value, the argument that it is passed as, and what the message says.
class LazyLength:
    """The length of a table of Dask, which is not known before the table is read."""

    __hash__ = None

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError


KINDS = {
    "None": (None, "y", "y is None, not an array of numbers: pass an array"),
    "None as a coordinate": ((X, None), "x", "x[1] is None"),
    "dictionary": ({"t": X}, "x", "several coordinates are a tuple"),
    "set": (set(X), "x", "pass a list or an array, which have an order"),
    "generator": ((v for v in X), "y", "pass list(y)"),
    "map": (map(float, X), "x", "pass list(x)"),
    "function": (decay, "x", "the arguments is fit(model, x, y)"),
    "unknown class": (types.SimpleNamespace(), "y", "y is a SimpleNamespace, not an array"),
    "Delayed": (dask.delayed(np.ones)(20), "y", "dask.array.from_delayed(y, shape="),
    "Dask table": (
        of_class("dask.dataframe.dask_expr", "Series", shape=(LazyLength(),)),
        "y",
        "y.to_dask_array(lengths=True)",
    ),
    "Future": (of_class("distributed.client", "Future"), "y", "dask.array.from_delayed(y"),
    "AsyncArray": (in_zarr(data=Y)._async_array, "y", "y is an AsyncArray"),
    "Group": (a_group(), "y", "for example group['power']"),
    "Dataset": (xr.Dataset({"power": ("t", Y)}), "y", "y is a Dataset of 'power'"),
    "DataTree": (xr.DataTree(xr.Dataset({"power": ("t", Y)})), "y", "data=tree['/']"),
    "astropy time": (of_class("astropy.time.core", "Time"), "x", "pass x.datetime64"),
    "sparse": (scipy.sparse.coo_array(Y), "y", "y.toarray()"),
    "cupy": (of_class("cupy", "ndarray", __array__=refusing), "y", "pass y.get()"),
    "tensor": (of_class("torch", "Tensor", __array__=refusing), "y", "y.detach().cpu().numpy()"),
    "text": (["1.5"] * 20, "y", "y has dtype <U3, but a fit needs real numbers: it holds text"),
    "bytes": (np.array([b"1"] * 20), "x", "x.astype(float) reads them"),
    "lazy text": (da.from_array(np.array(["1"] * 20), chunks=5), "y", "y.astype(float) reads them"),
    "text in objects": (np.array([1.0, "b"] * 10, object), "x", "x[1] is 'b', a str"),
    "None in objects": ([*Y[:-1], None], "y", "y[19] is None, a NoneType; np.asarray(y, dtype=fl"),
    "decimals": ([decimal.Decimal(1)] * 20, "sigma", "np.asarray(sigma, dtype=float) makes numb"),
    "large integers": ([2**70] * 20, "y", "np.asarray(y, dtype=float) makes numbers"),
    "datetimes in objects": (DATES, "y", "[(t - y[0]).total_seconds() for t in y]"),
    "timedeltas in objects": (
        np.array([d - DATES[0] for d in DATES], object), "y", "[t.total_seconds() for t in y]"
    ),
    "periods": (pd.period_range("2026", periods=20), "y", "y.to_timestamp()"),
    "intervals": (pd.interval_range(0, 20), "y", "a fit needs real numbers: y[0] is Interval"),
    "dates": (pd.DatetimeIndex(DATES), "y", "(y - y[0]) / np.timedelta64(1, 's')"),
    "fields": (np.zeros(20, [("t", "f8"), ("u", "f8")]), "y", "pass one of them, y['t']"),
    "complex sigma": (Y + 1j, "sigma", "sigma.real and sigma.imag"),
    "mask a Dataset": (xr.Dataset({"bad": ("t", Y > 1)}), "mask", "mask is a Dataset of 'bad'"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_value_is_refused_with_its_remedy(name):
    value, argument, message = KINDS[name]
    with pytest.raises(InputTypeError) as caught:
        fit(decay, **{"x": X, "y": Y, argument: value})
    assert message in str(caught.value)


PLACES = {
    "x": lambda value: fit(decay, value, Y),
    "a coordinate": lambda value: fit(decay, (X, value), Y),
    "sigma": lambda value: fit(decay, X, Y, sigma=value),
    "mask": lambda value: fit(decay, X, Y, mask=value),
    "fill_value": lambda value: fit(decay, X, Y, fill_value=value),
    "p0": lambda value: fit(decay, X, Y, value),
    "one of p0": lambda value: fit(decay, X, Y, [value, 1, 1]),
    "p0 by name": lambda value: fit(decay, X, Y, {"a": value, "b": 1, "c": 1}),
    "bounds": lambda value: fit(decay, X, Y, bounds=(value, 9)),
    "bounds by name": lambda value: fit(decay, X, Y, bounds={"a": (value, 9)}),
    "fixed": lambda value: fit(decay, X, Y, fixed={"a": value}),
    "ydata": lambda value: curve_fit(decay, X, value),
    "sigma of curve_fit": lambda value: curve_fit(decay, X, Y, sigma=value),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_kind_of_value_ends_in_an_error_of_another_library(place):
    """Some kinds are taken in some places: None as the default, dates as coordinates."""
    ragged = {"ragged": ([[1, 2], [3]],), "ragged twice": ([[[1], [2, 3]], [[1], [2]]],)}
    for value, *_ in (KINDS | ragged).values():
        with suppress(FitError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PLACES[place](value)


SHAPES = {
    "ragged y": (X, [[1, 2], [3]], "that are 2 and 1 long", "nan_policy='omit'"),
    "ragged x": ([X, X[:2]], Y, "that are 20 and 2 long", "are a tuple of arrays"),
    "columns": (np.ones((20, 2)), Y, "x has shape (20, 2) but y has shape (20,)", "pass x.T"),
    "table": (pd.DataFrame({"t": X, "u": X}), pd.Series(Y), "x has shape (20, 2)", "pass x.T"),
    "table of one column": (pd.DataFrame({"t": X}), pd.Series(Y), "has shape (20, 1)", "of the co"),
    "last": (np.ones((4, 5, 2)), np.ones((4, 5)), "(4, 5, 2)", "pass np.moveaxis(x, -1, 0)"),
    "y a column": (X, Y[:, None], "y has shape (20, 1)", "pass np.reshape(x, (20, 1))"),
    "first dimension": (X, np.ones((20, 5)), "y has shape (20, 5)", "pass np.reshape(x, (20, 1))"),
    "other order": (X[None, None], Y, "(1, 1, 20)", "np.ravel"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shapes_are_refused_with_the_remedy(name):
    x, y, *messages = SHAPES[name]
    with pytest.raises(InputError) as caught:
        observe(x, y)
    assert all(message in str(caught.value) for message in messages)


def test_the_remedies_of_shapes_are_accepted():
    assert observe(np.ones((20, 2)).T, Y).structure == "stacked"
    assert observe(np.moveaxis(np.ones((4, 5, 2)), -1, 0), np.ones((4, 5))).structure == "stacked"
    assert observe(np.reshape(X, (20, 1)), np.ones((20, 5))).coords[0].shape == (20, 1)


P0 = {
    "text": ("abc", "p0 = 'abc' is not a sequence"),
    "set": ({1, 2, 3}, "is not a sequence"),
    "object": (types.SimpleNamespace(), "is not a sequence"),
    "columns": (np.ones((3, 4)), "p0 has shape (3, 4)"),
    "map by name": ({"a": np.ones((4, 5)), "b": 1, "c": 1}, "p0['a'] has shape (4, 5)"),
    "labelled map": ({"a": xr.DataArray(np.ones(4)), "b": 1, "c": 1}, "p0['a'] has shape (4,)"),
    "map in a list": ([1, np.ones((4, 5)), 1], "p0[1] has shape (4, 5)"),
}


@pytest.mark.parametrize("name", P0)
def test_starting_values_that_are_not_one_number_each(name):
    p0, message = P0[name]
    with pytest.raises(InputTypeError) as caught:
        fit(decay, X, Y, p0)
    assert message in str(caught.value)


@pytest.mark.parametrize("fitting", [fit, curve_fit])
def test_starting_values_in_a_table_are_taken_by_their_labels(fitting):
    start = pd.Series({"c": 0.4, "b": 1.0, "a": 2.0})
    popt, _ = fitting(decay, X, Y, start)
    np.testing.assert_allclose(popt, [2.5, 1.3, 0.5], rtol=1e-5)
    with pytest.raises(InputError, match="p0 names d"):
        fitting(decay, X, Y, start.rename({"c": "d"}))
    popt, _ = fitting(decay, X, Y, pd.Series([2.0, 1.0, 0.4]))
    np.testing.assert_allclose(popt, [2.5, 1.3, 0.5], rtol=1e-5)


@pytest.mark.parametrize("fitting", [fit, curve_fit])
def test_bounds_and_sizes_in_a_table_are_taken_by_their_labels(fitting):
    low, high = pd.Series({"c": -1, "b": 0, "a": 0}), pd.Series({"c": 1, "b": 5, "a": 5})
    sizes = pd.Series({"c": 0.1, "b": 1.0, "a": 2.0})
    start = [2.0, 1.0, 0.4]
    by_name, _ = fitting(decay, X, Y, start, bounds=(low, high), x_scale=sizes)
    bounds = [0, 0, -1], [5, 5, 1]
    in_order, _ = fitting(decay, X, Y, start, bounds=bounds, x_scale=[2.0, 1.0, 0.1])
    assert np.array_equal(by_name, in_order)
    np.testing.assert_allclose(by_name, [2.5, 1.3, 0.5], rtol=1e-5)
    with pytest.raises(InputError, match="x_scale has no value for b and c"):
        fitting(decay, X, Y, start, bounds=(low, high), x_scale={"a": 1.0})


@pytest.mark.parametrize(
    ("keyword", "remedy"),
    [
        ("reduce_dims", "along all dimensions of y"),
        ("epsfcn", "derivatives are exact"),
        ("yerr", "sigma has the standard deviations"),
        ("n_jobs", "client="),
        ("skipna", "nan_policy='omit'"),
        ("errors", "result.success"),
        ("coords", "pass the coordinates as x"),
        ("param_names", "the signature of the model"),
        ("maxfev", "max_nfev"),
        ("sigmas", "the nearest names are sigma"),
        ("quux", "lists the arguments"),
    ],
)
@pytest.mark.parametrize("function", [fit, plan, fit_models])
def test_arguments_of_other_libraries_name_what_takes_their_place(function, keyword, remedy):
    model = [decay] if function is fit_models else decay
    with pytest.raises(InputTypeError) as caught:
        function(model, X, Y, **{keyword: None})
    assert f"{function.__name__}() got an unexpected keyword argument '{keyword}'" in str(
        caught.value
    )
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ydata=None), "y is None"),
        (dict(ydata=dask.delayed(np.ones)(20)), "from_delayed"),
        (dict(ydata=[*Y[:-1], object()]), "y[19] is <object object"),
        (dict(sigma=Y + 1j), "sigma.real"),
        (dict(sigma=np.arange(1, 21).astype("m8[s]")), "sigma has dtype timedelta64"),
        (dict(sigma={"a": 1}), "sigma is a dict"),
    ],
)
def test_curve_fit_refuses_with_the_same_sentences(arguments, message):
    with pytest.raises(InputTypeError) as caught:
        curve_fit(decay, **{"xdata": X, "ydata": Y} | arguments)
    assert message in str(caught.value)
    with pytest.raises(InputError, match="y cannot be made an array .*'a'"):
        curve_fit(decay, X, ["a"] * 20)
    with pytest.raises(InputError, match="20 and 2 long"):
        curve_fit(decay, [X, X[:2]], Y)
