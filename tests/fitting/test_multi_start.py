"""Several starts: drawn, screened, run, told apart; and what they are for."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import CovarianceWarning, InputError, Start, Status, fit
from nlsq_dask.core.questions import CostsAt, Several
from nlsq_dask.core.solver_state import SolverOptions
from nlsq_dask.engines.dask.engine import DaskEngine
from nlsq_dask.engines.dask.sampling import sample_blocks
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.multi_start import (
    FIRST_EVALUATIONS,
    _number_basins,
    draw_starts,
    search_box,
)
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.sources import observe
from nlsq_dask.user_model.model import prepare_model
from tests.support.engines import minimized, standard_engine
from tests.support.problems import computed
from tests.support.same_result import assert_same_result

PI = math.pi


# Problems with known local minima


@dataclass(frozen=True)
class Problem:
    """A problem, the start and the bounds that a user would give, and its global minimum."""

    model: Any
    x: np.ndarray
    y: np.ndarray
    p0: tuple[float, ...]
    bounds: Any
    cost: float

    def fit(self, n_starts=1, *, chunks=None, **kwargs):
        x, y = self.x, self.y
        if chunks is not None:
            x, y = da.from_array(x, chunks=chunks), da.from_array(y, chunks=chunks)
        return fit(self.model, x, y, p0=self.p0, bounds=self.bounds, n_starts=n_starts, **kwargs)

    def cost_at(self, params):
        return 0.5 * float(np.sum((computed(self.model, self.x, *params) - self.y) ** 2))

    def found(self, result):
        return result.cost <= self.cost * (1 + 1e-4)


def boxbod(x, b1, b2):
    return b1 * (1 - jnp.exp(-b2 * x))


def mgh09(x, b1, b2, b3, b4):
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def two_waves(t, a1, f1, p1, a2, f2, p2):
    return a1 * jnp.sin(2 * PI * f1 * t + p1) + a2 * jnp.sin(2 * PI * f2 * t + p2)


def two_peaks(x, a1, m1, s1, a2, m2, s2):
    first = a1 * jnp.exp(-((x - m1) ** 2) / (2 * s1**2))
    return first + a2 * jnp.exp(-((x - m2) ** 2) / (2 * s2**2))


def noisy(model, x, truth, noise, p0, bounds):
    y = computed(model, x, *truth) + noise * np.random.default_rng(7).standard_normal(x.size)
    at_the_truth = fit(model, x, y, p0=truth, gtol=None, ftol=1e-12)
    return Problem(model, x, y, p0, bounds, at_the_truth.cost)


# NIST's certified residual sums of squares, halved, and starts that end elsewhere.
BOXBOD = Problem(
    boxbod,
    np.array([1, 2, 3, 5, 7, 10.0]),
    np.array([109, 149, 149, 191, 213, 224.0]),
    (1.0, 100.0),
    ([0, 0], [1000, 100]),
    1.1680088766e03 / 2,
)
MGH09 = Problem(
    mgh09,
    np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]),
    np.array(
        [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    ),
    (0.2, 0.2, -0.2, -0.2),
    (-np.inf, np.inf),
    3.0750560385e-04 / 2,
)
# Ten periods; the frequencies differ by one and a fifth of what ten units of time resolve.
WAVES = noisy(
    two_waves,
    np.linspace(0, 10, 2000),
    (1.0, 1.0, 0.3, 0.7, 1.12, 1.9),
    0.1,
    (1.0, 0.9, 0.0, 1.0, 1.3, 0.0),
    ([0, 0.8, -PI, 0, 0.8, -PI], [2, 1.4, PI, 2, 1.4, PI]),
)
# A narrow peak and a wide one; both start at the wide one.
PEAKS = noisy(
    two_peaks,
    np.linspace(-10, 10, 2000),
    (1.0, -4.0, 0.5, 2.0, 4.0, 1.5),
    0.05,
    (2.0, 4.0, 1.5, 1.0, 4.5, 0.5),
    ([0, -10, 0.1, 0, -10, 0.1], [5, 10, 5, 5, 10, 5]),
)
SEEDS = range(8)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("problem", "least"),
    [
        pytest.param(BOXBOD, 8, id="BoxBOD"),
        pytest.param(MGH09, 8, id="MGH09"),
        pytest.param(WAVES, 6, id="two waves"),
        pytest.param(PEAKS, 8, id="two peaks"),
    ],
)
def test_twenty_starts_find_the_global_minimum_where_one_does_not(problem, least):
    with warnings.catch_warnings():  # BoxBOD's start leads to where its rate has no effect
        warnings.simplefilter("ignore", CovarianceWarning)
        alone = problem.fit()
    assert alone.success or alone.status is Status.UNDETERMINED
    assert alone.cost > 1.2 * problem.cost
    results = [problem.fit(20, seed=seed) for seed in SEEDS]
    assert all(result.cost >= problem.cost * (1 - 1e-6) for result in results)
    assert sum(problem.found(result) for result in results) >= least


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("problem", "least"),
    [pytest.param(WAVES, 3, id="two waves"), pytest.param(PEAKS, 5, id="two peaks")],
)
def test_a_sample_of_the_chunks_is_enough_to_find_it(problem, least):
    alone = problem.fit(chunks=50)
    assert alone.cost > 1.2 * problem.cost
    results = [problem.fit(20, seed=seed, chunks=50) for seed in SEEDS[:5]]
    assert sum(problem.found(result) for result in results) >= least
    assert {result.strategy for result in results} == {"streaming"}


@pytest.mark.slow
def test_nist_s_parameters():
    result = BOXBOD.fit(20)
    np.testing.assert_allclose(result.popt, [2.1380940889e02, 5.4723748542e-01], rtol=1e-6)
    np.testing.assert_allclose(
        MGH09.fit(20).popt,
        [1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01],
        rtol=1e-4,
    )


# How starts are drawn

# Numbers next to the least of float64 have no numbers between them, into which a box is cut.
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def boxes(draw):
    """p0 and bounds around it, finite or not on either side."""
    p = draw(st.integers(1, 5))
    p0 = np.array(draw(st.lists(finite, min_size=p, max_size=p)))
    distance = st.one_of(st.just(math.inf), st.floats(1e-3, 1e6))
    below, above = (np.array(draw(st.lists(distance, min_size=p, max_size=p))) for _ in "ab")
    return p0, p0 - below, p0 + above


@given(box=boxes())
def test_the_box_is_the_bounds_and_twice_p0_where_there_is_none(box):
    p0, lower, upper = box
    low, high = search_box(*box)
    for i, value in enumerate(p0):
        half = 2.0 * abs(value) or 1.0
        assert low[i] == (lower[i] if math.isfinite(lower[i]) else value - half)
        assert high[i] == (upper[i] if math.isfinite(upper[i]) else value + half)


@given(box=boxes(), count=st.integers(2, 40), seed=st.integers(0, 2**40))
def test_starts_are_p0_and_a_latin_hypercube_in_the_box(box, count, seed):
    points = draw_starts(*box, count, seed)
    assert points.shape == (count, box[0].size)
    np.testing.assert_array_equal(points[0], box[0])
    np.testing.assert_array_equal(points, draw_starts(*box, count, seed))
    low, high = search_box(*box)
    assert ((low <= points) & (points <= high)).all()
    # One start in each of the equal slices of every dimension.
    slices = np.sort((points[1:] - low) / (high - low) * (count - 1), axis=0)
    numbers = np.arange(count - 1)[:, None]
    assert (slices >= numbers - 1e-6).all()
    assert (slices <= numbers + 1 + 1e-6).all()


def test_the_widest_bounds_do_not_overflow():
    largest = np.finfo(float).max
    points = draw_starts(np.zeros(2), np.full(2, -largest), np.full(2, largest), 9, 0)
    assert np.isfinite(points).all()


@pytest.mark.slow
def test_a_seed_gives_the_same_fit_and_another_one_other_starts():
    first, again, other = (PEAKS.fit(6, seed=seed) for seed in (3, 3, 4))
    assert_same_result(first, again)
    assert not any(
        (mine.p0 == theirs.p0).all()
        for mine, theirs in zip(first.starts[1:], other.starts[1:], strict=True)
    )


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0", True, math.nan])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(InputError, match=r"^seed = "):
        BOXBOD.fit(3, seed=seed)


@pytest.mark.slow
def test_a_seed_may_be_numpy_s(tmp_path):
    result = BOXBOD.fit(3, seed=np.int64(3), checkpoint=tmp_path, max_nfev=np.int64(80))
    assert_same_result(result, BOXBOD.fit(3, seed=3, max_nfev=80))


@pytest.mark.parametrize("n_starts", [0, -1, 1.5, "many"])
def test_n_starts_is_a_count(n_starts):
    with pytest.raises(InputError, match=r"^n_starts = "):
        BOXBOD.fit(n_starts)


def test_one_start_is_an_ordinary_fit():
    assert PEAKS.fit(1).starts == ()


# What is reported of them


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [None, 50], ids=["in memory", "streaming"])
@pytest.mark.parametrize("n_starts", [20, 5, 2])
def test_every_start_is_listed_with_its_end_cost_and_basin(n_starts, chunks):
    result = PEAKS.fit(n_starts, chunks=chunks, seed=1)
    assert len(result.starts) == n_starts
    np.testing.assert_array_equal(result.starts[0].p0, PEAKS.p0)
    assert result.starts[0].basin is not None
    low, high = PEAKS.bounds
    for start in result.starts:
        assert ((low <= start.p0) & (start.p0 <= high)).all()
        if chunks is None:
            assert start.start_cost == pytest.approx(PEAKS.cost_at(start.p0))
        missing = [value is None for value in (start.params, start.cost, start.basin, start.status)]
        assert all(missing) or not any(missing)
        if not any(missing):
            assert ((low <= start.params) & (start.params <= high)).all()
            # In memory its own; for a sample that of the basin, which is a standard error wide.
            assert start.cost == pytest.approx(
                PEAKS.cost_at(start.params), rel=1e-9 if chunks is None else 2e-3
            )
    ran = [start for start in result.starts if start.basin is not None]
    basins = sorted({start.basin for start in ran})
    assert basins == list(range(len(basins)))
    best = [min(s.cost for s in ran if s.basin == basin) for basin in basins]
    assert best == sorted(best)
    assert result.cost <= best[0] * (1 + 1e-12)
    assert f"{n_starts}, {len(ran)} run to the end, in {len(basins)} basin" in str(result)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [None, 40], ids=["in memory", "streaming"])
def test_ends_in_one_basin_share_a_number(chunks):
    x = np.linspace(0, 4, 800)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * np.random.default_rng(1).standard_normal(x.size)
    problem = Problem(
        lambda x, a, b, c: a * jnp.exp(-b * x) + c, x, y, (1, 1, 1), (0.1, 5), math.nan
    )
    result = problem.fit(12, chunks=chunks)
    ran = [start for start in result.starts if start.basin is not None]
    assert len(ran) >= 4
    assert {start.basin for start in ran} == {0}
    for start in ran:
        # Ends within a standard error of the sample, a quarter of the blocks.
        assert start.cost == pytest.approx(problem.cost_at(start.params), rel=2e-2)
    assert result.cost == pytest.approx(ran[0].cost, rel=2e-2 if chunks else 1e-9)


@pytest.mark.parametrize(("sigmas", "shared"), [(0.01, True), (0.9, True), (1.1, False)])
def test_a_basin_is_a_standard_error_wide(sigmas, shared):
    x = np.linspace(0, 1, 40)
    y = 1 + 2 * x + 0.3 * np.random.default_rng(0).standard_normal(x.size)
    observations = observe(x, y)

    def line(x, a, b):
        return a + b * x

    spec = prepare_model(line, ("a", "b"), observations.structure, 1)
    with standard_engine(observations, spec) as engine:
        free = np.full(2, np.inf)
        end = minimized(engine, np.ones(2), -free, free, SolverOptions())
    # A step of so many standard errors, in a direction that mixes the parameters.
    deviation = math.sqrt(end.chi2 / (x.size - 2))
    step = sigmas * deviation * np.linalg.solve(end.r_factor, [0.6, 0.8])
    other = dataclasses.replace(end, params=end.params + step, cost=end.cost * 1.01)
    assert _number_basins({3: other, 7: end}) == {7: 0, 3: 0 if shared else 1}


@pytest.mark.slow
def test_equal_minima_in_two_places_are_two_basins():
    result = PEAKS.fit(20, seed=2)
    swapped = [s for s in result.starts if s.cost is not None and s.cost < PEAKS.cost * 1.0001]
    assert len({start.basin for start in swapped}) == 2
    assert {bool(start.params[1] < start.params[4]) for start in swapped} == {True, False}


@pytest.mark.slow
def test_data_without_noise_have_basins_too():
    x = np.linspace(0, 2, 50)
    result = fit(lambda x, a, b: a * jnp.exp(-b * x), x, 2 * np.exp(-x), p0=[1, 0.5], n_starts=8)
    assert {start.basin for start in result.starts} <= {0, None}


@pytest.mark.slow
def test_a_start_reads_back_from_json():
    starts = (*PEAKS.fit(5).starts, Start(np.array([1.0, -0.0]), math.inf))
    for start in starts:
        saved = json.loads(json.dumps({k: to_json(v) for k, v in start.to_dict().items()}))
        for name, value in vars(Start.from_dict(saved)).items():
            np.testing.assert_array_equal(value, getattr(start, name))


# What they cost


@pytest.mark.slow
def test_all_starts_are_screened_in_one_pass(monkeypatch):
    calls = []
    ask = InMemoryEngine.ask

    def counted(self, question):
        if isinstance(question, CostsAt):
            calls.append(question.candidates.shape)
        return ask(self, question)

    monkeypatch.setattr(InMemoryEngine, "ask", counted)
    result = PEAKS.fit(20)
    assert calls == [(20, 6)]
    # The first steps of all, the runs of a quarter, p0, and the fit from the best end.
    assert result.n_passes <= 1 + 20 * FIRST_EVALUATIONS + 6 * 40


@pytest.mark.slow
def test_starts_never_multiply_passes(monkeypatch):
    compared = []
    ask = DaskEngine.ask

    def counted(self, question):
        if isinstance(question, Several):
            compared.append(len(question.questions[1].candidates))
        return ask(self, question)

    monkeypatch.setattr(DaskEngine, "ask", counted)
    chunk = 50
    n_chunks = PEAKS.x.size // chunk
    reads: Counter[int] = Counter()

    def noted(block, block_id):
        reads[block_id[0]] += 1
        return block

    x = da.from_array(PEAKS.x, chunks=chunk).map_blocks(noted, meta=np.empty(0))
    problem = Problem(PEAKS.model, x, PEAKS.y, PEAKS.p0, PEAKS.bounds, PEAKS.cost)
    alone = problem.fit(cache=False)
    assert reads == dict.fromkeys(range(n_chunks), alone.n_passes)
    for n_starts in (5, 20, 60):
        reads.clear()
        compared.clear()
        result = problem.fit(n_starts, cache=False)
        basins = len({s.basin for s in result.starts} - {None})
        # The other basins and p0, in the pass that evaluates the best end.
        assert compared == [basins]
        assert result.n_passes == result.nfev
        assert result.n_passes < alone.n_passes
        once_more = [block for block, count in reads.items() if count == result.n_passes + 1]
        assert len(once_more) == sample_blocks(n_chunks)
        assert sum(reads.values()) == n_chunks * result.n_passes + sample_blocks(n_chunks)


# Starts at which nothing can be computed


def root(x, a, b):
    return a * jnp.sqrt(x + b)


X = np.linspace(1, 5, 60)


@pytest.mark.slow
def test_a_start_without_a_finite_value_is_passed_over():
    result = fit(root, X, 2 * np.sqrt(X + 3), p0=[1, -2.0], n_starts=12)
    assert result.starts[0].start_cost == math.inf
    assert result.starts[0].basin is None
    np.testing.assert_allclose(result.popt, [2, 3], rtol=1e-5)


@pytest.mark.slow
def test_a_start_with_an_infinite_derivative_is_run():
    y = 2 * np.sqrt(X + 3)
    result = fit(root, X, y, p0=[1, -1.0], bounds=([0, -np.inf], np.inf), n_starts=12)
    assert math.isfinite(result.starts[0].start_cost)
    assert result.starts[0].params is not None
    np.testing.assert_allclose(result.popt, [2, 3], rtol=1e-5)


@pytest.mark.parametrize("chunks", [None, 20])
def test_without_any_finite_start_there_is_an_error(chunks):
    x = X if chunks is None else da.from_array(X, chunks=chunks)
    with pytest.raises(InputError, match="not finite at the starting point"):
        fit(root, x, X, p0=[1, -20.0], bounds=([0, -30], [9, -10]), n_starts=6)
