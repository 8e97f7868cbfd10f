"""Results in files: to the same bits, in one piece, or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import threading
from dataclasses import fields, replace

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from nlsq_dask import FitResult, InputError, ModelError, Start, Status, fit
from nlsq_dask._errors import InputTypeError
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import Moments
from nlsq_dask.core.solver_state import IterationRecord
from nlsq_dask.io.times import TimeAxis
from nlsq_dask.results.record import FitRecord, PilotRecord
from nlsq_dask.results.saving import FORMAT, HEAD_BYTES
from tests.results.linear_result import linear_result
from tests.support.mutated_files import content_of_result, seal_result

X = np.linspace(0.0, 3.0, 40)
RESULT = linear_result(np.column_stack([np.ones_like(X), X]), np.sin(X))

NUMBERS = st.floats()
COUNTS = st.integers(0, 10**15)
NAMES = st.text(min_size=1, max_size=8)


@st.composite
def starts(draw, size):
    vector = arrays(np.float64, size, elements=NUMBERS)
    return Start(
        draw(vector),
        draw(NUMBERS),
        draw(st.none() | vector),
        draw(st.none() | NUMBERS),
        draw(st.none() | st.integers(0, 20)),
        draw(st.none() | st.sampled_from(Status)),
    )


TEXTS = st.none() | st.text(max_size=8)
TIMES = st.builds(TimeAxis, st.text(max_size=8), TEXTS, TEXTS)


@st.composite
def results(draw):
    """Results of any kind, those that no fit would have among them."""
    size = draw(st.integers(1, 4))
    vector = arrays(np.float64, size, elements=NUMBERS)
    matrix = arrays(np.float64, (size, size), elements=NUMBERS)
    records = st.builds(
        IterationRecord,
        **{
            f.name: {"int": COUNTS, "bool": st.booleans()}.get(f.type, NUMBERS)
            for f in fields(IterationRecord)
        },
    )
    values = {
        "names": draw(st.lists(NAMES, min_size=size, max_size=size, unique=True).map(tuple)),
        "popt": draw(vector),
        "pcov": draw(matrix),
        "fixed": draw(st.lists(NAMES, max_size=2).map(tuple)),
        "moments": draw(st.builds(Moments, *[NUMBERS] * 7)),
        "grad": draw(vector),
        "active_mask": draw(arrays(np.int64, size, elements=st.integers(-1, 1))),
        "absolute_sigma": draw(st.booleans()),
        "sandwich": draw(st.booleans()),
        "param_units": draw(st.dictionaries(NAMES, st.text(max_size=4), max_size=2)),
        "data_units": draw(st.dictionaries(NAMES, st.text(max_size=4), max_size=2)),
        "n_free": size,
        "r_factor": draw(matrix),
        "status": draw(st.sampled_from(Status)),
        "scipy_status": draw(st.none() | st.sampled_from(Status)),
        "undetermined": draw(st.lists(NAMES, max_size=2).map(tuple)),
        "decoded": draw(st.lists(NAMES, max_size=2).map(tuple)),
        "workflow": draw(st.none() | st.text(max_size=8)),
        "budget": draw(st.builds(MemoryBudget, **{f.name: NUMBERS for f in fields(MemoryBudget)})),
        "tolerances": draw(st.dictionaries(NAMES, st.none() | NUMBERS, max_size=3)),
        "structure": draw(st.sampled_from(["single", "stacked", "tuple"])),
        "starts": draw(st.lists(starts(size), max_size=2).map(tuple)),
        "pilot": draw(
            st.none() | st.builds(PilotRecord, COUNTS, vector, NUMBERS, NUMBERS, st.booleans())
        ),
        "checkpoint": draw(st.none() | st.text(max_size=8)),
        "history": draw(st.lists(records, max_size=3).map(tuple)),
        "bounds": draw(st.none() | arrays(np.float64, (size, 2), elements=NUMBERS)),
        "blocks_omitted": draw(st.lists(st.tuples(COUNTS, COUNTS), max_size=2).map(tuple)),
        "times": draw(st.lists(st.none() | TIMES, max_size=2).map(tuple)),
    }
    plain = {"int": COUNTS, "float": NUMBERS, "str": st.text(max_size=8)}
    return FitResult(
        **values,
        **{f.name: draw(plain[f.type]) for f in fields(FitRecord) if f.name not in values},
    )


def exact(value):
    """A value with its type, in which numbers are their bits; all NaN are one."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, [exact(item) for item in value.ravel().tolist()]
    if isinstance(value, tuple):
        return type(value), [exact(item) for item in value]
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return type(value), {f.name: exact(getattr(value, f.name)) for f in fields(value)}
    return type(value), value


