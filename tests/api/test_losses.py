"""Fits with robust losses: SciPy's answers, through every strategy."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nlsq_dask import InputError, LossScaleWarning, curve_fit, fit
from tests.support.same_result import assert_same_result

RNG = np.random.default_rng(11)
X = np.sort(RNG.uniform(0, 4, 500))
SIGMA = RNG.uniform(0.05, 0.15, X.size)
TRUTH = np.array([2.5, 1.3, 0.5])
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + SIGMA * RNG.normal(size=X.size)
Y[::9] += RNG.exponential(1.5, Y[::9].size)  # outliers, all on one side
P0 = [2.0, 1.0, 0.65]
TIGHT = dict(ftol=1e-15, xtol=1e-15, gtol=1e-13)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def welsch(z):
    """A loss that counts far outliers not at all (Dennis & Welsch, 1978)."""
    weight = jnp.exp(-z / 2)
    return jnp.stack([-2 * jnp.expm1(-z / 2), weight, -weight / 2])


def welsch_for_scipy(z):
    weight = np.exp(-z / 2)
    return np.stack([-2 * np.expm1(-z / 2), weight, -weight / 2])


# The loss of fit, SciPy's, and a scale in units of sigma.
LOSSES = {
    "linear": ("linear", "linear", 2.0),
    "soft_l1": ("soft_l1", "soft_l1", 1.5),
    "huber": ("huber", "huber", 1.0),
    "cauchy": ("cauchy", "cauchy", 1.0),
    "arctan": ("arctan", "arctan", 3.0),
    "own": (welsch, welsch_for_scipy, 2.0),
}
BOUNDS = {"free": (-np.inf, np.inf), "active": ([0, 0, 0.6], [2.3, 9, 1])}
STRATEGIES = ["standard", "chunked", "streaming"]
SIGMAS = {"none": None, "each": SIGMA, "one": 0.1}


def value(x, a, b, c):
    return a * np.exp(-b * x) + c


def jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.column_stack([e, -a * x * e, np.ones_like(x)])


def scale_of(loss, sigma):
    return LOSSES[loss][2] * (0.1 if sigma is None else 1.0)


def data_for(strategy, sigma=None):
    arrays = {"x": X, "y": Y, "sigma": sigma}
    if strategy == "streaming":
        chunks = {"x": 130, "y": (77, 1, 222, 200), "sigma": 90}
        for name, size in chunks.items():
            if np.ndim(arrays[name]):
                arrays[name] = da.from_array(arrays[name], chunks=size)
    return arrays


def fit_with(name, strategy="auto", sigma=None, **options):
    arguments = dict(p0=P0, loss=LOSSES[name][0], f_scale=scale_of(name, sigma), strategy=strategy)
    return fit(decay, **data_for(strategy, sigma), **{**arguments, **TIGHT, **options})


def scipy_fit(loss, sigma=None, bounds=BOUNDS["free"], **options):
    """Least squares as SciPy does them, at tolerances of rounding."""
    weights = 1.0 if sigma is None else 1 / np.broadcast_to(sigma, Y.shape)
    options = {**TIGHT, "max_nfev": 2000, **options}
    return optimize.least_squares(
        lambda p: (value(X, *p) - Y) * weights,
        P0,
        lambda p: jacobian(X, *p) * np.atleast_1d(weights)[:, None],
        bounds=bounds,
        loss=LOSSES[loss][1],
        f_scale=scale_of(loss, sigma),
        x_scale="jac",
        **options,
    )


def assert_near(popt, expected, perr, part=1e-5):
    """Equal to a small part of a standard error."""
    np.testing.assert_array_less(np.abs(popt - expected), part * perr)


@pytest.mark.slow
@pytest.mark.every(3)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_is_scipy_s(loss, strategy):
    result = fit_with(loss, strategy, SIGMA)
    reference = scipy_fit(loss, SIGMA)
    assert result.success
    assert result.strategy == strategy
    assert_near(result.popt, reference.x, result.perr)
    assert result.cost == pytest.approx(reference.cost, rel=1e-12)
    # Whatever is minimised, chi2 and the statistics are those of the residuals.
    errors = value(X, *result.popt) - Y
    assert result.chi2 == pytest.approx(np.sum((errors / SIGMA) ** 2), rel=1e-12)
    assert result.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert result.mae == pytest.approx(np.mean(np.abs(errors)))
    assert result.loss == getattr(LOSSES[loss][0], "__name__", loss)
    assert (2 * result.cost == result.chi2) == (loss == "linear")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber"])
def test_the_search_takes_scipy_s_steps(loss):
    """The same evaluations to the same criterion, which another curvature would not take."""
    tolerances = dict(ftol=1e-8, xtol=1e-8, gtol=1e-8)
    result = fit_with(loss, "standard", SIGMA, **tolerances)
    reference = scipy_fit(loss, SIGMA, **tolerances)
    assert (result.nfev, result.status) == (reference.nfev, reference.status)
    np.testing.assert_allclose(result.popt, reference.x, rtol=1e-7)
    np.testing.assert_allclose(result.grad, reference.grad, atol=1e-5 * np.abs(reference.cost))


# Losses that are concave in most rows: noise of some f_scale


NOISY_X = np.linspace(0, 5, 200_000)
NOISE = np.random.default_rng(5).normal(size=NOISY_X.size)
DEEP = {  # ρ' and ρ' + 2 z ρ''
    "cauchy": (lambda z: 1 / (1 + z), lambda z: (1 - z) / (1 + z) ** 2),
    "arctan": (lambda z: 1 / (1 + z**2), lambda z: (1 - 3 * z**2) / (1 + z**2) ** 2),
}


def optimum_by_newton(loss, x, y, params):
    """Newton's method on the cost, with all second derivatives, over all rows at once."""
    slope, curvature = DEEP[loss]
    for _ in range(30):
        a, b, c = params
        e = np.exp(-b * x)
        r = a * e + c - y
        jac = np.column_stack([e, -a * x * e, np.ones_like(x)])
        score = slope(r**2) * r
        hessian = (jac * curvature(r**2)[:, None]).T @ jac
        hessian[0, 1] -= score @ (x * e)
        hessian[1, 0] = hessian[0, 1]
        hessian[1, 1] += score @ (a * x**2 * e)
        params = params - np.linalg.solve(hessian, jac.T @ score)
    assert np.linalg.eigvalsh(hessian)[0] > 0
    return params


