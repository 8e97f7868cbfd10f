"""The subproblem's solution is optimal; the radius follows its rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from nlsq_dask.core.factor import EPS
from nlsq_dask.core.trust_region import Spectrum, reduction_ratio, solve, update_radius


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 8),
    fraction=st.floats(1e-6, 2.0),
    guess=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
)
def test_step_solves_the_subproblem(seed: int, size: int, fraction: float, guess: float):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size + 5, size)) * 10.0 ** rng.uniform(-2, 2, size)
    rhs = rng.normal(size=size + 5)
    unconstrained = -np.linalg.lstsq(matrix, rhs, rcond=None)[0]
    radius = fraction * np.linalg.norm(unconstrained)
    step, alpha = solve(Spectrum.of(matrix, rhs, EPS * size), radius, guess)
    if fraction > 1.0:
        assert alpha == 0.0
        assert step == pytest.approx(unconstrained, rel=1e-8)
        return
    hessian, gradient = matrix.T @ matrix, matrix.T @ rhs

    def along_the_path(a: float) -> np.ndarray:
        return -np.linalg.solve(hessian + a * np.eye(size), gradient)

    most = np.linalg.norm(gradient) / radius
    exact = along_the_path(
        brentq(lambda a: np.linalg.norm(along_the_path(a)) - radius, 0.0, most, rtol=1e-12)
        if np.linalg.norm(along_the_path(0.0)) > radius
        else 0.0
    )

    def value(s: np.ndarray) -> float:
        return float(0.5 * s @ hessian @ s + gradient @ s)

    assert np.linalg.norm(step) <= radius * (1 + 1e-12)
    # The root is found to a hundredth of the radius, which is second order in the value.
    assert value(step) <= 0.99 * value(exact)


def test_directions_without_effect_are_left_alone():
    matrix = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1e-17]])
    step, alpha = solve(Spectrum.of(matrix, np.array([4.0, 1.0]), 1e-15), 10.0, 0.5)
    assert step.tolist() == [-2.0, 0.0, 0.0]
    assert alpha == 0.0


def test_nothing_to_gain_gives_no_step():
    step, alpha = solve(Spectrum.of(np.zeros((3, 2)), np.ones(3), EPS), 1.0, 0.0)
    assert step.tolist() == [0.0, 0.0]
    assert alpha == 0.0


@pytest.mark.parametrize("radius", [1e-100, 1e-12, 1e12])
def test_any_radius(radius: float):
    spectrum = Spectrum.of(np.diag([1e6, 1.0, 1e-6]), np.ones(3), EPS)
    step, _ = solve(spectrum, radius, 0.0)
    assert np.linalg.norm(step) == pytest.approx(min(radius, 1e6), rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "step", "expected"),
    [
        (-1.0, 8.0, 2.0),
        (0.24, 4.0, 1.0),
        (0.25, 10.0, 10.0),
        (0.75, 10.0, 10.0),
        (0.76, 10.0, 20.0),
        (0.76, 9.4, 10.0),
        (9.0, 9.6, 20.0),
    ],
)
def test_radius(ratio: float, step: float, expected: float):
    assert update_radius(10.0, ratio, step) == expected


@pytest.mark.parametrize(
    ("actual", "predicted", "expected"),
    [(1.0, 2.0, 0.5), (-1.0, 2.0, -0.5), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (1.0, -1.0, 0.0)],
)
def test_ratio(actual: float, predicted: float, expected: float):
    assert reduction_ratio(actual, predicted) == expected
