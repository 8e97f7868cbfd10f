"""A fit that is interrupted in the middle of a pass goes on there, with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import CheckpointWarning, DataChangedError, InputError, ReadingError, fit, fit_models
from nlsq_dask.core.normal_equations import NormalEquations
from nlsq_dask.core.questions import Answers, CostsAt, Several, SumsAt
from nlsq_dask.fitting import ledger as ledger_module
from nlsq_dask.fitting.ledger_content import decode, encode, key_of
from nlsq_dask.questions.collapse import Cell, Means, MeansOf
from nlsq_dask.questions.sample import Sample, Thinned
from nlsq_dask.questions.spread import Spread
from tests.support.mutated_files import content_of_checkpoint, seal_checkpoint
from tests.support.same_result import assert_same_result

# As many groups as blocks.
BLOCKS, ROWS = 16, 50
X = np.linspace(0, 4, BLOCKS * ROWS)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)

# The last block of a pass fails; all others have ended, and one of them is compared.
LAST = BLOCKS - 1
REST = 2

# Blocks of the sample, and blocks whose checksums the last checkpoint has.
SAMPLED = 4
SUMMED = 2


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


class Reads:
    """Makes blocks of y, counts them in a file, and fails once.

    Parameters
    ----------
    folder : Path
        Of the file.
    fails_at : int, optional
        Reads before the read that fails.
    waits_for : Path, optional
        Directory of a ledger. The last block then fails in its second pass, and not before the
        ledger has all others.
    """

    def __init__(self, folder: Path, fails_at=None, waits_for=None):
        self.folder, self.fails_at, self.waits_for = folder, fails_at, waits_for
        folder.mkdir(exist_ok=True)
        self.log.touch()

    def __call__(self, block, block_info=None):
        number = block_info[0]["chunk-location"][0]
        tries, count = self.log.read_bytes().count(number), self.count
        with self.log.open("ab") as file:
            file.write(bytes([number]))
        if self.waits_for is not None and number == LAST and tries == 1:
            while groups_in(self.waits_for) < LAST:
                time.sleep(0.01)
            raise OSError("the store is away")
        if count == self.fails_at:
            raise OSError("the store is away")
        return block

    @property
    def log(self):
        """A file with a byte for each block that was read: its number."""
        return self.folder / "log"

    @property
    def count(self):
        return self.log.stat().st_size

    @property
    def y(self):
        return da.from_array(Y, chunks=ROWS).map_blocks(self, dtype=float, meta=np.empty(0))


def groups_in(directory):
    """Most groups of a pass in the ledger of a directory."""
    path = directory / "ledger.json"
    if not path.exists():
        return 0
    answers = content_of_checkpoint(path.read_bytes())["answers"].values()
    return max((len(answer["groups"]) for answer in answers), default=0)


@pytest.fixture
def at_once(monkeypatch):
    """Write the ledger after every group."""
    monkeypatch.setattr(ledger_module, "SECONDS", 0.0)
    monkeypatch.setattr(ledger_module, "TIMES_LONGER", 0.0)


def run(y, directory=None, client=None, **changes):
    options = {"pilot": False, "cache": False, "retries": 0, "resume": directory is not None}
    arguments = {"p0": [1, 1, 0], "checkpoint": directory, "client": client} | options | changes
    with dask.config.set(scheduler="synchronous" if client is None else None):
        return fit(decay, X, y, **arguments)


def interrupted(tmp_path, fails_at=BLOCKS + LAST, client=None, **changes):
    """Run a fit until its store fails, and return the directory of its checkpoints."""
    directory = tmp_path / "checkpoints"
    waits_for = None if client is None else directory
    reads = Reads(tmp_path / "first", fails_at if client is None else None, waits_for)
    with pytest.raises(ReadingError, match="the store is away"):
        run(reads.y, directory, client, **changes)
    assert (directory / "ledger.json").exists()
    return directory


@pytest.mark.slow
def test_a_pass_goes_on_where_it_was(tmp_path):
    whole = run(Reads(tmp_path / "whole").y)
    directory = interrupted(tmp_path)
    reads = Reads(tmp_path / "second")
    result = run(reads.y, directory)
    assert_same_result(result, whole)
    assert result.n_passes_before == 1
    assert reads.count == (result.n_passes - 2) * BLOCKS + REST + SUMMED
    assert not (directory / "ledger.json").exists()


@pytest.mark.slow
def test_the_first_pass_goes_on_where_it_was(tmp_path):
    whole = run(Reads(tmp_path / "whole").y)
    directory = interrupted(tmp_path, fails_at=LAST)
    reads = Reads(tmp_path / "second")
    assert_same_result(run(reads.y, directory), whole)
    assert reads.count == (whole.n_passes - 1) * BLOCKS + REST + SUMMED


@pytest.mark.cluster
def test_a_pass_on_a_cluster_goes_on_where_it_was(tmp_path, client, at_once):
    whole = run(Reads(tmp_path / "whole").y, client=client)
    directory = interrupted(tmp_path, client=client)
    reads = Reads(tmp_path / "second")
    result = run(reads.y, directory, client)
    assert_same_result(result, whole)
    assert reads.count == (result.n_passes - 2) * BLOCKS + REST + SUMMED


@pytest.mark.slow
def test_a_pilot_that_has_ended_is_not_begun_again(tmp_path):
    calm = Reads(tmp_path / "whole")
    whole = run(calm.y, pilot=True, n_starts=2)
    assert calm.count == whole.n_passes * BLOCKS + SAMPLED
    directory = interrupted(tmp_path, fails_at=SAMPLED + LAST, pilot=True, n_starts=2)
    reads = Reads(tmp_path / "second")
    result = run(reads.y, directory, pilot=True, n_starts=2)
    assert_same_result(result, whole)
    assert reads.count == (result.n_passes - 1) * BLOCKS + REST + SUMMED


def test_a_sample_goes_on_where_it_was(tmp_path):
    whole = run(Reads(tmp_path / "whole").y, pilot=True)
    directory = interrupted(tmp_path, fails_at=SAMPLED - 1, pilot=True)
    reads = Reads(tmp_path / "second")
    assert_same_result(run(reads.y, directory, pilot=True), whole)
    assert reads.count == whole.n_passes * BLOCKS + REST + SUMMED


@pytest.mark.slow
@pytest.mark.thorough
def test_a_search_over_starts_goes_on_where_it_was(tmp_path, monkeypatch):
    # On all rows, as where the sample says nothing.
    monkeypatch.setattr("nlsq_dask.fitting.solve.run_pilot", lambda *_: None)
    whole = run(Reads(tmp_path / "whole").y, n_starts=2)
    passes = 3
    directory = interrupted(tmp_path, SAMPLED + passes * BLOCKS + LAST, n_starts=2)
    with pytest.raises(ReadingError):  # once more
        run(Reads(tmp_path / "again", REST - 1).y, directory, n_starts=2)
    reads = Reads(tmp_path / "second")
    result = run(reads.y, directory, n_starts=2)
    assert_same_result(result, whole)
    assert result.n_passes_before == passes
    assert reads.count == (result.n_passes - passes - 1) * BLOCKS + REST + SUMMED


class Held(Reads):
    """Holds the last block in its second pass, until a file says that it may end."""

    def __call__(self, block, block_info=None):
        block = super().__call__(block, block_info)
        if block_info[0]["chunk-location"] == (LAST,) and self.holds:
            while not (self.folder / "end").exists():
                time.sleep(0.01)
        return block

    @property
    def holds(self):
        return self.log.read_bytes().count(LAST) > 1


def line(x, a, b):
    return a + b * x


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [LAST, BLOCKS + LAST])
def test_a_pass_of_several_models_goes_on_where_it_was(fails_at, tmp_path):
    """In its first pass, or in the second, after the models have written checkpoints."""

    def both(reads, directory):
        options = {"pilot": False, "cache": False, "retries": 0, "resume": True}
        with dask.config.set(scheduler="synchronous"):
            return fit_models(
                [decay, line], X, reads.y, [[1, 1, 0], [1, 1]], checkpoint=directory, **options
            )

    calm, directory = Reads(tmp_path / "whole"), tmp_path / "checkpoints"
    whole = both(calm, tmp_path / "calm")
    with pytest.raises(ReadingError, match="the store is away"):
        both(Reads(tmp_path / "first", fails_at), directory)
    assert groups_in(directory) == LAST
    reads = Reads(tmp_path / "second")
    result = both(reads, directory)
    for name in ("decay", "line"):
        assert_same_result(result[name], whole[name])
        assert result[name].n_passes == whole[name].n_passes
    # All but the group that failed and one that is compared; and the pass before.
    assert calm.count - reads.count == BLOCKS - REST + (fails_at - LAST)
    assert not (directory / "ledger.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [None, 0.1 * np.ones((1, 4))])
def test_the_reading_of_a_collapsed_fit_goes_on_where_it_was(sigma, tmp_path):
    """Its groups find the means of some rows at the distinct coordinates."""
    x, y = X[:, None], Y[:, None] + 0.01 * np.arange(4.0)

    def cube(reads):
        lazy = da.from_array(y, chunks=(ROWS, 2))
        return lazy.map_blocks(reads, dtype=float, meta=np.empty((0, 0)))

    def collapsed(reads, directory=None):
        options = {"sigma": sigma, "checkpoint": directory, "retries": 0, "collapse": True}
        with dask.config.set(scheduler="synchronous"):
            return fit(decay, x, cube(reads), p0=[1, 1, 0], resume=directory is not None, **options)

    calm, directory = Reads(tmp_path / "whole"), tmp_path / "checkpoints"
    whole = collapsed(calm, tmp_path / "calm")
    with pytest.raises(ReadingError, match="the store is away"):
        collapsed(Reads(tmp_path / "first", 2 * BLOCKS - 2), directory)
    reads = Reads(tmp_path / "second")
    result = collapsed(reads, directory)
    assert whole.n_distinct == X.size
    assert_same_result(result, whole)
    # The group that failed, and one that is compared.
    assert calm.count - reads.count == 2 * (BLOCKS - REST)


@pytest.mark.parametrize("damage", ["box", "rows", "coords", "largest", "n_left_out"])
def test_means_are_read_with_doubt(damage):
    question = MeansOf((True, False), (4, 1), ((4, 1),), weighted=True)
    rows = Spread(np.ones((2, 1)), np.full((2, 1), 0.1), np.full((2, 1), 1 / 3))
    means = Means({((1, 3), (0, 1)): Cell(rows, rows, (np.ones((2, 1)),))}, 3, 2.5, np.ones(2))
    value = json.loads(encode(question, means))
    assert repr(decode(question, value, 3)) == repr(means)
    if damage in value:
        value[damage] = [1.0] if damage == "largest" else -1
    else:
        value["cells"][0][damage] = [[1, 9], [0, 1]] if damage == "box" else [[1.0]]
    with pytest.raises(ValueError, match="."):
        decode(question, value, 3)


def interrupt(held, directory):
    """Press Ctrl-C once the ledger has all other groups."""
    while not held.holds or groups_in(directory) < LAST:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def heard():
    """Let this process hear Ctrl-C; the processes that a script starts beside itself do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("where", ["threads", pytest.param("cluster", marks=pytest.mark.cluster)])
