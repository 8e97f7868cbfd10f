"""Fits of Moré, Garbow & Hillstrom's functions: a success is a minimum, far starts included."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nlsq_dask import InputError, fit
from tests.support.mgh import PROBLEMS

#: Starts from which a search passes flat valleys, scales apart by 1e10, and overflow.
HARD = (
    ("Powell badly scaled", 100),
    ("Watson", 1),
    ("Brown almost linear", 100),
    ("Chebyquad", 10),
    ("Jennrich and Sampson", 10),
    ("Jennrich and Sampson", 100),
    ("Bard", 10),
    ("Gaussian", 100),
    ("Gulf", 100),
    ("Box", 10),
    ("Box", 100),
    ("Kowalik and Osborne", 10),
)
#: The functions of those, and a few that most searches end well on.
NAMES = (*dict(HARD), "Rosenbrock", "helical valley", "Powell singular", "Meyer")


def ended(name, factor, method):
    problem = PROBLEMS[name]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A fit need not converge: it must not say that it has. From afar trials overflow.
        warnings.simplefilter("ignore")
        return fit(problem.model, problem.x, problem.y, problem.start(factor), method=method)


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("method", ["trf", "lm"])
@pytest.mark.parametrize(("name", "factor"), HARD)
def test_scipy_finds_nothing_lower_from_a_success(name, factor, method):
    problem = PROBLEMS[name]
    try:
        result = ended(name, factor, method)
    except InputError as error:
        assert "not finite" in str(error)  # exp(400 * 10)
        return
    if result.success:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            assert problem.lower_from(result.popt) is None


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("method", ["trf", "lm"])
@pytest.mark.parametrize("name", NAMES)
def test_standard_starts_end_at_published_minima(name, method):
    result = ended(name, 1, method)
    assert PROBLEMS[name].is_minimum(2 * result.cost)