@pytest.mark.every(12)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.LossScaleWarning")
@pytest.mark.parametrize("pilot", [True, False])
@pytest.mark.parametrize("noise", [1, 3, 10])
@pytest.mark.parametrize("loss", DEEP)
def test_a_distance_knows_where_the_loss_is_concave(loss, noise, pilot):
    """Rows beyond f_scale curve the cost downwards: without them steps are many times too short.

    Fits ended 0.03 to 2 standard errors from the optimum after 18 to 300 passes, and said 0.01.
    """
    y = 100 * np.exp(-0.8 * NOISY_X) + 20 + noise * NOISE
    x, lazy = (da.from_array(a, chunks=10_000) for a in (NOISY_X, y))
    result = fit(decay, x, lazy, [80, 1, 10], loss=loss, pilot=pilot)
    optimum = optimum_by_newton(loss, NOISY_X, y, result.popt)
    away = result.r_factor @ (result.popt - optimum) * np.sqrt(result.dof / (2 * result.cost))
    assert result.success
    assert result.distance_to_optimum_sigma < 0.01
    assert np.linalg.norm(away) < 0.011
    assert np.all(np.abs(result.popt - optimum) < 0.011 * result.perr)
    assert result.n_passes <= (10 if pilot else 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.LossScaleWarning")
@pytest.mark.parametrize("loss", DEEP)
@pytest.mark.parametrize("bounded", [False, True])
def test_the_true_distance_in_a_concave_loss(loss, bounded):
    """From a point that is known to be so far off, with a parameter held by a bound or none."""
    y = 100 * np.exp(-0.8 * NOISY_X) + 20 + 5 * NOISE
    bounds = ([0, 0, 20.5], [200, 9, 30]) if bounded else (-np.inf, np.inf)
    there = fit(
        decay, NOISY_X, y, [100, 0.8, 20.5 + bounded], loss=loss, bounds=bounds, method="dogbox"
    )
    assert there.active_mask.any() == bounded
    free = np.flatnonzero(there.active_mask == 0)
    _, root = np.linalg.qr(there.r_factor[:, free])
    unit = np.zeros(3)
    unit[free] = np.linalg.solve(root, np.ones(free.size) / np.sqrt(free.size))
    scale = np.sqrt(2 * there.cost / there.dof)
    for distance in (0.3, 0.03):
        with pytest.warns(match="maximum number"):
            near = fit(decay, NOISY_X, y, there.popt + unit * scale * distance, loss=loss,
                       bounds=bounds, method="dogbox", max_nfev=1, gtol=None)  # fmt: skip
        assert near.distance_to_optimum_sigma == pytest.approx(distance, rel=0.05)


@pytest.mark.quick(5)
@pytest.mark.every(3)
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("loss", LOSSES)
def test_covariance_is_scipy_s(loss, sigma, bounds, absolute_sigma):
    """In curve_fit: of the rescaled Jacobian, and by the robust cost."""
    sigma = SIGMAS[sigma]
    options = dict(
        sigma=None if sigma is None else np.broadcast_to(sigma, Y.shape),
        absolute_sigma=absolute_sigma, bounds=BOUNDS[bounds], method="trf",
        f_scale=scale_of(loss, sigma), x_scale="jac", max_nfev=5000, **TIGHT,
    )  # fmt: skip
    found, covariance = curve_fit(decay, X, Y, P0, loss=LOSSES[loss][0], **options)
    popt, pcov = optimize.curve_fit(value, X, Y, P0, jac=jacobian, loss=LOSSES[loss][1], **options)
    perr = np.sqrt(np.diag(pcov))
    assert_near(found, popt, perr, 1e-4)
    np.testing.assert_allclose(covariance / np.outer(perr, perr), pcov / np.outer(perr, perr),
                               atol=1e-6 if bounds == "free" else 1e-5)  # fmt: skip


@pytest.mark.slow
def test_covariance_of_constrained_fits_is_scipy_s():
    """As that of a model of the free parameters."""
    options = dict(loss="soft_l1", f_scale=0.15, method="trf")
    _, pcov = optimize.curve_fit(
        lambda x, a, b: value(x, a, b, 0.2 * a), X, Y, P0[:2], x_scale="jac", **options, **TIGHT
    )
    tied = curve_fit(decay, X, Y, P0, ties={"c": {"a": 0.2}}, **options, **TIGHT)
    along = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.0]])
    np.testing.assert_allclose(tied[1], along @ pcov @ along.T, rtol=1e-4)


