"""Fits of the certified problems of NIST, in small blocks, and of a thousandfold of their rows."""

from __future__ import annotations

import pytest

from benchmarks.nist_table import (
    DEVIATION_DIGITS,
    PARAMETER_DIGITS,
    STRATEGIES,
    TOLERANCES,
    digits_of,
    fit_with,
    write_replicated,
)
from nlsq_dask import fit
from nlsq_dask.engines.in_memory import chunked_engine
from nlsq_dask.fitting import open_engine
from tests.support import nist

PROBLEMS = nist.load_all()
CASES = [
    pytest.param(name, start, id=f"{name}-{start + 1}") for name in PROBLEMS for start in (0, 1)
]

#: What the sums of another strategy may lose: digits of ill-conditioned problems, in long searches,
#: with two predictors.
HARD = [("Bennett5", 1), ("Hahn1", 0), ("Lanczos3", 1), ("MGH17", 0), ("Nelson", 0)]
HARD_CASES = [pytest.param(*case, id=f"{case[0]}-{case[1] + 1}") for case in HARD]

#: The residuals of Lanczos1 are rounding errors of its 14-digit data in float64; SciPy has 3.0.
LANCZOS1_DEVIATION_DIGITS = 2.0
REPLICATED = 1000


def assert_certified(problem, result, times=1):
    digits = digits_of(problem, result, times)
    least = LANCZOS1_DEVIATION_DIGITS if problem.name == "Lanczos1" else DEVIATION_DIGITS
    assert result.success
    assert digits.params >= PARAMETER_DIGITS
    assert digits.deviations >= least
    assert result.n_points == times * problem.y.size
    if problem.name != "Lanczos1":
        assert result.chi2 == pytest.approx(times * problem.rss, rel=1e-8)


@pytest.mark.slow
@pytest.mark.every(6)
@pytest.mark.parametrize(("name", "start"), CASES)
def test_certified_digits(name, start):
    result = fit_with(PROBLEMS[name], start, "standard")
    assert result.strategy == "standard"
    assert_certified(PROBLEMS[name], result)


@pytest.mark.every(9)  # the first with blocks in memory, the last with streams
@pytest.mark.slow
@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "standard"])
@pytest.mark.parametrize(("name", "start"), HARD_CASES)
def test_certified_digits_out_of_small_blocks(name, start, strategy, monkeypatch):
    # The blocks that are planned for a machine's memory would hold any of these data whole.
    def of_small_blocks(data, kernels, *_):
        return chunked_engine(data, kernels, block_rows=16)

    monkeypatch.setattr(open_engine, "chunked_engine", of_small_blocks)
    result = fit_with(PROBLEMS[name], start, strategy)
    assert result.strategy == strategy
    assert_certified(PROBLEMS[name], result)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nist")
    return {name: write_replicated(PROBLEMS[name], REPLICATED, folder / name) for name, _ in HARD}


@pytest.mark.thorough
@pytest.mark.cluster
@pytest.mark.parametrize(("name", "start"), HARD_CASES)
def test_replicated_rows_on_a_cluster(name, start, replicated, client):
    problem = PROBLEMS[name]
    x, y = replicated[name]
    result = fit(problem.model, x, y, p0=problem.starts[start], client=client, **TOLERANCES)
    assert result.strategy == "streaming"
    assert_certified(problem, result, REPLICATED)
