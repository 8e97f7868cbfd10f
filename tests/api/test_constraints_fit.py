"""Fits with fixed and tied parameters: the answers of SciPy for a model of fewer parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from nlsq_dask import InputError, fit
from tests.support.same_result import assert_same_result

NAMES = ("a1", "c1", "w1", "a2", "c2", "w2", "base")
TRUTH = np.array([3.0, -1.0, 0.5, 1.5, 1.0, 0.5, 0.2])
START = dict(zip(NAMES, [2.5, -0.8, 0.6, 2.0, 1.3, 0.4, 0.1], strict=True))
RNG = np.random.default_rng(5)
X = np.linspace(-4, 4, 600)
SIGMA = RNG.uniform(0.05, 0.1, X.size)
STRATEGIES = ["standard", "chunked", "streaming"]
TIGHT = dict(ftol=1e-15, xtol=1e-15, gtol=1e-12)


def formula(xp, x, a1, c1, w1, a2, c2, w2, base):
    first = a1 * xp.exp(-0.5 * ((x - c1) / w1) ** 2)
    return first + a2 * xp.exp(-0.5 * ((x - c2) / w2) ** 2) + base


def pair(x, a1, c1, w1, a2, c2, w2, base):
    return formula(jnp, x, a1, c1, w1, a2, c2, w2, base)


def pair_jacobian(x, a1, c1, w1, a2, c2, w2, base):
    columns = []
    for a, c, w in ((a1, c1, w1), (a2, c2, w2)):
        u = (x - c) / w
        e = jnp.exp(-0.5 * u**2)
        columns += [e, a * e * u / w, a * e * u**2 / w]
    return jnp.stack([*columns, jnp.ones_like(x)], axis=1)


Y = formula(np, X, *TRUTH) + SIGMA * RNG.normal(size=X.size)


@dataclass(frozen=True)
class Constrained:
    """Arguments of fit, and the same said to SciPy: parameters as a function of the free ones."""

    arguments: dict[str, Any]
    free: tuple[str, ...]
    expand: Callable[..., list[float]]
    bounds: Any = (-np.inf, np.inf)

    @property
    def zero(self) -> list[int]:
        """Parameters without a standard error."""
        return [NAMES.index(name) for name in self.arguments.get("fixed", {})]

    @property
    def matrix(self) -> np.ndarray:
        """Derivatives (p, q) of the parameters by the free ones, which are constant."""
        origin = np.array(self.expand(*np.zeros(len(self.free))))
        unit = np.eye(len(self.free))
        return np.stack([np.array(self.expand(*e)) - origin for e in unit], axis=1)

    def scipy_fit(self, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All parameters, their covariance, and the free parameters."""
        matrix = self.matrix
        free, pcov = optimize.curve_fit(
            lambda x, *free: formula(np, x, *self.expand(*free)),
            X, Y, [START[name] for name in self.free],
            sigma=SIGMA, bounds=self.bounds, method="trf", x_scale="jac", max_nfev=5000,
            jac=lambda x, *free: np.asarray(pair_jacobian(x, *self.expand(*free))) @ matrix,
            **TIGHT, **options,
        )  # fmt: skip
        return np.array(self.expand(*free)), matrix @ pcov @ matrix.T, free


PROBLEMS = {
    "one fixed": Constrained(
        dict(fixed={"base": 0.25}),
        NAMES[:-1],
        lambda a1, c1, w1, a2, c2, w2: [a1, c1, w1, a2, c2, w2, 0.25],
    ),
    "three fixed": Constrained(
        dict(fixed={"a1": 3, "c2": 1.0, "base": np.float32(0.25)}),
        ("c1", "w1", "a2", "w2"),
        lambda c1, w1, a2, w2: [3.0, c1, w1, a2, 1.0, w2, 0.25],
    ),
    "two equal": Constrained(
        dict(ties={"w2": "w1"}),
        ("a1", "c1", "w1", "a2", "c2", "base"),
        lambda a1, c1, w1, a2, c2, base: [a1, c1, w1, a2, c2, w1, base],
    ),
    "a ratio and a fixed distance": Constrained(
        dict(ties={"a2": {"a1": 0.5}, "c2": {"c1": 1, "base": 8}}, fixed={"base": 0.25}),
        ("a1", "c1", "w1", "w2"),
        lambda a1, c1, w1, w2: [a1, c1, w1, 0.5 * a1, c1 + 2.0, w2, 0.25],
    ),
    "a combination of two": Constrained(
        dict(ties={"c2": {"c1": -0.9, "base": 0.5}, "w2": {"w1": 1.0}}),
        ("a1", "c1", "w1", "a2", "base"),
        lambda a1, c1, w1, a2, base: [a1, c1, w1, a2, -0.9 * c1 + 0.5 * base, w1, base],
    ),
    "a tie of a tie": Constrained(
        dict(ties={"w2": {"w1": 2.0}, "w1": {"base": 1.5}}),
        ("a1", "c1", "a2", "c2", "base"),
        lambda a1, c1, a2, c2, base: [a1, c1, 1.5 * base, a2, c2, 3.0 * base, base],
    ),
    "bounds that hold": Constrained(
        dict(
            fixed={"base": 0.25},
            ties={"a2": {"a1": 0.5}, "c2": {"c1": -1}},
            bounds={"a2": (None, 1.4), "base": (0, 1), "w1": (0.3, 2), "c2": (0, None)},
        ),
        ("a1", "c1", "w1", "w2"),
        lambda a1, c1, w1, w2: [a1, c1, w1, 0.5 * a1, -c1, w2, 0.25],
        bounds=([-np.inf, -np.inf, 0.3, -np.inf], [2.8, 0, 2, np.inf]),
    ),
}


