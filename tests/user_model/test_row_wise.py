"""Which models are row-wise: proofs from their structure, and trials with numbers."""

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nlsq_dask.user_model import row_wise
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import EXAMINED_ROWS, call_model, trace_model
from nlsq_dask.user_model.row_proof import Kind, verdict
from nlsq_dask.user_model.row_wise import OTHER_ROWS, row_dependence
from nlsq_dask.user_model.traces import content

pytestmark = pytest.mark.versions

TABLE = np.linspace(0.0, 1.0, 7)
CENTRES = np.linspace(-1.0, 1.0, 5)
AS_LONG_AS_EXAMINED = np.sort(np.random.default_rng(1).normal(size=EXAMINED_ROWS))
NOISE = np.random.default_rng(2).normal(size=10**6)
KEY = jax.random.key(3)


def kepler_until_all_converge(x, a):
    def going(state):
        return jnp.any(jnp.abs(state[1]) > 1e-10)

    def newton(state):
        e = state[0]
        step = (e - 0.3 * jnp.sin(e) - x) / (1 - 0.3 * jnp.cos(e))
        return e - step, step

    return a * lax.while_loop(going, newton, (x, jnp.ones_like(x)))[0]


def kepler_until_largest_step_is_small(x, a):
    def going(state):
        return state[1] > 1e-10

    def newton(state):
        e = state[0]
        step = (e - 0.3 * jnp.sin(e) - x) / (1 - 0.3 * jnp.cos(e))
        return e - step, jnp.max(jnp.abs(step))

    return a * lax.while_loop(going, newton, (x, 1.0))[0]


def halved_until_small(x, a):
    return jax.vmap(
        lambda v: lax.while_loop(lambda s: jnp.abs(s) > 1e-3, lambda s: 0.5 * s, a * v)
    )(x)


def rows_in_a_loop(x, a):
    def one(i, out):
        return out.at[i].set(a * x[i])

    return lax.fori_loop(0, x.shape[0], one, jnp.zeros_like(x))


def two_by_two(x, a):
    ones = jnp.ones_like(x)
    return jnp.stack([jnp.stack([x**2 + 3, x], -1), jnp.stack([x, ones + a**2], -1)], -2)


def without_gradient(x, a):
    @jax.custom_jvp
    def f(v):
        return jnp.sin(a * v)

    f.defjvp(lambda primals, tangents: (f(primals[0]), tangents[0]))
    return f(x)


