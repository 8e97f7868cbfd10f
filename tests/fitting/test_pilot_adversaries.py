"""Ordered, hidden and spoilt rows, and models that fail on some, do not defeat the pilot."""

from __future__ import annotations

import logging
import warnings

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import ConvergenceWarning, InputError, fit
from nlsq_dask.fitting.prepare import STAT_TOL
from tests.fitting.pilot_cases import (
    CHUNK,
    CONVERGED,
    CURVATURE,
    Case,
    apart,
    assert_same_answer,
    gauss,
    peak_case,
    rng,
    sampled,
    wave,
)
from tests.support.problems import computed


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("n_starts", [1, 5])
def test_a_peak_in_one_chunk_that_was_not_sampled(n_starts, caplog):
    n = 200
    hidden = next(c for c in range(90, n) if not {c - 1, c, c + 1} & set(sampled(n)))
    x = np.linspace(0, n, n * CHUNK)
    truth = [5, hidden + 0.5, 0.12, 0.5]
    y = computed(gauss, x, *truth) + 0.2 * rng().normal(size=x.size)
    bounds = ([0, hidden - 6, 0.05, -3], [10, hidden + 7, 2, 3])
    options = {"bounds": bounds, "n_starts": n_starts}
    case = Case(gauss, x, y, [4, hidden + 0.4, 0.15, 0.7], options)
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        result = case.fit()
    assert result.pilot is None or not result.pilot.used
    assert "do not show all parameters: starting at p0" in caplog.text
    np.testing.assert_allclose(result.popt, truth, atol=0.1)
    case.options["n_starts"] = 1
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


@pytest.mark.slow
def test_several_starts_find_what_the_sample_shows_elsewhere(caplog):
    n = 200
    hidden = next(c for c in range(90, n) if not {c - 1, c, c + 1} & set(sampled(n)))
    x = np.linspace(0, n, n * CHUNK)
    truth = [5, 40, 12, 0.5]
    narrow = computed(gauss, x, 5, hidden + 0.5, 0.12, 0.0)  # where p0 leads
    y = computed(gauss, x, *truth) + narrow + 0.2 * rng().normal(size=x.size)
    p0 = [4, hidden + 0.4, 0.12, 0.7]
    case = Case(gauss, x, y, p0, {"bounds": ([0, 0, 0.05, -3], [10, n, 20, 3])})
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        result = case.fit(n_starts=10)
    assert result.pilot.used
    assert result.cost < 0.1 * case.fit().cost
    assert "p0 led to" in caplog.text
    # Nor is it lost where p0 leads nowhere in time.
    single = case.fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        hurried = case.fit(n_starts=10, max_nfev=single.nfev - 1)
    assert hurried.cost < 0.1 * single.cost
    np.testing.assert_allclose(result.popt, truth, atol=0.1)
    case.p0 = result.popt
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


@pytest.mark.slow
def test_a_peak_of_which_the_sample_sees_the_edge():
    n = 200
    edge = sampled(n)[7]  # the first chunk that is not sampled lies behind it
    x = np.linspace(0, n, n * CHUNK)
    truth = [5, edge + 1.4, 0.2, 0.5]
    y = computed(gauss, x, *truth) + 0.2 * rng().normal(size=x.size)
    case = Case(gauss, x, y, [4, edge + 1.3, 0.25, 0.7])
    result = case.fit()
    np.testing.assert_allclose(result.popt, truth, atol=0.1)
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


def spot(x, a, b, h, r, c, w):
    t, row, col = x
    return a + b * t + h * jnp.exp(-(((row - r) / w) ** 2) - ((col - c) / w) ** 2)


@pytest.mark.every(7)
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(4, 8, 8), (4, 4, 4), (2, 16, 16), (20, 8, 8)])
@pytest.mark.parametrize("centre", [(10.0, 10.0), (37.0, 22.0), (30.0, 61.0)])
def test_parameters_that_few_chunks_of_a_cube_show(centre, chunks):
    shape = (20, 64, 64)
    x = tuple(
        np.arange(float(n)).reshape([-1 if i == d else 1 for i in range(3)])
        for d, n in enumerate(shape)
    )
    truth = [1, 0.1, 2, *centre, 1.5]
    y = computed(spot, x, *truth) + 0.3 * rng().normal(size=shape)
    lazy = da.from_array(y, chunks=chunks)
    p0 = [0.7, 0.14, 1.5, centre[0] + 0.5, centre[1] - 0.5, 2.0]
    result = fit(spot, x, lazy, p0, pilot=True)
    np.testing.assert_allclose(result.popt, truth, atol=0.1)
    assert_same_answer(result, fit(spot, x, lazy, p0, pilot=False, **CONVERGED))


