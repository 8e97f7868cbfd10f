"""A client process that is killed again and again ends in the bits of one that was left alone."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlsq_dask.fitting import ledger
from tests.fitting import killed_fit
from tests.fitting.killed_fit import BLOCKS, was_read_before
from tests.support.mutated_files import content_of_checkpoint
from tests.support.same_result import assert_same_result

PROGRAM = Path(__file__).with_name("killed_fit.py")
ROOT = PROGRAM.parents[2]

# Seconds that a process is left alone at most: from when it begins to fit, or from its first pass.
# The whole fit takes at least 0.08 s a pass.
FROM_BEGIN, FROM_FIRST_PASS = 1.0, 0.4


def start(directory, out, n_starts, scheduler):
    """A process that has begun to fit."""
    arguments = [directory, out, n_starts] + ([] if scheduler is None else [scheduler])
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "fitting\n", process.communicate()[1]
    return process


def run(directory, out, n_starts, scheduler):
    """The result of a fit that nobody kills."""
    process = start(directory, out, n_starts, scheduler)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return pickle.loads(out.read_bytes())


def kill_until_it_ends(directory, out, n_starts, scheduler, seed):
    """Start the fit until one ends, and kill those that go on beyond random times.

    Every other process gets one pass done, so that this ends, on a slow machine too.

    Returns
    -------
    result : FitResult
    written : list of int
        Checkpoints written by each process that was killed.
    """
    rng = random.Random(seed)
    written = []
    for attempt in itertools.count():
        before = newest(directory)
        process = start(directory, out, n_starts, scheduler)
        longest = FROM_BEGIN
        if attempt % 2:
            longest = FROM_FIRST_PASS
            while process.poll() is None and newest(directory) == before:
                time.sleep(0.005)
        deadline = time.monotonic() + rng.uniform(0, longest)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if out.exists():  # written whole, by the last thing that the program does
            break
        assert process.returncode == -signal.SIGKILL, errors
        written.append(newest(directory) - before)
    return pickle.loads(out.read_bytes()), written


def newest(directory):
    return max((int(p.stem.split("-")[1]) for p in directory.glob("checkpoint-*.json")), default=0)


def groups_known(directory):
    """Groups of the running pass that the ledger has."""
    try:
        content = content_of_checkpoint((directory / "ledger.json").read_bytes())
    except FileNotFoundError:
        return 0
    return max((len(answer["groups"]) for answer in content["answers"].values()), default=0)


def reads_of(folder):
    return len((folder / "reads").read_bytes())


#: A pass of so few blocks has so many groups.
GROUPS = 16

CASES = [
    pytest.param(1, False, 1, id="threads"),
    pytest.param(6, True, 2, id="several starts, cluster", marks=pytest.mark.cluster),
]


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(("n_starts", "on_cluster", "seed"), CASES)
def test_a_fit_that_is_killed_until_it_ends(n_starts, on_cluster, seed, tmp_path, request):
    scheduler = None
    if on_cluster:
        scheduler = request.getfixturevalue("cluster").scheduler_address
    whole = run(tmp_path / "whole", tmp_path / "whole.pickle", n_starts, scheduler)
    result, written = kill_until_it_ends(
        tmp_path / "killed", tmp_path / "killed.pickle", n_starts, scheduler, seed
    )
    assert len(written) >= 2, "the fit was over before it could be killed"
    assert any(written), "there was nothing to resume"
    assert_same_result(result, whole)
    assert len(whole.starts) == (n_starts if n_starts > 1 else 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_fit_that_is_killed_near_the_end_of_a_pass_reads_the_rest(tmp_path, monkeypatch):
    out, directory = tmp_path / "killed.pickle", tmp_path / "checkpoints"
    (tmp_path / "hang").touch()
    process = start(directory, out, 1, None)
    # The first pass has as many groups for a moment, and does not hang.
    while groups_known(directory) < GROUPS - 1 or not was_read_before(tmp_path, BLOCKS - 1):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    passes = newest(directory)
    (tmp_path / "hang").unlink()
    (tmp_path / "reads").unlink()
    result = run(directory, out, 1, None)
    # The group that hung, another for comparison, and two blocks for the last checkpoint.
    blocks = (result.n_passes - passes - 1) * BLOCKS + 2 * (BLOCKS // GROUPS) + 2
    assert reads_of(tmp_path) == blocks
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("SECONDS", "TIMES_LONGER"):  # changed by the program
        monkeypatch.setattr(ledger, name, getattr(ledger, name))
    killed_fit.main(whole / "checkpoints", whole / "whole.pickle", 1)
    assert_same_result(result, pickle.loads((whole / "whole.pickle").read_bytes()))
