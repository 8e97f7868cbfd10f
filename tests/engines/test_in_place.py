"""Rows that the kernel takes from the user's arrays: the bits of copied rows, and no copy."""

from __future__ import annotations

import dataclasses
import mmap

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import DataChangedError, fit, plan
from nlsq_dask.core.questions import CostsAt, Several, SumsAt
from nlsq_dask.engines import in_memory, parts
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stage import ALIGNMENT, Stage
from nlsq_dask.kernels.sums import block_compilations
from nlsq_dask.kernels.tiles import MORE_ROWS, Rows
from nlsq_dask.questions.scores import ScoresAt
from nlsq_dask.user_model.loss import Loss
from nlsq_dask.user_model.model import prepare_model
from tests.support.engines import standard_engine

N_ROWS = 70_001
CAPACITY = 1 << 14
PARAMS = np.array([2.0, 0.7])

#: Values between an aligned address and the first value of y, x and sigma. NumPy's own large arrays
#: begin two values behind a page.
PLACES = [(0, 0, 0), (2, 2, 2), (7, 7, 7), (1, 6, 4), (5, 0, 3)]


def decay(x, a, b):
    return a * jnp.exp(-b * x)


def decay_in_numpy(x, a, b):
    return a * np.exp(-b * x)


def placed(values, place):
    """A copy that begins so many values behind an aligned address."""
    raw = np.empty(values.size + 2 * MORE_ROWS)
    first = -raw.ctypes.data % ALIGNMENT // 8 + place
    found = raw[first : first + values.size]
    found[:] = values
    assert found.ctypes.data % ALIGNMENT == 8 * place
    return found


def rows(n=N_ROWS, places=(2, 2, 2)):
    """y, x and sigma."""
    rng = np.random.default_rng(n)
    x, sigma = rng.uniform(0.0, 3.0, n), rng.uniform(0.5, 2.0, n)
    y = decay_in_numpy(x, *PARAMS) + 0.1 * rng.normal(size=n)
    return tuple(map(placed, (y, x, sigma), places))


def swapped(array):
    """The same numbers in the other byte order, which are copied for the kernel."""
    return array.astype(array.dtype.newbyteorder())


def answer(spec, y, x, sigma=None):
    """What a search and a covariance ask, and the engine."""
    sums = SumsAt(PARAMS * 1.01, np.eye(2), observe=True)
    with standard_engine(observe(x, y, sigma), spec) as engine:
        asked = Several((sums, CostsAt(np.array([PARAMS, [1.0, 1.0]])), ScoresAt(PARAMS)))
        found = engine.ask(asked)
        assert str(found) == str(engine.ask(asked))
    return found, engine


def bits(answers):
    sums, costs, scores = answers
    fields = [getattr(sums, field.name) for field in dataclasses.fields(sums)]
    numbers = [f.tobytes() if isinstance(f, np.ndarray) else f for f in fields]
    return [*numbers, costs.tobytes(), repr(scores)]


def in_place(engine, arrays):
    """Numbers of the parts whose y and coordinates are views of the arrays."""
    found = []
    for number, part in enumerate(engine._parts):
        own = part if isinstance(part, Rows) else part.rows()
        pairs = zip((own.y, *own.coords), arrays, strict=True)
        if all(np.shares_memory(mine, theirs) for mine, theirs in pairs):
            found.append(number)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["linear", "huber"])
def test_rows_in_place_give_the_bits_of_copied_rows(places, weighted, loss):
    y, x, sigma = rows(places=places)
    spec = dataclasses.replace(prepare_model(decay, 2, "single", 1), loss=Loss(loss, 0.1))
    sigma = sigma if weighted else None
    here, engine = answer(spec, y, x, sigma)
    copied, other = answer(spec, swapped(y), x, sigma)
    assert bits(here) == bits(copied)
    last = N_ROWS // CAPACITY
    first = 0 if places[:2] == (0, 0) else 1
    assert in_place(engine, (y, x)) == list(range(first, last))
    assert in_place(other, (y, x)) == []


