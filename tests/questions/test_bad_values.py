"""NaN, infinities and wrong deviations are found, and named by array and place."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from nlsq_dask import InputError
from nlsq_dask.io.sources import observe
from tests.support.engines import finite_problem


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("bad", "name"), [("y", "y"), ("x", "x"), ("sigma", "sigma")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_found_by_array(lazy, bad, name, value):
    arrays = {key: np.ones(50) for key in ("x", "y", "sigma")}
    arrays[bad][[7, 31]] = value
    if lazy:
        arrays = {key: da.from_array(array, chunks=8) for key, array in arrays.items()}
    if bad == "sigma" and not lazy:
        kind = "infinite" if value > 0 else "not positive"
        with pytest.raises(InputError, match=f"sigma has 2 values that are {kind}"):
            observe(**arrays)
        return
    problem = finite_problem(observe(**arrays))
    assert isinstance(problem, InputError)
    assert str(problem).startswith(f"{name} has 2 values that are NaN or infinite")
    assert "the first at index (7,)" in str(problem)
    assert ("in block (0,), which is y[0:8]" in str(problem)) == lazy


def test_finite_data_have_no_problem():
    assert finite_problem(observe(np.arange(5), np.ones(5), 2.0)) is None


def test_coordinates_are_named_by_their_place():
    bad = np.array([1.0, np.nan])
    problem = finite_problem(observe((np.ones(2), bad), np.ones(2)))
    assert str(problem).startswith("x[1] has 1 value")
