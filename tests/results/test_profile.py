"""Profiles and their intervals: the definition solved by SciPy, closed forms, and coverage."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, least_squares

from nlsq_dask import (
    ConvergenceWarning,
    CovarianceWarning,
    FitResult,
    InputError,
    PrecisionWarning,
    Profile,
    fit,
)
from tests.support.counting_store import stored


def line(x, a, b):
    return a + b * x


def slope(x, b):
    return b * x


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def growth(x, a, b):
    return a * (1.0 - np.exp(-b * x))


def growth_by_time(x, a, time):
    return a * (1.0 - np.exp(-x / time))


def saturating(x, a, b):
    """Nearly a step for a large b, which the data do not bound from above."""
    return a * (1.0 - np.exp(-b * x))


def two_wells(x, t):
    return np.where(x > 0.5, 0.3 * (t - 1.0), t * t - 1.0)


def logarithm(x, a, b):
    return np.log(a + b * x)


X = np.linspace(0.0, 2.0, 40)
Y = 2.5 * np.exp(-0.9 * X) + 0.5 + np.random.default_rng(1).normal(0.0, 0.2, X.size)

# Biochemical oxygen demand: Bates & Watts, 1988, appendix A4.1.
DAYS = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
DEMAND = np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])


def by_definition(model, x, y, result, level):
    """Ends where ``(S(θ_j) - S) / s² = t²``, found by a root search over fits of the others.

    lmfit.conf_interval compares ``F = (S(θ_j) / S - 1) dof`` with the quantile of F(1, dof), which
    is t².
    """
    if result.absolute_sigma:
        variance, quantile = 1.0, stats.norm.ppf(0.5 + level / 2)
    else:
        variance, quantile = result.reduced_chi2, stats.t.ppf(0.5 + level / 2, result.dof)
    ends = np.empty((len(result.names), 2))
    for j, (best, error) in enumerate(zip(result.popt, result.perr, strict=True)):
        others = np.delete(result.popt, j)

        def excess(value, j=j, others=others):
            def residuals(free):
                return np.asarray(model(x, *np.insert(free, j, value))) - y

            found = least_squares(residuals, others, xtol=1e-12, ftol=1e-12, gtol=1e-12)
            rise = max(2.0 * found.cost - result.chi2, 0.0)
            return np.sqrt(rise / variance) - quantile

        for side in (-1, 1):
            far = 1.5
            while excess(best + side * far * error) < 0.0:
                far *= 1.5
            ends[j, (side + 1) // 2] = brentq(
                excess, best, best + side * far * error, xtol=1e-4 * error
            )
    return ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "x", "y", "p0"),
    [(decay, X, Y, [1, 1, 0]), (growth, DAYS, DEMAND, [20, 0.5])],
    ids=["decay", "BOD"],
)
def test_the_intervals_are_those_of_the_definition(model, x, y, p0):
    result = fit(model, x, y, p0)
    ends = result.confidence_intervals(method="profile")
    expected = by_definition(model, x, y, result, 0.95)
    np.testing.assert_array_less(np.abs(ends - expected) / result.perr[:, None], 3e-3)
    # They are far from symmetric here.
    symmetric = result.confidence_intervals()
    assert np.max(np.abs(ends - symmetric) / result.perr[:, None]) > 0.5


@pytest.mark.slow
def test_a_known_sigma_takes_the_normal_quantile():
    result = fit(growth, DAYS, DEMAND / 2.0, [10, 0.5], sigma=1.0, absolute_sigma=True)
    ends = result.confidence_intervals(0.9, method="profile")
    expected = by_definition(growth, DAYS, DEMAND / 2.0, result, 0.9)
    np.testing.assert_array_less(np.abs(ends - expected) / result.perr[:, None], 3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", [line, slope])
def test_a_linear_model_has_symmetric_intervals_and_a_straight_profile(model):
    result = fit(model, X, Y)
    ends = result.confidence_intervals(0.99, method="profile")
    np.testing.assert_allclose(ends, result.confidence_intervals(0.99), rtol=1e-7)
    profile = result.profile("b", 0.99)
    assert isinstance(profile, Profile)
    assert profile.name == "b"
    assert profile.n_passes == 1
    assert profile.limits == (-np.inf, np.inf)
    best, error = result.popt[-1], result.perr[-1]
    np.testing.assert_allclose(profile.tau, (profile.values - best) / error, atol=1e-6)
    assert best in profile.values
    np.testing.assert_array_equal(profile.params[:, -1], profile.values)
    if model is line:  # the line goes on through the mean of the rows
        means = profile.params @ [1.0, X.mean()]
        np.testing.assert_allclose(means, Y.mean(), rtol=1e-9)


@pytest.mark.slow
def test_the_intervals_do_not_depend_on_the_parameters_chosen():
    rate = fit(growth, DAYS, DEMAND, [20, 0.5]).confidence_intervals(0.9, method="profile")
    time = fit(growth_by_time, DAYS, DEMAND, [20, 2.0]).confidence_intervals(0.9, "profile")
    np.testing.assert_allclose(time[0], rate[0], rtol=2e-3)
    np.testing.assert_allclose(1.0 / time[1, ::-1], rate[1], rtol=2e-3)


@pytest.mark.slow
def test_all_points_of_streamed_data_share_a_few_readings(tmp_path):
    rng = np.random.default_rng(2)
    x = rng.uniform(0.0, 2.0, 4000)
    y = 2.5 * np.exp(-0.9 * x) + 0.5 + rng.normal(0.0, 0.5, x.size)
    xs, ys = stored(tmp_path / "x", x, 1000), stored(tmp_path / "y", y, 1000)
    result = fit(decay, xs, ys, [1, 1, 0], cache=False)
    ys.store.clear_counts()

    ends = result.confidence_intervals(method="profile")

    read = set(ys.store.reads.values())
    assert read == {result.profile("a").n_passes}  # not read again for what is known
    assert max(read) <= 6
    assert set(ys.store.reads.values()) == read
    in_memory = fit(decay, x, y, [1, 1, 0])
    expected = in_memory.confidence_intervals(method="profile")
    np.testing.assert_allclose(ends, expected, rtol=1e-3)


@pytest.mark.slow
def test_an_interval_ends_at_a_bound_that_the_profile_meets():
    free = fit(growth, DAYS, DEMAND, [20, 0.5])
    low, high = free.confidence_intervals(method="profile")[1]
    for bounds, expected in [((0.3, 1.0), (0.3, 1.0)), ((0.0, 9.0), (low, high))]:
        result = fit(growth, DAYS, DEMAND, [20, 0.5], bounds={"b": bounds})
        profile = result.profile("b")
        assert profile.limits == bounds
        assert profile.values.min() >= bounds[0]
        assert profile.values.max() <= bounds[1]
        found = result.confidence_intervals(method="profile")[1]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
def test_the_profile_of_a_parameter_at_its_bound_has_one_side():
    result = fit(line, X, Y, bounds={"b": (-0.5, np.inf)})
    assert result.active_mask.tolist() == [0, -1]
    low, high = result.confidence_intervals(method="profile")[1]
    assert low == -0.5
    # The sum of squares of a line is a parabola, whose vertex lies outside of the bound.
    whole = fit(line, X, Y)
    unit = whole.perr[1] / np.sqrt(whole.reduced_chi2)
    steps = [(b - whole.popt[1]) / unit for b in (-0.5, high)]
    rise = (steps[1] ** 2 - steps[0] ** 2) / result.reduced_chi2
    assert np.sqrt(rise) == pytest.approx(stats.t.ppf(0.975, result.dof), rel=1e-3)


@pytest.mark.slow
def test_an_interval_is_infinite_where_the_sum_of_squares_does_not_rise():
    x = np.array([0.5, 1.0, 1.5, 2.0, 3.0])
    y = np.array([0.96, 1.03, 0.98, 1.02, 1.01])
    result = fit(saturating, x, y, [1.0, 3.0])
    low, high = result.confidence_intervals(method="profile")[1]
    assert 0.0 < low < result.popt[1]
    assert high == np.inf
    said = "inf]; the symmetric one ends where the sum of squares has not risen so far"
    assert said in result.summary()
    profile = result.profile("b")
    assert profile.tau[-1] < stats.t.ppf(0.975, result.dof)


@pytest.mark.slow
def test_values_end_where_the_model_is_no_longer_finite():
    x = np.linspace(0.0, 1.0, 8)
    y = np.log(0.1 + x) + np.array([0.4, -0.5, 0.3, -0.2, 0.5, -0.4, 0.3, -0.4])
    result = fit(logarithm, x, y, [0.1, 1.0])
    low, high = result.confidence_intervals(0.99, method="profile")[0]
    # The logarithm of the first row, log(a), bounds a by 0.
    assert 0.0 <= low < result.popt[0] < high
    assert low < result.popt[0] - 0.5 * result.perr[0]


@pytest.mark.slow
def test_fixed_and_tied_parameters():
    result = fit(decay, X, Y, [1, 1, 0.5], fixed={"c": 0.5}, ties={"a": {"b": -2.0}})
    ends = result.confidence_intervals(method="profile")
    np.testing.assert_array_equal(ends[2], [0.5, 0.5])
    np.testing.assert_allclose(ends[0], -2.0 * ends[1, ::-1])
    tied, leader = result.profile("a"), result.profile("b")
    np.testing.assert_allclose(tied.tau, -leader.tau[::-1])
    np.testing.assert_array_equal(tied.params[:, 0], tied.values)
    assert (np.diff(tied.values) > 0.0).all()
    with pytest.raises(InputError, match="c is fixed, so that it has no profile: fit without c"):
        result.profile("c")
    several = fit(decay, X, Y, [1, 1, 0], ties={"c": {"a": 0.1, "b": 0.2}})
    with pytest.raises(InputError, match="c is tied to several free parameters"):
        several.confidence_intervals(method="profile")
    assert several.profile("a").interval(1.0)[0] < several.popt[0]


@pytest.mark.slow
def test_a_matrix_of_ties_is_profiled_by_its_parameters():
    matrix = [[2.0, 0.0], [0.0, 1.0], [0.0, -0.5]]
    by_matrix = fit(decay, X, Y, [2, 1, 0], ties=matrix).confidence_intervals(method="profile")
    by_name = fit(decay, X, Y, [2, 1, 0], ties={"c": {"b": -0.5}})
    np.testing.assert_allclose(by_matrix, by_name.confidence_intervals(method="profile"), rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_intervals_of_a_strongly_curved_model_cover_as_often_as_they_say():
    rng = np.random.default_rng(5)
    truth = np.array([20.0, 0.5])
    means = np.asarray(growth(DAYS, *truth))
    covered, n = np.zeros((2, 2)), 60
    for _ in range(n):
        y = means + rng.normal(0.0, 1.6, DAYS.size)
        result = fit(growth, DAYS, y, truth, sigma=1.6, absolute_sigma=True)
        for i, method in enumerate(("symmetric", "profile")):
            low, high = result.confidence_intervals(0.9, method).T
            covered[i] += (low <= truth) & (truth <= high)
    # Three standard deviations of a binomial share of 0.9 around it.
    assert (np.abs(covered[1] / n - 0.9) < 3.0 * np.sqrt(0.9 * 0.1 / n)).all()


@pytest.mark.slow
def test_the_summary_says_where_the_intervals_differ_once_there_are_profiles():
    result = fit(decay, X, Y, [1, 1, 0])
    assert "profile" not in result.summary()
    ends = result.confidence_intervals(method="profile")
    result.profile("c", 0.5)  # what reaches less far takes nothing away
    remarks = result.summary().split("Remarks")[1]
    symmetric = result.confidence_intervals()
    half = (symmetric[:, 1] - symmetric[:, 0]) / 2.0
    differs = np.abs(ends - symmetric).max(axis=1) > 0.1 * half
    assert differs.tolist() == [True, False, True]
    for name, said in zip(result.names, differs, strict=True):
        assert (f"{name}: the profile interval is [" in remarks) == said
    assert "profile" not in fit(line, X, Y).summary()


def test_profiles_outlive_the_data_but_are_not_made_without_them(tmp_path):
    result = fit(line, X, Y)
    ends = result.confidence_intervals(method="profile")
    kept = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(kept.confidence_intervals(method="profile"), ends)
    with pytest.raises(
        InputError, match=r"profile\(\) reads the data of the fit, which are not kept"
    ):
        kept.profile("a", 0.5)
    result.save(tmp_path / "line.json")
    loaded = FitResult.load(tmp_path / "line.json", model=line)
    with pytest.raises(InputError, match=r"method=\"profile\"\) reads the data of the fit"):
        loaded.confidence_intervals(method="profile")


def test_what_the_fit_warned_of_is_not_said_again():
    y = (1e16 * Y).astype(np.int64)
    with pytest.warns(PrecisionWarning):
        result = fit(line, X, y, [1e16, -1e16])
    ends = result.confidence_intervals(method="profile")
    np.testing.assert_allclose(ends, result.confidence_intervals(), rtol=1e-6)


@pytest.mark.slow
def test_what_has_no_profile_says_why():
    result = fit(line, X, Y)
    with pytest.raises(InputError, match="method = 'exact' is unknown: choose one of"):
        result.confidence_intervals(method="exact")
    with pytest.raises(InputError, match="name names d, but the model's parameters are a and b"):
        result.profile("d")
    with pytest.raises(InputError, match="level = 2"):
        result.profile("a", 2)
    with pytest.raises(InputError, match="loss = 'huber' has no level of confidence"):
        fit(line, X, Y, loss="huber", f_scale=0.5).profile("a")
    with pytest.warns(ConvergenceWarning):
        stopped = fit(decay, X, Y, [9, 9, 9], max_nfev=1)
    with pytest.raises(InputError, match="which this fit did not find"):
        stopped.profile("a")
    with pytest.raises(InputError, match="variance, which is 0"):
        fit(slope, DAYS, 0.0 * DAYS).profile("b")
    with pytest.raises(InputError, match="variance, which is 0 or rounding"):
        fit(decay, X, decay(X, 2.5, 1.3, 0.5), [1, 1, 0]).profile("b")
    with pytest.warns(CovarianceWarning):
        exact = fit(line, X[:2], Y[:2])
    with pytest.raises(InputError, match="2 rows and 2 free parameters leave no degrees"):
        exact.profile("a")


@pytest.mark.slow
def test_a_profile_that_finds_a_lower_minimum_says_where():
    x, y = np.array([0.0, 1.0]), np.zeros(2)
    narrow, wide = (
        fit(two_wells, x, y, [-1.2], sigma=sigma, absolute_sigma=True) for sigma in (0.1, 0.9)
    )
    assert narrow.popt[0] == pytest.approx(wide.popt[0], rel=1e-3)
    low, high = narrow.confidence_intervals(method="profile")[0]
    assert low < narrow.popt[0] < high < 0.0
    with pytest.raises(InputError, match=r"came to a cost of .* fit again with p0 = \[") as error:
        wide.profile("t")
    better = fit(two_wells, x, y, [float(str(error.value).split("[")[1][:-2])])
    assert better.popt[0] == pytest.approx(1.0, rel=1e-3)
