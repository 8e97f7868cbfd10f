"""Counts in bins of float64, against NumPy's histograms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlsq_dask.core.float_bins import MOST_BARS, FloatBins, total

VALUES = st.lists(st.floats(width=64), max_size=40).map(np.array)


@given(VALUES, VALUES)
def test_counts_add(a, b):
    both = FloatBins.of(np.append(a, b))
    added = FloatBins.of(a) + FloatBins.of(b)
    assert added.as_bytes() == both.as_bytes()
    assert both.n == np.isfinite(np.append(a, b)).sum()
    assert FloatBins.from_bytes(both.as_bytes()).as_bytes() == both.as_bytes()


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e9, 1e300])
@pytest.mark.parametrize("offset", [0.0, 0.5, 7.0])
def test_bars_are_those_of_all_values(scale, offset):
    values = scale * np.random.default_rng(1).normal(offset, 1.0, 10_000)
    edges, counts = FloatBins.of(values).bars()
    assert counts.tolist() == np.histogram(values, edges)[0].tolist()
    assert counts.sum() == values.size
    assert MOST_BARS / 4 < counts.size <= MOST_BARS + 1


def test_rows_that_are_far_off_do_not_spoil_the_bars():
    values = np.random.default_rng(1).normal(0.0, 1.0, 10_000)
    spoilt = [FloatBins.of(part) for part in (values, np.full(9, 1e6), np.array([np.nan, np.inf]))]
    edges, counts = total(spoilt).bars()
    assert counts.tolist() == FloatBins.of(values).bars()[1].tolist()
    assert np.diff(edges).max() < 0.5


@example(np.array([0.0, 4.8e307]))
@given(VALUES)
def test_bars_are_finite_and_few(values):
    edges, counts = FloatBins.of(values).bars()
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    assert counts.size <= MOST_BARS + 1
    assert counts.sum() <= np.isfinite(values).sum()
    assert bool(counts.sum()) == np.isfinite(values).any()


def test_residuals_of_an_exact_fit_have_one_bar():
    edges, counts = FloatBins.of(np.zeros(5)).bars()
    assert (edges.tolist(), counts.tolist()) == ([0.0, 1.0], [5])
