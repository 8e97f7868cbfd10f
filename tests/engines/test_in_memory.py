"""Data in this process's memory, kept ready or staged anew in every pass."""

from __future__ import annotations

import dataclasses
import os
import threading

import numpy as np
import pytest

from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines import in_memory, parts
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stage import STAGE_ROWS, Stage, aligned_empty
from nlsq_dask.kernels.sums import BlockKernel
from nlsq_dask.user_model.model import prepare_model
from tests.engines.conformance import EngineConformance
from tests.support.engines import chunked_engine, standard_engine
from tests.support.problems import exact_sums, plain_problem

BLOCK_ROWS = (STAGE_ROWS, 1 << 14, 4099)


class TestStandard(EngineConformance):
    def engine(self, spec, x, y, sigma=None, layout=0):
        return standard_engine(observe(x, y, sigma), spec)


class TestChunked(EngineConformance):
    def engine(self, spec, x, y, sigma=None, layout=0):
        rows = BLOCK_ROWS[layout % len(BLOCK_ROWS)]
        return chunked_engine(observe(x, y, sigma), spec, block_rows=rows)


class TestChunkedInTinyBlocks(EngineConformance):
    """Blocks of a handful of rows, so that they cut across all dimensions."""

    def engine(self, spec, x, y, sigma=None, layout=0):
        rows = 65 + layout % 64 if np.size(y) < 10_000 else 99_991
        return chunked_engine(observe(x, y, sigma), spec, block_rows=rows)


def test_an_answer_of_one_part_is_the_answer_added_to_nothing():
    problem = plain_problem(100)
    question = SumsAt(problem.params, problem.basis, observe=True)
    engine = standard_engine(observe(problem.x, problem.y, problem.sigma), problem.spec)
    alone = engine.ask(question)
    added = question.zero() + alone
    for field in dataclasses.fields(alone):
        assert np.array_equal(getattr(alone, field.name), getattr(added, field.name))
    assert alone.gram.flags.writeable
    assert alone.gradient.flags.c_contiguous


@pytest.fixture
def kernel_rows(monkeypatch):
    """Rows of each call of the kernel, as they were counted from outside."""
    counts = []
    call = BlockKernel.__call__

    def counted(self, params, basis, rows, *wanted):
        counts.append(rows.n)
        return call(self, params, basis, rows, *wanted)

    monkeypatch.setattr(BlockKernel, "__call__", counted)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("make", [standard_engine, chunked_engine])
def test_one_reading_of_every_row_in_a_pass(make, kernel_rows):
    problem = plain_problem(1_000_003, p=2)
    with make(observe(problem.x, problem.y, problem.sigma), problem.spec) as engine:
        for _ in range(2):
            kernel_rows.clear()
            engine.ask(SumsAt(problem.params, problem.basis))
            assert sum(kernel_rows) == problem.y.size


@pytest.mark.slow
@pytest.mark.parametrize("make", [standard_engine, chunked_engine])
def test_the_same_bits_on_any_number_of_cores(make, monkeypatch):
    problem = plain_problem(600_000)
    sums = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(in_memory, "available_cores", lambda n=cores: n)
        with make(observe(problem.x, problem.y, problem.sigma), problem.spec) as engine:
            sums.append(engine.ask(SumsAt(problem.params, problem.basis)))

    for other in sums[1:]:
        assert other.gram.tobytes() == sums[0].gram.tobytes()
        assert other.gradient.tobytes() == sums[0].gradient.tobytes()
        assert other.chi2 == sums[0].chi2


@pytest.mark.quick(3)
@pytest.mark.parametrize("piece_bytes", [1, 5 << 20])
@pytest.mark.parametrize("missing", [False, True])
def test_the_same_bits_whatever_pieces_the_memory_comes_in(piece_bytes, missing, monkeypatch):
    problem = plain_problem(600_000)
    if missing:
        problem.y[::3] = np.nan
    data = observe(problem.x, problem.y, problem.sigma, nan_policy="omit")
    sums = []
    for size in (parts.PIECE_BYTES, piece_bytes):
        monkeypatch.setattr(parts, "PIECE_BYTES", size)
        with standard_engine(data, problem.spec) as engine:
            sums.append(engine.ask(SumsAt(problem.params, problem.basis)))

    assert sums[0].n_points == (400_000 if missing else 600_000)
    assert sums[1].gram.tobytes() == sums[0].gram.tobytes()
    assert sums[1].moments == sums[0].moments


def test_rows_are_copied_once_in_the_threads_of_the_first_pass(monkeypatch):
    problem, threads, fill = plain_problem(300_001), [], Stage.fill

    def spied(stage, block, start):
        threads.append(threading.current_thread().name)
        return fill(stage, block, start)

    def not_zero(*shape):
        return np.full_like(aligned_empty(*shape), np.nan)

    monkeypatch.setattr(Stage, "fill", spied)
    monkeypatch.setattr(parts, "aligned_empty", not_zero)
    monkeypatch.setattr(in_memory, "available_cores", lambda: 2)
    with standard_engine(observe(problem.x, problem.y, problem.sigma), problem.spec) as engine:
        assert not threads
        first = engine.ask(SumsAt(problem.params, problem.basis))
        assert threads
        assert all(name.startswith("nlsq") for name in threads)
        threads.clear()
        again = engine.ask(SumsAt(problem.params, problem.basis))

    assert not threads
    assert np.isfinite(first.gram).all()
    assert again.gram.tobytes() == first.gram.tobytes()
    last = engine._parts[-1].rows()
    assert 0 < last.n < last.y.size
    assert not any(buffer[last.n :].any() for buffer in (last.y, *last.coords, last.weights))


def test_available_cores_are_those_of_this_process():
    assert in_memory.available_cores() == len(os.sched_getaffinity(0))


def from_first_row(x, a, b):
    """Not row-wise: the first of all rows enters every value."""
    return a * (x - x[0]) + b


@pytest.mark.parametrize("n_rows", [10, 5000, 300_000])
def test_a_model_of_all_rows_sees_all_rows_at_once(n_rows):
    rng = np.random.default_rng(n_rows)
    x, y = rng.normal(size=(2, n_rows))
    spec = prepare_model(from_first_row, 2, "single", 1)
    with standard_engine(observe(x, y), spec, whole=True) as engine:
        sums = engine.ask(SumsAt(np.array([2.0, 0.5]), np.eye(2)))

    jacobian = np.stack([x - x[0], np.ones(n_rows)], axis=1)
    residuals = jacobian @ [2.0, 0.5] - y
    np.testing.assert_allclose(sums.gram, jacobian.T @ jacobian, rtol=1e-10)
    np.testing.assert_allclose(sums.gradient, jacobian.T @ residuals, rtol=1e-9)
    assert sums.chi2 == pytest.approx(residuals @ residuals, rel=1e-12)


def test_a_memory_map_is_staged_in_pieces(tmp_path):
    problem = plain_problem(300_000, p=2, sigma=False)
    for name, array in (("x", problem.x), ("y", problem.y)):
        np.save(tmp_path / f"{name}.npy", array)
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    data = observe(x, y)
    with chunked_engine(data, problem.spec) as engine:
        sums = engine.ask(SumsAt(problem.params, problem.basis))

    exact_sums(problem).assert_equal(sums, 300_000)
    # The blocks are views of the file's pages, not copies.
    assert np.shares_memory(data.y, y)
