"""A fit computes what the model computes when it is called: in place, with state, row by row."""

import decimal
import functools
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlsq_dask import (
    ModelError,
    NotRowWiseError,
    UntraceableModelError,
    curve_fit,
    fit,
    fit_models,
)
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model import model as model_module
from nlsq_dask.user_model import row_wise
from nlsq_dask.user_model.model import prepare_model
from tests.support.models_as_written import IN_PLACE, PARAMS

X = np.linspace(0.1, 4.0, 60)
NOISE = 1e-3 * np.random.default_rng(0).normal(size=X.size)
START = [1.8, 0.8, 0.5]


def called(model, x, *params):
    """The model as SciPy calls it, on arrays of its own."""
    with jax.enable_x64(True):
        return np.asarray(model(x.copy(), *params), np.float64)


def by_scipy(model, x, y, p0):
    found, _ = scipy.optimize.curve_fit(functools.partial(called, model), x, y, p0, maxfev=5000)
    return called(model, x, *found)


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("model", IN_PLACE[::4], ids=lambda model: model.__name__)
def test_model_that_changes_arrays_in_place(model):
    y = called(model, X, *PARAMS) + NOISE
    expected = by_scipy(model, X, y, START)
    np.testing.assert_allclose(fit(model, X, y, START).predict(), expected, atol=1e-5)
    popt, _ = curve_fit(model, X, y, START)
    np.testing.assert_allclose(called(model, X, *popt), expected, atol=1e-5)


# What tracing still reads otherwise: NumPy's own arrays, types, and what is hidden from it.


def numpy_array_under_two_names(x, a, b, c):
    out = np.zeros(len(x))
    other = out
    out += a * x
    other += b
    return out + c * x**2


def by_the_type_of_x(x, a, b, c):
    return a * x + b * x**2 + c if type(x) is np.ndarray else a * x + b + c * x


def by_the_type_of_a_parameter(x, a, b, c):
    return a * x + b * x**2 + (c if isinstance(c, float) else 0.0)


def by_an_attribute_of_arrays(x, a, b, c):
    return a * x + b * x**2 + (c if hasattr(x, "strides") else c * x**3)


def by_the_module_of_the_type(x, a, b, c):
    return a * x + b * x**2 + c * (1.0 if type(x).__module__ == "numpy" else x)


def by_text(x, a, b, c):
    return a * x + b * x**2 + c * (1.0 if str(x).startswith("[") else x)


HIDDEN = [
    numpy_array_under_two_names,
    by_the_type_of_x,
    by_the_type_of_a_parameter,
    by_an_attribute_of_arrays,
    by_the_module_of_the_type,
    by_text,
]


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("model", HIDDEN, ids=lambda model: model.__name__)
def test_model_that_is_read_otherwise_is_called_as_it_is_or_refused(model):
    y = called(model, X, *PARAMS) + NOISE
    popt, _ = curve_fit(model, X, y, START)
    np.testing.assert_allclose(called(model, X, *popt), by_scipy(model, X, y, START), atol=1e-5)
    with pytest.raises(UntraceableModelError, match=r"at row \d+ \(x = .*nlsq_dask.curve_fit"):
        fit(model, X, y, START)


@pytest.mark.slow
def test_refusal_where_rows_are_streamed_or_read_together():
    model = by_the_type_of_x
    x, y = (da.from_array(a, chunks=20) for a in (X, called(model, X, *PARAMS)))
    with pytest.raises(UntraceableModelError, match="at row"):
        fit(model, x, y, START)
    with pytest.raises(UntraceableModelError, match="at row"):
        fit_models({"one": model, "other": lambda x, a, b, c: a + b * x}, X, y.compute(), p0=None)


@pytest.mark.slow
def test_rounding_is_no_difference():
    """Values that follow from the last digit of their arguments, and single precision."""
    models = {
        "sine far out": lambda x, a, b, c: a * np.sin(1e9 * x + b) + c,
        "step": lambda x, a, b, c: a * np.floor(x * 10 / b) + c,
        "single": lambda x, a, b, c: a * np.exp(-(x.astype(np.float32))) * b + c,
        "difference": lambda x, a, b, c: a * ((1e12 + x * b) - 1e12) + c,
        "overflow": lambda x, a, b, c: a / (1 + np.exp(900.0 * (x - b))) + c,
    }
    for model in models.values():
        spec = prepare_model(model)
        rows = Rows((X,), X, None, X.size)
        block_kernel(spec)(np.array(PARAMS), np.eye(3), rows)