@pytest.mark.slow
@settings(max_examples=6)
@given(results())
def test_every_field_comes_back_to_the_same_bits(tmp_path_factory, result):
    path = tmp_path_factory.mktemp("results") / "result.json"
    result.save(path)
    assert exact(FitResult.load(path)) == exact(result)
    plain = result.to_dict()
    assert list(plain) == [f.name for f in fields(FitRecord)]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@given(data=st.data())
def test_damage_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("results") / "result.json"
    RESULT.save(path)
    raw = path.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1), "at")
    if data.draw(st.booleans(), "cut off"):
        damaged = raw[:at]
    else:
        damaged = raw[:at] + data.draw(st.binary(max_size=2), "instead") + raw[at + 1 :]
    path.write_bytes(damaged)
    try:
        loaded = FitResult.load(path)
    except InputError as error:
        assert str(path) in str(error)
    else:  # a space more or less between two values is no damage
        assert json.loads(damaged)["result"] == json.loads(raw)["result"]
        assert exact(loaded) == exact(replace(RESULT, fitted=None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no result of a fit"),
        (b"\x89PNG\r\n\x1a\n", "holds no result of a fit"),
        (b'{"format": "nlsq_dask checkpoint 1"}', "holds no result of a fit"),
        (b" " * HEAD_BYTES + FORMAT.encode(), "holds no result of a fit"),
        (FORMAT.encode(), "is damaged"),
        (f'["{FORMAT}"]'.encode(), "is damaged"),
        (f'{{"format": "{FORMAT}"}}'.encode(), "is damaged"),
        (f'{{"format": "{FORMAT}", "a": {"[" * 100_000}'.encode(), "is damaged"),
    ],
)
def test_files_of_something_else(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        FitResult.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": 10**400},
        {"cost": float("nan")},
        {"cost": "1e3"},
        {"n_points": -1},
        {"n_points": True},
        {"names": ["a", "b", "c"]},
        {"names": "ab"},
        {"popt": [[1.0, 2.0]]},
        {"pcov": [[1.0], [1.0, 2.0]]},
        {"r_factor": 1.0},
        {"status": 99},
        {"structure": "pickle"},
        {"history": [[[[[]]]]]},
        {"__class__": "object"},
    ],
    ids=str,
)
def test_odd_content_under_a_right_checksum_is_damage(tmp_path, change):
    path = tmp_path / "result.json"
    RESULT.save(path)
    path.write_bytes(seal_result(content_of_result(path.read_bytes()) | change))
    with pytest.raises(InputError, match="is damaged") as caught:
        FitResult.load(path)
    assert str(path) in str(caught.value)
    assert "checksum" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="no regular file"):
            FitResult.load(path)
    for place in (b"x", "a\0b", "http://host/result.json", "s3://"):
        for call in (RESULT.save, FitResult.load):
            with pytest.raises((InputError, InputTypeError), match="path = .*: pass"):
                call(place)


def test_a_result_in_a_store():
    url = "memory://test-save/result.json"
    RESULT.save(url)
    assert exact(FitResult.load(url)) == exact(replace(RESULT, fitted=None))
    with pytest.raises(FileNotFoundError):
        FitResult.load("memory://test-save/none.json")
    fsspec.filesystem("memory").pipe_file("/test-save/result.json", b"text")
    with pytest.raises(InputError, match=f"{url} holds no result"):
        FitResult.load(url)


def test_fields_of_another_release(tmp_path):
    path = tmp_path / "result.json"
    RESULT.save(path)
    envelope = json.loads(path.read_bytes())
    path.write_text(json.dumps(envelope | {"version": 2}))
    with pytest.raises(InputError, match=r"version 2 of the format.* reads version 1: upgrade"):
        FitResult.load(path)
    # The later form need not be a form of this release's at all.
    path.write_text(json.dumps({"format": FORMAT, "version": 7, "sha256": "", "result": []}))
    with pytest.raises(InputError, match="upgrade nlsq_dask"):
        FitResult.load(path)


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    RESULT.save(path)

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            replace(RESULT, chi2=7.0).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert FitResult.load(path).chi2 == RESULT.chi2
    replace(RESULT, chi2=7.0).save(str(path))
    assert FitResult.load(str(path)).chi2 == 7.0


def test_a_missing_file_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        FitResult.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        RESULT.save(tmp_path / "none" / "result.json")


def wave(x, amplitude, frequency):
    return amplitude * jnp.sin(frequency * x)


