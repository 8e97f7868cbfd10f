"""Error bars of series whose data hardly determine all parameters."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import ConvergenceWarning, Status, fit, fit_each, models
from tests.support.series import decay


@pytest.mark.slow
def test_a_direction_that_is_lost_in_rounding_has_no_error_bar():
    """A peak between two samples: its height and width cannot be told apart."""
    x = np.linspace(0.0, 10.0, 60)
    peak = models.Gaussian() + models.Constant()
    place, width = np.meshgrid(0.2542 + 0.1695 * np.arange(4), np.linspace(0.03, 0.05, 12))
    truth = np.stack([np.ones(48), place.ravel(), width.ravel(), np.zeros(48)])
    y = peak(x[:, None], *truth) + np.random.default_rng(0).normal(0.0, 0.05, (60, 48))
    with pytest.warns(ConvergenceWarning):
        maps = fit_each(peak, x, y, list(truth))
    determined = np.asarray(maps.success)
    for k in np.flatnonzero(determined):
        estimates = maps.popt.array[:, k]
        z = (x - estimates[1]) / estimates[2]
        e = np.exp(-0.5 * z**2)
        slope = estimates[0] * e * z / estimates[2]
        columns = np.stack([e, slope, slope * z, np.ones(60)], axis=1)
        scaled = columns / np.linalg.norm(columns, axis=0)
        step = np.linalg.lstsq(scaled, y[:, k] - peak(x, *estimates), rcond=1e-15)[0]
        assert np.linalg.norm(scaled @ step) < 1e-2 * np.sqrt(maps.reduced_chi2[k])
    assert 0 < determined.sum() < 48


@pytest.mark.slow
def test_a_constant_that_a_slow_decay_fits_exactly_is_undetermined():
    # Found by benchmarks/each_fuzz.py: with few digits, these series are fitted again in a basis.
    y = np.tile([-16.62143905405615, -16.625402991499623, 100.0], (60, 1))
    with pytest.warns(ConvergenceWarning):
        maps = fit_each(decay, np.linspace(0.0, 10.0, 60), y, (1.0, 1.0, 0.0))
    assert (maps.status == Status.UNDETERMINED).all()
    assert np.isnan(maps.perr.array).all()


@pytest.mark.parametrize(
    ("model", "determined"),
    [
        (models.ExponentialDecay(), False),
        (models.Lorentzian(), False),
        (models.Linear(), True),
        (models.PowerLaw(), True),
    ],
    ids=["decay", "peak", "line", "power"],
)
def test_a_constant_determines_what_may_be_zero_and_not_what_is_infinite(model, determined):
    """Saturated series: a lifetime or a width runs off, and a slope or an exponent is zero."""
    y = np.tile([7.0, -16.62, 100.0, 65535.0, 255.0, 1e-3, 1 / 3], (40, 1))
    x = np.linspace(0.1, 5.1, 40)
    if determined:
        maps = fit_each(model, x, y)
        assert (maps.status == Status.ROUNDING).all()
        zero = maps.popt.array[model.names.index("slope" if "slope" in model.names else "exponent")]
        assert (np.abs(zero) < 1e-14 * np.maximum(np.abs(y[0]), 1.0)).all()
    else:
        with pytest.warns(ConvergenceWarning, match="7 with undetermined parameters"):
            maps = fit_each(model, x, y)
        assert np.isnan(maps.perr.array).all()


@pytest.mark.parametrize(
    "recovery",
    [lambda xp, t, tau: 1.0 - xp.exp(-t / tau), lambda xp, t, rate: xp.tanh(rate * t)],
    ids=["exponential", "tanh"],
)
def test_a_recovery_that_is_over_at_the_first_row_determines_no_lifetime(recovery):
    """All shorter lifetimes fit as exactly as the lifetime at which the search ends."""
    x = np.linspace(0.1, 5.0, 40)
    y = np.column_stack([np.full(40, 12.57), np.full(40, -13.2), 3.0 * recovery(np, x, 0.7)])
    with pytest.warns(ConvergenceWarning):
        maps = fit_each(lambda t, a, shape: a * recovery(jnp, t, shape), x, y, (1.0, 1.0))
    assert (maps.status[:2] == Status.UNDETERMINED).all()
    assert np.isnan(maps.perr.array[:, :2]).all()
    np.testing.assert_allclose(maps.popt.array[:, 2], [3.0, 0.7], rtol=1e-9)
    assert np.isfinite(maps.perr.array[:, 2]).all()


def test_a_flat_line_determines_its_slope():
    for y in (-13.2, 12.57, 1.0):
        found = fit(models.Linear(), np.linspace(0.1, 10.0, 60), np.full(60, y))
        assert found.success
        assert np.isfinite(found.perr).all()


def test_parameters_of_exact_series_keep_their_digits():
    x = np.linspace(0.0, 5.0, 40)[:, None]
    lifetime = np.geomspace(0.5, 1e9, 30)
    maps = fit_each(models.ExponentialDecay(), x[:, 0], 3.0 * np.exp(-x / lifetime))
    assert maps.success.all()
    # A lifetime τ much longer than the window changes y by 5 / τ: that many digits are left.
    assert (np.abs(maps["tau"] / lifetime - 1) < 1e-13 * np.maximum(lifetime, 1.0)).all()
