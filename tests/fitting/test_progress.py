"""Where a fit is: the model of progress, and its faces on a terminal and in a file."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

from nlsq_dask import InputError, fit, fit_models
from nlsq_dask.fitting import faces, progress
from nlsq_dask.fitting.expected import Expected
from nlsq_dask.fitting.faces import PlainLines, TerminalLine, faces_of, html_of
from nlsq_dask.fitting.moment import Moment, SeriesDone, line_of, range_text, scaled, time_text
from nlsq_dask.fitting.pace import Pace, Seconds
from nlsq_dask.fitting.progress import Progress
from tests.support.problems import decays

X = np.linspace(0, 4, 2000)
Y = np.exp(-1.3 * X) + np.random.default_rng(1).normal(0, 0.01, X.size)


def lazy_fit(**options):
    return fit(decays, da.from_array(X, chunks=100), da.from_array(Y, chunks=100), [1], **options)


class Terminal(io.StringIO):
    """A terminal without a file descriptor, of the usual width."""

    def isatty(self):
        return True


class Clock:
    """A time that passes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


class Seen:
    """A face that keeps what it is shown."""

    delay = 0.0

    def __init__(self):
        self.moments, self.events = [], []
        self.ended = self.left = None

    def show(self, moment, now, event):
        self.moments.append(moment)
        self.events.append(event)

    def end(self, moment):
        self.ended = moment

    def leave(self):
        self.left = True


@pytest.fixture
def clock():
    return Clock()


def watched(face, clock, **expected):
    """Progress on a face, of a fit of which so much is known."""
    made = Progress((face,), clock)
    made.expect(lambda: Expected(**{"passes": (2, 4), "blocks": 4} | expected))
    return made


def point(cost, distance=1.0, status=None):
    """A state of a search, as far as progress looks at it."""
    return SimpleNamespace(cost=cost, history=(SimpleNamespace(distance=distance),), status=status)


# The model


def test_what_a_fit_tells(monkeypatch):
    seen = Seen()
    monkeypatch.setattr("nlsq_dask.api.fit.faces_of", lambda _: (seen,))
    result = lazy_fit(pilot=True)
    phases = [m.phase for m in seen.moments]
    firsts = sorted(set(phases), key=phases.index)
    assert firsts[-2:] == ["pilot", "pass"]
    assert "reading a sample" in {m.wait for m in seen.moments}
    passes = [m for m in seen.moments if m.phase == "pass"]
    assert sorted({m.number for m in passes}) == list(range(1, result.n_passes + 1))
    assert {m.blocks[1] for m in passes if m.blocks} == {20}
    assert {m.passes for m in passes} == {(2, 4)}
    told = [m for m, event in zip(seen.moments, seen.events, strict=True) if event == "point"]
    assert [(m.cost, m.distance) for m in told] == [(h.cost, h.distance) for h in result.history]
    assert seen.ended.outcome == "fit converged"
    assert seen.ended.number == result.n_passes
    assert seen.ended.cost == result.cost
    assert 0 < passes[-1].rows_per_second * 16 == pytest.approx(passes[-1].bytes_per_second)


def test_a_fit_of_data_in_memory_tells_its_passes(monkeypatch):
    seen = Seen()
    monkeypatch.setattr("nlsq_dask.api.fit.faces_of", lambda _: (seen,))
    result = fit(decays, X, Y, [0.5], pilot=False)
    assert [m.number for m in seen.moments if m.number] != []
    assert max(m.number for m in seen.moments) == result.n_passes == seen.ended.number
    assert {m.blocks for m in seen.moments} == {None}


def test_several_models_share_one_display(monkeypatch):
    seen = Seen()
    monkeypatch.setattr("nlsq_dask.api.fit_models.faces_of", lambda _: (seen,))
    found = fit_models([decays, decays], X, Y, [[0.5], [2.0]])
    assert seen.ended.outcome == "2 of 2 models converged"
    assert seen.ended.number == found.n_passes
    assert seen.ended.cost is None
    worst = max(result.history[-1].distance for result in found)
    assert seen.ended.distance == worst


def test_a_fit_that_fails_leaves_its_faces(monkeypatch):
    seen = Seen()
    monkeypatch.setattr("nlsq_dask.api.fit.faces_of", lambda _: (seen,))
    with pytest.raises(InputError):
        lazy_fit(sigma=np.zeros(X.size))
    assert seen.left
    assert seen.ended is None


