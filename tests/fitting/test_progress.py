"""The line that shows where a long fit is."""

from __future__ import annotations

import io
import re

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import fit
from nlsq_dask.fitting import progress
from nlsq_dask.fitting.progress import ProgressLine

X = np.linspace(0, 4, 2000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def lazy_fit(**options):
    return fit(
        decay, da.from_array(X, chunks=100), da.from_array(Y, chunks=100), p0=[1, 1, 0], **options
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A time that passes when it is told to."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_fit_shows_every_pass_on_standard_error(capsys):
    result = lazy_fit(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    lines = [line.strip() for line in shown.err.split("\r") if line.strip()]
    complete = [line for line in lines if "20/20 blocks" in line]
    assert [int(re.match(r"pass (\d+) ", line)[1]) for line in complete] == list(
        range(1, result.n_passes + 1)
    )
    # The first pass knows no cost yet; each later line has that of the best point so far.
    assert "cost" not in complete[0]
    for line, record in zip(complete[1:], result.history, strict=False):
        assert f"cost {record.cost:.6g}" in line
    assert all(re.search(r"\d+ s · pass ends in \d+ s$", line) for line in complete)


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_is_shown_unasked(capsys, progress):
    lazy_fit(progress=progress)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_for_data_in_memory(capsys):
    fit(decay, X, Y, p0=[1, 1, 0], progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.cluster
def test_a_fit_on_a_cluster_shows_the_same(capsys, client):
    result = lazy_fit(progress=True, client=client)
    shown = capsys.readouterr().err
    assert shown.count("20/20 blocks") == result.n_passes


def test_on_a_terminal_a_fit_is_quiet_for_two_seconds(clock):
    terminal = Terminal()
    with ProgressLine(None, terminal) as line:
        clock.now += 1.9
        line.blocks(1, 1, 3)
        assert terminal.getvalue() == ""
        clock.now += 0.2
        line.blocks(1, 2, 3)
    assert terminal.getvalue() == "\rpass 1 · 2/3 blocks · 2 s · pass ends in 1 s\n"


def test_away_from_a_terminal_a_fit_is_quiet(clock):
    stream = io.StringIO()
    with ProgressLine(None, stream) as line:
        clock.now += 10
        line.blocks(1, 3, 3)
    assert stream.getvalue() == ""


def test_a_shorter_text_covers_a_longer_one(clock):
    stream = io.StringIO()
    with ProgressLine(True, stream) as line:
        clock.now += 1000
        line.blocks(10, 1000, 1001)
        clock.now += 1
        line.blocks(11, 1, 9)
    first, second = stream.getvalue().rstrip("\n").split("\r")[1:]
    assert len(second) == len(first)


def test_the_line_does_not_flicker(clock):
    stream = io.StringIO()
    with ProgressLine(True, stream) as line:
        for done in range(1, 101):
            clock.now += 0.01
            line.blocks(1, done, 100)
    drawn = stream.getvalue().count("\r")
    assert 10 <= drawn <= 12
    assert "100/100" in stream.getvalue()


def test_time_left_follows_from_the_blocks_of_this_pass(clock):
    stream = io.StringIO()
    with ProgressLine(True, stream) as line:
        clock.now += 50
        line.blocks(1, 4, 4)
        line.blocks(2, 0, 4)
        clock.now += 10
        line.blocks(2, 1, 4)
    assert stream.getvalue().rstrip().endswith("2 · 1/4 blocks · 60 s · pass ends in 30 s")


def test_reading_a_sample_is_no_pass(clock):
    stream = io.StringIO()
    with ProgressLine(True, stream) as line:
        clock.now += 2
        line.blocks(0, 1, 3)
    assert stream.getvalue().strip() == "sample · 1/3 blocks · 2 s · sample ends in 4 s"
