"""Forward against reverse mode for the kernel's Jacobian: why it differentiates forwards.

Measured, in ns of processor time a row of one pass over 2**18 rows in the kernel's tiles, one
thread, float64, for sums of Gaussians (3 parameters each, and a constant) and polynomials:

- forward: the kernel's way, ``jax.linearize`` and a product along every column of the basis;
- reverse, by rows: ``jax.vmap`` of ``jax.value_and_grad``;
- reverse, by tile: one ``jax.vjp`` with a copy of the parameters for each row.

Bar: forward is the fastest of the three for every number of parameters tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, in_fresh_process, interleave, judge, report
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, tile_rows

ROWS = 1 << 18
SIZES = {"Gaussians": (4, 10, 22, 31, 61), "polynomial": (3, 6, 12, 24, 48)}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    options = arguments(__doc__, repeat=9).parse_args(argv)
    rows = [
        in_fresh_process(measure, name, size, options.repeat, cores=1)
        for name, sizes in SIZES.items()
        for size in sizes
    ]
    return report("derivatives: ns a row of one pass", rows, options.json)


def measure(name: str, size: int, repeat: int) -> Row:
    """Time the three modes for one model of so many parameters."""
    model = gaussians if name == "Gaussians" else polynomial
    params = np.random.default_rng(0).uniform(0.5, 2.0, size)
    x = np.linspace(0.0, 1.0, ROWS)
    with jax.enable_x64(True):
        rows = jnp.asarray(x), jnp.asarray(np.sin(x))
        modes = {"forward": forward, "reverse by rows": by_rows, "reverse by tile": by_tile}
        passes = {mode: one_pass(function, model, size) for mode, function in modes.items()}
        sums = [np.asarray(run(params, *rows)) for run in passes.values()]
        for other in sums[1:]:
            np.testing.assert_allclose(other, sums[0], rtol=1e-7, atol=1e-7 * abs(sums[0]).max())
        calls = {mode: partial(timed, run, params, *rows) for mode, run in passes.items()}
        seconds = interleave(calls, repeat, time.process_time)
    times = {mode: float(np.median(values)) / ROWS * 1e9 for mode, values in seconds.items()}
    best = min(times["reverse by rows"], times["reverse by tile"])
    return {"model": f"{name}, p={size}", **times} | judge(times["forward"] / best, at_most=1.0)


def gaussians(x: Any, *theta: Any) -> Any:
    """Gaussians on a constant."""
    peaks = (theta[i : i + 3] for i in range(0, len(theta) - 1, 3))
    return sum(a * jnp.exp(-0.5 * ((x - m) / s) ** 2) for a, m, s in peaks) + theta[-1]


def polynomial(x: Any, *theta: Any) -> Any:
    """A polynomial by Horner's rule."""
    value = 0.0 * x
    for coefficient in theta:
        value = value * x + coefficient
    return value


def forward(model: Callable[..., Any], params: Any, basis: Any, x: Any, y: Any) -> Any:
    """``[(J S)ᵀ; rᵀ]`` by products along the columns of S."""
    r, derivative = jax.linearize(lambda theta: model(x, *theta) - y, params)
    return jnp.concatenate([jax.vmap(derivative, in_axes=1)(basis), r[None]])


def by_rows(model: Callable[..., Any], params: Any, basis: Any, x: Any, y: Any) -> Any:
    """The same by the gradient of each row."""

    def residual(theta: Any, row: Any, value: Any) -> Any:
        return (model(row[None], *theta) - value)[0]

    gradients = jax.vmap(jax.value_and_grad(residual), in_axes=(None, 0, 0))
    r, jacobian = gradients(params, x, y)
    return jnp.concatenate([(jacobian @ basis).T, r[None]])


def by_tile(model: Callable[..., Any], params: Any, basis: Any, x: Any, y: Any) -> Any:
    """The same by one sweep back, each row with parameters of its own."""
    copies = jnp.broadcast_to(params[:, None], (params.size, x.size))
    r, sweep = jax.vjp(lambda theta: model(x, *theta) - y, copies)
    return jnp.concatenate([basis.T @ sweep(jnp.ones_like(r))[0], r[None]])


def timed(run: Callable[..., Any], *args: Any) -> object:
    """A call that ends when its result is there."""
    return run(*args).block_until_ready()


def one_pass(mode: Callable[..., Any], model: Callable[..., Any], size: int) -> Callable[..., Any]:
    """A jitted pass over all rows in tiles of the kernel's size."""
    tile = tile_rows(CPU_TILE_BYTES, size + 1)
    basis = jnp.eye(size)

    @jax.jit
    def run(params: Any, x: Any, y: Any) -> Any:
        def add_tile(i: Any, total: Any) -> Any:
            rows = (jax.lax.dynamic_slice_in_dim(a, i * tile, tile) for a in (x, y))
            directions = mode(model, params, basis, *rows)
            return total + directions @ directions.T

        zero = jnp.zeros((size + 1, size + 1))
        return jax.lax.fori_loop(0, ROWS // tile, add_tile, zero)

    return run


if __name__ == "__main__":
    main()
