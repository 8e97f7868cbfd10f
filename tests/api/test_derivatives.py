"""Fits of models whose derivatives are not finite in some rows, although their values are."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nlsq_dask import DerivativeWarning, FitResult, InputError, curve_fit, fit, fit_models
from nlsq_dask.core import statistics
from tests.kernels.test_derivatives import stretched_slopes
from tests.support.same_result import assert_same_result

X = np.linspace(0.0, 10.0, 400)
GRID = tuple(axis.ravel() for axis in np.meshgrid(np.arange(20.0), np.arange(20.0)))


def stretched(xp, t, a, tau, b):
    return a * xp.exp(-((t / tau) ** b))


def power(xp, t, tau, b):
    del xp
    return (t / tau) ** b


def clipped(xp, t, a, t0, n):
    return a * xp.clip(t - t0, 0.0, None) ** n


def masked_root(xp, t, a, t0):
    return a * xp.sqrt(xp.where(t > t0, t - t0, 0.0))


def cusp(xp, t, a, t0, n):
    return a * xp.abs(t - t0) ** n


def root(xp, t, a, c):
    return xp.sqrt(a * t) + c


def spot(xp, at, a, x0, y0, w, c):
    x, y = at
    return a * xp.exp(-xp.sqrt((x - x0) ** 2 + (y - y0) ** 2) / w) + c


def saturating(xp, t, a, b, c):
    return a * xp.tanh(b * t) ** c


def logarithmic(xp, t, a, b):
    return a * xp.exp(b * xp.log(t))


def arcsine(xp, t, a, b):
    return a * xp.arcsin(b * t / 10.0)


def cone(xp, at, a, b, c):
    x, y = at
    return xp.sqrt((a * x) ** 2 + (b * y) ** 2) + c


@dataclass(frozen=True)
class Case:
    """A model for NumPy and for JAX, data, and a start in which it has no derivative somewhere."""

    model: Any
    x: Any
    true: list[float]
    p0: list[float]

    def of(self, xp):
        model = self.model
        names = model.__code__.co_varnames[2 : model.__code__.co_argcount]
        source = f"lambda at, {', '.join(names)}: model(xp, at, {', '.join(names)})"
        return eval(source, {"model": model, "xp": xp})

    def values(self, params):
        with np.errstate(all="ignore"):
            return self.model(np, self.x, *params)

    @property
    def y(self):
        y = self.values(self.true)
        return y + np.random.default_rng(3).normal(0.0, 0.02 * y.std(), y.size)

    def optimum(self):
        """SciPy's, by differences of three points."""

        def residuals(params):
            return np.nan_to_num(self.values(params) - self.y, nan=1e6)

        ends = [
            scipy.optimize.least_squares(
                residuals, start, "3-point", x_scale=x_scale, xtol=1e-15, ftol=1e-15, gtol=1e-15
            )
            for start, x_scale in ((self.true, "jac"), (self.p0, 1.0))
        ]
        return min(ends, key=lambda end: end.cost)


CASES = {
    "a stretched exponential": Case(stretched, X, [2.0, 3.0, 0.6], [1.0, 2.0, 0.9]),
    "a power": Case(power, X, [3.0, 0.6], [2.0, 0.8]),
    "a clipped power": Case(clipped, X, [2.0, 3.1, 0.7], [1.0, 2.5, 1.0]),
    "a root of where": Case(masked_root, X, [2.0, 3.1], [1.0, 2.5]),
    "a cusp": Case(cusp, X, [2.0, 4.0, 0.8], [1.5, X[150], 0.7]),
    "a root at zero": Case(root, X, [2.0, 0.3], [0.0, 0.0]),
    "a spot": Case(spot, GRID, [5.0, 9.3, 10.2, 2.5, 1.0], [5.0, 9.0, 10.0, 2.0, 0.5]),
    "a saturating power": Case(saturating, X, [2.0, 0.4, 0.7], [1.0, 0.5, 0.9]),
    "a logarithm": Case(logarithmic, X, [2.0, 0.5], [1.0, 1.0]),
    "an arcsine at one": Case(arcsine, X, [2.0, 0.9], [1.0, 1.0]),
    "a cone": Case(cone, GRID, [2.0, 0.5, 1.0], [1.0, 1.0, 0.0]),
}
STRETCHED = CASES["a stretched exponential"]


