"""First guesses of many series at once: as good as those of one series, and the same anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from nlsq_dask import fit, fit_each, models
from nlsq_dask.models.lane_guess import lane_guess
from nlsq_dask.models.lane_limits import Limits, reach_of
from nlsq_dask.models.peaks import exchanges
from tests.models.problems import DRAWS, SUMS, draw_params, draw_problem
from tests.models.test_guess import TWO_PEAKS, cost_from

ALL = [cls() for cls in DRAWS] + SUMS
PEAK = models.Gaussian() + models.Constant()
LANES = 256


def columns(x):
    return tuple(np.asarray(c)[:, None] for c in (x if isinstance(x, tuple) else (x,)))


def tile_of(model, n_lanes=LANES, n_rows=60, seed=0, noise=0.05):
    """Coordinates (m, 1), and series (m, L) of random parameters with 5 % of rows missing."""
    rng = np.random.default_rng(seed)
    if model.n_coords == 2:
        grid = np.meshgrid(np.linspace(1, 3, 9), np.linspace(1, 3, 8))
        coords = tuple(np.ravel(c) for c in grid)
    else:
        coords = (np.linspace(1, 3, n_rows),)
    x = coords if len(coords) > 1 else coords[0]
    truth = np.array([draw_params(model, rng, 1.0, 3.0) for _ in range(n_lanes)])
    y = np.stack([model(x, *params) for params in truth], axis=1)
    y += noise * np.ptp(y, axis=0) * rng.normal(size=y.shape)
    y[rng.random(y.shape) < 0.05] = np.nan
    return columns(coords), y


@pytest.mark.quick(3)
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_a_series_has_the_same_guess_in_any_place_next_to_any_other(model):
    coords, y = tile_of(model)
    guesses = lane_guess(model, coords, y)
    assert guesses.shape == (len(model.names), LANES)
    assert np.isfinite(guesses).all()
    order = np.random.default_rng(1).permutation(LANES)
    np.testing.assert_array_equal(lane_guess(model, coords, y[:, order]), guesses[:, order])
    alone = np.full_like(y, np.nan)
    alone[:, 7] = y[:, 100]
    again = lane_guess(model, coords, alone)
    np.testing.assert_array_equal(again[:, 7], guesses[:, 100])
    assert np.isnan(np.delete(again, 7, axis=1)).all()


@pytest.mark.every(5)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_fits_from_the_guess_explain_the_data_as_the_truth_does(model):
    reached, n_draws = 0, 10
    for seed in range(n_draws):
        x, y, true = draw_problem(model, seed)
        start = lane_guess(model, columns(x), y[:, None])[:, 0]
        reached += cost_from(model, x, y, start) <= 0.5 * np.sum((model(x, *true) - y) ** 2)
    assert reached >= 0.9 * n_draws


@pytest.mark.slow
def test_two_peaks_are_found_even_where_they_may_overlap():
    x, reached, rng = np.linspace(0, 10, 200), 0, np.random.default_rng(0)
    true = [3.0, 3.0, 0.4, 2.0, 6.0, 0.8, 0.0]
    lanes = [
        [*true[:1], rng.uniform(2, 4), *true[2:4], rng.uniform(5, 8), true[5], rng.normal(0, 10)]
        for _ in range(16)
    ]
    y = np.stack([TWO_PEAKS(x, *params) for params in lanes], axis=1)
    y += rng.normal(0, 0.2, y.shape)
    starts = lane_guess(TWO_PEAKS, (x[:, None],), y)
    for params, start, own in zip(lanes, starts.T, y.T, strict=True):
        end = cost_from(TWO_PEAKS, x, own, start)
        reached += end <= 0.5 * np.sum((TWO_PEAKS(x, *params) - own) ** 2)
    assert reached >= 15


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_peaks_of_two_kinds_take_their_own_places(turned):
    """A narrow Gaussian and a broad Lorentzian, of which either may be the larger peak."""
    rng, n = np.random.default_rng(5), 100
    narrow = [rng.uniform(1, 3, n), rng.uniform(20, 45, n), rng.uniform(1.5, 3, n)]
    broad = [rng.uniform(1, 3, n), rng.uniform(55, 80, n), rng.uniform(4, 8, n)]
    kinds = [models.Gaussian(), models.Lorentzian()]
    truth = np.stack([*broad, *narrow] if turned else [*narrow, *broad])
    model = kinds[1] + kinds[0] if turned else kinds[0] + kinds[1]
    x = np.linspace(0, 100, 120)
    clean = np.stack([model(x, *params) for params in truth.T], axis=1)
    y = clean + rng.normal(0, 0.05, clean.shape)
    alone = np.stack([list(model.guess(x, own).values()) for own in y.T], axis=1)
    for start in lane_guess(model, (x[:, None],), y), alone:
        maps = fit_each(model, x, y, list(start))
        right = maps.chi2 < ((y - clean) ** 2).sum(axis=0)
        assert right.sum() >= 85  # the places were exchanged in half of the series
    maps = fit_each(model, x, y)  # starts again with the places exchanged
    assert (maps.chi2 < ((y - clean) ** 2).sum(axis=0)).sum() >= 97
    assert maps.nfev.max() <= 600


@pytest.mark.slow
def test_a_peak_anywhere_in_the_window_is_found():
    """At a signal-to-noise ratio of 20, of any width from a sample to a fifth of the window."""
    rng = np.random.default_rng(3)
    x, n_lanes = np.linspace(0, 1, 60), LANES
    center, sigma = rng.uniform(0.05, 0.95, n_lanes), np.exp(rng.uniform(-4.1, -1.6, n_lanes))
    truth = np.stack([np.ones(n_lanes), center, sigma, rng.normal(0, 1, n_lanes)])
    y = np.exp(-0.5 * ((x[:, None] - center) / sigma) ** 2) + truth[3]
    y += rng.normal(0, 0.05, y.shape)
    start = lane_guess(PEAK, (x[:, None],), y)
    wrong = 0
    for k in range(n_lanes):
        ends = [cost_from(PEAK, x, y[:, k], at[:, k]) for at in (start, truth)]
        wrong += ends[0] > ends[1] * 1.001
    assert wrong == 0


def two_peaks(heights, seed=0, n=60):
    """Series (m, n) of two peaks, one in each half of the window, and their parameters (7, n)."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, 100.0, 120)
    first = [np.full(n, heights[0]), rng.uniform(20, 45, n), rng.uniform(2, 8, n)]
    second = [np.full(n, heights[1]), rng.uniform(55, 80, n), rng.uniform(2, 8, n)]
    truth = np.stack([*first, *second, rng.uniform(-1, 1, n)])
    return x, TWO_PEAKS(x[:, None], *truth) + rng.normal(0, 0.05, (x.size, n)), truth


