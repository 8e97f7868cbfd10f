"""Models written with NumPy: traced, they compute what NumPy computes."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from numpy.polynomial import chebyshev, polynomial

from nlsq_dask import _errors
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import call_model, trace_model
from tests.support.models_as_written import IN_PLACE, OPERATORS, PARAMS

pytestmark = pytest.mark.versions

TABLE = np.linspace(-1.0, 3.0, 9)


def assigned(x, a, b):
    out = np.zeros_like(x)
    out[x > 0] = 1.0
    out[0] = b
    out[1:3] = [a, b]
    out += a * np.exp(x)
    out *= b
    return out


def filled(x, a, b):
    out = np.empty_like(x)
    out.fill(a)
    out -= b * np.sin(x)
    return out


def divided(x, a, b):
    return b * np.divide(a, x, out=np.zeros_like(x), where=x != 0)


def aliased(x, a, b):
    y = np.exp(a * x)
    z = y
    z += b
    return y


def immutable_scalars(x, a, b):
    c = a
    c += 1.0
    return np.exp(c * x) + a * b


def series(x, a, b):
    total = np.zeros_like(x)
    for k, c in enumerate([a, b, 2.0]):
        total = total + c * x**k
    return total


def branches_on_shape(x, a, b):
    return np.exp(a * x) if x.ndim == 1 and len(x) > 0 and x.size == x.shape[0] else b


MODELS = {
    "exp": lambda x, a, b: a * np.exp(-b * x),
    "where": lambda x, a, b: np.where(x > a, b * x, 0),
    "where with lists": lambda x, a, b: np.where(x < 0, [a], [b]) * x,
    "sqrt": lambda x, a, b: np.sqrt(a * a + b * x**2),
    "clip": lambda x, a, b: np.clip(a * x, -1, b),
    "clip by name": lambda x, a, b: np.clip(x, a_min=-a, a_max=None) * b,
    "clip method": lambda x, a, b: np.exp(x).clip(-a, b),
    "piecewise": lambda x, a, b: np.piecewise(
        x, [x < 0, (x >= 0) & (x < 1)], [lambda t: a * t, lambda t: b * np.exp(t), 3.0]
    ),
    "piecewise, overlapping": lambda x, a, b: np.piecewise(
        x, [x < 0, x >= -0.5], [-a, lambda t: b * t]
    ),
    "piecewise, one condition": lambda x, a, b: np.piecewise(x, x < 0, [a, b]),
    "piecewise, no default": lambda x, a, b: np.piecewise(x, [x < 0], [a]) + b,
    "piecewise with arguments": lambda x, a, b: np.piecewise(
        x, [x < 0], [lambda t, k: k * t, lambda t, k: k + a * t], b
    ),
    "select": lambda x, a, b: np.select([x < 0, x < 1], [a * x, b], default=7.0),
    "polyval of a list": lambda x, a, b: np.polyval([a, b, 1.0], x),
    "polyval of a tuple": lambda x, a, b: np.polyval((a, b), x),
    "polyval of an array": lambda x, a, b: np.polyval(np.stack([a, b]), x),
    "interp of a table": lambda x, a, b: a * np.interp(b * x, TABLE, TABLE**2, left=0.0),
    "interp of lists": lambda x, a, b: np.interp(x, [0, 1, 2], [a, b, a * b]),
    "interp of tuples": lambda x, a, b: a * np.interp(x, (0, 1, 2), (1, 2, 5)) + b,
    "heaviside": lambda x, a, b: np.heaviside(x - a, 0.5) * b,
    "full_like": lambda x, a, b: np.full_like(x, 3.0) * a * b,
    "erf and expit": lambda x, a, b: scipy.special.erf(a * x) + scipy.special.expit(b * x),
    "gammaln": lambda x, a, b: scipy.special.gammaln(abs(x) + a) * b,
    "more special functions": lambda x, a, b: (
        scipy.special.xlogy(a, abs(x) + b)
        + scipy.special.psi(a + abs(x))
        + scipy.special.ndtr(x)
        + scipy.special.log1p(abs(x))
        + scipy.special.cbrt(x + 9)
        + scipy.special.i0e(x)
        + scipy.special.gamma(a)
    ),
    "complex modulus": lambda x, a, b: np.abs(1 / (1 + 1j * a * x)) * b,
    "complex phase": lambda x, a, b: np.angle(a + 1j * b * x),
    "assignment": assigned,
    "fill": filled,
    "ufunc with out and where": divided,
    "alias": aliased,
    "scalars do not change": immutable_scalars,
    "loop over terms": series,
    "branch on shape": branches_on_shape,
    "copy, then change": lambda x, a, b: np.copy(np.exp(x)).__imul__(a) + b,
    "logical": lambda x, a, b: np.logical_and(x > a, ~(x > b)) * x,
    "sum over a basis": lambda x, a, b: b * (a * np.exp(-((x[:, None] - TABLE) ** 2))).sum(axis=1),
    "sum function": lambda x, a, b: b * np.sum(a * np.exp(-np.outer(x, TABLE)), axis=-1),
    "dot": lambda x, a, b: np.dot(np.vander(x, 3), np.stack([a, b, a * b])),
    "matmul": lambda x, a, b: (x[:, None] ** np.arange(2)) @ np.stack([a, b]),
    "einsum": lambda x, a, b: np.einsum("i,j->ij", x, TABLE).sum(1) * a + b,
    "trapezoid": lambda x, a, b: b * np.trapezoid(np.exp(-a * np.outer(x, TABLE)), TABLE, axis=1),
    "reduce": lambda x, a, b: np.add.reduce(np.outer(TABLE, x), axis=0) * a * b,
    "outer method": lambda x, a, b: np.multiply.outer(TABLE, x)[2] * a + b,
    "maximum": lambda x, a, b: np.maximum(a * x, b) + np.hypot(x, b),
    "power": lambda x, a, b: np.power(abs(x), a) + 2 ** (b * np.exp(x)),
    "trigonometry": lambda x, a, b: np.sinc(a * x) + np.arctan2(x, b) + np.deg2rad(x),
    "astype": lambda x, a, b: np.floor(x).astype(int) * a + b * x,
    "reshape": lambda x, a, b: np.exp(a * x).reshape(-1, 1)[:, 0] + b * np.ravel(x),
    "nan_to_num": lambda x, a, b: np.nan_to_num(np.exp(a / x), posinf=2.0) * b,
    "round": lambda x, a, b: np.round(x, 1) * a + b * np.rint(x),
    "stack": lambda x, a, b: np.stack([a * x, b * x]).sum(0),
    "vstack of a tuple": lambda x, a, b: np.vstack((x, a * x)).max(axis=0) * b,
    "linspace": lambda x, a, b: np.linspace(a, b, 5)[2] * x,
    "norm": lambda x, a, b: np.linalg.norm(np.stack([a * x, b * x], axis=1), axis=1),
    "searchsorted": lambda x, a, b: np.searchsorted(TABLE, x) * a + np.digitize(x, TABLE) * b,
    "modf, two outputs": lambda x, a, b: np.modf(x)[0] * a + b * np.modf(x)[1],
    "mean and std": lambda x, a, b: np.stack([a * x, b * x]).std(axis=0) + np.exp(x),
    "logaddexp": lambda x, a, b: np.logaddexp(a * x, b * x),
    "transpose": lambda x, a, b: np.outer(x, TABLE).T[2] * a + b,
    "fft along a basis": lambda x, a, b: np.fft.fft(np.outer(x, TABLE), axis=1).real[:, 1] * a + b,
    "bits": lambda x, a, b: (np.exp(x) > a) | (x < b),
    "divmod": lambda x, a, b: sum(np.divmod(x, a)) * b,
}


def evaluate(spec, coords, params):
    with jax.enable_x64(True):
        run = jax.jit(lambda coords, params: call_model(spec, coords, params))
        return np.asarray(run(tuple(jnp.asarray(c) for c in coords), jnp.asarray(params)))


def jacobian(spec, coords, params):
    with jax.enable_x64(True):
        coords = tuple(jnp.asarray(c) for c in coords)
        derivative = jax.jit(jax.jacfwd(lambda params: call_model(spec, coords, params)))
        return np.asarray(derivative(jnp.asarray(params)))


@pytest.mark.quick(3)
@pytest.mark.every(3)
@pytest.mark.parametrize("name", MODELS)
def test_traced_model_computes_what_numpy_computes(name):
    model = MODELS[name]
    random = np.random.default_rng(len(name))
    x = np.append(random.normal(scale=2.0, size=99), 0.0)
    params = random.uniform(0.5, 1.5, 2)
    with np.errstate(all="ignore"):
        expected = np.asarray(model(x.copy(), *params), np.float64)
    got = evaluate(prepare_model(model), (x,), params)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["exp", "piecewise", "polyval of a list", "interp of lists", "assignment", "dot", "fill"],
)
def test_jacobian_of_a_traced_model(name):
    x = np.random.default_rng(1).normal(size=20)
    params = np.array([1.3, 0.7])
    expected = scipy.optimize.approx_fprime(params, lambda p: MODELS[name](x.copy(), *p), 1e-7)
    np.testing.assert_allclose(
        jacobian(prepare_model(MODELS[name]), (x,), params), expected, atol=1e-5
    )


def unpacked(x, a, b):
    t, s = x
    return a * np.exp(-t) + b * s


STRUCTURED = {
    "indexing": lambda x, a, b: a * np.sin(x[0]) + b * x[1],
    "unpacking": unpacked,
    "slicing": lambda x, a, b: np.exp(x[0:1])[0] * a + b * x[-1, :],
    "sum over coordinates": lambda x, a, b: (
        a * np.sum(np.asanyarray(TABLE)[:2, None] * x, axis=0) + b
    ),
    "len": lambda x, a, b: np.exp(a * x[len(x) - 1]) + b,
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_stacked_coordinates(name):
    coords = np.random.default_rng(2).normal(size=(2, 25))
    params = np.array([1.3, 0.7])
    spec = prepare_model(STRUCTURED[name], structure="stacked", n_coords=2)
    expected = STRUCTURED[name](coords, *params)
    np.testing.assert_allclose(evaluate(spec, tuple(coords), params), expected, rtol=1e-12)


def test_tuple_of_coordinates():
    coords = np.random.default_rng(2).normal(size=(2, 25))
    spec = prepare_model(unpacked, structure="tuple", n_coords=2)
    expected = unpacked(tuple(coords), 1.3, 0.7)
    np.testing.assert_allclose(evaluate(spec, tuple(coords), [1.3, 0.7]), expected, rtol=1e-12)


def test_style_is_the_simplest_that_works():
    assert prepare_model(lambda x, a: a * jnp.exp(x)).style == "jax"
    assert prepare_model(lambda x, a: a * x**2).style == "jax"
    assert prepare_model(lambda x, a: a * np.exp(x)).style == "numpy"


def test_jax_functions_take_numpy_style_arrays():
    def model(x, a):
        return jnp.where(x > 0, a, 0.0) + np.exp(x) + jax.vmap(lambda v: np.sin(v) * 2)(x)

    x = np.linspace(-1, 1, 11)
    got = evaluate(prepare_model(model), (x,), [3.0])
    np.testing.assert_allclose(got, np.where(x > 0, 3.0, 0.0) + np.exp(x) + 2 * np.sin(x))


@pytest.mark.slow
def test_coordinates_keep_their_values_between_calls():
    def model(x, a):
        x -= 1.0
        return a * np.exp(x)

    x = np.linspace(-1, 1, 11)
    spec = prepare_model(model)
    np.testing.assert_array_equal(evaluate(spec, (x,), [1.0]), evaluate(spec, (x,), [1.0]))
    np.testing.assert_array_equal(x, np.linspace(-1, 1, 11))


def branch(x, a):
    if x > 0:
        return a * x
    return x


def chained(x, a):
    return a * np.exp(x) if 0 < x < a else x


def assigned_to_numpy(x, a):
    out = np.zeros(len(x))
    out[x > 0] = a
    return out


def assigned_rows(x, a):
    out = np.zeros_like(x)
    mask = x > 0
    out[mask] = np.exp(x)
    return out


def view_changed(x, a):
    t, s = x
    t -= a
    return t * np.exp(s)


def copy_or_view_changed(x, a):
    table = np.outer(x, TABLE) * a
    table.T.ravel()[0] = 1.0
    return table.sum(axis=1)


def item_loop(x, a):
    return np.array([math.exp(-a * value) for value in x])


def set_by_number(x, a):
    out = np.zeros(len(x))
    for i in range(len(x)):
        out[i] = np.exp(-a * x[i])
    return out


vectorized = np.vectorize(lambda x, a: a * x)
universal = np.frompyfunc(lambda x, a: a * x, 2, 1)


UNTRACEABLE = {
    "math": (lambda x, a: a * math.exp(-x), "calls math.exp", "use jax.numpy.exp"),
    "math, renamed": (lambda x, a: math.atan(a * x), "calls math.atan", "use jax.numpy.arctan"),
    "math, special": (
        lambda x, a: a * math.lgamma(x),
        "calls math.lgamma",
        "use jax.scipy.special.gammaln",
    ),
    "library": (lambda x, a: pd.Series(a * x).values, "calls pandas.Series", "(line"),
    "float": (lambda x, a: float(a) * x, "calls float", "use jax.numpy.asarray"),
    "max": (lambda x, a: a * max(x, 0.0), "calls max", "use jax.numpy.maximum"),
    "asarray": (lambda x, a: np.asarray(x) * a, "calls numpy.asarray", "use jax.numpy.asarray"),
    "array": (lambda x, a: np.array([a, a]).sum() * x, "calls numpy.array", "use jax.numpy.array"),
    "list of numbers": (
        lambda x, a: x * np.add.reduce([a, a]),
        "numpy.add.reduce",
        "jax.numpy.add",
    ),
    "vectorize": (lambda x, a: vectorized(x, a), "made with numpy.vectorize", "use jax.vmap"),
    "frompyfunc": (lambda x, a: universal(x, a), "the ufunc", "JAX has no function of that name"),
    "scipy.stats": (
        lambda x, a: scipy.stats.norm.pdf(x, a),
        "calls scipy.stats.norm.pdf",
        "use jax.scipy.stats.norm.pdf",
    ),
    "scipy.special, not in JAX": (
        lambda x, a: scipy.special.jv(1, a * x),
        "calls scipy.special.jv",
        "JAX has no function of that name",
    ),
    "numpy of a jax value": (
        lambda x, a: np.sin(jnp.exp(a * x)),
        "calls numpy.sin",
        "use jax.numpy.sin",
    ),
    "if": (branch, "if x > 0:", "use jax.numpy.where"),
    "chained comparison": (chained, "a < x < b", "(a < x) & (x < b)"),
    "selection of rows": (lambda x, a: a * np.exp(x[x > 0]), "selects rows", "where(condition"),
    "unique": (lambda x, a: a * np.unique(x), "selects rows", "where(condition"),
    "assignment to a NumPy array": (assigned_to_numpy, "out[x > 0] = a", "zeros_like(x)"),
    "assignment of selected rows": (assigned_rows, "out[mask] = np.exp(x)", "where(condition"),
    "ufunc.at": (lambda x, a: np.add.at(np.exp(x), 0, a), "numpy.add.at", "make a new array"),
    "putmask": (lambda x, a: np.putmask(np.exp(x), x > 0, a), "numpy.putmask", "make a new array"),
    "out= of a NumPy array": (
        lambda x, a: np.exp(a * x, out=np.zeros(len(x))),
        "given as out=",
        "make a new array",
    ),
    "where= without out=": (
        lambda x, a: np.exp(a * x, where=x > 0),
        "where= but without out=",
        "make a new array",
    ),
    "copy or view": (copy_or_view_changed, "may share memory", "x = x + 1 for x += 1"),
    "lookup in a NumPy array": (
        lambda x, a: a * TABLE[np.floor(x).astype(int)],
        "indexes a NumPy array",
        "jax.numpy.asarray(table)",
    ),
    "loop over rows": (item_loop, "loops over the rows in Python", "use jax.vmap"),
    "loop over rows with jax": (
        lambda x, a: jnp.stack([a * jnp.sin(value) for value in x]),
        "loops over the rows in Python",
        "use jax.vmap",
    ),
    "polyval of numpy.polynomial": (
        lambda x, a: polynomial.polyval(x, [a, a]),
        "calls numpy.polynomial.polynomial.polyval",
        "use jax.numpy.polyval(c[::-1], x), with the coefficients in reverse order",
    ),
    "Chebyshev series": (
        lambda x, a: chebyshev.chebval(x, [a, a]),
        "calls numpy.polynomial.chebyshev.chebval",
        "JAX has no function of that name",
    ),
    "text by %": (lambda x, a: x * float("%g" % a), "as text", "the value itself"),  # noqa: UP031
    "text by % of two": (lambda x, a: x * len("%g %g" % (a, a)), "as text", "the value itself"),  # noqa: UP031
    "text by format": (lambda x, a: x * float("{:g}".format(a)), "as text", "the value"),  # noqa: UP032
    "text by an f-string": (lambda x, a: x * float(f"{a:g}"), "as text", "the value itself"),
    "text in NumPy": (lambda x, a: np.exp(x) * float(f"{a:g}"), "as text", "the value itself"),
    "text by str": (lambda x, a: x * float(str(a)), "as text", "the value itself"),
    "text by json": (lambda x, a: x * len(json.dumps(a)), "as text", "the value itself"),
    "int": (lambda x, a: x ** int(a), "as an integer", "functools.partial"),
    "range": (
        lambda x, a: sum(x**k for k in range(a)),
        "as an integer (int, range",
        "jax.numpy.floor(n)",
    ),
    "arange": (lambda x, a: x * np.arange(a).sum(), "as an integer", "functools.partial"),
    "key": (lambda x, a: x * {1.0: 2.0}[a], "a key of a dictionary", "keep it an array"),
    "voigt_profile": (
        lambda x, a: np.exp(x) * scipy.special.voigt_profile(x, a, 0.1),
        "calls scipy.special.voigt_profile",
        "nlsq_dask.curve_fit",
    ),
    "odeint": (
        lambda x, a: scipy.integrate.odeint(lambda y, t: -a * y, 1.0, x)[:, 0],
        "calls scipy.integrate.odeint",
        "nlsq_dask.curve_fit",
    ),
    "rows assigned by number": (
        set_by_number,
        "assigns into a NumPy array",
        "nlsq_dask.curve_fit",
    ),
    "item": (lambda x, a: a.item() * x, "a.item()", "keep it an array"),
}


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", UNTRACEABLE)
def test_untraceable_model_names_the_call_and_its_twin(name):
    model, what, remedy = UNTRACEABLE[name]
    with pytest.raises(_errors.UntraceableModelError) as caught:
        prepare_model(model)
    assert what in str(caught.value)
    assert remedy in str(caught.value)
    assert "nlsq_dask.curve_fit, which calls the model as it is" in str(caught.value)


@pytest.mark.slow
def test_change_of_a_view_of_stacked_coordinates():
    coords = np.random.default_rng(2).normal(size=(2, 25))
    spec = prepare_model(view_changed, structure="stacked", n_coords=2)
    expected = view_changed(coords.copy(), 1.3)
    np.testing.assert_allclose(evaluate(spec, tuple(coords), [1.3]), expected, rtol=1e-12)


@pytest.mark.quick(4)
@pytest.mark.parametrize("model", IN_PLACE, ids=lambda model: model.__name__)
def test_array_changed_in_place_is_changed_under_all_its_names(model):
    x = np.linspace(0.1, 4.0, 60)
    spec = prepare_model(model, n_rows=x.size)
    expected = model(x.copy(), *PARAMS)
    np.testing.assert_allclose(evaluate(spec, (x,), PARAMS), expected, rtol=1e-12)
    assert spec.is_numpy


@pytest.mark.parametrize("model", OPERATORS, ids=lambda model: model.__name__)
def test_jax_means_new_arrays(model):
    """The same models on JAX's arrays, in a function that calls JAX: JAX's meaning is kept."""

    def of_jax(x, a, b, c):
        return model(jnp.asarray(x), a, b, c)

    x = np.linspace(0.1, 4.0, 60)
    with jax.enable_x64(True):
        expected = np.asarray(model(jnp.asarray(x), *PARAMS))
    spec = prepare_model(of_jax)
    np.testing.assert_allclose(evaluate(spec, (x,), PARAMS), expected, rtol=1e-12)
    assert not spec.is_numpy


def test_read_only_view_is_not_changed():
    def model(x, a):
        y = a * np.outer(x, TABLE)
        np.diagonal(y)[0] = 1.0
        return y.sum(axis=1)

    with pytest.raises(ValueError, match="read-only"):
        model(np.ones(9), 1.0)
    with pytest.raises(_errors.UntraceableModelError, match="read-only"):
        prepare_model(model)


def test_integers_do_not_change_to_floats_in_place():
    def model(x, a):
        count = np.floor(x).astype(int)
        count += 0.5
        return a * count

    with pytest.raises(_errors.ModelError, match="int64 cannot be changed in place to float64"):
        prepare_model(model)


def test_models_own_error_is_the_cause():
    def model(x, a):
        return {"b": np.exp(x)}["a"] * a

    with pytest.raises(_errors.ModelError, match="raised KeyError") as caught:
        prepare_model(model)
    assert isinstance(caught.value.__cause__, KeyError)
    assert not isinstance(caught.value, _errors.UntraceableModelError)


def test_functions_with_the_same_trace_in_both_styles():
    source = "lambda x, a, b: a * xp.clip(x, b, None)"
    of_jax, of_numpy = (prepare_model(eval(source, {"xp": xp})) for xp in (jnp, np))

    assert (of_jax.style, of_numpy.style) == ("jax", "numpy")
    assert of_jax.token != of_numpy.token
    for spec in (of_jax, of_numpy):
        assert trace_model(spec, 11).out_avals[0].shape == (11,)
