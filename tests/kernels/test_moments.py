"""Largest magnitudes by few calls of BLAS."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlsq_dask.kernels.moments import DOT_ROWS, largest_of
from nlsq_dask.kernels.tiles import Rows


@pytest.mark.parametrize(("n", "n_calls"), [(7, 1), (3 * DOT_ROWS, 1), (5 * DOT_ROWS + 7, 2)])
def test_the_pieces_of_an_array_are_one_call(monkeypatch, n, n_calls):
    y = np.random.default_rng(0).normal(size=n)
    pieces = np.split(y, range(DOT_ROWS, n, DOT_ROWS))
    expected = math.sqrt(sum(float(np.dot(piece, piece)) for piece in pieces))
    calls = []

    def counted(name):
        called = getattr(np, name)

        def function(a, b):
            calls.append(name)
            return called(a, b)

        monkeypatch.setattr(np, name, function)

    counted("dot")
    counted("vecdot")
    found = largest_of(Rows((), y, None, n))
    assert found.tolist() == [expected]
    assert len(calls) == n_calls
