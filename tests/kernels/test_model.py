"""A model's names, its identity in one process and across several, and how it is called."""

import functools
import importlib
import pickle
import subprocess
import sys
import textwrap
import threading

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import _errors
from nlsq_dask.kernels import model as model_module
from nlsq_dask.kernels.model import MAX_MODELS, call_model, parameter_names, prepare_model

X = np.linspace(0.0, 2.0, 15)
SCALE = 2.0


def decay(x, a, b=1.0):
    return a * jnp.exp(-b * x)


class Line:
    """A callable object; its slope's sign is an attribute of the class."""

    sign = 1.0

    def __init__(self, offset=0.0):
        self.offset = offset

    def __call__(self, x, slope):
        return self.sign * slope * x + self.offset

    def method(self, x, slope, power):
        return slope * x**power + self.offset

    @staticmethod
    def static(x, slope):
        return slope * x


def evaluate(spec, params, coords=(X,)):
    """Value of a model as the kernel gets it: compiled for a spec, and compiled once."""
    with jax.enable_x64(True):
        coords = tuple(jnp.asarray(c) for c in coords)
        return np.asarray(compiled(spec, coords, jnp.asarray(params, jnp.float64)))


@functools.partial(jax.jit, static_argnums=0)
def compiled(spec, coords, params):
    return call_model(spec, coords, params)


NAMES = {
    "signature": (decay, None, ("a", "b")),
    "default left out": (decay, 1, ("a",)),
    "lambda": (lambda t, tau: t / tau, None, ("tau",)),
    "count": (lambda x, *p: sum(p) * x, 3, ("p0", "p1", "p2")),
    "named and counted": (lambda x, a, *p: a + sum(p) * x, 3, ("a", "p1", "p2")),
    "all counted": (lambda *args: args[0] * args[1], 1, ("p0",)),
    "given": (decay, ("amplitude", "rate"), ("amplitude", "rate")),
    "given for args": (lambda x, *p: sum(p) * x, ["u", "v"], ("u", "v")),
    "positional only": (lambda x, a, /: a * x, None, ("a",)),
    "keyword with a default": (lambda x, a, *, n=2: a * x**n, None, ("a",)),
    "partial": (functools.partial(Line().method, power=2), None, ("slope",)),
    "object": (Line(), None, ("slope",)),
    "bound method": (Line().method, None, ("slope", "power")),
    "static method": (Line.static, None, ("slope",)),
    "jit": (jax.jit(decay), None, ("a", "b")),
}


@pytest.mark.parametrize("case", NAMES)
def test_parameter_names(case):
    function, names_or_count, expected = NAMES[case]
    assert parameter_names(function, names_or_count) == expected
    assert evaluate(prepare_model(function, names_or_count), [1.5] * len(expected)).shape == (15,)


BAD_SIGNATURES = {
    "no function": (3.0, None, _errors.InputTypeError, "3.0, which cannot be called"),
    "ufunc": (np.exp, None, _errors.ModelError, "exp has no signature"),
    "builtin": (max, None, _errors.ModelError, "max has no signature"),
    "no x": (lambda: 1.0, None, _errors.ModelError, "no positional argument"),
    "no parameters": (lambda x: x, None, _errors.ModelError, "no parameters to fit"),
    "open": (lambda x, *p: x, None, _errors.ModelError, "pass p0"),
    "too many": (decay, 3, _errors.ModelError, "takes 1 to 2 parameters, but 3 were given"),
    "too few": (lambda x, a, b: x, 1, _errors.ModelError, "takes 2 parameters, but 1 were given"),
    "too few before *args": (lambda x, a, b, *c: x, 1, _errors.ModelError, "at least 2"),
    "keyword only": (lambda x, a, *, b: x, None, _errors.ModelError, "takes b by keyword only"),
    "partial by name": (
        functools.partial(lambda x, a, b, c: x, b=1),
        None,
        _errors.ModelError,
        "takes c by keyword only",
    ),
    "twice": (decay, ("a", "a"), _errors.InputError, "hold a more than once"),
}


@pytest.mark.parametrize("case", BAD_SIGNATURES)
def test_signature_that_does_not_fit(case):
    function, names_or_count, kind, text = BAD_SIGNATURES[case]
    with pytest.raises(kind) as caught:
        prepare_model(function, names_or_count)
    assert text in str(caught.value)


