"""What a chunk costs beyond its arithmetic: group tasks, against one task a chunk and a reduction.

Measured, in µs a chunk and pass, on chunks of 100 rows that cost the tasks nothing to make:

- groups: a pass of the streaming engine;
- blocks: the same sums by ``da.map_blocks`` and ``.sum``, a new graph each pass;
- setup: what the engine does once a fit, before its first pass.

Schedulers: Dask's threads, and a cluster of 2 processes with 1 thread. Of many chunks the second
form is measured once only. No bar: a pass over 64 MB chunks takes some 100 ms a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dask.array as da
import jax.numpy as jnp
import numpy as np
from dask.system import CPU_COUNT
from distributed import Client

from benchmarks.common import (
    Row,
    arguments,
    interleave,
    local_cluster,
    ratio,
    report,
    stopwatch,
)
from benchmarks.problems import EXPONENTIAL, FloatArray
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

CHUNK_ROWS = 100
X, Y = EXPONENTIAL.data(CHUNK_ROWS)
#: Above so many chunks the slow form is measured once.
REPEATED_CHUNKS = 2000


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, chunks=10_000, repeat=5)
    options = parser.parse_args(argv)
    sizes = sorted({max(options.chunks // 10, 1), options.chunks})
    rows = [measure(f"threads, {CPU_COUNT}", None, n, options.repeat) for n in sizes]
    with local_cluster(2, 1) as client:
        rows += [measure("cluster 2 x 1", client, n, options.repeat) for n in sizes]
    return report("overhead: µs a chunk", rows, options.json)


def measure(scheduler: str, client: Client | None, n_chunks: int, repeat: int) -> Row:
    """Time both forms on one scheduler."""
    chunks = ((CHUNK_ROWS,) * n_chunks,)
    x, y = (da.map_blocks(f, chunks=chunks, dtype=float) for f in (coordinates, observations))
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start))

    def blocks() -> FloatArray:
        # New parameters each time, as in a fit: Dask names a graph for what goes into it.
        changed = params * (1 + 1e-12 * np.random.default_rng().random())
        sums = da.map_blocks(
            block_sums, x, y, changed, dtype=float, new_axis=(1, 2), chunks=((1,) * n_chunks, 4, 4)
        )
        total: FloatArray = sums.sum(axis=0).compute()
        return total

    executor = executor_of(client, lazy=False)
    setup, engine = stopwatch(lambda: open_engine(observe(x, y), Kernels((spec,), "cpu"), executor))
    with engine:
        contestants: dict[str, Callable[[], object]] = {
            "groups": lambda: engine.ask(SumsAt(params, basis))
        }
        once, sums = stopwatch(blocks)
        gram = engine.ask(SumsAt(params, basis)).gram
        np.testing.assert_allclose(sums[:3, :3], gram, rtol=1e-6)
        if n_chunks <= REPEATED_CHUNKS:
            seconds = interleave(contestants | {"blocks": blocks}, repeat)
        else:
            seconds = interleave(contestants, repeat) | {"blocks": np.array([once])}
        n_groups = len(engine.stream.groups)
    times = {name: float(np.median(v)) / n_chunks * 1e6 for name, v in seconds.items()}
    head: Row = {"scheduler": scheduler, "chunks": n_chunks, "tasks": n_groups}
    more = {
        "setup": setup / n_chunks * 1e6,
        "blocks/groups": ratio(seconds["blocks"], seconds["groups"]),
    }
    return head | times | more


def coordinates() -> FloatArray:
    """Coordinates of any chunk."""
    return X


def observations() -> FloatArray:
    """Observations of any chunk."""
    return Y


def block_sums(x: FloatArray, y: FloatArray, params: FloatArray) -> FloatArray:
    """``[J, r]ᵀ [J, r]`` of one chunk, by hand; shape (1, 4, 4)."""
    a, b, c = params
    decay = np.exp(-b * x)
    rows = np.stack([decay, -a * x * decay, np.ones_like(x), a * decay + c - y])
    sums: FloatArray = (rows @ rows.T)[None]
    return sums


if __name__ == "__main__":
    main()
