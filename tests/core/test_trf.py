"""What the method does at the edges: degenerate problems, failing trials, limits, its state."""

from __future__ import annotations

import pickle
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask._errors import InputError, Status
from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.minimize import advance, finish, start
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import answered
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import IterationRecord, Solution, SolverOptions
from tests.support.dense_engine import DenseEngine, FloatArray, model_functions
from tests.support.engines import minimized

X = np.linspace(0.0, 3.0, 50)
NOISE = 0.01 * np.random.default_rng(7).normal(size=X.size)
Y = 2.0 * np.exp(-1.3 * X) + 0.5 + NOISE


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def engine_of(model, x: FloatArray = X, y: FloatArray = Y) -> DenseEngine:
    return DenseEngine(*model_functions(model, x, y))


def unbounded(
    engine: DenseEngine, p0: list[float], options: SolverOptions | None = None
) -> Solution:
    free = np.full(len(p0), np.inf)
    return minimized(engine, np.array(p0, float), -free, free, options or SolverOptions())


def test_optimum_of_a_model_of_full_rank():
    solution = unbounded(engine_of(decay), [1.0, 1.0, 0.0])
    assert solution.params == pytest.approx([2.0, 1.3, 0.5], abs=0.05)
    assert solution.gradient == pytest.approx(np.zeros(3), abs=1e-6)
    assert solution.chi2 == 2 * solution.cost
    assert (solution.n_points, solution.n_skipped) == (X.size, 0)


DEGENERATE = {
    "a parameter without effect": (lambda x, a, b, c, d: decay(x, a, b, c) + 0 * d, [1, 1, 0, 3]),
    "collinear parameters": (lambda x, a, b, c, d: decay(x, a, b, c + d), [1, 1, 0.2, 0.3]),
    "collinear in other units": (
        lambda x, a, b, c, d: decay(x, a, b, 1e3 * c + 1e-4 * d),
        [1, 1, 0.2, 0.3],
    ),
    "a product of parameters": (lambda x, a, b, c, d: decay(x, a * d, b, c), [1, 1, 0.2, 0.3]),
    "a sum in the exponent": (lambda x, a, b, c, d: decay(x, a, b * d + d**2, c), [1, 1, 0, 0.5]),
}


@pytest.mark.quick(3)
@pytest.mark.parametrize("case", DEGENERATE)
def test_an_undetermined_direction_does_not_slow_the_fit(case: str):
    model, p0 = DEGENERATE[case]
    reference = unbounded(engine_of(decay), [1.0, 1.0, 0.3])
    engine = engine_of(model)
    solution = unbounded(engine, p0)
    assert solution.status is Status.UNDETERMINED
    assert solution.undetermined[3]
    assert solution.cost == pytest.approx(reference.cost, rel=1e-7)
    assert solution.nfev <= reference.nfev + 9
    assert engine.n_passes == solution.nfev + solution.n_refined <= solution.nfev + 2
    pcov, determined = covariance(
        solution.r_factor, solution.cost, solution.n_points, absolute_sigma=False
    )
    assert not determined
    assert np.isposinf(pcov).all()


@pytest.mark.parametrize("case", ["a parameter without effect", "collinear parameters"])
def test_a_parameter_without_effect_keeps_its_value(case: str):
    model, p0 = DEGENERATE[case]
    solution = unbounded(engine_of(lambda x, *params: model(x, *params[:-1])), [*p0, 3.0])
    assert solution.params[-1] == 3.0


def two_decays(x, a, b, c, d):
    return a * jnp.exp(-b * x) + c * jnp.exp(-d * x)


def test_a_start_of_equal_terms_is_left():
    """From equal rates every gradient is equal too: the symmetric point is only a saddle."""
    y = 2.0 * np.exp(-0.3 * X) + 3.0 * np.exp(-2.0 * X) + NOISE
    symmetric = unbounded(engine_of(two_decays, X, y), [1.0, 1.0, 1.0, 1.0])
    apart = unbounded(engine_of(two_decays, X, y), [1.0, 0.2, 1.0, 3.0])
    assert symmetric.status.success
    assert symmetric.cost == pytest.approx(apart.cost, rel=1e-6)


