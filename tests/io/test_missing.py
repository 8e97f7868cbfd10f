"""Which rows are left out, and what is said of values that cannot be used."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError, InputTypeError
from nlsq_dask.io import stage as stage_module
from nlsq_dask.io.missing import MissingRule, missing_rule
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stage import Stage
from tests.support.counting_store import stored
from tests.support.engines import finite_problem
from tests.support.missing_problems import gappy_problems

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("dtype", "value", "held"),
    [
        pytest.param("i2", -9999, -9999, id="int16"),
        pytest.param("i2", -9999.0, -9999, id="whole float for int16"),
        pytest.param(">i2", -9999, -9999, id="big-endian int16"),
        pytest.param("u1", 255, 255, id="uint8"),
        pytest.param("u8", 2**64 - 1, 2**64 - 1, id="largest uint64"),
        pytest.param("i8", -(2**63), -(2**63), id="smallest int64"),
        pytest.param("?", True, True, id="bool"),
        pytest.param("f4", -999.9, np.float32(-999.9), id="rounded as float32 is"),
        pytest.param("f4", 9.96921e36, np.float32(9.96921e36), id="NetCDF's"),
        pytest.param("f2", -9999, np.float16(-9999), id="float16"),
        pytest.param("f8", INF, INF, id="infinity"),
        pytest.param("f8", np.int16(3), 3.0, id="NumPy scalar"),
    ],
)
def test_fill_values_are_compared_in_y_s_dtype(dtype, value, held):
    rule = missing_rule("raise", value, np.dtype(dtype))
    assert rule.fill_value == held
    assert np.dtype(type(rule.fill_value)) == np.dtype(dtype).newbyteorder("=")
    y = np.array([held, 1 - held if dtype == "?" else 0], dtype)
    (flags,) = rule.flags([y])
    np.testing.assert_array_equal(flags, [True, False])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("i2", -99999), ("i2", 0.5), ("u1", -1), ("i4", NAN), ("i4", INF), ("?", 2), ("f4", 1e300)],
)
def test_fill_values_that_y_cannot_hold_are_refused(dtype, value):
    message = (
        rf"^fill_value = {re.escape(repr(value))} cannot be held by y's dtype {np.dtype(dtype)}"
    )
    with pytest.raises(InputError, match=message):
        observe(np.ones(3), np.ones(3, dtype), fill_value=value)


@pytest.mark.parametrize("value", ["-9999", [1, 2], 1j, object()])
def test_fill_values_that_are_no_number_are_refused(value):
    with pytest.raises(InputTypeError, match="is no real number"):
        observe(np.ones(3), np.ones(3), fill_value=value)


def test_nan_as_fill_value_is_nan_in_y_alone():
    rule = missing_rule(None, NAN, np.dtype("f4"))
    y, x = np.array([1, NAN], "f4"), np.array([NAN, 1])
    (flags,) = rule.flags([y, x])
    np.testing.assert_array_equal(flags, [False, True])


@pytest.mark.parametrize("policy", ["propagate", "Omit", True, 0, np.array(["omit", "raise"])])
def test_unknown_policies_are_refused(policy):
    with pytest.raises(InputError, match="^nan_policy = .* choose one of 'raise' and 'omit'"):
        observe(np.ones(2), np.ones(2), nan_policy=policy)


def test_without_a_wish_nothing_is_selected():
    masked = np.ma.MaskedArray(np.ones(4))
    no_mask = np.ma.MaskedArray(np.ones(4), np.zeros(4, bool))
    data = observe(masked, no_mask, masked, mask=False, nan_policy=None)
    assert not data.selects
    assert data.rule == MissingRule()
    assert [type(a) for a in data.operands] == [np.ndarray] * 3


@pytest.mark.parametrize("mask", [np.zeros(4), [0, 1, 0, 0], ["x"], np.zeros(4, int), da.zeros(4)])
def test_masks_hold_truth_values(mask):
    with pytest.raises(InputTypeError, match="^mask has dtype"):
        observe(np.ones(4), np.ones(4), mask=mask)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1, 1, 4), (0,)])
def test_masks_broadcast_or_are_refused(shape):
    with pytest.raises(InputError, match=r"^mask has shape .* but y has shape \(4,\)"):
        observe(np.ones(4), np.ones(4), mask=np.ones(shape, bool))


def test_a_masked_mask_leaves_out_what_it_hides():
    mask = np.ma.MaskedArray([True, False, False], [False, True, False])
    data = observe(np.ones(3), np.ones(3), mask=mask)
    np.testing.assert_array_equal(data.masks[0], [True, True, False])
    lazy = observe(np.ones(3), np.ones(3), mask=da.from_array(mask, chunks=2))
    block = lazy.layout.block([*lazy.values, lazy.masks[0].compute()])
    np.testing.assert_array_equal(block.left_out(), [True, True, False])


def test_masked_arrays_in_memory_are_not_copied():
    y = np.ma.masked_less(np.arange(100.0), 3)
    x = np.ma.masked_less(np.arange(200.0).reshape(2, 100), 50)
    mask = np.arange(100) == 70
    data = observe(x, y, mask=mask)
    assert np.shares_memory(data.y, y.data)
    assert [type(a) for a in data.values] == [np.ndarray] * 3
    assert all(np.shares_memory(c, x.data) for c in data.coords)
    sources = [mask, y.mask, x.mask]
    assert all(np.shares_memory(m, s) for m, s in zip(data.masks, sources, strict=True))
    assert data.count_rows() == 49


@pytest.mark.parametrize("lazy", ["x", "y", "mask"])
def test_a_lazy_mask_makes_the_data_lazy(lazy):
    arrays = {"x": np.ones(10), "y": np.ones(10), "mask": np.arange(10) < 3}
    arrays[lazy] = da.from_array(arrays[lazy], chunks=4)
    data = observe(**arrays)
    assert data.lazy
    assert len(data.operands) == 3


def test_a_mask_that_leaves_out_everything_is_known_before_any_pass():
    with pytest.raises(InputError, match="^all 6 rows are left out: check the masks"):
        observe(np.ones((2, 3)), np.ones((2, 3)), mask=[[True], [True]])


SIGMA = np.array([1.0, 0.0, 2.0, NAN, -3.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sigma has 3 values that are not positive (one is 0.0)"),
        (
            {"nan_policy": "omit"},
            "sigma has 2 values that are not positive (one is 0.0), the first",
        ),
        (
            {"mask": [False, True, False, False, True]},
            "sigma has 1 value that is not positive (one is nan), the first at index (3,)",
        ),
        ({"mask": [False, True, False, False, True], "nan_policy": "omit"}, None),
        ({"mask": SIGMA != 1}, None),
    ],
)
def test_sigma_is_positive_in_rows_that_count(options, message):
    if message is None:
        assert observe(np.ones(5), np.ones(5), SIGMA, **options).sigma is SIGMA
        return
    with pytest.raises(InputError) as raised:
        observe(np.ones(5), np.ones(5), SIGMA, **options)
    assert str(raised.value).startswith(message)
    assert ("nan_policy='omit'" in str(raised.value)) == ("nan" in message)


def test_sigma_in_memory_of_rows_that_are_not_known_yet():
    lazy = da.from_array(np.array([False, True, False, True, False]), chunks=2)
    data = observe(np.ones(5), np.ones(5), SIGMA, mask=lazy)
    assert str(finite_problem(data)).startswith(
        "sigma has 1 value that is not positive (one is -3.0), the first at index (4,)"
    )
    np.testing.assert_array_equal(SIGMA, [1.0, 0.0, 2.0, NAN, -3.0])


def staged_rows(data, capacity):
    """All rows that count, as they come out of a small stage, and how many were left out."""
    block = data.block(tuple(slice(0, n) for n in data.y.shape))
    parts, n_left_out, start = [], 0, 0
    stage = Stage(len(data.coords), data.sigma is not None, capacity)
    while start < data.n_rows:
        before, filled = start, stage.n_rows
        start = stage.fill(block, start)
        assert start > before or stage.n_rows > filled
        if stage.full or start == data.n_rows:
            columns = [stage.y, *stage.coords]
            columns += [] if stage.weights is None else [stage.weights]
            parts.append(np.stack([c[: stage.n_rows] for c in columns]))
            assert stage.full or start == data.n_rows
            n_left_out += stage.n_left_out
            stage.clear()
    return np.concatenate(parts, axis=1), n_left_out


@pytest.mark.slow
@settings(max_examples=150)
@given(case=gappy_problems(), capacity=st.integers(1, 300), scan=st.sampled_from([1, 7, 4096]))
def test_stages_hold_the_rows_that_count_once_and_in_order(case, capacity, scan):
    if not case.keep.any():
        return
    data = case.in_memory()
    assert data.count_rows() == case.keep.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "MIN_SCAN_ROWS", scan)
        staged, n_left_out = staged_rows(data, capacity)
    rest = case.remaining
    columns = [rest.y, *(rest.x if rest.x.__class__ is tuple or rest.x.ndim == 2 else (rest.x,))]
    columns = [c.astype(float) for c in columns]
    if rest.sigma is not None:
        columns.append(1 / rest.sigma.astype(float))
    np.testing.assert_array_equal(staged, np.stack(columns))
    assert n_left_out == case.n_skipped


@st.composite
def spoiled(draw):
    """Arrays with a few values that cannot be used, and rows that do not count."""
    shape = draw(st.sampled_from([(40,), (6, 7), (1, 9), (3, 4, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    axis = tuple(n if i == len(shape) - 1 else 1 for i, n in enumerate(shape))
    arrays = {"y": rng.random(shape), "a": rng.random(axis), "b": rng.random(shape)}
    arrays["sigma"] = rng.uniform(1, 2, shape)
    for array in arrays.values():
        bad = rng.random(array.shape) < draw(st.sampled_from([0, 0, 0.05]))
        array[bad] = rng.choice(draw(st.sampled_from([[NAN], [INF], [NAN, -INF]])), bad.sum())
    options = {"mask": rng.random(shape) < 0.3} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        options["nan_policy"] = "omit"
    return arrays, options, rng


def expected_findings(arrays, options):
    """Name, count and first index of the first array with bad values; rows affected; with NaN."""
    shape = arrays["y"].shape
    wide = {name: np.broadcast_to(a, shape) for name, a in arrays.items()}
    counts = ~options.get("mask", np.zeros(shape, bool))
    nan = np.any([np.isnan(a) for a in wide.values()], axis=0)
    if "nan_policy" in options:
        counts = counts & ~nan
    bad = {name: ~np.isfinite(a) & counts for name, a in wide.items()}
    for name, flags in bad.items():
        if flags.any():
            first = tuple(int(i) for i in np.argwhere(flags)[0])
            affected = np.any(list(bad.values()), axis=0)
            return name, int(flags.sum()), first, int(affected.sum()), int((nan & affected).sum())
    return None


@pytest.mark.slow
@settings(max_examples=80)
@given(case=spoiled(), lazily=st.booleans())
def test_what_is_wrong_is_named_counted_and_located(case, lazily):
    arrays, options, rng = case
    expected = expected_findings(arrays, options)
    if lazily:
        sizes = [
            tuple(max(1, int(rng.integers(1, n + 1))) for n in arrays["y"].shape) for _ in "xy"
        ]
        wrap = {
            name: da.from_array(a, chunks=tuple(map(min, sizes[name == "y"], a.shape)))
            for name, a in arrays.items()
        }
    else:
        wrap = arrays
    try:
        data = observe((wrap["a"], wrap["b"]), wrap["y"], wrap["sigma"], **options)
    except InputError as error:
        assert not lazily
        assert re.match("sigma has|all .* rows are left out", str(error))
        return
    problem = finite_problem(data)
    if expected is None:
        assert problem is None
        return
    name, count, first, n_affected, n_nan = expected
    text = str(problem)
    name = {"a": "x[0]", "b": "x[1]"}.get(name, name)
    values = "1 value that is" if count == 1 else f"{count} values that are"
    rows = "1 row is" if n_affected == 1 else f"{n_affected} rows are"
    assert text.startswith(f"{name} has {values} NaN or infinite, the first ")
    assert f"{rows} affected in all" in text
    assert (f"nan_policy='omit' leaves out the {n_nan} with NaN" in text) == (n_nan > 0)
    assert ("a mask leaves out those with infinite values" in text) == (n_nan < n_affected)
    if not lazily:
        assert f"the first at index {first} (" in text
        return
    # The first row of the first block that has one, which need not be the first row of all.
    at, block = re.search(r"at index \((.*?)\), in block .* y\[(.*?)\]", text).groups()
    index = tuple(int(i) for i in at.split(",") if i.strip())
    box = tuple(slice(*map(int, s.split(":"))) for s in block.split(","))
    assert all(s.start <= i < s.stop for i, s in zip(index, box, strict=True))
    only = {k: np.broadcast_to(a, arrays["y"].shape)[box] for k, a in arrays.items()}
    inside = expected_findings(only, {k: v[box] if k == "mask" else v for k, v in options.items()})
    wide = np.broadcast_to(arrays[expected[0]], arrays["y"].shape)
    assert not np.isfinite(wide[index])
    assert inside is not None


def test_what_is_wrong_is_found_in_one_reading(tmp_path):
    values = np.ones(1000)
    values[777] = NAN
    x, y = stored(tmp_path / "x", np.ones(1000), (100,)), stored(tmp_path / "y", values, (100,))
    sigma = da.from_array(np.ones(1000), chunks=130)
    problem = finite_problem(observe((x, da.from_zarr(x)), y, sigma))
    assert str(problem).startswith(
        "y has 1 value that is NaN or infinite, the first at index (777,), in block"
    )
    assert set(y.store.reads.values()) <= {1, 2}  # 2 where a chunk of sigma cuts it


@pytest.mark.cluster
def test_what_is_wrong_is_found_on_a_cluster(client):
    y = np.ones(100)
    y[[33, 78]] = INF
    lazy = da.from_array(y, chunks=30)
    problem = finite_problem(observe(np.ones(100), lazy, mask=np.arange(100) == 33), client)
    assert str(problem) == (
        "y has 1 value that is NaN or infinite, the first at index (78,), in block (2,), which "
        "is y[60:90] (array must not contain infs or NaNs). 1 row is affected in all: a mask "
        "leaves out those with infinite values."
    )
