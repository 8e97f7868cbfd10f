"""Blocks that cannot be read are left out, in every pass from the one on that lost them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest

from nlsq_dask import InputError, MissingDataWarning, ReadingError, fit, fit_models
from nlsq_dask.engines.dask.reading import Retries
from nlsq_dask.engines.partial import LostBlock
from nlsq_dask.fitting.ledger_content import left_out_to_json, read_left_out
from nlsq_dask.io.sources import observe
from nlsq_dask.results.result import FitResult
from tests.engines.test_faults import (
    N_BLOCKS,
    PROBLEM,
    QUESTION,
    Blocks,
)
from tests.fitting.test_same_data import OPTIONS as EACH_PASS
from tests.fitting.test_same_data import X, Y, decay
from tests.support.engines import dask_engine
from tests.support.problems import exact_sums
from tests.support.same_result import assert_same_result

ONCE = Retries(0)
#: To the optimum, so that fits that come from other sides agree.
OPTIONS = EACH_PASS | {"stat_tol": 1e-6}
LOST = MissingDataWarning
N = 10
ROWS = Y.size // N


class Flaky:
    """Blocks of y, of which some fail from some read on, in any process."""

    def __init__(self, folder: Path, failing, error=None):
        self.folder, self.failing = folder, failing
        self.error = error or OSError("gone")
        folder.mkdir(exist_ok=True)

    def __call__(self, block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        reads = len(self.reads(number))
        (self.folder / f"{number}-{reads}").touch()
        if reads + 1 >= self.failing.get(number, np.inf):
            raise self.error
        return block

    def reads(self, number="*"):
        return list(self.folder.glob(f"{number}-*"))

    @property
    def y(self):
        y = da.from_array(Y, chunks=ROWS)
        return y.map_blocks(self, dtype=float, meta=np.empty(0))


def rows_of(*blocks):
    mask = np.zeros(Y.size, bool)
    for block in blocks:
        mask[block * ROWS : (block + 1) * ROWS] = True
    return mask


@cache
def expected_without(*blocks):
    return fit(decay, X, da.from_array(Y, chunks=ROWS), mask=rows_of(*blocks), **OPTIONS)


def omitting(y, **options):
    return fit(decay, X, y, on_error="omit", retries=0, **(OPTIONS | options))


# In one pass


def assert_sums_without(sums, *ranges):
    """The sums are those of all rows but those in some ranges."""
    rest = np.delete(np.arange(1000), np.concatenate([np.arange(*ends) for ends in ranges]))
    problem = replace(PROBLEM, x=PROBLEM.x[rest], y=PROBLEM.y[rest])
    exact_sums(problem).assert_equal(replace(sums, n_skipped=0), rest.size)
    assert sums.n_skipped == 1000 - rest.size


def test_the_sums_are_those_of_the_other_blocks(tmp_path):
    blocks = Blocks(tmp_path, (3, 4, 17), 99, OSError("no route to host"))
    with dask_engine(blocks.data, PROBLEM.spec, retries=ONCE, omits=True) as engine:
        with pytest.warns(LOST, match=r"3 of 40 blocks .* block \(3,\) of y, .* no route") as told:
            first = engine.ask(QUESTION)
        again = engine.ask(QUESTION)
        assert engine.omissions.all == {(3,), (4,), (17,)}
    assert len(told) == 1
    assert_sums_without(first, (75, 125), (425, 450))
    assert first.gram.tobytes() == again.gram.tobytes()
    assert first.gradient.tobytes() == again.gradient.tobytes()
    assert [len(blocks.tries(i)) for i in (3, 4, 17)] == [1, 1, 1]


def test_a_piece_that_several_blocks_need(tmp_path):
    """Chunks of y hold four blocks each: those of a chunk that fails are lost, and no others."""
    x = da.from_array(PROBLEM.x, chunks=25)
    flaky = Blocks(tmp_path, (2,), 99, OSError("gone"))
    y = da.from_array(PROBLEM.y, chunks=100).map_blocks(flaky, dtype=float, meta=np.empty(0))
    with dask_engine(observe(x, y), PROBLEM.spec, retries=ONCE, omits=True) as engine:
        with pytest.warns(LOST, match="4 of 40"):
            sums = engine.ask(QUESTION)
        assert engine.omissions.all == {(i,) for i in range(8, 12)}
    assert_sums_without(sums, (200, 300))


def test_an_array_that_several_blocks_of_a_group_share_is_made_without_the_first():
    """The block that would have made it is left out before any reading."""
    y = da.from_array(PROBLEM.y, chunks=100).map_blocks(lambda b: b + 0.0, dtype=float)
    data = observe(da.from_array(PROBLEM.x, chunks=25), y)
    with dask_engine(data, PROBLEM.spec) as engine:
        whole = [step.index for group in engine.stream.groups for step in group.steps]
        engine.omissions.resume(frozenset({(0,), (5,)}))
        sums = engine.ask(QUESTION)
    assert len(whole) == 40
    assert_sums_without(sums, (0, 25), (125, 150))


def test_rows_that_were_kept_are_dropped_with_their_block(tmp_path):
    blocks = Blocks(tmp_path)
    with dask_engine(blocks.data, PROBLEM.spec, cache=True) as engine:
        assert engine.ask(QUESTION).n_points == 1000
        engine.omissions.resume(frozenset({(7,)}))
        sums = [engine.ask(QUESTION) for _ in range(2)]
    for each in sums:
        assert_sums_without(each, (175, 200))
    assert len(blocks.tries(7)) == 1


def test_a_store_of_which_nothing_can_be_read(tmp_path):
    blocks = Blocks(tmp_path, range(N_BLOCKS), 99, PermissionError("denied"))
    with (
        pytest.raises(ReadingError, match=r"none of the 40 blocks could be read.*denied"),
        dask_engine(blocks.data, PROBLEM.spec, omits=True) as engine,
    ):
        engine.ask(QUESTION)


def test_errors_of_the_user_s_own_code_are_not_left_out(tmp_path):
    blocks = Blocks(tmp_path, (3,), 99, ValueError("my own mistake"))
    with (
        pytest.raises(ValueError, match="my own mistake"),
        dask_engine(blocks.data, PROBLEM.spec, omits=True) as engine,
    ):
        engine.ask(QUESTION)


def test_no_secret_is_told_of_a_block_that_is_left_out(tmp_path, caplog):
    cause = OSError("GET https://u:CANARY@host/c/0?X-Amz-Signature=CANARY failed")
    blocks = Blocks(tmp_path, (3,), 99, cause)
    with dask_engine(blocks.data, PROBLEM.spec, retries=Retries(1, 0.001), omits=True) as engine:
        with pytest.warns(LOST, match=r"https://\*\*\*@host") as told:
            engine.ask(QUESTION)
        assert "CANARY" not in str(told[0].message) + caplog.text + repr(vars(engine.omissions))


@pytest.mark.parametrize("value", ["skip", None, 1])
def test_another_choice_is_refused(value):
    with pytest.raises(InputError, match="on_error"):
        fit(decay, X, da.from_array(Y, chunks=ROWS), on_error=value, **OPTIONS)


# In a fit


@pytest.mark.quick(3)
@pytest.mark.parametrize("lost_in", [1, 2, 3])
def test_a_block_stays_omitted(lost_in, tmp_path):
    flaky = Flaky(tmp_path / "blocks", {4: lost_in})
    with pytest.warns(LOST, match=r"1 of 10 blocks .* block \(4,\) of y") as told:
        result = omitting(flaky.y)
    expected = expected_without(4)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-6)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-6)
    np.testing.assert_allclose(result.r_squared, expected.r_squared, rtol=1e-9)
    assert result.success
    assert (result.n_points, result.n_skipped) == (Y.size - ROWS, ROWS)
    assert result.blocks_omitted == ((4,),)
    assert result.n_blocks_omitted == 1
    assert len(told) == 1
    assert len(flaky.reads(4)) == lost_in
    # One reading for each evaluation: that of the present point is one more.
    assert result.n_passes == result.nfev
    assert len(flaky.reads(0)) == result.n_passes
    if lost_in == 1:
        assert result.n_passes == expected.n_passes


@pytest.mark.cluster
def test_threads_and_a_cluster_give_the_same_bits(client, tmp_path):
    results = []
    for place in (None, client):
        flaky = Flaky(tmp_path / str(place is None), {4: 2, 7: 3})
        with pytest.warns(LOST):
            results.append(omitting(flaky.y, client=place))
    assert_same_result(*results)
    assert results[0].blocks_omitted == ((4,), (7,))


def test_two_blocks_that_are_lost_one_after_the_other(tmp_path):
    """The second is lost in the reading in which the present point is evaluated again."""
    with pytest.warns(LOST) as told:
        result = omitting(Flaky(tmp_path / "blocks", {4: 2, 7: 3}).y)
    np.testing.assert_allclose(result.popt, expected_without(4, 7).popt, rtol=1e-6)
    assert len(told) == 2
    assert result.n_points == Y.size - 2 * ROWS


class Killed(BaseException):
    """Ends a fit as a killed process does."""


@pytest.mark.slow
@pytest.mark.parametrize(("lost_in", "after"), [(2, 2), (3, 1)])
def test_a_resumed_fit_leaves_out_the_same_blocks(lost_in, after, tmp_path):
    """The block was lost before the fit was killed, or is lost after it was resumed."""
    with pytest.warns(LOST):
        expected = omitting(Flaky(tmp_path / "calm", {4: lost_in}).y)
    steps = []

    def killed(intermediate_result):
        steps.append(intermediate_result)
        if len(steps) == after:
            raise Killed

    directory = tmp_path / "checkpoints"
    flaky = Flaky(tmp_path / "blocks", {4: lost_in})
    with pytest.warns(LOST) as told:
        with pytest.raises(Killed):
            omitting(flaky.y, checkpoint=directory, callback=killed)
        if lost_in == 2:
            flaky.failing = {}  # the block can be read again, and stays omitted
        resumed = omitting(flaky.y, checkpoint=directory, resume=True)
    assert len(told) == 1
    assert resumed.blocks_omitted == ((4,),)
    assert resumed.popt.tobytes() == expected.popt.tobytes()
    finished = fit(decay, X, flaky.y, checkpoint=directory, resume=True, **OPTIONS)
    assert finished.blocks_omitted == ((4,),)


@pytest.mark.slow
def test_models_are_compared_on_the_same_rows(tmp_path):
    """The line has ended before the block is lost that both fits then leave out."""

    def line(x, a, b):
        return a + b * x

    flaky = Flaky(tmp_path / "blocks", {4: 4})
    options = {k: v for k, v in OPTIONS.items() if k != "p0"}
    models, p0 = {"line": line, "decay": decay}, {"line": [1, 1], "decay": [1, 1, 0]}
    with pytest.warns(LOST) as told:
        both = fit_models(models, X, flaky.y, p0, on_error="omit", retries=0, **options)
    assert len(told) == 1
    for result in (both["line"], both["decay"]):
        assert result.n_points == Y.size - ROWS
        assert result.blocks_omitted == ((4,),)
    masked = np.delete(np.arange(Y.size), np.flatnonzero(rows_of(4)))
    slope, offset = np.polyfit(X[masked], Y[masked], 1)
    np.testing.assert_allclose(both["line"].popt, [offset, slope], rtol=1e-9)
    np.testing.assert_allclose(both["decay"].popt, expected_without(4).popt, rtol=1e-6)


@pytest.mark.slow
def test_later_readings_of_a_result_leave_the_block_out(tmp_path):
    flaky = Flaky(tmp_path / "blocks", {4: 1})
    with pytest.warns(LOST):
        result = omitting(flaky.y)
    expected = expected_without(4)
    found = result.confidence_intervals(method="profile")
    np.testing.assert_allclose(found, expected.confidence_intervals(method="profile"), rtol=1e-5)
    assert len(flaky.reads(4)) == 1
    assert "1 block: (4,)" in result.summary()
    result.save(tmp_path / "result.json")
    assert FitResult.load(tmp_path / "result.json").blocks_omitted == ((4,),)


def test_collapsed_rows(tmp_path):
    """One reading finds the means of the blocks that can be read."""
    x = np.linspace(0, 4, 50)[:, None]
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * np.sin(np.arange(2000.0).reshape(50, 40))

    def made(block, block_info=None):
        if block_info[0]["chunk-location"] == (0, 2):
            raise OSError("gone")
        return block

    lazy = da.from_array(y, chunks=(50, 10)).map_blocks(made, dtype=float, meta=np.empty((0, 0)))
    with pytest.warns(LOST, match="1 of 4"):
        result = omitting_2d(x, lazy)
    expected = fit(decay, x, np.delete(y, np.s_[20:30], axis=1), p0=[1, 1, 0])
    assert result.n_distinct == 50
    assert (result.n_points, result.n_skipped) == (1500, 500)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-6)


def omitting_2d(x, y):
    return fit(decay, x, y, p0=[1, 1, 0], on_error="omit", retries=0, collapse=True)


@pytest.mark.slow
def test_a_block_that_cannot_be_read_in_the_sample(tmp_path):
    flaky = Flaky(tmp_path / "blocks", {0: 1})
    with pytest.warns(LOST) as told:
        result = omitting(flaky.y, pilot=True)
    assert len(told) == 1
    assert len(flaky.reads(0)) == 1
    np.testing.assert_allclose(result.popt, expected_without(0).popt, rtol=1e-6)


# Kept for a later process


class Reads:
    """Makes blocks of y, counts them in a file, cannot read some, and is away from one on."""

    def __init__(self, log: Path, broken=(), away=np.inf):
        self.log, self.broken, self.away = log, broken, away
        log.touch()

    def __call__(self, block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        count = self.count
        with self.log.open("ab") as file:
            file.write(bytes([number]))
        if count >= self.away:
            raise Killed
        if (number, count // N) in self.broken:
            raise OSError("gone")
        return block

    @property
    def count(self):
        return self.log.stat().st_size

    @property
    def y(self):
        return da.from_array(Y, chunks=ROWS).map_blocks(self, dtype=float, meta=np.empty(0))


def kept(reads, directory=None, **options):
    with dask.config.set(scheduler="synchronous"):
        return omitting(reads.y, checkpoint=directory, resume=True, cache=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("lost_in", [0, 1])
def test_a_killed_pass_goes_on_without_the_blocks_that_it_lost(lost_in, tmp_path, monkeypatch):
    """The block is lost in the pass that is killed, or in the pass before."""
    monkeypatch.setattr("nlsq_dask.fitting.ledger.SECONDS", 0.0)
    monkeypatch.setattr("nlsq_dask.fitting.ledger.TIMES_LONGER", 0.0)
    broken = {(4, lost_in)}
    away = N + 9 if lost_in else N + 8  # in the second pass, of which a block less is read
    directory = tmp_path / "checkpoints"
    calm = Reads(tmp_path / "whole", broken)
    with pytest.warns(LOST):
        whole = kept(calm, tmp_path / "calm")
    reads = Reads(tmp_path / "second")  # all blocks can be read again
    with pytest.warns(LOST) as told:
        with pytest.raises(Killed):
            kept(Reads(tmp_path / "first", broken, away), directory)
        resumed = kept(reads, directory)
    assert len(told) == 1
    assert_same_result(resumed, whole)
    assert resumed.blocks_omitted == ((4,),)
    assert 4 not in reads.log.read_bytes()
    # A pass and all groups but two of another: that which is compared, and that which was killed.
    assert calm.count - reads.count == N + (N - 1 + lost_in) - 2


@pytest.mark.slow
@pytest.mark.thorough
def test_whole_answers_are_kept_with_the_blocks_that_they_leave_out(tmp_path, monkeypatch):
    """A search over starts makes no checkpoint, and its first pass loses a block."""
    monkeypatch.setattr("nlsq_dask.fitting.ledger.SECONDS", 0.0)
    monkeypatch.setattr("nlsq_dask.fitting.ledger.TIMES_LONGER", 0.0)
    monkeypatch.setattr("nlsq_dask.fitting.solve.run_pilot", lambda *_: None)
    broken, options = {(4, 0)}, {"pilot": True, "n_starts": 2}
    calm = Reads(tmp_path / "whole", broken)
    with pytest.warns(LOST):
        whole = kept(calm, tmp_path / "calm", **options)
    sampled = 1 + (whole.n_passes > 0)  # the sample has a block or two
    directory = tmp_path / "checkpoints"
    with pytest.warns(LOST), pytest.raises(Killed):
        kept(Reads(tmp_path / "first", broken, 4 * N + sampled), directory, **options)
    reads = Reads(tmp_path / "second")
    resumed = kept(reads, directory, **options)
    assert_same_result(resumed, whole)
    assert resumed.blocks_omitted == ((4,),)
    assert 4 not in reads.log.read_bytes()
    assert resumed.n_passes_before >= 2


def test_blocks_in_a_ledger_are_read_with_doubt():
    known = ({3: (LostBlock((3, 1), "gone"),)}, frozenset({(3, 1), (0, 0)}))
    values = json.loads(json.dumps(left_out_to_json(*known)))
    assert read_left_out(values, (4, 2)) == known
    assert read_left_out({}, (4, 2)) == ({}, frozenset())
    for grid in [(4,), (3, 2), (4, 1)]:
        with pytest.raises(ValueError, match="omitted"):
            read_left_out(values, grid)
    with pytest.raises(ValueError, match="list"):
        read_left_out({"omitted": 3}, (4, 2))


def test_the_table_of_the_blocks_has_those_that_are_left_out(tmp_path):
    with pytest.warns(LOST):
        result = omitting(Flaky(tmp_path / "blocks", {4: 2}).y, diagnostics=True)
    table = result.block_diagnostics()
    assert table.n_points.tolist() == [0 if i == 4 else ROWS for i in range(N)]
    assert table.n_skipped.tolist() == [ROWS if i == 4 else 0 for i in range(N)]
    a, b, c = result.popt
    residuals = (Y - a * np.exp(-b * X) - c).reshape(N, ROWS)
    others = np.arange(N) != 4
    np.testing.assert_allclose(table.chi2_per_row[others], (residuals**2).mean(1)[others], 1e-9)
    assert (table.shift[4] == 0.0).all()


@pytest.mark.slow
def test_rows_are_appended_to_a_fit_that_left_blocks_out(tmp_path):
    """The sums of the old groups leave the block out, and so does the new fit."""
    flaky, directory = Flaky(tmp_path / "blocks", {4: 2}), tmp_path / "checkpoints"
    n = 8 * ROWS
    with pytest.warns(LOST):
        fit(
            *(decay, X[:n], flaky.y[:n]),
            **(OPTIONS | {"on_error": "omit", "retries": 0, "checkpoint": directory}),
        )
    flaky.failing = {}
    longer = omitting(flaky.y, checkpoint=directory, append=True)
    assert longer.blocks_omitted == ((4,),)
    np.testing.assert_allclose(longer.popt, expected_without(4).popt, rtol=1e-6)
    assert len(flaky.reads(4)) == 2
