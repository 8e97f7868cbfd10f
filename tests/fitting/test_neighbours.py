"""A second chance by neighbours: peaks that one start does not find, in any chunks."""

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_dask import ConvergenceWarning, InputError, Status, fit_each
from nlsq_dask.engines.dask.series_halo import surrounded, wide_chunks, with_halo
from nlsq_dask.engines.neighbours import ROUNDS, neighbours
from nlsq_dask.fitting.each import EachOptions, prepare_each
from nlsq_dask.fitting.options import InputOptions

X = np.linspace(0.0, 10.0, 40)
SHAPE = (14, 20)
START = (1.0, 3.0, 0.6, 0.0)


def peak(x, height, centre, width, offset):
    return height * jnp.exp(-0.5 * ((x - centre) / width) ** 2) + offset


CENTRE = np.broadcast_to(np.linspace(2.0, 8.0, SHAPE[1]), SHAPE)
Y = np.exp(-0.5 * ((X[:, None, None] - CENTRE) / 0.6) ** 2)
Y = Y + 0.03 * np.random.default_rng(0).normal(size=Y.shape)
Y[:, 3, 4], Y[:, 5, 5] = 1.0, np.nan


@pytest.fixture(scope="module")
def maps():
    with pytest.warns(ConvergenceWarning):
        return fit_each(peak, X, Y, START, refine="neighbours")


@pytest.mark.slow
def test_series_are_fitted_again_from_the_answers_of_neighbours(maps):
    with pytest.warns(ConvergenceWarning):
        alone = fit_each(peak, X, Y, START)
    right = np.abs(maps["centre"] - CENTRE) < 0.2
    before = np.abs(alone["centre"] - CENTRE) < 0.2
    assert (right | ~before).all()
    # A peak is found up to one step farther in each round.
    assert right.sum() >= before.sum() + 2 * ROUNDS
    both = (maps.status > 0) & (alone.status > 0)
    assert (maps.chi2[both] <= alone.chi2[both]).all()
    assert maps.status[3, 4] == Status.UNDETERMINED
    assert maps.status[5, 5] == Status.TOO_FEW_ROWS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
@pytest.mark.parametrize(
    ("chunks", "is_stored"), [((-1, 7, 20), False), ((10, 14, (8, 3, 9)), True)]
)
def test_the_answers_do_not_depend_on_the_chunks(maps, chunks, is_stored, tmp_path):
    lazy = da.from_array(Y, chunks=chunks)
    store = tmp_path / "maps.zarr" if is_stored else None
    found = fit_each(peak, X, lazy, START, refine="neighbours", store=store).compute()
    for name, values in maps.fields.items():
        np.testing.assert_array_equal(found.fields[name], values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nlsq_dask.ConvergenceWarning")
@pytest.mark.parametrize("part", [(slice(2), slice(ROUNDS - 1)), (slice(3, 6), slice(None))])
def test_a_map_may_be_shorter_than_what_surrounds_a_block(part):
    y = Y[:, *part]
    found = fit_each(peak, X, da.from_array(y, chunks=(-1, 1, 6)), START, refine="neighbours")
    expected = fit_each(peak, X, y, START, refine="neighbours")
    for name, values in found.compute().fields.items():
        np.testing.assert_array_equal(values, expected.fields[name])


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
def test_short_chunks_are_joined_to_short_blocks(rows, columns):
    y = da.zeros((2, sum(rows), sum(columns)), chunks=(2, tuple(rows), tuple(columns)))
    job = prepare_each(peak, [0.0, 1.0], y, START, None, InputOptions(), EachOptions())
    grid = wide_chunks(job.problem, job.arrays)
    for own, given_lengths in zip(grid, (rows, columns), strict=True):
        assert sum(own) == sum(given_lengths)
        assert len(own) == 1 or min(own) >= ROUNDS
        assert max(own) <= max(*given_lengths, ROUNDS) + 2 * ROUNDS
    around = with_halo(job.problem, job.arrays, grid)[0].chunks[1:]
    assert around == surrounded(grid)


def test_neighbours_along_each_axis():
    right, left, down, up = np.stack(neighbours((2, 3)))[[2, 3, 0, 1]]
    np.testing.assert_array_equal(right, [-1, 0, 1, -1, 3, 4])
    np.testing.assert_array_equal(left, [1, 2, -1, 4, 5, -1])
    np.testing.assert_array_equal(down, [-1, -1, -1, 0, 1, 2])
    np.testing.assert_array_equal(up, [3, 4, 5, -1, -1, -1])
    assert neighbours(()) == []


def test_refinements_that_are_refused():
    with pytest.raises(InputError, match="refine = 'grid' is unknown"):
        fit_each(peak, X, Y, START, refine="grid")
    y = da.from_array(Y, chunks=(1, 14, 20))
    with pytest.raises(InputError, match="refine='neighbours' needs whole series"):
        fit_each(peak, X, y, START, refine="neighbours", memory_limit_gb=1e-3)