@pytest.mark.parametrize("value", ["tqdm", 1, 0, "", [True]])
@pytest.mark.parametrize("call", [fit, fit_models])
def test_progress_is_checked(call, value):
    models = decays if call is fit else [decays]
    text = re.escape(f"progress = {value!r}: pass True")
    with pytest.raises(InputError, match=text):
        call(models, X, Y, progress=value)


def test_the_time_of_a_block_is_a_range_of_what_was_measured():
    pace = Pace(10.0)
    assert pace.of_block is None
    pace.report(14.0, 2)
    assert pace.of_block == Seconds(1.0, 3.0)  # of one measurement
    for i in range(3, 8):
        pace.report(10.0 + 2.0 * i, i)
    assert pace.of_block == Seconds(2.0, 2.0)  # all equal
    pace.report(34.0, 8)
    low, high = pace.of_block.low, pace.of_block.high
    assert low < 24.0 / 8 < high


def test_time_left_is_blank_until_a_block_is_measured(clock):
    seen = Seen()
    made = watched(seen, clock)
    made.asking(lambda _: made.blocks(1, 0, 4), lambda: 1)(None)
    assert seen.moments[0].pass_left is None
    assert seen.moments[0].fit_left is None
    assert seen.moments[0].wait == progress.FIRST_BLOCKS


def test_time_left_follows_from_rates_and_the_passes_of_the_plan(clock):
    seen = Seen()
    made = watched(seen, clock, rows=4000, n_bytes=64_000)

    def a_pass(_):
        for done in (1, 2, 3, 4):
            clock.now += 10.0
            made.blocks(1, done, 4)

    made.asking(a_pass, lambda: 1)(None)
    _, first, second, *_, last = seen.moments
    assert first.pass_left == Seconds(3 * 5.0, 3 * 15.0)
    # A block more is known now, and both took 10 s: 2 are left, and 1 to 3 passes of 4.
    assert second.pass_left == Seconds(20.0, 20.0)
    assert second.fit_left == Seconds(20.0 + 40.0, 20.0 + 120.0)
    assert second.rows_per_second == 100.0
    assert second.bytes_per_second == 1600.0
    assert last.fit_left == Seconds(40.0, 120.0)
    clock.now += 5.0
    assert made.moment().wait == ""


def test_more_passes_than_most_fits_take_leave_the_end_open(clock):
    made = watched(Seen(), clock)
    made.blocks(5, 1, 4)
    clock.now += 4.0
    made.blocks(5, 2, 4)
    assert made.moment().fit_left.high is None
    assert "pass 5, more than most fits take" in line_of(made.moment())
    assert "fit in at least" in line_of(made.moment())


def test_kept_rows_may_make_later_passes_faster(clock):
    made = watched(Seen(), clock, kept=1.0)
    made.asking(lambda _: setattr(clock, "now", clock.now + 8.0), lambda: 1)(None)
    assert made.moment().fit_left.low == 0.0
    assert made.moment().fit_left.high > 0.0


def test_the_compilation_of_a_fit_in_memory_is_not_taken_for_its_speed(clock):
    made = watched(Seen(), clock, blocks=1)
    for number, seconds in ((1, 100.0), (2, 1.0)):
        made.asking(lambda _, s=seconds: setattr(clock, "now", clock.now + s), lambda n=number: n)(
            0
        )
        if number == 1:
            assert made.moment().fit_left is None
    assert made.moment().fit_left == Seconds(0.0, 2.0 * 1.5)


def test_means_are_asked_without_a_pass(clock):
    seen = Seen()
    made = watched(seen, clock)
    ask = made.asking(lambda _: setattr(clock, "now", clock.now + 1.0), lambda: 1)
    ask(0)
    rate = made.moment().rows_per_second
    ask(0)
    assert made.moment().rows_per_second == rate
    assert len(seen.moments) == 1


def test_a_wait_is_told_until_the_next_block(clock):
    made = watched(Seen(), clock)
    made.blocks(1, 1, 4)
    made.note("waiting for a worker")
    assert "pass 1 of about 2–4 · waiting for a worker" in line_of(made.moment())
    made.blocks(1, 2, 4)
    assert made.moment().wait == ""


def test_a_clock_shows_a_fit_whose_first_block_takes_long():
    shown = threading.Event()

    class Waiting(Seen):
        def show(self, moment, now, event):
            shown.set()

    with Progress((Waiting(),)):
        assert shown.wait(60)


