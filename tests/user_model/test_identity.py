"""What makes a model the same one, in one process and across several."""

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
from nlsq_dask.kernels.sums import BlockKernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model import model_spec as model_module
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import MAX_MODELS
from tests.user_model.evaluated import Line, X, compiled, evaluate

SCALE = 2.0


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


@pytest.mark.quick(3)
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
    assert_equal = functools.partial(np.testing.assert_allclose, rtol=1e-14)
    namespace = {"model": user_module[0], "constants": user_module[1]}
    model = eval(f"model.{name}", namespace)
    assert_equal(evaluate(prepare_model(model), [2.0]), 2.0 * X)
    owner = eval(owner, namespace)
    setattr(owner, attribute, 3.0)
    assert_equal(evaluate(prepare_model(model), [2.0]), expected(X))
    setattr(owner, attribute, 1.0 if attribute != "OFFSET" else 0.0)
    assert_equal(evaluate(prepare_model(model), [2.0]), 2.0 * X)


LOAD = """
import pickle, sys
import jax, jax.numpy as jnp, numpy as np
from nlsq_dask.user_model.model_spec import call_model
for path in sys.argv[1:]:
    spec = pickle.load(open(path, "rb"))
    try:
        with jax.enable_x64(True):
            x = jnp.linspace(0.0, 2.0, 15)
            value = call_model(spec, (x,), jnp.array([2.0]))
        print("value", float(value[-1]))
    except Exception as error:
        print(type(error).__name__, error)
"""


def in_another_process(tmp_path, *specs):
    """What pickled specs are in a process that loads one after the other: a line for each."""
    names = [f"{number}.pkl" for number in range(len(specs))]
    for name, content in zip(names, specs, strict=True):
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {paths!r}\n{LOAD}", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def pickled_spec(model):
    return cloudpickle.dumps(prepare_model(model))


@pytest.mark.slow
def test_module_data_that_a_worker_does_not_have_is_refused(user_module, tmp_path):
    module, constants = user_module
    whole = pickled_spec(module.model)
    module.SCALE = constants.OFFSET = 3.0
    changed = pickled_spec(module.model)
    of_this_file = pickled_spec(lambda x, a: a * x + SCALE)
    first, second, third = in_another_process(tmp_path, whole, changed, of_this_file)
    assert first == "value 4.0"
    assert second.startswith(
        "ModelError the model uses user_constants.OFFSET and user_model.SCALE,"
    )
    assert third == "value 6.0"


@pytest.mark.slow
def test_closure_sees_its_values_in_another_process(tmp_path):
    namespace = {"jnp": jnp, "offset": 3.0}
    exec("def model(x, a): return a * x + jnp.float64(offset)", namespace)
    assert in_another_process(tmp_path, pickled_spec(namespace["model"])) == ["value 7.0"]


TOKEN = """
import jax.numpy as jnp
from nlsq_dask.user_model.model import prepare_model
def make(value):
    return lambda x, a: a * x * value if "a" in {"a", "b", "c", "d"} else x
print(prepare_model(make(2.0)).token)
"""


@pytest.mark.slow
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


def test_a_model_is_loaded_before_it_is_traced(tmp_path, monkeypatch):
    # A module that computes at import what it needs as numbers: symbols of a trace have none.
    text = "import jax.numpy as jnp\nSHIFT = float(jnp.sum(jnp.arange(3.0)))\n"
    (tmp_path / "computing_module.py").write_text(text + "def model(x, a): return a * x + SHIFT\n")
    monkeypatch.syspath_prepend(tmp_path)
    sent = cloudpickle.dumps(prepare_model(importlib.import_module("computing_module").model))
    monkeypatch.delitem(sys.modules, "computing_module")
    monkeypatch.setattr(model_module, "_functions", model_module.LruTable(MAX_MODELS))

    spec = pickle.loads(sent)
    assert "computing_module" not in sys.modules
    y = 2.0 * X + 3.0
    kernel = BlockKernel(spec, None, (jax.local_devices()[0],), False)
    costs = kernel.costs(np.array([[2.0], [3.0]]), Rows((X,), y, None, X.size))
    np.testing.assert_allclose(costs, [0.0, 0.5 * X @ X], rtol=1e-15)


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
