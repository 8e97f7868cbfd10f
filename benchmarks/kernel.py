"""One full pass of the kernel over rows at hand, against the sum of squared residuals alone.

Measured, in ns of processor time a row, on a staged buffer of 2**18 rows, one thread, float64:

- kernel: residuals, Jacobian, JᵀJ, Jᵀr and the cost, by the package's own kernel, compiled for the
  widest vectors of the processor, as in a fit;
- narrow: the same, compiled for vectors of 256 bits;
- cost: the sum of squared residuals in a loop over the same tiles, jitted without options: the
  least that any evaluation of the model costs;
- C: the same sums as the kernel's by a loop in C that is written for the model by hand
  (``kernel.c``), the limit; only where a C compiler is found;
- jacfwd: ``jax.jacfwd``, then ``J.T @ J`` and ``J.T @ r``, on the whole buffer at once (timed
  after the other two, as its large arrays would drive theirs out of the caches).

kernel/C is the distance to the limit. Bar: kernel/cost at most 2.6 for a exp(-b x) + c (p=3), 5.5
for three Gaussians + c (p=10).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.by_hand import loop_by_hand
from benchmarks.common import Row, arguments, in_fresh_process, interleave, judge, ratio, report
from benchmarks.problems import EXPONENTIAL, GAUSSIANS, FloatArray, Model, Problem
from nlsq_dask.core.resources import XLA_VECTOR_BITS, vector_bits
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, Rows, tile_rows
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

BARS = ((EXPONENTIAL, 2.6), (GAUSSIANS, 5.5))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=STAGE_ROWS, repeat=300)
    options = parser.parse_args(argv)
    rows = [
        # XLA makes its threads when it first runs: one core for it needs a process of its own.
        in_fresh_process(measure, problem, bar, options.rows, options.repeat, cores=1)
        for problem, bar in BARS
    ]
    return report("kernel: ns a row of one pass", rows, options.json)


def measure(problem: Problem, bar: float, n: int, repeat: int) -> Row:
    """Time the three ways to evaluate one problem on one buffer.

    Parameters
    ----------
    problem : Problem
    bar : float
        Most that the kernel may take, in units of the cost alone.
    n : int
        Rows of the buffer, a power of two.
    repeat : int
        Turns.
    """
    model = problem.model(jnp)
    names = parameter_names(model)
    params, basis = np.array(problem.start), np.eye(len(names))
    stage = Stage(1, weighted=False, capacity=n)
    x, y = problem.data(n)
    stage.fill(Block(y, (x,)), 0)
    spec = prepare_model(model, names)
    kernel = block_kernel(spec, "cpu", vector_bits=vector_bits())
    narrow = block_kernel(spec, "cpu", vector_bits=XLA_VECTOR_BITS)
    by_hand = loop_by_hand(problem)
    staged = Rows(stage.coords, stage.y, None, n)
    tile = min(n, tile_rows(CPU_TILE_BYTES, len(names) + 1))
    cost, normal = cost_alone(model, tile), whole_jacobian(model)
    x, y = stage.coords[0], stage.y
    sums = kernel(params, basis, staged)
    expected = np.column_stack([sums.gram, sums.gradient])
    np.testing.assert_allclose(normal(params, x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(cost(params, x, y), sums.chi2, rtol=1e-9)
    contestants: dict[str, Callable[[], object]] = {
        "kernel": lambda: kernel(params, basis, staged),
        "narrow": lambda: narrow(params, basis, staged),
        "cost": lambda: cost(params, x, y),
    }
    if by_hand is not None:
        found_by_hand = by_hand(params, x, y)
        np.testing.assert_allclose(found_by_hand[:-1], expected, rtol=1e-6)
        np.testing.assert_allclose(found_by_hand[-1, -1], sums.chi2, rtol=1e-9)
        contestants["C"] = lambda: by_hand(params, x, y)
    seconds = interleave(contestants, repeat, time.process_time)
    whole = {"jacfwd": lambda: normal(params, x, y)}
    seconds |= interleave(whole, max(repeat // 10, 1), time.process_time)
    found = ratio(seconds["kernel"], seconds["cost"])
    times = {name: float(np.median(values)) / n * 1e9 for name, values in seconds.items()}
    limit = {"kernel/C": ratio(seconds["kernel"], seconds["C"])} if by_hand is not None else {}
    row = {"model": problem.label, **times, **limit, "kernel/cost": found}
    return row | judge(found, at_most=bar)


def cost_alone(model: Model, tile: int) -> Callable[..., float]:
    """Sum of squared residuals, tile by tile."""

    @jax.jit
    def total(params: Any, x: Any, y: Any) -> Any:
        def add_tile(i: Any, so_far: Any) -> Any:
            cut_x, cut_y = (jax.lax.dynamic_slice_in_dim(a, i * tile, tile) for a in (x, y))
            r = model(cut_x, *params) - cut_y
            return so_far + r @ r

        return jax.lax.fori_loop(0, x.shape[0] // tile, add_tile, 0.0)

    def call(params: FloatArray, x: FloatArray, y: FloatArray) -> float:
        with jax.enable_x64(True):
            return float(total(params, x, y))

    return call


def whole_jacobian(model: Model) -> Callable[..., FloatArray]:
    """``[J, r]ᵀ [J, r]`` of all rows at once, J as a matrix in memory."""

    @jax.jit
    def products(params: Any, x: Any, y: Any) -> Any:
        def residual(theta: Any) -> Any:
            return model(x, *theta) - y

        r, jacobian = residual(params), jax.jacfwd(residual)(params)
        return jnp.column_stack([jacobian.T @ jacobian, jacobian.T @ r]), r @ r

    def call(params: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
        with jax.enable_x64(True):
            return np.asarray(products(params, x, y)[0])

    return call


if __name__ == "__main__":
    main()
