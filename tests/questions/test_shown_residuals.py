"""Residuals of some rows on the way of a pass."""

from __future__ import annotations

import numpy as np
import pytest

from nlsq_dask.core.float_bins import FloatBins
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.questions.shown_residuals import WithResiduals, chosen_rows


@pytest.mark.parametrize(("n", "step"), [(1, 1), (5, 7), (1000, 1), (1000, 3), (999, 100)])
def test_each_stratum_has_a_row(n, step):
    chosen = chosen_rows(n, step)
    assert (chosen // step).tolist() == list(range(-(-n // step)))
    assert chosen.max() < n


@pytest.mark.parametrize("width", [10, 20, 50, 100])
def test_rows_are_not_all_in_one_column_of_an_image(width):
    columns = np.bincount(chosen_rows(100_000, 100) % width, minlength=width)
    assert columns.min() > 0.8 * columns.mean()


def test_no_rows_have_no_residuals():
    sums = SumsAt(np.ones(1), np.eye(1))
    (found,) = WithResiduals(sums, (sums,), 1).residuals()
    assert found.as_bytes() == FloatBins.of(np.zeros(0)).as_bytes()
