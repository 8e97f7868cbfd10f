"""Hundreds of mixed fits in one process on one cluster: does anything grow?

Fits in memory and of streamed data take turns, on threads and on a cluster, with and without kept
rows, checkpoints, a robust loss, several models, and a store that fails. After a warm-up and in the
end are measured, for the process of the fits and for the workers:

- MB: resident memory;
- threads, files: threads and open file descriptors;
- tasks: tasks that the scheduler remembers.

Each fiftieth fit is told on standard error. The stacks of all threads are written there once a fit
takes longer than STUCK_SECONDS, so that a wait without an end is not a silent one.

Bars: memory + 10 % and 30 MB; no more threads and files than after the warm-up but for 3 (a pool
may grow to its size late); no tasks.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import dask.array as da
import jax.numpy as jnp
import numpy as np
import psutil
from distributed import Client, LocalCluster

from benchmarks.common import Row, arguments, judge, report
from nlsq_dask import ReadingError, curve_fit, fit, fit_models, plan

ROWS, BLOCKS = 20_000, 20
X = np.linspace(0, 4, ROWS)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.random.default_rng(0).standard_normal(ROWS)

# Growth that is allowed: a share and MB of memory, and threads or files.
SHARE, MORE_MB, MORE_HANDLES = 1.1, 30.0, 3

COLUMNS = ("MB", "threads", "files")

# Seconds after which a fit is suspected to wait for ever: it takes less than one. And fits between
# two lines that tell of them.
STUCK_SECONDS, FITS_A_LINE = 300.0, 50


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def line(x, a, b):
    return a + b * x


def broken(_):
    raise OSError("the store is away")


def lazy(client: Client | None = None, **options: object) -> None:
    """A fit of streamed data."""
    y = da.from_array(Y, chunks=ROWS // BLOCKS)
    fit(decay, da.from_array(X, chunks=ROWS // BLOCKS), y, p0=[1, 1, 0], client=client, **options)


def failing(client: Client | None) -> None:
    """A fit whose store fails."""
    y = da.from_array(Y, chunks=ROWS // BLOCKS).map_blocks(broken, dtype=float, meta=np.empty(0))
    with suppress(ReadingError):
        fit(decay, X, y, p0=[1, 1, 0], client=client, retries=0)


def with_checkpoints(client: Client | None) -> None:
    """A fit that writes checkpoints, and that is resumed."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            lazy(client, checkpoint=folder, resume=True, cache=False)


def fits(client: Client) -> list[Callable[[], object]]:
    """The kinds of fits."""
    here, there = (partial(lazy, place) for place in (None, client))
    return [
        partial(fit, decay, X, Y, p0=[1, 1, 0]),
        partial(curve_fit, decay, X[::100], Y[::100]),
        partial(fit, decay, X, Y, p0=[1, 1, 0], loss="soft_l1", strategy="chunked"),
        partial(fit_models, {"decay": decay, "line": line}, X, Y),
        partial(plan, decay, X, Y, p0=[1, 1, 0]),
        here,
        there,
        partial(here, cache=False, n_starts=3),
        partial(there, cache=True),
        partial(there, cache=False, n_starts=3, diagnostics=True),
        partial(failing, None),
        partial(failing, client),
        partial(with_checkpoints, None),
        partial(with_checkpoints, client),
    ]


def of_process() -> tuple[float, int, int]:
    """Memory in MB, threads and open files of this process."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()


def measured(client: Client) -> dict[str, tuple[float, ...]]:
    """Figures of this process and of each worker."""
    workers = client.run(of_process)
    named = {f"worker {i}": workers[address] for i, address in enumerate(sorted(workers))}
    return {"fits": of_process()} | named


def tasks_of(client: Client) -> int:
    """Number of tasks that the scheduler remembers."""
    return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def run(client: Client, count: int, rng: random.Random) -> None:
    """Run so many fits of all kinds, in a random order."""
    kinds = fits(client)
    order = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(order)
    began = time.monotonic()
    for done, one in enumerate(order, 1):
        faulthandler.dump_traceback_later(STUCK_SECONDS, repeat=True, file=sys.__stderr__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one()
        faulthandler.cancel_dump_traceback_later()
        if done % FITS_A_LINE == 0:
            print(f"{done} fits in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def rows(
    before: dict[str, tuple[float, ...]], after: dict[str, tuple[float, ...]], tasks: int
) -> list[Row]:
    """A line for each process, and one for the scheduler."""
    lines: list[Row] = []
    for name, figures in after.items():
        most = [SHARE * before[name][0] + MORE_MB, *(n + MORE_HANDLES for n in before[name][1:])]
        over = max(now - limit for now, limit in zip(figures, most, strict=True))
        line_of: Row = {"process": name}
        for column, was, now in zip(COLUMNS, before[name], figures, strict=True):
            line_of |= {f"{column} before": round(was), column: round(now)}
        lines.append(line_of | judge(over, at_most=0))
    return [*lines, {"process": "scheduler", "tasks": tasks} | judge(tasks, at_most=0)]


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = arguments(__doc__, count=500, warm=100, seed=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        run(client, options.warm, rng)
        before = measured(client)
        run(client, options.count, rng)
        lines = rows(before, measured(client), tasks_of(client))
    return report(f"{options.count} mixed fits after {options.warm}", lines, options.json)


if __name__ == "__main__":
    main()