@pytest.mark.parametrize("weighted", [False, True])
def test_only_rows_at_the_ends_of_the_arrays_are_copied(weighted, monkeypatch):
    taken, fill, allocate = [], Stage.fill, parts.aligned_empty

    def filled(stage, block, start):
        taken.append(start)
        return fill(stage, block, start)

    n_bytes = []

    def allocated(*shape):
        n_bytes.append(8 * np.prod(shape))
        return allocate(*shape)

    monkeypatch.setattr(Stage, "fill", filled)
    monkeypatch.setattr(parts, "aligned_empty", allocated)
    y, x, sigma = rows()
    before = [a.tobytes() for a in (y, x, sigma)]
    for array in (y, x, sigma):
        array.flags.writeable = False
    answer(prepare_model(decay, 2, "single", 1), y, x, sigma if weighted else None)
    assert {start // CAPACITY for start in taken} == {0, N_ROWS // CAPACITY}
    of_ends = 2 * (2 + weighted)
    of_weights = weighted * -(-N_ROWS // CAPACITY)
    assert sum(n_bytes) == (of_ends + of_weights) * 8 * (CAPACITY + MORE_ROWS)
    assert before == [a.tobytes() for a in (y, x, sigma)]
    data = observe(x, y, sigma if weighted else None)
    assert sum(n_bytes) == parts.bytes_beside(data, CAPACITY)


def test_a_plan_counts_no_copy_of_rows_in_place():
    y, x, _ = rows(1_000_000)
    here, copied = (
        plan(decay, x, observed, p0=[1.0, 1.0], time=False).memory_bytes
        for observed in (y, swapped(y))
    )
    assert copied - here == 8 * 2 * (8 * (1 << 17) - 2 * ((1 << 17) + MORE_ROWS))


def test_values_that_change_in_place_are_noticed():
    def fitted(y):
        def change(_):
            y[:] += 1e-3

        fit(decay, x, y, p0=[1.0, 1.0], pilot=False, callback=change)

    y, x, _ = rows()
    fitted(swapped(y))
    with pytest.raises(DataChangedError, match=r"512th value of y"):
        fitted(y)


def of_a_file(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def of_pages(array, path):
    pages = mmap.mmap(-1, array.nbytes)
    pages.write(array.tobytes())
    return np.frombuffer(pages)


def not_aligned(array, path):
    found = np.empty(array.nbytes + 1, np.uint8)[1:].view(np.float64)
    found[:] = array
    return found


@pytest.mark.parametrize(
    "made",
    [
        of_a_file,
        lambda array, path: np.asarray(of_a_file(array, path)),
        of_pages,
        not_aligned,
        lambda array, path: swapped(array),
        lambda array, path: np.repeat(array, 2)[::2],
        lambda array, path: array.astype(np.float32).astype(object).astype(np.float32),
    ],
    ids=["memory map", "view of a map", "mmap", "odd address", "byte order", "strided", "float32"],
)
def test_other_rows_are_copied(made, tmp_path):
    y, x, _ = rows()
    x = made(x, tmp_path / "x.npy")
    here, engine = answer(prepare_model(decay, 2, "single", 1), y, x)
    assert in_place(engine, (y, np.asarray(x))) == []
    exact = answer(prepare_model(decay, 2, "single", 1), swapped(y), x.astype(np.float64))[0]
    assert bits(here) == bits(exact)


def test_rows_of_several_dimensions_stay_in_place():
    y, x, _ = rows(1 << 17)
    shape = (1 << 5, 1 << 12)
    spec = prepare_model(decay, 2, "single", 1)
    here, engine = answer(spec, y.reshape(shape), x.reshape(shape))
    assert in_place(engine, (y, x)) == list(range(1, 7))
    assert bits(here) == bits(answer(spec, swapped(y), x)[0])
    turned = y.reshape(shape).T, x.reshape(shape).T
    assert in_place(answer(spec, *turned)[1], (y, x)) == []


def test_few_rows_are_copied():
    y, x, _ = rows(in_memory.THREADING_ROWS - 1)
    assert in_place(answer(prepare_model(decay, 2, "single", 1), y, x)[1], (y, x)) == []


def test_a_model_in_numpy_is_compared_on_rows_in_place():
    y, x, _ = rows()
    spec = prepare_model(decay_in_numpy, 2, "single", 1)
    assert spec.is_numpy
    here, engine = answer(spec, y, x)
    assert in_place(engine, (y, x))
    assert bits(here) == bits(answer(spec, swapped(y), x)[0])


@pytest.mark.slow
def test_sample_and_rows_in_place_have_one_compilation():
    def of_copies(x, a, b):
        return a * jnp.exp(-b * x) + 0.0 * b

    def of_places(x, a, b):
        return a * jnp.exp(-b * x) + 0.0 * a

    y, x, _ = rows(600_000)
    counts, found = [], []
    for model, observed in ((of_copies, swapped(y)), (of_places, y)):
        found.append(fit(model, x, observed, p0=[1.0, 1.0]))
        counts.append(block_compilations(prepare_model(model, 2, "single", 1)))
        assert found[-1].pilot is not None
    assert counts[0] == counts[1]
    assert found[0].popt.tobytes() == found[1].popt.tobytes()