@pytest.mark.slow
def test_jacobian_that_is_read_otherwise():
    def model(x, a, b):
        return a * np.exp(-b * x)

    def jac(x, a, b):
        first = np.exp(-b * x)
        columns = np.stack([first, -a * x * first], axis=1)
        return columns if type(x) is np.ndarray else 2.0 * columns

    with pytest.raises(UntraceableModelError, match="jac does not compute the same"):
        fit(model, X, 2.0 * np.exp(-0.7 * X) + NOISE, [1.0, 1.0], jac=jac)


# State outside the model: each entry is the model, and what changes the state.

K = 0.0


class Hidden:
    """Keeps a number that its pickle leaves out."""

    def __init__(self):
        self.k = 0.0

    def __call__(self, x, a, b):
        return a * jnp.exp(-b * x) + self.k

    def __getstate__(self):
        return {}


HIDING = Hidden()
LOCAL = threading.local()


def by_globals(x, a, b):
    return a * np.exp(-b * x) + globals()["K"]


def by_globals_in_jax(x, a, b):
    return a * jnp.exp(-b * x) + globals()["K"]


def by_getattr(x, a, b):
    return a * jnp.exp(-b * x) + getattr(sys.modules[__name__], "K")  # noqa: B009


def by_eval(x, a, b):
    return a * np.exp(-b * x) + eval("K")


def by_environment(x, a, b):
    return a * jnp.exp(-b * x) + float(os.environ.get("NLSQ_TEST_K", "0"))


def by_file(x, a, b):
    return a * np.exp(-b * x) + float(Path(os.environ["NLSQ_TEST_FILE"]).read_text())


def by_context(x, a, b):
    return a * jnp.exp(-b * x) + decimal.getcontext().prec


def by_print_options(x, a, b):
    return a * np.exp(-b * x) + np.get_printoptions()["precision"]


def by_working_directory(x, a, b):
    return a * jnp.exp(-b * x) + len(str(Path.cwd()))


def by_thread(x, a, b):
    return a * np.exp(-b * x) + getattr(LOCAL, "k", 0.0)


def by_branch(x, a, b):
    return a * np.exp(-b * x) if globals()["K"] else a * np.exp(-b * x) + 1.0


def set_global(value):
    globals()["K"] = value


def write_file(value):
    Path(os.environ["NLSQ_TEST_FILE"]).write_text(str(value))


def change_directory(value):
    folder = Path(os.environ["NLSQ_TEST_FILE"]).parent
    os.chdir(folder if value else folder.anchor)


STATE = {
    "globals": (by_globals, set_global),
    "globals, jax": (by_globals_in_jax, set_global),
    "getattr": (by_getattr, set_global),
    "eval": (by_eval, set_global),
    "environment": (by_environment, lambda k: os.environ.update(NLSQ_TEST_K=str(k))),
    "file": (by_file, write_file),
    "context": (by_context, lambda k: setattr(decimal.getcontext(), "prec", 5 + int(k))),
    "print options": (by_print_options, lambda k: np.set_printoptions(precision=5 + int(k))),
    "directory": (by_working_directory, change_directory),
    "thread": (by_thread, lambda k: setattr(LOCAL, "k", k)),
    "branch": (by_branch, set_global),
    "left out of the pickle": (HIDING, lambda k: setattr(HIDING, "k", k)),
}


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("NLSQ_TEST_FILE", str(tmp_path / "k"))
    monkeypatch.setenv("NLSQ_TEST_K", "0")
    monkeypatch.chdir(tmp_path)
    precision = np.get_printoptions()["precision"]
    with decimal.localcontext():
        yield
    np.set_printoptions(precision=precision)
    set_global(0.0)
    HIDING.k = 0.0


@pytest.mark.slow
@pytest.mark.every(3)
@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("case", STATE)
def test_state_that_changed_between_two_fits(case):
    model, change = STATE[case]
    tokens = []
    for value in (0.0, 2.0, 0.0):
        change(value)
        y = called(model, X, 2.0, 0.9) + NOISE
        expected = by_scipy(model, X, y, [1.0, 1.0])
        result = fit(model, X, y, [1.0, 1.0])
        np.testing.assert_allclose(result.predict(), expected, atol=1e-6)
        tokens.append(prepare_model(model).token)
    assert tokens[1] not in (tokens[0], tokens[2])
    streamed = fit(model, *(da.from_array(a, chunks=20) for a in (X, y)), [1.0, 1.0])
    np.testing.assert_allclose(streamed.popt, result.popt, rtol=1e-6)


@pytest.mark.usefixtures("state")
def test_result_does_not_follow_a_state_that_changed_since():
    result = fit(by_globals, X, called(by_globals, X, 2.0, 0.9), [1.0, 1.0])
    set_global(5.0)
    with pytest.raises(ModelError, match="computes something else here and now"):
        result.predict(np.linspace(0.0, 1.0, 3000))