# ρ' and ρ'' of z
DERIVATIVES = {
    "soft_l1": lambda z: (1 / np.sqrt(1 + z), -0.5 * (1 + z) ** -1.5),
    "huber": lambda z: (
        np.where(z <= 1, 1, np.maximum(z, 1) ** -0.5),
        np.where(z <= 1, 0, -0.5 * np.maximum(z, 1) ** -1.5),
    ),
    "cauchy": lambda z: (1 / (1 + z), -1 / (1 + z) ** 2),
    "arctan": lambda z: (1 / (1 + z**2), -2 * z / (1 + z**2) ** 2),
    "own": lambda z: welsch_for_scipy(z)[1:],
}


def dense_sandwich(loss, popt, sigma, columns=None):
    """``n / dof · H⁻¹ (Σ ψ² j jᵀ) H⁻¹`` with all rows at once."""
    f_scale = scale_of(loss, sigma)
    columns = np.eye(3) if columns is None else np.asarray(columns)
    sigma = np.broadcast_to(1.0 if sigma is None else sigma, Y.shape)
    jac = (jacobian(X, *popt) / sigma[:, None]) @ columns
    r = (value(X, *popt) - Y) / sigma
    first, second = DERIVATIVES[loss](z := (r / f_scale) ** 2)
    bread = np.linalg.inv((jac.T * (first + 2 * z * second)) @ jac)
    free = columns.shape[1]
    return bread @ ((jac.T * (first * r) ** 2) @ jac) @ bread * Y.size / (Y.size - free)


@pytest.mark.every(7)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("loss", DERIVATIVES)
def test_covariance_is_the_sandwich(loss, sigma, strategy):
    sigma = SIGMAS[sigma]
    result = fit_with(loss, strategy, sigma)
    expected = dense_sandwich(loss, result.popt, sigma)
    scale = np.outer(*[np.sqrt(np.diag(expected))] * 2)
    np.testing.assert_allclose(result.pcov / scale, expected / scale, atol=1e-8)
    np.testing.assert_array_equal(result.pcov, result.pcov.T)
    np.testing.assert_array_equal(result.robust_pcov(), result.pcov)
    assert result.n_passes == result.nfev  # no reading but those of the search
    assert "sandwich of the loss" in result.summary()
    # The scale of sigma is of no account: all that counts is the scatter of the rows.
    known = fit_with(loss, strategy, sigma, absolute_sigma=True)
    np.testing.assert_array_equal(known.pcov, result.pcov)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_sandwich_of_constrained_fits(tied):
    constraint = dict(ties={"c": {"a": 0.2}}) if tied else dict(fixed={"b": 1.3})
    columns = np.array([[1, 0], [0, 1], [0.2, 0]] if tied else [[1, 0], [0, 0], [0, 1]])
    result = fit_with("cauchy", **constraint)
    expected = columns @ dense_sandwich("cauchy", result.popt, None, columns) @ columns.T
    np.testing.assert_allclose(result.pcov, expected, rtol=1e-8, atol=1e-18)


