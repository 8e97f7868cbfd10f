"""Models that guess their own start."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import ModelError, fit, fit_models, plan
from nlsq_dask.models import Constant, Gaussian, Lorentzian
from tests.support.counting_store import stored

RNG = np.random.default_rng(4)
X = RNG.permutation(np.linspace(-50, 50, 40_000))
TRUTH = [3.0, 21.0, 0.4]
Y = 3.0 * np.exp(-0.5 * ((X - 21.0) / 0.4) ** 2) + 0.01 * RNG.normal(size=X.size)
STRATEGIES = ["standard", "chunked", "streaming"]


def make_peak(guess):
    """A narrow peak, which no search finds from parameters of 1."""

    def peak(x, height, centre, width):
        return height * jnp.exp(-0.5 * ((x - centre) / width) ** 2)

    if guess is not None:
        peak.guess = guess
    return peak


class Guess:
    """A guess that counts its calls and keeps what it is called with."""

    def __init__(self, answer=None):
        self.calls = []
        self.answer = answer

    def __call__(self, x, y):
        self.calls.append((x, y))
        if self.answer is not None:
            return self.answer
        return [y.max(), x[np.argmax(y)], 0.5]


def data_for(strategy):
    if strategy == "streaming":
        return da.from_array(X, chunks=3000), da.from_array(Y, chunks=2000)
    return X, Y


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_may_guess_its_own_start(strategy):
    guess = Guess()
    result = fit(make_peak(guess), *data_for(strategy), strategy=strategy)
    np.testing.assert_allclose(result.popt, TRUTH, rtol=0.02)
    (call,) = guess.calls
    for array in call:
        assert isinstance(array, np.ndarray)
        assert (array.ndim, array.dtype) == (1, np.float64)
    # Rows stay together.
    rows = dict(zip(X.tolist(), Y.tolist(), strict=True))
    assert all(rows[x] == y for x, y in zip(*map(np.ndarray.tolist, call), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_guess_the_peak_is_missed(strategy):
    """That is why the tests above and below can fail."""
    with np.errstate(all="ignore"):
        result = fit(make_peak(None), *data_for(strategy), [1, -20, 1], strategy=strategy,
                     max_nfev=None)  # fmt: skip
    assert abs(result.popt[1] - 21.0) > 1


def test_values_of_one_s_own_go_before_the_guess():
    guess = Guess()
    for p0 in ([3, 20.8, 0.5], {"height": 3, "centre": 20.8, "width": 0.5}):
        fit(make_peak(guess), X, Y, p0)
    assert not guess.calls


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "answer",
    [
        [2.0, 20.7, 0.5],
        (2, 20.7, 0.5),
        np.array([2.0, 20.7, 0.5], np.float32),
        {"width": 0.5, "centre": 20.7, "height": 2.0},
        {"width": 0.5, "centre": 20.7, "height": 2.0, "unused": 1.0},
    ],
    ids=str,
)
def test_forms_of_a_guess(answer):
    result = fit(make_peak(Guess(answer)), X, Y)
    expected = fit(make_peak(None), X, Y, [2.0, 20.7, 0.5])
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-5)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([1.0, 2.0], "it returned [1.0, 2.0]"),
        ([1.0, np.nan, 2.0], "it returned [1.0, nan, 2.0]"),
        ({"height": 1.0, "centre": 2.0}, "KeyError('width')"),
        ("abc", "ValueError"),
        (7.0, "it returned 7.0"),
    ],
)
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_a_guess_of_no_use_is_an_error(answer, text, strategy):
    with pytest.raises(ModelError, match="the guess of the model peak failed") as raised:
        fit(make_peak(Guess(answer)), *data_for(strategy))
    assert text in str(raised.value)
    assert "pass p0" in str(raised.value)


def test_a_guess_that_fails_is_an_error():
    def guess(x, y):
        return [y.max(), x[int(1 / 0)], 0.5]

    with pytest.raises(ModelError, match=r"ZeroDivisionError.*pass p0") as raised:
        fit(make_peak(guess), X, Y)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_guess_outside_of_the_bounds_is_moved_to_them():
    guess = Guess([99.0, 20.7, 0.5])
    result = fit(make_peak(guess), X, Y, bounds={"height": (0, 10), "width": (0.1, 3)})
    np.testing.assert_allclose(result.popt, TRUTH, rtol=0.02)


def test_a_guess_says_nothing_of_what_is_fixed_or_tied():
    guess = Guess([2.0, 20.7, 0.5])
    result = fit(make_peak(guess), X, Y, fixed={"width": 0.4}, ties={"height": {"centre": 1 / 7}})
    assert result.params["width"].value == 0.4
    np.testing.assert_allclose(result.popt, TRUTH, rtol=0.02)


@pytest.mark.parametrize("structure", ["stacked", "tuple"])
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_a_guess_gets_coordinates_as_the_model_does(structure, strategy):
    u, v = RNG.uniform(-1, 1, (2, 500))
    y = 2 * u + 3 * v

    def plane(x, a, b):
        return a * x[0] + b * x[1]

    seen = []

    def guess(x, y):
        assert isinstance(x, tuple) == (structure == "tuple")
        seen.append(np.column_stack([*x, y]))
        return [1.0, 1.0]

    plane.guess = guess
    x = (u, v) if structure == "tuple" else np.stack([u, v])
    if strategy == "streaming":
        y = da.from_array(y, chunks=130)
    np.testing.assert_allclose(fit(plane, x, y).popt, [2, 3], rtol=1e-9)
    (rows,) = seen
    np.testing.assert_allclose(rows @ [2, 3, -1], 0, atol=1e-12)


def test_a_guess_never_sees_rows_that_are_left_out():
    y = np.where(np.abs(X) < 2, 1e6, Y)
    for options in (dict(mask=np.abs(X) < 2), dict(fill_value=1e6)):
        guess = Guess()
        result = fit(make_peak(guess), X, y, **options)
        assert guess.calls[0][1].max() < 10
        np.testing.assert_allclose(result.popt, TRUTH, rtol=0.02)


@pytest.mark.slow
def test_a_guess_of_streamed_data_reads_a_sample_of_them(tmp_path):
    """Whole chunks, few of them, once; and the passes are no more than without a guess."""
    n_rows, chunk = 26 * X.size, 13_000  # more than are all read
    x, y = (stored(tmp_path / n, np.resize(a, n_rows), (chunk,)) for n, a in (("x", X), ("y", Y)))
    guess = Guess([2.0, 20.7, 0.5])
    result = fit(make_peak(guess), x, y, cache=False)
    n_chunks = n_rows // chunk
    reads = y.store.reads
    assert len(guess.calls) == 1
    assert len(guess.calls[0][1]) < 0.5 * n_rows
    sampled = sum(reads.values()) - result.n_passes * n_chunks
    assert 0 < sampled <= 0.25 * n_chunks
    assert max(reads.values()) <= result.n_passes + 1


@pytest.mark.slow
def test_a_model_of_the_library_needs_no_start():
    result = fit(Gaussian(), *data_for("streaming"))
    np.testing.assert_allclose(result.popt, TRUTH, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "chunk"), [(1000, 137), (60_000, 1000), (1_200_000, 100_000)])
def test_a_guess_sees_all_of_few_streamed_rows(rows, chunk):
    """Of sorted rows in few blocks, a quarter of them shows neither peak."""
    x = np.linspace(0, 10, rows)
    noise = np.random.default_rng(0).normal(0, 0.05, rows)
    y = 3 * np.exp(-0.5 * ((x - 4) / 0.3) ** 2) + 2 / (1 + ((x - 7) / 0.4) ** 2) + 1 + noise
    model = Gaussian(prefix="g_") + Lorentzian(prefix="l_") + Constant()
    streamed = fit(model, *(da.from_array(a, chunks=chunk) for a in (x, y)))
    in_memory = fit(model, x, y)
    np.testing.assert_array_less(abs(streamed.popt - in_memory.popt), 0.01 * in_memory.perr)


@pytest.mark.slow
def test_a_guess_from_all_rows_is_a_pass(tmp_path):
    """And the plan says so: readings are what a fit costs."""
    n_rows, chunk = 30_000, 1000
    x, y = (stored(tmp_path / n, np.resize(a, n_rows), (chunk,)) for n, a in (("x", X), ("y", Y)))
    guess = Guess([2.0, 20.7, 0.5])
    options = dict(cache=False, pilot=False)
    given = [None, list(guess.answer)]
    expected = [plan(make_peak(guess), x, y, p0, time=False, **options) for p0 in given]
    guessed, started = (fit(make_peak(guess), x, y, p0, **options) for p0 in given)
    assert guessed.n_passes == started.n_passes + 1
    assert set(y.store.reads.values()) == {guessed.n_passes + started.n_passes}
    assert expected[0].passes == tuple(n + 1 for n in expected[1].passes)
    assert expected[0].total_bytes == tuple(
        n + expected[1].bytes_per_pass for n in expected[1].total_bytes
    )


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_several_models_guess_from_all_of_few_streamed_rows(order):
    """Whichever of them it is that guesses."""
    x = np.linspace(-50, 50, 30_000)
    lines = [("line", lambda x, a, b: a + b * x), ("peak", Gaussian())][::order]
    y = 3.0 * np.exp(-0.5 * ((x - 14.5) / 0.4) ** 2) + 0.01 * RNG.normal(size=x.size)
    lazy = (da.from_array(a, chunks=1000) for a in (x, y))
    p0 = [None if name == "peak" else [1, 1] for name, _ in lines]
    result = fit_models(dict(lines), *lazy, p0=p0, pilot=False)["peak"]
    np.testing.assert_allclose(result.popt, [3.0, 14.5, 0.4], rtol=0.02)
