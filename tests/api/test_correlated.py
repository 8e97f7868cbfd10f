"""Fits of rows with correlated errors: the answers of SciPy and of generalised least squares."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from scipy import linalg, optimize

from nlsq_dask import InputError, fit

RNG = np.random.default_rng(8)
X = np.linspace(0, 4, 150)
DEVIATIONS = 0.05 * (1 + X)
# Neighbours are correlated over 0.3 in x, by half of their variance.
CORRELATION = 0.5 * np.eye(150) + 0.5 * np.exp(-np.abs(X[:, None] - X) / 0.3)
COVARIANCE = CORRELATION * np.outer(DEVIATIONS, DEVIATIONS)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + np.linalg.cholesky(COVARIANCE) @ RNG.normal(size=150)
P0 = [1.0, 1.0, 0.0]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def value(x, a, b, c):
    return a * np.exp(-b * x) + c


def jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.column_stack([e, -a * x * e, np.ones_like(x)])


def scipy_fit(x=X, y=Y, sigma=COVARIANCE, **options):
    # Without `method`: SciPy chooses it by the bounds.
    return optimize.curve_fit(
        value, x, y, P0, sigma, jac=jacobian, ftol=1e-14, xtol=1e-14, gtol=1e-12, **options
    )


def assert_same(result, popt, pcov):
    perr = np.sqrt(np.diag(pcov))
    np.testing.assert_array_less(np.abs(result.popt - popt), 1e-4 * perr)
    scale = np.outer(perr, perr)
    np.testing.assert_allclose(result.pcov / scale, pcov / scale, atol=1e-5)


@pytest.mark.quick(3)
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bounds": ([0, 0, 0], [2.3, 9, 9])}, {"method": "dogbox"}, {"method": "lm"}],
    ids=str,
)
def test_the_answer_is_scipy_s(options, absolute_sigma):
    result = fit(
        decay, X, Y, P0, sigma=COVARIANCE, absolute_sigma=absolute_sigma, ftol=1e-12, **options
    )
    assert_same(result, *scipy_fit(absolute_sigma=absolute_sigma, **options))
    assert result.strategy == "standard"
    errors = value(X, *result.popt) - Y
    chi2 = errors @ np.linalg.solve(COVARIANCE, errors)
    assert (result.chi2, result.cost) == pytest.approx((chi2, chi2 / 2), rel=1e-10)
    assert result.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))


@pytest.mark.slow
def test_a_loss_of_whitened_residuals():
    options = dict(loss="soft_l1", f_scale=0.7)
    result = fit(decay, X, Y, P0, sigma=COVARIANCE, ftol=1e-12, **options)
    popt, pcov = scipy_fit(method="trf", **options)
    assert np.all(np.abs(result.popt - popt) < 1e-4 * np.sqrt(np.diag(pcov)))
    # The sandwich of whitened rows.
    root = np.linalg.cholesky(COVARIANCE)
    r = np.linalg.solve(root, value(X, *result.popt) - Y)
    jac = np.linalg.solve(root, jacobian(X, *result.popt))
    z = (r / 0.7) ** 2
    bread = np.linalg.inv((jac.T * (1 + z) ** -1.5) @ jac)
    expected = bread @ ((jac.T * (r**2 / (1 + z))) @ jac) @ bread * X.size / (X.size - 3)
    np.testing.assert_allclose(result.pcov, expected, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_of_one_s_own_are_whitened_too():
    own = fit(decay, X, Y, P0, sigma=COVARIANCE, jac=jacobian)
    automatic = fit(decay, X, Y, P0, sigma=COVARIANCE)
    np.testing.assert_allclose(own.popt, automatic.popt, rtol=1e-9)
    np.testing.assert_allclose(own.pcov, automatic.pcov, rtol=1e-8)


@pytest.mark.slow
def test_a_diagonal_covariance_is_standard_deviations():
    matrix = fit(decay, X, Y, P0, sigma=np.diag(DEVIATIONS**2))
    each = fit(decay, X, Y, P0, sigma=DEVIATIONS)
    np.testing.assert_allclose(matrix.popt, each.popt, rtol=1e-10)
    np.testing.assert_allclose(matrix.pcov, each.pcov, rtol=1e-9)
    for name in ("cost", "rmse", "mae", "r_squared", "aic", "bic"):
        assert getattr(matrix, name) == pytest.approx(getattr(each, name), rel=1e-9), name


@pytest.mark.slow
def test_r_squared_is_that_of_generalised_least_squares():
    """Compared with the constant that fits best under the same covariance."""
    result = fit(decay, X, Y, P0, sigma=COVARIANCE)
    constant = fit(lambda x, m: m + 0 * x, X, Y, sigma=COVARIANCE)
    assert result.r_squared == pytest.approx(1 - result.chi2 / constant.chi2, rel=1e-9)


@pytest.mark.slow
def test_a_model_of_all_rows_is_no_obstacle():
    """All rows are evaluated together anyway."""
    result = fit(lambda x, a, b: a * (x - x.mean()) + b, X, Y, sigma=COVARIANCE)
    design = np.column_stack([X - X.mean(), np.ones_like(X)])
    white = linalg.solve_triangular(np.linalg.cholesky(COVARIANCE), np.c_[design, Y], lower=True)
    np.testing.assert_allclose(
        result.popt, np.linalg.lstsq(white[:, :2], white[:, 2])[0], rtol=1e-8
    )


LEFT_OUT = np.zeros(150, bool)
LEFT_OUT[[0, 7, 8, 77, 149]] = True
MISSING = {
    "mask": dict(mask=LEFT_OUT),
    "masked array": dict(y=np.ma.masked_array(np.where(LEFT_OUT, 1e9, Y), LEFT_OUT)),
    "NaN in y": dict(y=np.where(LEFT_OUT, np.nan, Y), nan_policy="omit"),
    "NaN in x": dict(x=np.where(LEFT_OUT, np.nan, X), nan_policy="omit"),
    "fill value": dict(y=np.where(LEFT_OUT, -9999.0, Y), fill_value=-9999),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISSING)
def test_rows_left_out_take_their_row_and_column_along(name):
    kept = ~LEFT_OUT
    result = fit(decay, **{"x": X, "y": Y, "sigma": COVARIANCE, **MISSING[name]}, p0=P0, ftol=1e-12)
    assert_same(result, *scipy_fit(X[kept], Y[kept], COVARIANCE[np.ix_(kept, kept)]))
    assert (result.n_points, result.n_skipped) == (145, 5)


@pytest.mark.slow
def test_a_covariance_need_be_known_only_for_rows_that_count():
    unknown = COVARIANCE.copy()
    unknown[LEFT_OUT] = unknown[:, LEFT_OUT] = np.nan
    result = fit(decay, X, Y, P0, sigma=unknown, mask=LEFT_OUT)
    expected = fit(decay, X, Y, P0, sigma=COVARIANCE, mask=LEFT_OUT)
    np.testing.assert_array_equal(result.popt, expected.popt)
    with pytest.raises(InputError, match="sigma has 1475 values that are NaN or infinite"):
        fit(decay, X, Y, P0, sigma=unknown)


def changed(row, column, entry):
    matrix = COVARIANCE.copy()
    matrix[row, column] = matrix[column, row] = entry
    return matrix


@pytest.mark.parametrize(
    ("sigma", "text"),
    [
        (changed(3, 3, -1.0), "`sigma` must be positive definite"),
        (changed(3, 5, 10.0), "`sigma` must be positive definite"),
        (np.ones((150, 150)), "`sigma` must be positive definite"),
        (np.zeros((150, 150)), "`sigma` must be positive definite"),
        (changed(3, 5, np.nan), "sigma has 2 values that are NaN or infinite"),
        (np.eye(149), "`sigma` has incorrect shape"),
        (np.ones((150, 2)), "`sigma` has incorrect shape"),
        (DEVIATIONS[None], "`sigma` has incorrect shape"),
    ],
)
def test_what_is_no_covariance_matrix_is_refused_as_by_scipy(sigma, text):
    with pytest.raises(InputError) as raised:
        fit(decay, X, Y, P0, sigma=sigma)
    assert text in str(raised.value)
    with pytest.raises(ValueError):
        scipy_fit(sigma=sigma)


@pytest.mark.slow
def test_a_matrix_that_is_not_symmetric_is_refused():
    """Where SciPy uses its lower triangle."""
    sigma = COVARIANCE.copy()
    sigma[3, 5] += 0.1
    with pytest.raises(InputError, match=r"not symmetric: sigma\[3, 5\] = .* and sigma\[5, 3\] ="):
        fit(decay, X, Y, P0, sigma=sigma)
    rounded = COVARIANCE * (1.0 + 1e-12 * np.random.default_rng(0).normal(size=COVARIANCE.shape))
    expected = fit(decay, X, Y, P0, sigma=COVARIANCE)
    np.testing.assert_allclose(fit(decay, X, Y, P0, sigma=rounded).popt, expected.popt, rtol=1e-8)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(x=da.from_array(X, chunks=40)),
        dict(y=da.from_array(Y, chunks=40)),
        dict(sigma=da.from_array(COVARIANCE, chunks=40)),
        pytest.param(dict(y=zarr.array(Y, chunks=40)), id="zarr"),
        dict(strategy="chunked"),
        dict(strategy="streaming"),
        dict(workflow="streaming"),
    ],
    ids=str,
)
def test_parts_of_correlated_rows_are_refused(arguments):
    with pytest.raises(InputError, match="ties every row to all others"):
        fit(decay, **{"x": X, "y": Y, "sigma": COVARIANCE, **arguments}, p0=P0)