def test_ctrl_c_does_not_wait_for_tasks_and_keeps_what_is_done(where, tmp_path, request, at_once):
    client = request.getfixturevalue("client") if where == "cluster" else None
    directory, options = (
        tmp_path / "checkpoints",
        {"pilot": False, "cache": False, "client": client},
    )
    held = Held(tmp_path / "first")
    presses = threading.Thread(target=interrupt, args=(held, directory))
    presses.start()
    with pytest.raises(KeyboardInterrupt):
        fit(decay, X, held.y, p0=[1, 1, 0], checkpoint=directory, **options)
    # The fit has ended, and its last block has not.
    assert not (held.folder / "end").exists()
    (held.folder / "end").touch()
    presses.join()
    reads = Reads(tmp_path / "second")
    result = run(reads.y, directory, client)
    assert_same_result(result, run(Reads(tmp_path / "whole").y, client=client))
    assert reads.count == (result.n_passes - 2) * BLOCKS + REST + SUMMED


def test_other_data_are_noticed(tmp_path):
    directory = interrupted(tmp_path)
    with pytest.raises(DataChangedError, match=r"group \d+ of 16 .*ledger\.json"):
        run(Reads(tmp_path / "second").y + 0.01, directory)


def test_a_ledger_of_another_fit(tmp_path):
    directory = interrupted(tmp_path, fails_at=LAST)
    with pytest.raises(InputError, match=r"ledger\.json is of another fit: p0"):
        run(Reads(tmp_path / "second").y, directory, p0=[2, 1, 0])
    # Without resume, it is no more than an old file.
    run(Reads(tmp_path / "third").y, directory, p0=[2, 1, 0], resume=False)
    assert not (directory / "ledger.json").exists()


