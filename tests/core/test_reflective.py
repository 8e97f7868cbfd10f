"""Steps among bounds: feasible, within the radius, and no worse than the gradient step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask.core.reflective import Box, QuadraticModel, choose_step


def test_scaling_looks_the_way_that_the_gradient_descends():
    box = Box(np.array([0.0, 0.0, -np.inf, 0.0]), np.array([5.0, 5.0, 5.0, np.inf]))
    params = np.array([1.0, 1.0, 1.0, 1.0])
    v, derivative = box.distance_along_descent(params, np.array([2.0, -2.0, 2.0, 0.0]))
    assert v.tolist() == [1.0, 4.0, 1.0, 1.0]
    assert derivative.tolist() == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("direction", "stride", "hit"),
    [
        ([1.0, 0.0], 3.0, [True, False]),
        ([-1.0, 0.0], 1.0, [True, False]),
        ([0.0, 1.0], np.inf, [False, False]),
        ([3.0, -2.0], 1.0, [True, True]),
        ([0.0, 0.0], np.inf, [False, False]),
    ],
)
def test_stride(direction: list[float], stride: float, hit: list[bool]):
    box = Box(np.array([0.0, 0.0]), np.array([4.0, np.inf]))
    found, where = box.stride_to(np.array([1.0, 2.0]), np.array(direction))
    assert found == stride
    assert where.tolist() == hit


def random_case(seed: int, size: int, wide: bool):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-2, 2, size)
    factor = rng.normal(size=(size, size)) + 2 * np.eye(size)
    curvature = np.where(rng.random(size) < 0.5, 0.0, rng.uniform(0, 1, size))
    model = QuadraticModel(factor, rng.normal(size=size), curvature, scale)
    params = rng.normal(size=size) * scale
    room = 1e6 if wide else 0.5
    box = Box(
        params - scale * rng.uniform(0.01, 1, size) * room,
        params + scale * rng.uniform(0.01, 1, size) * room,
    )
    hessian = factor.T @ factor + np.diag(curvature)
    newton = -np.linalg.solve(hessian, model.gradient)
    return model, params, newton, float(np.linalg.norm(newton)), box


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 6))
def test_step_is_feasible_and_at_least_a_gradient_step(seed: int, size: int):
    model, params, newton, radius, box = random_case(seed, size, wide=False)
    nowhere = np.zeros(params.size)
    step, predicted = choose_step(model, params, newton, radius, box, 0.995, lambda: nowhere)
    assert box.contains(params + model.scale * step)
    assert np.linalg.norm(step) <= radius * (1 + 1e-12)
    assert predicted == pytest.approx(-model.value(step), rel=1e-9, abs=1e-12)
    assert predicted > 0.0
    descent = -model.gradient
    to_bound, _ = box.stride_to(params, model.scale * descent)
    most = min(0.995 * to_bound, radius / np.linalg.norm(descent))
    along = [-model.value(t * descent) for t in np.linspace(0.0, most, 50)]
    stride, _ = box.stride_to(params, model.scale * newton)
    cut = -model.value(0.995 * min(stride, 1.0) * newton)
    # A full step that is feasible needs no comparison.
    if stride < 1.0:
        assert predicted >= max(*along, cut) - 1e-12


def test_feasible_newton_step_is_taken_whole():
    model, params, newton, radius, box = random_case(1, 4, wide=True)
    nowhere = np.zeros(params.size)
    step, predicted = choose_step(model, params, newton, radius, box, 0.995, lambda: nowhere)
    assert step.tolist() == newton.tolist()
    assert predicted == -model.value(newton)


def test_reflection_goes_on_along_the_other_parameters():
    """A bound in the way of one parameter must not stop the other: reflection gets far."""
    model = QuadraticModel(
        np.diag([1.0, 0.1]), np.array([-0.001, -1.0]), np.zeros(2), np.array([1.0, 1.0])
    )
    newton = np.array([0.001, 100.0])
    box = Box(np.array([-1.0, -1000.0]), np.array([1e-4, 1000.0]))
    step, _ = choose_step(model, np.zeros(2), newton, 200.0, box, 0.995, lambda: np.zeros(2))
    assert step[1] > 50.0
    assert step[0] < 1e-4


@pytest.mark.parametrize(
    ("gradient", "most", "expected"), [(-4.0, 10.0, 1.0), (-4.0, 0.5, 0.5), (4.0, 10.0, 0.0)]
)
def test_best_along_a_line(gradient: float, most: float, expected: float):
    model = QuadraticModel(np.array([[2.0]]), np.array([gradient]), np.zeros(1), np.ones(1))
    step, value = model.best_along(np.zeros(1), np.ones(1), 0.0, most)
    assert step.tolist() == [expected]
    assert value == pytest.approx(model.value(step))
