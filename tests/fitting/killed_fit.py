"""A slow fit as a program, to be killed: ``killed_fit.py DIRECTORY OUT STARTS [SCHEDULER]``.

Says "fitting" once everything is loaded; resumes from the directory's checkpoints, and pickles the
result to OUT. Beside OUT, the file "reads" gets a byte for each block that is read. While there is
a file "hang", the last block waits in its second pass and later ones.
"""

from __future__ import annotations

import pickle
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import numpy as np

from nlsq_dask import fit
from nlsq_dask.fitting import ledger

BLOCKS = 32
BLOCK_ROWS = 200
#: Seconds that a block takes at least. On two threads a pass takes 0.08 s.
BLOCK_SECONDS = 0.005


def model(x, a, b, c, d):
    return a * (x**2 + x * b) / (x**2 + x * c + d)


def slow_x(folder, block_info=None):
    location, rows = block_info[None]["chunk-location"], block_info[None]["chunk-shape"]
    with (folder / "reads").open("ab") as file:
        file.write(bytes(location))
    is_last = location == (BLOCKS - 1,)
    while is_last and (folder / "hang").exists() and was_read_before(folder, BLOCKS - 1):
        time.sleep(BLOCK_SECONDS)
    time.sleep(BLOCK_SECONDS)
    return np.random.default_rng(location).uniform(0.05, 4.0, rows)


def was_read_before(folder, number):
    return (folder / "reads").read_bytes().count(number) > 1


def observe(x, block_id=None):
    noise = np.random.default_rng((1, *block_id)).standard_normal(x.shape)
    return 0.19 * (x**2 + x * 0.19) / (x**2 + x * 0.12 + 0.14) + 0.01 * noise


def slow_data(folder):
    # Workers cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    chunks = da.core.normalize_chunks(BLOCK_ROWS, (BLOCKS * BLOCK_ROWS,))
    x = da.map_blocks(slow_x, folder, chunks=chunks, dtype=float, meta=np.empty(0))
    return x, da.map_blocks(observe, x, dtype=float, meta=np.empty(0))


def main(directory, out, n_starts, scheduler=None):
    ledger.SECONDS = ledger.TIMES_LONGER = 0.0  # after every group
    client = nullcontext()
    if scheduler is not None:
        from distributed import Client

        client = Client(scheduler)
    with client, dask.config.set(num_workers=2):
        print("fitting", flush=True)
        result = fit(
            model,
            *slow_data(Path(out).parent),
            p0=[0.3, 0.3, 0.3, 0.3],
            bounds=(0, 10),
            # Many passes, also from a good start, and slow ones.
            pilot=False,
            cache=False,
            ftol=1e-15,
            gtol=None,
            xtol=1e-9,
            n_starts=int(n_starts),
            checkpoint=directory,
            resume=True,
            progress=False,
        )
    partial = Path(out).with_suffix(".partial")
    partial.write_bytes(pickle.dumps(result))
    partial.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