def test_an_old_ledger_beside_a_checkpoint_of_another_fit(tmp_path):
    other = tmp_path / "other"
    run(Reads(tmp_path / "calm").y, other, p0=[2, 1, 0])
    shutil.copy(interrupted(tmp_path) / "ledger.json", other)
    run(Reads(tmp_path / "second").y, other, p0=[2, 1, 0])


def change_format(content):
    content["format"] = "nlsq_dask ledger 99"


def change_answers(content):
    content["answers"] = []


def change_shape(content):
    (answer,) = content["answers"].values()
    answer["groups"]["3"]["gradient"] = [1.0]


def change_number(content):
    (answer,) = content["answers"].values()
    answer["groups"]["99"] = answer["groups"].pop("3")


def not_finite(content):
    (answer,) = content["answers"].values()
    answer["groups"]["3"]["gram"][0][0] = "nan"


CHANGES = [change_format, change_answers, change_shape, change_number, not_finite]


@pytest.mark.every(3)
@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_ledger_is_left_out(change, tmp_path):
    path = interrupted(tmp_path) / "ledger.json"
    content = content_of_checkpoint(path.read_bytes())
    change(content)
    path.write_bytes(seal_checkpoint(content))
    reads = Reads(tmp_path / "second")
    with pytest.warns(CheckpointWarning, match=r"ledger\.json is damaged"):
        result = run(reads.y, path.parent)
    assert reads.count == (result.n_passes - 1) * BLOCKS + SUMMED