def n_right(maps, best):
    return int((maps.success & (maps.chi2 < 1.001 * best.chi2)).sum())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
@pytest.mark.parametrize("heights", [(1.0, 3.0), (3.0, 1.0)])
def test_peaks_with_places_of_their_own_are_found_there(heights):
    """A guess without regard to bounds gives the first peak of a model the higher peak."""
    x, y, truth = two_peaks(heights)
    best = fit_each(TWO_PEAKS, x, y, list(truth))
    windows = {"a_center": (15, 50), "b_center": (50, 85)}
    assert n_right(fit_each(TWO_PEAKS, x, y, bounds=windows), best) >= 54
    near = {"a_center": (truth[1] - 6.0, truth[1] + 3.0)}
    assert n_right(fit_each(TWO_PEAKS, x, y, bounds=near), best) >= 45


@pytest.mark.slow
def test_a_peak_at_a_fixed_place_leaves_the_other_peak_to_the_other_term():
    x, y, truth = two_peaks((1.0, 3.0))
    fixed = {"a_center": truth[1]}
    best = fit_each(TWO_PEAKS, x, y, list(truth), fixed=fixed)
    assert n_right(fit_each(TWO_PEAKS, x, y, fixed=fixed), best) == 60


def test_one_fit_looks_for_peaks_inside_their_bounds():
    x, y, truth = two_peaks((1.0, 3.0), n=5)
    for own, params in zip(y.T, truth.T, strict=True):
        windows = {"a_center": (15, 50), "b_center": (50, 85)}
        assert fit(TWO_PEAKS, x, own, bounds=windows).popt[1] == pytest.approx(params[1], abs=2.0)
        fixed = fit(TWO_PEAKS, x, own, fixed={"a_center": params[1]})
        assert fixed.popt[4] == pytest.approx(params[4], abs=2.0)


@pytest.mark.parametrize("kind", [models.Gaussian, models.Lorentzian, models.Voigt])
def test_a_peak_takes_the_place_and_the_width_of_another(kind):
    peak, center, width = kind(), np.array([2.0, 5.0]), np.array([0.5, 3.0])
    shape = peak.shape_of(center, width)
    np.testing.assert_allclose(peak.half_width(shape), width, rtol=2e-3)
    half = peak((center + width), 1.0, *shape)
    np.testing.assert_allclose(half, 0.5, rtol=2e-3)
    others = {models.Gaussian, models.Lorentzian, models.Voigt} - {kind}
    assert all(exchanges([peak, models.Constant(), other()]) == [(0, 2)] for other in others)


def test_a_height_of_one_sign_leaves_out_dips():
    rng, x = np.random.default_rng(1), np.linspace(0.0, 1.0, 60)
    y = -np.exp(-0.5 * ((x[:, None] - 0.3) / 0.1) ** 2) + rng.normal(0, 0.05, (60, 20))
    upwards = Limits(np.array([[0.0]] + [[-np.inf]] * 3), np.full((4, 1), np.inf))
    assert (lane_guess(PEAK, (x[:, None],), y)[0] < 0).all()
    assert (lane_guess(PEAK, (x[:, None],), y, upwards)[0] >= 0).all()


