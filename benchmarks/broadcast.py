"""A pass over a cube with three small coordinates, against one coordinate of the cube's size.

Measured, in ns a row, on the same y (t, row, col) in the same chunks, with one model that calls
for the same arithmetic either way:

- three: coordinates of shapes (t, 1, 1), (row, 1) and (col,), never expanded beyond a buffer;
- one: a single coordinate of y's shape, which the model uses three times. Reads twice the bytes.

In memory both use the strategy "chunked"; streaming reads y (and the one coordinate) from an
uncompressed Zarr store on Dask's threads.

Bar: three/one at most 1.3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import zarr

from benchmarks.common import Row, arguments, interleave, judge, ratio, report
from benchmarks.problems import FloatArray, Model
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import Observations, observe
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model

NAMES = ("a", "b", "c", "d")
PARAMS = np.array([2.5, 1.3, 0.4, -0.2])
CHUNKS = (4, 4, 4)  # a dimension is cut into so many
BAR = 1.3


def plane_and_decay(x: tuple[Any, Any, Any], a: Any, b: Any, c: Any, d: Any) -> Any:
    """Decay in t on a plane in row and column."""
    t, row, column = x
    return a * jnp.exp(-b * t) + c * row + d * column


def one_coordinate(x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The same operations on a single coordinate."""
    return plane_and_decay((x, x, x), a, b, c, d)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=1 << 24, repeat=15)
    options = parser.parse_args(argv)
    side = max(round(options.rows ** (1 / 3)), 2 * max(CHUNKS))
    shape = (side, side, side)
    y = np.random.default_rng(0).normal(1.0, 0.1, shape)
    axes = [np.linspace(0.0, 1.0, n) for n in shape]
    small = tuple(axis.reshape(-1, *(1,) * (2 - i)) for i, axis in enumerate(axes))
    large = np.broadcast_to(small[0], shape).copy()
    rows = [
        compare("in memory", observe(small, y), observe(large, y), options.repeat),
    ]
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
        stored_y, stored_x = stored(Path(folder), y=y, x=large)
        three, one = observe(small, stored_y), observe(stored_x, stored_y)
        rows.append(compare("streaming", three, one, options.repeat))
    return report(f"broadcast: ns a row of a pass over {y.size:,} rows", rows, options.json)


def stored(folder: Path, **arrays: FloatArray) -> list[da.Array]:
    """Dask arrays over copies in a Zarr store, in equal chunks."""
    group = zarr.create_group(folder / "cube")
    for name, values in arrays.items():
        chunks = tuple(-(-n // pieces) for n, pieces in zip(values.shape, CHUNKS, strict=True))
        group.create_array(name, data=values, chunks=chunks, compressors=None)
    return [da.from_zarr(str(folder / "cube"), component=name) for name in arrays]


def compare(where: str, three: Observations, one: Observations, repeat: int) -> Row:
    """Time both forms of the same rows."""
    with (
        engine(three, plane_and_decay) as with_three,
        engine(one, one_coordinate) as with_one,
    ):
        basis = np.eye(len(NAMES))
        seconds = interleave(
            {
                "three": lambda: with_three.ask(SumsAt(PARAMS, basis)),
                "one": lambda: with_one.ask(SumsAt(PARAMS, basis)),
            },
            repeat,
        )
    times = {name: float(np.median(v)) / three.n_rows * 1e9 for name, v in seconds.items()}
    found = ratio(seconds["three"], seconds["one"])
    return {"data": where} | times | {"three/one": found} | judge(found, at_most=BAR)


def engine(data: Observations, model: Model) -> Engine:
    """The engine for the data, on the processor."""
    spec = prepare_model(model, NAMES, data.structure, len(data.coords))
    return open_engine(data, Kernels((spec,), "cpu"))


if __name__ == "__main__":
    main()