def lazy(array, chunks=77):
    return da.from_array(array, chunks=chunks)


def streamed(case):
    if isinstance(case.x, tuple):
        return tuple(map(lazy, case.x)), lazy(case.y)
    return lazy(case.x), lazy(case.y)


@pytest.mark.every(6)
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("how", ["in memory", "streamed"])
def test_scipys_optimum_is_reached(case, how):
    data = (case.x, case.y) if how == "in memory" else streamed(case)
    with pytest.warns(DerivativeWarning, match="differences") as given:
        result = fit(case.of(jnp), *data, p0=case.p0)
    expected = case.optimum()
    assert result.success
    assert result.n_points == case.y.size
    assert result.n_differenced > 0
    assert len(given) == 1
    assert result.cost <= expected.cost * (1.0 + 1e-6)
    np.testing.assert_array_less(np.abs(result.popt - expected.x), 0.01 * result.perr)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a clipped power", "a spot"])
def test_a_model_in_numpy(name):
    case = CASES[name]
    with pytest.warns(DerivativeWarning):
        result = fit(case.of(np), case.x, case.y, p0=case.p0)
    error = np.abs(result.popt - case.optimum().x)
    np.testing.assert_array_less(error, 0.01 * result.perr)


@pytest.mark.slow
def test_the_same_bits_with_any_number_of_threads_and_with_kept_rows():
    model = STRETCHED.of(jnp)
    x, y = np.tile(STRETCHED.x, 20), np.tile(STRETCHED.y, 20)
    results = []
    for threads, cache in ((1, False), (2, False), (5, False), (1, True)):
        # Rows of the upstream task are made anew each time, so that there is something to keep.
        data = [lazy(a, 611).map_blocks(np.positive, dtype=a.dtype) for a in (x, y)]
        scheduler = dask.config.set(scheduler="threads", num_workers=threads)
        with scheduler, pytest.warns(DerivativeWarning):
            results.append(
                fit(model, *data, p0=STRETCHED.p0, pilot=False, cache=cache, workflow=None)
            )
    for result in results:
        assert result.n_differenced == 20
        assert_same_result(result, results[0])
    with pytest.warns(DerivativeWarning):
        whole = fit(model, x, y, p0=STRETCHED.p0)
    np.testing.assert_array_less(np.abs(whole.popt - results[0].popt), 0.01 * whole.perr)
    assert whole.n_differenced == 20


@pytest.mark.parametrize("how", ["in memory", "streamed"])
def test_rows_that_are_left_out_are_not_counted(how):
    x, y, mask = STRETCHED.x, STRETCHED.y, STRETCHED.x == 0
    if how == "streamed":
        x, y, mask = map(lazy, (x, y, mask))
    result = fit(STRETCHED.of(jnp), x, y, p0=STRETCHED.p0, mask=mask)
    assert (result.n_differenced, result.n_skipped) == (0, 1)
    assert "derivatives" not in result.summary()