def data_for(strategy):
    if strategy == "streaming":
        y = da.from_array(Y, chunks=(1, 150, 200, 249))
        return dict(x=da.from_array(X, chunks=130), y=y, sigma=da.from_array(SIGMA, chunks=90))
    return dict(x=X, y=Y, sigma=SIGMA)


def fit_pair(problem, strategy="auto", **options):
    p0 = {name: START[name] for name in problem.free}
    arguments = {"p0": p0, "strategy": strategy, **problem.arguments, **TIGHT, **options}
    return fit(pair, **{**data_for(strategy), **arguments})


def assert_near(popt, expected, perr, part=1e-5):
    """Equal to a small part of a standard error, and exactly where there is none."""
    np.testing.assert_array_equal(np.abs(popt - expected) <= part * perr, True)


@pytest.mark.slow
@pytest.mark.every(7)
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_is_that_of_a_model_of_the_free_parameters(name, strategy, absolute_sigma):
    problem = PROBLEMS[name]
    result = fit_pair(problem, strategy, absolute_sigma=absolute_sigma)
    popt, pcov, _ = problem.scipy_fit(absolute_sigma=absolute_sigma)
    perr = np.sqrt(np.diag(pcov))
    assert result.success
    assert result.names == NAMES
    assert_near(result.popt, popt, perr)
    scale = np.where(perr, perr, 1)
    np.testing.assert_allclose(result.pcov / np.outer(scale, scale), pcov / np.outer(scale, scale),
                               atol=1e-5)  # fmt: skip
    # What is fixed is known: its rows are zero to the bit.
    assert not result.pcov[problem.zero].any()
    assert not result.pcov[:, problem.zero].any()
    assert not result.grad[problem.zero].any()
    assert set(result.fixed) == set(problem.arguments.get("fixed", {}))
    assert (result.n_free, result.dof) == (len(problem.free), X.size - len(problem.free))
    chi2 = np.sum(((formula(np, X, *popt) - Y) / SIGMA) ** 2)
    assert result.reduced_chi2 == pytest.approx(chi2 / result.dof, rel=1e-9)


def test_bounds_of_a_tied_parameter_are_active_for_what_it_is_tied_to():
    result = fit_pair(PROBLEMS["bounds that hold"])
    np.testing.assert_array_equal(result.active_mask, [1, 0, 0, 1, 0, 0, 0])
    assert result.params["a2"].value == pytest.approx(1.4, abs=1e-9)
    assert result.params["a1"].value == 2 * result.params["a2"].value


@pytest.mark.slow
def test_a_matrix_of_ties():
    """Centres by their mean and half their distance."""
    matrix = np.zeros((7, 6))
    matrix[[0, 2, 3, 5, 6], [0, 2, 3, 4, 5]] = 1
    matrix[[1, 4], 1] = 1, -1
    result = fit(pair, **data_for("streaming"), p0=[*START.values()], ties=matrix, **TIGHT)
    by_name = fit_pair(
        Constrained(dict(ties={"c2": {"c1": -1}}), tuple(n for n in NAMES if n != "c2"), list)
    )
    assert_near(result.popt, by_name.popt, by_name.perr)
    np.testing.assert_allclose(result.perr, by_name.perr, rtol=1e-6)
    assert (result.n_free, result.fixed) == (6, ())


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "options",
    [
        dict(method="lm"),
        dict(method="dogbox"),
        pytest.param(dict(jac=pair_jacobian), id="jac"),
        dict(x_scale=[1, 1, 0.5, 1, 1, 0.5, 0.1]),
        dict(workflow="fast", **TIGHT),
        dict(workflow="quality", **TIGHT),
        dict(workflow="auto", **TIGHT),
        dict(p0=START),
        dict(p0=[*START.values()]),
        dict(p0={**START, "base": 99.0, "w2": -3.0}),
    ],
    ids=str,
)
def test_constraints_go_with_everything(options):
    problem = Constrained(
        dict(fixed={"base": 0.25}, ties={"w2": "w1"}), ("a1", "c1", "w1", "a2", "c2"), list
    )
    plain = fit_pair(problem)
    assert_near(fit_pair(problem, **options).popt, plain.popt, plain.perr)