def test_structures():
    u, v = np.random.default_rng(0).normal(size=(2, 15))

    def check(x, a):
        assert isinstance(x, tuple) == (structure == "tuple")
        return a * x[0] + x[1]

    for structure in ("stacked", "tuple"):
        spec = prepare_model(check, structure=structure, n_coords=2)
        np.testing.assert_allclose(evaluate(spec, [3.0], (u, v)), 3.0 * u + v, rtol=1e-15)
    single = prepare_model(lambda x, a: a * x)
    np.testing.assert_array_equal(evaluate(single, [3.0], (u,)), 3.0 * u)
    one = prepare_model(lambda x, a: a * x[0] + 0 * x.shape[0], structure="stacked", n_coords=1)
    np.testing.assert_array_equal(evaluate(one, [3.0], (u,)), 3.0 * u)


OUTPUTS = {
    "scalar": (lambda x, a: a, 2.0),
    "Python number": (lambda x, a: 3, 3.0),
    "integers": (lambda x, a: jnp.arange(len(x)), np.arange(15.0)),
    "booleans": (lambda x, a: x > 1, X > 1),
    "float32": (lambda x, a: (a * x).astype(jnp.float32), (2.0 * X).astype(np.float32)),
    "list": (lambda x, a: [a * v for v in jnp.ones(len(x))] if len(x) < 20 else a * x, 2.0),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_is_one_float64_a_row(case):
    function, expected = OUTPUTS[case]
    got = evaluate(prepare_model(function), [2.0])
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.broadcast_to(expected, (15,)))


