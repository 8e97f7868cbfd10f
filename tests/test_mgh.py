"""Fits of Moré, Garbow & Hillstrom's functions: a success is a minimum, far starts included."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nlsq_dask import InputError, fit
from tests.mgh import FACTORS, PROBLEMS

#: From these starts a search passes flat valleys, scales apart by 1e10, and overflow.
HARD = (
    "Powell badly scaled",
    "Watson",
    "Brown almost linear",
    "Chebyquad",
    "Jennrich and Sampson",
    "Box",
    "Kowalik and Osborne",
)


def ended(name, factor, method):
    problem = PROBLEMS[name]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A fit need not converge: it must not say that it has. From afar trials overflow.
        warnings.simplefilter("ignore")
        return fit(problem.model, problem.x, problem.y, problem.start(factor), method=method)


@pytest.mark.parametrize("method", ["trf", "lm"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", HARD)
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


@pytest.mark.parametrize("method", ["trf", "lm"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_standard_starts_end_at_published_minima(name, method):
    result = ended(name, 1, method)
    assert PROBLEMS[name].is_minimum(2 * result.cost)
