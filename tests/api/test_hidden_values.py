"""Values that a model or a conversion would hide: they are found in the arrays themselves."""

from __future__ import annotations

import warnings

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import (
    FitError,
    InputError,
    InputTypeError,
    PrecisionWarning,
    curve_fit,
    fit,
    fit_models,
)
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.moments import ORDINARY, largest_of
from nlsq_dask.kernels.tiles import Rows
from tests.support.counting_store import stored

X = np.linspace(0.1, 4, 400)
Y = 2.5 * X + 0.5 + np.sin(97 * X) / 20
BAD = 123
NANOSECONDS = 1_700_000_000_000_000_000 + np.arange(400) * 1_000_003
PLACES = np.array([0.0, 1.0, 2.0, 3.0, 4.0])


def replaced(x, a, b):
    return a * jnp.nan_to_num(x) + b


def positive(x, a, b):
    return jnp.where(x > 0, a * x, 0.0) + b


def interpolated(x, a, b):
    return a * jnp.interp(jnp.where(x > 1, x, 1.0), PLACES, PLACES) + b


def plane(x, a, b):
    u, v = x
    return a * jnp.nan_to_num(u) + b * v


HIDING = [replaced, positive, interpolated]


def as_dask(array):
    return da.from_array(array, chunks=90)


def as_zarr(array):
    import zarr

    kept = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=array.shape,
        chunks=90,
        dtype=array.dtype,
        config={"write_empty_chunks": True},
    )
    kept[:] = array
    return kept


WRAPS = {"memory": np.asarray, "Dask": as_dask, "Zarr": as_zarr}
wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


def with_value(array, value, index=BAD):
    changed = np.array(array, float)
    changed[index] = value
    return changed


@pytest.mark.quick(3)
@pytest.mark.every(3)
@wraps
@pytest.mark.parametrize("model", HIDING)
@pytest.mark.parametrize("options", [{}, {"pilot": True}, {"n_starts": 3}], ids=str)
def test_nan_that_a_model_hides_is_named(model, wrap, options):
    x = with_value(X, np.nan)
    with pytest.raises(InputError, match=r"x has 1 value that is NaN .*\(123,\)") as raised:
        fit(model, wrap(x), wrap(Y), [1.0, 1.0], **options)
    assert "nan_policy='omit' leaves out the 1 with NaN" in str(raised.value)


@pytest.mark.quick(3)
@wraps
@pytest.mark.parametrize("model", HIDING)
def test_omit_leaves_such_rows_out(model, wrap):
    x, y = with_value(X, np.nan, [3, BAD, 399]), with_value(Y, np.nan, 50)
    keep = np.isfinite(x + y)
    found = fit(model, wrap(x), wrap(y), [1.0, 1.0], nan_policy="omit")
    rest = fit(model, X[keep], Y[keep], [1.0, 1.0])
    assert (found.n_points, found.n_skipped) == (396, 4)
    np.testing.assert_allclose(found.popt, rest.popt, rtol=1e-9)


@pytest.mark.quick(3)
@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
@pytest.mark.parametrize("name", ["x", "y", "sigma"])
@settings(max_examples=8)
@given(rows=st.sets(st.integers(0, 399), min_size=1, max_size=5))
def test_in_whatever_array_and_strategy(strategy, name, rows):
    arrays = {"x": X, "y": Y, "sigma": np.ones(400)}
    arrays[name] = with_value(arrays[name], np.nan, list(rows))
    x, y, sigma = arrays.values()
    wrap = as_dask if strategy == "streaming" else np.asarray
    with pytest.raises(InputError, match=f"{name} has {len(rows)} value"):
        fit(replaced, wrap(x), wrap(y), [1.0, 1.0], sigma=wrap(sigma), strategy=strategy)


def forgiving(z):
    """A loss to which all that is not finite is nothing."""
    rest = jnp.where(jnp.isfinite(z), z, 0.0)
    return jnp.stack([rest, jnp.isfinite(z) * 1.0, jnp.zeros_like(z)])


@pytest.mark.quick(3)
@wraps
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_hides_nothing_either(wrap, value):
    with pytest.raises(InputError, match="y has 1 value that is NaN or infinite"):
        fit(positive, wrap(X), wrap(with_value(Y, value)), [1.0, 1.0], loss=forgiving)