@pytest.mark.parametrize("elsewhere", [np.nan, 1e6])
def test_a_start_that_must_not_be_displaced_is_kept(elsewhere: float):
    """Displaced, this model is far off: the search goes on from the start as it is."""

    def fragile(x, a, b):
        return jnp.where(jnp.abs(a - b) < 1e-9, (a + b) * x, elsewhere)

    solution = unbounded(engine_of(fragile), [1.0, 1.0])
    assert not solution.history[1].accepted
    assert not solution.history[1].cost < 1e6
    assert solution.params[0] == pytest.approx(solution.params[1], abs=1e-9)
    slope = float(X @ Y / (X @ X))
    assert solution.params.sum() == pytest.approx(slope, rel=1e-6)


def test_nearly_collinear_parameters_are_resolved():
    """A condition number of 1e8, at which JᵀJ alone is singular in float64."""

    def model(x, a, b):
        return a * x + b * (x + 1e-8 * x**2)

    residual_free = np.asarray(3.0 * X + 1e-8 * 5.0 * X**2)
    solution = unbounded(
        engine_of(model, X, residual_free), [1.0, 1.0], SolverOptions(ftol=1e-14, gtol=None)
    )
    assert solution.params == pytest.approx([-2.0, 5.0], rel=1e-5)


def test_one_parameter():
    solution = unbounded(engine_of(lambda x, a: a * jnp.exp(-x), y=3.0 * np.exp(-X)), [0.0])
    assert solution.params == pytest.approx([3.0], rel=1e-10)
    assert solution.r_factor.shape == (1, 1)


def test_twelve_parameters():
    x = np.linspace(0, 20, 400)
    truth = np.array([3, 4, 0.7, 2, 8, 1, 5, 12, 0.5, 1, 16, 0.9])

    def peaks(x, *params):
        return sum(
            a * jnp.exp(-(((x - m) / s) ** 2))
            for a, m, s in zip(params[::3], params[1::3], params[2::3], strict=True)
        )

    rng = np.random.default_rng(3)
    _, jacobian = model_functions(peaks, x, 0 * x)
    y = model_functions(peaks, x, 0 * x)[0](truth) + 0.01 * rng.normal(size=x.size)
    solution = unbounded(engine_of(peaks, x, y), list(truth * 1.05))
    pcov, determined = covariance(
        solution.r_factor, solution.cost, solution.n_points, absolute_sigma=False
    )
    jac = jacobian(solution.params)
    dense = solution.chi2 / (x.size - 12) * np.linalg.inv(jac.T @ jac)
    assert determined
    assert pcov == pytest.approx(dense, rel=1e-6, abs=1e-9 * np.max(dense))
    assert np.all(np.abs(solution.params - truth) < 5 * np.sqrt(np.diag(pcov)))


def test_more_parameters_than_rows_that_differ():
    rows = [0, 1, 0, 1]
    solution = unbounded(engine_of(decay, X[rows], Y[rows]), [1.0, 1.0, 0.0])
    assert solution.cost == pytest.approx(0.0, abs=1e-12)
    assert solution.status is Status.UNDETERMINED


@pytest.mark.parametrize("b0", [0.0, 1.0])
def test_start_on_a_bound(b0: float):
    lower, upper = np.array([-np.inf, 0.0, -np.inf]), np.array([np.inf, 1.0, np.inf])
    engine = engine_of(decay)
    solution = minimized(engine, np.array([1.0, b0, 0.0]), lower, upper, SolverOptions())
    assert solution.active_mask.tolist() == [0, 1, 0]
    assert solution.params[1] == pytest.approx(1.0, abs=1e-6)
    assert all(0.0 < point[1] < 1.0 for point in engine.points)


def test_starting_point_is_not_changed():
    p0 = np.array([1.0, 0.0, 0.0])
    minimized(engine_of(decay), p0, np.zeros(3) - 1, np.full(3, 2.0), SolverOptions())
    assert p0.tolist() == [1.0, 0.0, 0.0]