@pytest.mark.parametrize("workflow", ["streaming", "hpc_distributed"])
def test_constraints_go_with_workflows_of_streams(workflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them writes checkpoints here
    problem = PROBLEMS["two equal"]
    result = fit_pair(problem, **data_for("streaming"), workflow=workflow)
    popt, pcov, _ = problem.scipy_fit()
    assert_near(result.popt, popt, np.sqrt(np.diag(pcov)), 0.02)
    assert result.params["w1"].value == result.params["w2"].value


@pytest.mark.slow
def test_a_loss_and_constraints():
    problem = PROBLEMS["a ratio and a fixed distance"]
    robust = fit_pair(problem, loss="soft_l1", f_scale=0.8)
    popt, pcov, _ = problem.scipy_fit(loss="soft_l1", f_scale=0.8)
    assert_near(robust.popt, popt, np.sqrt(np.diag(pcov)))
    fixed = robust.perr == 0.0
    np.testing.assert_array_equal(fixed, np.diag(pcov) == 0.0)


@pytest.mark.slow
def test_a_covariance_matrix_and_constraints():
    correlated = np.diag(SIGMA**2) + 1e-3 * np.exp(-np.abs(X[:, None] - X))
    problem = PROBLEMS["two equal"]
    result = fit_pair(problem, sigma=correlated)
    free, pcov = optimize.curve_fit(
        lambda x, *free: formula(np, x, *problem.expand(*free)), X, Y,
        [START[name] for name in problem.free], sigma=correlated,
    )  # fmt: skip
    whole = problem.matrix @ pcov @ problem.matrix.T
    assert_near(result.popt, problem.expand(*free), np.sqrt(np.diag(whole)), 1e-3)
    np.testing.assert_allclose(result.perr, np.sqrt(np.diag(whole)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["standard", "streaming"])
def test_starts_keep_what_is_fixed_and_tied(strategy):
    problem = PROBLEMS["a ratio and a fixed distance"]
    bounds = {"a1": (0.1, 9), "c1": (-4, 0), "w1": (0.1, 3), "w2": (0.1, 3)}
    result = fit_pair(problem, strategy, n_starts=6, bounds=bounds)
    popt, pcov, _ = problem.scipy_fit()
    assert_near(result.popt, popt, np.sqrt(np.diag(pcov)))
    assert len(result.starts) == 6
    for start in result.starts:
        for point in (start.p0, start.params):
            if point is not None:
                assert point.shape == (7,)
                assert point[6] == 0.25
                assert point[3] == pytest.approx(0.5 * point[0], rel=1e-15)
                assert point[4] == pytest.approx(point[1] + 2.0, rel=1e-14)


@pytest.mark.slow
def test_a_constrained_fit_resumes_to_the_same_bits(tmp_path):
    problem = PROBLEMS["bounds that hold"]
    whole = fit_pair(problem, "streaming")

    def interrupt(intermediate_result):
        if intermediate_result.nit == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_pair(problem, "streaming", checkpoint=tmp_path, callback=interrupt)
    again = fit_pair(problem, "streaming", checkpoint=tmp_path, resume=True)
    assert_same_result(again, whole)
    other = dict(fixed={"base": 0.26})
    with pytest.raises(InputError, match=re.escape("of another fit: fixed and ties differ")):
        fit_pair(problem, "streaming", checkpoint=tmp_path, resume=True, **other)


def plane(x, a, b, c, d):
    return a * x[0] + b * x[1] + c * x[2] + d * x[3]


@pytest.mark.slow
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), q=st.integers(1, 4), offset=st.booleans())
def test_linear_models_are_those_of_the_composed_matrix(seed, q, offset):
    """Parameters T φ of a linear model A θ: the least squares of A T, whatever T."""
    rng = np.random.default_rng(seed)
    design, y = rng.normal(size=(40, 4)), rng.normal(size=40)
    free, tied = "abcd"[:q], "abcd"[q:]
    factors = rng.uniform(-2, 2, (len(tied), q))
    ties = {
        name: dict(zip(free, row, strict=True)) for name, row in zip(tied, factors, strict=True)
    }
    matrix = np.vstack([np.eye(q), factors])
    fixed = {}
    if offset and q > 1:  # fix the last of the free ones
        fixed = {free[-1]: float(rng.normal())}
    kept = q - len(fixed)
    origin = matrix[:, kept:] @ np.array([*fixed.values()])
    composed = design @ matrix[:, :kept]
    phi, rss, *_ = np.linalg.lstsq(composed, y - design @ origin)
    result = fit(plane, design.T, y, ties=ties, fixed=fixed, **TIGHT)
    np.testing.assert_allclose(result.popt, origin + matrix[:, :kept] @ phi, atol=1e-9)
    covariance = np.linalg.inv(composed.T @ composed) * rss[0] / (40 - kept)
    expected = matrix[:, :kept] @ covariance @ matrix[:, :kept].T
    np.testing.assert_allclose(result.pcov, expected, atol=1e-7 * np.abs(expected).max())
