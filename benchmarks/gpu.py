"""Passes on a GPU: over rows that stay on the device, and over rows that come from the host.

Measured, for two models that compute in float64 and in float32, and for each device alone:

- ``copy``: bytes a second of ``-a`` for an array of the size of the rows, read and written. This is
  the bandwidth of the device.
- ``resident``: a pass over rows that are on the device. ``share`` is the bytes of the rows a
  second, as a part of the bandwidth.
- ``sent``: the same rows from the memory of the host, in buffers of the size that a fit has, by two
  threads. ``overlap`` is the part of the shorter of transfer and computing that the other hides.
- ``tile``: rows that the kernel takes at one time. A GPU takes a whole buffer; on a CPU see
  docs/kernel.md.

Rows are float64 wherever they are kept; a model may compute in float32. A last line has all devices
together, which take buffers in turn.

Bar: 0.6 of the bandwidth. Without a GPU the script says so, and ``--cpu`` runs the same on the CPU,
where the figures only show that the script works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, interleave, judge, report
from benchmarks.problems import EXPONENTIAL, GAUSSIANS, Model, Problem
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.devices import checked_device
from nlsq_dask.kernels.sums import BlockKernel, block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

BAR = 0.6

#: Threads that send buffers to a device: one computes while the other copies.
SENDERS = 2


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=1 << 24, repeat=20)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, to try the script")
    options = parser.parse_args(argv)
    platform = "cpu" if options.cpu else "gpu"
    if not options.cpu and jax.default_backend() != "gpu":
        print("JAX sees no GPU in this process; --cpu runs the same on the CPU")
        return []
    devices = jax.local_devices(backend=platform)
    choices = [[device] for device in devices]
    if len(devices) > 1:
        choices.append(devices)
    lines = [
        measure(Case(problem, dtype, chosen), options.rows, options.repeat)
        for problem in (EXPONENTIAL, GAUSSIANS)
        for dtype in (jnp.float64, jnp.float32)
        for chosen in choices
    ]
    return report("gpu: passes on the device", lines, options.json)


@dataclass(frozen=True)
class Case:
    """A model, the type that it computes in, and the devices."""

    problem: Problem
    dtype: type
    devices: list[jax.Device]

    def kernel(self) -> BlockKernel:
        """The kernel of the model on these devices."""
        model = computed_in(self.dtype, self.problem.model(jnp))
        names = parameter_names(self.problem.model(jnp))
        return block_kernel(prepare_model(model, names), checked_device(self.devices))


def computed_in(dtype: type, model: Model) -> Model:
    """A model that casts x and its parameters first."""
    if dtype is jnp.float64:
        return model

    def cast(x: jax.Array, *params: jax.Array) -> jax.Array:
        return model(x.astype(dtype), *(p.astype(dtype) for p in params))

    return cast


def measure(case: Case, n_rows: int, repeat: int) -> Row:
    """Time the passes of one case.

    Parameters
    ----------
    case : Case
    n_rows : int
        Rows, cut to whole buffers.
    repeat : int
        Turns.
    """
    kernel, params = case.kernel(), np.array(case.problem.truth)
    basis = np.eye(params.size)
    sent = list(buffers(case.problem, n_rows))

    def one(rows: Rows) -> object:
        return kernel(params, basis, rows)

    with jax.enable_x64(True), ThreadPoolExecutor(SENDERS * len(case.devices)) as pool:
        kept = [on_device(rows, place_of(case, i)) for i, rows in enumerate(sent)]
        array = jax.device_put(np.zeros(2 * sum(r.n for r in sent)), case.devices[0])
        negative = jax.jit(jnp.negative)

        def transfer() -> None:
            jax.block_until_ready([on_device(r, place_of(case, i)) for i, r in enumerate(sent)])

        calls: dict[str, Callable[[], object]] = {
            "copy": lambda: negative(array).block_until_ready(),
            "resident": lambda: list(pool.map(one, kept)),
            "transfer": transfer,
            "sent": lambda: list(pool.map(one, sent)),
        }
        seconds = {name: float(np.median(s)) for name, s in interleave(calls, repeat).items()}
    return figures(case, seconds, sum(rows.n for rows in sent))


def place_of(case: Case, number: int) -> jax.Device:
    """The device that has a buffer."""
    return case.devices[number % len(case.devices)]


def on_device(rows: Rows, device: jax.Device) -> Rows:
    """Rows whose coordinates and y are on a device."""
    coords, y = jax.device_put((rows.coords, rows.y), device)
    return rows._replace(coords=coords, y=y)


def figures(case: Case, seconds: dict[str, float], n: int) -> Row:
    """The line of one case: n rows of x and y, 16 bytes each."""
    bandwidth = 32 * n / seconds["copy"] * len(case.devices)
    share = 16 * n / seconds["resident"] / bandwidth
    parts = sorted([seconds["transfer"], seconds["resident"]])
    on_gpu = case.devices[0].platform == "gpu"
    return {
        "model": case.problem.label,
        "computes in": np.dtype(case.dtype).name,
        "devices": len(case.devices),
        **({"tile": STAGE_ROWS} if on_gpu else {}),
        "copy GB/s": bandwidth / 1e9,
        "resident ns/row": seconds["resident"] / n * 1e9,
        "share": share,
        **(judge(share, at_least=BAR) if on_gpu else {}),
        "transfer ns/row": seconds["transfer"] / n * 1e9,
        "sent ns/row": seconds["sent"] / n * 1e9,
        "overlap": min(max((sum(parts) - seconds["sent"]) / parts[0], 0.0), 1.0),
    }


def buffers(problem: Problem, n_rows: int) -> Sequence[Rows]:
    """Rows in aligned buffers of the length of a stage."""
    found = []
    for seed in range(max(n_rows // STAGE_ROWS, 1)):
        n = min(n_rows, STAGE_ROWS)
        stage = Stage(1, weighted=False, capacity=1 << (n - 1).bit_length())
        x, y = problem.data(n, seed)
        stage.fill(Block(y, (x,)), 0)
        found.append(Rows(stage.coords, stage.y, None, n))
    return found


if __name__ == "__main__":
    main()