@pytest.mark.thorough
@pytest.mark.slow
@given(
    height=st.floats(0.3, 3),
    width=st.floats(1.2, 6),
    centre=st.tuples(st.floats(5, 59), st.floats(5, 59)),
    off=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    seed=st.integers(0, 1000),
)
def test_a_spot_is_never_lost(height, width, centre, off, seed):
    # A sample that does not show it fits the rest, and lets it go where noise is: all rows cost
    # less there than at p0, with the spot gone for good.
    shape = (10, 64, 64)
    x = tuple(
        np.arange(float(n)).reshape([-1 if i == d else 1 for i in range(3)])
        for d, n in enumerate(shape)
    )
    noise = 0.3 * np.random.default_rng(seed).normal(size=shape)
    y = computed(spot, x, 1, 0.1, height, *centre, width) + noise
    start = [c + width * o for c, o in zip(centre, off, strict=True)]
    p0 = [0.7, 0.14, 0.7 * height, *start, 1.35 * width]
    lazy = da.from_array(y, chunks=(5, 8, 8))
    result, cold = (fit(spot, x, lazy, p0, pilot=pilot) for pilot in (True, False))
    assert apart(result, cold) < 2 * CURVATURE * STAT_TOL


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("how", ["mask", "nan", "fill"])
def test_all_sampled_rows_are_left_out(how):
    case = peak_case(200)
    out = np.isin(np.arange(case.y.size) // CHUNK, sampled(200))
    if how == "mask":
        case.options["mask"] = out
    else:
        case.y[out] = np.nan if how == "nan" else -999.0
        case.options |= {"nan_policy": "omit"} if how == "nan" else {"fill_value": -999.0}
    result = case.fit()
    assert result.n_skipped == out.sum()
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


@pytest.mark.slow
def test_all_rows_are_left_out():
    case = peak_case(20, mask=np.ones(20 * CHUNK, bool))
    with pytest.raises(InputError, match="left out"):
        case.fit()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["sampled", "not sampled"])
def test_weights_in_one_chunk(where):
    n = 100
    chunk = sampled(n)[6] + (where == "not sampled")
    sigma = np.where(np.arange(n * CHUNK) // CHUNK == chunk, 1e-3, 30.0)
    x = np.linspace(0, 10, n * CHUNK)
    y = computed(gauss, x, 3, 4, 0.7, 0.5) + sigma * rng().normal(size=x.size)
    case = Case(gauss, x, y, [4, 4.5, 0.6, 0.7], {"sigma": sigma, "absolute_sigma": True})
    result = case.fit()
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


@pytest.mark.every(3)  # each loss and each share
@pytest.mark.slow
@pytest.mark.parametrize("loss", ["linear", "cauchy"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_chunks_of_outliers(loss, share):
    case = peak_case(loss=loss)
    spoilt = rng().permutation(sampled(100))[: int(share * len(sampled(100)))]
    rows = np.isin(np.arange(case.y.size) // CHUNK, spoilt)
    case.y[rows] += 20 * rng().normal(size=rows.sum())
    assert_same_answer(case.fit(), case.fit(pilot=False, **CONVERGED))


@pytest.mark.slow
def test_a_sample_of_another_curve_is_not_followed(caplog):
    # Chunks that are sampled show a wave of another frequency, far from that of all others.
    case = peak_case()
    case.model, case.p0 = wave, [1.2, 2.05, 0.2]
    other = np.isin(np.arange(case.x.size) // CHUNK, sampled(100))
    signal = np.where(other, np.sin(2.4 * case.x), np.sin(2.0 * case.x))
    case.y = signal + 0.1 * rng().normal(size=case.x.size)
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        result = case.fit()
    assert not result.pilot.used
    assert result.pilot.cost > result.pilot.start_cost
    assert "on all rows, p0 " in caplog.text
    np.testing.assert_allclose(result.popt[1], 2.0, atol=0.05)
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))


@pytest.mark.slow
def test_a_minimum_that_only_the_sample_has_is_left_for_the_start(caplog):
    # The gaps between the sampled chunks make minima between the true frequency and its multiples.
    # The search from the start on all rows ends at the true frequency, 2.
    case = peak_case()
    case.model, case.p0 = wave, [0.5, 2.6, 0.2]
    case.y = np.sin(2.0 * case.x) + 0.1 * rng().normal(size=case.x.size)
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        result = case.fit()
    assert not result.pilot.used
    assert result.pilot.cost < result.pilot.start_cost
    assert "all rows contradict the pilot's answer" in caplog.text
    alone = case.fit(pilot=False)
    assert_same_answer(result, alone)
    assert result.n_passes == alone.n_passes + 1


def logarithm(x, a, b):
    return jnp.log(x - a) * b


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lowest", "start", "fails"),
    [
        pytest.param("not sampled", 0.7, False, id="p0 in a chunk that is not sampled"),
        pytest.param("sampled", 0.7, True, id="p0 in a sampled chunk"),
        pytest.param("not sampled", 0.2, False, id="nowhere"),
    ],
)
def test_a_model_that_is_not_finite_in_some_chunks(lowest, start, fails):
    n = 100
    chunk = sampled(n)[5] + (lowest == "not sampled")
    x = rng().uniform(2.0, 5.0, n * CHUNK)
    x[chunk * CHUNK : (chunk + 1) * CHUNK] = 0.6
    y = computed(logarithm, x, 0.5, 1.5) + 0.001 * rng().normal(size=x.size)
    case = Case(logarithm, x, y, [start, 1.0])
    if fails:
        with pytest.raises(InputError, match="not finite"):
            case.fit()
        return
    result = case.fit()
    np.testing.assert_allclose(result.popt, [0.5, 1.5], atol=0.01)
    if start < 0.6:
        assert_same_answer(result, case.fit(pilot=False, **CONVERGED))
    else:
        assert result.pilot.start_cost == np.inf
