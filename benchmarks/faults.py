"""Workers and clients that are killed: does every fit end in the bits of one that nobody disturbed?

- workers: a block ends the process of its worker at a random read, in the sample, in the first pass
  or in a later pass. The scheduler sends the lost tasks to the other worker;
- clients: a process that fits is killed (SIGKILL) again and again at random times, and started anew
  with ``resume=True``, until it ends.

Bar: all results equal, to the last bit.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np
from distributed import Client, LocalCluster

from benchmarks.common import Row, arguments, judge, report
from nlsq_dask import FitError, fit
from tests.fitting.test_killed_fit import kill_until_it_ends
from tests.fitting.test_killed_fit import run as run_program
from tests.support.same_result import assert_same_result

BLOCKS, BLOCK_ROWS = 64, 500
X = np.linspace(0, 4, BLOCKS * BLOCK_ROWS)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.random.default_rng(0).standard_normal(X.size)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


class Killing:
    """Counts the blocks that are read, and ends its worker at one of the reads."""

    def __init__(self, log: Path, at: int) -> None:
        self.log, self.at = log, at

    def __call__(self, block: Any) -> Any:
        with self.log.open("ab") as file:
            file.write(b".")
        if self.log.stat().st_size == self.at:
            os._exit(1)
        return block


def fitted(client: Client, log: Path, at: int = -1) -> Any:
    """A fit with a pilot on a cluster, whose worker dies at some read."""
    y = da.from_array(Y, chunks=BLOCK_ROWS)
    y = y.map_blocks(Killing(log, at), dtype=float, meta=np.empty(0))
    options = {"pilot": True, "cache": False, "n_starts": 2, "progress": False}
    return fit(decay, X, y, p0=[9, 0.1, 5], client=client, **options)


def is_same(result: Any, expected: Any) -> bool:
    """Whether two results have the same bits."""
    try:
        assert_same_result(result, expected)
    except AssertionError as error:
        print(error)
        return False
    return True


def phase_of(at: int, sampled: int) -> str:
    """The phase of a fit in which a read is."""
    if at <= sampled:
        return "sample"
    return "first pass" if at <= sampled + BLOCKS else "later pass"


def of_workers(count: int, rng: random.Random, folder: Path) -> list[Row]:
    """A line for each phase."""
    kills: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    patient = {
        "distributed.deploy.lost-worker-timeout": "600 s",
        "distributed.scheduler.allowed-failures": 10,
    }
    with (
        dask.config.set(patient),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        expected = fitted(client, folder / "whole")
        reads = (folder / "whole").stat().st_size
        sampled = reads - expected.n_passes * BLOCKS
        ranges = [(1, sampled), (sampled + 1, sampled + BLOCKS), (sampled + BLOCKS + 1, reads)]
        for number in range(count):
            at = rng.randint(*ranges[number % len(ranges)])
            phase = phase_of(at, sampled)
            client.wait_for_workers(2)
            kills[phase] += 1
            try:
                result = fitted(client, folder / str(number), at)
            except FitError as error:
                print(f"kill {number}, at read {at}: {error}")
            else:
                equal[phase] += is_same(result, expected)
    return [line(f"worker, {phase}", kills[phase], equal[phase]) for phase in kills]


def of_clients(count: int, seed: int, folder: Path) -> Row:
    """The line of killed clients: threads, or several starts."""
    kills, equal, turn = 0, 0, 0
    whole: dict[int, Any] = {}
    while kills < count:
        starts = 1 + 5 * (turn % 2)
        if starts not in whole:
            own = folder / f"whole-{starts}"
            own.mkdir()
            whole[starts] = run_program(own / "checkpoints", own / "out.pickle", starts, None)
        own = folder / f"killed-{turn}"
        own.mkdir()
        out = own / "out.pickle"
        result, written = kill_until_it_ends(own / "checkpoints", out, starts, None, seed + turn)
        kills += len(written)
        equal += len(written) * is_same(result, whole[starts])
        turn += 1
    return line("client", kills, equal)


def line(what: str, kills: int, equal: int) -> Row:
    """A line of the table."""
    return {"killed": what, "kills": kills, "equal": equal} | judge(kills - equal, at_most=0)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = arguments(__doc__, workers=60, clients=30, seed=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    lines: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.workers:
            lines += of_workers(options.workers, rng, Path(folder))
        if options.clients:
            lines.append(of_clients(options.clients, options.seed, Path(folder)))
    return report("killed processes", lines, options.json)


if __name__ == "__main__":
    main()
