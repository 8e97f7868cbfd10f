"""NumPy arrays of numbers are taken as they are: the same data as by asking every library."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import _errors
from nlsq_dask.fitting import source
from nlsq_dask.fitting.options import InputOptions

SHAPES = [(4,), (3, 2), ()]
DTYPES = ["f8", "f4", ">f8", "i4", "u1", "bool"]


def opened(x, y, inputs, *, plain):
    """Source of some data, or the error that refuses them."""
    with pytest.MonkeyPatch.context() as patch:
        if not plain:
            patch.setattr(source, "_are_plain", lambda *_: False)
        try:
            return source.open_source(x, y, inputs)
        except (_errors.InputError, _errors.InputTypeError) as error:
            return type(error), str(error)


def assert_same(a, b):
    if isinstance(a, np.ndarray):
        assert a is b or (a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b or repr(a) == repr(b)  # NaN, too


def array(shape, dtype):
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7 + 1).astype(dtype)


@settings(max_examples=60)
@given(st.data())
def test_data_of_plain_arrays(data):
    shape, other = data.draw(st.sampled_from(SHAPES)), data.draw(st.sampled_from(SHAPES))
    x_shape = data.draw(st.sampled_from([shape, other, (2, *shape)]))
    x, y = (array(s, data.draw(st.sampled_from(DTYPES))) for s in (x_shape, shape))
    kinds = st.sampled_from(["none", "same", "other", "covariance"])
    sigmas = {"none": None, "same": array(shape, "f8"), "other": array(other, "f4")}
    sigma = (sigmas | {"covariance": np.eye(max(y.size, 1))})[data.draw(kinds)]
    mask = data.draw(st.sampled_from([None, array(shape, "f8") > 2, array(other, "f8") > 9, y]))
    inputs = InputOptions(
        sigma=sigma,
        mask=mask,
        nan_policy=data.draw(st.sampled_from(["raise", "omit", None, "drop"])),
        fill_value=data.draw(st.sampled_from([None, 2, np.nan, "none"])),
        time_unit=data.draw(st.sampled_from(["s", "h", "year"])),
        checkpoint=data.draw(st.sampled_from([None, "folder", "s3://bucket/run"])),
    )
    assert_same(opened(x, y, inputs, plain=True), opened(x, y, inputs, plain=False))


@pytest.mark.parametrize(
    "changes",
    [{"decode": True}, {"storage_options": {"anon": True}}, {"dim": 3}, {"data": 5}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_arguments_are_checked_for_plain_arrays(changes):
    inputs = InputOptions(**changes)
    kind, text = opened(np.ones(3), np.ones(3), inputs, plain=True)
    assert issubclass(kind, _errors.InputError | _errors.InputTypeError)
    assert text


@pytest.mark.parametrize("x", [None, "x", np.array(["a", "b"]), np.ma.ones(2), [1.0, 2.0]])
def test_what_is_no_plain_array(x):
    y = np.ones(2)
    assert_same(*(opened(x, y, InputOptions(), plain=plain) for plain in (True, False)))
