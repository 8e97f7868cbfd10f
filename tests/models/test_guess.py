"""First guesses: a fit from there ends in the right valley, whatever the order or units of data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from nlsq_dask import models
from tests.models.problems import DRAWS, SUMS, draw_problem

# Beside those of DRAWS, where terms are to be told from each other.
TWO_PEAKS = models.Gaussian(prefix="a_") + models.Gaussian(prefix="b_") + models.Constant()
ALL = [cls() for cls in DRAWS] + SUMS
N_DRAWS = 40


def cost_from(model, x, y, start):
    """Half the sum of squares at the end of a fit by SciPy."""

    def residuals(params):
        r = model(x, *params) - y
        return np.where(np.isfinite(r), r, 1e10)

    with np.errstate(all="ignore"):
        return least_squares(residuals, list(start), x_scale="jac", max_nfev=300).cost


@pytest.mark.every(7)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_fits_from_the_guess_explain_the_data_as_the_truth_does(model):
    reached = 0
    for seed in range(N_DRAWS):
        x, y, true = draw_problem(model, seed)
        end = cost_from(model, x, y, model.guess(x, y).values())
        reached += end <= 0.5 * np.sum((model(x, *true) - y) ** 2)
    assert reached >= 0.95 * N_DRAWS


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_a_few_fits_even_in_strong_noise(model):
    reached = 0
    for seed in range(1000, 1010):
        x, y, true = draw_problem(model, seed, noise=0.2)
        end = cost_from(model, x, y, model.guess(x, y).values())
        reached += end <= 0.5 * np.sum((model(x, *true) - y) ** 2)
    assert reached >= 9


@pytest.mark.thorough
def test_two_peaks_are_found_even_where_they_may_overlap():
    reached = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0, 10, 1000)
        true = [*(3.0, rng.uniform(2, 4), 0.4), *(2.0, rng.uniform(5, 8), 0.8), rng.normal(0, 10)]
        y = TWO_PEAKS(x, *true) + rng.normal(0, 0.2, x.size)
        end = cost_from(TWO_PEAKS, x, y, TWO_PEAKS.guess(x, y).values())
        reached += end <= 0.5 * np.sum((TWO_PEAKS(x, *true) - y) ** 2)
    assert reached >= 19


def test_terms_of_different_kinds_help_each_other():
    model = models.ExponentialDecay() + models.Sinusoid() + models.Constant()
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 10, 3000))
    y = model(x, 5.0, 2.0, 1.0, 1.3, 0.5, 20.0) + rng.normal(0, 0.2, x.size)
    guess = list(model.guess(x, y).values())
    np.testing.assert_allclose(guess, [5.0, 2.0, 1.0, 1.3, 0.5, 20.0], rtol=0.2)


@pytest.mark.quick(3)
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_guess_is_deterministic_named_and_blind_to_the_order_of_rows(model):
    x, y, _ = draw_problem(model, seed=3)
    guess = model.guess(x, y)
    assert tuple(guess) == model.names
    assert all(type(value) is float for value in guess.values())
    assert model.guess(x, y) == guess
    order = np.random.default_rng(0).permutation(y.size)
    shuffled = tuple(c[order] for c in x) if isinstance(x, tuple) else x[order]
    again = model.guess(shuffled, y[order])
    np.testing.assert_allclose(list(again.values()), list(guess.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("unit_x", [1e-9, 1e12])
@pytest.mark.parametrize("unit_y", [1e-30, 1e20])
def test_guess_carries_the_units(unit_x, unit_y):
    model = models.Gaussian() + models.Linear()
    x, y, _ = draw_problem(model, seed=5)
    reference = model.guess(x, y)
    scaled = model.guess(unit_x * x, unit_y * y)
    units = [unit_y, unit_x, unit_x, unit_y / unit_x, unit_y]
    for value, expected, unit in zip(scaled.values(), reference.values(), units, strict=True):
        assert value / unit == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_grids_images_and_broken_rows_are_taken():
    x = np.linspace(0, 10, 60)[:, None]
    y = np.linspace(-5, 5, 50)[None, :]
    model = models.Gaussian2D() + models.Constant()
    image = model((x, y), 3.0, 6.0, 1.0, 0.8, 1.5, 0.3, 10.0)
    rows = tuple(np.ravel(c) for c in np.broadcast_arrays(x, y))
    guess = model.guess((x, y), image)
    assert guess == model.guess(rows, image.ravel()) == model.guess(np.stack(rows), image.ravel())
    assert guess["center_x"] == pytest.approx(6.0, abs=0.3)
    image = image.ravel()
    with_gaps = image.copy()
    with_gaps[7] = np.nan
    keep = np.isfinite(with_gaps)
    assert model.guess(rows, with_gaps) == model.guess(tuple(c[keep] for c in rows), image[keep])


@pytest.mark.slow
def test_a_small_spot_in_a_large_image_is_found():
    x, y = np.meshgrid(np.arange(300.0), np.arange(250.0))
    model = models.Gaussian2D() + models.Constant()
    true = [100.0, 201.4, 53.3, 1.6, 2.4, 0.3, 10.0]
    image = model((x, y), *true) + np.random.default_rng(0).normal(0, 5, x.shape)
    guess = model.guess((x, y), image)
    np.testing.assert_allclose([guess["center_x"], guess["center_y"]], true[1:3], atol=1.0)
    np.testing.assert_allclose([guess["sigma_x"], guess["sigma_y"]], true[3:5], rtol=0.4)


@pytest.mark.slow
def test_a_line_narrower_than_a_bin_and_a_fast_oscillation_are_found_in_many_rows():
    rng = np.random.default_rng(0)
    x = rng.uniform(-50, 50, 100_000)
    line = models.Gaussian() + models.Constant()
    y = line(x, 5.0, 10.0, 0.05, 1.0) + rng.normal(0, 0.5, x.size)
    guess = line.guess(x, y)
    assert guess["center"] == pytest.approx(10.0, abs=0.1)
    assert guess["sigma"] == pytest.approx(0.05, rel=1.5)
    wave = models.Sinusoid() + models.Constant()
    y = wave(x, 1.0, 313.37, 0.4, 5.0) + rng.normal(0, 2.0, x.size)
    assert wave.guess(x, y)["frequency"] == pytest.approx(313.37, abs=1 / 400)


def test_step_down_beside_a_constant_is_guessed_with_the_positive_rate():
    x = np.linspace(0, 10, 300)
    y = 5.0 - 2.0 / (1 + np.exp(-3.0 * (x - 4.0)))
    guess = (models.Logistic() + models.Constant()).guess(x, y)
    assert guess["rate"] > 0
    assert guess["amplitude"] == pytest.approx(-2.0, rel=0.1)
    alone = models.Logistic().guess(x, 2.0 / (1 + np.exp(3.0 * (x - 4.0))))
    assert alone["rate"] < 0 < alone["amplitude"]


@pytest.mark.parametrize("model", ALL, ids=repr)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0], [2.0]),
        ([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]),
        (range(1, 601), np.zeros(600)),
        (1e6 + np.arange(50), np.arange(50)),
        (1e-9 * np.arange(-25, 25), np.ones(50)),
    ],
    ids=["one row", "one x", "zeros", "far from zero", "tiny x"],
)
def test_poor_data_give_finite_values(model, x, y):
    x = np.array(x, dtype=float)
    guess = model.guess((x, x) if model.n_coords == 2 else x, y)
    assert np.isfinite(list(guess.values())).all()