PROVEN = {
    "exponential": lambda x, a, b: a * jnp.exp(-b * x),
    "numpy style": lambda x, a, b: a * np.exp(-b * x),
    "constant": lambda x, a: a,
    "ones_like": lambda x, a: a * jnp.ones_like(x),
    "ones of len": lambda x, a: a * np.ones(len(x)) + x,
    "NaN of len": lambda x, a: jnp.where(x > 1e9, np.full(len(x), np.nan), a * x),
    "interpolation": lambda x, a: a * jnp.interp(x, TABLE, TABLE**2),
    "digitize": lambda x, a: a * jnp.asarray(TABLE)[jnp.clip(jnp.digitize(x, TABLE), 0, 6)],
    "searchsorted": lambda x, a: a * jnp.searchsorted(TABLE, x),
    "polyval": lambda x, a, b: jnp.polyval(jnp.array([a, b, 1.0]), x),
    "numpy polyval": lambda x, a, b: np.polyval([a, b, 1.0], x),
    "sum over a basis": lambda x, a: (a * (x[:, None] - CENTRES[None, :]) ** 2).sum(axis=1),
    "sum over a leading basis": lambda x, a: (a * (x[None, :] - CENTRES[:, None])).sum(axis=0),
    "softmax over a basis": lambda x, a: jax.nn.softmax(a * x[:, None] * CENTRES, axis=1)[:, 2],
    "logsumexp over a basis": lambda x, a: jsp.logsumexp(a * x[:, None] * CENTRES, axis=1),
    "cumsum over a basis": lambda x, a: jnp.cumsum(a * x[:, None] * CENTRES, axis=1)[:, -1],
    "sort over a basis": lambda x, a: jnp.sort(a * x[:, None] * CENTRES, axis=1)[:, -1],
    "argmax over a basis": lambda x, a: a * jnp.argmax(x[:, None] * CENTRES, axis=1),
    "fft over a basis": lambda x, a: jnp.abs(jnp.fft.fft(a * x[:, None] * CENTRES, axis=1))[:, 1],
    "matrix on the right": lambda x, a: (x[:, None] ** np.arange(5)) @ (a * CENTRES),
    "matrix on the left": lambda x, a: (a * CENTRES) @ (x[None, :] ** np.arange(5)[:, None]),
    "einsum": lambda x, a: jnp.einsum("nk,k->n", x[:, None] ** np.arange(5), a * CENTRES),
    "quadrature": lambda x, a: jnp.trapezoid(jnp.exp(-a * x[:, None] * TABLE), TABLE, axis=1),
    "quadrature under vmap": lambda x, a: jax.vmap(
        lambda v: jnp.trapezoid(jnp.exp(-a * v * TABLE), TABLE)
    )(x),
    "convolution under vmap": lambda x, a: jax.vmap(
        lambda v: jnp.convolve(v * CENTRES, a * CENTRES)[3]
    )(x),
    "derivative under vmap": lambda x, a: jax.vmap(jax.grad(lambda v: a * jnp.sin(v)))(x),
    "loop until converged under vmap": halved_until_small,
    "ode under vmap": lambda x, a: jax.vmap(
        lambda v: lax.fori_loop(0, 50, lambda _, y: y - 0.02 * a * v * y, 1.0)
    )(x),
    "map over rows": lambda x, a: lax.map(lambda v: a * jnp.sin(v) * TABLE.sum(), x),
    "scan over rows, unused carry": lambda x, a: lax.map(lambda v: (a * v, v), x)[0],
    "series by fori_loop": lambda x, a: lax.fori_loop(
        0, 20, lambda k, s: s + a * jnp.cos(k * x), jnp.zeros_like(x)
    ),
    "series by scan": lambda x, a: lax.scan(
        lambda s, k: (s + a * jnp.cos(k * x), None), jnp.zeros_like(x), jnp.arange(20.0)
    )[0],
    "cond": lambda x, a: lax.cond(a > 0, lambda: a * x, lambda: x),
    "select": lambda x, a: jnp.select([x < 0, x < 1], [a * x, x], 0.0),
    "piecewise": lambda x, a: jnp.piecewise(x, [x < 0], [lambda t: -t, lambda t: a * t]),
    "special functions": lambda x, a: (
        jsp.gammaln(jnp.abs(x) + 1) * a
        + jsp.erf(x)
        + jsp.i0e(x)
        + jsp.expit(x)
        + jsp.betainc(1.0, 2.0, jnp.clip(x, 0, 1))
        + jsp.xlogy(1.0, jnp.abs(x) + 0.1)
    ),
    "solve": lambda x, a: jnp.linalg.solve(two_by_two(x, a), jnp.ones((2, 1)))[:, 0, 0],
    "solve under vmap": lambda x, a: jax.vmap(
        lambda v: jnp.linalg.solve(jnp.array([[2.0, v], [0.0, a]]), jnp.array([v, 1.0]))[0]
    )(x),
    "inverse": lambda x, a: jnp.linalg.inv(two_by_two(x, a))[:, 0, 1],
    "determinant": lambda x, a: jnp.linalg.det(two_by_two(x, a)),
    "eigenvalues": lambda x, a: jnp.linalg.eigvalsh(two_by_two(x, a))[:, 0],
    "singular values": lambda x, a: jnp.linalg.svd(two_by_two(x, a), compute_uv=False)[:, 0],
    "take_along_axis": lambda x, a: jnp.take_along_axis(
        jnp.stack([x, a * x], 1), (x > 0).astype(int)[:, None], axis=1
    )[:, 0],
    "columns set": lambda x, a: (
        jnp.zeros((x.shape[0], 3)).at[:, 1].set(a * x).at[:, 0].set(2.0).sum(1)
    ),
    "column and back": lambda x, a: (a * x.reshape(-1, 1) @ jnp.ones((1, 3))).sum(1),
    "checkpoint": lambda x, a: jax.checkpoint(lambda v: a * jnp.sin(v))(x),
    "custom derivative": without_gradient,
    "jit": lambda x, a: jax.jit(lambda v: a * jnp.tanh(v))(x),
    "one random number": lambda x, a: a * x + jax.random.normal(KEY),
    "sum over a table of a trial's size": lambda x, a: (
        a * jnp.exp(-((x[:, None] - AS_LONG_AS_EXAMINED) ** 2))
    ).sum(1),
}