def plane(x, a, b):
    return a * x[0] + b * x[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "x", "at"),
    [
        (wave, X, np.ones((2, 3))),
        (plane, np.stack([X, X**2]), np.ones((2, 5))),
        (plane, (X[:, None], X[None, :9]), (np.ones((4, 1)), np.ones(5))),
    ],
)
def test_a_loaded_result_predicts_with_its_model(tmp_path, model, x, at):
    shape = np.broadcast_shapes(*(c.shape for c in x)) if isinstance(x, tuple) else X.shape
    y = 1.5 + np.random.default_rng(1).normal(size=shape)
    result = fit(model, x, y, p0=[1, 1])
    result.save(tmp_path / "result.json")

    alone = FitResult.load(tmp_path / "result.json")
    assert exact(alone) == exact(replace(result, fitted=None))
    assert str(alone) == str(result)
    assert alone.summary() == result.summary()
    for method in ("predict", "confidence_band", "prediction_interval", "residuals"):
        with pytest.raises(InputError, match=rf"{method}\(\).*FitResult\.load\(path, model=model"):
            getattr(alone, method)(*[at][: method != "residuals"])
    with pytest.raises(InputError, match="robust_pcov"):
        alone.robust_pcov()

    loaded = FitResult.load(tmp_path / "result.json", model=model)
    np.testing.assert_array_equal(loaded.predict(at), result.predict(at))
    for method in ("confidence_band", "prediction_interval"):
        np.testing.assert_array_equal(getattr(loaded, method)(at), getattr(result, method)(at))
    for method in ("residuals", "robust_pcov", "predict"):
        with pytest.raises(InputError, match=rf"{method}\(\).*the data"):
            getattr(loaded, method)()
    # Saved once more, it is the same.
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "result.json").read_bytes()


def test_files_of_earlier_releases_are_read(tmp_path):
    path = tmp_path / "result.json"
    RESULT.save(path)
    envelope = json.loads(path.read_text())
    plain = envelope["result"]
    for name in ("bounds", "sandwich"):
        del plain[name]
    for name in ("variance", "n_small"):
        del plain["moments"][name]
    content = json.dumps(plain, allow_nan=False, sort_keys=True).encode()
    envelope["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(envelope))
    loaded = FitResult.load(path)
    moments = replace(RESULT.moments, variance=0.0)
    assert exact(loaded) == exact(replace(RESULT, fitted=None, moments=moments))
    # The scatter of the residuals stands for a variance that is not known.
    old = replace(RESULT, absolute_sigma=True, moments=moments)
    low, high = old.prediction_interval(np.eye(2))
    scatter = RESULT.moments.sq_residuals / RESULT.dof
    errors = np.sqrt(np.diagonal(RESULT.pcov) + scatter)
    np.testing.assert_allclose(high - low, 2 * stats.norm.isf(0.025) * errors, rtol=1e-9)


def test_a_file_does_not_grow_with_the_data(tmp_path):
    sizes = []
    for rows in (100, 10_000):
        x = np.linspace(0, 1, rows)
        fit(lambda x, a, b: a * x + b, x, np.sin(9 * x)).save(tmp_path / "result.json")
        sizes.append((tmp_path / "result.json").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]


def test_a_result_is_loaded_with_its_parameters_in_their_order(tmp_path):
    y = 1.5 + np.random.default_rng(1).normal(size=X.size)
    result = fit(lambda x, a, b: a + b * x, X, y, p0=[1, 1])
    result.save(tmp_path / "result.json")
    with pytest.raises(
        ModelError, match="parameters a and b, but the model .* takes b and a, in an"
    ):
        FitResult.load(tmp_path / "result.json", model=lambda x, b, a: a + b * x)
    for model in (lambda x, start, slope: start + slope * x, lambda x, *p: p[0] + p[1] * x):
        loaded = FitResult.load(tmp_path / "result.json", model=model)
        np.testing.assert_array_equal(loaded.predict(X), result.predict())


def test_pickles_have_the_model_and_leave_the_data_out():
    result = fit(lambda x, a, b: a * x + b, X, np.sin(9 * X))
    copy = pickle.loads(pickle.dumps(result))
    assert exact(replace(copy, fitted=None)) == exact(replace(result, fitted=None))
    np.testing.assert_array_equal(copy.predict(X), result.predict())
    np.testing.assert_array_equal(copy.confidence_band(X), result.confidence_band())
    for call in (copy.predict, copy.residuals):
        with pytest.raises(InputError, match="reads the data of the fit, which are not kept"):
            call()


def test_a_pickle_has_the_times_and_units_of_the_coordinates():
    times = np.datetime64("2020-01-01", "s") + np.arange(X.size).astype("m8[h]")
    result = fit(lambda t, a, b: a * t + b, times, np.sin(9 * X), time_unit="h")
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(result))))
    np.testing.assert_array_equal(copy.predict(times[2:4]), result.predict(times[2:4]))


def test_a_pickle_without_a_model_that_cannot_be_pickled_says_so():
    lock = threading.Lock()

    def locked(x, a, b):
        with lock:
            return a * x + b

    copy = pickle.loads(pickle.dumps(fit(locked, X, np.sin(9 * X))))
    with pytest.raises(InputError, match=r"save\(path\), and load it .*load\(path, model=model\)"):
        copy.predict(X)
