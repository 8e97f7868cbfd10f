"""The pilot makes a fit shorter, and never another fit."""

from __future__ import annotations

import logging
import warnings
from collections import Counter

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import fit
from nlsq_dask._errors import Status
from nlsq_dask.engines.dask.sampling import SAMPLE_BLOCKS, SAMPLE_FRACTION
from nlsq_dask.fitting.checkpoint import CheckpointStore
from nlsq_dask.fitting.prepare import PILOT_ROWS_IN_MEMORY, PILOT_ROWS_STREAMED, STAT_TOL
from tests.fitting.pilot_cases import (
    CHUNK,
    CONVERGED,
    Case,
    assert_same_answer,
    decay,
    gauss,
    peak_case,
    rng,
    sampled,
    two_decays,
    wave,
)
from tests.support.counting_store import stored
from tests.support.problems import computed
from tests.support.same_result import assert_same_result

# What it saves

PROBLEMS = {
    "gauss": (gauss, (0, 10), [3, 4, 0.7, 0.5], 0.3, [4, 5, 0.5, 0.7], 2),
    "decay": (decay, (0, 4), [2.5, 1.3, 0.5], 0.1, [3.4, 0.9, 0.7], 2),
    "two decays": (two_decays, (0, 5), [1.0, 3.0, 0.5, 0.5], 0.3, [1.4, 4, 0.35, 0.35], 3),
}