def test_a_ledger_that_is_cut_off_or_a_link(tmp_path):
    path = interrupted(tmp_path) / "ledger.json"
    raw = path.read_bytes()
    path.write_bytes(raw[:-9])
    with pytest.warns(CheckpointWarning, match="damaged"):
        run(Reads(tmp_path / "second").y, path.parent)
    (tmp_path / "elsewhere").write_bytes(raw)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CheckpointWarning, match="symbolic link"):
        run(Reads(tmp_path / "third").y, path.parent)


def test_a_ledger_that_cannot_be_written(tmp_path, monkeypatch, at_once):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nlsq_dask.io.files.LocalFolder.write", full)
    with pytest.warns(CheckpointWarning, match="No space left") as caught:
        run(Reads(tmp_path / "first").y, tmp_path / "checkpoints", resume=False)
    assert len(caught) <= 2  # of the ledger, and of the checkpoints


# Answers as texts

finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def sums(draw, observe):
    def matrix(*shape):
        size = int(np.prod(shape))
        return np.array(draw(st.lists(finite, min_size=size, max_size=size))).reshape(shape)

    return NormalEquations(
        matrix(2, 2),
        matrix(2),
        draw(finite),
        draw(finite),
        draw(st.integers(1, 2**40)),
        n_skipped=draw(st.integers(0, 2**40)),
        concave=draw(st.sampled_from([None, matrix(2, 2)])),
        largest=matrix(2) if observe else None,
        sample_of_y=draw(st.floats()),
        sample_of_columns=draw(st.sampled_from([None, matrix(1)])),
        scores=draw(st.sampled_from([None, matrix(2, 2)])),
    )


@settings(max_examples=25)
@given(st.data(), st.booleans())
def test_answers_read_back_to_the_same_bits(data, observe):
    question = Several(
        (
            SumsAt(np.ones(3), np.ones((3, 2)), observe=observe),
            CostsAt(np.ones((2, 3))),
            Thinned(3, 1, False),
        )
    )
    costs = np.array([data.draw(st.floats()), 1.0])
    sample = Sample(np.array([data.draw(finite)]), (np.ones(1),), None)
    answer = Answers((data.draw(sums(observe)), costs, sample))
    value = json.loads(encode(question, answer))
    assert repr(decode(question, value, 2)) == repr(answer)
    if observe:
        with pytest.raises(ValueError, match="largest"):
            decode(question, value, 3)


def test_questions_have_keys_of_their_own():
    one, two = np.ones(2), np.eye(2)
    questions = [
        SumsAt(one, two),
        SumsAt(np.nextafter(one, 2), two),
        SumsAt(one, two, observe=True),
        SumsAt(one, two, scores=True),
        CostsAt(two),
        Several((SumsAt(one, two), CostsAt(two))),
        Several((CostsAt(two), SumsAt(one, two))),
        Thinned(2, 1, False),
    ]
    assert len(set(map(key_of, questions))) == len(questions)
    assert key_of(SumsAt(np.ones(2), np.eye(2))) == key_of(questions[0])
