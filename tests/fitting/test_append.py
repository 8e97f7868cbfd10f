"""Rows that are appended to the data of a finished fit: only they are read for the sums."""

from __future__ import annotations

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import DataChangedError, InputError, ReadingError, fit
from nlsq_dask.fitting.append import unchanged_blocks
from tests.support.mutated_files import content_of_checkpoint, seal_checkpoint
from tests.support.same_result import assert_same_result

ROWS = 50
X = np.linspace(0, 4, 24 * ROWS)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.random.default_rng(3).standard_normal(X.size)

# Blocks whose checksums are compared before, and written in the end.
CHECKED = SUMMED = 2


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


class Reads:
    """Makes blocks of y and writes down their numbers; may fail at a read."""

    def __init__(self, fails_at=None):
        self.read, self.fails_at = [], fails_at

    def __call__(self, block, block_info=None):
        if len(self.read) == self.fails_at:
            raise OSError("the store is away")
        self.read.append(block_info[0]["chunk-location"][0])
        return block


def fitted(n_rows, directory=None, reads=None, chunks=ROWS, y=Y, **options):
    """A fit of the first rows."""
    lazy = da.from_array(y[:n_rows], chunks=chunks)
    lazy = lazy.map_blocks(reads or Reads(), dtype=float, meta=np.empty(0))
    arguments = {"p0": [1, 1, 0], "pilot": False, "cache": False, "retries": 0}
    with dask.config.set(scheduler="synchronous"):
        return fit(decay, X[:n_rows], lazy, checkpoint=directory, **(arguments | options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_rows", "checked", "new"),
    [(20 * ROWS, CHECKED, [20, 21, 22, 23]), (19 * ROWS + 20, CHECKED - 1, [19, 20, 21, 22, 23])],
)
def test_only_new_blocks_are_read_for_the_sums(n_rows, checked, new, tmp_path):
    fitted(n_rows, tmp_path)
    reads = Reads()
    result = fitted(X.size, tmp_path, reads, append=True)
    whole = fitted(X.size)
    assert sorted(reads.read[checked : checked + len(new)]) == new
    assert len(reads.read) == checked + len(new) + (result.n_passes - 1) * 24 + SUMMED
    assert result.n_passes < whole.n_passes
    assert result.success
    assert result.n_points == X.size
    assert (np.abs(result.popt - whole.popt) < 0.02 * whole.perr).all()
    np.testing.assert_allclose(result.pcov, whole.pcov, rtol=1e-3)
    assert result.r_squared == pytest.approx(whole.r_squared)


@pytest.mark.slow
@pytest.mark.every(5)
@pytest.mark.parametrize(
    "options",
    [
        {"fixed": {"c": 0.5}},
        {"ties": {"c": {"b": 0.4}}, "sigma": 0.05},
        {"loss": "cauchy", "f_scale": 0.1},
        {"bounds": {"c": (0.0, 0.45)}},
        {"diagnostics": True},
    ],
)
def test_fits_of_other_kinds(options, tmp_path):
    fitted(20 * ROWS, tmp_path, **options)
    result = fitted(X.size, tmp_path, append=True, **options)
    whole = fitted(X.size, **options)
    assert (np.abs(result.popt - whole.popt) <= 0.02 * whole.perr).all()
    np.testing.assert_allclose(result.pcov, whole.pcov, rtol=1e-3)
    if "diagnostics" in options:
        assert len(result.block_diagnostics()) == 24


@pytest.mark.slow
def test_rows_are_appended_night_after_night(tmp_path):
    for n_blocks in (8, 12, 13, 24):
        result = fitted(n_blocks * ROWS - 7 * (n_blocks == 13), tmp_path, append=True)
    whole = fitted(X.size)
    assert (np.abs(result.popt - whole.popt) < 0.02 * whole.perr).all()
    again = fitted(X.size, tmp_path, append=True)
    assert again.n_passes_before == again.n_passes
    assert_same_result(again, result)


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize("fails_at", [CHECKED + 3, CHECKED + 4 + 20])
def test_a_fit_of_more_rows_that_is_interrupted(fails_at, tmp_path):
    for name in ("whole", "interrupted"):
        fitted(20 * ROWS, tmp_path / name)
    whole = fitted(X.size, tmp_path / "whole", append=True)
    directory = tmp_path / "interrupted"
    with pytest.raises(ReadingError):
        fitted(X.size, directory, Reads(fails_at), append=True)
    reads = Reads()
    result = fitted(X.size, directory, reads, append=True)
    assert_same_result(result, whole)
    assert len(reads.read) < 24 * (whole.n_passes - 1) + CHECKED + SUMMED + 4


def test_old_rows_that_have_changed(tmp_path):
    fitted(20 * ROWS, tmp_path)
    with pytest.raises(DataChangedError, match="ended on other data"):
        fitted(X.size, tmp_path, y=Y + 0.01, append=True)


@pytest.mark.slow
def test_what_cannot_be_appended(tmp_path):
    with pytest.raises(InputError, match="append=True needs checkpoint"):
        fitted(X.size, append=True)
    with pytest.raises(InputError, match="is for streamed data"):
        fit(decay, X, Y, p0=[1, 1, 0], checkpoint=tmp_path, append=True)
    fitted(20 * ROWS, tmp_path / "other")
    with pytest.raises(InputError, match="the chunks of the data are"):
        fitted(X.size, tmp_path / "other", chunks=60, append=True)
    with pytest.raises(InputError, match="is of another fit: seed"):
        fitted(X.size, tmp_path / "other", seed=1, append=True)
    for path in (tmp_path / "other").glob("*.json"):
        content = content_of_checkpoint(path.read_bytes())
        if content["groups"]:
            content["groups"]["answers"] = 3
        path.write_bytes(seal_checkpoint(content))
    with pytest.raises(InputError, match="are damaged"):
        fitted(X.size, tmp_path / "other", append=True)
    with pytest.raises(ReadingError):
        fitted(20 * ROWS, tmp_path / "unfinished", Reads(30))
    with pytest.raises(InputError, match="has not ended"):
        fitted(X.size, tmp_path / "unfinished", append=True)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), max_size=4),
    st.integers(0, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_blocks_that_stay(before, more, grown, across):
    after = [*before[:-1], before[-1] + grown, *more]
    across = tuple(across)
    same = len(before) - (grown > 0)
    assert unchanged_blocks((before, across), (after, across)) == same * len(across)
    assert unchanged_blocks((before, across), (after, (*across, 1))) is None
    assert unchanged_blocks((before, across), ([before[0] + 1, *before, *more], across)) in (
        None,
        0,
    )