@wraps
def test_one_of_several_coordinates_that_broadcasts(wrap):
    u = with_value(np.arange(1.0, 31.0), np.nan, 7)
    v = np.arange(1.0, 21.0)[:, None]
    y = 2 * np.arange(1.0, 31.0) + v
    lazy = wrap(y.ravel()) if wrap is as_zarr else wrap(y)
    x = (np.tile(u, 20), np.repeat(v.ravel(), 30)) if wrap is as_zarr else (u, v)
    count = 20  # one a row of y
    with pytest.raises(InputError, match=rf"x\[0\] has {count} value"):
        fit(plane, x, lazy, [1.0, 1.0])


@wraps
def test_several_models(wrap):
    with pytest.raises(InputError, match="x has 1 value"):
        fit_models([replaced, positive], wrap(with_value(X, np.nan)), wrap(Y), [[1, 1], [1, 1]])


def test_an_infinity_that_a_model_knows_of_is_fitted():
    """``nan_policy`` is of NaN: at x = inf a model may well have a value."""

    def saturating(x, a, b):
        return a - b * jnp.where(jnp.isinf(x), 0.0, jnp.exp(-jnp.where(jnp.isinf(x), 0.0, x)))

    x = with_value(X, np.inf)
    y = 2.0 - np.exp(-x)
    np.testing.assert_allclose(fit(saturating, x, y, [1.0, 0.5]).popt, [2, 1], rtol=1e-8)


def test_curve_fit_looks_as_far_as_scipy_does():
    x = with_value(X, np.nan)
    theirs, _ = scipy.optimize.curve_fit(
        lambda x, a, b: a * np.nan_to_num(x) + b, x, Y, check_finite=False
    )
    np.testing.assert_allclose(curve_fit(replaced, x, Y, check_finite=False)[0], theirs, rtol=1e-7)
    lazy = curve_fit(replaced, as_dask(x), as_dask(Y), check_finite=False)[0]
    np.testing.assert_allclose(lazy, theirs, rtol=1e-7)
    with pytest.raises(ValueError, match="NaN"):
        curve_fit(replaced, x, Y)
    with pytest.raises(InputError, match="y has 1 value"):
        curve_fit(replaced, X, with_value(Y, np.nan), check_finite=False)
    with pytest.raises(InputError, match="x has 1 value"):
        curve_fit(replaced, as_dask(x), as_dask(Y))


@pytest.mark.slow
def test_good_data_are_read_once_a_pass(tmp_path):
    """Looking takes no reading of its own."""
    x = stored(tmp_path / "x", NANOSECONDS, (100,), fill_value=0)
    y = stored(tmp_path / "y", Y, (100,))
    with pytest.warns(PrecisionWarning):
        result = fit(replaced, x, y, [1e-18, 1.0], cache=False, pilot=False)
    for array in (x, y):
        assert set(array.store.reads.values()) == {result.n_passes}


@wraps
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("which", ["x", "y"])
def test_long_integers_are_warned_of(wrap, dtype, which):
    arrays = {"x": X, "y": Y, which: NANOSECONDS.astype(dtype)}
    with pytest.warns(PrecisionWarning) as warned:
        fit(replaced, wrap(arrays["x"]), wrap(arrays["y"]), [1.0, 1.0], max_nfev=30)
    (warning,) = [w for w in warned if isinstance(w.message, PrecisionWarning)]
    assert f"{which} has integers up to 1.7e+18" in str(warning.message)
    assert "multiples of 256" in str(warning.message)
    assert f"{which} - {which}[0]" in str(warning.message)
    assert warning.filename == __file__


@wraps
def test_the_remedy_of_long_integers(wrap):
    x = NANOSECONDS - NANOSECONDS[0]
    found = fit(replaced, wrap(x), wrap(1e-9 * x + 2), [1e-9, 1.0])
    np.testing.assert_allclose(found.popt, [1e-9, 2], rtol=1e-7)


NOT_LONG = (np.arange(400), np.arange(400) << 44, -X * 1e300)


@pytest.mark.quick(3)
@wraps
@pytest.mark.parametrize("values", NOT_LONG, ids=["small", "below 2**53", "not whole"])
def test_numbers_that_float64_holds_are_no_warning(wrap, values):
    scale = float(np.abs(values).max())

    def line(x, a, b):
        return a * (x / scale) + b

    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        fit(line, wrap(values), wrap(Y), [1.0, 1.0], stat_tol=None)


