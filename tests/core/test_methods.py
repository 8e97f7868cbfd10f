"""All methods: SciPy's optimum, the certified digits, few passes, and one state."""

from __future__ import annotations

import pickle
import warnings
from contextlib import suppress
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult, least_squares

from nlsq_dask._errors import InputError, InputTypeError, Status
from nlsq_dask.core.distance import Remainder, distance_to_optimum_sigma, remainder
from nlsq_dask.core.factor import Basis, factorize
from nlsq_dask.core.minimize import advance, finish, start
from nlsq_dask.core.normal_equations import Moments, NormalEquations
from nlsq_dask.core.questions import answered
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import Solution, SolverOptions
from tests.core.test_trf_bounds import random_problem
from tests.support import nist
from tests.support.dense_engine import DenseEngine, FloatArray, model_functions
from tests.support.engines import minimized

PROBLEMS = nist.load_all()
METHODS = ("trf", "lm", "dogbox")
ACCURATE = SolverOptions(ftol=1e-12, xtol=1e-12, gtol=None, max_nfev=2000)

X = np.linspace(0.0, 3.0, 50)
Y = 2.0 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.random.default_rng(7).normal(size=X.size)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def decay_engine() -> DenseEngine:
    return DenseEngine(*model_functions(decay, X, Y), Y)


def free_of(size: int) -> tuple[FloatArray, FloatArray]:
    return np.full(size, -np.inf), np.full(size, np.inf)


def solve(name: str, near: bool, options: SolverOptions) -> tuple[Solution, DenseEngine]:
    problem = PROBLEMS[name]
    functions = model_functions(problem.model, problem.x, problem.y)
    engine = DenseEngine(*functions, problem.y)
    p0 = problem.starts[near]
    return minimized(engine, p0, *free_of(p0.size), options), engine


def by_scipy(name: str, near: bool, method: str) -> OptimizeResult:
    problem = PROBLEMS[name]
    residuals, jacobian = model_functions(problem.model, problem.x, problem.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rejected trials
        return least_squares(
            residuals, problem.starts[near], jacobian, method=method, x_scale="jac", max_nfev=2000
        )


# Certified problems; those of "trf" are in test_trf_nist.py


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("method", ["lm", "dogbox"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_certified_digits_from_the_near_start(name: str, method: str):
    problem = PROBLEMS[name]
    solution, engine = solve(name, True, replace(ACCURATE, method=method))
    assert solution.status.success
    assert nist.certified_digits(solution.params, problem.params) >= 6.0
    assert engine.n_passes == solution.nfev


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("near", [False, True])
def test_residuals_far_below_the_data_do_not_stall(method: str, near: bool):
    """Of Lanczos3 the cost knows 11 digits, which is 6 of the parameters; the gradient more."""
    problem = PROBLEMS["Lanczos3"]
    solution, _ = solve("Lanczos3", near, replace(ACCURATE, method=method))
    # From afar the terms may come out in another order.
    order = np.argsort(solution.params[1::2])
    params = solution.params.reshape(3, 2)[order].ravel()
    assert nist.certified_digits(params, problem.params) >= 7.0


# Where the far start leads is decided by the details of the first steps.
NEAR_LM = pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "Lanczos1"])


@pytest.mark.quick(3)
@NEAR_LM
def test_lm_takes_about_the_path_of_minpack(name: str):
    oracle = by_scipy(name, True, "lm")
    solution, _ = solve(name, True, SolverOptions(method="lm", max_nfev=2000))
    assert solution.cost == pytest.approx(oracle.cost, rel=1e-7)
    assert solution.nfev == pytest.approx(oracle.nfev, rel=0.05, abs=2)
    assert solution.status in (Status(oracle.status), Status.COST, Status.GRADIENT)


@NEAR_LM
def test_dogbox_ends_where_that_of_scipy_does(name: str):
    oracle = by_scipy(name, True, "dogbox")
    solution, _ = solve(name, True, SolverOptions(method="dogbox", max_nfev=2000))
    assert solution.cost == pytest.approx(oracle.cost, rel=1e-6)
    # Nelson's parameters are of sizes 1, 1e-9 and 0.1; steepest descent is scaled here.
    assert solution.nfev <= oracle.nfev + (15 if name == "Nelson" else 3)


# Bounds


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    p=st.integers(1, 6),
    extra_rows=st.integers(0, 25),
    noise=st.sampled_from([0.01, 1.0]),
)
def test_dogbox_finds_the_optimum_of_scipy_within_bounds(seed, p, extra_rows, noise):
    problem = random_problem(seed, p, p + 3 + extra_rows, noise)
    box = Box(problem.lower, problem.upper)
    engine = DenseEngine(problem.residuals, problem.jacobian)
    options = SolverOptions(method="dogbox", max_nfev=1000)
    solution = minimized(engine, problem.p0, problem.lower, problem.upper, options)
    assert all(box.contains(point) for point in engine.points)
    assume(solution.status.success)
    costs = [
        least_squares(
            problem.residuals,
            problem.p0,
            problem.jacobian,
            bounds=(problem.lower, problem.upper),
            x_scale="jac",
            method=method,
        ).cost
        for method in ("trf", "dogbox")
    ]
    # The problem has several optima: where the other methods differ, either may be found.
    assume(costs[0] == pytest.approx(costs[1], rel=1e-5))
    assert solution.cost <= costs[0] * (1 + 1e-5)


