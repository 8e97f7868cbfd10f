"""Random problems with random bounds: the same optimum, by the same path, as SciPy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult, least_squares

from nlsq_dask.core.minimize import ACTIVE_REACH
from nlsq_dask.core.solver_state import Solution, SolverOptions
from tests.support.dense_engine import DenseEngine, FloatArray
from tests.support.engines import minimized


@dataclass(frozen=True)
class RandomProblem:
    """``z + 0.3 sin z`` plus a quadratic, of ``z = A θ``, with columns of very different units."""

    matrix: FloatArray
    bend: FloatArray
    units: FloatArray
    y: FloatArray
    lower: FloatArray
    upper: FloatArray
    p0: FloatArray

    def residuals(self, params: FloatArray) -> FloatArray:
        z = self.matrix @ params
        return z + 0.3 * np.sin(z) + 0.02 * (self.bend @ (params / self.units)) ** 2 - self.y

    def jacobian(self, params: FloatArray) -> FloatArray:
        z = self.matrix @ params
        bent = 0.04 * (self.bend @ (params / self.units))
        return self.matrix * (1 + 0.3 * np.cos(z))[:, None] + bent[:, None] * self.bend / self.units


def random_problem(seed: int, p: int, n: int, noise: float) -> RandomProblem:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, p)) * 10.0 ** rng.uniform(-3, 3, p)
    units = 1.0 / np.linalg.norm(matrix, axis=0)
    truth = 5.0 * rng.normal(size=p) * units
    # Some of the bounds exclude the optimum without bounds, and half of the parameters have none.
    lower = truth + units * rng.uniform(-6, 2, p)
    upper = lower + units * rng.uniform(0.01, 9, p)
    lower[rng.random(p) < 0.5] = -np.inf
    upper[rng.random(p) < 0.5] = np.inf
    unfitted = RandomProblem(
        matrix=matrix,
        bend=0.5 * rng.normal(size=(n, p)),
        units=units,
        y=np.zeros(n),
        lower=lower,
        upper=upper,
        p0=np.clip(rng.normal(size=p) * units, lower, upper),
    )
    y = unfitted.residuals(truth) + noise * rng.normal(size=n)
    return replace(unfitted, y=y)


def solve_by_scipy(problem: RandomProblem) -> OptimizeResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return least_squares(
            problem.residuals,
            problem.p0,
            problem.jacobian,
            bounds=(problem.lower, problem.upper),
            x_scale="jac",
            tr_solver="exact",
        )


def solve(problem: RandomProblem) -> tuple[Solution, DenseEngine]:
    engine = DenseEngine(problem.residuals, problem.jacobian)
    return minimized(engine, problem.p0, problem.lower, problem.upper, SolverOptions()), engine


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    p=st.integers(1, 6),
    extra_rows=st.integers(0, 25),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_same_optimum_as_scipy(seed: int, p: int, extra_rows: int, noise: float):
    problem = random_problem(seed, p, p + extra_rows, noise)
    oracle = solve_by_scipy(problem)
    assume(oracle.success)
    solution, engine = solve(problem)
    assert solution.status.success
    # An exact fit stops anywhere below the tolerances.
    negligible = 1e-14 * float(problem.y @ problem.y)
    assert solution.cost <= oracle.cost * (1 + 1e-6) + negligible
    # SciPy's bounds are active at another distance.
    deviation = (2.0 * solution.cost / max(extra_rows, 1)) ** 0.5
    reach = ACTIVE_REACH * deviation / np.linalg.norm(solution.r_factor, axis=0)
    room = np.minimum(solution.params - problem.lower, problem.upper - solution.params)
    assert np.all((solution.active_mask == oracle.active_mask) | (room <= reach))
    for point in engine.points:
        assert np.all((problem.lower < point) & (point < problem.upper))


@pytest.mark.thorough
def test_a_path_as_short_as_that_of_scipy():
    """The scaling for the bounds has no units, unlike SciPy's; it takes no longer."""
    problems = [random_problem(seed, 1 + seed % 6, 8 + seed % 23, 0.1) for seed in range(250)]
    ours = [solve(problem)[0].nfev for problem in problems]
    theirs = [solve_by_scipy(problem).nfev for problem in problems]
    assert sum(ours) <= sum(theirs)
    assert np.mean(np.abs(np.subtract(ours, theirs)) > 2) <= 0.1


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("power", [-12, 9])
def test_the_path_knows_no_units(power: int):
    """With the units of y, of the parameters and of their bounds all else is a power of two."""
    unit, scale = 2.0**power, 2.0 ** (3 * power)
    for seed in range(40):
        problem = random_problem(seed, 1 + seed % 6, 8 + seed % 23, 0.1)
        other = replace(
            problem,
            matrix=problem.matrix * unit,
            lower=problem.lower / unit,
            upper=problem.upper / unit,
            p0=problem.p0 / unit,
            units=problem.units / unit,
        )
        engine = DenseEngine(
            lambda p, other=other, scale=scale: scale * other.residuals(p),
            lambda p, other=other, scale=scale: scale * other.jacobian(p),
        )
        expected, _ = solve(problem)
        found = minimized(engine, other.p0, other.lower, other.upper, SolverOptions())
        assert found.nfev == expected.nfev
        assert found.status is expected.status
        assert found.params == pytest.approx(expected.params / unit, rel=1e-9)


@pytest.mark.parametrize("scales", [[1.0, 1.0], [1e-2, 10.0]])
def test_given_scales_take_the_path_of_scipy(scales: list[float]):
    x = np.linspace(0, 3, 40)
    y = 2.0 * np.exp(-1.3 * x) + 0.05 * np.cos(9 * x)

    def residuals(params: FloatArray) -> FloatArray:
        return params[0] * np.exp(-params[1] * x) - y

    def jacobian(params: FloatArray) -> FloatArray:
        decay = np.exp(-params[1] * x)
        return np.stack([decay, -params[0] * x * decay], axis=1)

    lower, upper = np.array([0.0, 0.0]), np.array([1.9, np.inf])
    p0 = np.array([0.5, 4.0])
    oracle = least_squares(
        residuals, p0, jacobian, bounds=(lower, upper), x_scale=scales, tr_solver="exact"
    )
    solution = minimized(
        DenseEngine(residuals, jacobian),
        p0,
        lower,
        upper,
        SolverOptions(x_scale=np.array(scales)),
    )
    assert solution.nfev == oracle.nfev
    assert solution.params == pytest.approx(oracle.x, rel=1e-10)
    assert solution.active_mask.tolist() == [1, 0] == oracle.active_mask.tolist()
    assert (upper - solution.params)[0] == pytest.approx((upper - oracle.x)[0], rel=0.1)
    assert solution.optimality == pytest.approx(oracle.optimality, rel=0.1, abs=1e-12)
