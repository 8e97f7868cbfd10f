"""What cannot be fitted ends in one documented error that says what to do about it."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlsq_dask import (
    CovarianceWarning,
    FitError,
    InputError,
    InputTypeError,
    ModelError,
    NotRowWiseError,
    curve_fit,
    fit,
)

X = np.linspace(0, 4, 100)
Y = 2.5 * np.exp(-1.3 * X) + 0.5


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def lazy(array, chunks=30):
    return da.from_array(np.asarray(array), chunks=chunks)


def with_value(value, index=7):
    changed = Y.copy()
    changed[index] = value
    return changed


# Arguments of fit(decay, ...), the error, and what its message says.
DATA = {
    "y too short": (dict(y=Y[:99]), InputError, "x has shape (100,) but y has shape (99,)"),
    "y of two columns": (dict(y=np.ones((100, 2))), InputError, "y has shape (100, 2)"),
    "x too long": (dict(x=np.ones(101)), InputError, "x has shape (101,) but y has shape (100,)"),
    "x transposed": (dict(x=np.ones((100, 2))), InputError, "x has shape (100, 2)"),
    "one of x": (
        dict(x=(X, X[:-1])), InputError, "x[1] has shape (99,) but y has shape (100,)"
    ),
    "sigma too short": (
        dict(sigma=np.ones(99)),
        InputError,
        "but y has shape (100,): pass an array of y's shape, or one that broadcasts to it.",
    ),
    "sigma a matrix of 99": (
        dict(sigma=np.eye(99)), InputError, "`sigma` has incorrect shape. sigma has shape (99, 99)"
    ),
    "no rows": (dict(x=[], y=[]), InputError, "y is empty"),
    "no rows of columns": (dict(x=np.ones((2, 0)), y=np.ones(0)), InputError, "y is empty"),
    "no coordinates": (dict(x=()), InputError, "x has shape (0,)"),
    "complex y": (dict(y=Y + 1j), InputTypeError, "y has dtype complex128"),
    "complex x": (dict(x=X + 1j), InputTypeError, "x has dtype complex128"),
    "text": (dict(y=["1"] * 100), InputTypeError, "y has dtype <U1"),
    "objects": (dict(y=np.array([None] * 100)), InputTypeError, "y has dtype object"),
    "dates": (dict(y=np.arange(100).astype("M8[s]")), InputTypeError, "y has dtype datetime64[s]"),
    "text in sigma": (dict(sigma=["a"] * 100), InputTypeError, "sigma has dtype <U1"),
    "ragged": (dict(y=[[1, 2], [3]]), InputError, "y cannot be made an array"),
    "all of y masked": (
        dict(y=np.ma.masked_greater(Y, -1)), InputError, "all 100 rows are left out"
    ),
    "zero sigma": (
        dict(sigma=with_value(0.0)), InputError, "sigma has 1 value that is not positive"
    ),
    "negative sigma": (dict(sigma=-1.0), InputError, "sigma has 1 value that is not positive"),
    "one infinite sigma": (
        dict(sigma=with_value(np.inf)),
        InputError,
        "sigma has 1 value that is infinite (one is inf)",
    ),
    "sigma infinite": (
        dict(sigma=np.inf), InputError, "a mask leaves out rows that are to have no weight"
    ),
    "fewer rows than parameters": (
        dict(x=X[:2], y=Y[:2]),
        InputTypeError,
        "The number of func parameters=3 must not exceed the number of data points=2: pass more",
    ),
    "one row": (dict(x=X[:1], y=Y[:1]), InputTypeError, "the number of data points=1"),
    "NaN in sigma": (dict(sigma=with_value(np.nan)), InputError, "sigma has 1 value"),
    "NaN in y": (dict(y=with_value(np.nan)), InputError, "y has 1 value that is NaN"),
    "NaN in x": (dict(x=with_value(np.nan)), InputError, "x has 1 value that is NaN"),
    "infinite y": (dict(y=with_value(-np.inf)), InputError, "y has 1 value that is NaN"),
    "NaN in some y": (
        dict(y=with_value(np.nan, [3, 50, 99])), InputError, "y has 3 values that are NaN"
    ),
    "all of a Dask array masked": (
        dict(y=da.ma.masked_greater(lazy(Y), -1)), InputError, "all 100 rows are left out"
    ),
    "unknown chunks": (
        dict(y=lazy(Y)[lazy(Y) > 0.6]), InputError, "y.compute_chunk_sizes() first"
    ),
    "unknown chunks of x": (
        dict(x=lazy(X)[lazy(X) > 1]), InputError, "x.compute_chunk_sizes() first"
    ),
    "empty Dask array": (dict(x=lazy([]), y=lazy([])), InputError, "y is empty"),
    "complex Dask array": (dict(y=lazy(Y + 1j)), InputTypeError, "y has dtype complex128"),
}  # fmt: skip

OPTIONS = {
    "p0 below its bound": (
        dict(p0=[1, 1, 0], bounds=(0.5, 9)), InputError, "p0 is infeasible: c = 0.0"
    ),
    "p0 of another length": (
        dict(p0=[1, 1]), (InputError, ModelError), "2"
    ),
    "p0 text": (dict(p0=["a", "b", "c"]), InputTypeError, "p0"),
    "p0 NaN": (dict(p0=[1, np.nan, 1]), InputError, "p0 is NaN or infinite for b"),
    "p0 unknown name": (dict(p0={"a": 1, "b": 1, "d": 1}), InputError, "p0 names d"),
    "p0 without a name": (dict(p0={"a": 1, "b": 1}), (InputError, ModelError), ""),
    "bounds crossed": (
        dict(bounds=([0, 2, 0], [9, 1, 9])), InputError, "parameter b has the lower bound 2.0"
    ),
    "bounds equal": (
        dict(bounds=([0, 1, 0], [9, 1, 9])), InputError, "strictly less"
    ),
    "bounds of another length": (
        dict(bounds=([0, 0], 9)), InputError, "lower bounds have shape (2,)"
    ),
    "bounds no pair": (dict(bounds=3), InputTypeError, "bounds = 3"),
    "bounds of an unknown name": (dict(bounds={"q": (0, 1)}), InputError, "bounds names q"),
    "NaN bound": (dict(bounds=(np.nan, 1)), InputError, "NaN"),
    "unknown strategy": (dict(strategy="fast"), InputError, "strategy = 'fast' is unknown"),
    "unknown device": (dict(device="tpu"), InputError, "device='tpu'"),
    "negative ftol": (dict(ftol=-1.0), InputError, "ftol = -1.0"),
    "no tolerance": (dict(ftol=None, xtol=None, gtol=None), InputError, "ftol, xtol and gtol"),
    "max_nfev zero": (dict(max_nfev=0), InputError, "max_nfev = 0"),
    "x_scale zero": (dict(x_scale=[1, 0, 1]), InputError, "x_scale = "),
    "x_scale of another length": (dict(x_scale=[1, 1]), InputError, "x_scale has shape (2,)"),
    "x_scale unknown": (dict(x_scale="best"), InputError, "x_scale = 'best'"),
}  # fmt: skip


def loses_a_row(x, a, b, c):
    return jnp.ones((x.size - 1, 3))


def returns_nothing_of_them(x, a, b, c):
    pass


REST = {
    "p0 infinite": (dict(p0=[1, np.inf, 1]), InputError, "p0 is NaN or infinite for b"),
    "p0 complex": (dict(p0=[1, 1j, 1]), InputTypeError, "p0 = [1, 1j, 1] is not a seq"),
    "p0 of two dimensions": (dict(p0=[[1, 1, 1]]), InputTypeError, "p0 has shape (1, 3)"),
    "bounds of text": (dict(bounds=("a", "b")), InputTypeError, "the lower bounds are 'a'"),
    "bounds complex": (dict(bounds=(1j, 3)), InputTypeError, "the lower bounds are 1j"),
    "bounds of a name no pair": (
        dict(bounds={"a": 3}), InputTypeError, "the bounds of parameter a are 3"
    ),
    "lower equal to upper by name": (dict(bounds={"a": (1, 1)}), InputError, "parameter a has"),
    "fixed unknown name": (dict(fixed={"q": 1}), InputError, "fixed names q"),
    "fixed no dict": (dict(fixed=["a"]), InputTypeError, "fixed = ['a']"),
    "fixed NaN": (dict(fixed={"a": np.nan}), InputError, "fixed['a'] = nan"),
    "fixed everything": (
        dict(fixed={"a": 1, "b": 1, "c": 1}), InputError, "a, b and c are all fixed"
    ),
    "fixed outside bounds": (
        dict(fixed={"a": -1}, bounds={"a": (0, 9)}), InputError, "a is fixed at -1.0, outside"
    ),
    "ties unknown name": (dict(ties={"q": "a"}), InputError, "ties names q"),
    "ties to an unknown name": (dict(ties={"a": "q"}), InputError, "ties['a'] names q"),
    "ties in a circle": (dict(ties={"a": "b", "b": "a"}), InputError, "a -> b -> a"),
    "ties to a number": (dict(ties={"a": 1}), InputTypeError, "ties['a'] = 1"),
    "ties of another shape": (dict(ties=np.eye(2)), InputError, "ties has shape (2, 2)"),
    "ties of lower rank": (dict(ties=np.ones((3, 2))), InputError, "rank 1"),
    "fixed and tied": (
        dict(ties={"a": "b"}, fixed={"a": 1}), InputError, "a cannot be both fixed and tied"
    ),
    "loss unknown": (dict(loss="l1"), InputError, "loss = 'l1' is unknown"),
    "loss a list": (dict(loss=["huber"]), InputError, "loss = ['huber'] is unknown"),
    "loss of one term": (dict(loss=jnp.log1p), ModelError, "loss = log1p returned shape (1009,)"),
    "f_scale zero": (dict(loss="huber", f_scale=0), InputError, "f_scale = 0"),
    "f_scale negative, linear": (dict(f_scale=-1), InputError, "f_scale = -1"),
    "f_scale NaN": (dict(f_scale=np.nan), InputError, "f_scale = nan"),
    "f_scale text": (dict(f_scale="x"), InputError, "f_scale = 'x'"),
    "f_scale one a row": (dict(f_scale=[1, 2]), InputError, "f_scale = [1, 2]"),
    "method unknown": (dict(method="newton"), InputError, "method = 'newton' is unknown"),
    "lm with bounds": (dict(method="lm", bounds=(0, 9)), InputError, "'lm' only works for uncon"),
    "lm with a loss": (dict(method="lm", loss="huber"), InputError, "supports only 'linear' loss"),
    "workflow unknown": (dict(workflow="turbo"), InputError, "workflow = 'turbo' is unknown"),
    "goal unknown": (dict(goal="nope"), InputError, "goal = 'nope' is unknown"),
    "jac unknown": (dict(jac="4-point"), InputError, "jac = '4-point' is unknown"),
    "jac an array": (dict(jac=np.eye(3)), InputError, "pass a function jac(x, a, b, ...)"),
    "jac of too few parameters": (dict(jac=lambda x, a: x), ModelError, "jac(x, a, b, c)"),
    "jac of another shape": (
        dict(jac=loses_a_row), ModelError, "jac = loses_a_row returned shape (1008, 3)"
    ),
    "jac of nothing": (
        dict(jac=returns_nothing_of_them), ModelError, "jac = returns_nothing_of_them returned None"
    ),
    "nan_policy unknown": (dict(nan_policy="drop"), InputError, "nan_policy = 'drop' is unknown"),
    "verbose 3": (dict(verbose=3), InputError, "verbose = 3"),
    "verbose text": (dict(verbose="loud"), InputError, "verbose = 'loud'"),
    "verbose two numbers": (dict(verbose=np.array([1, 2])), InputError, "verbose = array([1, 2])"),
    "callback a number": (dict(callback=3), InputTypeError, "callback = 3 cannot be called"),
    "stat_tol a word": (dict(stat_tol="best"), InputError, "stat_tol = 'best'"),
    "pilot a word": (dict(pilot="yes"), InputError, "pilot = 'yes' is unknown"),
    "cache a word": (dict(cache="yes"), InputError, "cache = 'yes' is unknown"),
    "stat_tol negative": (dict(stat_tol=-1), InputError, "stat_tol = -1"),
    "ftol a word": (dict(ftol="small"), InputError, "ftol = 'small'"),
    "xtol two numbers": (dict(xtol=[1, 2]), InputError, "xtol = [1, 2]"),
    "gtol NaN": (dict(gtol=np.nan), InputError, "gtol = nan"),
    "max_nfev a fraction": (dict(max_nfev=1.5), InputError, "max_nfev = 1.5"),
    "max_nfev text": (dict(max_nfev="x"), InputError, "max_nfev = 'x'"),
    "mask of numbers": (dict(mask=np.zeros(100)), InputTypeError, "mask has dtype float64"),
    "mask too short": (dict(mask=np.zeros(99, bool)), InputError, "mask has shape (99,)"),
    "mask of more dimensions": (
        dict(mask=np.zeros((2, 100), bool)), InputError, "mask has shape (2, 100)"
    ),
    "mask of everything": (dict(mask=True), InputError, "all 100 rows are left out"),
    "fill_value text": (dict(fill_value="x"), InputTypeError, "fill_value = 'x'"),
    "fill_value two": (dict(fill_value=[1, 2]), InputTypeError, "fill_value = [1, 2]"),
    "fill_value complex": (dict(fill_value=1j), InputTypeError, "fill_value = 1j"),
    "seed negative": (dict(seed=-1), InputError, "seed = -1"),
    "n_starts zero": (dict(n_starts=0), InputError, "n_starts = 0"),
    "memory negative": (dict(memory_limit_gb=-1), InputError, "memory_limit_gb = -1"),
    "resume without a checkpoint": (dict(resume=True), InputError, "checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", {**DATA, **OPTIONS, **REST})
def test_one_error_with_the_argument_s_name(name):
    arguments, error, text = {**DATA, **OPTIONS, **REST}[name]
    with pytest.raises(error) as raised:
        fit(decay, **{"x": X, "y": Y, **arguments})
    assert text in str(raised.value)
    assert isinstance(raised.value, FitError)
    assert isinstance(raised.value, ValueError | TypeError)
    # A cause and a remedy, in one sentence or two.
    assert ":" in str(raised.value)


def unreadable(array, chunks=30):
    """A Dask array whose values must not be asked for."""

    def fail(block):
        raise AssertionError("the data were read")

    return lazy(array, chunks).map_blocks(fail, dtype=float, meta=np.empty(0))


# What only values in memory are known to have: those of Dask arrays are found by the first pass.
FOUND_BY_READING = {
    name for name in DATA if name.startswith(("NaN in y", "NaN in x", "infinite", "NaN in some"))
} | {"all of a Dask array masked"}  # fmt: skip


@pytest.mark.parametrize("name", sorted({**DATA, **OPTIONS, **REST}.keys() - FOUND_BY_READING))
def test_it_is_known_before_any_row_is_read(name):
    """Reading may take hours: whatever can be known without it is said at once."""
    arguments, error, text = {**DATA, **OPTIONS, **REST}[name]
    with pytest.raises(error) as raised:
        fit(decay, **{"x": unreadable(X), "y": unreadable(Y), **arguments})
    assert text in str(raised.value)


# Arguments of curve_fit, and what SciPy raises for them.
AS_IN_SCIPY = {
    name: {**OPTIONS, **REST}[name][0]
    for name in (
        "p0 below its bound", "p0 NaN", "p0 infinite", "bounds crossed", "bounds equal",
        "bounds of another length", "loss unknown", "method unknown",
        "lm with bounds", "nan_policy unknown", "jac unknown", "max_nfev zero",
        "x_scale zero", "x_scale of another length", "x_scale unknown", "verbose 3",
    )
} | {
    "NaN in y": dict(ydata=with_value(np.nan)),
    "infinite y": dict(ydata=with_value(np.inf)),
    "NaN in x": dict(xdata=with_value(np.nan)),
    "sigma too short": dict(sigma=np.ones(99)),
    "sigma of three dimensions": dict(sigma=np.ones((2, 2, 2))),
    "no rows": dict(xdata=[], ydata=[]),
    "fewer rows than parameters": dict(xdata=X[:2], ydata=Y[:2], method="lm"),
}  # fmt: skip


def decay_in_numpy(x, a, b, c):
    return a * np.exp(-b * x) + c


@pytest.mark.parametrize("name", AS_IN_SCIPY)
def test_the_type_is_scipy_s(name):
    arguments = {"xdata": X, "ydata": Y, "method": "trf", **AS_IN_SCIPY[name]}
    with np.errstate(all="ignore"), pytest.raises((ValueError, TypeError)) as theirs:
        scipy.optimize.curve_fit(decay_in_numpy, **arguments)
    with pytest.raises(FitError) as ours:
        curve_fit(decay, **arguments)
    kind = ValueError if isinstance(theirs.value, ValueError) else TypeError
    assert isinstance(ours.value, kind)


@pytest.mark.parametrize("name", ["y too short", "NaN in y", "complex y", "p0 below its bound"])
def test_curve_fit_raises_the_same(name):
    arguments, error, text = {**DATA, **OPTIONS}[name]
    arguments = {"x": X, "y": Y, **arguments}
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(error) as raised:
        curve_fit(decay, x, y, **arguments)
    assert text in str(raised.value)


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(dict(y=with_value(np.nan)), "y has 1 value that is NaN", id="y"),
        pytest.param(dict(x=with_value(np.inf)), "x has 1 value that is NaN", id="x"),
        pytest.param(dict(sigma=with_value(np.nan)), "sigma has 1 value", id="sigma"),
        pytest.param(
            dict(sigma=with_value(0.0)), "sigma has 1 value that is not positive", id="zero sigma"
        ),
        pytest.param(
            dict(sigma=with_value(-1.0)),
            "sigma has 1 value that is not positive (one is -1.0), the first at index",
            id="negative sigma",
        ),
        pytest.param(
            dict(sigma=with_value(np.inf)),
            "sigma has 1 value that is NaN or infinite, the first at index (7,)",
            id="infinite sigma",
        ),
    ],
)
def test_bad_values_in_dask_arrays_are_named(data, text):
    arrays = {"x": X, "y": Y, "sigma": np.ones(100), **data}
    with pytest.raises(InputError) as raised:
        fit(decay, **{key: lazy(array) for key, array in arrays.items()})
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "value"), [("y", np.inf), ("x", np.inf), ("sigma", np.inf), ("sigma", 0.0)]
)
@pytest.mark.parametrize("index", [0, 30])
def test_a_bad_value_in_the_first_row_of_a_block_is_no_warning(argument, value, index):
    """The error alone tells of it: sums that are not finite on the way are no news."""
    arrays = {"x": X, "y": Y, "sigma": np.ones(100)}
    arrays[argument] = arrays[argument].copy()
    arrays[argument][index] = value
    with pytest.raises(InputError, match=f"{argument} has 1 value"):
        fit(decay, **{key: lazy(array) for key, array in arrays.items()})


@pytest.mark.parametrize("call", [fit, curve_fit])
def test_dask_arrays_without_rows_are_refused_as_such(call):
    with pytest.raises(InputError, match="y is empty"):
        call(decay, lazy(X)[:0], lazy(Y)[:0], [1, 1, 0])


@pytest.mark.parametrize("strategy", ["standard", "chunked"])
@pytest.mark.parametrize("argument", ["x", "y", "sigma"])
def test_dask_arrays_are_never_loaded_whole(strategy, argument):
    arrays = {"x": X, "y": Y, "sigma": np.ones(100)}
    arrays[argument] = lazy(arrays[argument])
    with pytest.raises(InputError, match=f"strategy = '{strategy}' needs data in memory"):
        fit(decay, **arrays, strategy=strategy)


def test_unknown_keywords_are_type_errors():
    with pytest.raises(TypeError, match="fltol"):
        fit(decay, X, Y, fltol=1e-3)
    with pytest.raises(TypeError, match="fltol"):
        curve_fit(decay, X, Y, fltol=1e-3)


def returns_a_column(x, a, b):
    return (a * x + b)[:, None]


def returns_two_rows(x, a, b):
    return jnp.stack([a * x, b * x])


def returns_one_less(x, a, b):
    return (a * x + b)[1:]


def returns_nothing(x, a, b):
    a * x + b


def returns_complex(x, a, b):
    return jnp.exp(1j * a * x) + b


def raises(x, a, b):
    raise KeyError("coefficients")


def raises_for_some_lengths(x, a, b):
    return a * x.reshape(7, -1).ravel() + b


def returns_text(x, a, b):
    return "a * x + b"


def returns_objects(x, a, b):
    return [a, None]


def not_a_number_at_the_start(x, a, b):
    return jnp.log(-1 - a**2) * x + b


def without_parameters(x):
    return x


MODELS = {
    "a string": ("a * x + b", InputTypeError, "cannot be called"),
    "None": (None, InputTypeError, "None"),
    "a column": (returns_a_column, ModelError, "one value a row, for example with .ravel()"),
    "two rows": (returns_two_rows, ModelError, "one value a row"),
    "one row less": (returns_one_less, ModelError, "one value a row"),
    "no return": (returns_nothing, ModelError, "returns_nothing returned None"),
    "complex": (returns_complex, ModelError, "returns_complex returned complex numbers"),
    "raises": (raises, ModelError, "raises raised KeyError"),
    "raises while traced": (
        raises_for_some_lengths,
        ModelError,
        "raises_for_some_lengths raised TypeError",
    ),
    "text": (returns_text, ModelError, "returns_text returned a str"),
    "objects": (returns_objects, ModelError, "returns_objects"),
    "NaN at p0": (not_a_number_at_the_start, InputError, "starting point p0 = [1, 1]"),
    "no parameters": (without_parameters, ModelError, "has no parameters to fit"),
    "no names": (lambda x, *theta: x, ModelError, "pass p0"),
}


@pytest.mark.parametrize("wrap", [np.asarray, lazy], ids=["memory", "Dask"])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_fitted(name, wrap):
    model, error, text = MODELS[name]
    with pytest.raises(error) as raised:
        fit(model, wrap(X), wrap(Y))
    assert text in str(raised.value)
    assert isinstance(raised.value, FitError)


def centred(x, a, b):
    return a * (x - x.mean()) + b


def cumulative(x, a, b):
    return a * jnp.cumsum(x) + b


def from_first(x, a, b):
    return a * (x - x[0]) + b


@pytest.mark.parametrize("model", [centred, cumulative, from_first])
def test_models_of_all_rows_are_refused_in_chunks(model):
    for strategy, data in [
        ("auto", (lazy(X), lazy(Y))),
        ("auto", (X, lazy(Y))),
        ("streaming", (X, Y)),
        ("chunked", (X, Y)),
    ]:
        with pytest.raises(NotRowWiseError, match="not row-wise"):
            fit(model, *data, strategy=strategy)
    assert fit(model, X, Y).strategy == "standard"


@pytest.mark.parametrize("wrap", [np.asarray, lazy], ids=["memory", "Dask"])
def test_as_many_rows_as_parameters_leave_the_noise_undetermined(wrap):
    """As in SciPy's curve_fit."""
    x, y = X[::40], Y[::40]
    with pytest.warns(CovarianceWarning, match="could not be estimated"):
        result = fit(decay, wrap(x), wrap(y), p0=[2, 1, 0.4])
    assert result.success
    assert np.isinf(result.pcov).all()
    assert np.isinf(result.perr).all()
    np.testing.assert_allclose(decay(x, *result.popt), y, rtol=1e-5)
    fitted = fit(decay, wrap(x), wrap(y), p0=[2, 1, 0.4], sigma=1.0, absolute_sigma=True)
    assert np.isfinite(fitted.pcov).all()