def test_a_search_that_ends_unexpectedly_reads_once_more():
    def stop(intermediate_result):
        raise StopIteration

    with pytest.warns(match="StopIteration"):
        result = fit_with("huber", callback=stop)
    assert result.n_passes == result.nfev + 1
    expected = dense_sandwich("huber", result.popt, None)
    np.testing.assert_allclose(result.pcov, expected, rtol=1e-8)


@pytest.mark.slow
def test_the_scale_of_a_loss_below_the_noise():
    """Noise of 0.1, a ninth of the rows outliers: half of the rows lie within 0.078."""
    for f_scale in (0.1, 0.2, 0.3, 10.0):
        fit_with("soft_l1", f_scale=f_scale)
    for f_scale in (0.05, 0.01):
        with pytest.warns(LossScaleWarning, match="below the noise") as caught:
            fit_with("soft_l1", f_scale=f_scale)
        noise = float(str(caught[0].message).split("standard deviation of ")[1].split(". ")[0])
        assert noise == pytest.approx(0.112, rel=0.25)
        assert caught[0].filename == __file__
    curve_fit(decay, X, Y, P0, method="trf", loss="soft_l1", f_scale=0.01)  # as SciPy: no word
    few = fit(decay, X[::20], Y[::20], P0, loss="soft_l1", f_scale=0.06)  # too few to tell
    assert few.moments.n_small < 0.5 * few.n_points


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_intervals_of_robust_fits_cover(loss):
    """SciPy's formula covers 26 to 100 %."""
    rng = np.random.default_rng(3)
    x, hits, repeats = np.linspace(0, 4, 1000), np.zeros(3), 150
    for _ in range(repeats):
        y = value(x, *TRUTH) + 0.1 * rng.standard_t(4, size=x.size)
        low, high = fit(decay, x, y, TRUTH, loss=loss, f_scale=0.2).confidence_intervals(0.9).T
        hits += (low < TRUTH) & (high > TRUTH)
    deviation = np.sqrt(0.9 * 0.1 / repeats)
    np.testing.assert_allclose(hits / repeats, 0.9, atol=3.5 * deviation)


@pytest.mark.quick(3)
@pytest.mark.parametrize("strategy", ["chunked", "streaming"])
@pytest.mark.parametrize("loss", ["soft_l1", "own"])
def test_every_strategy_has_the_same_covariance(loss, strategy):
    options = dict(sigma=SIGMA, bounds=BOUNDS["active"], absolute_sigma=True)
    result, expected = (fit_with(loss, s, **options) for s in (strategy, "standard"))
    assert_near(result.popt, expected.popt, expected.perr, 1e-6)
    scale = np.outer(expected.perr, expected.perr)
    np.testing.assert_allclose(result.pcov / scale, expected.pcov / scale, atol=1e-7)


# Held by a bound, the model is as far from the rows as 1.4 times f_scale.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.LossScaleWarning")
@pytest.mark.parametrize("loss", ["huber", "own"])
@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_methods_agree(loss, method):
    result = fit_with(loss, "streaming", SIGMA, method=method, bounds=BOUNDS["active"])
    reference = scipy_fit(loss, SIGMA, BOUNDS["active"], method="dogbox")
    assert result.method == method
    assert_near(result.popt, reference.x, result.perr, 1e-4)
    np.testing.assert_array_equal(result.active_mask, reference.active_mask)


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "linear"])
def test_a_scale_beyond_all_residuals_is_least_squares(loss):
    result = fit_with(loss, sigma=SIGMA, f_scale=1e6)
    linear = fit_with("linear", sigma=SIGMA)
    assert_near(result.popt, linear.popt, linear.perr)
    np.testing.assert_allclose(result.pcov, linear.robust_pcov(), rtol=1e-6)
    assert result.cost == pytest.approx(linear.cost, rel=1e-6)


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_units_of_y_do_not_matter(loss):
    milli = fit(decay, X, 1000 * Y, [2000, 1, 650], loss=loss, f_scale=300, **TIGHT)
    unit = fit(decay, X, Y, P0, loss=loss, f_scale=0.3, **TIGHT)
    factors = np.array([1000, 1, 1000])
    assert_near(milli.popt, factors * unit.popt, milli.perr)
    np.testing.assert_allclose(milli.pcov, np.outer(factors, factors) * unit.pcov, rtol=1e-6)
    assert milli.cost == pytest.approx(1e6 * unit.cost)