@pytest.mark.slow
def test_fixed_and_tied_parameters_and_a_robust_loss():
    def two(t, a1, a2, tau, b):
        return (a1 + a2) * jnp.exp(-((t / tau) ** b))

    x, y = STRETCHED.x, STRETCHED.y
    with pytest.warns(DerivativeWarning):
        tied = fit(two, x, y, p0=[1, 1, 2, 0.9], ties={"a2": {"a1": 3.0}})
    with pytest.warns(DerivativeWarning):
        alone = fit(STRETCHED.of(jnp), x, y, p0=STRETCHED.p0)
    np.testing.assert_allclose(tied.popt[2:], alone.popt[1:], rtol=1e-6)
    np.testing.assert_allclose(tied.popt[0], alone.popt[0] / 4.0, rtol=1e-6)
    with pytest.warns(DerivativeWarning):
        fixed = fit(STRETCHED.of(jnp), x, y, p0=STRETCHED.p0, fixed={"b": alone.popt[2]})
    np.testing.assert_allclose(fixed.popt, alone.popt, rtol=1e-5)
    with pytest.warns(DerivativeWarning):
        robust = fit(STRETCHED.of(jnp), x, y, p0=STRETCHED.p0, loss="soft_l1")
    np.testing.assert_array_less(np.abs(robust.popt - alone.popt), 2.0 * alone.perr)


@pytest.mark.slow
def test_a_start_on_a_bound_at_which_the_model_ends():
    case = CASES["a root at zero"]
    with pytest.warns(DerivativeWarning):
        result = fit(
            case.of(jnp), case.x, case.y, p0=case.p0, method="dogbox",
            bounds=([0, -np.inf], np.inf),
        )  # fmt: skip
    np.testing.assert_array_less(np.abs(result.popt - case.optimum().x), 0.01 * result.perr)


@pytest.mark.slow
def test_correlated_observations():
    x, y = STRETCHED.x[:60], STRETCHED.y[:60]
    covariance = 1e-4 * 0.5 ** np.abs(np.subtract.outer(np.arange(60.0), np.arange(60.0)))
    with pytest.warns(DerivativeWarning):
        result = fit(STRETCHED.of(jnp), x, y, p0=STRETCHED.p0, sigma=covariance)
    factor = np.linalg.cholesky(covariance)

    def residuals(params):
        with np.errstate(all="ignore"):
            return np.linalg.solve(factor, stretched(np, x, *params) - y)

    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    expected = scipy.optimize.least_squares(residuals, STRETCHED.true, "3-point", **tight)
    assert result.n_differenced == 1
    np.testing.assert_array_less(np.abs(result.popt - expected.x), 0.01 * result.perr)


@pytest.mark.slow
def test_bands_and_the_robust_covariance_are_finite():
    with pytest.warns(DerivativeWarning):
        result = fit(STRETCHED.of(jnp), STRETCHED.x, STRETCHED.y, p0=STRETCHED.p0)
    lower, upper = result.confidence_band()
    assert np.isfinite(upper - lower).all()
    # At t = 0 the curve is a.
    half = (upper - lower)[0] / 2
    a, error = result.popt[0], result.perr[0]
    np.testing.assert_allclose([(lower + upper)[0] / 2, half / error], [a, 1.966], rtol=1e-3)
    scores = stretched_slopes(STRETCHED.x, *result.popt) * result.residuals()
    expected = statistics.sandwich(
        result.pcov / result.reduced_chi2, scores @ scores.T, result.n_points, result.dof
    )
    np.testing.assert_allclose(result.robust_pcov(), expected, rtol=1e-6)


@pytest.mark.slow
def test_models_that_are_compared_are_named():
    line = {"line": lambda t, a, b: a + b * t, "stretched": STRETCHED.of(jnp)}
    with pytest.warns(DerivativeWarning, match="^model 'stretched': in 1 of 400 rows") as given:
        comparison = fit_models(
            line, STRETCHED.x, STRETCHED.y, p0=[[1, 0], STRETCHED.p0], pilot=False
        )
    assert len(given) == 1
    assert [comparison[i].n_differenced for i in range(2)] == [0, 1]


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    with pytest.warns(DerivativeWarning):
        return fit(
            STRETCHED.of(jnp), STRETCHED.x, STRETCHED.y, p0=STRETCHED.p0, checkpoint=directory
        )