BAD_OUTPUTS = {
    "column": (lambda x, a: a * x[:, None], "shape (1009, 1) for 1009 rows"),
    "column, remedy": (lambda x, a: a * x[:, None], ".ravel()"),
    "too short": (lambda x, a: a * x[1:], "return shape (1009,)"),
    "one element": (lambda x, a: jnp.reshape(a, (1,)), "returned shape (1,)"),
    "complex": (lambda x, a: jnp.exp(1j * a * x), "complex numbers"),
    "nothing": (lambda x, a: None, "returned None"),
    "text": (lambda x, a: "a", "returned a str"),
    "ragged": (lambda x, a: [x, a], "raised TypeError"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_output_that_is_not_one_number_a_row(case):
    function, text = BAD_OUTPUTS[case]
    with pytest.raises(_errors.ModelError) as caught:
        prepare_model(function)
    assert text in str(caught.value)


def test_models_own_error_is_the_cause():
    class Trouble(Exception):
        pass

    def model(x, a):
        raise Trouble("the tube is cold")

    with pytest.raises(
        _errors.ModelError, match=r"model raised Trouble.*the tube is cold"
    ) as caught:
        prepare_model(model)
    assert isinstance(caught.value.__cause__, Trouble)


def test_model_of_one_number_of_rows_is_accepted_in_memory():
    baseline = np.arange(15.0)

    def model(x, a):
        return a * x + baseline

    with pytest.raises(_errors.ModelError, match="1009 rows"):
        prepare_model(model)
    spec = prepare_model(model, n_rows=15)
    np.testing.assert_allclose(evaluate(spec, [2.0]), 2.0 * X + baseline)


def test_global_switch_of_jax_is_left_alone():
    before = jax.config.jax_enable_x64
    prepare_model(lambda x, a: a * jnp.exp(x))
    assert jax.config.jax_enable_x64 is before is False


# Identity


def closure(value):
    def model(x, a):
        return a * x + value

    def change(new):
        nonlocal value
        value = new

    return model, change


def with_array():
    table = np.zeros(3)

    def model(x, a):
        return a * x + table[1]

    def change(new):
        table[1] = new

    return model, change


def with_attribute():
    line = Line()
    return line, functools.partial(setattr, line, "offset")


def with_method():
    line = Line()
    model = functools.partial(line.method, power=1)
    return model, functools.partial(setattr, line, "offset")


def with_function_attribute():
    def model(x, a):
        return a * x + model.offset

    model.offset = 0.0
    return model, functools.partial(setattr, model, "offset")


def with_default():
    def model(x, a, offset=0.0):
        return a * x + offset

    return functools.partial(model), lambda new: setattr(model, "__defaults__", (new,))


def with_global():
    namespace = {"jnp": jnp, "offset": 0.0}
    exec("def model(x, a): return a * x + jnp.asarray(offset)", namespace)
    return namespace["model"], functools.partial(namespace.__setitem__, "offset")


def with_helper():
    namespace = {"offset": 0.0}
    exec("def helper(): return offset\ndef model(x, a): return a * x + helper()", namespace)
    return namespace["model"], functools.partial(namespace.__setitem__, "offset")


def with_jit():
    model, change = closure(0.0)
    return jax.jit(lambda x, a: model(x, a)), change


def with_cache():
    model, change = closure(0.0)
    return functools.lru_cache(lambda x, a: model(x, a)), change


def with_list():
    values = [0.0, [0.0]]
    return lambda x, a: a * x + values[1][0], functools.partial(values[1].__setitem__, 0)


MUTABLE = [
    closure,
    with_array,
    with_attribute,
    with_method,
    with_function_attribute,
    with_default,
    with_global,
    with_helper,
    with_list,
]


@pytest.mark.parametrize("make", MUTABLE)
def test_model_that_was_changed_is_compiled_anew(make):
    made = make(0.0) if make is closure else make()
    model, change = made
    names = ("a",)
    specs = []
    for value in (0.0, 5.0, 7.0):
        change(value)
        specs.append(prepare_model(model, names))
        np.testing.assert_array_equal(evaluate(specs[-1], [2.0]), 2.0 * X + value)
    change(5.0)
    again = prepare_model(model, names)
    np.testing.assert_array_equal(evaluate(again, [2.0]), 2.0 * X + 5.0)
    assert len({spec.token for spec in specs}) == 3
    assert again == specs[1]


@pytest.mark.parametrize("make", [with_jit, with_cache])
def test_change_behind_a_wrapper_changes_the_token(make):
    model, change = make()
    before = model_module.ModelSpec.of(model, ("a",), "single", 1).token
    assert model_module.ModelSpec.of(model, ("a",), "single", 1).token == before
    change(5.0)
    assert model_module.ModelSpec.of(model, ("a",), "single", 1).token != before


def test_an_equal_model_of_a_changed_object_keeps_its_own_values():
    first, second = Line(1.0), Line(1.0)
    spec = prepare_model(first)
    first.offset = 3.0
    assert prepare_model(first) != spec
    assert prepare_model(second) == spec
    # Not compiled before the change: the registry has to know the object that is still the same.
    np.testing.assert_array_equal(evaluate(prepare_model(second), [2.0]), 2.0 * X + 1.0)


def test_class_attribute_is_part_of_the_identity(monkeypatch):
    line = Line(1.0)
    before = prepare_model(line)
    monkeypatch.setattr(Line, "sign", -1.0)
    after = prepare_model(line)
    assert before.token != after.token
    np.testing.assert_array_equal(evaluate(after, [2.0]), -2.0 * X + 1.0)


def test_equal_definitions_are_one_model():
    def make(value):
        return lambda x, a, b: a * jnp.exp(-b * x) + value

    assert prepare_model(make(1.0)) == prepare_model(make(1.0))
    assert prepare_model(make(1.0)).token != prepare_model(make(2.0)).token
    assert prepare_model(make(1.0)).token != prepare_model(make(1)).token
    sources = ["lambda x, a: a * x", "\n\nlambda x, a: a * x", "lambda x, a: a + x"]
    tokens = [prepare_model(eval(source.strip("\n"), {})).token for source in sources]
    assert tokens[0] == tokens[1] != tokens[2]


def test_each_token_has_one_function_of_its_own():
    line = Line(1.0)
    first = prepare_model(line)
    assert prepare_model(Line(1.0)).function is first.function
    line.offset = 2.0
    assert prepare_model(line).function is not first.function


def test_the_way_of_calling_is_part_of_the_identity():
    def model(x, *p):
        return p[0] * x[0]

    specs = [
        prepare_model(model, 1, "stacked", 2),
        prepare_model(model, 2, "stacked", 2),
        prepare_model(model, 1, "tuple", 2),
        prepare_model(model, 1, "stacked", 3),
    ]
    assert len({spec.token for spec in specs}) == 4


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module that can be imported, and one that it takes data from."""
    (tmp_path / "user_constants.py").write_text("OFFSET = 0.0\nTABLE = [1.0, 2.0]\n")
    (tmp_path / "user_model.py").write_text(
        textwrap.dedent(
            """
            import jax.numpy as jnp
            import user_constants
            from user_constants import TABLE

            SCALE = 1.0

            def helper(x):
                return SCALE * x

            def model(x, a):
                return a * helper(x) + user_constants.OFFSET + TABLE[0] - 1.0

            def late(x, a):
                import user_constants
                return a * x + user_constants.OFFSET

            class Model:
                scale = 1.0

                def __call__(self, x, a):
                    return a * self.scale * x + SCALE - 1.0
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("user_model"), importlib.import_module("user_constants")
    for name in ("user_model", "user_constants"):
        sys.modules.pop(name)


MODULE_CHANGES = {
    "global of a helper": ("model", "model", "SCALE", lambda x: 2 * 3.0 * x),
    "data of another module": ("model", "constants", "OFFSET", lambda x: 2 * x + 3.0),
    "module imported in the function": ("late", "constants", "OFFSET", lambda x: 2 * x + 3.0),
    "global of a method": ("Model()", "model", "SCALE", lambda x: 2 * x + 2.0),
    "class attribute": ("Model()", "model.Model", "scale", lambda x: 2 * 3.0 * x),
}


@pytest.mark.parametrize("case", MODULE_CHANGES)
def test_data_of_importable_modules_is_part_of_the_identity(case, user_module):
    name, owner, attribute, expected = MODULE_CHANGES[case]
    namespace = {"model": user_module[0], "constants": user_module[1]}
    model = eval(f"model.{name}", namespace)
    np.testing.assert_array_equal(evaluate(prepare_model(model), [2.0]), 2.0 * X)
    owner = eval(owner, namespace)
    setattr(owner, attribute, 3.0)
    np.testing.assert_array_equal(evaluate(prepare_model(model), [2.0]), expected(X))
    setattr(owner, attribute, 1.0 if attribute != "OFFSET" else 0.0)
    np.testing.assert_array_equal(evaluate(prepare_model(model), [2.0]), 2.0 * X)


LOAD = """
import pickle, sys
import jax, jax.numpy as jnp, numpy as np
from nlsq_dask.kernels.model import call_model
spec = pickle.load(open(sys.argv[1], "rb"))
try:
    with jax.enable_x64(True):
        x = jnp.linspace(0.0, 2.0, 15)
        value = call_model(spec, (x,), jnp.array([2.0]))
    print("value", float(value[-1]))
except Exception as error:
    print(type(error).__name__, error)
"""


def in_another_process(tmp_path, spec):
    (tmp_path / "spec.pkl").write_bytes(cloudpickle.dumps(spec))
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {paths!r}\n{LOAD}", "spec.pkl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_module_data_that_a_worker_does_not_have_is_refused(user_module, tmp_path):
    module, constants = user_module
    assert in_another_process(tmp_path, prepare_model(module.model)) == "value 4.0"
    module.SCALE = constants.OFFSET = 3.0
    got = in_another_process(tmp_path, prepare_model(module.model))
    assert got.startswith("ModelError the model uses user_constants.OFFSET and user_model.SCALE,")
    assert in_another_process(tmp_path, prepare_model(lambda x, a: a * x + SCALE)) == "value 6.0"


def test_closure_sees_its_values_in_another_process(tmp_path):
    namespace = {"jnp": jnp, "offset": 3.0}
    exec("def model(x, a): return a * x + jnp.float64(offset)", namespace)
    assert in_another_process(tmp_path, prepare_model(namespace["model"])) == "value 7.0"


TOKEN = """
import jax.numpy as jnp
from nlsq_dask.kernels.model import prepare_model
def make(value):
    return lambda x, a: a * x * value if "a" in {"a", "b", "c", "d"} else x
print(prepare_model(make(2.0)).token)
"""


def test_token_is_the_same_in_every_process():
    tokens = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{TOKEN}"],
            env={"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(tokens) == 1


def test_a_spec_that_arrives_many_times_is_one_function(monkeypatch):
    def make(value):
        return lambda x, a: a * x + value

    sent = cloudpickle.dumps(prepare_model(make(11.0)))
    monkeypatch.setattr(model_module, "_functions", model_module.LruTable(MAX_MODELS))
    traces = compiled._cache_size()
    specs = [pickle.loads(sent) for _ in range(50)]
    for spec in specs:
        np.testing.assert_array_equal(evaluate(spec, [2.0]), 2.0 * X + 11.0)
    assert len({id(spec.function) for spec in specs}) == 1
    assert compiled._cache_size() == traces + 1


def test_a_forgotten_model_is_loaded_again(monkeypatch):
    monkeypatch.setattr(model_module, "_functions", model_module.LruTable(2))

    def make(value):
        return lambda x, a: a * x + value

    specs = [prepare_model(make(float(value))) for value in range(5)]
    assert len(model_module._functions) == 2
    for value, spec in enumerate(pickle.loads(pickle.dumps(specs))):
        np.testing.assert_array_equal(evaluate(spec, [2.0]), 2.0 * X + value)


def unpicklable():
    lock = threading.Lock()

    def model(x, a):
        with lock:
            return a * x

    return model


def test_unpicklable_model_is_used_in_memory_only():
    model = unpicklable()
    first, second = prepare_model(model), prepare_model(model)
    assert first.blob is None
    assert first.token != second.token
    np.testing.assert_array_equal(evaluate(first, [2.0]), 2.0 * X)
    with pytest.raises(_errors.ModelError, match="model model cannot be pickled"):
        pickle.dumps(first)


def test_style_is_found_once(monkeypatch):
    traced = []
    monkeypatch.setattr(model_module, "_trial", lambda spec, n: traced.append(spec))
    for _ in range(3):
        prepare_model(lambda x, a: a * jnp.sinh(x))
    assert len(traced) == 1
    prepare_model(lambda x, a: a * jnp.cosh(x))
    assert len(traced) == 2