@pytest.mark.slow
def test_least_squares_in_one_s_own_words():
    own = fit_with("linear", loss=lambda z: [z, z**0, 0 * z])
    linear = fit_with("linear")
    assert (own.nfev, own.status) == (linear.nfev, linear.status)
    np.testing.assert_allclose(own.popt, linear.popt, rtol=1e-12)
    np.testing.assert_allclose(own.pcov, linear.robust_pcov(), rtol=1e-9)


def test_outliers_count_less():
    """What losses are for: least squares miss the truth by many standard errors."""
    away = {
        loss: np.abs(fit_with(loss, sigma=SIGMA).popt - TRUTH)
        for loss in ("linear", "own", "cauchy")
    }
    errors = fit_with("own", sigma=SIGMA, absolute_sigma=True).perr
    assert away["linear"][2] > 10 * errors[2]
    assert np.all(away["own"] < 3 * errors)
    assert np.all(away["cauchy"] < away["linear"])


@pytest.mark.slow
def test_rows_left_out_have_no_loss():
    y = np.where(np.arange(Y.size) % 7 == 3, np.nan, Y)
    kept = ~np.isnan(y)
    result = fit(
        decay, da.from_array(X, chunks=99), da.from_array(y, chunks=120), P0,
        nan_policy="omit", loss=welsch, f_scale=0.2, **TIGHT,
    )  # fmt: skip
    expected = fit(decay, X[kept], Y[kept], P0, loss=welsch, f_scale=0.2, **TIGHT)
    assert result.n_skipped == np.count_nonzero(~kept)
    assert result.cost == pytest.approx(expected.cost, rel=1e-12)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_starts_are_compared_by_the_loss(strategy):
    options = dict(sigma=SIGMA, n_starts=6, bounds=([0, 0, -1], [9, 9, 1]))
    result = fit_with("own", strategy, **options)
    costs = [start.cost for start in result.starts if start.cost is not None]
    assert result.cost <= min(costs) * (1 + 1e-12)
    reference = scipy_fit("own", SIGMA)
    assert result.cost <= reference.cost * (1 + 1e-9)


@pytest.mark.slow
def test_a_fit_with_a_loss_resumes_to_the_same_bits(tmp_path):
    whole = fit_with("cauchy", "streaming")

    def interrupt(intermediate_result):
        if intermediate_result.nit == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_with("cauchy", "streaming", checkpoint=tmp_path, callback=interrupt)
    assert_same_result(fit_with("cauchy", "streaming", checkpoint=tmp_path, resume=True), whole)
    for other in (dict(loss="huber"), dict(f_scale=0.11), dict(loss=welsch)):
        with pytest.raises(InputError, match="of another fit: loss differ"):
            fit_with("cauchy", "streaming", checkpoint=tmp_path, resume=True, **other)


@pytest.mark.cluster
def test_functions_of_one_s_own_travel_to_workers(client):
    """A loss and derivatives that close on numbers, which no module of a worker has."""
    steepness, one = 2.0, 1.0

    def loss(z):
        weight = jnp.exp(-z / steepness)
        return jnp.stack([steepness * (1 - weight), weight, -weight / steepness])

    def jac(x, a, b, c):
        e = jnp.exp(-b * x)
        return jnp.stack([e, -a * x * e, one * jnp.ones_like(x)], axis=1)

    arguments = dict(p0=P0, loss=loss, f_scale=0.2, jac=jac, **TIGHT)
    local = fit(decay, **data_for("streaming"), **arguments)
    assert_same_result(fit(decay, **data_for("streaming"), **arguments, client=client), local)
    built_in = fit_with("own", "standard", f_scale=0.2)
    assert_near(local.popt, built_in.popt, built_in.perr)