# Row-wise, but their structure does not show it.
TRIED = {
    "loop until all converge": kepler_until_all_converge,
    "loop until the largest step is small": kepler_until_largest_step_is_small,
    "loop over rows": rows_in_a_loop,
    "repeat and pick": lambda x, a: a * jnp.repeat(x, 2).reshape(-1, 2)[:, 0],
    "sorting search": lambda x, a: a * jnp.searchsorted(TABLE, x, method="sort"),
    "reverse twice": lambda x, a: a * x[::-1][::-1],
    "batches of rows": lambda x, a: lax.map(lambda v: a * v, x, batch_size=100),
    "check for NaN": lambda x, a: jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, a * x),
}

NOT_ROW_WISE = {
    "mean": (lambda x, a: a * (x - x.mean()), "sums over all rows"),
    "numpy mean": (lambda x, a: a * (x - np.mean(x)), "sums over all rows"),
    "mean of rows that no trial has": (
        lambda x, a: jnp.where(x > 1e12, x - x.mean(), a * x),
        "sums over all rows",
    ),
    "standard deviation": (lambda x, a: a * x / x.std(), "sums over all rows"),
    "norm": (lambda x, a: a * x / jnp.linalg.norm(x), "sums over all rows"),
    "dot": (lambda x, a: x + a * jnp.dot(x, x), "sums over all rows (dot_general)"),
    "maximum": (lambda x, a: a * x / x.max(), "takes the maximum of all rows"),
    "range": (lambda x, a: a * (x - x.min()) / jnp.ptp(x), "takes the minimum of all rows"),
    "argmax": (lambda x, a: x - a * x[jnp.argmax(x)], "searches all rows"),
    "median": (lambda x, a: x - a * jnp.median(x), "changes from"),
    "percentile": (lambda x, a: x - a * jnp.percentile(x, 10), "changes from"),
    "histogram": (lambda x, a: x + a * jnp.histogram(x, bins=5)[0][0], "all rows"),
    "cumsum": (lambda x, a: a * jnp.cumsum(x), "accumulates over all rows"),
    "numpy cumsum": (lambda x, a: a * np.cumsum(np.exp(x)), "accumulates over all rows"),
    "associative scan": (lambda x, a: a * lax.associative_scan(jnp.add, x), "changes from"),
    "recursion": (
        lambda x, a: lax.scan(lambda c, v: (0.5 * c + a * v, c), 0.0, x)[1],
        "goes from row to row (scan)",
    ),
    "own reduction": (
        lambda x, a: x + a * lax.reduce(jnp.sin(x), 1.0, lambda u, v: u + v + u * v, (0,)),
        "uses reduce on rows",
    ),
    "sort": (lambda x, a: a * jnp.sort(x), "(sort)"),
    "ranks": (lambda x, a: a * jnp.argsort(jnp.argsort(x)), "(sort)"),
    "roll": (lambda x, a: a * jnp.roll(x, 1), "by their position"),
    "reverse": (lambda x, a: a * x[::-1], "by their position (rev)"),
    "difference": (lambda x, a: a * jnp.diff(x, prepend=0.0), "by their position"),
    "gradient": (lambda x, a: a * jnp.gradient(x), "by their position"),
    "first row": (lambda x, a: a * (x - x[0]), "by their position"),
    "last row": (lambda x, a: a * (x - x[-1]), "by their position"),
    "comparison with the first row": (lambda x, a: jnp.where(x == x[0], a, x), "changes from"),
    "first row, parameter zero": (lambda x, a, b: x + a + b * (x - x[0]), "by their position"),
    "two halves": (
        lambda x, a: jnp.concatenate([a * x[:5000], x[5000:]]),
        "come in another order",
    ),
    "convolution": (lambda x, a: jnp.convolve(x, a * CENTRES, mode="same"), "convolves"),
    "fft": (lambda x, a: jnp.real(jnp.fft.ifft(a * jnp.fft.fft(x))), "transforms all rows"),
    "index": (lambda x, a: x + a * jnp.arange(len(x)), "position of a row"),
    "numpy index": (lambda x, a: x + a * np.arange(len(x)), "position of a row"),
    "index as coordinate": (lambda x, a: a * jnp.arange(len(x)), "position of a row"),
    "index behind the trials": (
        lambda x, a: jnp.where(jnp.arange(len(x)) < 10**5, a * x, x),
        "position of a row",
    ),
    "single row behind the trials": (lambda x, a: (a * x).at[10**5].add(1.0), "single rows"),
    "linspace": (lambda x, a: x + a * jnp.linspace(0, 1, x.size), "come in another order"),
    "table by position": (
        lambda x, a: a * x + jnp.asarray(NOISE)[jnp.arange(len(x))],
        "by their position (gather)",
    ),
    "slice of a table": (lambda x, a: a * x + NOISE[: len(x)], "position of a row"),
    "index in a loop": (
        lambda x, a: lax.map(lambda pair: a * pair[0] + pair[1], (x, jnp.arange(len(x)))),
        "changes from",
    ),
    "count in a loop": (
        lambda x, a: lax.scan(lambda c, v: (c + 1, a * v + c), 0, x)[1],
        "goes from row to row",
    ),
    "random numbers": (lambda x, a: x + a * jax.random.normal(KEY, x.shape), "random_bits"),
    "number of rows": (lambda x, a: a * x / len(x), "another number of rows"),
    "number of rows, summed": (lambda x, a: a * x / jnp.ones_like(x).sum(), "sums over all rows"),
    "number of rows, in weights": (
        lambda x, a: a * x * (np.ones(len(x)) / len(x)),
        "another number of rows",
    ),
    "number of rows, in a loop": (
        lambda x, a: x / lax.fori_loop(0, x.shape[0], lambda _, s: s + a, 1.0),
        "goes from row to row",
    ),
    "branch on the number of rows": (
        lambda x, a: a * x if len(x) < 10**5 else x,
        "the rows around it are more",
    ),
    "all pairs": (
        lambda x, a: jnp.exp(-a * (x[:, None] - x[None, :]) ** 2).sum(1),
        "all rows",
    ),
    "all pairs in a loop": (
        lambda x, a: lax.map(lambda v: a * jnp.sum(jnp.sin(v * x)), x),
        "sums over all rows",
    ),
    "loop until any": (
        lambda x, a: lax.while_loop(
            lambda s: jnp.any(s < 10 * a), lambda s: 2 * s, jnp.abs(x) + 1e-2
        ),
        "how often to repeat",
    ),
    "branch on all rows": (
        lambda x, a: lax.cond(jnp.all(x > 0.5), lambda: a * x, lambda: x + 1.0),
        "which way to go",
    ),
    "one number of rows": (lambda x, a: a * x + AS_LONG_AS_EXAMINED, "some numbers of rows"),
}