def test_without_a_face_nothing_is_measured():
    made = Progress()

    def ask(question):
        return question

    assert made.asking(ask, lambda: 1) is ask
    made.expect(lambda: pytest.fail("nobody looks"))
    made.blocks(1, 1, 2)
    made.note("")
    made.state(None)


# Words


def test_words():
    assert scaled(1234.0) == "1.23 k"
    assert scaled(999_600.0) == "1 M"
    assert scaled(5.0) == "5 "
    assert [time_text(s) for s in (0.2, 80, 100, 5400, 36_000, 1e6)] == [
        "0 s", "80 s", "2 min", "1.5 h", "10 h", "12 d",
    ]  # fmt: skip
    assert range_text(Seconds(8, 10)) == "8–10 s"
    assert range_text(Seconds(40, 300)) == "40 s–5 min"
    assert range_text(Seconds(8.1, 8.2)) == "8 s"
    assert range_text(Seconds(400, None)) == "at least 7 min"


LONG = Moment(
    phase="pass",
    seconds=75.0,
    number=2,
    passes=(2, 4),
    blocks=(37, 100),
    rows_per_second=3.2e7,
    bytes_per_second=5.12e8,
    cost=1234.5678,
    distance=0.3123,
    pass_left=Seconds(8.0, 10.0),
    fit_left=Seconds(8.0, 30.0),
)


def test_a_line_tells_all_there_is():
    assert line_of(LONG) == (
        "pass 2 of about 2–4 · 37/100 blocks · 512 MB/s · 32 Mrows/s · cost 1234.57 · "
        "distance 0.31 σ · 75 s · pass ends in 8–10 s · fit in 8–30 s"
    )


@pytest.mark.parametrize("width", [150, 100, 79, 60, 40, 20, 10, 1])
def test_a_narrow_terminal_loses_what_matters_least(width):
    line = line_of(LONG, width)
    assert len(line) <= width
    assert line == line_of(LONG)[: len(line)] or set(line.split(" · ")) < set(
        line_of(LONG).split(" · ")
    )
    if width >= 40:
        assert line.startswith("pass 2 of about 2–4 · 37/100 blocks")


# Faces


def test_a_line_is_redrawn_in_place_and_not_too_often(clock):
    terminal = Terminal()
    with watched(TerminalLine(terminal), clock, blocks=100) as made:
        for done in range(1, 101):
            clock.now += 0.01
            made.blocks(1, done, 100)
        made.end("fit converged", 1)
    shown = terminal.getvalue()
    assert 10 <= shown.count("\r") <= 14
    assert "100/100 blocks" in shown
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    assert shown.rpartition("\r")[2].startswith("fit converged · 1 pass")


def test_a_shorter_line_covers_a_longer_one(clock):
    terminal = Terminal()
    face = TerminalLine(terminal)
    face.show(LONG, 0.0, "")
    face.show(Moment(phase="final", seconds=1.0), 1.0, "")
    first, second = terminal.getvalue().split("\r")[1:]
    assert len(second) == len(first) <= 79


def test_a_fit_is_quiet_for_two_seconds(clock):
    terminal = Terminal()
    with watched(TerminalLine(terminal, faces.SILENT_SECONDS), clock) as made:
        clock.now += 1.9
        made.blocks(1, 1, 4)
        assert terminal.getvalue() == ""
        clock.now += 0.2
        made.blocks(1, 2, 4)
    assert terminal.getvalue().startswith("\rpass 1 of about 2–4 · 2/4 blocks")


def test_a_short_fit_leaves_no_line(clock):
    terminal = Terminal()
    with watched(TerminalLine(terminal, faces.SILENT_SECONDS), clock) as made:
        made.end("fit converged", 1)
    assert terminal.getvalue() == ""


def test_a_file_has_a_line_a_pass_and_at_most_one_a_minute(clock):
    file = io.StringIO()
    with watched(PlainLines(file), clock, passes=(20, 20)) as made:
        for number in range(1, 21):
            for done in (1, 2, 3, 4):
                clock.now += 5.0
                made.blocks(number, done, 4)
            made.state(point(1.0 / number))
        made.end("fit converged", 20)
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    assert [re.match(r"pass (\d+) of", line)[1] for line in lines[:-1]] == list(
        map(str, range(3, 21, 3))
    )
    assert "cost 0.333333" in lines[0]
    assert lines[-1].startswith("fit converged · 20 passes")