def test_dogbox_puts_parameters_on_their_bounds():
    lower, upper = np.array([0.0, 0.0, -1.0]), np.array([1.5, np.inf, 9.0])
    options = SolverOptions(ftol=1e-14, xtol=1e-14, gtol=None, method="dogbox")
    solution = minimized(decay_engine(), np.array([0.0, 4.0, 0.0]), lower, upper, options)
    assert solution.status.success
    assert solution.params[0] == 1.5
    assert solution.active_mask.tolist() == [1, 0, 0]
    assert solution.gradient[0] < 0.0
    options = replace(options, method="trf")
    trf = minimized(decay_engine(), np.array([0.5, 4.0, 0.0]), lower, upper, options)
    assert solution.params == pytest.approx(trf.params, rel=1e-5)
    assert solution.distance == pytest.approx(0.0, abs=1e-2)
    assert trf.distance == pytest.approx(0.0, abs=1e-2)


def test_dogbox_ends_at_once_where_all_parameters_are_held():
    corner = np.array([0.0, 0.0])
    engine = DenseEngine(lambda p: p + 1.0, lambda p: np.eye(2))
    options = SolverOptions(method="dogbox", gtol=None)
    solution = minimized(engine, corner, corner, corner + 1.0, options)
    assert (solution.status, engine.n_passes) == (Status.GRADIENT, 1)
    assert solution.params.tolist() == [0.0, 0.0]


def test_lm_refuses_bounds():
    options = SolverOptions(method="lm")
    engine = decay_engine()
    _, upper = free_of(3)
    with pytest.raises(InputError, match="Method 'lm' only works for unconstrained problems"):
        minimized(engine, np.ones(3), np.zeros(3), upper, options)
    assert engine.n_passes == 0
    with pytest.raises(InputError, match="method = 'newton'"):
        SolverOptions(method="newton")


@pytest.mark.parametrize("method", METHODS)
def test_fewer_rows_than_parameters_are_refused(method):
    two_rows = DenseEngine(*model_functions(decay, X[:2], Y[:2]))
    with pytest.raises(InputTypeError, match="parameters=3 .* data points=2"):
        minimized(two_rows, np.ones(3), *free_of(3), SolverOptions(method=method))


def test_lm_shrinks_from_a_trial_that_is_not_finite():
    engine = DenseEngine(*model_functions(lambda x, a: jnp.log(a - x), X, np.log(4.0 - X)))
    options = SolverOptions(method="lm")
    solution = minimized(engine, np.array([100.0]), *free_of(1), options)
    assert any(not np.isfinite(record.cost) for record in solution.history)
    assert solution.params == pytest.approx([4.0], rel=1e-6)