def dependence(model, params=(1.5, 0.0), sample=None):
    spec = prepare_model(model)
    return row_dependence(spec, np.array(params[: len(spec.names)]), sample)


def kinds(model):
    spec = prepare_model(model)
    return [verdict(trace_model(spec, n), n, 1).kind for n in (EXAMINED_ROWS, OTHER_ROWS)]


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", PROVEN)
def test_structure_proves_a_model_row_wise(name):
    assert min(kinds(PROVEN[name])) <= Kind.ROW
    assert dependence(PROVEN[name]) is None


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_numbers_show_a_model_row_wise(name):
    assert min(kinds(TRIED[name])) == Kind.UNSURE
    assert dependence(TRIED[name]) is None


@pytest.mark.quick(3)
@pytest.mark.every(3)
@pytest.mark.parametrize("name", NOT_ROW_WISE)
def test_dependence_on_other_rows_is_named(name):
    model, text = NOT_ROW_WISE[name]
    seen = dependence(model)
    assert seen is not None
    assert text in seen


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", PROVEN | TRIED)
def test_row_wise_models_of_the_table_are_row_wise(name):
    """The table itself, held against plain evaluations of parts."""
    spec = prepare_model((PROVEN | TRIED)[name])
    params = np.array([1.5, 0.7][: len(spec.names)])
    x = np.random.default_rng(3).uniform(0.1, 3.0, 40)
    order = np.random.default_rng(4).permutation(40)
    with jax.enable_x64(True):
        values = jax.jit(lambda x, params: call_model(spec, (x,), params))
        whole = values(x, params)
        parts = np.concatenate([values(x[half], params) for half in (order[:20], order[20:])])
    np.testing.assert_allclose(parts, np.asarray(whole)[order], rtol=1e-9, atol=1e-12)


