"""Fits of the same data in other units and with offsets end where SciPy ends in natural units."""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from tests.support.unit_shapes import SHAPES
from tests.support.unit_sweep import Case, Scaling, Task, design

#: The benchmark ``units`` runs thousands.
CASES = design(40, seed=1)


def label(case):
    return (
        f"{case.shape}-x{case.x_power}+{case.x_offset:g}-y{case.y_power}+{case.y_offset:g}-"
        f"{case.method}-{case.tier}-{case.workflow}-{case.bounds}-{case.start}"
    )


@cache
def outcome(case):
    """Result, distance from the optimum, and whether SciPy gets to the optimum from this start."""
    task = Task.of(case)
    with warnings.catch_warnings():
        # A fit need not converge: it must not say that it has.
        warnings.simplefilter("ignore")
        result = task.run()
        away = task.natural.away(task.natural_params(result.popt))
        return result, away, task.natural.scipy_gets_there(case.method)


@pytest.mark.slow
@pytest.mark.every(8)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_success_is_at_the_optimum_whatever_the_units(case):
    result, away, _ = outcome(case)
    if result.success and np.isfinite(result.pcov).all():
        assert away.arrived, away


@pytest.mark.thorough
def test_fits_succeed_where_scipy_does_in_natural_units():
    results = {case: (result, there) for case in CASES for result, _, there in [outcome(case)]}
    missing = [label(case) for case, (result, there) in results.items() if there > result.success]
    assert len(missing) <= 0.02 * sum(there for _, there in results.values()), missing


@pytest.mark.slow
def test_the_sweep_covers_every_two_levels():
    def levels(cases):
        return {pair for case in cases for pair in case.pairs()}

    assert levels(design(500)) == levels(design(1000, seed=2))


@pytest.mark.parametrize("name", SHAPES)
def test_units_and_offsets_are_taken_out_exactly(name):
    shape = SHAPES[name]
    case = Case(
        name,
        -12,
        18,
        10**9 * shape.shifts_x,
        10**9 * (shape.constant is not None),
        "trf",
        "standard",
        None,
        "none",
        "near",
    )
    task = Task.of(case)
    scaling = Scaling.of(case)
    for there, back in ((task.x, task.natural.x), (task.y, task.natural.y)):
        unit, offset = (
            (scaling.x_unit, scaling.x_offset)
            if there is task.x
            else (scaling.y_unit, scaling.y_offset)
        )
        exact = [Fraction(v) / unit - offset for v in there.tolist()]
        assert back.tolist() == [float(v) for v in exact]
    # The curve of the moved parameters is the moved curve.
    moved = shape.shifted([Fraction(v) for v in shape.truth], 3, 5 * (shape.constant is not None))
    assert shape.shifted(moved, -3, -5 * (shape.constant is not None)) == [
        Fraction(v) for v in shape.truth
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_oracle_is_at_a_stationary_point(name):
    natural = Task.of(Case(name, 0, 0, 0, 0, "trf", "standard", None, "none", "far")).natural
    jacobian, residuals = natural.jacobian(natural.best), natural.residuals(natural.best)
    cosines = jacobian.T @ residuals / np.linalg.norm(jacobian, axis=0)
    assert np.abs(cosines).max() < 1e-7 * np.linalg.norm(residuals)
    np.testing.assert_allclose(natural.best, SHAPES[name].truth, rtol=0.3)