def test_trial_that_is_not_finite_shrinks_the_radius():
    y = np.log(4.0 - X)

    def model(x, a):
        return jnp.log(a - x)

    solution = unbounded(engine_of(model, X, y), [100.0])
    failed = [i for i, record in enumerate(solution.history) if not np.isfinite(record.cost)]
    assert failed
    for i in failed:
        assert not solution.history[i].accepted
        assert solution.history[i + 1].radius <= 0.25 * solution.history[i].radius
    assert solution.params == pytest.approx([4.0], rel=1e-6)


def test_trial_without_finite_derivatives_is_rejected():
    class Kink(DenseEngine):
        def sums(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
            sums = super().sums(params, basis)
            return replace(sums, gram=sums.gram * np.nan) if self.n_passes == 2 else sums

    kink = Kink(*model_functions(decay, X, Y))
    solution = unbounded(kink, [1.0, 1.0, 0.0])
    assert not solution.history[1].accepted
    assert solution.status.success


def test_start_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match=r"not finite at the starting point.*\[-1\]"):
        unbounded(engine_of(lambda x, a: jnp.log(a + x)), [-1.0])
    with pytest.raises(InputError, match="derivatives"):
        unbounded(engine_of(lambda x, a: jnp.sqrt(a) * x), [0.0])


@pytest.mark.parametrize("max_nfev", [1, 3])
def test_most_evaluations(max_nfev: int):
    engine = engine_of(decay)
    solution = unbounded(engine, [100.0, 5.0, -3.0], SolverOptions(max_nfev=max_nfev))
    assert solution.status is Status.MAX_EVALUATIONS
    assert not solution.status.success
    assert solution.nfev == max_nfev == engine.n_passes == len(solution.history)


def test_evaluations_by_default():
    """100 for each parameter."""
    assert SolverOptions().evaluations(3) == 300


def test_a_search_whose_trials_all_fail_stalls():
    """It ends after thirty of them, and is no success wherever it stands."""

    class Fenced(DenseEngine):
        def sums(self, params: FloatArray, basis: FloatArray) -> NormalEquations:
            sums = super().sums(params, basis)
            return sums if self.n_passes == 1 else replace(sums, cost=np.nan)

    fenced = Fenced(*model_functions(decay, X, Y))
    solution = unbounded(fenced, [1.0, 1.0, 0.0])
    assert solution.status is Status.STALLED
    assert not solution.status.success
    assert solution.nfev == 31
    assert solution.params.tolist() == [1.0, 1.0, 0.0]
    assert solution.history[-1].radius > 0.0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (SolverOptions(ftol=None, xtol=None, gtol=1e-6), Status.GRADIENT),
        (SolverOptions(ftol=1e-10, xtol=None, gtol=None), Status.COST),
        (SolverOptions(ftol=None, xtol=1e-10, gtol=None), Status.STEP),
        (SolverOptions(ftol=1e-4, xtol=1e-3, gtol=None), Status.COST_AND_STEP),
    ],
)
def test_each_criterion_ends_the_search(options: SolverOptions, status: Status):
    solution = unbounded(engine_of(decay), [1.0, 1.0, 0.0], options)
    assert solution.status is status
    assert solution.cost == pytest.approx(
        unbounded(engine_of(decay), [1.0, 1.0, 0.0]).cost, rel=1e-4
    )


def test_a_search_that_can_improve_no_more_ends_in_time():
    """With a criterion that rounding keeps from being met, the steps shrink to nothing."""
    options = SolverOptions(ftol=None, xtol=None, gtol=1e-15, max_nfev=500)
    solution = unbounded(engine_of(decay), [1.0, 1.0, 0.0], options)
    assert solution.status in (Status.NEAR, Status.ROUNDING, Status.GRADIENT)
    assert solution.nfev < 100
    assert solution.params == pytest.approx([2.0, 1.3, 0.5], abs=0.05)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"ftol": -1.0}, "ftol = -1.0"),
        ({"xtol": np.nan}, "xtol = nan"),
        ({"ftol": None, "xtol": None, "gtol": None}, "all None"),
        ({"ftol": 0.0, "xtol": 1e-17, "gtol": None}, "machine precision"),
        ({"max_nfev": 0}, "max_nfev = 0"),
        ({"x_scale": "auto"}, "x_scale = 'auto'"),
        ({"x_scale": np.array([1.0, 0.0])}, "positive"),
        ({"x_scale": [None]}, "positive"),
    ],
)
def test_options_out_of_range_are_refused(values: dict, match: str):
    with pytest.raises(InputError, match=match):
        SolverOptions(**values)