@pytest.mark.every(4)  # each problem, each order
@pytest.mark.slow
@pytest.mark.parametrize("order", ["sorted", "reversed", "random"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_two_or_three_passes_are_left(name, order):
    model, (low, high), truth, noise, p0, most = PROBLEMS[name]
    x = np.linspace(low, high, 100_000)
    x = {"sorted": x, "reversed": x[::-1].copy(), "random": rng().permutation(x)}[order]
    y = computed(model, x, *truth) + noise * rng().normal(size=x.size)
    case = Case(model, x, y, p0, chunk=1000)
    result, cold = case.fit(), case.fit(pilot=False)
    assert result.pilot.used
    assert result.n_passes <= most + 1  # one may be for the covariance
    assert result.n_passes < cold.n_passes
    assert_same_answer(result, case.fit(pilot=False, **CONVERGED))
    assert result.distance_to_optimum_sigma < STAT_TOL


@pytest.mark.slow
def test_a_start_at_the_optimum_costs_one_pass_more_at_most():
    case = peak_case()
    there = case.fit(pilot=False, **CONVERGED)
    case.p0 = there.popt
    result = case.fit()
    assert result.n_passes <= 2
    assert_same_answer(result, there)


@pytest.mark.slow
def test_it_reads_whole_chunks_and_few(tmp_path):
    case = peak_case()
    x, y = (stored(tmp_path / n, a, (CHUNK,)) for n, a in (("x", case.x), ("y", case.y)))
    in_chunks = [da.from_array(array, array.chunks) for array in (x, y)]  # which are not joined
    result = fit(gauss, *in_chunks, case.p0, pilot=True, cache=False)
    for array in (x, y):
        reads = array.store.reads
        assert set(reads.values()) <= {result.n_passes, result.n_passes + 1}
        extra = [int(key.rsplit("/", 1)[1]) for key, n in reads.items() if n > result.n_passes]
        assert len(extra) <= max(SAMPLE_FRACTION * 100, SAMPLE_BLOCKS)
        assert sorted(extra) == sampled(100)
        array.store.clear_counts()
    result = fit(gauss, *in_chunks, case.p0, pilot=False, cache=False)
    assert result.pilot is None
    assert set(y.store.reads.values()) == {result.n_passes}


@pytest.mark.thorough
def test_two_per_cent_of_many_chunks(tmp_path):
    y = stored(tmp_path / "y", np.zeros(2000) + rng().normal(size=2000), (1,))
    x = da.linspace(0, 1, 2000, chunks=1)
    result = fit(lambda x, a, b: a * x + b, x, y, [1, 1], pilot=True, cache=False)
    reads = Counter(y.store.reads.values())
    assert reads[result.n_passes + 1] == SAMPLE_FRACTION * 2000
    assert reads[result.n_passes] == (1 - SAMPLE_FRACTION) * 2000


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("grid", [(6, 6, 6), (1, 20, 12), (2, 3, 50)])
def test_chunks_of_every_dimension_are_sampled(grid, tmp_path):
    values = rng().normal(size=tuple(2 * n for n in grid))
    y = stored(tmp_path / "y", values, (2, 2, 2))
    x = tuple(
        np.arange(float(n)).reshape([-1 if i == d else 1 for i in range(3)])
        for d, n in enumerate(values.shape)
    )
    in_chunks = da.from_array(y, y.chunks)  # which are not joined
    result = fit(lambda x, a, b: a + b * x[0], x, in_chunks, [1, 1], pilot=True, cache=False)
    extra = [k for k, n in y.store.reads.items() if n > result.n_passes]
    places = np.array([[int(i) for i in key.split("c/")[1].split("/")] for key in extra])
    assert len(places) <= max(SAMPLE_FRACTION * np.prod(grid), SAMPLE_BLOCKS)
    for n, along in zip(grid, places.T, strict=True):
        thirds = set(np.minimum(3 * along // n, 2))
        assert thirds == set(range(min(n, 3))) or n < 3


# All that a fit can be asked for

OPTIONS = {
    "bounds that hold": {"bounds": ([0, 0, 0, 0], [2.5, 10, 3, 10])},
    "bounds that do not": {"bounds": ([0, 0, 0, 0], [10, 10, 3, 10])},
    "start on a bound": {"bounds": ([0, 5, 0, 0], [10, 10, 3, 10]), "method": "dogbox"},
    "fixed": {"fixed": {"c": 0.5}},
    "tied": {"ties": {"c": {"s": 0.7}}},
    "lm": {"method": "lm"},
    "dogbox": {"method": "dogbox"},
    "dogbox, bounds that hold": {
        "method": "dogbox",
        "bounds": ([0, 0, 0, 0], [2.5, 10, 3, 10]),
    },
    "soft_l1": {"loss": "soft_l1", "f_scale": 0.3},
    "huber": {"loss": "huber", "f_scale": 0.3},
    "arctan": {"loss": "arctan", "f_scale": 1.0},
    "x_scale": {"x_scale": [1.0, 2.0, 0.5, 0.1]},
}


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_with_options(name):
    case = peak_case(**OPTIONS[name])
    if "bounds" in case.options:
        case.p0 = np.clip(case.p0, *case.options["bounds"])
    result = case.fit()
    converged = case.fit(pilot=False, **CONVERGED)
    assert result.pilot is not None
    held = converged.active_mask != 0
    assert held.any() == ("hold" in name or "on a bound" in name)
    np.testing.assert_allclose(result.popt[held], converged.popt[held], rtol=1e-6)
    if held.any():
        np.testing.assert_allclose(
            result.popt[~held], converged.popt[~held], atol=2 * STAT_TOL * converged.perr.max()
        )
    elif name != "tied":
        assert_same_answer(result, converged)
    np.testing.assert_allclose(result.cost, converged.cost, rtol=1e-7)


@pytest.mark.slow
def test_several_starts_are_tried_on_the_sample():
    x = np.linspace(0, 20, 50_000)
    y = computed(wave, x, 1.5, 2.0, 0.3) + 0.2 * rng().normal(size=x.size)
    bounds = ([0, 0.2, -1], [3, 4, 1])
    case = Case(wave, x, y, [1, 0.5, 0], {"bounds": bounds, "n_starts": 20})
    result = case.fit()
    np.testing.assert_allclose(result.popt, [1.5, 2.0, 0.3], atol=0.02)
    assert result.n_passes <= 3
    assert len(result.starts) == 20
    case.p0 = result.popt
    assert_same_answer(result, case.fit(pilot=False, n_starts=1, **CONVERGED))


@pytest.mark.slow
def test_the_record_says_what_it_was_good_for(caplog):
    case = peak_case()
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        result = case.fit()
    pilot = result.pilot
    assert pilot.used
    assert pilot.n_rows == len(sampled(100)) * CHUNK
    assert pilot.params.shape == (4,)
    assert apart_of(pilot.params, result) < 30
    for cost, params in ((pilot.cost, pilot.params), (pilot.start_cost, case.p0)):
        residuals = computed(gauss, case.x, *params) - case.y
        np.testing.assert_allclose(cost, 0.5 * residuals @ residuals, rtol=1e-9)
    assert pilot.cost == result.history[0].cost
    assert f"going on from the pilot's answer, found on {pilot.n_rows} rows" in caplog.text


def apart_of(params, reference):
    return float(
        np.linalg.norm(reference.r_factor @ (params - reference.popt))
        / np.sqrt(reference.reduced_chi2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [True, False])
def test_fixed_parameters_are_in_the_record(lazy):
    case = peak_case(fixed={"c": 0.5})
    x, y, options = case.chunked() if lazy else (case.x, case.y, case.options)
    pilot = fit(gauss, x, y, case.p0, pilot=True, **options).pilot
    assert pilot.params.shape == (4,)
    assert pilot.params[3] == 0.5


# When there is one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "lazy", "pilots"),
    [
        (PILOT_ROWS_STREAMED, True, True),
        (PILOT_ROWS_STREAMED - 1, True, False),
        (PILOT_ROWS_IN_MEMORY, False, True),
        (PILOT_ROWS_IN_MEMORY - 1, False, False),
    ],
)
def test_where_it_pays(rows, lazy, pilots):
    x = np.linspace(0, 4, rows)
    y = computed(decay, x, 2.5, 1.3, 0.5)
    if lazy:
        x, y = da.from_array(x, chunks=10_000), da.from_array(y, chunks=10_000)
    result = fit(decay, x, y, [3.4, 0.9, 0.7])
    assert (result.pilot is not None) == pilots
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5], rtol=1e-5)


@pytest.mark.slow
def test_rows_that_depend_on_each_other_are_not_sampled():
    x = np.linspace(0, 4, 1000)
    y = np.cumsum(np.exp(-1.3 * x))
    result = fit(lambda x, a, b: a * jnp.cumsum(jnp.exp(-b * x)), x, y, [2, 1], pilot=True)
    assert result.pilot is None
    np.testing.assert_allclose(result.popt, [1, 1.3], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_few_rows(rows):
    x = da.from_array(np.linspace(1, 2, rows), chunks=1)
    y = da.from_array(np.linspace(3, 4, rows), chunks=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(lambda x, a: a * x, x, y, [1.0], pilot=True)
        expected = fit(lambda x, a: a * x, x, y, [1.0], pilot=False)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "chunked"])
def test_in_memory(strategy):
    x = np.linspace(0, 10, PILOT_ROWS_IN_MEMORY)
    y = computed(gauss, x, 3, 4, 0.7, 0.5) + 0.3 * rng().normal(size=x.size)
    p0 = [4, 5, 0.5, 0.7]
    result = fit(gauss, x, y, p0, strategy=strategy)
    cold = fit(gauss, x, y, p0, strategy=strategy, pilot=False)
    assert result.pilot.used
    assert cold.pilot is None
    assert result.n_passes < cold.n_passes / 2
    reference = fit(gauss, x, y, result.popt, strategy=strategy, pilot=False, **CONVERGED)
    assert_same_answer(result, reference)
    assert_same_answer(cold, reference)


# The same bits, however it is run


@pytest.mark.slow
def test_any_scheduler(client):
    case = peak_case()
    x, y, _ = case.chunked()
    with dask.config.set(scheduler="synchronous"):
        expected = fit(gauss, x, y, case.p0, pilot=True)
    with dask.config.set(scheduler="threads", num_workers=2):
        assert_same_result(fit(gauss, x, y, case.p0, pilot=True), expected)
    result = fit(gauss, x, y, case.p0, pilot=True, client=client)
    assert_same_result(result, expected)
    assert_same_pilot(result, expected)


def assert_same_pilot(result, expected):
    for name, value in vars(expected.pilot).items():
        np.testing.assert_array_equal(getattr(result.pilot, name), value, err_msg=name)


class KilledError(Exception):
    """The process is gone."""


def killed_and_resumed(case, passes, folder, monkeypatch):
    """A fit that is killed after so many checkpoints, resumed.

    Returns
    -------
    result : FitResult
    done : int
        Passes that the checkpoint knew of.
    reads : set of int
        How often chunks of y were read again.
    """
    x, y = (stored(folder / n, a, (CHUNK,)) for n, a in (("x", case.x), ("y", case.y)))
    saved = []

    def save_and_die(store, checkpoint):
        save(store, checkpoint)
        saved.append(checkpoint)
        if len(saved) == passes:
            raise KilledError

    save = CheckpointStore.save
    options = {"checkpoint": folder / "checkpoints", "cache": False, "pilot": True, **case.options}
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(CheckpointStore, "save", save_and_die)
        fit(case.model, x, y, case.p0, **options)
    y.store.clear_counts()
    result = fit(case.model, x, y, case.p0, resume=True, **options)
    return result, saved[-1].n_passes, set(y.store.reads.values())


@pytest.mark.every(3)  # each number of starts and of passes
@pytest.mark.slow
@pytest.mark.parametrize("n_starts", [1, 5])
@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_resumed(passes, n_starts, tmp_path, monkeypatch):
    case = peak_case(stat_tol=1e-6, ftol=1e-13, n_starts=n_starts)
    expected = case.fit()
    result, done, reads = killed_and_resumed(case, passes, tmp_path, monkeypatch)
    assert_same_result(result, expected)
    # No sample is read again; a few chunks are read once more at the end, for their checksums.
    left = expected.n_passes - done
    assert reads == {left, left + 1}


@pytest.mark.slow
def test_a_resumed_fit_knows_its_pilot(tmp_path, monkeypatch):
    case = peak_case(stat_tol=1e-6, ftol=1e-13)
    result, _, _ = killed_and_resumed(case, 1, tmp_path, monkeypatch)
    assert_same_pilot(result, case.fit())


# The answer is that of all rows


@st.composite
def cases(draw):
    model, (low, high), truth, noise, p0, _ = PROBLEMS[draw(st.sampled_from(sorted(PROBLEMS)))]
    rows = draw(st.integers(2000, 12_000))
    seed = draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    x = np.linspace(low, high, rows)
    if draw(st.booleans()):
        x = random.permutation(x)
    y = computed(model, x, *truth) + min(noise, 0.1) * random.normal(size=rows)
    shift = np.array([draw(st.floats(0, 0.5)) for _ in truth])
    start = np.array(truth) + shift * (np.array(p0) - truth)
    options = {}
    if draw(st.booleans()):
        options["sigma"] = random.uniform(0.5, 2.0, rows)
    if draw(st.booleans()):
        options["mask"] = random.random(rows) < draw(st.floats(0.0, 0.9))
    return Case(model, x, y, start, options, chunk=draw(st.integers(10, rows)))


@pytest.mark.slow
@settings(max_examples=10)
@given(case=cases())
def test_the_answer_does_not_depend_on_it(case):
    result, converged = case.fit(), case.fit(pilot=False, **CONVERGED)
    assert result.status in (
        Status.STATISTICAL,
        Status.COST,
        Status.GRADIENT,
        Status.STEP,
        Status.COST_AND_STEP,
    )
    assert_same_answer(result, converged)