def test_one_warning_for_several_models():
    with pytest.warns(PrecisionWarning) as warned:
        fit_models([replaced, positive], NANOSECONDS, Y, [[1e-18, 1], [1e-18, 1]])
    assert len({str(w.message) for w in warned if isinstance(w.message, PrecisionWarning)}) == 1


SIZES = (1e-320, 1e-200, 1e-100, 1.0, 1e100, 1e160, 1e200, 1e300)


def sized_line(x, a, b):
    x, size = x
    return size * (a * x + b)


def check_size(wrap, size, sigma, absolute_sigma):
    deviations = None if sigma is None else wrap(np.full(400, sigma))
    x = (wrap(X), np.full(1, size))
    options = dict(sigma=deviations, absolute_sigma=absolute_sigma, gtol=None)
    try:
        result = fit(sized_line, x, wrap(size * Y), [1.0, 1.0], **options)
    except InputError as error:
        refused = "no sigma below 1e-307" if sigma == 1e-320 else "does not hold sums of squares"
        assert refused in str(error)
        sizes = (size, *(() if sigma is None else (sigma, size / sigma)))
        assert min(sizes) < 1e-149 or max(sizes) > 1e149
        return
    assert "a" in result.summary()
    assert str(result)
    assert result.confidence_intervals() is not None
    assert not np.isnan([result.aic, result.bic, result.chi2]).any()


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("wrap", [np.asarray, as_dask], ids=["memory", "Dask"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_extreme_sizes_are_fitted_or_refused_with_a_remedy(wrap, size):
    for sigma in (None, *SIZES):
        for absolute_sigma in (True, False):
            check_size(wrap, size, sigma, absolute_sigma)


def test_data_of_nothing_but_zeros_are_no_matter_of_size():
    np.testing.assert_allclose(fit(positive, X, 0 * X, [1.0, 1.0]).popt, 0, atol=1e-9)


def oscillation(x, a, k):
    t, part = x
    value = a * jnp.exp(1j * k * t)
    return jnp.where(part == 0, value.real, value.imag)


@wraps
def test_complex_y_is_told_how_it_is_stacked(wrap):
    y = 1.5 * np.exp(0.7j * X)
    for call in (fit, curve_fit):
        with pytest.raises(InputTypeError) as raised:
            call(replaced, wrap(X), wrap(y))
        assert "np.concatenate([y.real, y.imag])" in str(raised.value)
    x = (wrap(np.concatenate([X, X])), wrap(np.repeat([0, 1], len(X))))
    found = fit(oscillation, x, wrap(np.concatenate([y.real, y.imag])), [1.0, 0.6])
    np.testing.assert_allclose(found.popt, [1.5, 0.7], rtol=1e-8)


def test_dates_are_told_how_they_are_counted():
    dates = np.datetime64("2024-01-01", "ns") + np.arange(400) * np.timedelta64(90, "s")
    with pytest.raises(InputTypeError) as raised:
        fit(replaced, X, dates)
    expression = str(raised.value).partition("for example ")[2].rstrip(".")
    assert expression == "(y - y[0]) / np.timedelta64(1, 's')"
    y = eval(expression, {"y": dates, "np": np})
    np.testing.assert_array_equal(y, 90.0 * np.arange(400))
    np.testing.assert_array_equal(observe(dates, Y).coords[0], y)


def logarithm(x, a, b):
    with jax.enable_x64(True):
        return a * jnp.log(x - 0.1) + b


def explosion(x, a, b):
    with jax.enable_x64(True):
        return a * jnp.exp(b * x)


@pytest.mark.quick(3)
@wraps
@pytest.mark.parametrize(
    ("model", "p0"), [(logarithm, [1.0, 1.0]), (explosion, [1.0, 200.0]), (explosion, [1.0, 99.0])]
)
def test_a_start_that_is_not_finite_names_the_row(wrap, model, p0):
    with np.errstate(all="ignore"):
        values = np.asarray(model(X, *p0))
        bad = ~np.isfinite((values - Y) ** 2)
    first = int(np.argmax(bad))
    with pytest.raises(InputError) as raised:
        fit(model, wrap(X), wrap(Y), p0)
    assert f"the model's value is {values[first]:.6g}" in str(raised.value)
    assert f"at index ({first},)" in str(raised.value)
    assert f"where x = {X[first]:.6g}; such rows are {bad.sum()} in all" in str(raised.value)


def test_the_row_is_that_of_the_data_and_the_model_is_named():
    x = X[::-1].copy()
    with pytest.raises(InputError, match=r"index \(399,\), in block \(4,\), which is y\[360:400\]"):
        fit(logarithm, as_dask(x), as_dask(Y), [1.0, 1.0], fixed={"b": 1.0})
    with pytest.raises(InputError, match=r"^model 'logarithm': .* at index \(399,\), where x = 0"):
        fit_models([positive, logarithm], x, Y, [[1, 1], [1, 1]])
    with pytest.raises(InputError, match=r"at index \(398,\), where x = 0.10"):
        fit(explosion, x, Y, [1.0, 5000.0], mask=np.arange(400) < 398)


def many(x, *p):
    return p[0] * jnp.log(x - 0.1) + sum(p)


MANY = {
    "not finite": (many, dict(p0=np.arange(300.0))),
    "NaN": (many, dict(p0=np.full(300, np.nan))),
    "of two dimensions": (many, dict(p0=[list(range(300))])),
    "too many": (replaced, dict(p0=list(range(300)))),
    "bounds": (replaced, dict(bounds=list(range(300)))),
    "x_scale": (replaced, dict(x_scale=[-1.0] * 300)),
}


@pytest.mark.slow
@pytest.mark.every(3)
@pytest.mark.parametrize("name", MANY)
def test_many_numbers_are_not_printed_whole(name):
    model, options = MANY[name]
    x = np.linspace(0.1, 4, 400)
    with pytest.raises(FitError) as raised:
        fit(model, x, x, **options)
    assert len(str(raised.value)) < 900


def test_remedies_that_messages_name():
    with pytest.raises(InputError, match=r"mask=\(sigma <= 0\) leaves out"):
        fit(replaced, X, Y, sigma=with_value(np.ones(400), -1.0))
    with pytest.raises(InputError, match=r"mask=\(sigma <= 0\) leaves out"):
        fit(replaced, as_dask(X), as_dask(Y), sigma=as_dask(with_value(np.ones(400), 0.0)))
    with pytest.raises(InputError, match=r"is fixed by fixed=\{'b': 1.0\}"):
        fit(replaced, X, Y, bounds={"b": (1, 1)})
    with pytest.raises(InputError) as raised:
        fit(replaced, X, Y, bounds={"b": (2, 1)})
    assert "fixed" not in str(raised.value)


def test_no_warning_precedes_an_error():
    """Sums of blocks that are infinite and of both signs are NaN without a word."""
    y = np.where(X > 2, 1e200, -1e200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrap in WRAPS.values():
            with pytest.raises(InputError):
                fit(explosion, wrap(X), wrap(y), [1e200, 1.0])
            with pytest.raises(InputError):
                fit(explosion, wrap(X - 2), wrap(Y), [1.0, -300.0])


@settings(max_examples=40)
@given(
    exponent=st.integers(-300, 300),
    special=st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e305, 2.0**53]),
    n=st.sampled_from([1, 7, 9000]),
)
def test_largest_magnitudes_on_any_device(exponent, special, n):
    x = np.zeros(1 << 14)
    x[:n] = np.random.default_rng(0).normal(size=n) * 10.0**exponent
    x[n // 2] = special or x[n // 2]
    x[n:] = np.nan  # behind the rows, and of no meaning
    y = np.ones(x.size)
    exact = np.abs(x[:n]).max()
    with jax.enable_x64(True):
        on_device = largest_of(Rows((jnp.asarray(x),), y, None, n))
    here = largest_of(Rows((x,), y, None, n))
    np.testing.assert_array_equal(on_device[1], exact)
    if not 1 / ORDINARY < exact < ORDINARY:
        np.testing.assert_array_equal(here[1], exact)
    else:
        assert exact <= here[1] * (1 + 1e-12)
        assert here[1] < ORDINARY or here[1] == exact
    assert largest_of(Rows((x,), y, None, 0)) is None