def test_scales_of_another_length_are_refused_before_a_pass():
    engine = engine_of(decay)
    with pytest.raises(InputError, match=r"shape \(2,\) but the model has 3 parameters"):
        unbounded(engine, [1.0, 1.0, 0.0], SolverOptions(x_scale=np.ones(2)))
    assert engine.n_passes == 0


def test_history_tells_the_search():
    records: list[IterationRecord] = []
    engine = engine_of(decay)
    free = np.full(3, np.inf)
    solution = minimized(
        engine,
        np.array([20.0, 9.0, -4.0]),
        -free,
        free,
        SolverOptions(),
        lambda state: records.append(state.history[-1]),
    )
    assert tuple(records) == solution.history
    assert [record.nfev for record in records] == list(range(1, solution.nfev + 1))
    assert solution.nfev == engine.n_passes
    accepted = [record for record in records if record.accepted]
    assert [record.iteration for record in accepted] == list(range(solution.njev))
    costs = [record.cost for record in accepted]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == solution.cost
    assert solution.nit == solution.njev - 1
    assert any(not record.accepted for record in records), "no trial of this search was rejected"


@pytest.mark.parametrize("p0", [[1.0, 1.0, 0.0], [30.0, 9.0, -5.0]])
def test_without_bounds_a_search_skips_only_what_bounds_would_not_change(p0):
    """The whole way of a search within bounds, with infinite bounds, gives the same bits."""
    engine, options, infinite = engine_of(decay), SolverOptions(), np.full(3, np.inf)
    whole = Box(-infinite, infinite)
    whole.__dict__["is_open"] = False
    states = [answered(start(np.array(p0), whole, options), engine.ask)] * 2
    while states[0].status is None:
        open_box = Box(-infinite, infinite)
        states = [
            answered(advance(state, box, options), engine.ask)
            for state, box in zip(states, (open_box, whole), strict=True)
        ]
        assert states[0].params.tobytes() == states[1].params.tobytes()
        assert states[0].history == states[1].history
    assert states[0].nfev > 3


def test_same_bits_every_time_and_from_any_state():
    """The state is all there is: copied out and put back between any two evaluations."""
    lower, upper = np.array([0.0, 0.0, -1.0]), np.array([1.9, np.inf, 9.0])
    p0, options, box = np.array([0.1, 4.0, 0.0]), SolverOptions(), Box(lower, upper)
    engine = engine_of(decay)
    whole = minimized(engine, p0, lower, upper, options)
    state = answered(start(p0, box, options), engine.ask)
    while state.status is None:
        state = pickle.loads(pickle.dumps(state))
        state = answered(advance(state, box, options), engine.ask)
    resumed = answered(finish(state, box, options), engine.ask)
    assert resumed.history == whole.history
    for name in ("params", "r_factor", "gradient"):
        assert getattr(resumed, name).tobytes() == getattr(whole, name).tobytes()


def test_standard_errors_survive_a_search_of_one_evaluation():
    """Where the search ends at its start, the plain Gram matrix has lost its digits."""

    def model(x, a, b):
        return a * x + b * (x + 1e-5 * x**2)

    y = X + NOISE
    engine = engine_of(model, X, y)
    jac = engine.jacobian(np.zeros(2))
    optimum = np.linalg.lstsq(jac, y, rcond=None)[0]
    solution = unbounded(engine, list(optimum), SolverOptions(gtol=1e-3))
    assert (solution.nfev, solution.n_refined, engine.n_passes) == (1, 1, 2)
    pcov, determined = covariance(
        solution.r_factor, solution.cost, solution.n_points, absolute_sigma=True
    )
    _, singular, vt = np.linalg.svd(jac)
    dense = (vt.T / singular**2) @ vt
    assert determined
    assert pcov == pytest.approx(dense, rel=1e-8)
