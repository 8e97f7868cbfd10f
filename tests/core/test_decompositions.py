"""Decompositions of small matrices have the bits of ``np.linalg``."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask.core import decompositions
from nlsq_dask.core.decompositions import eigh, qr, svd


def square(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """A matrix (p, p) of a kind."""
    matrix = rng.normal(size=(size, size)) * 10.0 ** rng.integers(-100, 100)
    if kind == "singular":
        matrix[:, 0] = 0.0
    return matrix.T if kind == "transposed" else matrix


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 12),
    kind=st.sampled_from(["full", "singular", "transposed"]),
)
def test_bits_are_those_of_numpy(seed, size, kind):
    rng = np.random.default_rng(seed)
    matrix = square(rng, size, kind)
    before = matrix.copy()
    tall = rng.normal(size=(2 * size, size))
    symmetric = matrix + matrix.T
    pairs = [
        (qr(matrix), np.linalg.qr(matrix)),
        (svd(matrix), np.linalg.svd(matrix)),
        (svd(tall), np.linalg.svd(tall, full_matrices=False)),
        (eigh(symmetric), np.linalg.eigh(symmetric)),
    ]
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            assert a.tobytes() == b.tobytes()
            assert a.shape == b.shape
    assert matrix.tobytes() == before.tobytes()


def test_this_release_of_numpy_has_the_ufuncs():
    assert decompositions.HAS_UFUNCS


def test_without_the_ufuncs_the_bits_are_the_same(monkeypatch):
    matrix = square(np.random.default_rng(0), 4, "full")
    symmetric = matrix @ matrix.T
    with_ufuncs = [*qr(matrix), *svd(matrix), *eigh(symmetric)]
    monkeypatch.setattr(decompositions, "HAS_UFUNCS", False)
    without = [*qr(matrix), *svd(matrix), *eigh(symmetric)]
    assert [a.tobytes() for a in with_ufuncs] == [a.tobytes() for a in without]


@pytest.mark.parametrize("decompose", [eigh, svd])
def test_no_convergence_is_an_error_as_in_numpy(decompose):
    matrix = np.full((3, 3), np.nan)
    with np.errstate(invalid="ignore"), pytest.raises(np.linalg.LinAlgError):
        decompose(matrix)