@pytest.mark.parametrize("model", [PEAK, models.BiexponentialDecay(), models.Sinusoid()], ids=repr)
def test_shapes_lie_inside_limits_of_each_series(model):
    coords, y = tile_of(model)
    free = lane_guess(model, coords, y)
    infinite = np.full_like(free, np.inf)
    for term, first in zip(model.terms, (0, len(model.terms[0].names)), strict=False):
        for place in () if term.is_linear else term.shape_places:
            low, high = -infinite, infinite.copy()
            low[first + place] = 1.1 * free[first + place]
            high[first + place] = 1.1 * free[first + place] * np.tile([1.0, 1.3], LANES // 2)
            found = lane_guess(model, coords, y, Limits(low, high))
            assert (found >= low).all()
            assert (found <= high).all()
            order = np.random.default_rng(1).permutation(LANES)
            turned = Limits(low[:, order], high[:, order])
            again = lane_guess(model, coords, y[:, order], turned)
            np.testing.assert_array_equal(again, found[:, order])
    wide = Limits(-infinite, infinite)
    np.testing.assert_array_equal(lane_guess(model, coords, y, wide), free)


def test_reach_covers_the_gaps_of_a_grid():
    shapes = models.Gaussian().coarse_shapes((np.linspace(0.0, 10.0, 60),))
    reach = reach_of(shapes)
    for place, width in np.random.default_rng(0).uniform((0.0, 0.15), (10.0, 4.0), (200, 2)):
        assert (np.abs(shapes - (place, width)) <= reach).all(axis=1).any()


def test_linear_models_are_fitted_exactly_to_the_rows_that_count():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-5, 50, 40), rng.normal(0, 3, (40, LANES))
    y[rng.random(y.shape) < 0.3] = np.nan
    guesses = lane_guess(models.Linear(), (x[:, None],), y)
    for k in range(0, LANES, 50):
        counted = np.isfinite(y[:, k])
        expected = np.polyfit(x[counted], y[counted, k], 1)
        np.testing.assert_allclose(guesses[:, k], expected, rtol=1e-9)


def test_means_of_many_rows_lead_to_the_guess_of_all():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, 20_000)
    true = np.array([3.0, 6.0, 0.4, 1.0])
    y = PEAK(x, *true) + rng.normal(0, 0.3, x.size)
    y[rng.random(x.size) < 0.2] = np.nan
    guess = lane_guess(PEAK, (x[:, None],), y[:, None])[:, 0]
    np.testing.assert_allclose(guess[1:3], true[1:3], rtol=0.5)
    np.testing.assert_allclose(guess[[0, 3]], true[[0, 3]], rtol=0.3)


def test_coordinates_of_each_series_are_taken():
    coords, y = tile_of(PEAK, n_lanes=4)
    shifts = np.array([0.0, 100.0, -7.0, 1e4])
    guesses = lane_guess(PEAK, (coords[0] + shifts,), y)
    for k, shift in enumerate(shifts):
        own = lane_guess(PEAK, (coords[0] + shift,), y[:, k : k + 1])[:, 0]
        np.testing.assert_array_equal(guesses[:, k], own)


@pytest.mark.parametrize("unit_x", [1e-9, 1e12])
@pytest.mark.parametrize("unit_y", [1e-150, 1e150])
def test_guess_carries_the_units(unit_x, unit_y):
    model = models.Gaussian() + models.Linear()
    (x,), y = tile_of(model, n_lanes=8)
    reference = lane_guess(model, (x,), y)
    scaled = lane_guess(model, (unit_x * x,), unit_y * y)
    units = np.array([unit_y, unit_x, unit_x, unit_y / unit_x, unit_y])[:, None]
    np.testing.assert_allclose(scaled / units, reference, rtol=1e-6)


def test_a_line_far_from_zero_is_found_next_to_other_terms():
    model = models.Gaussian() + models.Linear()
    (x,), y = tile_of(model, n_lanes=32)
    near, far = lane_guess(model, (x,), y), lane_guess(model, (x + 1e6,), y)
    expected = near + np.array([0.0, 1e6, 0.0, 0.0, 0.0])[:, None]
    np.testing.assert_allclose(far[:4], expected[:4], rtol=1e-4)
    at_middle = far[3] * (x.mean() + 1e6) + far[4]
    np.testing.assert_allclose(at_middle, near[3] * x.mean() + near[4], atol=1e-4 * np.nanmax(y))


@pytest.mark.parametrize("model", ALL, ids=repr)
def test_poor_series(model):
    """No number, or finite numbers: never an exception or a warning."""
    coords, y = tile_of(model, n_lanes=8)
    p = len(model.names)
    y[:, 0] = np.nan
    y[p - 1 :, 1] = np.nan  # a row less than parameters
    y[p:, 2] = np.nan
    y[:, 3] = 0.0
    y[:, 4] = 1e308
    y[3, 5] = np.inf
    guesses = lane_guess(model, coords, y)
    assert np.isnan(guesses[:, :2]).all()
    assert np.isfinite(guesses[:, [3, 5, 6, 7]]).all()
    one_x = tuple(np.ones_like(c) for c in coords)
    assert not np.isinf(lane_guess(model, one_x, y)).any()
    nowhere = tuple(np.full_like(c, np.nan) for c in coords)
    assert np.isnan(lane_guess(model, nowhere, y)).all()