# The state


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_from_any_state(method: str):
    p0, options = np.array([20.0, 9.0, -4.0]), SolverOptions(method=method)
    engine, box = decay_engine(), Box(*free_of(3))
    whole = minimized(engine, p0, box.lower, box.upper, options)
    state = answered(start(p0, box, options), engine.ask)
    while state.status is None:
        state = pickle.loads(pickle.dumps(state))
        state = answered(advance(state, box, options), engine.ask)
    resumed = answered(finish(state, box, options), engine.ask)
    assert resumed.history == whole.history
    assert resumed.params.tobytes() == whole.params.tobytes()
    assert resumed.r_factor.tobytes() == whole.r_factor.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_moments_are_those_of_the_best_point(method: str):
    class Counting(DenseEngine):
        """The moment of a point is its number."""

        def sums(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
            sums = super().sums(params, basis)
            return replace(sums, moments=Moments(float(self.n_passes)), n_skipped=5)

    engine = Counting(*model_functions(decay, X, Y))
    options = SolverOptions(method=method)
    solution = minimized(engine, np.array([20.0, 9.0, -4.0]), *free_of(3), options)
    best = int(solution.moments.abs_residuals) - 1
    assert engine.points[best].tolist() == solution.params.tolist()
    assert solution.n_skipped == 5


@pytest.mark.parametrize("method", METHODS)
def test_an_observer_may_end_the_search(method: str):
    engine = decay_engine()

    def observer(state):
        if state.nfev == 3:
            raise StopIteration

    p0, options = np.array([1.0, 4.0, 0.0]), SolverOptions(method=method)
    solution = minimized(engine, p0, *free_of(3), options, observer)
    assert solution.status is Status.CALLBACK == -2
    assert not solution.status.success
    assert solution.nfev == 3 == len(solution.history)
    assert solution.cost == min(record.cost for record in solution.history)


# Distance from the optimum


def test_distance_is_that_of_the_linear_problem():
    rng = np.random.default_rng(2)
    jac = rng.normal(size=(40, 4)) * [1e-3, 1.0, 1e3, 1.0]
    y, theta = rng.normal(size=40), rng.normal(size=4)
    optimum = np.linalg.lstsq(jac, y, rcond=None)[0]
    apart, r = theta - optimum, jac @ theta - y
    s2 = 0.7
    expected = np.sqrt(apart @ (jac.T @ jac / s2) @ apart)
    sums = NormalEquations(jac.T @ jac, jac.T @ r, 0.5 * float(r @ r), float(r @ r), 40)
    linear = factorize(sums, Basis.identity(4))
    left = remainder(linear, theta, Box(*free_of(4)), 40)
    assert distance_to_optimum_sigma(left, s2) == pytest.approx(expected, rel=1e-9)
    assert left.reduction == pytest.approx(0.5 * (r @ r) - 0.5 * np.sum((jac @ optimum - y) ** 2))
    # On a bound that the gradient points beyond, a parameter takes no part.
    g = jac.T @ r
    lower = np.where((np.arange(4) == 2) & (g > 0), theta, -np.inf)
    upper = np.where((np.arange(4) == 2) & (g < 0), theta, np.inf)
    rest = np.delete(jac, 2, axis=1)
    held = 0.5 * (rest.T @ r) @ np.linalg.solve(rest.T @ rest, rest.T @ r)
    assert remainder(linear, theta, Box(lower, upper), 40).reduction == pytest.approx(held)


@pytest.mark.parametrize(("length", "variance", "sigma"), [(0, 0, 0), (1, 0, np.inf), (2, 4, 1)])
def test_distance_of_an_exact_fit(length: float, variance: float, sigma: float):
    left = Remainder(0.5 * length**2, float(length))
    assert distance_to_optimum_sigma(left, float(variance)) == sigma


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["DanWood", "Gauss1", "Kirby2", "Misra1a", "Rat42", "Roszman1"])
def test_the_statistical_criterion_saves_the_pass_that_confirms(name: str, method: str):
    options = SolverOptions(method=method, gtol=None)
    plain, _ = solve(name, True, options)
    solution, engine = solve(name, True, replace(options, stat_tol=0.01))
    assert solution.status is Status.STATISTICAL
    assert engine.n_passes == solution.nfev < plain.nfev
    assert solution.distance < 0.01
    deviations = PROBLEMS[name].standard_deviations
    assert np.all(np.abs(solution.params - PROBLEMS[name].params) < 0.02 * deviations)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_optimum_costs_one_pass(method: str):
    options = SolverOptions(method=method, gtol=None)
    optimum = minimized(decay_engine(), np.array([1.0, 1.0, 0.0]), *free_of(3), options).params
    engine = decay_engine()
    again = minimized(engine, optimum, *free_of(3), replace(options, stat_tol=0.01))
    assert (again.status, engine.n_passes) == (Status.STATISTICAL, 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_loose_tolerances_wait_for_the_distance(method: str):
    """With many rows the cost changes little where the estimates still move by many errors."""
    x = np.linspace(0.0, 3.0, 200_000)
    y = 2.0 * np.exp(-1.3 * x) + 0.5 + np.random.default_rng(1).normal(size=x.size)
    engine = DenseEngine(*model_functions(decay, x, y), y)
    loose = SolverOptions(method=method, ftol=1e-3, xtol=1e-1, gtol=None)
    p0 = np.array([1.6, 1.1, 0.7])
    anywhere = replace(loose, arrival_tol=np.inf)
    early = minimized(engine, p0, *free_of(3), anywhere)
    waited = minimized(engine, p0, *free_of(3), replace(loose, arrival_tol=1e-2))
    assert early.distance > 1e-2 > waited.distance
    assert waited.status.success


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("column", [1e-160, 1e150])
def test_sums_near_the_largest_number_overflow_in_silence(method, column):
    """Products of the sums have no float64. A step that has none is not taken."""
    engine = Extreme(column)
    options = SolverOptions(method=method, max_nfev=20)
    with suppress(InputError):
        solution = minimized(engine, np.array([1.0, 2.0]), *free_of(2), options)
        assert solution.status is not None and not solution.status.success


class Extreme:
    """Answers with sums in which the residuals are large and the columns are long or short."""

    def __init__(self, column):
        self.column = column

    def ask(self, question):
        gram = np.diag([self.column**2, 1.0])
        gradient = 1e150 * np.array([min(self.column, 1e120), 1e80])
        cost = 1e300 / (1.0 + np.abs(question.params).sum())
        return NormalEquations(gram, gradient, cost, 2.0 * cost, 100, moments=Moments(0, 1, 1, 1))