@pytest.mark.parametrize("wrap", [np.asarray, lazy], ids=["memory", "Dask"])
@pytest.mark.parametrize("method", ["trf", "lm", "dogbox"])
def test_rows_left_out_do_not_determine_parameters(wrap, method):
    y = np.where(np.arange(100) < 98, np.nan, Y)
    with pytest.raises(InputTypeError, match=r"=3 must .* points=2 \(98 more are left out\)"):
        fit(decay, wrap(X), wrap(y), nan_policy="omit", method=method)


@pytest.mark.parametrize("wrap", [np.asarray, lazy], ids=["memory", "Dask"])
def test_two_rows_determine_what_is_not_held(wrap):
    with pytest.warns(CovarianceWarning):
        result = fit(decay, wrap(X[:2]), wrap(Y[:2]), p0=[1, 1, 0.5], fixed={"c": 0.5})
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5], rtol=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_curve_fit_gives_rows_of_infinite_sigma_no_weight(absolute, dtype):
    """As SciPy does: the row counts as one, but pulls at nothing."""
    y = with_value(1e6) + 0.01 * np.sin(50 * X)
    sigma = np.where(np.arange(100) == 7, np.inf, 0.5).astype(dtype)
    arguments = dict(p0=[2, 1, 0.4], sigma=sigma, absolute_sigma=absolute, full_output=True)
    expected = scipy.optimize.curve_fit(decay_in_numpy, X, y, **arguments)
    got = curve_fit(decay_in_numpy, X, y, **arguments)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4)
    np.testing.assert_allclose(got[2]["fvec"], expected[2]["fvec"], atol=1e-6)


def test_parameters_without_effect_leave_the_covariance_undetermined():
    def model(x, a, b, unused):
        return a * jnp.exp(-b * x) + 0 * unused

    with pytest.warns(CovarianceWarning):
        result = fit(model, X, Y - 0.5, p0=[1, 1, 7])
    assert np.isinf(result.pcov).all()
    assert result.params["unused"].value == 7


def test_bad_input_changes_no_setting_for_the_next_fit():
    with pytest.raises(FitError):
        fit(raises, X, Y)
    np.testing.assert_allclose(fit(decay, X, Y).popt, [2.5, 1.3, 0.5], rtol=1e-6)