def test_several_coordinates():
    def surface(x, a, b):
        return a * jnp.exp(-(x[0] ** 2) / b) * jnp.cos(x[1])

    def matrix(x, a, b):
        return x.T @ jnp.stack([a, b])

    def across(x, a, b):
        return a * x[0] * x[1].mean() + b

    for structure in ("stacked", "tuple"):
        assert row_dependence(prepare_model(surface, None, structure, 2), np.ones(2)) is None
        spec = prepare_model(across, None, structure, 2)
        assert "sums over all rows" in row_dependence(spec, np.ones(2))
    assert row_dependence(prepare_model(matrix, None, "stacked", 2), np.ones(2)) is None


def test_sample_shows_what_made_up_rows_do_not():
    def model(x, a):
        return jnp.where((x > 1e9) & (x < 1e10), a * x[::-1], a * x)

    sample = (np.random.default_rng(5).uniform(2e9, 9e9, 64),)
    assert "(rev)" in dependence(model, sample=lambda: sample)


def test_model_without_a_finite_value_is_not_called_row_wise():
    seen = dependence(lambda x, a: jnp.sort(x) * jnp.nan + a)
    assert "no finite value" in seen


@pytest.mark.slow
def test_endless_iteration_ends():
    def model(x, a):
        return lax.while_loop(lambda s: jnp.any(s != x), lambda s: s + 1.0, a + 0.0 * x)

    assert isinstance(dependence(model), str | None)


def test_finding_is_kept(monkeypatch):
    calls = []
    examine = row_wise._examine
    monkeypatch.setattr(row_wise, "_examine", lambda *args: calls.append(args) or examine(*args))
    for _ in range(3):
        assert dependence(lambda x, a: a * jnp.sin(x) + jnp.cos(x)) is None
        assert dependence(lambda x, a: a * jnp.sin(x) + jnp.cos(x).mean()) is not None
    assert len(calls) == 2


@pytest.mark.slow
def test_content_leaves_the_number_of_rows_open():
    def of(model, n):
        return content(trace_model(prepare_model(model), n), n)

    def plain(x, a):
        return a * jnp.interp(x, TABLE, TABLE) + jnp.zeros(x.shape)

    assert of(plain, 101) == of(plain, 211)
    assert of(lambda x, a: a * x, 101) != of(lambda x, a: a + x, 101)
    assert of(lambda x, a: a * x * 2.0, 101) != of(lambda x, a: a * x * 3.0, 101)
    assert of(lambda x, a: a * x + x, 101) != of(lambda x, a: a * x + a, 101)
    assert of(lambda x, a: a * x / len(x), 101) != of(lambda x, a: a * x / len(x), 211)


ONE = ["sin", "cos", "tanh", "arctan", "negative", "square"]
TWO = ["add", "subtract", "multiply", "maximum", "hypot"]
MIXING = {
    "mean": jnp.mean,
    "max": jnp.max,
    "roll": lambda x: jnp.roll(x, 3),
    "sort": jnp.sort,
    "first": lambda x: x[0],
    "cumsum": jnp.cumsum,
    "index": lambda x: jnp.arange(len(x)) / len(x),
    "reverse": jnp.flip,
    "pairs": lambda x: (x[:, None] * x[None, :]).sum(1),
}


def trees(leaf):
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(ONE), inner), st.tuples(st.sampled_from(TWO), inner, inner)
        ),
        max_leaves=8,
    )


def value(tree, x, params):
    if isinstance(tree, int):
        return params[tree]
    if isinstance(tree, float):
        return tree
    if tree == "x":
        return x
    name, *inner = tree
    parts = [jnp.clip(value(part, x, params), -3.0, 3.0) for part in inner]
    return MIXING[name](*parts) if name in MIXING else getattr(jnp, name)(*parts)


LEAVES = st.sampled_from(["x", 0, 1, 0.5])


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(tree=trees(LEAVES))
def test_expressions_of_a_row_are_row_wise(tree):
    assert dependence(lambda x, a, b: value(tree, x, (a, b)), (0.7, 0.3)) is None


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(tree=trees(LEAVES), mixing=st.sampled_from(sorted(MIXING)), outer=st.sampled_from(TWO[:2]))
def test_an_expression_with_a_mixed_term_is_not(tree, mixing, outer):
    def model(x, a, b):
        mixed = MIXING[mixing](jnp.sin(3.0 * x))
        return value(("tanh", (outer, tree, 0.5)), x, (a, b)) + mixed

    assert dependence(model, (0.7, 0.3)) is not None