def test_a_long_pass_has_one_line_in_a_file_and_a_long_wait_has_one(clock):
    file = io.StringIO()
    with watched(PlainLines(file), clock) as made:
        for done in (1, 2, 3, 4):
            clock.now += 500.0
            made.blocks(1, done, 4)
            if done == 2:
                made.note("waiting for a worker")
        made.state(point(1.0))
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert "waiting for a worker" in lines[0]
    assert "4/4 blocks" in lines[1]


def test_a_file_has_a_line_a_minute_of_many_series_and_one_at_the_end(clock):
    """There was none."""
    file = io.StringIO()
    with Progress((PlainLines(file),), clock) as made:
        for done in range(1, 8):
            clock.now += 25.0
            made.series(SeriesDone(done=done, total=7, per_second=2.5, converged=0.5, left=60.0))
        made.end_of_series()
    assert file.getvalue().splitlines() == [
        "3/7 series · 2.5 series/s · 50.0 % converged · 75 s · ends in 60 s",
        "6/7 series · 2.5 series/s · 50.0 % converged · 2 min · ends in 60 s",
        "7 series fitted · 2.5 series/s · 50.0 % converged · 3 min",
    ]


def test_a_stream_that_lacks_characters_gets_others(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainLines(stream).end(LONG)
    stream.flush()
    assert raw.getvalue().startswith(b"pass 2 of about 2-4 | 37/100 blocks | ")


def test_a_stream_that_is_closed_is_no_reason_to_fail():
    stream = io.StringIO()
    stream.close()
    TerminalLine(stream).end(LONG)
    PlainLines(stream).end(LONG)


def test_the_face_suits_the_place(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert faces_of(None) == faces_of(False) == ()
    assert isinstance(faces_of(True)[0], PlainLines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert faces_of(False) == ()
    assert [faces_of(p)[0].delay for p in (True, None)] == [0.0, faces.SILENT_SECONDS]
    monkeypatch.setattr(sys, "stderr", None)
    assert faces_of(True) == ()


def test_html_escapes_and_ends_as_one_line():
    shown = html_of(Moment(phase="pass", seconds=1.0, number=1, wait="a <b>", blocks=(1, 4)))
    assert "a &lt;b&gt;" in shown
    assert '<progress value="1" max="4">' in shown
    assert html_of(Moment(phase="final", seconds=1.0, number=2, outcome="fit converged")) == (
        '<div class="nlsq-progress">fit converged · 2 passes · 1 s</div>'
    )


def test_a_fit_writes_plain_lines_to_a_file(capsys):
    result = lazy_fit(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    assert err.splitlines() == [err.strip()]
    assert err.startswith(f"fit converged · {result.n_passes} passes")
    assert f"cost {result.cost:.6g}" in err


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_is_shown_unasked(capsys, progress):
    lazy_fit(progress=progress)
    assert capsys.readouterr() == ("", "")


@pytest.mark.cluster
def test_a_fit_on_a_cluster_tells_the_same(monkeypatch, client):
    seen = Seen()
    monkeypatch.setattr("nlsq_dask.api.fit.faces_of", lambda _: (seen,))
    result = lazy_fit(client=client)
    at_ends = [m for m, e in zip(seen.moments, seen.events, strict=True) if e == "blocks"]
    assert {m.blocks for m in at_ends} == {(20, 20)}
    done = [m.number for m in at_ends]
    assert done == list(range(1, result.n_passes + 1))


ON_A_TERMINAL = """
import dask.array as da, numpy as np
from nlsq_dask import fit
x = np.linspace(0, 4, 2000)
chunks = [da.from_array(a, chunks=100) for a in (x, np.exp(-x))]
fit(lambda x, a: a * x, *chunks, progress=True)
"""


@pytest.mark.slow
def test_a_real_terminal_shows_a_line_that_fits(columns=50):
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stderr=its, close_fds=True)
    os.close(its)
    read = bytearray()
    try:
        while piece := os.read(ours, 4096):
            read += piece
    except OSError:  # Linux's way to say that the other side is closed
        pass
    finally:
        os.close(ours)
    assert child.wait() == 0
    shown = read.decode().replace("\r\n", "\n")
    assert shown.count("\n") == 1
    lines = shown.rstrip("\n").split("\r")[1:]
    assert max(map(len, lines)) < columns
    assert any("20/20 blocks" in line for line in lines)
    assert lines[-1].startswith("fit converged")
