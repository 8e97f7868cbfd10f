"""Rows that are left out: every engine sums over those that remain, and counts the others."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError, fit
from nlsq_dask.core.questions import CostsAt, SumsAt
from nlsq_dask.core.solver_state import SolverOptions
from nlsq_dask.io.sources import observe
from nlsq_dask.user_model.model import prepare_model
from tests.support.counting_store import stored
from tests.support.engines import (
    chunked_engine,
    dask_engine,
    looked_at_first,
    minimized,
    sample_of,
    standard_engine,
)
from tests.support.missing_problems import Gappy, gappy_problems
from tests.support.problems import exact_sums, plain_problem, with_params

seeds = st.integers(0, 2**32 - 1)


def standard(case: Gappy, layout: int) -> AbstractContextManager[Any]:
    return standard_engine(case.in_memory(), case.problem.spec)


def chunked(case: Gappy, layout: int) -> AbstractContextManager[Any]:
    return chunked_engine(case.in_memory(), case.problem.spec, block_rows=40 + layout % 2000)


def streamed(case: Gappy, layout: int) -> AbstractContextManager[Any]:
    return dask_engine(case.in_dask(layout), case.problem.spec)


def streamed_in_small_stages(case: Gappy, layout: int) -> AbstractContextManager[Any]:
    return dask_engine(case.in_dask(layout), case.problem.spec, stage_rows=64)


engines = pytest.mark.parametrize(
    "make", [standard, chunked, streamed, streamed_in_small_stages], ids=lambda f: f.__name__
)


def check_sums(make: Any, case: Gappy, layout: int) -> None:
    problem = case.problem
    if not case.keep.any():
        with (
            pytest.raises(InputError, match=f"^all {case.keep.size} rows are left out"),
            make(case, layout) as engine,
        ):
            looked_at_first(engine, engine._data, SumsAt(problem.params, problem.basis))
        return
    with make(case, layout) as engine:
        sums = engine.ask(SumsAt(problem.params, problem.basis))
        costs = engine.ask(CostsAt(problem.params * np.array([[1.0], [0.7]])))
    assert sums.n_skipped == case.n_skipped
    remaining = case.remaining
    expected = exact_sums(remaining)
    expected.assert_equal(replace(sums, n_skipped=0), remaining.y.size)
    other = exact_sums(with_params(remaining, problem.params * 0.7))
    np.testing.assert_allclose(costs, [expected.chi2 / 2, other.chi2 / 2], rtol=1e-10, atol=1e-10)


@pytest.mark.every(4)
@pytest.mark.slow
@engines
@settings(max_examples=60)
@given(case=gappy_problems(), layout=seeds)
def test_sums_equal_dense_numpy_on_the_rows_that_remain(make, case, layout):
    check_sums(make, case, layout)


@pytest.mark.cluster
def test_sums_on_a_cluster(client):
    @settings(max_examples=8)
    @given(case=gappy_problems(sizes=(1,)), layout=seeds)
    def check(case, layout):
        check_sums(
            lambda c, n: dask_engine(c.in_dask(n), c.problem.spec, client=client), case, layout
        )

    check()


def many_rows(share: float = 0.3, n_rows: int = 300_001) -> Gappy:
    """Several stages full of rows, with long gaps and short ones."""
    problem = plain_problem(n_rows, p=2)
    rng = np.random.default_rng(7)
    left_out = rng.random(n_rows) < share
    left_out[n_rows // 5 : n_rows // 3] = True
    y = np.where(left_out, np.nan, problem.y)
    return Gappy(replace(problem, y=y), {"nan_policy": "omit"}, ~left_out)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1e-4, 0.3, 0.999])
def test_many_rows_in_any_chunks(share):
    case = many_rows(share)
    expected = exact_sums(case.remaining)
    params, basis = case.problem.params, case.problem.basis
    for make in (standard, chunked, streamed):
        for layout in (1, 2):
            with make(case, layout * 99_989) as engine:
                sums = engine.ask(SumsAt(params, basis))
            assert (sums.n_points, sums.n_skipped) == (case.keep.sum(), case.n_skipped)
            expected.assert_equal(replace(sums, n_skipped=0), case.keep.sum())


def bits(sums):
    return (sums.gram.tobytes(), sums.gradient.tobytes(), sums.chi2, sums.n_points, sums.n_skipped)


@pytest.mark.cluster
def test_the_same_bits_on_every_scheduler(client):
    case = many_rows(n_rows=120_001)
    params, basis = case.problem.params, case.problem.basis
    arrays = [da.from_array(a, chunks=7001) for a in case.problem.arrays]
    data = observe(arrays[0], arrays[1], arrays[2], nan_policy="omit")
    spec = case.problem.spec
    found = [bits(dask_engine(data, spec, client=client).ask(SumsAt(params, basis)))]
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            found.append(bits(dask_engine(data, spec).ask(SumsAt(params, basis))))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
@engines
def test_a_selection_that_leaves_nothing_out_changes_no_bit(make):
    problem = plain_problem(90_000, p=2)
    everything = np.ones(90_000, bool)
    found = []
    for options in ({}, {"nan_policy": "omit", "fill_value": 1e9, "mask": ~everything}):
        with make(Gappy(problem, options, everything), 5) as engine:
            found.append(bits(engine.ask(SumsAt(problem.params, problem.basis))))
    assert found[0] == found[1]


@pytest.mark.slow
@engines
def test_a_coordinate_that_is_nan_takes_its_plane_along(make):
    shape = (30, 20, 10)
    rng = np.random.default_rng(1)
    t = np.linspace(0, 2, 30)
    t[[3, 29]] = np.nan
    row = np.ma.masked_equal(np.arange(20.0) / 10, 0.5)
    x = (t[:, None, None], row[:, None], np.linspace(0, 1, 10, dtype=">f4"))
    keep = np.ones(shape, bool)
    keep[[3, 29]] = keep[:, 5] = False
    problem = replace(plain_problem(10, p=2), x=x, y=rng.normal(size=shape), sigma=None)
    check_sums(make, Gappy(problem, {"nan_policy": "omit"}, keep), 3)


def test_whole_blocks_and_single_rows_are_masked_away():
    problem = plain_problem(1000, p=2)
    mask = np.zeros(1000, bool)
    mask[100:400] = mask[999] = True
    arrays = [da.from_array(a, chunks=100) for a in (problem.x, problem.y, problem.sigma)]
    data = observe(*arrays, mask=da.from_array(mask, chunks=250))
    engine = dask_engine(data, problem.spec)
    sums = engine.ask(SumsAt(problem.params, problem.basis))
    assert (sums.n_points, sums.n_skipped) == (699, 301)
    exact_sums(Gappy(problem, {}, ~mask).remaining).assert_equal(replace(sums, n_skipped=0), 699)


def test_blocks_may_be_masked_though_their_array_does_not_say_so():
    y = da.from_array(np.arange(40.0), chunks=10).map_blocks(
        lambda block: np.ma.masked_less(block, 13), dtype=float, meta=np.empty(0)
    )
    problem = plain_problem(40, p=1, sigma=False)
    sums = dask_engine(observe(problem.x, y), problem.spec).ask(SumsAt(np.ones(1), np.eye(1)))
    assert (sums.n_points, sums.n_skipped) == (27, 13)


@pytest.mark.parametrize("lazily", [False, True])
def test_all_rows_left_out_is_one_clear_error(lazily):
    def wrap(array):
        return da.from_array(array, chunks=3) if lazily else array

    nothing = wrap(np.full(10, np.nan))
    spec = plain_problem(10, p=1).spec
    data = observe(np.ones(10), nothing, nan_policy="omit", mask=wrap(np.arange(10) < 4))
    engines = [dask_engine] if lazily else [standard_engine, chunked_engine]
    for make in engines:
        with pytest.raises(InputError) as raised, make(data, spec) as engine:
            looked_at_first(engine, data, SumsAt(np.ones(1), np.eye(1)))
        assert str(raised.value).startswith(
            "all 10 rows are left out: check the masks and nan_policy='omit'"
        )
    if lazily:
        with pytest.raises(InputError, match="all 10 rows are left out"):
            sample_of(dask_engine(data, spec), data)


def test_a_sample_holds_only_rows_that_remain():
    case = many_rows(n_rows=200_000)
    arrays = [da.from_array(a, chunks=1000) for a in case.problem.arrays]
    data = observe(*arrays[:3], nan_policy="omit")
    sample = sample_of(dask_engine(data, case.problem.spec), data, most=500)
    assert sample.n_rows == sample.count_rows()
    assert 100 < sample.n_rows < 2000
    assert np.isin(sample.y, case.remaining.y).all()
    whole = {tuple(row) for row in np.stack([case.remaining.x, case.remaining.y], 1)}
    assert all(tuple(row) in whole for row in np.stack([sample.coords[0], sample.y], 1))


def test_a_sample_of_masked_blocks_looks_at_more_of_them():
    """As of a map of the sea, of which nearly all blocks are land."""
    y = np.full(20_000, np.nan)
    y[6100:6150] = 1.0
    data = observe(
        da.from_array(np.arange(20_000.0), chunks=50), da.from_array(y, chunks=50),
        nan_policy="omit",
    )  # fmt: skip
    sample = sample_of(dask_engine(data, plain_problem(10, p=2).spec), data, least=2)
    np.testing.assert_array_equal(sample.coords[0], np.arange(6100, 6150))


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def noisy_decay(n_rows=2000):
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 4, n_rows)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + rng.normal(0, 0.1, n_rows)
    y[rng.integers(0, n_rows, 60)] = np.nan
    x[rng.integers(0, n_rows, 60)] = np.nan
    return x, y


def optimum(engine, start):
    free = np.full(len(start), np.inf)
    options = SolverOptions(ftol=1e-12, xtol=1e-12, gtol=1e-12)
    return minimized(engine, np.asarray(start), -free, free, options)


@pytest.mark.parametrize("chunks", [None, 170])
def test_the_optimum_is_scipy_s_with_nan_policy_omit(chunks):
    x, y = noisy_decay()
    expected, _ = scipy.optimize.curve_fit(
        lambda x, a, b, c: a * np.exp(-b * x) + c,
        x, y, p0=[1, 1, 0], nan_policy="omit", ftol=1e-12, xtol=1e-12, gtol=1e-12,
    )  # fmt: skip
    spec = prepare_model(decay, 3, "single", 1)
    if chunks is None:
        engine: Any = standard_engine(observe(x, y, nan_policy="omit"), spec)
    else:
        arrays = (da.from_array(a, chunks=chunks) for a in (x, y))
        engine = dask_engine(observe(*arrays, nan_policy="omit"), spec)
    with engine:
        solution = optimum(engine, [1.0, 1.0, 0.0])
    np.testing.assert_allclose(solution.params, expected, rtol=1e-8)
    assert solution.n_points == np.isfinite(x + y).sum()


def running_sum(x, a, b):
    return a * jnp.cumsum(x) + b


@pytest.mark.parametrize("n_rows", [50, 5000])
def test_a_model_of_all_rows_sees_the_rows_that_remain(n_rows):
    rng = np.random.default_rng(n_rows)
    x = rng.normal(size=n_rows)
    y = 0.3 * np.cumsum(x) + 1 + rng.normal(size=n_rows)
    x[rng.random(n_rows) < 0.2] = np.nan
    expected, _ = scipy.optimize.curve_fit(
        lambda x, a, b: a * np.cumsum(x) + b, x, y, p0=[1, 0], nan_policy="omit"
    )
    spec = prepare_model(running_sum, 2, "single", 1)
    data = observe(x, y, nan_policy="omit")
    with standard_engine(data, spec, whole=True) as engine:
        solution = optimum(engine, [1.0, 0.0])
    np.testing.assert_allclose(solution.params, expected, rtol=1e-6)
    assert solution.n_points == np.isfinite(x).sum()

    nothing = observe(x, np.full(n_rows, np.nan), nan_policy="omit")
    with pytest.raises(InputError, match="rows are left out"):
        standard_engine(nothing, spec, whole=True)


@pytest.mark.parametrize("strategy", ["standard", "chunked", "streaming"])
def test_masked_arrays_are_fitted_without_the_rows_they_hide(strategy):
    x, y = noisy_decay()
    keep = np.isfinite(x + y)
    expected = fit(decay, x[keep], y[keep], p0=[1, 1, 0])
    y = np.ma.masked_invalid(np.where(np.isnan(x), np.inf, y))
    x = np.nan_to_num(x)
    if strategy == "streaming":
        x, y = (da.from_array(a, chunks=300) for a in (x, y))
        assert isinstance(y._meta, np.ma.MaskedArray)
    result = fit(decay, x, y, p0=[1, 1, 0], strategy=strategy)
    # A streamed fit may stop when what is left is of no statistical meaning.
    deviations = np.sqrt(np.diag(expected.pcov))
    assert (np.abs(result.popt - expected.popt) < 0.02 * deviations).all()
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-3)
    assert result.n_points == keep.sum()


@pytest.mark.slow
def test_a_mask_in_zarr_is_read_once_a_pass(tmp_path):
    problem = plain_problem(20_000, p=2, sigma=False)
    x = stored(tmp_path / "x", problem.x, (1530,))
    y = stored(tmp_path / "y", problem.y, (1530,))
    left_out = np.random.default_rng(0).random(20_000) < 0.3
    mask = stored(tmp_path / "mask", left_out, (1530,), fill_value=False)
    engine = dask_engine(observe(x, y, mask=mask), problem.spec)
    for n_passes in (1, 2, 3):
        sums = engine.ask(SumsAt(problem.params, problem.basis))
        assert sums.n_skipped == left_out.sum()
        for array in (x, y, mask):
            assert set(array.store.reads.values()) == {n_passes}
            assert len(array.store.reads) == 14