ELSEWHERE = """
import pickle, sys
import numpy as np
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
spec = pickle.load(open(sys.argv[1], "rb"))
x = np.linspace(0.0, 2.0, 15)
try:
    print("cost", block_kernel(spec)(np.array([2.0, 0.9]), np.eye(2), Rows((x,), x, None, 15)).cost)
except Exception as error:
    print(type(error).__name__, error)
"""


def in_another_process(path, spec, environment):
    (path / "spec.pkl").write_bytes(cloudpickle.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{ELSEWHERE}", "spec.pkl"],
        cwd=path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_worker_with_another_state_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("NLSQ_TEST_K", "3")

    def model(x, a, b):
        return a * jnp.exp(-b * x) + float(os.environ.get("NLSQ_TEST_K", "0"))

    spec = prepare_model(model)
    same = in_another_process(tmp_path, spec, {"NLSQ_TEST_K": "3"})
    assert same.startswith("cost")
    other = in_another_process(tmp_path, spec, {"NLSQ_TEST_K": "0"})
    assert other.startswith("ModelError the model model computes something else here and now")
    assert pickle.loads(cloudpickle.dumps(spec)).traced == spec.traced


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, x, a, b):
        self.calls += 1
        return a * jnp.exp(-b * x) * (1.0 + 0.1 * self.calls)


COUNTS = [0]
GENERATOR = np.random.default_rng(0)


def counted(x, a, b):
    COUNTS[0] += 1
    return a * np.exp(-b * x) + COUNTS[0]


RANDOM = {
    "noise": lambda x, a, b: a * x + b + GENERATOR.normal(size=len(x)),
    "one number": lambda x, a, b: a * x + b + random.random(),
    "in jax": lambda x, a, b: a * jnp.exp(-b * x) + random.random(),
    "counter": counted,
    "counter of an object": Counting(),
    "shuffled": lambda x, a, b: a * x + b * GENERATOR.permutation(5)[0] * GENERATOR.random(),
    "seeded by jax": lambda x, a, b: (
        a * x + b * jax.random.normal(jax.random.key(random.randrange(2**31)))
    ),
}


@pytest.mark.parametrize("case", RANDOM)
def test_model_that_differs_from_itself_is_called_random(case):
    for door in (fit, curve_fit):
        with pytest.raises(ModelError, match="does not give the same value twice"):
            door(RANDOM[case], X, X, [1.0, 1.0])


def test_model_with_a_generator_seeded_within_is_not_random():
    def model(x, a, b):
        return a * x + b + 1e-3 * np.random.default_rng(5).normal()

    result = fit(model, X, called(model, X, 2.0, 3.0), [1.0, 1.0])
    np.testing.assert_allclose(result.popt, [2.0, 3.0], rtol=1e-9)


# Loops over rows.


def list_of_rows(x, a, b):
    return [a * v + b for v in x]


def stacked_rows(x, a, b):
    return jnp.stack([a * jnp.sqrt(v) + b for v in x])


def array_of_rows(x, a, b):
    return np.array([a * np.exp(-b * v) for v in x])


def by_number(x, a, b):
    out = np.zeros_like(x)
    for i in range(len(x)):
        out[i] = a * np.exp(-b * x[i])
    return out


def two_loops(x, a, b):
    out = np.zeros_like(x)
    for i in range(len(x)):
        for j in range(i):
            out[i] += a * x[j]
    return out + b


def mapped(x, a, b):
    return list(map(lambda v: a * v**2 + b, x))  # noqa: C417


def while_loop(x, a, b):
    values, i = [], 0
    while i < x.size:
        values.append(a * x[i] + b)
        i += 1
    return values


def pieces(x, a, b):
    return np.concatenate([a * x[i : i + 1] + b for i in range(len(x))])


def recursion(x, a, b):
    state, values = 0.0, []
    for v in x:
        state = 0.5 * state + a * v
        values.append(state + b)
    return values


def by_math(x, a, b):
    return np.array([a * math.exp(-b * v) for v in x])


def set_in_jax(x, a, b):
    out = jnp.zeros(len(x))
    for i in range(len(x)):
        out = out.at[i].set(a * x[i] + b)
    return out


LOOPS = [
    list_of_rows,
    stacked_rows,
    array_of_rows,
    by_number,
    two_loops,
    mapped,
    while_loop,
    pieces,
    recursion,
    by_math,
    set_in_jax,
]


