"""The covariance is that of SciPy where the data determine one, and infinite where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from nlsq_dask.core.covariance import covariance

X = np.linspace(0.0, 4.0, 30)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(40.0 * X)


def model(x, a, b, c):
    return a * np.exp(-b * x) + c


def jacobian(x, a, b, c):
    decay = np.exp(-b * x)
    return np.stack([decay, -a * x * decay, np.ones_like(x)], axis=1)


@pytest.mark.parametrize("absolute_sigma", [True, False])
@pytest.mark.parametrize("rows", [30, 4])
def test_covariance_of_scipy(absolute_sigma: bool, rows: int):
    x, y, sigma = X[:rows], Y[:rows], 0.1 + 0.02 * X[:rows]
    popt, expected = curve_fit(
        model,
        x,
        y,
        [2, 1, 0],
        sigma,
        absolute_sigma=absolute_sigma,
        jac=jacobian,
        method="trf",
        ftol=1e-14,
        xtol=1e-14,
    )
    r = (model(x, *popt) - y) / sigma
    r_factor = np.linalg.qr(jacobian(x, *popt) / sigma[:, None])[1]
    pcov, determined = covariance(r_factor, 0.5 * float(r @ r), rows, absolute_sigma=absolute_sigma)
    assert determined
    assert pcov == pytest.approx(expected, rel=1e-9)
    assert np.array_equal(pcov, pcov.T)


def test_units_of_the_parameters_do_not_matter():
    r_factor = np.linalg.qr(jacobian(X, 2.5, 1.3, 0.5))[1]
    units = np.array([1e-30, 1.0, 1e30])
    plain, _ = covariance(r_factor, 1.0, 30, absolute_sigma=True)
    scaled, determined = covariance(r_factor * units, 1.0, 30, absolute_sigma=True)
    assert determined
    assert scaled * units * units[:, None] == pytest.approx(plain, rel=1e-9)


SINGULAR = np.array([[1.0, 2.0], [0.0, 0.0]])
REGULAR = np.array([[1.0, 2.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("r_factor", "n_points", "absolute_sigma", "expected"),
    [
        (REGULAR, 3, False, True),
        (REGULAR, 2, False, False),
        (REGULAR, 2, True, True),
        (REGULAR, 1, True, False),
        (SINGULAR, 30, False, False),
        (SINGULAR, 30, True, False),
        (np.array([[1.0, 2.0], [0.0, 1e-15]]), 30, True, False),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), 30, True, False),
        (np.zeros((2, 2)), 30, True, False),
    ],
)
def test_what_the_data_determine(r_factor, n_points: int, absolute_sigma: bool, expected: bool):
    pcov, determined = covariance(r_factor, 2.0, n_points, absolute_sigma=absolute_sigma)
    assert determined is expected
    assert np.isfinite(pcov).all() if expected else np.isposinf(pcov).all()