def test_the_count_is_saved_and_told(saved, tmp_path):
    assert "derivatives         differences in 1 rows" in saved.summary()
    saved.save(tmp_path / "result.json")
    assert FitResult.load(tmp_path / "result.json").n_differenced == 1


def test_a_result_of_an_earlier_release_is_read(saved, tmp_path):
    path = tmp_path / "result.json"
    saved.save(path)
    envelope = json.loads(path.read_text())
    del envelope["result"]["n_differenced"]
    content = json.dumps(envelope["result"], allow_nan=False, sort_keys=True)
    envelope["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(json.dumps(envelope))
    result = FitResult.load(path)
    assert result.n_differenced == 0
    assert_same_result(result, saved)


def test_a_resumed_fit_counts_what_was_counted_before(saved):
    with pytest.warns(DerivativeWarning):
        resumed = fit(
            STRETCHED.of(jnp), STRETCHED.x, STRETCHED.y, p0=STRETCHED.p0,
            checkpoint=saved.checkpoint, resume=True,
        )  # fmt: skip
    assert_same_result(resumed, saved)
    assert resumed.n_differenced == 1


# What has no difference either


def island(t, a, b):
    return a * t + jnp.where(jnp.abs(t - X[123]) < 1e-9, jnp.sqrt(-((b - 1.0) ** 2)), b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "place"),
    [
        (X, r"in 1 rows, the first at index \(123,\), the model is finite"),
        (lazy(X), r"in 1 rows, the first at index \(123,\), in block \(1,\), which is y\[77:154\]"),
        (X.reshape(20, 20), r"the first at index \(6, 3\), the model"),
    ],
    ids=["in memory", "streamed", "two dimensions"],
)
def test_the_row_is_named_where_no_difference_can_be_taken(x, place):
    with pytest.raises(InputError, match=place) as raised:
        fit(island, x, x, p0=[1, 1])
    assert "mask" in str(raised.value)
    with pytest.raises(InputError, match=f"^model 'island': .*{place}"):
        fit_models({"island": island}, x, x, p0=[[1, 1]])


def test_a_row_that_is_left_out_needs_no_difference():
    result = fit(island, X, X, p0=[0.5, 1], mask=X[123] == X)
    np.testing.assert_allclose(result.popt, [1.0, 0.0], atol=1e-9)


# Models that are called as they are


def untraceable(function):
    def model(x, *params):
        return function(np, x, *map(float, params))

    return model


def test_a_model_that_is_called_as_it_is_takes_the_side_that_is_finite():
    case = CASES["an arcsine at one"]
    with np.errstate(invalid="ignore"):
        popt, pcov = curve_fit(untraceable(arcsine), case.x, case.y, p0=case.p0)
    np.testing.assert_array_less(np.abs(popt - case.optimum().x), 0.01 * np.sqrt(np.diagonal(pcov)))


def test_its_derivatives_of_the_users_own_are_replaced_within_the_bounds():
    called = []

    def model(x, tau, b):
        called.append((float(tau), float(b)))
        return (x / float(tau)) ** float(b)

    def slopes(x, tau, b):
        with np.errstate(all="ignore"):
            u = (x / float(tau)) ** float(b)
            return np.array([-u * float(b) / float(tau), u * np.log(x / float(tau))]).T

    case = CASES["a power"]
    bounds = ([1.0, 0.1], [2.9, 5.0])
    with pytest.warns(DerivativeWarning):
        popt, _ = curve_fit(model, case.x, case.y, p0=case.p0, bounds=bounds, jac=slopes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = scipy.optimize.curve_fit(
            lambda x, tau, b: (x / tau) ** b, case.x, case.y, p0=case.p0, bounds=bounds,
            xtol=1e-14, ftol=1e-14, gtol=1e-14,
        )  # fmt: skip
    np.testing.assert_allclose(popt, expected, rtol=1e-5)
    points = np.array(called)
    assert (points >= np.array(bounds[0])).all()
    assert (points <= np.array(bounds[1])).all()