@pytest.fixture
def traced_rows(monkeypatch):
    """Numbers of rows that models are traced for while they are examined."""
    numbers = []
    trace_call, trace_model = model_module.trace_call, row_wise.trace_model
    monkeypatch.setattr(
        model_module, "trace_call", lambda spec, n: numbers.append(n) or trace_call(spec, n)
    )
    monkeypatch.setattr(
        row_wise, "trace_model", lambda spec, n: numbers.append(n) or trace_model(spec, n)
    )
    return numbers


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("model", LOOPS, ids=lambda model: model.__name__)
def test_loop_over_rows_is_called_as_it_is(model, traced_rows):
    x = X[::3]
    y = called(model, x, 2.0, 0.7) + NOISE[::3]
    expected = by_scipy(model, x, y, [1.5, 0.5])
    for door in (fit, curve_fit):
        found = door(model, x, y, [1.5, 0.5])
        popt = found.popt if door is fit else found[0]
        np.testing.assert_allclose(called(model, x, *popt), expected, rtol=1e-5)
    assert max(traced_rows) <= 1031


@pytest.mark.slow
def test_result_of_a_model_that_loops_over_rows():
    y = called(list_of_rows, X, 2.0, 0.7) + NOISE
    result, line = fit(list_of_rows, X, y), fit(lambda x, a, b: a * x + b, X, y)
    np.testing.assert_allclose(result.pcov, line.pcov, rtol=1e-6)
    np.testing.assert_allclose(result.predict(X[:7]), line.predict(X[:7]), rtol=1e-8)
    np.testing.assert_allclose(result.residuals(), line.residuals(), atol=1e-9)


@pytest.mark.slow
def test_loop_over_rows_is_not_called_beyond_bounds():
    def model(x, a, b):  # raises a little below b = 1, where a central difference would ask
        return np.array([a * v + math.sqrt(b - 1.0 + 1e-9) for v in x])

    y = 2.0 * X - 0.1
    result = fit(model, X, y, [1.0, 2.0], bounds={"b": (1.0, None)})
    np.testing.assert_allclose(result.popt, [X @ (y - 1e-9**0.5) / (X @ X), 1.0], atol=1e-6)


@pytest.mark.slow
def test_loop_over_rows_of_a_model_of_one_number_of_rows():
    weights = np.linspace(1.0, 2.0, 300)

    def model(x, a, b):
        return [a * v * w + b for v, w in zip(x, weights, strict=True)]

    x = np.linspace(0.0, 1.0, 300)
    result = fit(model, x, 2.0 * x * weights + 3.0)
    np.testing.assert_allclose(result.popt, [2.0, 3.0], rtol=1e-7)


def test_loop_over_rows_of_chunks_is_refused():
    x, y = (da.from_array(a, chunks=20) for a in (X, X))
    for how in ({"x": x, "y": y}, {"x": X, "y": X, "strategy": "chunked"}):
        with pytest.raises(UntraceableModelError, match="loops over the rows in Python"):
            fit(list_of_rows, **how)


@pytest.mark.slow
def test_examination_makes_up_no_more_rows_than_buffers_hold(traced_rows):
    def model(x, a, b):
        return a * x + b * (np.eye(len(x)) @ x)

    result = fit(model, X, 5.0 * X, fixed={"a": 2.0})
    np.testing.assert_allclose(result.popt, [2.0, 3.0])
    assert max(traced_rows) <= 1031


# Rows of data with several axes.


def convolved(x, a, b):
    return jnp.convolve(a * jnp.exp(-b * x), jnp.ones(5) / 5, mode="same")


def cumulated(x, a, b):
    return a * np.cumsum(x) + b


def detrended(x, a, b):
    return a * (x - x.mean()) + b


def differences(x, a, b):
    return a * np.gradient(np.exp(-b * x))


def spectrum(x, a, b):
    return jnp.abs(jnp.fft.fft(a * jnp.exp(-b * x)))


def lagged(x, a, b):
    return a * x + b * jnp.roll(x, 1)


ALONG_AN_AXIS = [convolved, cumulated, detrended, differences, spectrum, lagged]


@pytest.mark.slow
@pytest.mark.parametrize("model", ALONG_AN_AXIS, ids=lambda model: model.__name__)
def test_model_along_an_axis_of_data_with_several(model):
    x = np.broadcast_to(X, (5, X.size))
    y = called(model, X, 2.0, 0.7) + np.zeros((5, 1))
    with pytest.raises(NotRowWiseError, match=r"shape \(5, 60\).*fit\(\.\.\., dim=\)"):
        fit(model, x, y, [1.5, 0.5])
    for collapse in (False, "auto"):
        of_series = fit(model, X, y, [1.5, 0.5], dim=1, collapse=collapse)
        np.testing.assert_allclose(of_series.popt, [2.0, 0.7], rtol=1e-6)
    for one in (y[0], y[:1], y[:1].T):
        result = fit(model, x[0].reshape(one.shape), one, [1.5, 0.5])
        np.testing.assert_allclose(result.popt, [2.0, 0.7], rtol=1e-6)
